//! The cases as tables of the page: lines are packets, columns are what the table
//! of connections holds.

use std::fmt::Write as _;

use crate::cases::Section;
use crate::report::Row;

/// All tables, each with its heading and what is to be said of it.
pub(crate) fn sections(rows: &[Row]) -> String {
    let mut text = String::new();
    for section in Section::ALL {
        let rows: Vec<&Row> = rows.iter().filter(|row| row.section == section).collect();
        if !rows.is_empty() {
            let [heading, note] = words(section);
            let table = table(&rows);
            write!(text, "### {heading}\n\n{table}\n{note}\n\n").expect("a string takes any text");
        }
    }
    text
}

fn table(rows: &[&Row]) -> String {
    let columns = distinct(rows, |row| &row.column);
    let mut text = format!(
        "| packet | {} |\n|---|{}\n",
        columns.join(" | "),
        "--:|".repeat(columns.len())
    );
    for line in distinct(rows, |row| &row.line) {
        write!(text, "| {line} |").expect("a string takes any text");
        for column in &columns {
            let row = (rows.iter()).find(|row| row.line == line && row.column == *column);
            let cell = row.map_or_else(String::new, |row| {
                let net = row.net();
                format!("**{:.0}** ({:.0}–{:.0})", net.median, net.min, net.max)
            });
            write!(text, " {cell} |").expect("a string takes any text");
        }
        text.push('\n');
    }
    text
}

/// What rows have there, in the order in which it comes first.
fn distinct<'a>(rows: &[&'a Row], of: impl Fn(&'a Row) -> &'a str) -> Vec<&'a str> {
    let mut found = Vec::new();
    for row in rows {
        if !found.contains(&of(row)) {
            found.push(of(row));
        }
    }
    found
}

const fn words(section: Section) -> [&'static str; 2] {
    match section {
        Section::Known => [
            "Of a known connection",
            "With many flows the time is that of the memory: the tables are larger than the\n\
             caches. `tunnel` pays for the call that makes room for the outer header.",
        ],
        Section::New => [
            "The first of a connection",
            "\"Room in the table\": it was emptied before each sample. \"Full of half-open ones\":\n\
             each newcomer displaces another, as in a flood. \"Full of established ones\": it is\n\
             refused. Half-open here is what did not prove yet that it hears an answer.",
        ],
        Section::Strangers => [
            "Not for a service",
            "Packets of so many connections, with as many known of the service by `full-nat` of\n\
             that protocol and family. Only where the port is a service's is the table of\n\
             connections looked into.",
        ],
        Section::Redirected => [
            "Out of another interface",
            "Without what the kernel does after the program to carry a frame over.",
        ],
        Section::Noting => [
            "Noting that the connection lives",
            "What one packet of a connection pays once a second.",
        ],
    }
}
