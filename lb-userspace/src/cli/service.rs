//! `lb service`: services, and one of them in full.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::output::{BAD, Column, NOTABLE, PLAIN, Table, fields, styled};
use super::{Context, Json, backend, drops, status, units};
use crate::api::client::{PATIENCE_FOR_FLOWS, Resource};
use crate::api::types::{ServiceDetail, ServiceSummary, Traffic};
use crate::config::Forward;

/// Show services
#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:
  lb service list         all of them
  lb service show web     one in full")]
pub(super) enum Service {
    List(List),
    Show(Show),
}

/// List the services: where they listen, how healthy they are, their rates
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lb service list         for people
  lb service list --json  for programs")]
pub(super) struct List {
    #[command(flatten)]
    json: Json,
}

/// Show one service: schedule shares, health, flows, where each weight comes from
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lb service show web         for people
  lb service show web --json  for programs")]
pub(super) struct Show {
    /// Its name
    name: String,
    #[command(flatten)]
    json: Json,
}

impl Service {
    pub(super) async fn obey(self, context: &mut Context) -> anyhow::Result<()> {
        let Context { client, screen } = context;
        match self {
            Self::List(List { json }) => {
                let services: Vec<ServiceSummary> =
                    client.get(&Resource::new(["services"])).await?;
                screen.result(json, &services, |list, width| status::services(list, width))?;
            }
            Self::Show(Show { name, json }) => {
                let resource = Resource::new(["services", &name]);
                let service: ServiceDetail =
                    client.get_within(PATIENCE_FOR_FLOWS, &resource).await?;
                screen.result(json, &service, text)?;
            }
        }
        Ok(())
    }
}

fn text(service: &ServiceDetail, width: Option<usize>) -> String {
    let summary = &service.summary;
    let Traffic {
        forward_packets,
        forward_bytes,
        reply_packets,
        reply_bytes,
        new_flows,
    } = service.traffic;
    let carried = |packets, bytes| {
        let packets = units::count(packets);
        format!("{packets} packets, {}", units::bytes(bytes))
    };
    let mut traffic = format!(
        "{} connections; {} from clients",
        units::count(new_flows),
        carried(forward_packets, forward_bytes),
    );
    if !answers_directly(summary) {
        traffic += &format!("; {} from backends", carried(reply_packets, reply_bytes));
    }
    let rates = format!(
        "{} new connections/s, {} packets/s, {}",
        units::rate(summary.new_flows_per_second),
        units::rate(summary.packets_per_second),
        units::bits(summary.bits_per_second),
    );
    let listen = format!("{} {}", summary.listen, summary.protocol);
    let mut shown = vec![
        ("Service", styled(PLAIN, &summary.name)),
        ("Listen", styled(PLAIN, &listen)),
        ("Forward", styled(PLAIN, &forward(service))),
        ("Schedule", schedule(service)),
        ("Policy", styled(PLAIN, &policy(service))),
        ("Check", styled(PLAIN, &service.check)),
        ("Healthy", status::healthy(summary).to_string()),
        ("Traffic", traffic),
        ("Rates", rates),
    ];
    if let Some(trouble) = &service.trouble {
        shown.push(("Trouble", styled(BAD, trouble)));
    }
    let mut text = fields(&shown);
    text += "\n";
    text += &backends(service, width);
    if service.drops.iter().any(|drop| drop.packets > 0) {
        text += "\n";
        text += &drops::text(&service.drops, false, width);
    }
    text
}

/// Whether backends answer clients themselves, so that nothing can be said here
/// of their answers.
fn answers_directly(service: &ServiceSummary) -> bool {
    [Forward::Dsr, Forward::Tunnel]
        .iter()
        .any(|forward| forward.name() == service.forward)
}

fn forward(service: &ServiceDetail) -> String {
    let mut forward = service.summary.forward.clone();
    if answers_directly(&service.summary) {
        forward += ", backends answer clients themselves";
    }
    if service.max_mss > 0 {
        forward += &format!(", segments of at most {} bytes", service.max_mss);
    }
    forward
}

fn schedule(service: &ServiceDetail) -> String {
    let scheduler = styled(PLAIN, &service.summary.scheduler);
    match (service.sequence_length, service.share_error) {
        (0, _) => format!("{scheduler}, {}", styled(NOTABLE, "no backend to offer")),
        (slots, 0.0) => format!(
            "{scheduler}, {}, shares exact",
            units::plural(slots as u64, "slot")
        ),
        (slots, error) => {
            let off = format!("shares off by up to {} of each", units::percent(error));
            let slots = units::plural(slots as u64, "slot");
            format!("{scheduler}, {slots}, {}", styled(NOTABLE, &off))
        }
    }
}

/// The keys of the policy, as they are written in the file.
fn policy(service: &ServiceDetail) -> String {
    let duration = |seconds: f64| {
        // What no duration can be came from no daemon of ours.
        let duration = Duration::try_from_secs_f64(seconds).unwrap_or_default();
        humantime::format_duration(duration).to_string()
    };
    format!(
        "on_down {}, affinity {}, slow_start {}, min_healthy {}",
        service.on_down,
        duration(service.affinity_seconds),
        duration(service.slow_start_seconds),
        service.min_healthy
    )
}

fn backends(service: &ServiceDetail, width: Option<usize>) -> String {
    if service.backends.is_empty() {
        let name = &service.summary.name;
        return format!("No backends: add one by `lb backend add {name} NAME ADDRESS`.\n");
    }
    let mut table = Table::new([
        Column::Left("BACKEND"),
        Column::Left("ADDRESS"),
        Column::Left("STATE"),
        Column::Right("FOR"),
        Column::Right("WEIGHT"),
        Column::Right("SHARE"),
        Column::Right("FLOWS"),
        Column::Right("BEGUN"),
        Column::Left("WEIGHT FROM"),
        Column::Left("REASON"),
    ]);
    for backend in &service.backends {
        table.row([
            backend.name.as_str().into(),
            backend.address.to_string().into(),
            backend::state(backend),
            units::span(backend.since_seconds).into(),
            backend.weight.to_string().into(),
            units::percent(backend.share).into(),
            units::count(backend.active_flows).into(),
            units::count(backend.traffic.new_flows).into(),
            backend::weight_source(backend),
            backend.reason.as_str().into(),
        ]);
    }
    table.render(width)
}
