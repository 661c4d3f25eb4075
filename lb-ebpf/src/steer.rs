//! Which flow a packet belongs to, and where a new flow goes.
//!
//! ```text
//! may it be to a service?      ── yes ─> connection of a client?  ── yes ─> follow its life, go on
//! may it be from a backend?    ── yes ─> connection of a backend? ── yes ─> follow its life, go on
//!        │ neither: pass
//! destination is a service? ── yes ─> guard, backend, place in the table, source port, publish
//!        │ no
//! source is a backend? ── yes ─> drop what only an ended flow explains, pass the rest
//!        │ no
//!      pass
//! ```
//!
//! A connection is half-open until the client proves that it heard the backend:
//! for TCP by acknowledging the backend's SYN-ACK, for UDP by sending again after
//! an answer. Where the balancer sees only the packets from the client (`dsr`,
//! `tunnel`) there is no answer to wait for: the client's first acknowledgement,
//! or its second datagram, is taken for it. What that is good for is told in
//! [`crate::connections`]: an established connection is displaced by nobody.
//!
//! A known flow costs one look-up. Its backend is asked whether its flows are to
//! end, or to move, only where the flow does not know its next hop: the controller
//! counts such a mark as a change, after which no flow knows it ([`crate::hops`]).
//! Once a second a flow's entry is stamped.
//!
//! What is not needed for a packet of a known flow stands in functions of its
//! own (`inline(never)`): the known path stays short. What it needs is inlined as far
//! as the verifier bears it: where the kernel guards returns against speculation (Zen's
//! "safe RET"), each call costs about 7 ns, which is a tenth of such a packet
//! (docs/cost.md).

use lb_common::abi::backend::{REHASH, RESET as GONE, USED};
use lb_common::abi::{Flow, FlowKey, Life, NOBODY, Party, TCP, forward, role, sieve, tag};
use lb_common::flow::{
    ANSWERED, ESTABLISHED, ONE_WAY, RESET, change, deltas, ended, opens, proves, reopens, tcp_flag,
};
use lb_common::{Address, Be16, Verdict};

use crate::connections::{self, Claimed, Hash, NOWHERE};
use crate::guard;
use crate::hops;
use crate::packet::{Packet, Tcp};
use crate::parse::{Parsed, Part};
use crate::room::{Draft, Room, found};
use crate::schedule;
use crate::tables::{Displaced, Tables, endpoint, is_service_address};

/// How many ports full-nat tries before it gives up. With half of the ports
/// taken, one connection in 65,536 would find none.
const PORT_PROBES: u32 = 16;

/// How long Linux keeps a connection in TIME-WAIT.
const TIME_WAIT_SECONDS: u32 = 60;

/// A handshake that was displaced within so many stamps of its beginning
/// (about three seconds) may have been an honest client's.
const YOUNG: u32 = 6;

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

    /// Whether this asks for a new connection where the old one has ended: a
    /// client that uses its port again.
    #[inline(always)]
    const fn reopens(&self, flow: &Flow) -> bool {
        !flow.is_reply() && reopens(flow.life.state) && opens(self.flags)
    }

    #[inline(always)]
    const fn is_syn(&self) -> bool {
        self.flags & tcp_flag::SYN != 0
    }
}

/// Finds the packet's flow, or begins one.
#[inline(always)]
pub fn steer(
    packet: &mut impl Packet,
    tables: &impl Tables,
    room: &mut Room,
) -> Result<(), Verdict> {
    room.max_mss = 0;
    room.anew = 0;
    match find(tables, &room.parsed.key, &mut room.flow) {
        Found::Flow => {
            room.whose.flow(&room.flow);
            room.parsed.sound(packet.length())?;
            let segment = Segment::of(packet, &room.parsed)?;
            hops::recall(tables, room);
            let marks = marks(tables, room, &segment);
            if !segment.reopens(&room.flow) && marks == 0 {
                live_on(tables, &room.parsed.key, &room.flow, &segment);
                if segment.is_syn() {
                    room.max_mss = largest_segment(tables, &room.parsed.key, &room.flow);
                }
                return Ok(());
            }
            part(tables, room, &segment, marks)?;
        }
        Found::Nothing => {}
        Found::Stranger => return Err(Verdict::NoService),
    }
    unfamiliar(packet, tables, room)
}

