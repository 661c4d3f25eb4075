//! From the desired state to tables, and from tables to the changes between them.

use std::net::SocketAddr;
use std::slice::from_ref;
use std::time::{Duration, Instant};

use lb_common::abi::{NOBODY, Party, Policy, TCP, backend, forward, pick, role};
use lb_userspace::config::OnDown;
use lb_userspace::model::{self, Service};
use lb_userspace::reconcile::{
    Change, Full, LINGER, Lingering, Measures, Plan, Tables, diff, offered, plan, steps,
};
use lb_userspace::schedule::{Made, Scheduler, backend_of, weight_of};

const MEASURES: Measures = Measures {
    services: 4,
    backends: 8,
    hertz: 250,
};

fn service(name: &str, port: u16, backends: &[(&str, u16, bool)]) -> Service {
    let endpoint = |text: &str| model::endpoint(text.parse().expect("an address"), u16::from(TCP));
    Service {
        backends: backends
            .iter()
            .map(|&(address, weight, up)| model::Backend {
                up,
                ..model::Backend::new(address, endpoint(address), weight)
            })
            .collect(),
        ..Service::new(name, endpoint(&format!("203.0.113.10:{port}")))
    }
}

/// Plans, and checks what holds for every plan: the changes lead there, and
/// from there none are left.
fn step(
    desired: &[Service],
    present: &mut Tables,
    lingering: &mut Lingering,
    now: Instant,
) -> Plan {
    let plan = plan(
        desired,
        present,
        lingering,
        &mut Made::default(),
        MEASURES,
        now,
    )
    .expect("it fits");
    let mut reached = present.clone();
    for change in diff(present, &plan.tables) {
        reached.apply(&change);
    }
    assert_eq!(reached, plan.tables);
    assert_eq!(diff(&reached, &plan.tables), []);
    *present = reached;
    plan
}

#[test]
fn a_weight_change_is_one_new_sequence_and_nothing_else() {
    let (mut tables, mut lingering, now) =
        (Tables::default(), Lingering::default(), Instant::now());
    step(
        &[service(
            "web",
            80,
            &[("10.0.0.1:8080", 3, true), ("10.0.0.2:8080", 1, true)],
        )],
        &mut tables,
        &mut lingering,
        now,
    );
    let desired = [service(
        "web",
        80,
        &[("10.0.0.1:8080", 1, true), ("10.0.0.2:8080", 1, true)],
    )];
    let plan = plan(
        &desired,
        &tables,
        &mut lingering,
        &mut Made::default(),
        MEASURES,
        now,
    )
    .expect("it fits");
    let changes = diff(&tables, &plan.tables);
    assert!(
        matches!(&changes[..], [Change::SetSequence { service: 0, slots }] if slots.len() == 2),
        "{changes:?}"
    );
}

#[test]
fn what_one_service_offers_can_be_written_before_the_plan_for_all() {
    let (mut tables, mut lingering, now) =
        (Tables::default(), Lingering::default(), Instant::now());
    let services = |weight, up| {
        [
            service("a", 80, &[("10.0.0.1:1", 1, true)]),
            service(
                "b",
                81,
                &[("10.0.0.2:1", weight, up), ("10.0.0.3:1", 1, true)],
            ),
        ]
    };
    let first = step(&services(3, true), &mut tables, &mut lingering, now);
    for (weight, up) in [(2, true), (0, true), (4, false), (4, true)] {
        let after = services(weight, up);
        let planned = &first.services[1];
        let mut made = Made::default();
        let offered = offered(&after[1], planned, &mut made, MEASURES.hertz);
        let changes = diff(&tables.offer_of(planned), &offered);
        assert_ne!(changes, [], "{weight} {up}");
        changes.iter().for_each(|change| tables.apply(change));
        let plan = plan(&after, &tables, &mut lingering, &mut made, MEASURES, now);
        let plan = plan.expect("it fits");
        assert_eq!(diff(&tables, &plan.tables), [], "{weight} {up}");
    }
}

#[test]
fn sequences_are_one_step_and_all_else_is_one_by_one() {
    let (mut tables, mut lingering, now) =
        (Tables::default(), Lingering::default(), Instant::now());
    let services = [
        service("a", 80, &[("10.0.0.1:1", 1, true)]),
        service("b", 81, &[("10.0.0.2:1", 1, true)]),
    ];
    let plan = step(&services, &mut tables, &mut lingering, now);
    let changes = diff(&Tables::default(), &plan.tables);
    let of_sequences = |change: &Change| matches!(change, Change::SetSequence { .. });
    let mut together = 0;
    for step in steps(&changes) {
        if step.iter().any(of_sequences) {
            assert!(step.iter().all(of_sequences), "{step:?}");
            together = together.max(step.len());
        } else {
            assert_eq!(step.len(), 1, "{step:?}");
        }
    }
    assert_eq!(together, 2);
    assert_eq!(
        steps(&changes).map(<[Change]>::len).sum::<usize>(),
        changes.len()
    );
}

