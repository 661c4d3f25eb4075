//! `lb status`: the node at a glance.

use clap::Args;

use super::output::{BAD, Cell, Column, GOOD, NOTABLE, PLAIN, Table, fields, styled};
use super::{Context, Json, units};
use crate::api::client::Resource;
use crate::api::types::{Interface, ServiceSummary, Status as Answer};

/// Show the node: its state, interfaces, services and rates
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lb status               for people
  lb status --json        for programs")]
pub(super) struct Status {
    #[command(flatten)]
    json: Json,
}

impl Status {
    pub(super) async fn obey(self, context: &mut Context) -> anyhow::Result<()> {
        let status: Answer = context.client.get(&Resource::new(["status"])).await?;
        Ok(context.screen.result(self.json, &status, text)?)
    }
}

fn text(status: &Answer, width: Option<usize>) -> String {
    let adopted = if status.adopted {
        ", took over the flows that were there"
    } else {
        ""
    };
    let daemon = format!(
        "version {}, pid {}, up {}{adopted}",
        status.version,
        status.pid,
        units::span(status.uptime_seconds as f64),
    );
    let interfaces: Vec<String> = status.interfaces.iter().map(interface).collect();
    let overrides = match status.overrides {
        0 => "none".to_owned(),
        number => styled(NOTABLE, &format!("{number} (see `lb overrides`)")),
    };
    let table = format!(
        "{} established, {} half open, {} ended; room for {}",
        units::count(status.flows.established),
        units::count(status.flows.half_open),
        units::count(status.flows.ended),
        units::count(status.flow_capacity)
    );
    let node = fields(&[
        ("Node", styled(PLAIN, &status.node)),
        ("HA state", styled(PLAIN, &status.ha_state)),
        ("Daemon", styled(PLAIN, &daemon)),
        ("Interfaces", interfaces.join(", ")),
        ("Flow table", table),
        ("Overrides", overrides),
    ]);
    format!("{node}\n{}", services(&status.services, width))
}

fn interface(interface: &Interface) -> String {
    let Interface {
        name,
        device,
        xdp_mode,
        ..
    } = interface;
    let on = if device == name {
        String::new()
    } else {
        format!(" on {device}")
    };
    match xdp_mode.as_str() {
        "generic" => styled(PLAIN, name) + " " + &styled(NOTABLE, "generic (slow)"),
        "absent" => styled(PLAIN, name) + " " + &styled(BAD, "absent"),
        _ => styled(PLAIN, &format!("{name} {xdp_mode}{on}")),
    }
}

/// Services, a line each.
pub(super) fn services(services: &[ServiceSummary], width: Option<usize>) -> String {
    if services.is_empty() {
        return "No services: add a [[service]] to the file, then `lb reload`.\n".to_owned();
    }
    let mut table = Table::new([
        Column::Left("SERVICE"),
        Column::Left("LISTEN"),
        Column::Left("PROTOCOL"),
        Column::Left("FORWARD"),
        Column::Left("SCHEDULER"),
        Column::Right("HEALTHY"),
        Column::Right("NEW/S"),
        Column::Right("PACKETS/S"),
        Column::Right("RATE"),
    ]);
    for service in services {
        table.row([
            service.name.as_str().into(),
            service.listen.to_string().into(),
            service.protocol.as_str().into(),
            service.forward.as_str().into(),
            service.scheduler.as_str().into(),
            healthy(service),
            units::rate(service.new_flows_per_second).into(),
            units::rate(service.packets_per_second).into(),
            units::bits(service.bits_per_second).into(),
        ]);
    }
    table.render(width)
}

/// How many of a service's backends are healthy.
pub(super) fn healthy(service: &ServiceSummary) -> Cell {
    let style = match service.healthy {
        0 => BAD,
        some if some < service.total => NOTABLE,
        _all => GOOD,
    };
    Cell::new(style, format!("{}/{}", service.healthy, service.total))
}
