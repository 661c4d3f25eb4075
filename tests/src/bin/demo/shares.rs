//! What each backend got beside what its weight promises.

use crate::{
    load::Request,
    screen::{Screen, Tone},
};

/// The length of the longest bar.
const BAR: usize = 40;

/// A backend's share of some requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    name: String,
    weight: u16,
    /// Exact: the requests are counted in whole sequences.
    expected: usize,
    got: usize,
}

/// Some requests, divided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shares {
    shares: Vec<Share>,
    failed: usize,
    total: usize,
}

impl Shares {
    /// Counts requests by backends, given as name and weight. Their number is a
    /// multiple of the sum of the weights, or nothing is exact.
    pub(crate) fn of(requests: &[Request], backends: &[(&str, u16)]) -> Self {
        let sum: usize = backends
            .iter()
            .map(|&(_, weight)| usize::from(weight))
            .sum();
        let got = |name: &str| {
            let answers = requests
                .iter()
                .filter_map(|request| request.outcome.as_ref().ok());
            answers.filter(|backend| *backend == name).count()
        };
        let shares = backends.iter().map(|&(name, weight)| Share {
            name: name.to_owned(),
            weight,
            expected: (requests.len() * usize::from(weight))
                .checked_div(sum)
                .unwrap_or_default(),
            got: got(name),
        });
        Self {
            shares: shares.collect(),
            failed: requests
                .iter()
                .filter(|request| request.outcome.is_err())
                .count(),
            total: requests.len(),
        }
    }

    /// Whether every backend got exactly what its weight promises.
    pub(crate) fn are_exact(&self) -> bool {
        self.failed == 0
            && self.total > 0
            && self.shares.iter().all(|share| share.got == share.expected)
            && self.shares.iter().map(|share| share.got).sum::<usize>() == self.total
    }

    /// As `300 : 200 : 100`.
    pub(crate) fn line(&self) -> String {
        let got: Vec<String> = self
            .shares
            .iter()
            .map(|share| share.got.to_string())
            .collect();
        match self.failed {
            0 => got.join(" : "),
            failed => format!("{}, {failed} failed", got.join(" : ")),
        }
    }

    /// The table.
    pub(crate) fn show(&self, screen: &Screen) {
        screen.detail(&format!(
            "{:<8} {:>6} {:>9} {:>6}",
            "backend", "weight", "expected", "got"
        ));
        let most = self.shares.iter().map(|share| share.got).max();
        for share in &self.shares {
            let tone = if share.got == share.expected {
                Tone::Good
            } else {
                Tone::Bad
            };
            let row = format!(
                "{:<8} {:>6} {:>9} {}  {}",
                share.name,
                share.weight,
                share.expected,
                screen.tone(tone, &format!("{:>6}", share.got)),
                screen.bar(share.got, most.unwrap_or_default(), BAR),
            );
            screen.detail(row.trim_end());
        }
        if self.failed > 0 {
            screen.detail(&screen.tone(Tone::Bad, &format!("{} requests failed", self.failed)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn requests(outcomes: &[(usize, Result<&str, &str>)]) -> Vec<Request> {
        let one = |outcome: Result<&str, &str>| Request {
            begun: Instant::now(),
            took: Duration::ZERO,
            outcome: outcome.map(str::to_owned).map_err(str::to_owned),
        };
        outcomes
            .iter()
            .flat_map(|&(count, outcome)| std::iter::repeat_n(one(outcome), count))
            .collect()
    }

    #[test]
    fn shares_are_exact_if_each_backend_got_its_weight_and_none_else_anything() {
        let backends = [("b1", 2), ("b2", 1), ("b3", 0)];
        let exact = Shares::of(&requests(&[(4, Ok("b1")), (2, Ok("b2"))]), &backends);
        assert!(exact.are_exact());
        assert_eq!(exact.line(), "4 : 2 : 0");
        for wrong in [
            requests(&[(3, Ok("b1")), (3, Ok("b2"))]),
            requests(&[(3, Ok("b1")), (2, Ok("b2")), (1, Err("refused"))]),
            requests(&[(3, Ok("b1")), (2, Ok("b2")), (1, Ok("b3"))]),
            requests(&[(4, Ok("b1")), (2, Ok("b2")), (3, Ok("b4"))]),
            requests(&[]),
        ] {
            assert!(!Shares::of(&wrong, &backends).are_exact(), "{wrong:?}");
        }
    }
}
