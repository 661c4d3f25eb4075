//! Where results go: a screen for people or JSON for programs.
//!
//! Commands write styled text; the screen takes the styles off where they are
//! not wanted (`--color`, `NO_COLOR`, a pipe). When the reader of a pipe is
//! gone, that is an error of its own ([`OutputError::Closed`]) which ends the
//! command quietly: `lb flows | head` is not a failure.

use std::fmt;
use std::io::{self, IsTerminal as _, Write as _};

use anstream::AutoStream;
use anstyle::{AnsiColor, Style};
use serde::Serialize;
use thiserror::Error;

use super::{ColorWhen, Json};

/// Good: up, healthy.
pub(super) const GOOD: Style = AnsiColor::Green.on_default();
/// Bad: down, nobody there.
pub(super) const BAD: Style = AnsiColor::Red.on_default();
/// Worth a look: drained, unknown, slow.
pub(super) const NOTABLE: Style = AnsiColor::Yellow.on_default();
/// Titles of columns and names of fields.
pub(super) const TITLE: Style = Style::new().bold();
/// Anything else.
pub(super) const PLAIN: Style = Style::new();

/// Narrower than this, no column is folded: the terminal may do it.
const NARROWEST_FOLD: usize = 24;

/// Why a result could not be shown.
#[derive(Debug, Error)]
pub(super) enum OutputError {
    /// A closed pipe: not a failure of ours.
    #[error("nobody reads the output any more")]
    Closed,
    /// A full disk, say.
    #[error("cannot write the result: {0}; it is incomplete")]
    Write(#[source] io::Error),
}

impl From<io::Error> for OutputError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::Closed
        } else {
            Self::Write(error)
        }
    }
}

/// Standard output.
pub(super) struct Screen {
    out: AutoStream<io::Stdout>,
    /// The columns of the terminal; none where lines may be as long as they like.
    pub(super) width: Option<usize>,
}

impl Screen {
    pub(super) fn new(color: ColorWhen) -> Self {
        let stdout = io::stdout();
        let width = rustix::termios::tcgetwinsize(&stdout)
            .ok()
            .filter(|_| stdout.is_terminal())
            .map(|size| usize::from(size.ws_col))
            .filter(|&columns| columns > 0);
        Self {
            out: AutoStream::new(stdout, color.into()),
            width,
        }
    }

    /// Writes a text that ends its own lines.
    pub(super) fn text(&mut self, text: &str) -> Result<(), OutputError> {
        self.out.write_all(text.as_bytes())?;
        Ok(self.out.flush()?)
    }

    /// Writes the result as JSON if that was asked for, else as text for people.
    pub(super) fn result<T: Serialize>(
        &mut self,
        json: Json,
        result: &T,
        text: impl FnOnce(&T, Option<usize>) -> String,
    ) -> Result<(), OutputError> {
        let text = if json.json {
            serde_json::to_string_pretty(result).expect("our own types have a JSON form") + "\n"
        } else {
            text(result, self.width)
        };
        self.text(&text)
    }
}

/// A text in a style, fit for a terminal.
pub(super) fn styled(style: Style, text: &str) -> String {
    Cell::new(style, text).to_string()
}

/// Lines of `Name  value`, the values aligned.
pub(super) fn fields(fields: &[(&str, String)]) -> String {
    let widest = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for (name, value) in fields {
        let name = format!("{name:widest$}");
        text += &format!("{TITLE}{name}{TITLE:#}  {value}\n");
    }
    text
}

/// One place in a [`Table`], fit for a terminal: control characters, which a
/// check's answer could hold, do not reach it.
pub(super) struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    pub(super) fn new(style: Style, text: impl Into<String>) -> Self {
        Self {
            text: text.into().replace(char::is_control, "\u{fffd}"),
            style,
        }
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { text, style } = self;
        write!(f, "{style}{text}{style:#}")
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(PLAIN, text)
    }
}

/// A column's title, and on which side its cells stand.
#[derive(Clone, Copy)]
pub(super) enum Column {
    /// Words.
    Left(&'static str),
    /// Numbers.
    Right(&'static str),
}

impl Column {
    fn title(self) -> &'static str {
        match self {
            Self::Left(title) | Self::Right(title) => title,
        }
    }
}

/// Aligned columns without borders: easy to read, easy to cut.
pub(super) struct Table<const N: usize> {
    columns: [Column; N],
    rows: Vec<[Cell; N]>,
}

impl<const N: usize> Table<N> {
    pub(super) fn new(columns: [Column; N]) -> Self {
        Self {
            columns,
            rows: Vec::new(),
        }
    }

