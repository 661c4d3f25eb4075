//! Faults with the place where they stand, and how they are shown.
//!
//! The form is the compiler's, since administrators have seen it:
//!
//! ```text
//! error: unknown key `wieght`
//!   --> /etc/lb/lb.toml:12:1
//!    |
//! 12 | wieght = 3
//!    | ^^^^^^
//!    = help: did you mean `weight`? valid keys here: name, address, weight, backup
//! ```

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::fault::Fault;

/// How many faults are reported at most; of more, only the number.
const MAX_PROBLEMS: usize = 100;

/// How much of a long line is shown: this many bytes before the fault and
/// twice as many from there on.
const SHOWN_BEFORE: usize = 60;

/// Faults as they are found, with the bytes of the text where they stand.
#[derive(Default)]
pub(super) struct Found {
    found: Vec<Finding>,
    unshown: usize,
}

/// A fault, where it stands, and where what it repeats stands.
struct Finding {
    at: Option<Range<usize>>,
    first: Option<Range<usize>>,
    fault: Fault,
}

impl Found {
    /// Notes a fault.
    pub(super) fn add(&mut self, at: Range<usize>, fault: Fault) {
        self.push(Finding {
            at: Some(at),
            first: None,
            fault,
        });
    }

    /// Notes a fault of the file as a whole.
    pub(super) fn add_nowhere(&mut self, fault: Fault) {
        self.push(Finding {
            at: None,
            first: None,
            fault,
        });
    }

    /// Notes something that was there already.
    pub(super) fn add_again(&mut self, at: Range<usize>, first: Range<usize>, fault: Fault) {
        self.push(Finding {
            at: Some(at),
            first: Some(first),
            fault,
        });
    }

    /// Whether nothing is wrong so far.
    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// How many faults there are so far.
    pub(super) fn len(&self) -> usize {
        self.found.len() + self.unshown
    }

    fn push(&mut self, finding: Finding) {
        if self.found.len() < MAX_PROBLEMS {
            self.found.push(finding);
        } else {
            self.unshown += 1;
        }
    }
}

/// Everything that is wrong with a configuration file; never empty.
///
/// `Display` shows each fault with its line and what to do; see
/// [`ConfigErrors::lines`] for one line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors {
    file: PathBuf,
    problems: Vec<Problem>,
    unshown: usize,
}

/// One fault and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What is wrong.
    pub fault: Fault,
    /// Where; nowhere if it concerns the file as a whole.
    pub place: Option<Place>,
    /// The line where what is used twice was used first.
    pub first_line: Option<usize>,
}

/// A place in the file, and the line as it may be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// The line, or the part of it round the fault if it is long.
    pub text: String,
    /// Which characters of `text` are at fault.
    pub underlined: Range<usize>,
}

impl ConfigErrors {
    /// The faults found in this text, in its order.
    pub(super) fn new(file: &Path, text: &str, mut found: Found) -> Self {
        found
            .found
            .sort_by_key(|finding| finding.at.as_ref().map(|at| at.start));
        let problems = found.found.into_iter().map(|finding| Problem {
            fault: finding.fault,
            place: finding.at.map(|at| place(text, at)),
            first_line: finding.first.map(|at| line_number(text, at.start)),
        });
        Self {
            file: file.to_owned(),
            problems: problems.collect(),
            unshown: found.unshown,
        }
    }

    /// One fault in this text.
    pub(super) fn single(file: &Path, text: &str, at: Range<usize>, fault: Fault) -> Self {
        let mut found = Found::default();
        found.add(at, fault);
        Self::new(file, text, found)
    }

    /// One fault of the file as a whole.
    pub(super) fn whole_file(file: &Path, fault: Fault) -> Self {
        let mut found = Found::default();
        found.add_nowhere(fault);
        Self::new(file, "", found)
    }