#[test]
fn numbers_stay_with_endpoints_when_names_and_order_change() {
    let (mut tables, mut lingering, now) =
        (Tables::default(), Lingering::default(), Instant::now());
    let first = step(
        &[
            service("a", 80, &[("10.0.0.1:1", 1, true)]),
            service("b", 81, &[("10.0.0.2:1", 1, true)]),
        ],
        &mut tables,
        &mut lingering,
        now,
    );
    let second = step(
        &[
            service("renamed", 81, &[("10.0.0.2:1", 1, true)]),
            service("a", 80, &[("10.0.0.1:1", 1, true)]),
        ],
        &mut tables,
        &mut lingering,
        now,
    );
    assert_eq!(first.services[0].number, second.services[1].number);
    assert_eq!(first.services[1].backends, second.services[0].backends);
}

#[test]
fn a_backend_that_is_down_has_no_slot_and_keeps_its_number() {
    let (mut tables, mut lingering, now) =
        (Tables::default(), Lingering::default(), Instant::now());
    let up = step(
        &[service(
            "web",
            80,
            &[("10.0.0.1:1", 1, true), ("10.0.0.2:1", 1, true)],
        )],
        &mut tables,
        &mut lingering,
        now,
    );
    let down = step(
        &[service(
            "web",
            80,
            &[("10.0.0.1:1", 1, false), ("10.0.0.2:1", 1, true)],
        )],
        &mut tables,
        &mut lingering,
        now,
    );
    assert_eq!(up.services[0].backends, down.services[0].backends);
    assert_eq!(
        tables.sequences[&0],
        [u64::from(down.services[0].backends[1])]
    );
    step(
        &[service(
            "web",
            80,
            &[("10.0.0.1:1", 1, false), ("10.0.0.2:1", 1, false)],
        )],
        &mut tables,
        &mut lingering,
        now,
    );
    assert!(tables.sequences.is_empty());
}

#[test]
fn a_backend_taken_out_lingers_for_a_minute_and_only_then_frees_its_number() {
    let (mut tables, mut lingering, now) =
        (Tables::default(), Lingering::default(), Instant::now());
    let both = [service(
        "web",
        80,
        &[("10.0.0.1:1", 1, true), ("10.0.0.2:1", 1, true)],
    )];
    let one = [service("web", 80, &[("10.0.0.1:1", 1, true)])];
    let gone = step(&both, &mut tables, &mut lingering, now).services[0].backends[1];
    step(&one, &mut tables, &mut lingering, now);
    assert!(
        tables.backends.contains_key(&gone) && !tables.sequences[&0].contains(&u64::from(gone))
    );
    step(
        &one,
        &mut tables,
        &mut lingering,
        now + LINGER - Duration::from_secs(1),
    );
    assert!(tables.backends.contains_key(&gone));
    assert_eq!(lingering.next_deadline(), Some(now + LINGER));
    step(&one, &mut tables, &mut lingering, now + LINGER);
    assert!(!tables.backends.contains_key(&gone));
    assert_eq!(
        tables
            .parties
            .values()
            .filter(|party| party.roles & role::BACKEND != 0)
            .count(),
        1
    );
}

#[test]
fn a_backend_put_back_while_it_lingers_is_the_same_backend() {
    let (mut tables, mut lingering, now) =
        (Tables::default(), Lingering::default(), Instant::now());
    let both = [service(
        "web",
        80,
        &[("10.0.0.1:1", 1, true), ("10.0.0.2:1", 1, true)],
    )];
    let first = step(&both, &mut tables, &mut lingering, now);
    step(
        &[service("web", 80, &[("10.0.0.1:1", 1, true)])],
        &mut tables,
        &mut lingering,
        now,
    );
    let gone = first.services[0].backends[1];
    assert!(
        tables.backends[&gone].flags & backend::UP != 0,
        "still known to be healthy"
    );
    let again = step(
        &both,
        &mut tables,
        &mut lingering,
        now + Duration::from_secs(5),
    );
    assert_eq!(first.services[0].backends, again.services[0].backends);
    assert_eq!(lingering.next_deadline(), None);
}

