//! What flows remember of their way (`lb_ebpf::hops`): when the routing table is
//! asked, when it is not, and that every packet goes where the table would have it.
//! On the host, where the table's answers, its epochs and what happens meanwhile are
//! the test's to choose.

use std::cell::{Cell, RefCell};

use lb_common::abi::{Connection, Flow, TCP, UDP, backend, forward, hop, shared};
use lb_common::{Verdict, Word};
use lb_ebpf::{Hop, LinkAddress, Memory as _, Room, RouteQuery, Tables as _, connections};
use tests::frame::{Frame, IcmpError, icmp_error, key, ping, tcp, udp};
use tests::host::{HEADROOM, HostPacket, HostTables, room};
use tests::network::{self, Device, LAN, WAN};
use tests::world::{STEADY, World};

const MODES: [u8; 4] = [
    forward::FULL_NAT,
    forward::NAT,
    forward::DSR,
    forward::TUNNEL,
];

/// Who takes part, in one family.
#[derive(Debug)]
struct Cast {
    client: &'static str,
    service: &'static str,
    /// What full-nat makes of the client: [`STEADY`] has one port.
    source: &'static str,
    backends: [&'static str; 2],
    /// Somebody on the way to the backends.
    router: &'static str,
}

static V4: Cast = Cast {
    client: "198.51.100.7:51000",
    service: "203.0.113.10:80",
    source: "203.0.113.10:40000",
    backends: ["10.0.1.11:8080", "10.0.1.12:8080"],
    router: "10.0.1.254",
};

static V6: Cast = Cast {
    client: "[2001:db8:100::7]:51000",
    service: "[2001:db8:10::10]:80",
    source: "[2001:db8:10::10]:40000",
    backends: ["[fd00:1::11]:8080", "[fd00:1::12]:8080"],
    router: "fd00:1::fe",
};

/// The last bytes of the backends' and the client's link addresses.
const FIRST: u8 = 11;
const SECOND: u8 = 12;
const CLIENT: u8 = 7;

/// What became of a packet.
#[derive(Debug, PartialEq)]
struct Gone {
    verdict: Verdict,
    frame: Vec<u8>,
    /// How often the routing table was asked.
    asked: u32,
}

impl Gone {
    /// The link address it leaves for.
    fn to(&self) -> &[u8] {
        &self.frame[..6]
    }

    /// It went without a question, or with one, to this neighbour of a device.
    fn went(&self, asked: u32, device: &Device, last: u8) {
        let redirected = self.verdict.action() == lb_common::Action::Redirect;
        assert!(redirected, "{:?}", self.verdict);
        assert_eq!(self.asked, asked, "questions to the routing table");
        assert_eq!(self.to(), device.neighbour(last));
    }
}

/// One service, two backends in turn, and a client.
struct Scene {
    tables: HostTables,
    mode: u8,
    cast: &'static Cast,
}

impl Scene {
    /// Over TCP; somebody vouches for every change.
    fn new(mode: u8, cast: &'static Cast) -> Self {
        Self::of(TCP, mode, cast, cast.backends)
    }

    fn of(protocol: u8, mode: u8, cast: &'static Cast, backends: [&'static str; 2]) -> Self {
        let [first, second] = backends;
        let world = World::empty()
            .with(STEADY)
            .service(protocol, mode, cast.service, &[0, 1])
            .backend(first)
            .backend(second);
        let tables = HostTables::new(&world);
        tables.vouch(1);
        Self { tables, mode, cast }
    }

    /// Every mode over either family.
    fn all() -> impl Iterator<Item = Self> {
        [&V4, &V6]
            .into_iter()
            .flat_map(|cast| MODES.map(|mode| Self::new(mode, cast)))
    }

    /// Where answers come by here, likewise.
    fn two_way() -> impl Iterator<Item = Self> {
        Self::all().filter(|scene| !forward::one_way(scene.mode))
    }

    fn asks(&self) -> Frame {
        tcp(self.cast.client, self.cast.service).ack(78)
    }

    fn answers(&self) -> Frame {
        let to = if self.mode == forward::FULL_NAT {
            self.cast.source
        } else {
            self.cast.client
        };
        tcp(self.cast.backends[0], to).ack(78)
    }

    fn client_sends(&self, frame: &Frame) -> Gone {
        process(&self.tables, &WAN, frame)
    }

    fn backend_sends(&self, frame: &Frame) -> Gone {
        process(&self.tables, &LAN, frame)
    }

    /// The connection begins, and its way is known.
    fn begun(self) -> Self {
        self.client_sends(&self.asks().syn()).went(1, &LAN, FIRST);
        self
    }

