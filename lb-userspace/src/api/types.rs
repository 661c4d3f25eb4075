//! What the control socket says, and what `--json` prints.
//!
//! The daemon serialises these, the command line reads them back: one form,
//! so that nothing is lost between the two. Names are part of the interface;
//! fields are only ever added.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The longest that an answer with events is waited with; who wants to wait
/// longer asks again.
pub const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Connections by how they stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowCounts {
    /// Whose client has proved nothing yet.
    pub half_open: u64,
    /// That live.
    pub established: u64,
    /// That have ended, and rest for a while.
    pub ended: u64,
}

/// `GET /v1/status`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The node's name.
    pub node: String,
    /// The daemon's version.
    pub version: String,
    /// The daemon's process.
    pub pid: u32,
    /// Seconds since the daemon started.
    pub uptime_seconds: u64,
    /// Whether the daemon adopted flows and schedules that were already there.
    pub adopted: bool,
    /// The role in a pair: `initialize`, `backup`, `active` or `leaving`; else
    /// `standalone`.
    pub ha_state: String,
    /// Where the program is attached.
    pub interfaces: Vec<Interface>,
    /// One line each.
    pub services: Vec<ServiceSummary>,
    /// How many connections there is room for.
    pub flow_capacity: u64,
    /// What there was when the table was last gone through, a second ago at most.
    pub flows: FlowCounts,
    /// Changes made at run time that differ from the file.
    pub overrides: usize,
}

/// `GET /v1/ha`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ha {
    /// `initialize`, `backup`, `active` or `leaving`.
    pub state: String,
    /// Since when.
    pub since_seconds: u64,
    /// Why this node takes no part, if it does not.
    pub apart: Option<String>,
    /// Why this node is not fit to be active, if it is not.
    pub unfit: Option<String>,
    /// The interface by which nodes hear each other.
    pub interface: String,
    /// The number of the virtual router.
    pub vrid: u8,
    /// The priority now; 1 while this node is not fit.
    pub priority: u8,
    /// The priority in the file.
    pub configured_priority: u8,
    /// From one advertisement of this node to the next.
    pub interval_ms: u64,
    /// Whether it takes over from one of lower priority.
    pub preempt: bool,
    /// From where it speaks.
    pub source: Option<IpAddr>,
    /// To whom, if not to the group.
    pub peers: Vec<IpAddr>,
    /// What moves with the role.
    pub addresses: Vec<IpAddr>,
    /// The advertisement that was heard last. Passive nodes send none.
    pub heard: Option<HaHeard>,
    /// How often it became active or stopped being so.
    pub transitions: u64,
    /// Advertisements that went out.
    pub sent: u64,
    /// Advertisements that could not be sent.
    pub unsent: u64,
    /// Advertisements that came in and were understood.
    pub received: u64,
    /// Those that were ignored, by why.
    pub rejected: BTreeMap<String, u64>,
    /// What the checksum over IPv4 is made over: `pseudo-header` or `plain`.
    pub checksum: String,
    /// By how many microseconds it was late, at most.
    pub latest_us: u64,
    /// Whether its thread has real-time priority.
    pub real_time: bool,
    /// The channel to the other node, if the file has one.
    pub sync: Option<HaSync>,
}

/// The channel to the other node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HaSync {
    /// Whether the other node is heard now. Without that, what is said of it is how it
    /// was.
    pub heard: bool,
    /// Since when it is, or is not.
    pub since_seconds: u64,
    /// Why it is not, if it is not.
    pub why: Option<String>,
    /// The other node, as it was heard last.
    pub peer: Option<HaPeer>,
    /// Whether this node knows all connections there are, so that it can take over
    /// without losing any.
    pub ready: bool,
    /// Connections of the other node's that were entered or changed here.
    pub applied: u64,
    /// Connections that were taken away here because the other node had them no longer.
    pub removed: u64,
    /// Connections whose service or backend this node does not have.
    pub unknown: u64,
    /// Connections for which the table here had no room.
    pub no_room: u64,
    /// Whether the other node is told of this one's connections.
    pub tells: bool,
    /// Since when it is, or is not.
    pub tells_since_seconds: u64,
    /// Why it is not, if it is not.
    pub tells_not: Option<String>,
    /// Changes that it was told of.
    pub told: u64,
    /// How often it has got all connections.
    pub snapshots: u64,
    /// How many changes are known here that it has not acknowledged, about.
    pub behind: u64,
    /// How old the oldest of them is.
    pub lag_seconds: f64,
    /// What was turned away, by why.
    pub rejected: BTreeMap<String, u64>,
}

