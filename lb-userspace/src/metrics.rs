//! What a monitoring system reads: `GET /metrics`, OpenMetrics text over plain HTTP.
//!
//! A scrape takes a [`Snapshot`] of the controller, which is plain values, and that is
//! made into text without holding anything. Names and their labels are the contract of
//! the README's table; verdicts have those of [`Verdict::ALL`], so that what `lb drops`
//! tells and what is counted here have the same words. [`serve`] is the listener.
//!
//! What is not known is left out, rather than told as 0: `lb_ha_transitions_total` where
//! there is no pair, the expiry of a certificate that cannot be read.

mod serve;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use lb_common::Verdict;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::config::Config;
use crate::controller::{Controller, Pair};
use crate::tls::Facts;
use crate::vrrp::machine;

pub use serve::{MOST_AT_ONCE, listen, serve};

/// What the text is, as HTTP has it.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The state of a node that is in no pair.
pub const STANDALONE: &str = "standalone";

/// The figures of one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// The version of `lb`.
    pub version: &'static str,
    /// Connections in the table, whatever their state.
    pub flows: u64,
    /// How many fit.
    pub flow_capacity: u64,
    /// Packets by the number of their verdict.
    pub verdicts: Vec<u64>,
    /// The word of the state in the pair, or [`STANDALONE`].
    pub ha_state: &'static str,
    /// How often this node has become active or stopped being so.
    pub ha_transitions: Option<u64>,
    /// How far the other node is behind with this one's connections, where it is told of
    /// them.
    pub sync_lag: Option<Duration>,
    /// When each certificate expires: the first of those in a file.
    pub certificates: Vec<(PathBuf, SystemTime)>,
}

impl Snapshot {
    /// How things stand; certificates are read for [`Self::with_certificates`].
    ///
    /// # Errors
    /// If the kernel's counters cannot be read.
    pub fn of(controller: &Controller) -> anyhow::Result<Self> {
        let census = controller.census();
        let pair = controller.pair.as_ref().map(Pair::status);
        Ok(Self {
            version: env!("CARGO_PKG_VERSION"),
            flows: census.half_open + census.established + census.closed,
            flow_capacity: controller.dataplane.flow_capacity(),
            verdicts: controller.dataplane.verdicts()?,
            ha_state: pair.as_ref().map_or(STANDALONE, |pair| pair.state.word()),
            ha_transitions: pair.map(|pair| pair.transitions),
            sync_lag: (controller.pair.as_ref())
                .and_then(Pair::sync)
                .map(|view| view.lag()),
            certificates: Vec::new(),
        })
    }

    /// With the certificates that a configuration names, as they are on the disk: those
    /// are what the next connection takes up.
    #[must_use]
    pub fn with_certificates(self, config: &Config) -> Self {
        let certificates = config.certificates().into_iter();
        let certificates = certificates
            .filter_map(|path| Some((path.to_owned(), first_expiry(path)?)))
            .collect();
        Self {
            certificates,
            ..self
        }
    }

    /// As OpenMetrics text.
    pub fn render(self) -> String {
        let mut registry = Registry::with_prefix("lb");
        registry.register_collector(Box::new(self));
        let mut rendered = String::new();
        text::encode(&mut rendered, &registry).expect("a string takes any text");
        rendered
    }
}

/// The certificates that a file names are no good from the first of them on.
fn first_expiry(path: &Path) -> Option<SystemTime> {
    let facts = Facts::read(path).ok()?;
    facts.iter().map(|facts| facts.not_after).min()
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let build =
            encoder.encode_descriptor("build", "The version of lb", None, MetricType::Info)?;
        Info::new([("version", self.version)]).encode(build)?;
        gauge(
            &mut encoder,
            "flows",
            "Connections in the table",
            self.flows,
        )?;
        let help = "Connections that fit into the table";
        gauge(&mut encoder, "flow_capacity", help, self.flow_capacity)?;
        self.packets(&mut encoder)?;
        self.pair(&mut encoder)?;
        self.expiries(&mut encoder)
    }
}

impl Snapshot {
    fn packets(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Packets by what became of them and why: see the README's verdicts";
        let mut family = encoder.encode_descriptor("packets", help, None, MetricType::Counter)?;
        for &verdict in Verdict::ALL {
            let packets = self.verdicts.get(verdict as usize).copied().unwrap_or(0);
            let labels = [
                ("verdict", verdict.action().name()),
                ("reason", verdict.name()),
            ];
            ConstCounter::new(packets).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn pair(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "1 for the state in the pair that this node has, 0 for the others";
        let mut family = encoder.encode_descriptor("ha_state", help, None, MetricType::Gauge)?;
        for word in [STANDALONE].into_iter().chain(machine::State::WORDS) {
            let has = u64::from(word == self.ha_state);
            ConstGauge::new(has).encode(family.encode_family(&[("state", word)])?)?;
        }
        let Some(transitions) = self.ha_transitions else {
            return Ok(());
        };
        let help = "How often this node has become active or stopped being so";
        let descriptor =
            encoder.encode_descriptor("ha_transitions", help, None, MetricType::Counter)?;
        ConstCounter::new(transitions).encode(descriptor)?;
        let Some(lag) = self.sync_lag else {
            return Ok(());
        };
        let help = "The age of the oldest change of connections that the other node has not acknowledged; 0 if there is none, or this node does not forward";
        let unit = Some(&Unit::Seconds);
        let descriptor = encoder.encode_descriptor("sync_lag", help, unit, MetricType::Gauge)?;
        ConstGauge::new(lag.as_secs_f64()).encode(descriptor)
    }

    fn expiries(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        if self.certificates.is_empty() {
            return Ok(());
        }
        let mut family = encoder.encode_descriptor(
            "certificate_expiry_timestamp_seconds",
            "When the first certificate in the file expires, in seconds since 1970",
            None,
            MetricType::Gauge,
        )?;
        for (path, at) in &self.certificates {
            let since = at.duration_since(SystemTime::UNIX_EPOCH);
            let seconds = since.map_or(0, |since| since.as_secs());
            let labels = [("file", path.display().to_string())];
            ConstGauge::new(seconds).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    let descriptor = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    ConstGauge::new(value).encode(descriptor)
}

#[cfg(test)]
mod tests;