    /// The connection as its client's packets find it.
    fn flow(&self) -> Flow {
        let mut flow = Flow::default();
        let client = key(TCP, self.cast.client, self.cast.service);
        assert!(connections::of_client(&self.tables, &client, &mut flow));
        flow
    }

    /// What it has noted, for either direction.
    fn notes(&self) -> [u64; 2] {
        let entry: &Connection = (self.tables.connection(self.flow().place)).expect("its place");
        entry.hops.each_ref().map(Word::load)
    }
}

thread_local! {
    /// As in the kernel, what an earlier packet has left is still in it.
    static ROOM: RefCell<Box<Room>> = RefCell::new(room());
}

fn process(tables: &HostTables, on: &Device, frame: &Frame) -> Gone {
    let mut packet = HostPacket {
        bytes: frame.bytes(),
        ingress: on.index,
        headroom: HEADROOM,
    };
    let before = tables.asked();
    let verdict = ROOM.with(|own| match own.try_borrow_mut() {
        Ok(mut room) => lb_ebpf::process(&mut packet, tables, &mut room),
        // On another CPU, while this one's packet is under way.
        Err(_) => lb_ebpf::process(&mut packet, tables, &mut room()),
    });
    Gone {
        verdict,
        frame: packet.bytes,
        asked: tables.asked() - before,
    }
}

/// The neighbours of the interface of backends have other link addresses than they
/// had.
fn moved(_: &HostTables, query: &mut RouteQuery) -> Result<Hop, Verdict> {
    let mut hop = network::hop(query)?;
    if hop.egress == LAN.index {
        hop.dst_link = LinkAddress::new(LAN.neighbour(99));
    }
    Ok(hop)
}

#[test]
fn from_its_second_packet_on_a_flow_knows_its_way() {
    for scene in Scene::all().map(Scene::begun) {
        for _ in 0..3 {
            scene.client_sends(&scene.asks()).went(0, &LAN, FIRST);
        }
    }
}

#[test]
fn the_way_to_the_client_is_noted_beside_that_to_the_backend() {
    for scene in Scene::two_way().map(Scene::begun) {
        let syn_ack = scene.answers().syn_ack(1).seq(77);
        scene.backend_sends(&syn_ack).went(1, &WAN, CLIENT);
        for _ in 0..3 {
            scene.client_sends(&scene.asks()).went(0, &LAN, FIRST);
            scene.backend_sends(&scene.answers()).went(0, &WAN, CLIENT);
        }
    }
}

#[test]
fn a_tunnel_of_either_family_around_either_is_known() {
    for (cast, backends) in [(&V4, V6.backends), (&V6, V4.backends)] {
        let scene = Scene::of(TCP, forward::TUNNEL, cast, backends).begun();
        scene.client_sends(&scene.asks()).went(0, &LAN, FIRST);
    }
}

#[test]
fn what_the_table_says_after_a_change_is_obeyed_at_once() {
    for scene in Scene::all().map(Scene::begun) {
        scene.tables.route_by(moved);
        scene.client_sends(&scene.asks()).went(0, &LAN, FIRST);
        scene.tables.count_change();
        scene.client_sends(&scene.asks()).went(1, &LAN, 99);
        scene.client_sends(&scene.asks()).went(0, &LAN, 99);
    }
}

#[test]
fn the_same_answer_after_a_change_is_noted_again() {
    for scene in Scene::two_way().map(Scene::begun) {
        scene.backend_sends(&scene.answers()).went(1, &WAN, CLIENT);
        for _ in 0..10 {
            scene.tables.count_change();
            scene.client_sends(&scene.asks()).went(1, &LAN, FIRST);
            scene.client_sends(&scene.asks()).went(0, &LAN, FIRST);
            scene.backend_sends(&scene.answers()).went(1, &WAN, CLIENT);
            scene.backend_sends(&scene.answers()).went(0, &WAN, CLIENT);
        }
    }
}

#[test]
fn where_nobody_vouches_a_flow_asks_once_a_tick() {
    for scene in Scene::all() {
        for tick in 1..10 {
            scene.tables.set_now(tick);
            scene.tables.vouch(tick);
            let (first, syn) = (tick == 1, scene.asks().syn());
            let frame = if first { syn } else { scene.asks() };
            scene.client_sends(&frame).went(1, &LAN, FIRST);
            scene.client_sends(&scene.asks()).went(0, &LAN, FIRST);
        }
        // A change that is counted is obeyed within the tick.
        scene.tables.route_by(moved);
        scene.tables.count_change();
        scene.client_sends(&scene.asks()).went(1, &LAN, 99);
    }
}

