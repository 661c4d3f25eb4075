//! Parts of `docs/bench.md`, each between its own marks: what is measured again
//! is written again, the rest stays.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::draw::Chart;
use crate::report::Figures;

/// One part of the page.
pub(crate) struct Section {
    /// The word by which it is chosen.
    pub(crate) name: &'static str,
    /// Its title.
    pub(crate) title: String,
    /// How it was measured.
    pub(crate) text: String,
    /// What was found.
    pub(crate) tables: Vec<Table>,
    /// The same, drawn.
    pub(crate) charts: Vec<Chart>,
    /// All samples.
    pub(crate) samples: Vec<Sample>,
}

/// A line of figures, for programs.
pub(crate) struct Sample {
    name: String,
    unit: &'static str,
    values: Vec<f64>,
}

impl Sample {
    /// Of these values.
    pub(crate) fn new(name: String, unit: &'static str, values: &[f64]) -> Self {
        Self {
            name,
            unit,
            values: values.to_vec(),
        }
    }
}

/// A table, and what is to be said of it.
pub(crate) struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
    notes: String,
}

impl Table {
    /// With these columns.
    pub(crate) fn new(head: &[&str], notes: &str) -> Self {
        Self {
            head: head.iter().map(|&word| word.to_owned()).collect(),
            rows: Vec::new(),
            notes: notes.to_owned(),
        }
    }

    /// Adds a line.
    pub(crate) fn row(&mut self, cells: &[String]) {
        self.rows.push(cells.to_vec());
    }

    fn markdown(&self) -> String {
        let mut text = format!("| {} |\n|---", self.head.join(" | "));
        text += &"|--:".repeat(self.head.len().saturating_sub(1));
        text += "|\n";
        for row in &self.rows {
            text += &format!("| {} |\n", row.join(" | "));
        }
        if !self.notes.is_empty() {
            text += &format!("\n{}\n", self.notes);
        }
        text
    }

    /// For a terminal.
    fn text(&self) -> String {
        let rows = || std::iter::once(&self.head).chain(&self.rows);
        let width = |place| rows().filter_map(move |row: &Vec<String>| row.get(place));
        let widths: Vec<usize> = (0..self.head.len())
            .map(|place| width(place).map(|cell| plain(cell).chars().count()).max())
            .map(Option::unwrap_or_default)
            .collect();
        let mut text = String::new();
        for row in rows() {
            for (place, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let cell = plain(cell);
                // Writing to a String cannot fail.
                let _ = match place {
                    0 => write!(text, "{cell:<width$}"),
                    _ => write!(text, "  {cell:>width$}"),
                };
            }
            text.push('\n');
        }
        text
    }
}

/// Without the marks of Markdown.
fn plain(cell: &str) -> String {
    cell.replace(['*', '`'], "")
}

impl Section {
    /// For `docs/bench.md`.
    fn markdown(&self, machine: &str) -> String {
        let mut text = format!("## {}\n\n{machine}.\n\n{}\n", self.title, self.text);
        for chart in &self.charts {
            text += &format!("\n![{}]({})\n", chart.title, chart.file);
        }
        for table in &self.tables {
            text += &format!("\n{}", table.markdown());
        }
        text
    }

    /// For a terminal.
    pub(crate) fn text(&self) -> String {
        let tables: Vec<String> = self.tables.iter().map(Table::text).collect();
        format!("{}\n\n{}", self.title, tables.join("\n"))
    }

    /// For programs.
    pub(crate) fn json(&self) -> Value {
        let samples = self.samples.iter().map(|sample| {
            let Figures { median, min, max } = Figures::of(sample.values.iter().copied());
            json!({
                "name": sample.name,
                "unit": sample.unit,
                "median": median,
                "min": min,
                "max": max,
                "samples": sample.values.len(),
            })
        });
        Value::Array(samples.collect())
    }

    /// Writes it into the page, and its charts beside that.
    pub(crate) fn write(&self, page: &Path, machine: &str) -> Result<()> {
        renew(page, self.name, &self.markdown(machine))?;
        for chart in &self.charts {
            let path = page.with_file_name(chart.file);
            fs::write(&path, chart.svg()?)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

/// Writes the part of this name into the page, in place of what it was.
pub(crate) fn renew(page: &Path, name: &str, content: &str) -> Result<()> {
    let folder = page.parent().context("a file lies in a folder")?;
    fs::create_dir_all(folder)?;
    // There may be none yet.
    let text = fs::read_to_string(page).unwrap_or_default();
    fs::write(page, renewed(&text, name, content))
        .with_context(|| format!("cannot write {}", page.display()))
}

fn renewed(text: &str, name: &str, content: &str) -> String {
    let (begin, end) = (
        format!("<!-- {name}:begin -->\n"),
        format!("<!-- {name}:end -->\n"),
    );
    let parts = text.split_once(&begin).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(&end)?;
        Some((before, after))
    });
    let space = if text.is_empty() { "" } else { "\n" };
    match parts {
        Some((before, after)) => format!("{before}{begin}{content}{end}{after}"),
        None => format!("{text}{space}{begin}{content}{end}"),
    }
}

/// Millions, with two places.
pub(crate) fn million(figure: f64) -> String {
    format!("{figure:.2}")
}

/// With as many places as are worth something.
pub(crate) fn shown(figure: f64) -> String {
    match figure.abs() {
        big if big >= 1000.0 => {
            crate::cases::grouped(figure.round().clamp(0.0, f64::from(u32::MAX)) as u32)
        }
        some if some >= 100.0 => format!("{figure:.0}"),
        some if some >= 10.0 => format!("{figure:.1}"),
        _ => format!("{figure:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_put_in_its_place_or_behind_all_others() {
        let first = renewed("", "a", "1\n");
        assert_eq!(first, "<!-- a:begin -->\n1\n<!-- a:end -->\n");
        let both = renewed(&first, "b", "2\n");
        let again = renewed(&both, "a", "3\n");
        assert_eq!(
            again,
            "<!-- a:begin -->\n3\n<!-- a:end -->\n\n<!-- b:begin -->\n2\n<!-- b:end -->\n"
        );
    }

    #[test]
    fn figures_are_shown_as_exactly_as_they_are_known() {
        let of = |figures: [f64; 4]| figures.map(shown);
        assert_eq!(
            of([1234.6, 123.4, 12.34, 1.234]),
            ["1,235", "123", "12.3", "1.23"]
        );
    }
}
