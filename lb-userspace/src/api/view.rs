//! From the controller's values to the forms of the API.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use lb_common::abi::{Flow, NOBODY, TCP};
use lb_common::flow::{BACKEND_FIN, CLIENT_FIN, ended};
use lb_common::{Action, Verdict, abi};

use super::{sync, types};
use crate::config::{CheckKind, Via};
use crate::controller::{Controller, Refusal};
use crate::dataplane::{Mode, Table};
use crate::events::Journal;
use crate::events::ring::Page;
use crate::health::{State, TargetId};
use crate::host;
use crate::model::offer::Standing;
use crate::schedule::WHOLE;
use crate::vrrp::packet::Checksum;

/// `GET /v1/status`
pub(super) fn status(controller: &Controller) -> types::Status {
    types::Status {
        node: controller.config.node.name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        uptime_seconds: controller.started.elapsed().as_secs(),
        adopted: controller.adopted,
        ha_state: controller
            .pair
            .as_ref()
            .map_or("standalone", |pair| pair.status().state.word())
            .to_owned(),
        interfaces: controller
            .attachments
            .iter()
            .map(|attachment| types::Interface {
                name: attachment.interface.clone(),
                device: attachment.device.clone(),
                index: attachment.index,
                xdp_mode: attachment.mode.map_or("absent", Mode::name).to_owned(),
            })
            .collect(),
        services: summaries(controller),
        flow_capacity: controller.dataplane.flow_capacity(),
        flows: {
            let census = controller.census();
            types::FlowCounts {
                half_open: census.half_open,
                established: census.established,
                ended: census.closed,
            }
        },
        overrides: controller.state.overrides.len(),
    }
}

/// `GET /v1/ha`
pub(super) fn ha(controller: &Controller) -> Result<types::Ha, Refusal> {
    let (Some(ha), Some(pair)) = (&controller.config.ha, &controller.pair) else {
        return Err(Refusal::Invalid(
            "this node runs alone: its file has no section [ha]".into(),
        ));
    };
    let status = pair.status();
    let milliseconds = |duration: Duration| duration.as_millis() as u64;
    let rejected = status.rejected.iter();
    Ok(types::Ha {
        state: status.state.word().to_owned(),
        since_seconds: status.since.elapsed().unwrap_or_default().as_secs(),
        apart: status.apart,
        unfit: pair.unfit().map(str::to_owned),
        interface: ha.interface.clone(),
        vrid: ha.vrid,
        priority: status.priority,
        configured_priority: ha.priority,
        interval_ms: milliseconds(ha.interval.duration()),
        preempt: ha.preempt,
        source: status.source,
        peers: ha.peers.clone(),
        addresses: ha.protected(&controller.config.services),
        heard: status.heard.map(|(heard, at)| types::HaHeard {
            source: heard.source,
            priority: heard.priority,
            interval_ms: milliseconds(heard.interval.duration()),
            age_ms: milliseconds(at.elapsed().unwrap_or_default()),
        }),
        transitions: status.transitions,
        sent: status.sent,
        unsent: status.unsent,
        received: status.received,
        rejected: rejected
            .map(|(reason, count)| (reason.name().to_owned(), *count))
            .collect(),
        checksum: match status.checksum {
            Checksum::PseudoHeader => "pseudo-header",
            Checksum::Plain => "plain",
        }
        .to_owned(),
        latest_us: status.latest.as_micros() as u64,
        real_time: status.real_time,
        sync: pair
            .sync()
            .map(|view| sync::sync(&view, pair.configuration())),
    })
}

/// `GET /v1/services`
pub(super) fn summaries(controller: &Controller) -> Vec<types::ServiceSummary> {
    (0..controller.desired.len())
        .map(|place| summary(controller, place))
        .collect()
}

