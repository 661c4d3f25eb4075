//! What two CPUs do at once, as the order in which their writes arrive. On the
//! host, where the order can be chosen: another CPU comes in between just before
//! an exchange of this one.

use std::cell::RefCell;

use anyhow::{Context as _, Result, ensure};
use lb_common::abi::{
    Affinity, AffinityKey, AnswerBucket, Backend, Connection, Endpoint, Flow, Fragment,
    FragmentKey, NextHop, Party, Policy, Settings, TCP, Tagged, forward,
};
use lb_common::flow::{BACKEND_FIN, CLIENT_FIN, ESTABLISHED};
use lb_common::{Address, Be16, Verdict, Word};
use lb_ebpf::steer::Attribution;
use lb_ebpf::{Displaced, Hop, Memory, RouteQuery, Shape, Tables, connections};
use tests::frame::{Frame, key, tcp};
use tests::host::{HEADROOM, Host, HostPacket, HostTables, room};
use tests::network::{Device, LAN, WAN};
use tests::world::{STEADY, Side as _, World};

const CLIENT: &str = "198.51.100.7:51000";
const SERVICE: &str = "203.0.113.10:80";
const SOURCE: &str = "203.0.113.10:40000";
const BACKEND: &str = "10.0.1.11:8080";

#[test]
fn the_fins_of_both_sides_noted_at_once_are_both_remembered() -> Result<()> {
    let host = established()?;
    let tables = host.tables();
    // The CPU with the backend's FIN has read the connection; now that with the
    // client's comes in between.
    let meddled = Meddled::with(tables, |tables| {
        arrive(tables, &WAN, &tcp(CLIENT, SERVICE).fin())
    });
    let verdict = process(&meddled, &LAN, &tcp(BACKEND, SOURCE).fin());
    assert_eq!(verdict, Verdict::ReplyRedirect);
    let state = tables.state();
    let flow = state.established[&key(TCP, CLIENT, SERVICE)];
    let both = CLIENT_FIN | BACKEND_FIN;
    assert_eq!(flow.life.state & both, both);
    assert!(
        state.live.is_empty(),
        "counted as ended once: {:?}",
        state.live
    );
    Ok(())
}

#[test]
fn a_change_that_comes_late_leaves_the_next_connection_alone() -> Result<()> {
    let host = established()?;
    let tables = host.tables();
    // Between the look and the note the connection is gone, and its place is
    // another's.
    let meddled = Meddled::with(tables, |tables| {
        let mut flow = Flow::default();
        let client = key(TCP, CLIENT, SERVICE);
        ensure!(connections::of_client(tables, &client, &mut flow));
        ensure!(connections::remove(tables, flow.place, flow.life.version));
        arrive(tables, &WAN, &tcp(CLIENT, SERVICE).syn())
    });
    process(&meddled, &WAN, &tcp(CLIENT, SERVICE).fin());
    let state = tables.state();
    let flow = state.unfinished[&key(TCP, CLIENT, SERVICE)];
    assert_eq!(flow.life.state, 0, "the FIN was the old one's");
    assert_eq!(state.live.get(&0), Some(&1));
    Ok(())
}

#[test]
fn a_port_that_another_takes_between_the_look_and_the_claim_is_left_to_it() -> Result<()> {
    let tables = HostTables::new(&world());
    let meddled = Meddled::after(&tables, 1, |tables| {
        arrive(tables, &WAN, &tcp(CLIENT, SERVICE).syn())?;
        arrive(tables, &LAN, &tcp(BACKEND, SOURCE).syn_ack(1).seq(77))?;
        arrive(tables, &WAN, &tcp(CLIENT, SERVICE).ack(78))
    });
    let verdict = process(&meddled, &WAN, &tcp("198.51.100.7:51001", SERVICE).syn());
    assert_eq!(verdict, Verdict::PortsExhausted);
    let state = tables.state();
    assert!(state.established.contains_key(&key(TCP, BACKEND, SOURCE)));
    assert!(state.unfinished.is_empty(), "{:#?}", state.unfinished);
    assert_eq!(state.live.get(&0), Some(&1));
    Ok(())
}

