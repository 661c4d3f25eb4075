//! What the file, the changes made at run time and health add up to.

use std::path::Path;
use std::time::{Duration, SystemTime};

use lb_common::abi::forward;
use lb_userspace::config::{self, Config, OnDown};
use lb_userspace::health::TargetId;
use lb_userspace::model::{self, Override, Overrides};

/// A service `web` that forwards like this, with further lines.
fn config(forward: &str, lines: &str) -> Config {
    let text = format!(
        "[node]\ninterfaces = [\"eth0\"]\n[[service]]\nname = \"web\"\n\
         listen = \"203.0.113.10:80\"\nforward = \"{forward}\"\n{lines}\n\
         [[service.backend]]\nname = \"web1\"\naddress = \"10.0.1.11:80\"\n"
    );
    config::parse_for("this-host", &text, Path::new("lb.toml")).expect("valid")
}

fn id(backend: &str) -> TargetId {
    TargetId {
        service: "web".into(),
        backend: backend.into(),
    }
}

fn added(backend: &str, address: &str) -> Overrides {
    let mut overrides = Overrides::default();
    *overrides.entry(&id(backend)) = Override {
        weight: Some(2),
        added: Some(address.parse().expect("an address")),
        ..Override::default()
    };
    overrides
}

#[test]
fn the_mode_and_the_largest_segment_of_the_file_are_desired() {
    for (word, number) in [
        ("full-nat", forward::FULL_NAT),
        ("nat", forward::NAT),
        ("dsr", forward::DSR),
        ("tunnel", forward::TUNNEL),
    ] {
        let config = config(word, "max_mss = 1360");
        let desired = model::desired(
            &config,
            &Overrides::default(),
            |_, _, _| true,
            SystemTime::now(),
        );
        assert_eq!((desired[0].forward, desired[0].max_mss), (number, 1360));
    }
}

#[test]
fn an_added_backend_stays_as_long_as_the_rules_of_its_service_let_it() {
    for (forward, address, stays) in [
        ("nat", "10.0.1.12:8080", true),
        ("dsr", "10.0.1.12:8080", false),
        ("dsr", "10.0.1.12:80", true),
        ("tunnel", "10.0.1.12:8080", false),
        ("tunnel", "[2001:db8:1::12]:80", true),
        ("tunnel", "198.18.0.12:80", false),
        ("nat", "198.18.0.12:80", true),
        ("full-nat", "[2001:db8:1::12]:80", false),
        // The file has come to name it itself.
        ("full-nat", "10.0.1.11:80", false),
    ] {
        let mut overrides = added("web2", address);
        let before = overrides.clone();
        let void = overrides.prune(&config(forward, ""));
        if stays {
            assert_eq!((void, overrides), (vec![], before), "{forward} {address}");
        } else {
            let expected = (vec![id("web2")], Overrides::default());
            assert_eq!((void, overrides), expected, "{forward} {address}");
        }
    }
}

#[test]
fn an_added_backend_that_the_file_has_come_to_name_keeps_its_weight() {
    let mut overrides = added("web1", "10.0.1.11:80");
    assert_eq!(overrides.prune(&config("nat", "")), []);
    let expected = Override {
        weight: Some(2),
        ..Override::default()
    };
    assert_eq!(overrides.of(&id("web1")), Some(&expected));
}

#[test]
fn the_policy_of_the_file_is_desired() {
    let config = config(
        "nat",
        "scheduler = \"least-conn\"\naffinity = \"5m\"\non_down = \"rehash\"\n\
         slow_start = \"30s\"\nmin_healthy = 1",
    );
    let desired = model::desired(
        &config,
        &Overrides::default(),
        |_, _, _| true,
        SystemTime::now(),
    );
    let web = &desired[0];
    assert_eq!(web.scheduler.name, "least-conn");
    assert_eq!(web.affinity, Duration::from_secs(300));
    assert_eq!(web.on_down, OnDown::Rehash);
    assert_eq!(web.slow_start, Duration::from_secs(30));
    assert_eq!(web.min_healthy, 1);
}

#[test]
fn a_drain_keeps_the_weight_for_later_and_ends_connections_at_its_deadline() {
    let config = config("nat", "");
    let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    let deadline = start + Duration::from_secs(60);
    let mut overrides = Overrides::default();
    *overrides.entry(&id("web1")) = Override {
        weight: Some(5),
        drained: true,
        reset_at: Some(deadline),
        ..Override::default()
    };
    let at = |time| model::desired(&config, &overrides, |_, _, _| true, time);
    for (time, reset, left) in [
        (start, false, Some(Duration::from_secs(60))),
        (
            deadline - Duration::from_secs(1),
            false,
            Some(Duration::from_secs(1)),
        ),
        (deadline, true, None),
        (deadline + Duration::from_secs(3600), true, None),
    ] {
        let desired = at(time);
        let web1 = &desired[0].backends[0];
        assert_eq!((web1.weight, web1.full_weight), (0, 5));
        assert_eq!(web1.reset, reset);
        assert_eq!(model::next_reset(&desired, time), left);
    }
    // One that is noticed late is due at once.
    assert_eq!(
        model::next_reset(&at(start), deadline + Duration::from_secs(1)),
        Some(Duration::ZERO)
    );
}

#[test]
fn a_weight_of_nothing_set_at_run_time_leaves_the_files_as_the_full_one() {
    let mut overrides = Overrides::default();
    overrides.entry(&id("web1")).weight = Some(0);
    let desired = model::desired(
        &config("nat", ""),
        &overrides,
        |_, _, _| true,
        SystemTime::now(),
    );
    let web1 = &desired[0].backends[0];
    assert_eq!((web1.weight, web1.full_weight), (0, 1));
}
