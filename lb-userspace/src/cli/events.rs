//! `lb events`: what happened.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::output::{BAD, Cell, Column, NOTABLE, PLAIN, Screen, Table, styled};
use super::{Context, Json, units};
use crate::api::client::Client;
use crate::api::types::{Event, Events as Answer, LONGEST_WAIT};
use crate::events::Kind;

/// How many come in one answer while they are followed.
const BATCH: usize = 1_000;

/// How many are shown if nothing is said of it.
const DEFAULT_LIMIT: usize = 50;

/// How many that is before those that are followed.
const DEFAULT_BEFORE: usize = 10;

/// A daemon that answers with nothing is asked again after so long at least.
const REST: Duration = Duration::from_secs(1);

/// Show what happened: health, commands, configuration, interfaces, floods
///
/// The daemon keeps the last thousand events of its run; the log has them all.
/// A kind that comes in floods displaces only itself.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lb events                         the last fifty
  lb events --limit 1000            as many as are kept
  lb events --follow                the last ten, and then each as it happens
  lb events --follow --limit 0      only what happens from now on
  lb events --follow --json         one line of JSON for each
  lb events --kinds                 every kind of event, and what to do about it")]
pub(super) struct Events {
    /// Print each event as it happens, until Ctrl-C
    #[arg(short, long)]
    follow: bool,
    /// Show the last N that are kept, at most 1000 [default: 50, or 10 before
    /// those that are followed]
    #[arg(short = 'n', long, value_name = "N")]
    limit: Option<u32>,
    /// Show which kinds there are; needs no daemon
    #[arg(long, conflicts_with_all = ["follow", "limit"])]
    kinds: bool,
    #[command(flatten)]
    json: Json,
}

impl Events {
    pub(super) async fn obey(self, context: &mut Context) -> anyhow::Result<()> {
        let Context { client, screen } = context;
        if self.kinds {
            return Ok(screen.result(self.json, &kinds(), |kinds, width| {
                table_of_kinds(kinds, width)
            })?);
        }
        let limit = match (self.limit, self.follow) {
            (Some(limit), _) => usize::try_from(limit)?,
            (None, true) => DEFAULT_BEFORE,
            (None, false) => DEFAULT_LIMIT,
        };
        let answer = client.events(None, limit, Duration::ZERO).await?;
        if self.follow {
            return tokio::select! {
                ended = follow(client, screen, answer, self.json) => ended,
                _ctrl_c = tokio::signal::ctrl_c() => Ok(()),
            };
        }
        Ok(screen.result(self.json, &answer, text)?)
    }
}

async fn follow(
    client: &Client,
    screen: &mut Screen,
    mut answer: Answer,
    json: Json,
) -> anyhow::Result<()> {
    let mut stderr = io::stderr();
    if stderr.is_terminal() {
        // Without it the command goes on as well.
        let _ = writeln!(stderr, "Watching; Ctrl-C ends.");
    }
    show(screen, &answer.events, json)?;
    let mut after = answer.newest;
    loop {
        let asked = Instant::now();
        let next = client.events(Some(after), BATCH, LONGEST_WAIT).await?;
        if next.started != answer.started {
            // Another run of the daemon: all of its events are new.
            after = 0;
            answer = next;
            continue;
        }
        if next.lost > 0 {
            // Whoever reads numbers sees it as well.
            let lost = units::plural(next.lost, "event");
            let _ = writeln!(
                stderr,
                "{lost} came and went too fast to be shown; the log has them"
            );
        }
        show(screen, &next.events, json)?;
        match next.events.last() {
            Some(last) => after = last.number,
            None => sleep(REST.saturating_sub(asked.elapsed())).await,
        }
    }
}

fn show(screen: &mut Screen, events: &[Event], json: Json) -> anyhow::Result<()> {
    let mut text = String::new();
    for event in events {
        text += &if json.json {
            serde_json::to_string(event).expect("our own types have a JSON form") + "\n"
        } else {
            line(event)
        };
    }
    Ok(screen.text(&text)?)
}

/// One event for a reader who sees them come: aligned whatever comes next.
fn line(event: &Event) -> String {
    let severity = format!("{:7}", event.severity);
    let widest = Kind::ALL.iter().map(|kind| kind.name().len()).max();
    format!(
        "{}  {}  {:widest$}  {}\n",
        styled(PLAIN, &event.time),
        styled(style(&event.severity), &severity),
        styled(PLAIN, &event.kind),
        styled(PLAIN, &event.sentence),
        widest = widest.unwrap_or(0)
    )
}

fn style(severity: &str) -> anstyle::Style {
    match severity {
        "alert" => BAD,
        "warning" => NOTABLE,
        _ => PLAIN,
    }
}

fn text(answer: &Answer, width: Option<usize>) -> String {
    if answer.newest == 0 {
        return "Nothing has happened yet.\n".to_owned();
    }
    let mut text = String::new();
    if !answer.events.is_empty() {
        let mut table = Table::new([
            Column::Left("TIME"),
            Column::Left("SEVERITY"),
            Column::Left("KIND"),
            Column::Left("EVENT"),
        ]);
        for event in &answer.events {
            table.row([
                event.time.as_str().into(),
                Cell::new(style(&event.severity), event.severity.as_str()),
                event.kind.as_str().into(),
                event.sentence.as_str().into(),
            ]);
        }
        text += &table.render(width);
        text += "\n";
    }
    let (shown, kept) = (answer.events.len() as u64, answer.newest - answer.lost);
    let mut notes = Vec::new();
    if shown < kept {
        notes.push(format!("{shown} of {kept} events; --limit shows more."));
    }
    if answer.lost > 0 {
        let lost = units::plural(answer.lost, "older event");
        notes.push(format!("{lost} no longer kept; the log has all."));
    }
    if notes.is_empty() {
        text.truncate(text.trim_end().len());
    }
    text + &notes.join(" ") + "\n"
}

/// A line of `--kinds`.
#[derive(Serialize)]
struct KindOfEvent {
    kind: &'static str,
    severity: &'static str,
    help: &'static str,
}

fn kinds() -> Vec<KindOfEvent> {
    let kinds = Kind::ALL.iter().map(|kind| KindOfEvent {
        kind: kind.name(),
        severity: kind.severity().name(),
        help: kind.help(),
    });
    kinds.collect()
}

fn table_of_kinds(kinds: &[KindOfEvent], width: Option<usize>) -> String {
    let mut table = Table::new([
        Column::Left("KIND"),
        Column::Left("SEVERITY"),
        Column::Left("MEANING"),
    ]);
    for kind in kinds {
        table.row([
            kind.kind.into(),
            Cell::new(style(kind.severity), kind.severity),
            kind.help.into(),
        ]);
    }
    table.render(width)
}