#[test]
fn what_does_not_fit_is_refused_and_says_what_to_raise() {
    let services: Vec<Service> = (0..5).map(|n| service("s", 80 + n, &[])).collect();
    let refused = plan(
        &services,
        &Tables::default(),
        &mut Lingering::default(),
        &mut Made::default(),
        MEASURES,
        Instant::now(),
    );
    assert_eq!(refused.unwrap_err(), Full::Services(4));
    assert!(Full::Services(4).to_string().contains("node.max_services"));
}

#[test]
fn an_endpoint_may_be_a_service_and_a_backend_at_once() {
    let (mut tables, mut lingering, now) =
        (Tables::default(), Lingering::default(), Instant::now());
    step(
        &[
            service("outer", 80, &[("203.0.113.10:81", 1, true)]),
            service("inner", 81, &[("10.0.0.1:1", 1, true)]),
        ],
        &mut tables,
        &mut lingering,
        now,
    );
    let inner = model::endpoint("203.0.113.10:81".parse().unwrap(), u16::from(TCP));
    assert_eq!(tables.parties[&inner].roles, role::SERVICE | role::BACKEND);
    assert_eq!(tables.parties[&inner].service, 1);
}

/// The entry of an endpoint; port 0 asks for the address by itself.
fn party(tables: &Tables, at: &str) -> Option<Party> {
    let at: SocketAddr = at.parse().expect("an address");
    let protocol = if at.port() == 0 { 0 } else { u16::from(TCP) };
    tables.parties.get(&model::endpoint(at, protocol)).copied()
}

#[test]
fn every_service_has_its_address_and_its_mode_in_the_tables() {
    for mode in [
        forward::FULL_NAT,
        forward::NAT,
        forward::DSR,
        forward::TUNNEL,
    ] {
        let (mut tables, mut lingering, now) =
            (Tables::default(), Lingering::default(), Instant::now());
        let web = Service {
            forward: mode,
            max_mss: 1360,
            ..service("web", 80, &[("10.0.0.1:80", 1, true)])
        };
        let plan = step(&[web], &mut tables, &mut lingering, now);
        let expected = Party {
            service: plan.services[0].number,
            forward: mode,
            roles: role::SERVICE,
            max_mss: 1360,
        };
        assert_eq!(party(&tables, "203.0.113.10:80"), Some(expected));
        let address = Party {
            service: NOBODY,
            forward: 0,
            roles: role::ADDRESS,
            max_mss: 0,
        };
        assert_eq!(party(&tables, "203.0.113.10:0"), Some(address));
        assert_eq!(
            party(&tables, "10.0.0.1:80").is_some(),
            !forward::one_way(mode),
            "only where answers pass here is a backend known by its endpoint"
        );
        assert_eq!(
            tables.sequences[&plan.services[0].number],
            [u64::from(plan.services[0].backends[0])]
        );
    }
}

#[test]
fn an_address_is_known_until_the_last_service_on_it_is_gone() {
    let (mut tables, mut lingering, now) =
        (Tables::default(), Lingering::default(), Instant::now());
    let both = [service("a", 80, &[]), service("b", 81, &[])];
    step(&both, &mut tables, &mut lingering, now);
    step(&both[1..], &mut tables, &mut lingering, now);
    assert!(party(&tables, "203.0.113.10:0").is_some());
    step(&[], &mut tables, &mut lingering, now);
    assert_eq!(tables, Tables::default());
}

#[test]
fn a_changed_mode_keeps_numbers_and_for_a_minute_the_way_of_answers() {
    let (mut tables, mut lingering, now) =
        (Tables::default(), Lingering::default(), Instant::now());
    let nat = Service {
        forward: forward::NAT,
        ..service("web", 80, &[("10.0.0.1:80", 1, true)])
    };
    let dsr = Service {
        forward: forward::DSR,
        ..nat.clone()
    };
    let before = step(from_ref(&nat), &mut tables, &mut lingering, now);
    let after = step(from_ref(&dsr), &mut tables, &mut lingering, now);
    assert_eq!(before.services[0].number, after.services[0].number);
    assert_eq!(before.services[0].backends, after.services[0].backends);
    assert_eq!(
        party(&tables, "203.0.113.10:80").unwrap().forward,
        forward::DSR
    );
    let answers = |tables: &Tables| {
        party(tables, "10.0.0.1:80").is_some_and(|party| party.roles & role::BACKEND != 0)
    };
    assert!(answers(&tables), "handshakes under way still end");
    assert_eq!(lingering.next_deadline(), Some(now + LINGER));
    step(from_ref(&dsr), &mut tables, &mut lingering, now + LINGER);
    assert!(!answers(&tables));
    assert_eq!(lingering.next_deadline(), None);
    step(from_ref(&nat), &mut tables, &mut lingering, now + LINGER);
    assert!(answers(&tables));
}