/// The other node, as it says itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HaPeer {
    /// Its name.
    pub name: String,
    /// Its version of lb.
    pub version: String,
    /// `initialize`, `backup`, `active` or `leaving`.
    pub role: String,
    /// Its priority.
    pub priority: u8,
    /// Whether its file agrees with this one's in what both must have alike: `same`,
    /// `differs`, or `unknown` between versions that differ.
    pub configuration: String,
    /// How many established connections it has.
    pub flows: u64,
    /// How many of its services have a backend.
    pub healthy: u32,
    /// How many services it has.
    pub services: u32,
    /// How many changes it knows that this node has not acknowledged, about.
    pub behind: u64,
    /// How long ago it was heard.
    pub heard_ms: u64,
}

/// An advertisement that was heard.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HaHeard {
    /// Who sent it.
    pub source: IpAddr,
    /// The priority in it.
    pub priority: u8,
    /// The interval in it.
    pub interval_ms: u64,
    /// How long ago.
    pub age_ms: u64,
}

/// An interface of the configuration.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// The device that the program is attached to for it: itself, or the one
    /// below a VLAN interface.
    pub device: String,
    /// The index of that; 0 if there is none.
    pub index: u32,
    /// `native`, `generic`, or `absent` while there is no such interface.
    pub xdp_mode: String,
}

/// `GET /v1/services`, and part of the status.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServiceSummary {
    /// The name in the configuration.
    pub name: String,
    /// Address and port.
    pub listen: SocketAddr,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// `full-nat`, `nat`, `dsr` or `tunnel`.
    pub forward: String,
    /// One of [`crate::schedule::ALL`]: `wrr`, `maglev` …
    pub scheduler: String,
    /// Backends that pass their checks.
    pub healthy: usize,
    /// All backends.
    pub total: usize,
    /// New connections a second, over the last second.
    pub new_flows_per_second: f64,
    /// Packets a second in both directions, over the last second.
    pub packets_per_second: f64,
    /// Bits a second in both directions, over the last second.
    pub bits_per_second: f64,
}

/// `GET /v1/services/NAME`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServiceDetail {
    /// The line of the list.
    #[serde(flatten)]
    pub summary: ServiceSummary,
    /// Slots in the sequence now in force.
    pub sequence_length: usize,
    /// The largest relative error of any backend's share; 0 when exact.
    pub share_error: f64,
    /// The largest TCP segment that either side may announce; 0 for any.
    pub max_mss: u16,
    /// For how many seconds after its last new connection a client's address
    /// keeps its backend; 0 for not at all.
    pub affinity_seconds: f64,
    /// What becomes of the flows of a backend that is down: `reset`, `rehash`
    /// or `keep`.
    pub on_down: String,
    /// How many seconds a backend that comes back takes to get its whole weight.
    pub slow_start_seconds: f64,
    /// With fewer healthy backends than this all are used.
    pub min_healthy: u32,
    /// Who takes its new connections: `well` (healthy backends), `backups`,
    /// `too-few` (all, healthy or not) or `nobody`.
    pub standing: String,
    /// What that means, where it is not `well`.
    pub trouble: Option<String>,
    /// How its backends are checked, in words.
    pub check: String,
    /// What was counted.
    pub traffic: Traffic,
    /// Packets dropped for this service.
    pub drops: Vec<DropCount>,
    /// Its backends.
    pub backends: Vec<Backend>,
}

/// `GET /v1/backends`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Backend {
    /// The service it belongs to.
    pub service: String,
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// `up`, `down` or `unknown` (not checked yet, counted as up).
    pub state: String,
    /// Why it is in that state: the last result of its check.
    pub reason: String,
    /// Seconds since it has been in that state.
    pub since_seconds: f64,
    /// The weight in force for the next connection, before health.
    pub weight: u16,
    /// The weight in the file; absent for a backend added at run time.
    pub configured_weight: Option<u16>,
    /// Where the weight comes from: `file`, `override`, `added` or `drain`.
    pub weight_source: String,
    /// How much of that it has while it is up, in per cent: less than 100 in
    /// its slow start.
    pub weight_percent: u32,
    /// Whether it is used only while no other one can be.
    pub backup: bool,
    /// Drained with a deadline: in how many seconds what is left of its
    /// connections is reset, 0 if that time has come.
    pub reset_in_seconds: Option<f64>,
    /// The part of new connections it gets now, 0 to 1.
    pub share: f64,
    /// Its slots in the sequence.
    pub slots: usize,
    /// Connections in the flow tables that go to it and have not ended.
    pub active_flows: u64,
    /// What was counted.
    pub traffic: Traffic,
}

