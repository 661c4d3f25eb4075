//! Interfaces as they are: several, slow ones, large frames, and cards that are
//! pulled and put in again while the balancer runs.
//!
//! VLANs and bonds are not here: where this was written, the kernel has neither.
//! What the program does with tags is shown by frames (`golden.rs`), and what
//! follows from VLANs and bonds by the tests of the topology.

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use tests::netns::{
    Arms, Daemon, Family, Net, Service, UNCHECKED, UdpEcho, ask, mirrored, ping, tally, wait_until,
};

/// How long something that is followed may take on a busy machine.
const BOUND: Duration = Duration::from_secs(60);

/// A service over both families, with full NAT.
fn services() -> [Service; 2] {
    Family::ALL.map(|family| Service::new(&format!("web-{family:?}"), "full-nat", family, [1; 3]))
}

fn texts(net: &Net, services: &[Service]) -> String {
    services.iter().map(|service| service.toml(net)).collect()
}

/// A daemon with its own `[node]`: these interfaces, and this line.
fn daemon(net: &Net, interfaces: &[&str], line: &str, services: &[Service]) -> Result<Daemon> {
    let daemon = Daemon::prepare(net, "lb", &net.balancer, &[]);
    configure(&daemon, net, interfaces, line, services)?;
    Ok(daemon)
}

fn configure(
    daemon: &Daemon,
    net: &Net,
    interfaces: &[&str],
    line: &str,
    services: &[Service],
) -> Result<()> {
    let node = daemon
        .node(interfaces)
        .replace("[node]\n", &format!("[node]\n{line}\n"));
    fs::write(&daemon.config, node + &texts(net, services))?;
    Ok(())
}

/// `eth0 native`, and so on, as the status has it.
fn modes(daemon: &Daemon) -> Result<Vec<String>> {
    let status = daemon.json(&["status"])?;
    let interfaces = status["interfaces"].as_array().context("a list")?;
    Ok(interfaces
        .iter()
        .map(|interface| {
            let word = |key: &str| interface[key].as_str().unwrap_or_default().to_owned();
            format!("{} {}", word("name"), word("xdp_mode"))
        })
        .collect())
}

fn wait_for_modes(daemon: &Daemon, expected: &[&str]) -> Result<()> {
    wait_until(
        &format!("the interfaces are {}", expected.join(", ")),
        BOUND,
        || Ok(modes(daemon)? == expected),
    )
}

fn wait_for_log(daemon: &Daemon, words: &str) -> Result<()> {
    wait_until(&format!("the log says {words:?}"), BOUND, || {
        Ok(daemon.logged().contains(words))
    })
}

/// Every service answers, by each of its backends, and answers a ping.
fn served(net: &Net, services: &[Service]) -> Result<()> {
    for service in services {
        net.client.enter(|| -> Result<()> {
            let answered = tally(service.listen, 6)?;
            ensure!(answered.len() == 3, "not everybody answered: {answered:?}");
            ping(service.listen.ip(), 7, b"still there", BOUND)
        })?;
    }
    Ok(())
}

/// Waits until every service has all of its backends, then asks. Checks that failed
/// while a card was away may take a backend out a moment after the look; then it is
/// waited for again.
fn served_again(net: &Net, daemon: &Daemon, services: &[Service]) -> Result<()> {
    let all_healthy = || -> Result<bool> {
        let listed = daemon.json(&["service", "list"])?;
        let listed = listed.as_array().context("a list")?;
        Ok(listed.iter().all(|service| service["healthy"] == 3))
    };
    wait_until("all backends are healthy, and stay so", BOUND, || {
        if !all_healthy()? {
            return Ok(false);
        }
        let outcome = served(net, services);
        if outcome.is_err() && !all_healthy()? {
            return Ok(false);
        }
        outcome.map(|()| true)
    })
}

/// Gives the balancer a second card on its first one: `mv0`, whose driver has no
/// native XDP.
fn add_macvlan(net: &Net) -> Result<()> {
    let words = "link add mv0 link eth0 type macvlan mode bridge";
    let words: Vec<&str> = words.split(' ').collect();
    net.balancer.run("ip", &words)?;
    net.balancer.set("mv0", &["up"])
}

