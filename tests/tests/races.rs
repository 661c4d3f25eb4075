//! What two CPUs do to one connection at once, as the order in which their
//! writes arrive. On the host, where the order can be chosen.

use anyhow::{Context as _, Result};
use lb_common::abi::{Life, TCP, forward};
use lb_common::flow::{ANSWERED, BACKEND_FIN, CLIENT_FIN};
use lb_ebpf::{Stage, Tables as _};
use tests::frame::{Frame, key, tcp};
use tests::host::Host;
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

fn begun() -> Result<Host> {
    let world = World::empty()
        .service(TCP, forward::FULL_NAT, SERVICE, &[0])
        .backend(BACKEND);
    let mut host = Host::new();
    host.begin(&world)?;
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