#[test]
fn a_packet_of_another_traffic_class_asks_and_one_that_met_congestion_does_not() {
    const EXPEDITED: u8 = 0xb8;
    for scene in Scene::all().map(Scene::begun) {
        for ecn in 0..4 {
            scene
                .client_sends(&scene.asks().tos(ecn))
                .went(0, &LAN, FIRST);
        }
        let expedited = |ecn| scene.client_sends(&scene.asks().tos(EXPEDITED | ecn));
        expedited(0).went(1, &LAN, FIRST);
        expedited(3).went(0, &LAN, FIRST);
        scene.client_sends(&scene.asks()).went(1, &LAN, FIRST);
    }
}

#[test]
fn a_packet_that_comes_by_another_interface_asks() {
    for scene in Scene::all().map(Scene::begun) {
        let by_lan = process(&scene.tables, &LAN, &scene.asks());
        assert_eq!((by_lan.verdict, by_lan.asked), (Verdict::ForwardTx, 1));
        let again = process(&scene.tables, &LAN, &scene.asks());
        assert_eq!((again.verdict, again.asked), (Verdict::ForwardTx, 0));
        scene.client_sends(&scene.asks()).went(1, &LAN, FIRST);
    }
}

#[test]
fn a_packet_that_is_too_long_for_the_way_asks_and_leaves_the_note_as_it_is() {
    let lengths = [1300, 1420, 1440, 1460, 1461, 1481, 1500, 3000];
    for scene in Scene::all().map(Scene::begun) {
        // The same where nothing is ever noted.
        let other = Scene::new(scene.mode, scene.cast);
        other.tables.vouch(0);
        other.client_sends(&other.asks().syn());
        let notes = scene.notes();
        for length in lengths {
            for whole in [true, false] {
                let frame = scene.asks().payload(&vec![7; length]);
                let frame = if whole { frame.dont_fragment() } else { frame };
                let here = scene.client_sends(&frame);
                let there = other.client_sends(&frame);
                assert_eq!(there.asked, 1);
                assert_eq!(here.verdict, there.verdict, "{length}");
                assert_eq!(here.frame, there.frame, "{length}");
                let fits = here.verdict == Verdict::ForwardRedirect;
                assert_eq!(here.asked, u32::from(!fits), "{length}");
            }
        }
        assert_eq!(scene.notes(), notes);
        scene.client_sends(&scene.asks()).went(0, &LAN, FIRST);
    }
}

#[test]
fn a_note_that_comes_when_the_place_is_anothers_is_not_used() {
    for scene in Scene::all() {
        let again = Cell::new(true);
        let (asks, cast) = (scene.asks(), scene.cast);
        scene.tables.route_by(move |tables, query| {
            let hop = network::hop(query)?;
            if again.take() {
                // Until this answer is noted the connection ends, and the client
                // begins another, which is given the second backend.
                let mut flow = Flow::default();
                let client = key(TCP, cast.client, cast.service);
                assert!(connections::of_client(tables, &client, &mut flow));
                assert!(connections::remove(tables, flow.place, flow.life.version));
                let begun = process(tables, &WAN, &asks.clone().syn());
                assert_eq!(begun.to(), LAN.neighbour(SECOND));
            }
            Ok(hop)
        });
        let late = scene.client_sends(&scene.asks().syn());
        assert_eq!(late.to(), LAN.neighbour(FIRST));
        assert_ne!(scene.notes()[0], 0, "the note has come");
        scene.client_sends(&scene.asks()).went(1, &LAN, SECOND);
        scene.client_sends(&scene.asks()).went(0, &LAN, SECOND);
    }
}

#[test]
fn a_note_of_an_entry_that_was_written_anew_is_not_used() {
    for scene in Scene::all().map(Scene::begun) {
        let number = scene.notes()[0] & hop::NUMBER;
        let entry = scene.tables.hop(number as u32 - 1).expect("it is noted");
        // For another next hop, in the same epoch.
        entry.version.store(entry.version.load() + 2);
        entry
            .dst_link
            .store(LinkAddress::new(LAN.neighbour(99)).word());
        scene.client_sends(&scene.asks()).went(1, &LAN, FIRST);
        scene.client_sends(&scene.asks()).went(0, &LAN, FIRST);
    }
}