#[test]
fn a_card_that_is_pulled_and_put_in_again_serves_again() -> Result<()> {
    let net = Net::new(Arms::Two)?;
    let services = services();
    let _backends: Vec<_> = services
        .iter()
        .map(|service| net.start_http(service))
        .collect::<Result<_>>()?;
    let mut balancer = Daemon::start(&net, &services.each_ref().map(|one| one.toml(&net)))?;
    served_again(&net, &balancer, &services)?;

    for (interface, gone) in [
        ("eth1", ["eth0 native", "eth1 absent"]),
        ("eth0", ["eth0 absent", "eth1 native"]),
    ] {
        println!("{interface}");
        let pulled = net.pull(interface)?;
        wait_for_modes(&balancer, &gone)?;
        wait_for_log(&balancer, &format!("{interface} has gone"))?;
        let pins = balancer.pinned();
        ensure!(
            !pins.contains(&format!("link-{interface}")),
            "a dead link is left behind: {pins:?}"
        );
        balancer.lb(&["reload"]).context("while it is away")?;

        net.plug(pulled)?;
        wait_for_modes(&balancer, &["eth0 native", "eth1 native"])?;
        served_again(&net, &balancer, &services)?;
    }
    ensure!(balancer.stop()?.success(), "it did not end as it should");
    Ok(())
}

#[test]
fn a_daemon_whose_card_is_away_does_not_start_and_says_why() -> Result<()> {
    let net = Net::new(Arms::Two)?;
    let services = services();
    let mut balancer = Daemon::start(&net, &[])?;
    net.pull("eth1")?;
    wait_for_modes(&balancer, &["eth0 native", "eth1 absent"])?;
    ensure!(balancer.stop()?.success(), "it did not end as it should");
    configure(&balancer, &net, net.interfaces(), "", &services)?;
    let lb = tests::netns::lb_binary().display().to_string();
    let output = balancer.refused(&[&lb])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success());
    ensure!(
        said.contains("interface eth1 does not exist")
            && said.contains("an earlier run's program goes on at eth0"),
        "{said}"
    );
    let pins = balancer.pinned();
    ensure!(pins.contains(&"link-eth0".to_owned()), "{pins:?}");

    // The one that was left behind serves alone.
    configure(&balancer, &net, &["eth0"], "", &[])?;
    balancer.restart()?;
    wait_for_modes(&balancer, &["eth0 native"])
}

#[test]
fn an_interface_that_is_taken_down_and_up_has_its_addresses_again() -> Result<()> {
    let net = Net::new(Arms::One)?;
    let services = services();
    let _backends: Vec<_> = services
        .iter()
        .map(|service| net.start_http(service))
        .collect::<Result<_>>()?;
    let balancer = Daemon::start(&net, &services.each_ref().map(|one| one.toml(&net)))?;
    served_again(&net, &balancer, &services)?;
    net.balancer.set("eth0", &["down"])?;
    net.balancer.set("eth0", &["up"])?;
    // Its own address is its administrator's concern.
    let own = format!("{}/64", net.balancer.v6);
    net.balancer
        .run("ip", &["addr", "replace", &own, "dev", "eth0", "nodad"])?;
    wait_until("the services' addresses are there again", BOUND, || {
        let listed = net.balancer.run("ip", &["addr", "show", "dev", "eth0"])?;
        Ok(Family::ALL
            .iter()
            .all(|family| listed.contains(&format!("{}/", family.vip()))))
    })?;
    // Whoever asks anew finds them, too.
    net.client.run("ip", &["neigh", "flush", "all"])?;
    served_again(&net, &balancer, &services)
}

#[test]
fn an_interface_that_is_renamed_keeps_the_program_until_the_file_follows() -> Result<()> {
    let net = Net::new(Arms::Two)?;
    let [v4, _] = services();
    let services = [v4];
    let _backends = net.start_http(&services[0])?;
    let balancer = Daemon::start(&net, &[services[0].toml(&net)])?;
    served_again(&net, &balancer, &services)?;
    net.balancer.set("eth1", &["down"])?;
    net.balancer.set("eth1", &["name", "lan1"])?;
    net.balancer.set("lan1", &["up"])?;
    wait_for_log(&balancer, "eth1 is called lan1 now")?;
    ensure!(modes(&balancer)? == ["eth0 native", "eth1 native"]);
    served_again(&net, &balancer, &services)?;

    configure(&balancer, &net, &["eth0", "lan1"], "", &services)?;
    balancer.lb(&["reload"])?;
    ensure!(modes(&balancer)? == ["eth0 native", "lan1 native"]);
    let pins = balancer.pinned();
    ensure!(
        pins.contains(&"link-lan1".to_owned()) && !pins.contains(&"link-eth1".to_owned()),
        "{pins:?}"
    );
    served_again(&net, &balancer, &services)
}

