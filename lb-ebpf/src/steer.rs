//! Which flow a packet belongs to, and where a new flow goes.
//!
//! ```text
//! established flow? ── yes ─> follow its life, go on
//!        │ no
//! destination is a service? ── yes ─> unfinished flow? ── yes ─> follow, promote on proof
//!        │ no                               │ no
//! source is a backend?                 guard, next slot of the sequence, enter both halves
//!        │ no        └ yes ─> unfinished flow? ── yes ─> note the answer
//!      pass                          └ no: pass, or drop what only an ended flow explains
//! ```
//!
//! A connection begins in the small table of unfinished flows, both halves or
//! neither, and moves to the large one when the client proves that it heard
//! the backend: for TCP by acknowledging the backend's SYN-ACK, for UDP by
//! sending again after an answer. So a spoofed source never reaches the large
//! table.
//!
//! A known flow costs one look-up. Once a second it costs two more: its entry
//! is stamped, and its other half too, which is made again if it was lost.
//!
//! Where the balancer sees only the packets from the client (`dsr`, `tunnel`)
//! there is one entry and no answer to wait for: the flow is established by the
//! client's first acknowledgement, or its second datagram.
//!
//! What is not needed for a packet of a known flow stands in functions of its
//! own (`inline(never)`): the known path stays short.

use lb_common::abi::backend::USED;
use lb_common::abi::{Flow, FlowKey, Life, NOBODY, Party, Settings, TCP, forward, role};
use lb_common::flow::{
    ANSWERED, BACKEND_FIN, CLIENT_FIN, deltas, ended, follow, opens, proves, tcp_flag, twin,
    twin_key,
};
use lb_common::{Address, Be16, Verdict};

use crate::guard;
use crate::packet::{Packet, Tcp};
use crate::parse::{Parsed, Part};
use crate::room::{Draft, Room};
use crate::tables::{Stage, Tables, endpoint, is_service_address};

/// How many ports full-nat tries before it gives up. With half of the ports
/// taken, one connection in 65,536 would find none.
const PORT_PROBES: u32 = 16;

/// How long Linux keeps a connection in TIME-WAIT.
const TIME_WAIT_SECONDS: u32 = 60;

/// Whom a packet is counted for. Whole words, like the tables' keys.
#[repr(align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attribution {
    /// The service's number, or [`NOBODY`].
    pub service: u32,
    /// The backend's number, or [`NOBODY`].
    pub backend: u32,
    /// From the backend to the client.
    pub reply: bool,
    /// The packet began a connection.
    pub new_flow: bool,
}

impl Attribution {
    /// Nobody's, so far.
    pub const NOBODY: Self = Self {
        service: NOBODY,
        backend: NOBODY,
        reply: false,
        new_flow: false,
    };

    #[inline(always)]
    pub(crate) fn flow(&mut self, flow: &Flow) {
        self.service = u32::from(flow.service);
        self.backend = flow.backend;
        self.reply = flow.is_reply();
    }
}

/// What steering needs of the transport header.
///
/// All zero for UDP, rather than an `Option`: what a `None` leaves undefined the
/// compiler may read all the same, and the verifier refuses that.
#[derive(Clone, Copy)]
struct Segment {
    flags: u8,
    sequence: u32,
    acknowledged: u32,
}

impl Segment {
    #[inline(always)]
    fn of(packet: &mut impl Packet, parsed: &Parsed) -> Result<Self, Verdict> {
        let mut segment = Self {
            flags: 0,
            sequence: 0,
            acknowledged: 0,
        };
        if parsed.key.protocol == u32::from(TCP) && parsed.part != Part::Later {
            let tcp = packet
                .at::<Tcp>(parsed.transport)
                .map_err(|_| Verdict::ShortTransport)?;
            segment.flags = tcp.flags;
            segment.sequence = u32::from_be_bytes(tcp.sequence);
            segment.acknowledged = u32::from_be_bytes(tcp.acknowledged);
        }
        Ok(segment)
    }

    #[inline(always)]
    const fn state_after(&self, flow: &Flow) -> u32 {
        follow(flow.life.state, flow.is_reply(), self.flags)
    }

    /// Whether this asks for a new connection where the old one has ended: a
    /// client that uses its port again.
    #[inline(always)]
    const fn reopens(&self, flow: &Flow) -> bool {
        !flow.is_reply() && over(flow) && opens(self.flags)
    }

