//! The parts of `schedulers.md` that are made from the code.

use std::fmt::Write as _;

use anyhow::{Result, bail};
use tests::simulation::Measured;

/// The page with its generated parts written anew.
pub(crate) fn renewed(text: &str, measured: &[Measured]) -> Result<String> {
    let text = between(text, "schedulers", &list(measured))?;
    between(&text, "figures", &figures(measured))
}

/// Every scheduler in its own words.
fn list(measured: &[Measured]) -> String {
    let mut table = String::from("| `scheduler` | what it is |\n|---|---|\n");
    for Measured { scheduler, .. } in measured {
        table += &format!("| `{}` | {} |\n", scheduler.name, scheduler.help);
    }
    table
}

fn figures(measured: &[Measured]) -> String {
    let mut table = String::from(
        "| | 100 equal backends | six with weights | 99, one being down | moved when one goes down | and a second | one is taken out | one is added |\n\
         |---|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for one in measured {
        writeln!(
            table,
            "| `{}` | {} | {} | {} | {} | {} | {} | {} |",
            one.scheduler.name,
            off(&one.equal),
            off(&one.weighted),
            off(&one.without_one),
            percent(one.moved_by_down),
            percent(one.moved_by_second),
            percent(one.moved_by_removal),
            percent(one.moved_by_addition),
        )
        .expect("writing to a String cannot fail");
    }
    table
}

/// How far the worst are from what is due to them, on either side.
fn off(distribution: &[f64]) -> String {
    let least = distribution.iter().copied().fold(1.0, f64::min);
    let most = distribution.iter().copied().fold(1.0, f64::max);
    if most - least < 0.000_5 {
        return "exact".to_owned();
    }
    format!("−{} +{}", percent(1.0 - least), percent(most - 1.0))
}

fn percent(part: f64) -> String {
    if part == 0.0 {
        "0 %".to_owned()
    } else {
        format!("{:.2} %", part * 100.0)
    }
}

/// Replaces what stands between the markers of this name.
fn between(text: &str, name: &str, content: &str) -> Result<String> {
    let (begin, end) = (
        format!("<!-- {name}:begin -->\n"),
        format!("<!-- {name}:end -->"),
    );
    let Some((before, rest)) = text.split_once(&begin) else {
        bail!("schedulers.md has no line `{}`", begin.trim_end());
    };
    let Some((_, after)) = rest.split_once(&end) else {
        bail!("schedulers.md has no line `{end}`");
    };
    Ok(format!("{before}{begin}{content}{end}{after}"))
}