#[test]
fn a_place_that_another_takes_first_is_left_to_it() -> Result<()> {
    let one = World::empty()
        .with(Settings {
            tag_buckets: 1,
            ..STEADY
        })
        .service(TCP, forward::NAT, SERVICE, &[0])
        .backend(BACKEND);
    let tables = HostTables::new(&one);
    let meddled = Meddled::with(&tables, |tables| {
        (1..=14).try_for_each(|n| {
            let client = format!("198.51.100.7:{}", 51_000 + n);
            arrive(tables, &WAN, &tcp(&client, SERVICE).syn())
        })
    });
    let verdict = process(&meddled, &WAN, &tcp(CLIENT, SERVICE).syn());
    assert_eq!(verdict, Verdict::ForwardRedirect);
    let state = tables.state();
    assert_eq!(state.unfinished.len(), 30, "fifteen connections, both ways");
    assert_eq!(state.live.get(&0), Some(&15));
    Ok(())
}

#[test]
fn a_connection_that_was_proved_just_now_is_not_displaced_by_its_tag() -> Result<()> {
    let one = World::empty()
        .with(Settings {
            tag_buckets: 1,
            ..STEADY
        })
        .service(TCP, forward::NAT, SERVICE, &[0])
        .backend(BACKEND);
    let tables = HostTables::new(&one);
    for n in 1..=15 {
        let client = format!("198.51.100.7:{}", 51_000 + n);
        arrive(&tables, &WAN, &tcp(&client, SERVICE).syn())?;
    }
    // The state is exchanged first, and the tag a moment later: just now.
    let meddled = Meddled::with(&tables, |tables| {
        for place in 0..connections::places(tables) {
            let entry = tables.connection(place).context("there is no place")?;
            let life = entry.life.load();
            ensure!(tables.exchange_wide(&entry.life, life, life | u64::from(ESTABLISHED)));
        }
        Ok(())
    });
    let verdict = process(&meddled, &WAN, &tcp(CLIENT, SERVICE).syn());
    assert_eq!(verdict, Verdict::FlowTableFull);
    let state = tables.state();
    assert_eq!(state.established.len(), 30, "fifteen, both ways");
    assert_eq!(state.live.get(&0), Some(&15));
    assert_eq!(state.displaced, [0; 3]);
    Ok(())
}

/// What another CPU does.
type Meddling<'a> = Box<dyn FnOnce(&HostTables) -> Result<()> + 'a>;

/// Tables in which another CPU comes in between before an exchange.
struct Meddled<'a> {
    tables: &'a HostTables,
    /// After how many exchanges, and what it does.
    other: RefCell<Option<(usize, Meddling<'a>)>>,
}

impl<'a> Meddled<'a> {
    fn with(tables: &'a HostTables, other: impl FnOnce(&HostTables) -> Result<()> + 'a) -> Self {
        Self::after(tables, 0, other)
    }

    fn after(
        tables: &'a HostTables,
        exchanges: usize,
        other: impl FnOnce(&HostTables) -> Result<()> + 'a,
    ) -> Self {
        Self {
            tables,
            other: RefCell::new(Some((exchanges, Box::new(other)))),
        }
    }

    fn meddle(&self) {
        let due = self.other.borrow_mut().take();
        match due {
            Some((0, other)) => other(self.tables).expect("the other CPU's packets go through"),
            Some((left, other)) => *self.other.borrow_mut() = Some((left - 1, other)),
            None => {}
        }
    }
}

