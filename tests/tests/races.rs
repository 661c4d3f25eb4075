//! What two CPUs do at once, as the order in which their writes arrive. On the host, where the order can be chosen.

use std::cell::Cell;

use anyhow::{Context as _, Result};
use lb_common::Verdict;
use lb_common::abi::{
    Backend, Endpoint, Flow, FlowKey, Fragment, FragmentKey, Life, Party, Settings, TCP, Tagged,
    forward,
};
use lb_common::flow::{ANSWERED, BACKEND_FIN, CLIENT_FIN};
use lb_ebpf::steer::Attribution;
use lb_ebpf::{Hop, RouteQuery, Stage, Tables};
use tests::frame::{Frame, key, tcp};
use tests::host::{HEADROOM, Host, HostPacket, HostTables, room};
use tests::network::{LAN, WAN};
use tests::world::{Side as _, World};

const CLIENT: &str = "198.51.100.7:51000";
const SERVICE: &str = "203.0.113.10:80";
const SOURCE: &str = "203.0.113.10:40000";
const BACKEND: &str = "10.0.1.11:8080";

#[test]
fn the_fins_of_both_sides_noted_at_once_are_both_remembered() -> Result<()> {
    let mut host = established()?;
    let (forward, reply) = (key(TCP, CLIENT, SERVICE), key(TCP, BACKEND, SOURCE));
    // The CPU with the client's FIN has read both halves and written one.
    let noted = life(&host, CLIENT_FIN)?;
    host.tables().note(Stage::Established, &forward, &noted);
    // Now the CPU with the backend's FIN comes in between …
    host.arrive(&tcp(BACKEND, SOURCE).fin().bytes(), LAN.index)?;
    let state = host.state()?;
    for (which, key) in [("forward", forward), ("reply", reply)] {
        let flow = state.established.get(&key).context("a half is gone")?;
        let both = ANSWERED | CLIENT_FIN | BACKEND_FIN;
        assert_eq!(flow.life.state, both, "the {which} half");
    }
    Ok(())
}

#[test]
fn an_answer_noted_while_the_client_sends_again_is_not_forgotten() -> Result<()> {
    let mut host = begun()?;
    let (forward, reply) = (key(TCP, CLIENT, SERVICE), key(TCP, BACKEND, SOURCE));
    let answered = Life {
        proof: 78,
        ..life(&host, ANSWERED)?
    };
    // The backend's SYN-ACK is noted in its own half alone, so far; the
    // client's FIN is noted before the rest.
    host.tables().note(Stage::Unfinished, &reply, &answered);
    host.arrive(&tcp(CLIENT, SERVICE).fin().bytes(), WAN.index)?;
    let state = host.state()?;
    let flow = state.unfinished.get(&forward).context("a half is gone")?;
    assert_eq!(flow.life.state, ANSWERED | CLIENT_FIN);
    assert_eq!(flow.life.proof, 78);
    Ok(())
}

#[test]
fn a_port_that_another_takes_between_the_look_and_the_claim_is_left_to_it() -> Result<()> {
    // The other's whole handshake passes in between: its reply half is
    // unfinished no more and established only now.
    let other = established()?;
    let reply = key(TCP, BACKEND, SOURCE);
    let half = other.state()?.established[&reply];
    let tables = HostTables::new(&world());
    let meddled = Meddled {
        tables: &tables,
        first: Cell::new(Some((reply, half))),
    };
    let mut packet = HostPacket {
        bytes: tcp("198.51.100.7:51001", SERVICE).syn().bytes(),
        ingress: WAN.index,
        headroom: HEADROOM,
    };
    let verdict = lb_ebpf::process(&mut packet, &meddled, &mut room());
    assert_eq!(verdict, Verdict::PortsExhausted);
    let state = tables.state();
    assert_eq!(state.established.get(&reply), Some(&half));
    assert!(state.unfinished.is_empty(), "{:#?}", state.unfinished);
    Ok(())
}