    /// What is wrong, in the order of the file.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Each fault in one line: `FILE:LINE: sentence`.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.problems.iter().map(|problem| match &problem.place {
            Some(place) => format!("{}:{}: {}", self.file.display(), place.line, problem.fault),
            None => format!("{}: {}", self.file.display(), problem.fault),
        })
    }

    fn write_problem(&self, f: &mut fmt::Formatter<'_>, problem: &Problem) -> fmt::Result {
        let Problem {
            fault,
            place,
            first_line,
        } = problem;
        let file = self.file.display();
        write!(f, "error: {fault}")?;
        let gutter = place
            .as_ref()
            .map_or(1, |place| place.line.to_string().len());
        match place {
            None => write!(f, "\n{:gutter$}--> {file}", "")?,
            Some(Place {
                line,
                column,
                text,
                underlined,
            }) => {
                write!(f, "\n{:gutter$}--> {file}:{line}:{column}", "")?;
                write!(f, "\n{:gutter$} |", "")?;
                write!(f, "\n{line} | {text}")?;
                let marks = "^".repeat(underlined.len());
                write!(
                    f,
                    "\n{:gutter$} | {:indent$}{marks}",
                    "",
                    "",
                    indent = underlined.start
                )?;
            }
        }
        if let Some(first) = first_line {
            write!(f, "\n{:gutter$} = note: first used in line {first}", "")?;
        }
        if let Some(help) = fault.help() {
            write!(f, "\n{:gutter$} = help: {help}", "")?;
        }
        Ok(())
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, problem) in self.problems.iter().enumerate() {
            if place > 0 {
                f.write_str("\n\n")?;
            }
            self.write_problem(f, problem)?;
        }
        let all = self.problems.len() + self.unshown;
        if all > 1 {
            write!(f, "\n\n{all} errors in {}", self.file.display())?;
        }
        if self.unshown > 0 {
            write!(f, ", of which the last {} are not shown", self.unshown)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// The number of the line that holds this byte, from 1.
fn line_number(text: &str, at: usize) -> usize {
    let before = &text.as_bytes()[..at.min(text.len())];
    1 + before.iter().filter(|byte| **byte == b'\n').count()
}

/// The place of these bytes: where they begin, and those on that line underlined.
fn place(text: &str, at: Range<usize>) -> Place {
    let start = text.floor_char_boundary(at.start);
    let line_start = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
    let rest = &text[start..];
    let line_end = start + rest.find('\n').unwrap_or(rest.len());
    let end = text.floor_char_boundary(at.end.clamp(start, line_end));

    let from = text
        .floor_char_boundary(start.saturating_sub(SHOWN_BEFORE))
        .max(line_start);
    let to = text
        .floor_char_boundary(start + 2 * SHOWN_BEFORE)
        .min(line_end);
    let cut = if from > line_start { "…" } else { "" };
    let more = if to < line_end { "…" } else { "" };
    let length = |range: Range<usize>| text[range].chars().count();
    let indent = cut.chars().count() + length(from..start);
    let width = length(start..end.min(to)).max(1);
    let shown: String = text[from..to]
        .trim_end_matches('\r')
        .chars()
        .map(harmless)
        .collect();
    Place {
        line: line_number(text, start),
        column: 1 + length(line_start..start),
        text: format!("{cut}{shown}{more}").trim_end().to_owned(),
        underlined: indent..indent + width,
    }
}

/// The character, or what stands for one that would spoil the picture: those
/// that control a terminal or the direction of writing.
fn harmless(char: char) -> char {
    match char {
        '\t' => ' ',
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
        char if char.is_control() => '\u{fffd}',
        char => char,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str, at: Range<usize>) -> String {
        ConfigErrors::single(Path::new("f"), text, at, Fault::NoInterface).to_string()
    }

    const HELP: &str = "  = help: name the interface where packets arrive, as `ip link` shows it";

    #[test]
    fn a_span_over_several_lines_is_underlined_on_its_first() {
        let expected = "error: `interfaces` is empty\n --> f:2:3\n  |\n2 | b c\n  |   ^\n";
        assert_eq!(shown("a\nb c\nd", 4..7), format!("{expected}{HELP}"));
        assert_eq!(
            shown("a\r\nb c\r\nd", 5..9).lines().nth(4),
            Some("  |   ^^")
        );
    }

    #[test]
    fn the_end_of_the_file_has_a_mark_too() {
        let expected = "error: `interfaces` is empty\n --> f:2:1\n  |\n2 | \n  | ^\n";
        assert_eq!(shown("a\n", 2..2), format!("{expected}{HELP}"));
        assert_eq!(shown("", 0..0).lines().nth(1), Some(" --> f:1:1"));
    }

    #[test]
    fn what_would_disturb_a_terminal_is_not_shown() {
        let lines = shown("\u{1b}[31m\tred\u{202e}x", 9..10);
        assert_eq!(lines.lines().nth(3), Some("1 | \u{fffd}[31m red\u{fffd}x"));
    }

    #[test]
    fn of_a_long_line_the_part_round_the_fault_is_shown() {
        let text = format!("{}FAULT{}", "ä".repeat(500_000), "z".repeat(500_000));
        let at = place(&text, 1_000_000..1_000_005);
        assert_eq!(
            (at.line, at.column, at.underlined.clone()),
            (1, 500_001, 31..36)
        );
        assert_eq!(
            at.text.chars().skip(31).take(5).collect::<String>(),
            "FAULT"
        );
        assert!(at.text.starts_with('…') && at.text.ends_with('…') && at.text.len() < 250);
    }

    #[test]
    fn of_too_many_faults_the_number_is_told() {
        let mut found = Found::default();
        for at in 0..150 {
            found.add(at..at + 1, Fault::NoInterface);
        }
        let errors = ConfigErrors::new(Path::new("f"), &"x".repeat(150), found);
        assert_eq!(errors.problems().len(), 100);
        let last = errors.to_string();
        let last = last.lines().last();
        assert_eq!(
            last,
            Some("150 errors in f, of which the last 50 are not shown")
        );
    }
}
