//! Addresses and sysctls on a real kernel, in a network namespace of its own:
//! needs root and iproute2.

use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::thread;

use lb_userspace::address::{Added, AddressError, Addresses, interface_for};
use lb_userspace::host::{self, forwarding};
use lb_userspace::neighbours::Neighbours;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A network namespace that goes when the test ends, however it ends.
struct Namespace(String);

impl Namespace {
    /// With `veth0` (192.0.2.1/24, 2001:db8:1::1/64) and `veth1`
    /// (198.51.100.1/24), whose other ends are in it, too.
    fn new(test: &str) -> Self {
        let namespace = Self(format!("lbt-{test}-{}", std::process::id()));
        ip(&["netns", "add", &namespace.0]);
        for command in [
            "link set lo up",
            "link add veth0 type veth peer name peer0",
            "link add veth1 type veth peer name peer1",
            "link set veth0 up",
            "link set peer0 up",
            "link set veth1 up",
            "link set peer1 up",
            "address add 192.0.2.1/24 dev veth0",
            "address add 198.51.100.1/24 dev veth1",
            "address add 2001:db8:1::1/64 dev veth0 nodad",
        ] {
            namespace.ip(command).expect(command);
        }
        namespace
    }

    /// Runs `ip` inside; gives what it printed, or its complaint.
    fn ip(&self, arguments: &str) -> Result<String, String> {
        let output = Command::new("ip")
            .args(["-n", &self.0])
            .args(arguments.split(' '))
            .output()
            .expect("iproute2 is installed");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("ip speaks UTF-8");
        if output.status.success() {
            Ok(text(output.stdout))
        } else {
            Err(text(output.stderr))
        }
    }

