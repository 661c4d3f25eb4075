//! `lb reload`: the file, read again.

use std::fmt::Write as _;

use clap::Args;

use super::{Context, Json};
use crate::api::client::Resource;
use crate::api::types::Reloaded;

/// Make the daemon read its file again, as SIGHUP does
///
/// A file with a fault changes nothing. Connections stay where they are.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lb reload               and say what changed
  lb reload --json        the same for programs")]
pub(super) struct Reload {
    #[command(flatten)]
    json: Json,
}

impl Reload {
    pub(super) async fn obey(self, context: &mut Context) -> anyhow::Result<()> {
        let reloaded: Reloaded = context.client.post(&Resource::new(["reload"]), &()).await?;
        Ok(context
            .screen
            .result(self.json, &reloaded, |reloaded, _| text(reloaded))?)
    }
}

fn text(reloaded: &Reloaded) -> String {
    if reloaded.changes.is_empty() {
        return "Nothing changed: what runs is what the file says.\n".to_owned();
    }
    reloaded
        .changes
        .iter()
        .fold(String::new(), |mut text, change| {
            writeln!(text, "{change}").expect("a string takes whatever is written");
            text
        })
}