#[test]
fn a_note_of_an_entry_that_is_being_written_is_not_used() {
    for scene in Scene::all().map(Scene::begun) {
        let number = scene.notes()[0] & hop::NUMBER;
        let entry = scene.tables.hop(number as u32 - 1).expect("it is noted");
        let version = entry.version.load();
        entry.version.store(version | 1);
        scene.client_sends(&scene.asks()).went(1, &LAN, FIRST);
        assert_eq!(
            entry.version.load(),
            version | 1,
            "it is another's to write"
        );
        // It stands in another place now.
        scene.client_sends(&scene.asks()).went(0, &LAN, FIRST);
    }
}

#[test]
fn a_next_hop_for_which_there_is_no_place_is_asked_for_each_time() {
    for scene in Scene::all() {
        let tables = &scene.tables;
        for number in 0..hop::PLACES {
            let entry = tables.hop(number).expect("there are as many");
            entry.version.store(2);
            entry.epoch.store(tables.epoch());
            entry.egress.store(WAN.index);
        }
        let scene = scene.begun();
        for _ in 0..3 {
            scene.client_sends(&scene.asks()).went(1, &LAN, FIRST);
        }
        assert_eq!(scene.notes(), [0, 0]);
        // What is from another epoch makes room.
        scene.tables.count_change();
        scene.client_sends(&scene.asks()).went(1, &LAN, FIRST);
        scene.client_sends(&scene.asks()).went(0, &LAN, FIRST);
    }
}

#[test]
fn a_next_hop_without_an_mtu_is_not_noted() {
    for scene in Scene::all() {
        scene.tables.route_by(|_, query| {
            let hop = network::hop(query)?;
            query.mtu = 0;
            Ok(hop)
        });
        let scene = scene.begun();
        scene.client_sends(&scene.asks()).went(1, &LAN, FIRST);
        assert_eq!(scene.notes(), [0, 0]);
    }
}

#[test]
fn a_flow_that_begins_anew_goes_to_its_new_backend() {
    for scene in Scene::all().map(Scene::begun) {
        let fin = scene.client_sends(&scene.asks().fin());
        fin.went(0, &LAN, FIRST);
        if !forward::one_way(scene.mode) {
            scene.backend_sends(&scene.answers().fin());
        }
        scene
            .client_sends(&scene.asks().syn())
            .went(1, &LAN, SECOND);
        scene.client_sends(&scene.asks()).went(0, &LAN, SECOND);
    }
}

const GOOD: u8 = backend::USED | backend::UP | backend::OPEN;

#[test]
fn connections_of_a_backend_that_is_gone_end_once_the_change_is_counted() {
    for mut scene in Scene::all().map(Scene::begun) {
        scene.tables.mark(0, GOOD | backend::RESET);
        scene.client_sends(&scene.asks()).went(0, &LAN, FIRST);
        scene.tables.count_change();
        let ended = scene.client_sends(&scene.asks());
        assert_eq!(ended.verdict, Verdict::FlowReset);
    }
}

#[test]
fn connections_of_a_backend_move_once_the_change_is_counted() {
    for mut scene in Scene::all().map(Scene::begun) {
        scene.tables.mark(0, GOOD | backend::REHASH);
        scene.tables.set_slots(0, &[1]);
        scene.client_sends(&scene.asks()).went(0, &LAN, FIRST);
        scene.tables.count_change();
        scene.client_sends(&scene.asks()).went(1, &LAN, SECOND);
        scene.client_sends(&scene.asks()).went(0, &LAN, SECOND);
    }
}

#[test]
fn a_flow_that_begins_on_a_marked_backend_notes_nothing() {
    for mark in [backend::RESET, backend::REHASH] {
        for mut scene in Scene::all() {
            scene.tables.mark(0, GOOD | mark);
            let scene = scene.begun();
            assert_eq!(scene.notes(), [0, 0]);
        }
    }
}

/// An answer of a backend whose flows are to move still goes to the client, and its
/// flow is looked at each time.
#[test]
fn answers_of_a_marked_backend_are_not_noted() {
    for mut scene in Scene::two_way().map(Scene::begun) {
        scene.tables.mark(0, GOOD | backend::REHASH);
        scene.tables.count_change();
        for _ in 0..3 {
            scene.backend_sends(&scene.answers()).went(1, &WAN, CLIENT);
        }
        scene.tables.mark(0, GOOD);
        scene.backend_sends(&scene.answers()).went(1, &WAN, CLIENT);
        scene.backend_sends(&scene.answers()).went(0, &WAN, CLIENT);
    }
}

