//! `cargo xtask docs`: the parts of README.md that are made from the code.
//!
//! The table of verdicts stands between two markers and is written from
//! [`Verdict::ALL`], the same list that names the counters and the metrics.

use std::{fmt::Write as _, fs};

use anyhow::{Context as _, Result, bail};

use lb_common::Verdict;

use crate::{report, shell};

const BEGIN: &str = "<!-- verdicts:begin -->";
const END: &str = "<!-- verdicts:end -->";

/// Writes README.md's generated parts, or only says whether they are current.
pub(crate) fn run(check: bool) -> Result<()> {
    let path = shell::root().join("README.md");
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let current = regenerated(&text)?;
    if current == text {
        return Ok(());
    }
    if check {
        bail!(
            "README.md's table of verdicts is stale: run `cargo xtask docs` and commit the result"
        );
    }
    fs::write(&path, current).with_context(|| format!("cannot write {}", path.display()))?;
    report::done("README.md's table of verdicts is written anew");
    Ok(())
}

fn regenerated(text: &str) -> Result<String> {
    let Some((before, rest)) = text.split_once(BEGIN) else {
        bail!("README.md has no line `{BEGIN}`, after which the table of verdicts belongs");
    };
    let Some((_, after)) = rest.split_once(END) else {
        bail!("README.md has no line `{END}` after `{BEGIN}`");
    };
    Ok(format!("{before}{BEGIN}\n{}{END}{after}", table()))
}

fn table() -> String {
    let mut table = String::from("| # | verdict | action | meaning |\n|--:|---|---|---|\n");
    for &verdict in Verdict::ALL {
        let (number, name, action) = (verdict as u8, verdict.name(), verdict.action().name());
        let meaning = verdict.help().replace('|', "\\|");
        writeln!(table, "| {number} | `{name}` | {action} | {meaning} |")
            .expect("writing to a String cannot fail");
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_replaces_what_stands_between_the_markers_and_nothing_else() {
        let text = format!("# Title\n{BEGIN}\nstale\n{END}\nThe end.\n");
        let once = regenerated(&text).unwrap();
        assert!(
            once.starts_with(&format!("# Title\n{BEGIN}\n| # |")),
            "{once}"
        );
        assert!(once.ends_with(&format!(" |\n{END}\nThe end.\n")), "{once}");
        assert!(!once.contains("stale"));
        assert_eq!(regenerated(&once).unwrap(), once);
    }

    #[test]
    fn every_verdict_has_its_row() {
        let table = table();
        assert_eq!(table.lines().count(), Verdict::ALL.len() + 2);
        for verdict in Verdict::ALL {
            assert!(table.contains(&format!("| {} | `{}` |", *verdict as u8, verdict.name())));
        }
    }

    #[test]
    fn a_missing_marker_is_named() {
        assert!(regenerated("text").unwrap_err().to_string().contains(BEGIN));
        assert!(regenerated(BEGIN).unwrap_err().to_string().contains(END));
    }
}