/// What is known of a packet.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    /// It is to no service and from no backend.
    Stranger,
    /// It is of no connection.
    Nothing,
    /// It is of a connection.
    Flow,
}

/// Looks for the packet's connection.
#[inline(always)]
fn find(tables: &impl Tables, key: &FlowKey, flow: &mut Flow) -> Found {
    let may_ask = tables.may_have(sieve::SERVICES, &key.dst, key.dst_port);
    if may_ask && connections::of_client(tables, key, flow) {
        return Found::Flow;
    }
    let may_answer = tables.may_have(sieve::BACKENDS, &key.src, key.src_port);
    if may_answer && connections::of_backend(tables, key, flow) {
        return Found::Flow;
    }
    if may_ask || may_answer {
        Found::Nothing
    } else {
        Found::Stranger
    }
}

/// What the flow's backend has for marks that concern this packet: that TCP is
/// to be reset, or that a client's packet goes to another backend. A packet
/// with which no flow could begin there does not: it would only end the old one.
#[inline(always)]
fn marks(tables: &impl Tables, room: &mut Room, segment: &Segment) -> u8 {
    if room.known != 0 {
        return 0;
    }
    let marks = match tables.backend(room.flow.backend) {
        Some(backend) => backend.flags & (GONE | REHASH),
        None => 0,
    };
    if marks == 0 {
        return 0;
    }
    room.marked = 1;
    let tcp = room.parsed.key.protocol == u32::from(TCP);
    if marks & GONE != 0 && tcp {
        GONE
    } else if room.flow.is_reply()
        || room.parsed.part == Part::Later
        || tcp && !opens(segment.flags) && !guard::goes_on(segment.flags)
    {
        0
    } else {
        marks
    }
}

/// Lets a packet part from its flow: it is answered with a RST, or the flow makes
/// way for one that it begins. Where there is no backend for that one, it stays as
/// it is.
#[inline(never)]
fn part(
    tables: &impl Tables,
    room: &mut Room,
    segment: &Segment,
    marks: u8,
) -> Result<(), Verdict> {
    let tcp = room.parsed.key.protocol == u32::from(TCP);
    let begins = !room.flow.is_reply() && opens(segment.flags);
    if marks & GONE != 0 && tcp && !begins {
        connections::advance(tables, &room.flow, 0, RESET, stamp(tables));
        return Err(Verdict::FlowReset);
    }
    if tables.slots(u32::from(room.flow.service)) == 0 {
        room.whose.backend = NOBODY;
        return Err(Verdict::NoBackend);
    }
    connections::remove(tables, room.flow.place, room.flow.life.version);
    room.whose = Attribution::NOBODY;
    room.anew = 1;
    room.known = 0;
    Ok(())
}

/// A packet of no known flow.
#[inline(never)]
fn unfamiliar(
    packet: &mut impl Packet,
    tables: &impl Tables,
    room: &mut Room,
) -> Result<(), Verdict> {
    room.epoch = tables.epoch();
    let key = &room.parsed.key;
    let to = tables.party(&endpoint(key.dst, key.dst_port, key.protocol as u16));
    if let Some(service) = to.filter(|party| party.roles & role::SERVICE != 0) {
        return from_client(packet, tables, room, &service);
    }
    let from = tables.party(&endpoint(key.src, key.src_port, key.protocol as u16));
    if from.is_some_and(|party| party.roles & role::BACKEND != 0) {
        return Err(unexpected(tables, &room.parsed));
    }
    Err(Verdict::NoService)
}

