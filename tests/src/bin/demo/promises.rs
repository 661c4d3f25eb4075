//! The promises of the load balancer that the demonstration looks at, and
//! what it saw of each.

use crate::screen::{Screen, Tone};

/// One promise, and how it was kept.
struct Promise {
    text: String,
    seen: String,
    held: bool,
}

/// All of them so far.
#[derive(Default)]
pub(crate) struct Promises(Vec<Promise>);

impl Promises {
    /// Notes what was seen of a promise.
    pub(crate) fn note(&mut self, text: &str, seen: String, held: bool) {
        self.0.push(Promise {
            text: text.to_owned(),
            seen,
            held,
        });
    }

    /// How many did not hold.
    pub(crate) fn broken(&self) -> usize {
        self.0.iter().filter(|promise| !promise.held).count()
    }

    /// The table at the end.
    pub(crate) fn show(&self, screen: &Screen) {
        let widths = self.0.iter().map(|promise| promise.text.chars().count());
        let width = widths.max().unwrap_or_default();
        for promise in &self.0 {
            let mark = if promise.held {
                screen.tone(Tone::Good, "✓")
            } else {
                screen.tone(Tone::Bad, "✗")
            };
            screen.row(&format!(
                "{mark} {:<width$}  {}",
                promise.text, promise.seen
            ));
        }
    }
}