    #[inline(always)]
    const fn is_syn(&self) -> bool {
        self.flags & tcp_flag::SYN != 0
    }
}

/// Whether the connection is over, as far as is seen of it: of one whose
/// backend is not heard, the client's end is all there is.
#[inline(always)]
const fn over(flow: &Flow) -> bool {
    let state = flow.life.state;
    ended(if flow.one_way() && state & CLIENT_FIN != 0 {
        state | BACKEND_FIN
    } else {
        state
    })
}

/// Finds the packet's flow, or begins one.
#[inline(always)]
pub fn steer(
    packet: &mut impl Packet,
    tables: &impl Tables,
    room: &mut Room,
) -> Result<(), Verdict> {
    room.max_mss = 0;
    let key = &room.parsed.key;
    if let Some(flow) = tables.flow(Stage::Established, key) {
        room.whose.flow(flow);
        room.parsed.sound(packet.length())?;
        let segment = Segment::of(packet, &room.parsed)?;
        if !segment.reopens(flow) {
            live_on(tables, Stage::Established, key, flow, &segment);
            if segment.is_syn() {
                room.max_mss = largest_segment(tables, key, flow);
            }
            room.flow = *flow;
            return Ok(());
        }
        forget_both(tables, Stage::Established, key, flow);
        room.whose = Attribution::NOBODY;
    }
    unfamiliar(packet, tables, room)
}

/// A packet of no established flow.
#[inline(never)]
fn unfamiliar(
    packet: &mut impl Packet,
    tables: &impl Tables,
    room: &mut Room,
) -> Result<(), Verdict> {
    let key = &room.parsed.key;
    let to = tables.party(&endpoint(key.dst, key.dst_port, key.protocol as u16));
    if let Some(service) = to.filter(|party| party.roles & role::SERVICE != 0) {
        return from_client(packet, tables, room, &service);
    }
    let from = tables.party(&endpoint(key.src, key.src_port, key.protocol as u16));
    if from.is_some_and(|party| party.roles & role::BACKEND != 0) {
        return from_backend(packet, tables, room);
    }
    Err(Verdict::NoService)
}

/// A packet to a service that is of no established flow.
#[inline(always)]
fn from_client(
    packet: &mut impl Packet,
    tables: &impl Tables,
    room: &mut Room,
    service: &Party,
) -> Result<(), Verdict> {
    let Room {
        parsed,
        flow: found,
        whose,
        draft,
        ..
    } = room;
    let key = &parsed.key;
    *whose = Attribution {
        service: service.service,
        ..Attribution::NOBODY
    };
    parsed.sound(packet.length())?;
    let segment = Segment::of(packet, parsed)?;
    if segment.is_syn() {
        room.max_mss = u32::from(service.max_mss);
    }
    if let Some(flow) = tables.flow(Stage::Unfinished, key) {
        if !segment.reopens(flow) {
            whose.flow(flow);
            let moved = if proved(key, flow, &segment) {
                promote(tables, key, flow)
            } else {
                None
            };
            let (stage, flow) = match moved {
                Some(moved) => (Stage::Established, moved),
                None => (Stage::Unfinished, flow),
            };
            live_on(tables, stage, key, flow, &segment);
            *found = *flow;
            return Ok(());
        }
        forget_both(tables, Stage::Unfinished, key, flow);
    }
    if parsed.part == Part::Later {
        return Err(Verdict::NoFlow);
    }
    guard::admit(parsed, segment.flags)?;
    begin(tables, key, service, draft, whose)?;
    *found = draft.forward;
    Ok(())
}

/// The limit to the segments of a flow's service.
#[inline(never)]
fn largest_segment(tables: &impl Tables, key: &FlowKey, flow: &Flow) -> u32 {
    let (address, port) = if flow.is_reply() {
        (flow.src, flow.src_port)
    } else {
        (key.dst, key.dst_port)
    };
    let service = tables.party(&endpoint(address, port, key.protocol as u16));
    service.map_or(0, |service| u32::from(service.max_mss))
}