#[test]
fn errors_and_pings_neither_use_notes_nor_make_any() {
    for scene in Scene::two_way().map(Scene::begun) {
        scene.client_sends(&scene.asks());
        let notes = scene.notes();
        // About a packet to the backend, as it left here.
        let about = scene.answers().answered();
        let to = if scene.mode == forward::FULL_NAT {
            scene.cast.source
        } else {
            scene.cast.client
        };
        let error = icmp_error(
            scene.cast.router,
            to,
            IcmpError::TimeExceeded,
            &about,
            usize::MAX,
        );
        for _ in 0..3 {
            scene.backend_sends(&error).went(1, &WAN, CLIENT);
            let asked = ping(scene.cast.client, scene.cast.service, 1, 2, b"ping");
            let answered = scene.client_sends(&asked);
            assert_eq!(answered.verdict, Verdict::EchoReply);
            assert_eq!(answered.asked, 0);
        }
        assert_eq!(scene.notes(), notes);
        scene.client_sends(&scene.asks()).went(0, &LAN, FIRST);
    }
}

#[test]
fn fragments_go_the_way_that_their_flow_knows() {
    for cast in [&V4, &V6] {
        for mode in MODES {
            let scene = Scene::of(UDP, mode, cast, cast.backends);
            let whole = udp(cast.client, cast.service).payload(&[7; 101]);
            scene.client_sends(&whole).went(1, &LAN, FIRST);
            for fragment in whole.identified(7).fragments(48) {
                scene.client_sends(&fragment).went(0, &LAN, FIRST);
            }
        }
    }
}

#[test]
fn flows_to_one_next_hop_share_an_entry() {
    let scene = Scene::of(TCP, forward::DSR, &V4, V4.backends);
    for port in 51_000..51_100 {
        let client = format!("198.51.100.7:{port}");
        scene.client_sends(&tcp(&client, V4.service).syn());
    }
    let used = (0..hop::PLACES)
        .filter_map(|number| scene.tables.hop(number))
        .filter(|entry| entry.version.load() != 0);
    assert_eq!(used.count(), 2, "there are two backends");
}

/// As at 1000 Hz: the longest that anybody vouches for.
const HZ: u32 = 1000;

/// The counter begins 300 seconds before it wraps.
const BOOT: u32 = (300 * HZ).wrapping_neg();

/// Times all over the counter's range, those near its ends among them.
fn times() -> impl Iterator<Item = u32> {
    let ends = [0, 1, HZ, 1 << 31, BOOT, u32::MAX - HZ, u32::MAX];
    let mut random = fastrand::Rng::with_seed(5);
    ends.into_iter()
        .chain((0..10_000).map(move |_| random.u32(..)))
}

#[test]
fn while_somebody_vouches_an_epoch_lasts_from_change_to_change() {
    for now in times() {
        let epoch = |changes, ahead| shared::epoch(now, changes, now.wrapping_add(ahead), HZ);
        for ahead in [1, 2, HZ / 2, HZ - 1, HZ] {
            assert_eq!(epoch(7, ahead), epoch(7, 1), "at {now}, {ahead} ahead");
            assert_ne!(epoch(7, ahead), epoch(8, ahead));
            let later = now.wrapping_add(ahead - 1);
            let until = now.wrapping_add(ahead);
            assert_eq!(shared::epoch(later, 7, until, HZ), epoch(7, 1));
        }
    }
}

#[test]
fn where_nobody_vouches_an_epoch_lasts_a_tick_or_until_a_change() {
    for now in times() {
        // Just now, a while ago, or too far ahead to be true.
        for until in [0, HZ.wrapping_neg(), 1 << 31, HZ + 1] {
            let at = |now: u32, changes| shared::epoch(now, changes, now.wrapping_add(until), HZ);
            assert_ne!(at(now, 7), at(now.wrapping_add(1), 7), "at {now}");
            assert_ne!(at(now, 7), at(now, 8));
            let vouched = shared::epoch(now, 7, now.wrapping_add(1), HZ);
            assert_ne!(at(now, 7), vouched);
        }
    }
}

#[test]
fn what_was_never_written_vouches_for_nothing_but_in_the_last_second_before_zero() {
    let vouched =
        |now: u32| shared::epoch(now, 7, 0, HZ) == shared::epoch(now, 7, now.wrapping_add(1), HZ);
    for now in times().filter(|&now| now < u32::MAX - HZ) {
        assert!(!vouched(now), "at {now}");
    }
    // Therefore the loader writes it.
    assert_eq!(
        shared::epoch(u32::MAX, 7, 0, HZ),
        shared::epoch(1, 7, 2, HZ)
    );
}