/// Tables in which another CPU establishes an entry just before the first
/// claim of this one.
struct Meddled<'a> {
    tables: &'a HostTables,
    first: Cell<Option<(FlowKey, Flow)>>,
}

impl Tables for Meddled<'_> {
    fn claim(&self, stage: Stage, key: &FlowKey, flow: &Flow) -> bool {
        if let Some((other, half)) = self.first.take() {
            self.tables.keep(Stage::Established, &other, &half);
        }
        self.tables.claim(stage, key, flow)
    }

    fn settings(&self) -> Settings {
        self.tables.settings()
    }

    fn now(&self) -> u32 {
        self.tables.now()
    }

    fn party(&self, endpoint: &Endpoint) -> Option<Party> {
        self.tables.party(endpoint)
    }

    fn next_backend(&self, service: u32) -> Option<u32> {
        self.tables.next_backend(service)
    }

    fn backend(&self, number: u32) -> Option<Backend> {
        self.tables.backend(number)
    }

    fn flow(&self, stage: Stage, key: &FlowKey) -> Option<&Flow> {
        self.tables.flow(stage, key)
    }

    fn keep(&self, stage: Stage, key: &FlowKey, flow: &Flow) -> bool {
        self.tables.keep(stage, key, flow)
    }

    fn note(&self, stage: Stage, key: &FlowKey, life: &Life) -> bool {
        self.tables.note(stage, key, life)
    }

    fn forget(&self, stage: Stage, key: &FlowKey) {
        self.tables.forget(stage, key);
    }

    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        self.tables.fragment(key)
    }

    fn keep_fragment(&self, key: &FragmentKey, fragment: &Fragment) {
        self.tables.keep_fragment(key, fragment);
    }

    fn fresh_id(&self, place: u32) -> u32 {
        self.tables.fresh_id(place)
    }

    fn interface(&self, frames: &Tagged) -> Option<u32> {
        self.tables.interface(frames)
    }

    fn exit(&self, interface: u32) -> Option<Tagged> {
        self.tables.exit(interface)
    }

    fn next_hop(&self, query: &mut RouteQuery, hop: &mut Hop) -> Result<(), Verdict> {
        self.tables.next_hop(query, hop)
    }

    fn may_tell(&self, why: Verdict) -> bool {
        self.tables.may_tell(why)
    }

    fn redirect(&self, egress: u32) -> bool {
        self.tables.redirect(egress)
    }

    fn count(&self, verdict: Verdict, whose: &Attribution, bytes: u64) {
        self.tables.count(verdict, whose, bytes);
    }
}

/// One service by full-nat, one backend, one port between them.
fn world() -> World {
    World::empty()
        .service(TCP, forward::FULL_NAT, SERVICE, &[0])
        .backend(BACKEND)
}

fn begun() -> Result<Host> {
    let mut host = Host::new();
    host.begin(&world())?;
    host.arrive(&tcp(CLIENT, SERVICE).syn().bytes(), WAN.index)?;
    Ok(host)
}

fn established() -> Result<Host> {
    let mut host = begun()?;
    let answer: Frame = tcp(BACKEND, SOURCE).syn_ack(1).seq(77);
    host.arrive(&answer.bytes(), LAN.index)?;
    host.arrive(&tcp(CLIENT, SERVICE).ack(78).bytes(), WAN.index)?;
    Ok(host)
}

/// The connection's life with these bits too.
fn life(host: &Host, bits: u32) -> Result<Life> {
    let forward = key(TCP, CLIENT, SERVICE);
    let tables = host.tables();
    let flow = [Stage::Established, Stage::Unfinished]
        .into_iter()
        .find_map(|stage| tables.flow(stage, &forward))
        .context("the connection is not known")?;
    Ok(Life {
        state: flow.life.state | bits,
        ..flow.life
    })
}