#[test]
fn a_backend_of_a_one_way_service_lingers_without_an_endpoint() {
    let (mut tables, mut lingering, now) =
        (Tables::default(), Lingering::default(), Instant::now());
    let with = Service {
        forward: forward::TUNNEL,
        ..service("web", 80, &[("10.0.0.1:80", 1, true)])
    };
    let without = Service {
        backends: vec![],
        ..with.clone()
    };
    let gone = step(from_ref(&with), &mut tables, &mut lingering, now).services[0].backends[0];
    step(from_ref(&without), &mut tables, &mut lingering, now);
    assert!(tables.backends.contains_key(&gone));
    assert_eq!(party(&tables, "10.0.0.1:80"), None);
    step(
        from_ref(&without),
        &mut tables,
        &mut lingering,
        now + LINGER,
    );
    assert!(tables.backends.is_empty());
}

#[test]
fn an_endpoint_that_two_services_share_answers_while_either_translates() {
    let (mut tables, mut lingering, now) =
        (Tables::default(), Lingering::default(), Instant::now());
    let translated = service("a", 80, &[("10.0.0.1:80", 1, true)]);
    let direct = Service {
        forward: forward::DSR,
        listen: model::endpoint("203.0.113.11:80".parse().unwrap(), u16::from(TCP)),
        ..service("b", 80, &[("10.0.0.1:80", 1, true)])
    };
    let plan = step(&[direct, translated], &mut tables, &mut lingering, now);
    assert_ne!(plan.services[0].backends, plan.services[1].backends);
    assert_eq!(
        party(&tables, "10.0.0.1:80").map(|party| party.roles),
        Some(role::BACKEND)
    );
}

/// The marks on the backends of the first service, in their order.
fn marks(plan: &Plan) -> Vec<u8> {
    plan.services[0]
        .backends
        .iter()
        .map(|number| plan.tables.backends[number].flags & !backend::USED)
        .collect()
}

/// A service of one backend that is up and one that is down.
fn half_down(on_down: OnDown) -> Service {
    Service {
        on_down,
        ..service(
            "web",
            80,
            &[("10.0.0.1:1", 1, true), ("10.0.0.2:1", 1, false)],
        )
    }
}

#[test]
fn a_backend_that_is_down_is_marked_with_what_becomes_of_its_flows() {
    for (on_down, mark) in [
        (OnDown::Reset, backend::RESET),
        (OnDown::Rehash, backend::REHASH),
        (OnDown::Keep, 0),
    ] {
        let (mut tables, mut lingering) = (Tables::default(), Lingering::default());
        let now = Instant::now();
        let web = half_down(on_down);
        let planned = step(from_ref(&web), &mut tables, &mut lingering, now);
        assert_eq!(
            marks(&planned),
            [backend::UP | backend::OPEN, mark],
            "{on_down}"
        );
    }
}

#[test]
fn who_is_down_and_used_all_the_same_keeps_its_flows() {
    let (mut tables, mut lingering, now) =
        (Tables::default(), Lingering::default(), Instant::now());
    let web = Service {
        min_healthy: 2,
        ..half_down(OnDown::Reset)
    };
    let planned = step(from_ref(&web), &mut tables, &mut lingering, now);
    assert_eq!(
        marks(&planned),
        [backend::UP | backend::OPEN, backend::OPEN]
    );
    assert_eq!(tables.sequences[&0].len(), 2);
}

#[test]
fn a_drained_backend_keeps_its_flows_until_its_time_is_over() {
    let (mut tables, mut lingering, now) =
        (Tables::default(), Lingering::default(), Instant::now());
    for (reset, mark) in [(false, 0), (true, backend::RESET)] {
        let mut web = service(
            "web",
            80,
            &[("10.0.0.1:1", 1, true), ("10.0.0.2:1", 0, true)],
        );
        web.on_down = OnDown::Keep;
        web.backends[1].drained = true;
        web.backends[1].reset = reset;
        let planned = step(from_ref(&web), &mut tables, &mut lingering, now);
        let expected = [backend::UP | backend::OPEN, backend::UP | mark];
        assert_eq!(marks(&planned), expected);
    }
}