/// Whether a client's packet proves that its source is no forgery: it heard the
/// backend. Where nobody can tell, that it goes on is taken for it.
#[inline(always)]
fn proved(key: &FlowKey, flow: &Flow, segment: &Segment) -> bool {
    use tcp_flag::{ACK, RST, SYN};
    let tcp = key.protocol == u32::from(TCP);
    if flow.one_way() {
        !tcp || segment.flags & (SYN | ACK | RST) == ACK
    } else if tcp {
        proves(&flow.life, segment.flags, segment.acknowledged)
    } else {
        flow.life.state & ANSWERED != 0
    }
}

/// A packet from a backend that is of no established flow.
#[inline(always)]
fn from_backend(
    packet: &mut impl Packet,
    tables: &impl Tables,
    room: &mut Room,
) -> Result<(), Verdict> {
    let parsed = &room.parsed;
    let key = &parsed.key;
    let Some(flow) = tables.flow(Stage::Unfinished, key) else {
        return Err(unexpected(tables, parsed));
    };
    room.whose.flow(flow);
    parsed.sound(packet.length())?;
    let segment = Segment::of(packet, parsed)?;
    let state = segment.state_after(flow) | ANSWERED;
    if segment.is_syn() {
        room.max_mss = largest_segment(tables, key, flow);
    }
    if segment.is_syn() || state != flow.life.state {
        let proof = if segment.is_syn() {
            segment.sequence.wrapping_add(1)
        } else {
            flow.life.proof
        };
        let life = Life {
            seen: tables.now(),
            proof,
            state,
            zero: 0,
        };
        tables.note(Stage::Unfinished, key, &life);
        tables.note(Stage::Unfinished, &twin_key(key, flow), &life);
    }
    room.flow = *flow;
    Ok(())
}

/// A backend's packet that no flow explains: to a port that full-nat gives
/// out on an address where services listen, it is late and must not reach the
/// host's stack, whose RST would end a connection; all else is the host's.
#[inline(always)]
fn unexpected(tables: &impl Tables, parsed: &Parsed) -> Verdict {
    let settings = tables.settings();
    let port = u32::from(parsed.key.dst_port.get());
    let ours = port.wrapping_sub(settings.first_port) < settings.port_count;
    if ours && is_service_address(tables, parsed.key.dst) {
        Verdict::OrphanReply
    } else {
        Verdict::NoService
    }
}

/// Takes note of a packet of a flow that exists: of a change of its state at
/// once, of the mere passing of time once a second.
#[inline(always)]
fn live_on(tables: &impl Tables, stage: Stage, key: &FlowKey, flow: &Flow, segment: &Segment) {
    let state = segment.state_after(flow);
    let now = tables.now();
    let stale = now.wrapping_sub(flow.life.seen) >= tables.settings().refresh_ticks;
    if state == flow.life.state && !stale {
        return;
    }
    write_life(
        tables,
        stage,
        key,
        flow,
        Life {
            seen: now,
            state,
            ..flow.life
        },
    );
}

/// Writes how a flow stands into both halves, and makes a lost half again.
#[inline(never)]
fn write_life(tables: &impl Tables, stage: Stage, key: &FlowKey, flow: &Flow, mut life: Life) {
    if flow.one_way() {
        tables.note(stage, key, &life);
        return;
    }
    let other = twin_key(key, flow);
    match tables.flow(stage, &other) {
        Some(half) => {
            // The other side's packets may have been noted on another CPU since
            // `flow` was read; what they said for good stays said.
            life.state |= half.life.state & (ANSWERED | CLIENT_FIN | BACKEND_FIN);
            if half.life.state & ANSWERED != 0 {
                life.proof = half.life.proof;
            }
            tables.note(stage, &other, &life);
        }
        None => {
            let half = Flow {
                life,
                ..twin(key, flow)
            };
            tables.claim(stage, &other, &half);
        }
    }
    tables.note(stage, key, &life);
}

/// Moves both halves to the large table; on failure neither moves. The packet
/// goes on with the flow as it stands there: the place that it left may be
/// another's at once.
#[inline(never)]
fn promote<'a>(tables: &'a impl Tables, key: &FlowKey, flow: &Flow) -> Option<&'a Flow> {
    if flow.one_way() {
        if !tables.keep(Stage::Established, key, flow) {
            return None;
        }
        tables.forget(Stage::Unfinished, key);
        return tables.flow(Stage::Established, key);
    }
    let other = twin_key(key, flow);
    if !tables.keep(Stage::Established, &other, &twin(key, flow)) {
        return None;
    }
    if !tables.keep(Stage::Established, key, flow) {
        tables.forget(Stage::Established, &other);
        return None;
    }
    tables.forget(Stage::Unfinished, key);
    tables.forget(Stage::Unfinished, &other);
    tables.flow(Stage::Established, key)
}

