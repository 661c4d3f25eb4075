//! `lb completions`: what a shell needs to complete commands.

use clap::Args;
use clap_complete::Shell;

use super::definition;
use super::output::Screen;

/// Print the completions of a shell
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lb completions bash > /usr/share/bash-completion/completions/lb
  lb completions zsh > /usr/share/zsh/site-functions/_lb
  lb completions fish > /usr/share/fish/vendor_completions.d/lb.fish")]
pub(super) struct Completions {
    /// Which shell
    shell: Shell,
}

impl Completions {
    pub(super) fn obey(self, screen: &mut Screen) -> anyhow::Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut definition(), "lb", &mut script);
        Ok(screen.text(&String::from_utf8_lossy(&script))?)
    }
}