impl Memory for Meddled<'_> {
    fn exchange(&self, word: &Word<u32>, old: u32, new: u32) -> bool {
        self.meddle();
        self.tables.exchange(word, old, new)
    }

    fn exchange_wide(&self, word: &Word<u64>, old: u64, new: u64) -> bool {
        self.meddle();
        self.tables.exchange_wide(word, old, new)
    }

    fn swap_wide(&self, word: &Word<u64>, new: u64) -> u64 {
        self.meddle();
        self.tables.swap_wide(word, new)
    }

    fn add(&self, word: &Word<u32>, by: i32) {
        self.meddle();
        self.tables.add(word, by);
    }

    fn add_wide(&self, word: &Word<u64>, by: i64) {
        self.meddle();
        self.tables.add_wide(word, by);
    }

    fn shape(&self) -> Shape {
        self.tables.shape()
    }

    fn connection(&self, place: u32) -> Option<&Connection> {
        self.tables.connection(place)
    }

    fn answers(&self, bucket: u32) -> Option<&AnswerBucket> {
        self.tables.answers(bucket)
    }

    fn count_live(&self, backend: u32, by: i32) {
        self.tables.count_live(backend, by);
    }
}

macro_rules! asked_of_the_tables {
    ($(fn $name:ident($($argument:ident: $kind:ty),*) $(-> $answer:ty)?;)+) => {
        impl Tables for Meddled<'_> {
            $(fn $name(&self, $($argument: $kind),*) $(-> $answer)? {
                self.tables.$name($($argument),*)
            })+
        }
    };
}

asked_of_the_tables! {
    fn settings() -> Settings;
    fn now() -> u32;
    fn may_act() -> bool;
    fn party(endpoint: &Endpoint) -> Option<Party>;
    fn may_have(first: u32, address: &Address, port: Be16) -> bool;
    fn policy(service: u32) -> Policy;
    fn slots(service: u32) -> u32;
    fn slot(service: u32, place: u32) -> Option<u64>;
    fn hashed_slot(service: u32, hash: u32) -> Option<u64>;
    fn next_turn(service: u32) -> u64;
    fn next_slot(service: u32) -> Option<u64>;
    fn live(backend: u32) -> u32;
    fn affinity(client: &AffinityKey) -> Option<Affinity>;
    fn keep_affinity(client: &AffinityKey, affinity: &Affinity);
    fn churned() -> u32;
    fn churn();
    fn displace(what: Displaced);
    fn backend(number: u32) -> Option<Backend>;
    fn fragment(key: &FragmentKey) -> Option<Fragment>;
    fn keep_fragment(key: &FragmentKey, fragment: &Fragment);
    fn fresh_id(place: u32) -> u32;
    fn interface(frames: &Tagged) -> Option<u32>;
    fn exit(interface: u32) -> Option<Tagged>;
    fn epoch() -> u32;
    fn hop(number: u32) -> Option<&NextHop>;
    fn next_hop(query: &mut RouteQuery, hop: &mut Hop) -> Result<(), Verdict>;
    fn redirect(egress: u32) -> bool;
    fn may_tell(why: Verdict) -> bool;
    fn count(verdict: Verdict, whose: &Attribution, bytes: u64);
}

fn process(tables: &impl Tables, on: &Device, frame: &Frame) -> Verdict {
    let mut packet = HostPacket {
        bytes: frame.bytes(),
        ingress: on.index,
        headroom: HEADROOM,
    };
    lb_ebpf::process(&mut packet, tables, &mut room())
}

/// A frame that goes through.
fn arrive(tables: &HostTables, on: &Device, frame: &Frame) -> Result<()> {
    let verdict = process(tables, on, frame);
    ensure!(
        verdict.action() == lb_common::Action::Redirect,
        "{frame:?} ends as {verdict:?}"
    );
    Ok(())
}

/// One service by full-nat, one backend, one port between them.
fn world() -> World {
    World::empty()
        .service(TCP, forward::FULL_NAT, SERVICE, &[0])
        .backend(BACKEND)
}

fn established() -> Result<Host> {
    let mut host = Host::new();
    host.begin(&world())?;
    let tables = host.tables();
    arrive(tables, &WAN, &tcp(CLIENT, SERVICE).syn())?;
    arrive(tables, &LAN, &tcp(BACKEND, SOURCE).syn_ack(1).seq(77))?;
    arrive(tables, &WAN, &tcp(CLIENT, SERVICE).ack(78))?;
    let state = tables.state();
    let known = state.established.get(&key(TCP, CLIENT, SERVICE));
    known.context("the connection is not established")?;
    Ok(host)
}
