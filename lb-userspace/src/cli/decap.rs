//! `lb decap`: unwraps tunnel packets on a backend.

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use lb_common::Action;
use lb_common::decap::Outcome;
use serde::Serialize;

use super::output::{Cell, Column, NOTABLE, PLAIN, Screen, Table};
use super::{ColorWhen, Json, refused, units};
use crate::config::{Prefix, TunnelSources, XdpMode, value};
use crate::decap;

/// Unwrap tunnel packets on a backend, instead of a tunnel device
///
/// For a backend of a service with forward = "tunnel". A small XDP program on
/// IFACE takes the outer IP header off (IPv4 or IPv6, around either) and leaves
/// the inner packet to this host's stack; every other packet passes as it came.
/// It runs in the foreground and ends with the process: on SIGTERM or Ctrl-C it
/// prints what became of the packets.
///
/// The inner packet is for the service's address, so this host must hold it,
/// without telling anyone:
///
///   ip address add 203.0.113.10/32 dev lo
///   sysctl -w net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2
///
/// (With dsr those two lines are all that a backend needs.) It seems to come from
/// the client by IFACE. Where the way to the client is another interface, a
/// strict reverse path filter discards it:
///
///   sysctl -w net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.IFACE.rp_filter=2
///
/// Whoever can send such packets can pretend to be any client: --from says who
/// may, and routers at the edge must let none of these addresses in.
#[derive(Debug, Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:
  lb decap eth0                                    until Ctrl-C, from the balancer's usual addresses
  lb decap eth0 --from 10.0.9.0/24 --mode native   from others, and in the driver or not at all
  lb decap eth0 --json                             the counters at the end for programs"
)]
pub(super) struct Decap {
    /// The interface on which the tunnel packets come in
    #[arg(value_name = "IFACE")]
    interface: String,
    /// Where tunnels may come from, as the balancer's node.tunnel_sources; may
    /// be given many times [default: 198.18.0.0/16 and 100::/64]
    #[arg(long, value_name = "CIDR")]
    from: Vec<String>,
    /// How the program is attached; auto is native where the driver can
    #[arg(long, value_name = "MODE", default_value = "auto")]
    mode: Mode,
    #[command(flatten)]
    json: Json,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Mode {
    Auto,
    Native,
    Generic,
}

impl From<Mode> for XdpMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Auto => Self::Auto,
            Mode::Native => Self::Native,
            Mode::Generic => Self::Generic,
        }
    }
}

impl Decap {
    pub(super) fn obey(self, color: ColorWhen) -> anyhow::Result<()> {
        super::log_to_stderr("info", color);
        let options = decap::Options {
            sources: self.sources()?,
            interface: self.interface,
            mode: self.mode.into(),
        };
        let report = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the runtime for input and output")?
            .block_on(decap::run(&options))?;
        let shown = Shown::new(&options.interface, &report);
        Screen::new(color).result(self.json, &shown, text)?;
        Ok(())
    }

    fn sources(&self) -> anyhow::Result<Vec<Prefix>> {
        if self.from.is_empty() {
            let TunnelSources { v4, v6 } = TunnelSources::DEFAULT;
            return Ok(vec![v4, v6]);
        }
        let read = |text: &String| value::prefix("--from", text);
        self.from
            .iter()
            .map(|text| read(text).map_err(|fault| refused(&fault)))
            .collect()
    }
}

/// What was done, as it is shown.
#[derive(Debug, Serialize)]
struct Shown {
    interface: String,
    mode: &'static str,
    outcomes: Vec<Counted>,
}

#[derive(Debug, Serialize)]
struct Counted {
    outcome: &'static str,
    packets: u64,
    verdict: &'static str,
    help: &'static str,
}

impl Shown {
    fn new(interface: &str, report: &decap::Report) -> Self {
        let counted = |&(outcome, packets): &(Outcome, u64)| Counted {
            outcome: outcome.name(),
            packets,
            verdict: outcome.action().name(),
            help: outcome.help(),
        };
        Self {
            interface: interface.into(),
            mode: report.mode.name(),
            outcomes: report.outcomes.iter().map(counted).collect(),
        }
    }
}

/// What occurred, in the order in which it is judged.
fn text(shown: &Shown, width: Option<usize>) -> String {
    let occurred = || shown.outcomes.iter().filter(|counted| counted.packets > 0);
    if occurred().next().is_none() {
        return format!("No packet came in on {}.\n", shown.interface);
    }
    let mut table = Table::new([
        Column::Left("OUTCOME"),
        Column::Right("PACKETS"),
        Column::Left("VERDICT"),
        Column::Left("MEANING"),
    ]);
    for counted in occurred() {
        let style = if counted.verdict == Action::Drop.name() {
            NOTABLE
        } else {
            PLAIN
        };
        table.row([
            Cell::new(style, counted.outcome),
            units::count(counted.packets).into(),
            counted.verdict.into(),
            counted.help.into(),
        ]);
    }
    table.render(width)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_names_the_default_sources() {
        let TunnelSources { v4, v6 } = TunnelSources::DEFAULT;
        let help = super::super::definition()
            .find_subcommand_mut("decap")
            .expect("there is the command")
            .render_help()
            .to_string();
        assert!(
            help.contains(&format!("[default: {v4} and {v6}]")),
            "{help}"
        );
    }

    #[test]
    fn only_what_occurred_is_shown() {
        let report = |unwrapped, congested| decap::Report {
            mode: crate::dataplane::Mode::Native,
            outcomes: vec![
                (Outcome::Unwrapped, unwrapped),
                (Outcome::NotTunnel, 0),
                (Outcome::Congested, congested),
            ],
        };
        let shown = |report| {
            anstream::adapter::strip_str(&text(&Shown::new("eth0", &report), None)).to_string()
        };
        assert_eq!(shown(report(0, 0)), "No packet came in on eth0.\n");
        let shown = shown(report(1200, 1));
        let lines: Vec<&str> = shown.lines().collect();
        assert!(lines[0].starts_with("OUTCOME    PACKETS  VERDICT  MEANING"));
        assert!(lines[1].starts_with("unwrapped     1.2k  pass     A tunnel packet"));
        assert!(lines[2].starts_with("congested        1  drop     Marked"));
        assert_eq!(lines.len(), 3);
    }
}