fn summary(controller: &Controller, place: usize) -> types::ServiceSummary {
    let service = &controller.desired[place];
    let rate = controller
        .rates
        .get(&controller.plan[place].number)
        .copied()
        .unwrap_or_default();
    types::ServiceSummary {
        name: service.name.clone(),
        listen: service.listen.address.socket(service.listen.port),
        protocol: protocol(u32::from(service.listen.protocol)),
        forward: controller.config.services[place].forward.name().to_owned(),
        scheduler: service.scheduler.name.to_owned(),
        healthy: service.backends.iter().filter(|backend| backend.up).count(),
        total: service.backends.len(),
        new_flows_per_second: rate.new_flows,
        packets_per_second: rate.packets,
        bits_per_second: rate.bits,
    }
}

/// `GET /v1/services/NAME`
pub(super) fn detail(
    controller: &Controller,
    place: usize,
) -> anyhow::Result<types::ServiceDetail> {
    let number = controller.plan[place].number;
    let check = &controller.config.services[place].check;
    let check = match check.kind {
        CheckKind::None => "none".to_owned(),
        kind => format!(
            "{}{} every {}, timeout {}, rise {}, fall {}",
            kind.name(),
            match check.via {
                Via::Backend => "",
                Via::Service => " through the service's address",
            },
            humantime::format_duration(check.interval),
            humantime::format_duration(check.timeout),
            check.rise,
            check.fall
        ),
    };
    let service = &controller.desired[place];
    let standing = service.standing();
    let name = &service.name;
    let mut of_service = drops(controller, false)?;
    for count in &mut of_service {
        count
            .by
            .retain(|share| share.service.as_deref() == Some(name.as_str()));
        count.packets = count.by.iter().map(|share| share.packets).sum();
    }
    of_service.retain(|count| count.packets > 0);
    Ok(types::ServiceDetail {
        summary: summary(controller, place),
        sequence_length: controller.plan[place].length,
        max_mss: service.max_mss,
        share_error: controller.plan[place].share_error,
        affinity_seconds: service.affinity.as_secs_f64(),
        on_down: service.on_down.name().to_owned(),
        slow_start_seconds: service.slow_start.as_secs_f64(),
        min_healthy: service.min_healthy,
        standing: standing.word().to_owned(),
        trouble: standing.trouble(),
        check,
        traffic: traffic(&controller.dataplane.service_traffic(number)?),
        drops: of_service,
        backends: backends(controller, place)?,
    })
}

/// The backends of one service.
pub(super) fn backends(
    controller: &Controller,
    place: usize,
) -> anyhow::Result<Vec<types::Backend>> {
    let service = &controller.desired[place];
    let plan = &controller.plan[place];
    let all_used = matches!(service.standing(), Standing::TooFew { .. });
    service
        .backends
        .iter()
        .zip(&plan.backends)
        .zip(&plan.shares)
        .map(|((backend, number), share)| {
            let id = TargetId {
                service: service.name.clone(),
                backend: backend.name.clone(),
            };
            let (state, reason, since_seconds) = health(controller, &id);
            let part = if all_used { WHOLE } else { backend.part };
            let overridden = controller
                .state
                .overrides
                .of(&id)
                .is_some_and(|o| o.weight.is_some());
            Ok(types::Backend {
                service: service.name.clone(),
                name: backend.name.clone(),
                address: backend.endpoint.address.socket(backend.endpoint.port),
                state,
                reason,
                since_seconds,
                weight: backend.weight,
                configured_weight: backend.configured,
                weight_source: match (backend.drained, backend.configured, overridden) {
                    (true, _, _) => "drain",
                    (false, None, _) => "added",
                    (false, Some(_), true) => "override",
                    (false, Some(_), false) => "file",
                }
                .to_owned(),
                weight_percent: u32::from(part) * 100 / u32::from(WHOLE),
                backup: backend.backup,
                reset_in_seconds: backend.reset_at.map(|at| {
                    let left = at.duration_since(SystemTime::now());
                    left.unwrap_or_default().as_secs_f64()
                }),
                share: share.part,
                slots: share.slots,
                active_flows: controller.dataplane.table().live(*number),
                traffic: traffic(&controller.dataplane.backend_traffic(*number)?),
            })
        })
        .collect()
}

