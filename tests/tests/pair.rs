//! Two balancers as one, with real sockets: who has the services' addresses, by
//! VRRP, with another `lb` and with keepalived as the other node.
//!
//! The first node is the network's balancer; the others are on hosts that are
//! backends elsewhere. No connection is made here: what is asked is who is active,
//! who has the addresses, and what neighbours are told.

use std::fs;
use std::net::IpAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::netns::{Arms, Capture, Daemon, Family, Host, Keepalived, Net, Wire, wait_until};

/// For whatever takes no time on an idle machine.
const BOUND: Duration = Duration::from_secs(30);

/// For how long nothing may happen that must not.
const QUIET: Duration = Duration::from_millis(1_500);

const HIGH: u8 = 150;
const LOW: u8 = 50;

/// The section of a node, with these lines more.
fn ha(priority: u8, more: &str) -> String {
    format!("[ha]\ninterface = \"eth0\"\nvrid = 51\npriority = {priority}\n{more}\n")
}

fn service(family: Family) -> String {
    let listen = std::net::SocketAddr::new(family.vip(), 80);
    let server = match family {
        Family::V4 => "10.9.0.17:80",
        Family::V6 => "[fd09::11]:80",
    };
    format!(
        "[[service]]\nname = \"web\"\nlisten = \"{listen}\"\ncheck = {{ type = \"none\" }}\n\
         backend = [{{ name = \"b1\", address = \"{server}\" }}]\n"
    )
}

/// A node on a host, with this section, that serves by this family.
fn node(net: &Net, host: &Host, section: &str, family: Family) -> Result<Daemon> {
    let name = format!("{}-node", host.name);
    let mut daemon = Daemon::prepare(net, &name, host, &[]);
    let text = daemon.node(&["eth0"]) + section + &service(family);
    fs::write(&daemon.config, text)?;
    daemon.restart()?;
    Ok(daemon)
}

fn state(node: &Daemon) -> Result<String> {
    let status = node.ask("/v1/ha")?;
    Ok(status["state"]
        .as_str()
        .context("a state is a word")?
        .to_owned())
}

/// Whether the host answers for this address.
fn has(host: &Host, address: IpAddr) -> Result<bool> {
    let text = host.run("ip", &["-j", "address", "show", "dev", "eth0"])?;
    let listed: Value = serde_json::from_str(&text)?;
    let infos = listed[0]["addr_info"]
        .as_array()
        .context("a list of addresses")?;
    Ok(infos
        .iter()
        .any(|info| info["local"] == address.to_string().as_str()))
}

/// Waits until of these hosts only that one has the address.
fn settles(what: &str, hosts: &[&Host], on: &Host, address: IpAddr) -> Result<()> {
    wait_until(what, BOUND, || only_on(hosts, on, address))
}