    /// Runs `test` on a thread inside, with a runtime of its own.
    fn enter<F: Future<Output = ()>>(&self, test: impl FnOnce() -> F + Send) {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let file = std::fs::File::open(Path::new("/run/netns").join(&self.0))
                    .expect("the namespace is there");
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("root may enter it");
                tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .expect("a runtime")
                    .block_on(test());
            });
            if let Err(panic) = inside.join() {
                std::panic::resume_unwind(panic);
            }
        });
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "delete", &self.0])
            .status();
    }
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .expect("iproute2 is installed");
    assert!(
        output.status.success(),
        "ip {arguments:?}: {} (these tests need root)",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

const VIPS: [&str; 2] = ["203.0.113.10", "2001:db8:5::10"];

#[test]
fn an_address_is_added_once_and_known_as_ours_by_a_later_run() {
    let namespace = Namespace::new("add");
    namespace.enter(async || {
        let addresses = Addresses::connect().expect("netlink");
        for vip in VIPS.map(address) {
            assert_eq!(
                addresses.add("veth0", vip).await.expect("it can"),
                Added::Added
            );
            // Another connection stands for a daemon started again, even when
            // its configuration now says another interface.
            let later = Addresses::connect().expect("netlink");
            assert_eq!(later.add("veth0", vip).await.expect("it can"), Added::Ours);
            assert_eq!(later.add("veth1", vip).await.expect("it can"), Added::Ours);
            let listed = later.list().await.expect("it can");
            let found: Vec<_> = listed.iter().filter(|entry| entry.address == vip).collect();
            let [found] = found[..] else {
                panic!("{found:?}")
            };
            assert_eq!(found.interface, "veth0");
            assert_eq!(found.index, host::ifindex("veth0").expect("it is there"));
            assert_eq!(found.prefix, if vip.is_ipv4() { 32 } else { 128 });
            assert!(found.ours);

            assert!(later.remove("veth0", vip).await.expect("it can"));
            assert!(!later.remove("veth0", vip).await.expect("it can"));
            let listed = later.list().await.expect("it can");
            assert!(listed.iter().all(|entry| entry.address != vip));
        }
    });
}

#[test]
fn the_hosts_own_address_is_left_to_the_host() {
    let namespace = Namespace::new("own");
    namespace
        .ip("address add 203.0.113.10/24 dev veth1")
        .expect("it can");
    namespace
        .ip("address add 2001:db8:5::10/64 dev lo")
        .expect("it can");
    namespace.enter(async || {
        let addresses = Addresses::connect().expect("netlink");
        for vip in VIPS.map(address) {
            let added = addresses.add("veth0", vip).await.expect("it can");
            assert_eq!(added, Added::AlreadyThere, "{vip}");
            assert!(
                !addresses.remove("veth0", vip).await.expect("it can"),
                "{vip}"
            );
        }
    });
    assert!(
        namespace
            .ip("address show dev veth0")
            .expect("it can")
            .contains("192.0.2.1/24")
    );
    assert!(
        !namespace
            .ip("address show dev veth0")
            .expect("it can")
            .contains("203.0.113")
    );
}

#[test]
fn an_added_address_is_never_one_the_host_speaks_from() {
    let namespace = Namespace::new("source");
    // A VIP in the very subnets of the interface is the hardest case.
    let vips = ["192.0.2.10", "2001:db8:1::10"].map(address);
    namespace.enter(async || {
        let addresses = Addresses::connect().expect("netlink");
        for vip in vips {
            assert_eq!(
                addresses.add("veth0", vip).await.expect("it can"),
                Added::Added
            );
        }
    });
    namespace
        .ip("route add default via 192.0.2.254")
        .expect("it can");
    namespace
        .ip("-6 route add default via 2001:db8:1::fe")
        .expect("it can");
    namespace
        .ip("route add 10.9.0.0/16 dev veth0")
        .expect("it can");
    for (to, from) in [
        ("192.0.2.77", "192.0.2.1"),
        ("8.8.8.8", "192.0.2.1"),
        ("10.9.9.9", "192.0.2.1"),
        ("2001:db8:1::77", "2001:db8:1::1"),
        ("2001:db8:1::11", "2001:db8:1::1"),
        ("2001:db8:77::1", "2001:db8:1::1"),
    ] {
        let route = namespace
            .ip(&format!("route get {to}"))
            .expect("there is a route");
        assert!(route.contains(&format!("src {from} ")), "{route}");
    }
}

#[test]
fn an_interface_that_is_not_there_is_told_with_those_that_are() {
    let namespace = Namespace::new("nodev");
    namespace.enter(async || {
        let addresses = Addresses::connect().expect("netlink");
        let error = addresses
            .add("veth9", address("203.0.113.10"))
            .await
            .expect_err("it is not there");
        assert!(matches!(error, AddressError::Interface(_)));
        let sentence = error.to_string();
        assert!(sentence.starts_with("interface veth9 does not exist; this host has "));
        for name in ["lo", "veth0", "peer1"] {
            assert!(sentence.contains(name), "{sentence}");
        }
    });
}

#[test]
fn the_interface_of_the_subnet_is_chosen() {
    let namespace = Namespace::new("choose");
    namespace.enter(async || {
        let addresses = Addresses::connect().expect("netlink");
        let listed = addresses.list().await.expect("it can");
        let configured = ["veth1".to_owned(), "veth0".to_owned()];
        for (vip, interface) in [
            ("192.0.2.10", "veth0"),
            ("198.51.100.10", "veth1"),
            ("2001:db8:1::10", "veth0"),
            ("203.0.113.10", "veth1"),
            ("2001:db8:9::1", "veth1"),
        ] {
            let chosen = interface_for(address(vip), &configured, &listed);
            assert_eq!(chosen, Some(interface), "{vip}");
        }
    });
}

#[test]
fn a_next_hop_is_asked_for_unless_it_was_entered_to_stay() {
    let namespace = Namespace::new("hops");
    let entered = "192.0.2.7 lladdr 02:00:00:00:00:07 nud permanent dev veth0";
    namespace
        .ip(&format!("neigh add {entered}"))
        .expect("it can");
    namespace.enter(async || {
        let neighbours = Neighbours::start().expect("netlink");
        neighbours.want(["192.0.2.7", "192.0.2.8"].map(address).into());
        let shown = async |what: &str| loop {
            let shown = namespace.ip("neigh show dev veth0").expect("it can");
            if shown.contains(what) {
                return shown;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        };
        // The second is asked for after the first.
        let bound = std::time::Duration::from_secs(30);
        let asked = tokio::time::timeout(bound, shown("192.0.2.8"));
        let shown = asked.await.expect("the next hop is asked for");
        assert!(shown.contains("02:00:00:00:00:07 PERMANENT"), "{shown}");
    });
}

#[test]
fn a_translated_packet_is_forwarded_by_the_stack_once_prepared() {
    let namespace = Namespace::new("sysctl");
    namespace.enter(async || {
        let addresses = Addresses::connect().expect("netlink");
        for vip in VIPS.map(address) {
            addresses.add("veth0", vip).await.expect("it can");
        }
        let sysctls = Path::new(forwarding::SYSCTLS);
        // As strict as a host may be.
        std::fs::write(sysctls.join("net/ipv4/conf/all/rp_filter"), "1").expect("root may");
        std::fs::write(sysctls.join("net/ipv6/conf/all/forwarding"), "0").expect("root may");

        // An answer, its source already the service's address, comes in on the
        // backends' side; and a request for a backend on the clients' side.
        let from_backends = format!("route get 192.0.2.77 from {} iif veth1", VIPS[0]);
        let from_clients = format!("route get 198.51.100.77 from {} iif veth0", VIPS[0]);
        assert!(namespace.ip(&from_backends).is_err());
        assert!(namespace.ip(&from_clients).is_err());

        let interfaces = ["veth0".to_owned(), "veth1".to_owned()];
        let changed = forwarding::prepare(sysctls, &interfaces, &[], true).expect("root may");
        namespace.ip(&from_backends).expect("it is forwarded");
        namespace.ip(&from_clients).expect("it is forwarded");
        let read =
            |setting: &str| std::fs::read_to_string(sysctls.join(setting)).expect("it is there");
        for setting in ["all/forwarding", "veth0/forwarding", "veth1/forwarding"] {
            assert_eq!(
                read(&format!("net/ipv6/conf/{setting}")),
                "1\n",
                "{setting}"
            );
        }
        assert_eq!(read("net/ipv6/conf/peer0/accept_ra"), "2\n");
        let again = forwarding::prepare(sysctls, &interfaces, &[], true).expect("root may");
        assert_eq!(again, []);

        forwarding::restore(&changed).expect("root may");
        assert!(namespace.ip(&from_backends).is_err());
        assert_eq!(read("net/ipv6/conf/all/forwarding"), "0\n");
        assert_eq!(read("net/ipv6/conf/veth0/forwarding"), "0\n");
        assert_eq!(read("net/ipv6/conf/peer0/accept_ra"), "1\n");
        assert_eq!(read("net/ipv4/conf/veth0/rp_filter"), "0\n");
    });
}