#[test]
fn a_backend_taken_out_is_not_open_while_it_lingers() {
    let (mut tables, mut lingering, now) =
        (Tables::default(), Lingering::default(), Instant::now());
    let one = [service("web", 80, &[("10.0.0.1:1", 1, true)])];
    let gone = step(&one, &mut tables, &mut lingering, now).services[0].backends[0];
    step(&[service("web", 80, &[])], &mut tables, &mut lingering, now);
    assert_eq!(tables.backends[&gone].flags, backend::USED | backend::UP);
}

#[test]
fn a_mark_comes_when_nothing_is_sent_there_any_more_and_goes_before_anything_is() {
    let (mut tables, mut lingering, now) =
        (Tables::default(), Lingering::default(), Instant::now());
    let down = [half_down(OnDown::Reset)];
    let mut up = down.clone();
    up[0].backends[1].up = true;
    step(&up, &mut tables, &mut lingering, now);
    let kinds = |changes: &[Change]| -> Vec<&str> {
        let kind = |change: &Change| match change {
            Change::SetBackend { .. } => "backend",
            Change::SetSequence { .. } => "sequence",
            _ => "other",
        };
        changes.iter().map(kind).collect()
    };
    let before = tables.clone();
    step(&down, &mut tables, &mut lingering, now);
    assert_eq!(kinds(&diff(&before, &tables)), ["sequence", "backend"]);
    assert_eq!(kinds(&diff(&tables, &before)), ["backend", "sequence"]);
}

#[test]
fn a_service_chooses_by_weights_only_while_they_stand_in_its_sequence() {
    let (mut tables, mut lingering, now) =
        (Tables::default(), Lingering::default(), Instant::now());
    let wrr = [service(
        "web",
        80,
        &[("10.0.0.1:1", 2, true), ("10.0.0.2:1", 1, true)],
    )];
    let least = [Service {
        scheduler: Scheduler::named("least-conn").unwrap(),
        ..wrr[0].clone()
    }];
    step(&wrr, &mut tables, &mut lingering, now);
    assert!(tables.policies.is_empty(), "the default needs no entry");
    let before = tables.clone();
    let planned = step(&least, &mut tables, &mut lingering, now);
    let policy = Policy {
        pick: pick::LEAST,
        affinity_ticks: 0,
    };
    assert_eq!(tables.policies[&0], policy);
    let slots: Vec<(u32, u32)> = tables.sequences[&0]
        .iter()
        .map(|&slot| (backend_of(slot), weight_of(slot)))
        .collect();
    let [heavy, light] = planned.services[0].backends[..] else {
        panic!("two backends");
    };
    assert_eq!(slots, [(heavy, 2), (light, 1)]);
    let (there, back) = (diff(&before, &tables), diff(&tables, &before));
    assert!(
        matches!(
            &there[..],
            [Change::SetSequence { .. }, Change::SetPolicy { .. }]
        ),
        "{there:?}"
    );
    assert!(
        matches!(
            &back[..],
            [Change::SetPolicy { .. }, Change::SetSequence { .. }]
        ),
        "{back:?}"
    );
}

#[test]
fn affinity_is_told_in_kernel_ticks() {
    let (mut tables, mut lingering, now) =
        (Tables::default(), Lingering::default(), Instant::now());
    let web = Service {
        affinity: Duration::from_secs(10),
        ..service("web", 80, &[("10.0.0.1:1", 1, true)])
    };
    step(from_ref(&web), &mut tables, &mut lingering, now);
    let policy = Policy {
        pick: pick::TURN,
        affinity_ticks: 2_500,
    };
    assert_eq!(tables.policies[&0], policy);
    step(&[], &mut tables, &mut lingering, now);
    assert!(tables.policies.is_empty());
}

#[test]
fn shares_are_those_of_the_sequence() {
    let (mut tables, mut lingering, now) =
        (Tables::default(), Lingering::default(), Instant::now());
    let mut web = service(
        "web",
        80,
        &[
            ("10.0.0.1:1", 1, true),
            ("10.0.0.2:1", 2, true),
            ("10.0.0.3:1", 5, false),
        ],
    );
    web.backends[1].part /= 2;
    let planned = step(from_ref(&web), &mut tables, &mut lingering, now);
    let parts: Vec<f64> = planned.services[0]
        .shares
        .iter()
        .map(|share| share.part)
        .collect();
    assert_eq!(
        (planned.services[0].length, parts),
        (2, vec![0.5, 0.5, 0.0])
    );
}