#[test]
fn three_cards_serve_together() -> Result<()> {
    let net = Net::new(Arms::Two)?;
    net.third_arm("10.9.2.2/24")?;
    let [v4, _] = services();
    let services = [v4];
    let _backends = net.start_http(&services[0])?;
    let mut balancer = daemon(&net, &["eth0", "eth1", "eth2"], "", &services)?;
    balancer.restart()?;
    ensure!(modes(&balancer)? == ["eth0 native", "eth1 native", "eth2 native"]);
    served_again(&net, &balancer, &services)
}

#[test]
fn generic_mode_serves_and_says_that_it_is_generic() -> Result<()> {
    for arms in [Arms::One, Arms::Two] {
        let net = Net::new(arms)?;
        let services = services();
        let _backends: Vec<_> = services
            .iter()
            .map(|service| net.start_http(service))
            .collect::<Result<_>>()?;
        let mut balancer = daemon(&net, net.interfaces(), "xdp_mode = \"generic\"", &services)?;
        balancer.restart()?;
        ensure!(
            modes(&balancer)?
                .iter()
                .all(|mode| mode.ends_with(" generic"))
        );
        ensure!(balancer.lb(&["status"])?.contains("generic (slow)"));
        served_again(&net, &balancer, &services)?;

        // The next daemon takes the links over as they are.
        balancer.kill9()?;
        balancer.restart()?;
        ensure!(balancer.logged().contains("took over eth0"));
        served_again(&net, &balancer, &services)?;
    }
    Ok(())
}

#[test]
fn a_device_without_native_xdp_makes_all_generic_and_says_so() -> Result<()> {
    let net = Net::new(Arms::One)?;
    add_macvlan(&net)?;
    let services = services();
    let _backends: Vec<_> = services
        .iter()
        .map(|service| net.start_http(service))
        .collect::<Result<_>>()?;
    let mut balancer = daemon(&net, &["eth0", "mv0"], "xdp_mode = \"native\"", &services)?;
    let lb = tests::netns::lb_binary().display().to_string();
    let output = balancer.refused(&[&lb])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        said.contains("cannot attach to mv0 in native mode") && said.contains("\"auto\""),
        "{said}"
    );

    configure(&balancer, &net, &["eth0", "mv0"], "", &services)?;
    balancer.restart()?;
    ensure!(modes(&balancer)? == ["eth0 generic", "mv0 generic"]);
    for told in [
        "mv0 has no native XDP",
        "eth0 in generic mode as well: a native program could not send through mv0",
    ] {
        ensure!(balancer.logged().contains(told), "nothing says {told:?}");
    }
    served_again(&net, &balancer, &services)?;

    // While it is away, the other waits for it as it is.
    net.balancer.run("ip", &["link", "del", "mv0"])?;
    wait_for_modes(&balancer, &["eth0 generic", "mv0 absent"])?;
    add_macvlan(&net)?;
    wait_for_modes(&balancer, &["eth0 generic", "mv0 generic"])?;
    let attached = balancer.logged().matches("attached to eth0").count();
    ensure!(attached == 2, "eth0 was let go of in between");
    served_again(&net, &balancer, &services)?;

    // Without it the other is native again.
    configure(&balancer, &net, &["eth0"], "", &services)?;
    balancer.lb(&["reload"])?;
    wait_for_modes(&balancer, &["eth0 native"])?;
    served_again(&net, &balancer, &services)
}

#[test]
fn a_bridge_serves_in_generic_mode_and_its_port_natively() -> Result<()> {
    for (named, expected) in [("br9", "br9 generic"), ("eth0", "eth0 native")] {
        println!("{named}");
        let net = Net::new(Arms::One)?;
        net.balancer
            .run("ip", &["link", "add", "br9", "type", "bridge"])?;
        net.balancer.set("br9", &["up"])?;
        net.balancer.set("eth0", &["master", "br9"])?;
        net.balancer.move_addresses("eth0", "br9")?;
        net.balancer.sysctl("ipv4/conf/br9/send_redirects", "0")?;
        let services = services();
        let _backends: Vec<_> = services
            .iter()
            .map(|service| net.start_http(service))
            .collect::<Result<_>>()?;
        let mut balancer = daemon(&net, &[named], "", &services)?;
        balancer.restart()?;
        ensure!(modes(&balancer)? == [expected]);
        ensure!(
            balancer.logged().contains("br9 is a bridge") == (named == "br9"),
            "only the bridge is worth a word"
        );
        let addresses = net.balancer.run("ip", &["addr", "show", "dev", "br9"])?;
        ensure!(
            addresses.contains("10.9.0.100/32"),
            "the bridge speaks for its port: {addresses}"
        );
        served_again(&net, &balancer, &services)?;
    }
    Ok(())
}