fn health(controller: &Controller, id: &TargetId) -> (String, String, f64) {
    match controller.status_of(id) {
        None => {
            let since = controller.started.elapsed().as_secs_f64();
            (
                State::adopted(true).word().to_owned(),
                "not checked".to_owned(),
                since,
            )
        }
        Some(status) => {
            let since = SystemTime::now()
                .duration_since(status.since)
                .unwrap_or_default();
            (
                status.state.word().to_owned(),
                status.last_result,
                since.as_secs_f64(),
            )
        }
    }
}

fn traffic(counted: &abi::Traffic) -> types::Traffic {
    let abi::Traffic {
        forward_packets,
        forward_bytes,
        reply_packets,
        reply_bytes,
        new_flows,
    } = *counted;
    types::Traffic {
        forward_packets,
        forward_bytes,
        reply_packets,
        reply_bytes,
        new_flows,
    }
}

/// `GET /v1/overrides`
pub(super) fn overrides(controller: &Controller) -> Vec<types::Override> {
    let mut all = Vec::new();
    for (service, backends) in &controller.state.overrides.0 {
        for (backend, change) in backends {
            let configured = controller
                .config
                .services
                .iter()
                .find(|entry| entry.name == *service)
                .and_then(|entry| entry.backends.iter().find(|entry| entry.name == *backend));
            let file = configured.map_or("absent".to_owned(), |b| format!("weight {}", b.weight));
            let mut differs = |kind: &str, now: String| {
                all.push(types::Override {
                    service: service.clone(),
                    backend: backend.clone(),
                    kind: kind.to_owned(),
                    file: file.clone(),
                    now,
                });
            };
            let weight = change.weight.or(configured.map(|b| b.weight)).unwrap_or(1);
            if change.removed {
                differs("removed", "absent".to_owned());
            } else if let Some(address) = change.added {
                differs("added", format!("{address}, weight {weight}"));
            } else if change.weight.is_some() {
                differs("weight", format!("weight {weight}"));
            }
            if change.drained {
                let reset = match change.reset_at {
                    Some(at) => format!(
                        "; connections reset at {}",
                        humantime::format_rfc3339_seconds(at)
                    ),
                    None => String::new(),
                };
                let now = format!("drained; weight {weight} when enabled{reset}");
                differs("drained", now);
            }
        }
    }
    all
}

/// `GET /v1/drops`: the verdicts that dropped, or all.
pub(super) fn drops(controller: &Controller, all: bool) -> anyhow::Result<Vec<types::DropCount>> {
    let names = Names::of(controller);
    let shares = controller.dataplane.drops()?;
    let counts = controller.dataplane.verdicts()?;
    let listed = Verdict::ALL
        .iter()
        .map(|&verdict| (verdict, counts.get(verdict as usize).copied().unwrap_or(0)))
        .filter(|&(verdict, packets)| packets > 0 && (all || verdict.action() == Action::Drop))
        .map(|(verdict, packets)| {
            let mut by: Vec<types::DropShare> = shares
                .iter()
                .filter(|(key, _)| key.verdict == verdict as u32)
                .map(|(key, packets)| types::DropShare {
                    service: names.service(key.service),
                    backend: names.backend(key.backend).map(|(_, name)| name),
                    packets: *packets,
                })
                .collect();
            by.sort_by_key(|share| Reverse(share.packets));
            types::DropCount {
                reason: verdict.name().to_owned(),
                verdict: verdict.action().name().to_owned(),
                packets,
                help: verdict.help().to_owned(),
                by,
            }
        });
    let mut listed: Vec<types::DropCount> = listed.collect();
    listed.sort_by_key(|count| Reverse(count.packets));
    Ok(listed)
}

