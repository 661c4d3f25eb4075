//! `lb overrides`: what differs from the file.

use clap::{Args, Subcommand};

use super::output::{Column, Table};
use super::{Context, Json, backend};
use crate::api::client::Resource;
use crate::api::types::{Changed, Override};

/// Show what was changed at run time and differs from the file
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:
  lb overrides            what differs from the file?
  lb overrides clear      go back to the file"
)]
pub(super) struct Overrides {
    #[command(flatten)]
    json: Json,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Forget every change made at run time, and go back to the file
    ///
    /// Effective for the next connections; existing ones stay where they are.
    #[command(after_help = "Examples:
  lb overrides clear")]
    Clear(Json),
}

impl Overrides {
    pub(super) async fn obey(self, context: &mut Context) -> anyhow::Result<()> {
        let Context { client, screen } = context;
        let resource = Resource::new(["overrides"]);
        match self.action {
            None => {
                let overrides: Vec<Override> = client.get(&resource).await?;
                screen.result(self.json, &overrides, |list, width| text(list, width))?;
            }
            Some(Action::Clear(json)) => {
                let changed: Changed = client.delete(&resource).await?;
                screen.result(json, &changed, backend::changed)?;
            }
        }
        Ok(())
    }
}

fn text(overrides: &[Override], width: Option<usize>) -> String {
    if overrides.is_empty() {
        return "No overrides: what runs is what the file says.\n".to_owned();
    }
    let mut table = Table::new([
        Column::Left("SERVICE"),
        Column::Left("BACKEND"),
        Column::Left("CHANGE"),
        Column::Left("FILE"),
        Column::Left("NOW"),
    ]);
    for change in overrides {
        table.row([
            change.service.as_str().into(),
            change.backend.as_str().into(),
            change.kind.as_str().into(),
            change.file.as_str().into(),
            change.now.as_str().into(),
        ]);
    }
    table.render(width)
}
