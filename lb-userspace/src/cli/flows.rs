//! `lb flows`: live connections.

use std::fmt::Write as _;

use clap::Args;

use super::output::{Cell, Column, GOOD, NOTABLE, PLAIN, Table};
use super::{Context, Json, units};
use crate::api::client::{PATIENCE_FOR_FLOWS, Resource};
use crate::api::types::{Flow, Flows as Answer};

/// Show live connections
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lb flows                            the first hundred
  lb flows --service web --limit 5    five of web's
  lb flows --backend web1 --limit 0   only count those of every backend called web1
  lb flows --json --limit 100000      as many as there are at once, for programs")]
pub(super) struct Flows {
    /// Only those of this service
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// Only those of backends of this name
    #[arg(long, value_name = "NAME")]
    backend: Option<String>,
    /// Show at most so many; all are counted
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: u32,
    #[command(flatten)]
    json: Json,
}

impl Flows {
    pub(super) async fn obey(self, context: &mut Context) -> anyhow::Result<()> {
        let resource = Resource::new(["flows"])
            .with("service", self.service.as_deref())
            .with("backend", self.backend.as_deref())
            .with("limit", Some(self.limit));
        let flows: Answer = context
            .client
            .get_within(PATIENCE_FOR_FLOWS, &resource)
            .await?;
        Ok(context.screen.result(self.json, &flows, text)?)
    }
}

fn text(answer: &Answer, width: Option<usize>) -> String {
    if answer.total == 0 && answer.flows.is_empty() {
        return "No live connections.\n".to_owned();
    }
    let mut text = String::new();
    if !answer.flows.is_empty() {
        text += &table(&answer.flows, width);
    }
    let shown = answer.flows.len();
    if answer.total > shown as u64 {
        let total = answer.total;
        let line = if shown == 0 {
            writeln!(text, "{total} live connections.")
        } else {
            writeln!(
                text,
                "\n{shown} of {total} live connections; --limit shows more."
            )
        };
        line.expect("a string takes whatever is written");
    }
    text
}

fn table(flows: &[Flow], width: Option<usize>) -> String {
    let mut table = Table::new([
        Column::Left("SERVICE"),
        Column::Left("BACKEND"),
        Column::Left("PROTOCOL"),
        Column::Left("CLIENT"),
        Column::Left("LISTEN"),
        Column::Left("SOURCE"),
        Column::Left("ADDRESS"),
        Column::Left("STATE"),
        Column::Right("IDLE"),
    ]);
    for flow in flows {
        let style = match flow.state.as_str() {
            "established" => GOOD,
            "unfinished" => NOTABLE,
            _closing => PLAIN,
        };
        table.row([
            flow.service.as_str().into(),
            flow.backend.as_str().into(),
            flow.protocol.as_str().into(),
            flow.client.to_string().into(),
            flow.listen.to_string().into(),
            flow.source.to_string().into(),
            flow.address.to_string().into(),
            Cell::new(style, flow.state.as_str()),
            units::span(flow.idle_seconds).into(),
        ]);
    }
    table.render(width)
}