/// `GET /v1/events`
pub(super) fn events(journal: &Journal, page: Page) -> types::Events {
    let time = |time| humantime::format_rfc3339_millis(time).to_string();
    types::Events {
        started: time(journal.started()),
        newest: page.newest,
        lost: page.lost,
        events: page
            .events
            .into_iter()
            .map(|event| types::Event {
                number: event.number,
                time: time(event.time),
                severity: event.kind.severity().name().to_owned(),
                kind: event.kind.name().to_owned(),
                service: event.subject.service,
                backend: event.subject.backend,
                interface: event.subject.interface,
                sentence: event.sentence,
            })
            .collect(),
    }
}

/// The names behind numbers.
pub(super) struct Names {
    services: BTreeMap<u32, String>,
    backends: BTreeMap<u32, (String, String)>,
}

impl Names {
    pub(super) fn of(controller: &Controller) -> Self {
        let mut names = Self {
            services: BTreeMap::new(),
            backends: BTreeMap::new(),
        };
        for (service, plan) in controller.desired.iter().zip(&controller.plan) {
            names.services.insert(plan.number, service.name.clone());
            for (backend, &number) in service.backends.iter().zip(&plan.backends) {
                names
                    .backends
                    .insert(number, (service.name.clone(), backend.name.clone()));
            }
        }
        names
    }

    fn service(&self, number: u32) -> Option<String> {
        self.services.get(&number).cloned()
    }

    fn backend(&self, number: u32) -> Option<(String, String)> {
        if number == NOBODY {
            None
        } else {
            self.backends.get(&number).cloned()
        }
    }
}

/// `GET /v1/flows`
pub(super) fn flows(
    table: &Table,
    names: &Names,
    service: Option<&str>,
    backend: Option<&str>,
    limit: usize,
) -> types::Flows {
    let now = Now::read();
    let mut listed = types::Flows {
        total: 0,
        flows: Vec::new(),
    };
    for (key, flow, established) in table.all() {
        if ended(flow.life.state) {
            continue;
        }
        let (of, to) = names.backend(flow.backend).unwrap_or_else(|| {
            // Taken out, with connections that go on.
            let service = names
                .service(u32::from(flow.service))
                .unwrap_or_else(|| "(removed)".to_owned());
            (service, "(removed)".to_owned())
        });
        if service.is_some_and(|name| name != of) || backend.is_some_and(|name| name != to) {
            continue;
        }
        listed.total += 1;
        if listed.flows.len() >= limit {
            continue;
        }
        let socket = |address: lb_common::Address, port: lb_common::Be16| -> SocketAddr {
            address.socket(port)
        };
        let closing = flow.life.state & (CLIENT_FIN | BACKEND_FIN) != 0;
        listed.flows.push(types::Flow {
            service: of,
            backend: to,
            protocol: protocol(key.protocol),
            client: socket(key.src, key.src_port),
            listen: socket(key.dst, key.dst_port),
            source: socket(flow.src, flow.src_port),
            address: socket(flow.dst, flow.dst_port),
            state: match (established, closing) {
                (_, true) => "closing",
                (true, false) => "established",
                (false, false) => "unfinished",
            }
            .to_owned(),
            idle_seconds: now.idle_seconds(&flow),
        });
    }
    listed
}

/// The kernel's clock, by which flows are stamped.
pub(super) struct Now {
    ticks: u32,
    hertz: u32,
}

impl Now {
    pub(super) fn read() -> Self {
        let hertz = host::ticks_per_second();
        Self {
            ticks: host::ticks_now(hertz),
            hertz,
        }
    }

    /// How long no packet of this flow has been noted.
    fn idle_seconds(&self, flow: &Flow) -> f64 {
        // The estimate of now may be a tick behind the kernel's.
        let ticks = self.ticks.wrapping_sub(flow.life.seen).cast_signed().max(0);
        f64::from(ticks) / f64::from(self.hertz)
    }
}

fn protocol(number: u32) -> String {
    if number == u32::from(TCP) {
        "tcp"
    } else {
        "udp"
    }
    .to_owned()
}