#[inline(never)]
fn forget_both(tables: &impl Tables, stage: Stage, key: &FlowKey, flow: &Flow) {
    // Read before the entry is given up: its place may be another's at once.
    let other = (!flow.one_way()).then(|| twin_key(key, flow));
    tables.forget(stage, key);
    if let Some(other) = other {
        tables.forget(stage, &other);
    }
}

/// How many ticks after its last packet a connection gives its key up.
#[derive(Clone, Copy)]
struct Patience {
    /// One that has ended.
    ended: u32,
    /// One that has not, but has fallen silent.
    idle: u32,
}

/// Begins a connection: the next backend in turn, a source for full-nat, and
/// both halves into the small table.
#[inline(never)]
fn begin(
    tables: &impl Tables,
    key: &FlowKey,
    service: &Party,
    draft: &mut Draft,
    whose: &mut Attribution,
) -> Result<(), Verdict> {
    let number = tables
        .next_backend(service.service)
        .ok_or(Verdict::NoBackend)?;
    whose.backend = number;
    let backend = tables
        .backend(number)
        .filter(|backend| backend.flags & USED != 0)
        .ok_or(Verdict::UnknownBackend)?;
    let flow = &mut draft.forward;
    flow.src = key.src;
    flow.src_port = key.src_port;
    flow.dst = backend.address;
    flow.dst_port = backend.port;
    flow.backend = number;
    flow.service = service.service as u16;
    flow.kind = u16::from(service.forward);
    flow.life = Life {
        seen: tables.now(),
        proof: 0,
        state: 0,
        zero: 0,
    };
    let settings = tables.settings();
    if forward::one_way(service.forward) {
        flow.dst_port = key.dst_port;
        flow.ip_delta = 0;
        flow.transport_delta = 0;
        return if tables.keep(Stage::Unfinished, key, flow) {
            whose.new_flow = true;
            Ok(())
        } else {
            Err(Verdict::FlowTableFull)
        };
    }
    if service.forward == forward::FULL_NAT {
        flow.src = key.dst;
        claim_port(tables, &settings, key, draft)?;
    } else {
        let patience = Patience {
            ended: settings.refresh_ticks,
            idle: settings.idle_ticks,
        };
        if !claim_reply(tables, key, draft, patience) {
            return Err(Verdict::TupleTaken);
        }
    }
    if !tables.keep(Stage::Unfinished, key, &draft.forward) {
        tables.forget(Stage::Unfinished, &draft.reply_key);
        return Err(Verdict::FlowTableFull);
    }
    whose.new_flow = true;
    Ok(())
}

/// Finds a source port towards the backend that no connection uses, and takes
/// it.
///
/// The probes begin at a place that depends on the client's address and port,
/// so that a client which uses its port again most likely gets ours again too:
/// a backend that still has the old connection in TIME-WAIT then sees the
/// sequence numbers and timestamps it expects (RFC 6191). For the same reason
/// the first half of the probes leaves alone what ended within TIME-WAIT.
#[inline(always)]
fn claim_port(
    tables: &impl Tables,
    settings: &Settings,
    key: &FlowKey,
    draft: &mut Draft,
) -> Result<(), Verdict> {
    let start = scatter(&key.src, both_ports(key), settings.seed);
    let mut probe = 0;
    while probe < PORT_PROBES {
        // An odd stride visits different places; the high bits choose the port.
        let place = start.wrapping_add(probe.wrapping_mul(0x9e37_79b9));
        let offset = (u64::from(place) * u64::from(settings.port_count)) >> 32;
        draft.forward.src_port = Be16::new((settings.first_port + offset as u32) as u16);
        let seconds = if probe < PORT_PROBES / 2 {
            TIME_WAIT_SECONDS
        } else {
            1
        };
        let patience = Patience {
            ended: seconds * settings.refresh_ticks,
            idle: settings.idle_ticks,
        };
        if !listened(tables, key, draft) && claim_reply(tables, key, draft, patience) {
            return Ok(());
        }
        probe += 1;
    }
    Err(Verdict::PortsExhausted)
}