#[test]
fn a_macvlan_serves_in_generic_mode() -> Result<()> {
    let net = Net::new(Arms::One)?;
    add_macvlan(&net)?;
    net.balancer.move_addresses("eth0", "mv0")?;
    net.balancer.sysctl("ipv4/conf/mv0/send_redirects", "0")?;
    // Else the card below answers for it, too, and gets its frames.
    net.balancer.sysctl("ipv4/conf/eth0/arp_ignore", "1")?;
    let services = services();
    let _backends: Vec<_> = services
        .iter()
        .map(|service| net.start_http(service))
        .collect::<Result<_>>()?;
    let mut balancer = daemon(&net, &["mv0"], "", &services)?;
    balancer.restart()?;
    ensure!(modes(&balancer)? == ["mv0 generic"]);
    ensure!(balancer.logged().contains("mv0 has no native XDP"));
    served_again(&net, &balancer, &services)
}

#[test]
fn frames_larger_than_a_page_are_carried_natively() -> Result<()> {
    for arms in [Arms::One, Arms::Two] {
        let net = Net::with_mtu(arms, 9_000)?;
        let web = services();
        let _backends: Vec<_> = web
            .iter()
            .map(|service| net.start_http(service))
            .collect::<Result<_>>()?;
        let large = Family::ALL
            .map(|family| Service::new(&format!("large-{family:?}"), "full-nat", family, [1; 3]))
            .map(Service::udp);
        let mut mirrors = Vec::new();
        for service in &large {
            for number in 0..3 {
                let at = service.backend(&net, number);
                mirrors.push(UdpEcho::mirror(&net.backends[number], at)?);
            }
        }
        let all = [&web[..], &large].concat();
        let balancer = Daemon::start(
            &net,
            &all.iter().map(|one| one.toml(&net)).collect::<Vec<_>>(),
        )?;
        ensure!(
            modes(&balancer)?
                .iter()
                .all(|mode| mode.ends_with(" native"))
        );
        for service in &web {
            net.client.enter(|| ask(service.listen))?;
        }
        for service in &large {
            for length in [1, 3_400, 3_600, 4_096, 8_900] {
                let datagram: Vec<u8> = (0..length).map(|n: u32| (n % 251) as u8).collect();
                let came = net.client.enter(|| -> Result<bool> {
                    let any = match service.family() {
                        Family::V4 => "0.0.0.0:0",
                        Family::V6 => "[::]:0",
                    };
                    let socket = UdpSocket::bind(any.parse::<SocketAddr>()?)?;
                    socket.connect(service.listen)?;
                    mirrored(&socket, &datagram, BOUND)
                })?;
                ensure!(came, "{length} bytes to {} were lost", service.name);
            }
        }
        // None of these was cut into pieces.
        let verdicts = balancer.json(&["drops"])?;
        ensure!(verdicts == serde_json::json!([]), "{verdicts}");
    }
    Ok(())
}

#[test]
fn the_next_hops_of_dsr_and_tunnel_backends_stay_known() -> Result<()> {
    let net = Net::new(Arms::One)?;
    let services: Vec<Service> = ["dsr", "tunnel"]
        .iter()
        .zip(Family::ALL)
        .map(|(&forward, family)| Service {
            check: UNCHECKED,
            ..Service::new(forward, forward, family, [1; 3])
        })
        .collect();
    let balancer = Daemon::start(&net, &[texts(&net, &services)])?;
    let known = |service: &Service| -> Result<bool> {
        let listed = net.balancer.run("ip", &["neigh", "show", "dev", "eth0"])?;
        Ok((0..3).all(|number| {
            let start = format!("{} lladdr ", service.backend(&net, number).ip());
            listed.lines().any(|line| line.starts_with(&start))
        }))
    };
    for round in ["at the start", "after they were forgotten"] {
        for service in &services {
            wait_until(
                &format!("the backends of {} are known {round}", service.name),
                BOUND,
                || known(service),
            )?;
        }
        net.balancer.run("ip", &["neigh", "flush", "all"])?;
    }
    drop(balancer);
    Ok(())
}