fn only_on(hosts: &[&Host], on: &Host, address: IpAddr) -> Result<bool> {
    for host in hosts {
        if has(host, address)? != (host.name == on.name) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// It stays as it is for a while.
fn stays(hosts: &[&Host], on: &Host, address: IpAddr) -> Result<()> {
    let until = Instant::now() + QUIET;
    while Instant::now() < until {
        ensure!(
            only_on(hosts, on, address)?,
            "{address} is not on {} alone",
            on.name
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

#[test]
fn of_two_nodes_one_has_the_addresses_whatever_becomes_of_them() -> Result<()> {
    let net = Net::new(Arms::One)?;
    let (first, second) = (&net.balancer, &net.backends[2]);
    let (both, vip) = ([first, second], Family::V4.vip());
    let mut low = node(&net, second, &ha(LOW, ""), Family::V4)?;
    settles("the only node has the address", &both, second, vip)?;
    let mut high = node(&net, first, &ha(HIGH, ""), Family::V4)?;
    settles("the higher one preempts", &both, first, vip)?;
    ensure!(state(&high)? == "active" && state(&low)? == "backup");
    ensure!(high.json(&["status"])?["ha_state"] == "active");
    stays(&both, first, vip)?;

    high.kill9()?;
    // The address stays on the dead one's interface; it is for the data path's lease
    // to keep it silent.
    wait_until(
        "the other takes over from one that was killed",
        BOUND,
        || has(second, vip),
    )?;
    high.restart()?;
    settles("it comes back and preempts", &both, first, vip)?;

    ensure!(high.stop()?.success());
    settles(
        "the other takes over from one that stops",
        &both,
        second,
        vip,
    )?;
    ensure!(low.logged().contains("has left"), "{}", low.logged());
    high.restart()?;
    settles("it comes back once more", &both, first, vip)?;

    high.lb(&["ha", "yield"])?;
    settles("it hands over", &both, second, vip)?;
    stays(&both, second, vip)?;
    let refused = high.lb_output(&["ha", "yield"])?;
    ensure!(!refused.status.success(), "it has nothing to hand over");
    low.lb(&["ha", "yield"])?;
    settles("the other hands it back", &both, first, vip)?;

    first.run("ip", &["link", "set", "eth0", "down"])?;
    settles(
        "the other takes over when the interface is down",
        &both,
        second,
        vip,
    )?;
    ensure!(high.lb(&["ha", "status"])?.contains("takes no part"));
    first.run("ip", &["link", "set", "eth0", "up"])?;
    settles("the interface is up again", &both, first, vip)?;

    ensure!(low.stop()?.success() && high.stop()?.success());
    ensure!(
        !has(first, vip)? && !has(second, vip)?,
        "nothing stays behind"
    );
    Ok(())
}

#[test]
fn a_node_whose_tracked_interface_is_down_gives_way_and_comes_back() -> Result<()> {
    let net = Net::new(Arms::Two)?;
    // Of these two the one has another interface, and the other an interface more.
    let (first, second) = (&net.balancer, &net.client);
    let (both, vip) = ([first, second], Family::V4.vip());
    let tracking = ha(HIGH, "track = [\"eth1\"]");
    let high = node(&net, first, &tracking, Family::V4)?;
    let _low = node(&net, second, &ha(LOW, ""), Family::V4)?;
    settles("the higher one is active", &both, first, vip)?;
    first.run("ip", &["link", "set", "eth1", "down"])?;
    settles("it gives way", &both, second, vip)?;
    let status = high.ask("/v1/ha")?;
    ensure!(status["priority"] == 1, "{status}");
    ensure!(
        high.lb(&["ha", "status"])?
            .contains("tracked interface eth1 is down")
    );
    first.run("ip", &["link", "set", "eth1", "up"])?;
    settles("it comes back", &both, first, vip)
}

/// All that two nodes of different make can do to each other.
fn with_keepalived(family: Family, unicast: bool) -> Result<()> {
    let net = Net::new(Arms::One)?;
    both_makes(&net, family, unicast).with_context(|| {
        let logs = ["lb-node.log", "keepalived-b3/log"].map(|name| {
            let text = fs::read_to_string(net.folder().join(name)).unwrap_or_default();
            format!("{name}:\n{text}")
        });
        logs.concat()
    })
}

fn both_makes(net: &Net, family: Family, unicast: bool) -> Result<()> {
    let (ours, theirs) = (&net.balancer, &net.backends[2]);
    let (both, vip) = ([ours, theirs], family.vip());
    let peer = |of: &Host| unicast.then(|| of.address(family));
    // It sends to peers over IPv6 with a hop limit of 64.
    let hops = match family {
        Family::V4 => "",
        Family::V6 => "hop_limit = 64",
    };
    let section = |priority| {
        let peers = peer(theirs).map(|peer| format!("peers = [\"{peer}\"]\n{hops}"));
        ha(priority, &peers.unwrap_or_default())
    };
    let file = net.folder().join("vrrp.pcap");
    let capture = Capture::start(&net.client, "eth0", "proto 112 or ip6 proto 112", &file)?;
    let mut node = node(net, ours, &section(HIGH), family)?;
    settles("our node is alone", &both, ours, vip)?;
    let mut keepalived = Keepalived::start(net, theirs, 100, &[vip], peer(ours))?;
    stays(&both, ours, vip)?;

    ensure!(node.stop()?.success());
    settles(
        "keepalived takes over from ours that stops",
        &both,
        theirs,
        vip,
    )?;
    let text = fs::read_to_string(&node.config)?;
    fs::write(
        &node.config,
        text.replace("priority = 150", "priority = 50"),
    )?;
    node.restart()?;
    stays(&both, theirs, vip)?;
    ensure!(state(&node)? == "backup");
    let heard = node.ask("/v1/ha")?;
    ensure!(heard["heard"]["priority"] == 100, "{heard}");
    ensure!(
        heard["rejected"]
            .as_object()
            .is_some_and(serde_json::Map::is_empty),
        "{heard}"
    );

    keepalived.stop()?;
    settles(
        "ours takes over from keepalived that stops",
        &both,
        ours,
        vip,
    )?;
    keepalived.restart()?;
    settles("keepalived preempts ours", &both, theirs, vip)?;
    keepalived.kill9()?;
    wait_until(
        "ours takes over from keepalived that was killed",
        BOUND,
        || has(ours, vip),
    )?;
    keepalived.restart()?;
    settles("keepalived comes back", &both, theirs, vip)?;
    drop(capture);
    if !unicast {
        judged_by_tshark(&file, family)?;
    }
    Ok(())
}

/// tshark's dissector finds every message whole and its checksum right. (It wants
/// the pseudo-header, as keepalived has it; ours follows.)
fn judged_by_tshark(file: &std::path::Path, family: Family) -> Result<()> {
    let hops = match family {
        Family::V4 => "ip.ttl",
        Family::V6 => "ipv6.hlim",
    };
    let fields = [
        "vrrp.version",
        "vrrp.checksum.status",
        hops,
        "vrrp.virt_rtr_id",
    ];
    let mut tshark = Command::new("tshark");
    tshark
        .args(["-n", "-r"])
        .arg(file)
        .args(["-Y", "vrrp", "-T", "fields"]);
    for field in fields {
        tshark.args(["-e", field]);
    }
    let output = tshark.output().context("cannot run tshark")?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(text.lines().count() > 20, "too few: {text}");
    for line in text.lines() {
        ensure!(
            line == "3\t1\t255\t51",
            "version, checksum, hops, router: {line}"
        );
    }
    Ok(())
}

#[test]
fn keepalived_and_ours_are_a_pair_over_ipv4_by_multicast() -> Result<()> {
    with_keepalived(Family::V4, false)
}

#[test]
fn keepalived_and_ours_are_a_pair_over_ipv4_by_unicast() -> Result<()> {
    with_keepalived(Family::V4, true)
}

#[test]
fn keepalived_and_ours_are_a_pair_over_ipv6_by_multicast() -> Result<()> {
    with_keepalived(Family::V6, false)
}

#[test]
fn keepalived_and_ours_are_a_pair_over_ipv6_by_unicast() -> Result<()> {
    with_keepalived(Family::V6, true)
}

#[test]
fn bad_advertisements_are_counted_and_move_nothing() -> Result<()> {
    let net = Net::new(Arms::One)?;
    let node = node(&net, &net.balancer, &ha(LOW, ""), Family::V4)?;
    let vip = Family::V4.vip();
    wait_until("it is active", BOUND, || has(&net.balancer, vip))?;
    let transitions = node.ask("/v1/ha")?["transitions"].clone();
    // From 10.9.0.1, priority 200, router 51, one address; the sum without
    // pseudo-header is right.
    let good = [0x31, 51, 200, 1, 0, 10, 0, 0, 10, 9, 0, 100];
    type Spoil = fn(&mut Vec<u8>);
    let spoilt: [(&str, Spoil, u8); 6] = [
        ("hop_limit", |_| (), 254),
        ("other_router", |message| message[1] = 52, 255),
        ("other_version", |message| message[0] = 0x21, 255),
        ("length", |message| message.push(0), 255),
        ("no_address", |message| message[3] = 0, 255),
        ("bad_checksum", |_| (), 255),
    ];
    let wire = net.client.enter(|| Wire::open("eth0"))?;
    for (name, spoil, hops) in spoilt {
        let mut message = good.to_vec();
        spoil(&mut message);
        sum(&mut message, if name == "bad_checksum" { 1 } else { 0 });
        wire.send(&frame(&message, hops))?;
        wait_until(name, BOUND, || {
            Ok(node.ask("/v1/ha")?["rejected"][name] == 1)
        })?;
    }
    let after = node.ask("/v1/ha")?;
    ensure!(
        after["transitions"] == transitions && after["received"] == 0,
        "{after}"
    );
    Ok(())
}

/// Fills in the checksum, wrong by so much.
fn sum(message: &mut [u8], wrong: u16) {
    let mut sum: u32 = message
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let sum = !(sum as u16) ^ wrong;
    message[6..8].copy_from_slice(&sum.to_be_bytes());
}

/// To the group, from 10.9.0.1.
fn frame(message: &[u8], hops: u8) -> Vec<u8> {
    let total = (20 + message.len()) as u16;
    let mut header = vec![0x45, 0];
    header.extend(total.to_be_bytes());
    header.extend([0, 0, 0, 0, hops, 112, 0, 0, 10, 9, 0, 1, 224, 0, 0, 18]);
    let mut sum: u32 = header
        .chunks_exact(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    header[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    let mut frame = vec![1, 0, 0x5e, 0, 0, 18, 2, 0, 0, 0, 0, 1, 8, 0];
    frame.extend(header);
    frame.extend(message);
    frame
}