/// Whether a service of the address listens on the port itself: then answers
/// to the port would be taken for packets from its clients.
#[inline(always)]
fn listened(tables: &impl Tables, key: &FlowKey, draft: &Draft) -> bool {
    let source = endpoint(
        draft.forward.src,
        draft.forward.src_port,
        key.protocol as u16,
    );
    tables.party(&source).is_some()
}

/// Takes the reply half's key for this connection, by entering it: whoever
/// enters first has it, so no lock is needed. A connection that is over gives
/// its key up.
#[inline(always)]
fn claim_reply(tables: &impl Tables, key: &FlowKey, draft: &mut Draft, patience: Patience) -> bool {
    draft.reply_key = twin_key(key, &draft.forward);
    if !vacate(tables, key, &draft.reply_key, patience) {
        return false;
    }
    complete(key, draft);
    if !tables.claim(Stage::Unfinished, &draft.reply_key, &draft.reply) {
        // Ours all the same if it is left over from an earlier attempt of this client.
        return tables
            .flow(Stage::Unfinished, &draft.reply_key)
            .is_some_and(|taken| leads_to(taken, key))
            && tables.keep(Stage::Unfinished, &draft.reply_key, &draft.reply);
    }
    // Only now is it certain that nobody moves the same key to the large
    // table: they enter it there before they leave it here.
    if tables.flow(Stage::Established, &draft.reply_key).is_some() {
        tables.forget(Stage::Unfinished, &draft.reply_key);
        return false;
    }
    true
}

/// Computes what follows from the forward half's addresses and ports. Not
/// inlined, or the compiler would keep its parts on the stack between probes.
#[inline(never)]
fn complete(key: &FlowKey, draft: &mut Draft) {
    let (ip, transport) = deltas(key, &draft.forward);
    draft.forward.ip_delta = ip.0;
    draft.forward.transport_delta = transport.0;
    draft.reply = twin(key, &draft.forward);
}

/// Whether a reply half belongs to the connection with this forward key: it
/// turns answers into packets from the key's destination to its source.
#[inline(always)]
fn leads_to(reply: &Flow, key: &FlowKey) -> bool {
    reply.src == key.dst
        && reply.dst == key.src
        && reply.src_port == key.dst_port
        && reply.dst_port == key.src_port
}

/// Whether the reply key is free among the established flows, after taking it
/// from a connection that is over.
#[inline(always)]
fn vacate(tables: &impl Tables, key: &FlowKey, reply: &FlowKey, patience: Patience) -> bool {
    let Some(flow) = tables.flow(Stage::Established, reply) else {
        return true;
    };
    let silent = tables.now().wrapping_sub(flow.life.seen);
    let over = ended(flow.life.state) && silent >= patience.ended;
    if !over && silent < patience.idle && !leads_to(flow, key) {
        return false;
    }
    let holder = twin_key(reply, flow);
    tables.forget(Stage::Established, reply);
    // The holder may have begun another connection since, with another port.
    if tables
        .flow(Stage::Established, &holder)
        .is_some_and(|flow| leads_to(flow, reply))
    {
        tables.forget(Stage::Established, &holder);
    }
    true
}

/// Spreads an address and ports evenly over 32 bits (the finaliser of
/// MurmurHash3, word by word).
#[inline(always)]
pub(crate) const fn scatter(address: &Address, ports: u32, seed: u32) -> u32 {
    let [a, b, c, d] = address.words();
    mix(mix(mix(mix(mix(seed ^ a) ^ b) ^ c) ^ d) ^ ports)
}

/// The two ports of a packet as one word.
#[inline(always)]
pub(crate) const fn both_ports(key: &FlowKey) -> u32 {
    (key.src_port.word() as u32) << 16 | key.dst_port.word() as u32
}

#[inline(always)]
const fn mix(word: u32) -> u32 {
    let word = (word ^ (word >> 16)).wrapping_mul(0x85eb_ca6b);
    let word = (word ^ (word >> 13)).wrapping_mul(0xc2b2_ae35);
    word ^ (word >> 16)
}