/// A packet to a service that is of no known flow.
#[inline(always)]
fn from_client(
    packet: &mut impl Packet,
    tables: &impl Tables,
    room: &mut Room,
    service: &Party,
) -> Result<(), Verdict> {
    let Room {
        parsed,
        flow,
        whose,
        draft,
        anew,
        marked,
        ..
    } = room;
    *whose = Attribution {
        service: service.service,
        ..Attribution::NOBODY
    };
    parsed.sound(packet.length())?;
    let segment = Segment::of(packet, parsed)?;
    if segment.is_syn() {
        room.max_mss = u32::from(service.max_mss);
    }
    if parsed.part == Part::Later {
        return Err(Verdict::NoFlow);
    }
    let late = schedule::may_be_late(tables, service.forward);
    guard::admit(parsed, segment.flags, late || *anew != 0)?;
    draft.late = u32::from(late && guard::goes_on(segment.flags));
    draft.hash = Hash::of(&parsed.key, tables.settings().seed);
    begin(tables, &parsed.key, service, draft, whose)?;
    *flow = draft.forward;
    *marked = draft.marked;
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
fn live_on(tables: &impl Tables, key: &FlowKey, flow: &Flow, segment: &Segment) {
    let (off, mut on) = change(flow.is_reply(), segment.flags);
    let state = flow.life.state;
    if state & ESTABLISHED == 0 {
        if flow.is_reply() {
            on |= ANSWERED;
            if segment.is_syn() {
                connections::expect(tables, flow.place, segment.sequence.wrapping_add(1));
            }
        } else if proved(key, flow, segment) {
            on |= ESTABLISHED;
        }
    }
    let now = tables.now();
    if now.wrapping_sub(flow.life.seen) >= tables.settings().refresh_ticks {
        connections::touch(tables, flow.place, now);
    }
    if state & !off | on != state {
        connections::advance(tables, flow, off, on, stamp(tables));
    }
}

/// The coarse time in tags.
#[inline(always)]
fn stamp(tables: &impl Tables) -> u32 {
    tables.now() >> (tables.settings().stamp_shift & 31)
}

/// Begins a connection: a backend, a place in the table, and where answers come
/// by here, a key for them. What one step knows and the next needs stands in the
/// draft, so that to the verifier all ways through the first are one to the second.
#[inline(always)]
fn begin(
    tables: &impl Tables,
    key: &FlowKey,
    service: &Party,
    draft: &mut Draft,
    whose: &mut Attribution,
) -> Result<(), Verdict> {
    address(tables, key, service, draft, whose)?;
    enter(tables, key, draft)?;
    whose.new_flow = true;
    Ok(())
}

/// Chooses a backend, and drafts what becomes of the client's packets.
#[inline(always)]
fn address(
    tables: &impl Tables,
    key: &FlowKey,
    service: &Party,
    draft: &mut Draft,
    whose: &mut Attribution,
) -> Result<(), Verdict> {
    let one_way = forward::one_way(service.forward);
    let number = schedule::choose(tables, key, service.service, one_way, draft)?;
    whose.backend = number;
    let backend = tables
        .backend(number)
        .filter(|backend| backend.flags & USED != 0)
        .ok_or(Verdict::UnknownBackend)?;
    draft.marked = u32::from(backend.flags & (GONE | REHASH));
    let flow = &mut draft.forward;
    flow.src = key.src;
    flow.src_port = key.src_port;
    flow.dst = backend.address;
    flow.dst_port = if one_way { key.dst_port } else { backend.port };
    flow.backend = number;
    flow.service = service.service as u16;
    flow.kind = u16::from(service.forward);
    flow.ip_delta = 0;
    flow.transport_delta = 0;
    flow.hop = 0;
    flow.spread = draft.hash.spread();
    flow.life = Life {
        seen: tables.now(),
        proof: 0,
        state: if one_way { ONE_WAY } else { 0 },
        version: 0,
    };
    if service.forward == forward::FULL_NAT {
        flow.src = key.dst;
    }
    Ok(())
}

/// Takes a place in the table, and the key of the answers, and lets the connection
/// live.
#[inline(always)]
fn enter(tables: &impl Tables, key: &FlowKey, draft: &mut Draft) -> Result<(), Verdict> {
    take_place(tables, key, draft)?;
    let claimed = match draft.forward.forward() {
        forward::FULL_NAT => claim_port(tables, key, draft),
        forward::NAT => claim_tuple(tables, key, draft),
        _ => Ok(()),
    };
    if claimed.is_err() {
        connections::abandon(tables, draft.forward.place);
        return claimed;
    }
    let state = draft.forward.life.state;
    draft.forward.life.version =
        connections::publish(tables, draft.forward.place, stamp(tables), state);
    Ok(())
}

/// Takes a place in the table, and writes the connection there.
#[inline(always)]
fn take_place(tables: &impl Tables, key: &FlowKey, draft: &mut Draft) -> Result<(), Verdict> {
    if !connections::take(tables, draft.hash, stamp(tables), &mut draft.search) {
        return Err(Verdict::FlowTableFull);
    }
    let seat = &draft.search.seat;
    if seat.displaced == tag::CLOSED {
        tables.displace(Displaced::Ended);
    } else if seat.displaced == tag::HALF_OPEN {
        tables.displace(Displaced::Handshake);
        if seat.age < YOUNG {
            tables.churn();
        }
    }
    draft.forward.place = seat.place;
    connections::write(tables, seat, key, &draft.forward);
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
///
/// If all are taken, the one among them that has been half-open for longest gives
/// its port up: a flood of forged clients cannot hold the ports.
///
/// Looking and taking are apart, and looking is what is repeated: the verifier
/// goes through every repetition. Where two CPUs find the same port in the same
/// microsecond, one of them has it, and the other's packet is dropped; its sender
/// sends it again.
#[inline(always)]
fn claim_port(tables: &impl Tables, key: &FlowKey, draft: &mut Draft) -> Result<(), Verdict> {
    draft.ports.start = scatter(&key.src, both_ports(key), tables.settings().seed);
    draft.ports.probes = 0;
    draft.ports.found = found::NOTHING;
    draft.ports.waited = 0;
    let mut probes = 0;
    while probes < PORT_PROBES && !probe(tables, key, draft) {
        probes += 1;
    }
    if draft.ports.found != found::NOTHING && settle(tables, key, draft) {
        Ok(())
    } else {
        Err(refusal(draft, Verdict::PortsExhausted))
    }
}

/// Why a connection got no key for its answers: there was no room for it, or the
/// other reason.
#[inline(always)]
fn refusal(draft: &Draft, otherwise: Verdict) -> Verdict {
    if draft.ports.found == found::FULL {
        Verdict::FlowTableFull
    } else {
        otherwise
    }
}

/// Looks at one port; whether it is as good as any.
#[inline(never)]
fn probe(tables: &impl Tables, key: &FlowKey, draft: &mut Draft) -> bool {
    let settings = tables.settings();
    let probes = draft.ports.probes;
    draft.ports.probes = probes.wrapping_add(1);
    // An odd stride visits different places; the high bits choose the port.
    let place = (draft.ports.start).wrapping_add(probes.wrapping_mul(0x9e37_79b9));
    let offset = (u64::from(place) * u64::from(settings.port_count)) >> 32;
    draft.forward.src_port = Be16::new((settings.first_port + offset as u32) as u16);
    draft.ports.rest = if probes < PORT_PROBES / 2 {
        TIME_WAIT_SECONDS * settings.refresh_ticks
    } else {
        settings.refresh_ticks
    };
    !listened(tables, key, draft) && look(tables, key, draft)
}

/// Whether a service of the address listens on the port itself: then answers
/// to the port would be taken for packets from its clients.
#[inline(always)]
fn listened(tables: &impl Tables, key: &FlowKey, draft: &Draft) -> bool {
    let (address, port) = (draft.forward.src, draft.forward.src_port);
    let may_be = tables.may_have(sieve::SERVICES, &address, port)
        || tables.may_have(sieve::BACKENDS, &address, port);
    may_be && (tables.party(&endpoint(address, port, key.protocol as u16))).is_some()
}

/// Takes the one key that the answers to a client have in nat mode.
#[inline(always)]
fn claim_tuple(tables: &impl Tables, key: &FlowKey, draft: &mut Draft) -> Result<(), Verdict> {
    draft.ports.found = found::NOTHING;
    draft.ports.waited = 0;
    draft.ports.rest = tables.settings().refresh_ticks;
    look(tables, key, draft);
    let over = draft.ports.found == found::FREE || draft.ports.found == found::OVER;
    if over && settle(tables, key, draft) {
        Ok(())
    } else {
        Err(refusal(draft, Verdict::TupleTaken))
    }
}

/// Looks at who has the key of the answers that the draft would get with its
/// source port, and remembers it if that is the best so far; whether it is free
/// for the taking. A connection gives it up that has fallen silent, or that has
/// ended and rested.
#[inline(always)]
fn look(tables: &impl Tables, key: &FlowKey, draft: &mut Draft) -> bool {
    name_answers(key, draft);
    let Draft {
        forward,
        reply_key,
        ports,
        ..
    } = draft;
    let holder = connections::occupant(tables, reply_key);
    if holder == NOWHERE {
        ports.found = found::FREE;
        ports.port = u32::from(forward.src_port.get());
        return true;
    }
    let Some(entry) = tables.connection(holder) else {
        return false;
    };
    let (state, version) = connections::stands(entry);
    // In this order: a packet that is noted in between is not ahead of the time.
    let seen = entry.seen.load();
    let silent = since(tables.now(), seen);
    let over = ended(state) && silent >= ports.rest || silent >= tables.settings().idle_ticks;
    let half_open = state & ESTABLISHED == 0 && !ended(state);
    let waited = (silent >> (tables.settings().stamp_shift.saturating_sub(4) & 31)).wrapping_add(1);
    if over || half_open && waited > ports.waited {
        ports.found = if over { found::OVER } else { found::HALF_OPEN };
        ports.port = u32::from(forward.src_port.get());
        ports.holder = holder;
        ports.version = version;
        ports.waited = waited;
    }
    over
}

/// How many ticks ago that was. The controller, whose clock is an estimate, may have
/// noted a time that is still to come: then none.
#[inline(always)]
const fn since(now: u32, then: u32) -> u32 {
    let ago = now.wrapping_sub(then);
    if ago > u32::MAX / 2 { 0 } else { ago }
}

/// Takes what was found, from whoever has it.
#[inline(always)]
fn settle(tables: &impl Tables, key: &FlowKey, draft: &mut Draft) -> bool {
    if draft.ports.found != found::FREE {
        if !connections::remove(tables, draft.ports.holder, draft.ports.version) {
            return false;
        }
        if draft.ports.found == found::HALF_OPEN {
            tables.displace(Displaced::Port);
        }
    }
    draft.forward.src_port = Be16::new(draft.ports.port as u16);
    name_answers(key, draft);
    let (ip, transport) = deltas(key, &draft.forward);
    draft.forward.ip_delta = ip.0;
    draft.forward.transport_delta = transport.0;
    let Draft {
        forward,
        reply_key,
        ports,
        ..
    } = draft;
    let claimed = connections::claim(tables, reply_key, forward.place, forward);
    if claimed == Claimed::NoRoom {
        ports.found = found::FULL;
    }
    claimed == Claimed::Yes
}

/// The key of the answers, field by field: put together on the stack first, its
/// address would be left in the register of the result, which the verifier
/// refuses.
#[inline(always)]
fn name_answers(key: &FlowKey, draft: &mut Draft) {
    let Draft {
        forward, reply_key, ..
    } = draft;
    reply_key.src = forward.dst;
    reply_key.dst = forward.src;
    reply_key.src_port = forward.dst_port;
    reply_key.dst_port = forward.src_port;
    reply_key.protocol = key.protocol;
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
