//! `lb ha`: the pair.

mod sync;

use std::time::Duration;

use clap::{Args, Subcommand};

use super::output::{BAD, GOOD, NOTABLE, PLAIN, fields, styled};
use super::{Context, Json, units};
use crate::api::client::Resource;
use crate::api::types::{self, Changed, Ha as Answer};

/// Show the pair, or hand over
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:
  lb ha status            who is active, and why
  lb ha yield             hand over to the other node")]
pub(super) enum Ha {
    Status(Status),
    Yield(Yield),
}

/// Show this node's part in the pair, and what it hears of the other
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lb ha status            for people
  lb ha status --json     for programs")]
pub(super) struct Status {
    #[command(flatten)]
    json: Json,
}

/// Hand over to the other node, and stay passive until that one is gone or yields
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lb ha yield             before this host is taken out of service
  lb ha yield --force     even if the other node is not known to be ready")]
pub(super) struct Yield {
    /// Even if the other node is not heard, or does not know all connections
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    json: Json,
}

impl Ha {
    pub(super) async fn obey(self, context: &mut Context) -> anyhow::Result<()> {
        match self {
            Self::Status(Status { json }) => {
                let answer: Answer = context.client.get(&Resource::new(["ha"])).await?;
                Ok(context
                    .screen
                    .result(json, &answer, |answer, _| text(answer))?)
            }
            Self::Yield(Yield { force, json }) => {
                let resource = Resource::new(["ha", "yield"]);
                let answer: Changed = context
                    .client
                    .post(&resource, &types::Yield { force })
                    .await?;
                let said = |answer: &Changed, _| format!("{}\n", answer.message);
                Ok(context.screen.result(json, &answer, said)?)
            }
        }
    }
}

fn text(answer: &Answer) -> String {
    let style = match answer.state.as_str() {
        "active" => GOOD,
        "backup" => PLAIN,
        _ => NOTABLE,
    };
    let since = units::span(answer.since_seconds as f64);
    let mut state = styled(style, &format!("{} for {since}", answer.state));
    if let Some(why) = &answer.apart {
        state = styled(BAD, &format!("takes no part: {why}"));
    }
    let priority = match &answer.unfit {
        Some(why) => styled(BAD, &format!("{} ({why})", answer.priority)),
        None => answer.priority.to_string(),
    };
    let heard = match &answer.heard {
        None => styled(NOTABLE, "nothing yet"),
        Some(heard) => format!(
            "{} with priority {}, {} ago",
            heard.source,
            heard.priority,
            units::span(Duration::from_millis(heard.age_ms).as_secs_f64()),
        ),
    };
    let rejected: Vec<String> = answer
        .rejected
        .iter()
        .map(|(reason, count)| format!("{count} {reason}"))
        .collect();
    let source = answer
        .source
        .map_or("nowhere".to_owned(), |source| source.to_string());
    let mut rows = vec![
        ("State", state),
        ("Priority", priority),
        (
            "Virtual router",
            format!("{} on {}", answer.vrid, answer.interface),
        ),
        ("Speaks from", source),
        ("Heard last", heard),
        (
            "Advertisements",
            format!(
                "{} sent, {} not sent, {} received",
                answer.sent, answer.unsent, answer.received
            ),
        ),
        (
            "Ignored",
            if rejected.is_empty() {
                "none".into()
            } else {
                rejected.join(", ")
            },
        ),
        ("Transitions", answer.transitions.to_string()),
        (
            "Late at most",
            format!(
                "{} ms{}",
                answer.latest_us as f64 / 1e3,
                if answer.real_time {
                    ""
                } else {
                    ", without real-time priority"
                }
            ),
        ),
    ];
    rows.extend(answer.sync.iter().flat_map(sync::rows));
    fields(&rows)
}