    pub(super) fn row(&mut self, cells: [Cell; N]) {
        self.rows.push(cells);
    }

    /// The table as lines. On a terminal of that width, a long text in the
    /// last column is folded under itself.
    pub(super) fn render(&self, width: Option<usize>) -> String {
        let titles = self.columns.map(|column| Cell::new(TITLE, column.title()));
        let widths: [usize; N] = std::array::from_fn(|place| {
            let rows = self.rows.iter().chain([&titles]);
            rows.map(|row| row[place].text.chars().count())
                .max()
                .unwrap_or(0)
        });
        let before_last: usize = widths[..N - 1].iter().map(|width| width + 2).sum();
        let room = width
            .and_then(|width| width.checked_sub(before_last))
            .filter(|&room| room >= NARROWEST_FOLD)
            .unwrap_or(usize::MAX);
        let mut text = String::new();
        for row in [&titles].into_iter().chain(&self.rows) {
            text += &self.line(row, &widths, room);
        }
        text
    }

    fn line(&self, row: &[Cell; N], widths: &[usize; N], room: usize) -> String {
        let mut line = String::new();
        for (place, cell) in row.iter().enumerate() {
            let padding = " ".repeat(widths[place] - cell.text.chars().count());
            match self.columns[place] {
                Column::Right(_) => line += &format!("{padding}{cell}"),
                Column::Left(_) if place + 1 == N => {
                    let Cell { text, style } = cell;
                    let indent = widths[..place].iter().map(|width| width + 2).sum();
                    line += &format!("{style}{}{style:#}", fold(text, room, indent));
                }
                Column::Left(_) => line += &format!("{cell}{padding}"),
            }
            if place + 1 < N {
                line += "  ";
            }
        }
        line.truncate(line.trim_end().len());
        line + "\n"
    }
}

/// Breaks a text at spaces into lines of at most `room`, each but the first
/// indented. A single word may be longer.
fn fold(text: &str, room: usize, indent: usize) -> String {
    let mut folded = String::new();
    let mut used = 0;
    for word in text.split(' ') {
        let length = word.chars().count();
        if used == 0 {
            used = length;
        } else if used + 1 + length > room {
            folded += "\n";
            folded += &" ".repeat(indent);
            used = length;
        } else {
            folded += " ";
            used += 1 + length;
        }
        folded += word;
    }
    folded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    fn table() -> Table<3> {
        let mut table = Table::new([
            Column::Left("NAME"),
            Column::Right("COUNT"),
            Column::Left("MEANING"),
        ]);
        table.row([
            "a".into(),
            "12".into(),
            "one two three four five six seven".into(),
        ]);
        table.row([Cell::new(BAD, "longer"), "1.2k".into(), "".into()]);
        table
    }

    #[test]
    fn columns_align_and_no_line_ends_in_spaces() {
        assert_eq!(
            plain(&table().render(None)),
            "NAME    COUNT  MEANING\n\
             a          12  one two three four five six seven\n\
             longer   1.2k\n"
        );
    }

    #[test]
    fn a_narrow_terminal_folds_the_last_column_under_itself() {
        assert_eq!(
            plain(&table().render(Some(40))),
            "NAME    COUNT  MEANING\n\
             a          12  one two three four five\n               six seven\n\
             longer   1.2k\n"
        );
        assert_eq!(
            table().render(Some(20)),
            table().render(None),
            "too narrow to fold"
        );
    }

    #[test]
    fn styles_stand_around_the_text_alone() {
        let text = table().render(None);
        assert!(text.contains("\u{1b}[31mlonger\u{1b}[0m"), "{text:?}");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(
            plain(&styled(PLAIN, "evil\u{1b}[2J\nline")),
            "evil\u{fffd}[2J\u{fffd}line"
        );
    }

    #[test]
    fn a_closed_pipe_is_told_from_a_full_disk() {
        let closed = OutputError::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(matches!(closed, OutputError::Closed));
        let full = OutputError::from(io::Error::from(io::ErrorKind::StorageFull));
        assert!(matches!(full, OutputError::Write(_)));
    }
}