/// Packets and bytes of whole frames, by direction. With `dsr` and `tunnel`
/// backends answer clients themselves, so that nothing is counted from them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// From clients.
    pub forward_packets: u64,
    /// From clients.
    pub forward_bytes: u64,
    /// From backends.
    pub reply_packets: u64,
    /// From backends.
    pub reply_bytes: u64,
    /// Connections begun.
    pub new_flows: u64,
}

/// `PUT /v1/services/S/backends/B/weight`
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct SetWeight {
    /// 0 to 256.
    pub weight: u16,
}

/// `POST /v1/services/S/backends/B/drain`
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Drain {
    /// After so many milliseconds what is left of its connections is reset;
    /// without it they stay until they end, or until a deadline set before.
    pub deadline_ms: Option<u64>,
}

/// `POST /v1/ha/yield`
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Yield {
    /// Even if the other node is not heard, or does not know all connections.
    pub force: bool,
}

/// `POST /v1/services/S/backends`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AddBackend {
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// 0 to 256.
    pub weight: u16,
}

/// What a change did: the answer to every change.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Changed {
    /// One sentence.
    pub message: String,
    /// The backend as it is now; absent after a removal.
    pub backend: Option<Backend>,
}

/// One difference from the file. `GET /v1/overrides`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Override {
    /// The service.
    pub service: String,
    /// The backend.
    pub backend: String,
    /// `weight`, `drained`, `added` or `removed`.
    pub kind: String,
    /// What the file says.
    pub file: String,
    /// What is in force.
    pub now: String,
}

/// `GET /v1/flows?service=&backend=&limit=`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Flows {
    /// Connections that match and have not ended, whether listed or not.
    pub total: u64,
    /// At most as many as asked for.
    pub flows: Vec<Flow>,
}

/// One connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Flow {
    /// The service.
    pub service: String,
    /// The backend.
    pub backend: String,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// The client.
    pub client: SocketAddr,
    /// The service's address.
    pub listen: SocketAddr,
    /// The source that the backend sees.
    pub source: SocketAddr,
    /// Where the backend listens, or with `dsr` and `tunnel` where it is.
    pub address: SocketAddr,
    /// `unfinished`, `established` or `closing`.
    pub state: String,
    /// Seconds since a packet was noted, to about a second.
    pub idle_seconds: f64,
}

/// One reason for dropping, or (`GET /v1/drops?all=true`) any verdict.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DropCount {
    /// The verdict's name.
    pub reason: String,
    /// `drop`, `pass`, `tx` or `redirect`.
    pub verdict: String,
    /// Packets.
    pub packets: u64,
    /// What it means and what to do.
    pub help: String,
    /// For which service and backend, where known.
    pub by: Vec<DropShare>,
}

/// A part of a [`DropCount`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DropShare {
    /// The service, if it was known when the packet was dropped.
    pub service: Option<String>,
    /// The backend, if it was known when the packet was dropped.
    pub backend: Option<String>,
    /// Packets.
    pub packets: u64,
}

/// `GET /v1/events?after=&limit=&wait=`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Events {
    /// When this run of the daemon began, from which events are numbered; in
    /// another run the same number is another event.
    pub started: String,
    /// The number of the newest event, listed or not; 0 if there is none yet.
    pub newest: u64,
    /// Of those that were asked for, how many are not kept any more.
    pub lost: u64,
    /// The oldest first; at most as many as asked for.
    pub events: Vec<Event>,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// From 1 in each run of the daemon, without gaps.
    pub number: u64,
    /// When (RFC 3339, UTC).
    pub time: String,
    /// `info`, `warning` or `alert`.
    pub severity: String,
    /// A word of `lb events --kinds`.
    pub kind: String,
    /// The service, if it is about one.
    pub service: Option<String>,
    /// The backend, if it is about one.
    pub backend: Option<String>,
    /// The interface, if it is about one.
    pub interface: Option<String>,
    /// All of it, for people.
    pub sentence: String,
}

/// `POST /v1/reload`
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reloaded {
    /// What changed, a sentence each.
    pub changes: Vec<String>,
}

/// The body of every answer that is not 2xx.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Refused {
    /// What, why, what to do.
    pub error: String,
}

/// An address that the daemon has put on an interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct OwnAddress {
    /// The interface.
    pub interface: String,
    /// The address.
    pub address: IpAddr,
}
