//! Hosts as they are found, a line a link, and what follows from them.

use super::*;

const Q: u16 = 0x8100;
const AD: u16 = 0x88a8;

/// A NIC.
fn nic(index: u32, name: &str) -> Link {
    Link {
        index,
        name: name.into(),
        kind: Kind::Plain,
        parent: None,
        master: None,
        mtu: 1500,
        up: true,
        xdp: None,
    }
}

fn vlan(index: u32, name: &str, on: u32, protocol: u16, id: u16) -> Link {
    Link {
        kind: Kind::Vlan(Tag { protocol, id }),
        parent: Some(on),
        ..nic(index, name)
    }
}

fn bond(index: u32, name: &str) -> Link {
    Link {
        kind: Kind::Bond,
        ..nic(index, name)
    }
}

fn bridge(index: u32, name: &str) -> Link {
    Link {
        kind: Kind::Bridge,
        ..nic(index, name)
    }
}

fn part(of: u32, link: Link) -> Link {
    Link {
        master: Some(of),
        ..link
    }
}

fn large(link: Link) -> Link {
    Link { mtu: 9000, ..link }
}

fn try_plan(
    links: &[Link],
    names: &[&str],
    mode: XdpMode,
    refused: &[u32],
    frags: bool,
) -> Result<Plan, TopologyError> {
    let names: Vec<String> = names.iter().map(|&name| name.into()).collect();
    let refused = refused
        .iter()
        .map(|&index| (index, "Operation not supported".to_owned()))
        .collect();
    let wanted = Wanted {
        names: &names,
        mode,
        refused: &refused,
        frags,
    };
    plan(links, &wanted)
}

fn auto(links: &[Link], names: &[&str], refused: &[u32]) -> Plan {
    try_plan(links, names, XdpMode::Auto, refused, true).expect("it can be")
}

/// `eth0 native`, and so on.
fn sites(plan: &Plan) -> Vec<String> {
    plan.attach
        .iter()
        .map(|site| format!("{} {}", site.device, site.mode.name()))
        .collect()
}

/// `2/81000010 -> 3`: whose the frames of device 2 with tag 0x10 are.
fn interfaces(plan: &Plan) -> Vec<String> {
    plan.interfaces
        .iter()
        .map(|(tagged, owner)| format!("{} -> {owner}", told(tagged)))
        .collect()
}

/// `3 -> 2/81000010`: how the frames of interface 3 leave.
fn exits(plan: &Plan) -> Vec<String> {
    plan.exits
        .iter()
        .map(|(interface, tagged)| format!("{interface} -> {}", told(tagged)))
        .collect()
}

fn told(tagged: &Tagged) -> String {
    let tag = |word: u32| match u32::from_be_bytes(word.to_ne_bytes()) {
        0 => String::new(),
        bytes => format!("/{bytes:08x}"),
    };
    format!(
        "{}{}{}",
        tagged.device,
        tag(tagged.outer),
        tag(tagged.inner)
    )
}

fn devices(plan: &Plan) -> Vec<u32> {
    plan.devices.iter().copied().collect()
}

#[test]
fn nics_are_attached_to_natively_and_need_no_tables() {
    let links = [nic(1, "lo"), nic(2, "eth0"), nic(3, "eth1"), nic(4, "eth2")];
    let plan = auto(&links, &["eth1", "eth0"], &[]);
    assert_eq!(sites(&plan), ["eth1 native", "eth0 native"]);
    assert_eq!(interfaces(&plan), [""; 0]);
    assert_eq!(exits(&plan), [""; 0]);
    assert_eq!(devices(&plan), [2, 3]);
    assert_eq!(plan.hosts, ["eth1", "eth0"]);
    assert!(!plan.members && plan.notes.is_empty() && plan.absent.is_empty());
}

#[test]
fn the_vlans_of_a_nic_are_reached_as_well_and_so_are_those_stacked_on_them() {
    let links = [
        nic(2, "eth0"),
        vlan(3, "eth0.16", 2, Q, 16),
        vlan(4, "outer", 2, AD, 100),
        vlan(5, "inner", 4, Q, 200),
        vlan(6, "third", 5, Q, 300),
        vlan(7, "eth1.16", 9, Q, 16),
    ];
    let plan = auto(&links, &["eth0"], &[]);
    assert_eq!(sites(&plan), ["eth0 native"]);
    let mut found = interfaces(&plan);
    found.sort();
    assert_eq!(
        found,
        [
            "2/81000010 -> 3",
            "2/88a80064 -> 4",
            "2/88a80064/810000c8 -> 5"
        ]
    );
    assert_eq!(
        exits(&plan),
        [
            "3 -> 2/81000010",
            "4 -> 2/88a80064",
            "5 -> 2/88a80064/810000c8"
        ]
    );
    assert_eq!(devices(&plan), [2]);
    assert_eq!(plan.hosts, ["eth0"]);
    assert_eq!(plan.implied, ["eth0.16", "inner", "outer"]);
    assert!(plan.attach[0].tagged && !plan.members);
    assert_eq!(
        plan.notes,
        [
            "third is the third VLAN on another: its frames have more tags than the program reads, so they pass it by"
        ]
    );
}

#[test]
fn tags_stand_in_the_tables_as_they_stand_in_frames() {
    let links = [nic(2, "eth0"), vlan(3, "eth0.16", 2, Q, 4094)];
    let plan = auto(&links, &["eth0"], &[]);
    assert_eq!(plan.exits[&3].outer.to_ne_bytes(), [0x81, 0x00, 0x0f, 0xfe]);
}

#[test]
fn a_vlan_interface_is_met_on_the_nic_below() {
    let links = [
        nic(2, "eth0"),
        vlan(3, "eth0.16", 2, Q, 16),
        vlan(4, "eth0.17", 2, Q, 17),
    ];
    let plan = auto(&links, &["eth0.16"], &[]);
    assert_eq!(sites(&plan), ["eth0 native"]);
    assert_eq!(interfaces(&plan).len(), 2);
    assert_eq!(plan.hosts, ["eth0.16"]);
    assert_eq!(
        plan.implied, [""; 0],
        "nobody asked for the other to forward"
    );
    assert_eq!(plan.site_of("eth0.16").expect("it is served").index, 2);

    let both = auto(&links, &["eth0.16", "eth0.17"], &[]);
    assert_eq!(sites(&both), ["eth0 native"], "once for both");
    assert_eq!(both.attach[0].serves, ["eth0.16", "eth0.17"]);
}

#[test]
fn a_vlan_interface_whose_nic_refuses_is_attached_to_itself() {
    let links = [nic(2, "eth0"), vlan(3, "eth0.16", 2, Q, 16), nic(4, "eth1")];
    let plan = auto(&links, &["eth0.16", "eth1"], &[2]);
    assert_eq!(sites(&plan), ["eth0.16 generic", "eth1 generic"]);
    assert_eq!(
        interfaces(&plan),
        [""; 0],
        "its frames come without the tag"
    );
    assert_eq!(exits(&plan), [""; 0]);
    assert_eq!(devices(&plan), [3, 4]);
    assert_eq!(
        plan.notes,
        [
            "eth0.16 has no native XDP: eth0 refused it (Operation not supported); attached in generic mode, which is several times slower",
            "eth1 in generic mode as well: a native program could not send through eth0.16"
        ]
    );
}

#[test]
fn a_vlan_interface_over_a_device_of_another_namespace_is_attached_to_itself() {
    let links = [Link {
        parent: None,
        ..vlan(3, "vlan", 2, Q, 16)
    }];
    let plan = auto(&links, &["vlan"], &[]);
    assert_eq!(sites(&plan), ["vlan generic"]);
    assert!(plan.notes[0].contains("in another network namespace"));
}

#[test]
fn each_member_leads_to_the_bond_and_its_vlans() {
    let links = [
        part(5, nic(2, "eth0")),
        part(5, nic(3, "eth1")),
        bond(5, "bond0"),
        vlan(6, "bond0.16", 5, Q, 16),
    ];
    for named in [&["bond0"][..], &["bond0.16"], &["bond0", "bond0.16"]] {
        let plan = auto(&links, named, &[]);
        assert_eq!(sites(&plan), ["bond0 native"], "{named:?}");
        assert_eq!(
            interfaces(&plan),
            [
                "2 -> 5",
                "2/81000010 -> 6",
                "3 -> 5",
                "3/81000010 -> 6",
                "5/81000010 -> 6"
            ]
        );
        assert_eq!(exits(&plan), ["6 -> 5/81000010"]);
        assert_eq!(devices(&plan), [5]);
        assert!(plan.members);
        assert_eq!(plan.hosts, named);
    }
}

#[test]
fn a_bond_in_generic_mode_meets_its_own_frames() {
    let links = [part(5, nic(2, "eth0")), bond(5, "bond0")];
    let plan = auto(&links, &["bond0"], &[5]);
    assert_eq!(sites(&plan), ["bond0 generic"]);
    assert!(plan.interfaces.is_empty() && !plan.members);
}

#[test]
fn a_bonds_member_leads_to_the_bond_and_sends_by_it() {
    let links = [
        part(5, nic(2, "eth0")),
        part(5, nic(3, "eth1")),
        bond(5, "bond0"),
        vlan(6, "bond0.16", 5, Q, 16),
    ];
    let plan = auto(&links, &["eth0", "eth1"], &[]);
    assert_eq!(sites(&plan), ["eth0 native", "eth1 native"]);
    assert_eq!(
        interfaces(&plan),
        ["2 -> 5", "2/81000010 -> 6", "3 -> 5", "3/81000010 -> 6"]
    );
    assert_eq!(exits(&plan), ["6 -> 5/81000010"]);
    assert_eq!(devices(&plan), [2, 3, 5]);
    assert_eq!(plan.hosts, ["bond0"], "addresses are the bond's");
    assert_eq!(plan.implied, ["bond0.16"]);

    let both = auto(&links, &["bond0", "eth1"], &[]);
    assert_eq!(sites(&both), ["bond0 native"], "the bond is enough");
    assert_eq!(both.attach[0].serves, ["bond0", "eth1"]);
    assert!(
        both.notes[0].contains("bond0 alone would do"),
        "{:?}",
        both.notes
    );
}

#[test]
fn a_bridge_makes_everything_generic_and_says_so() {
    let links = [
        part(5, nic(2, "eth0")),
        part(5, nic(3, "tap0")),
        nic(4, "eth1"),
        bridge(5, "br0"),
    ];
    let plan = auto(&links, &["br0", "eth1"], &[]);
    assert_eq!(sites(&plan), ["br0 generic", "eth1 generic"]);
    assert_eq!(devices(&plan), [4, 5]);
    assert_eq!(plan.notes.len(), 2);
    assert!(
        plan.notes[0].starts_with("br0 has no native XDP: br0 is a bridge"),
        "{:?}",
        plan.notes
    );
    let error = try_plan(&links, &["br0"], XdpMode::Native, &[], true).expect_err("it cannot");
    assert_eq!(
        error.to_string(),
        "br0 cannot have the program in native mode: br0 is a bridge, for which the kernel has none; \
         if its traffic goes by one port, name that port instead; \
         use node.xdp_mode = \"auto\" or \"generic\", which is several times slower"
    );
}

#[test]
fn a_bridges_port_leads_to_the_bridge_and_sends_for_it() {
    let links = [
        part(5, nic(2, "eth0")),
        bridge(5, "br0"),
        vlan(6, "br0.16", 5, Q, 16),
    ];
    let plan = auto(&links, &["eth0"], &[]);
    assert_eq!(sites(&plan), ["eth0 native"]);
    assert_eq!(interfaces(&plan), ["2 -> 5", "2/81000010 -> 6"]);
    assert_eq!(exits(&plan), ["5 -> 2", "6 -> 2/81000010"]);
    assert_eq!(devices(&plan), [2]);
    assert!(plan.members && plan.notes.is_empty());
    assert_eq!(plan.hosts, ["br0"]);
}

#[test]
fn two_ports_of_one_bridge_are_refused_and_others_are_told_of() {
    let links = [
        part(5, nic(2, "eth0")),
        part(5, nic(3, "eth1")),
        bridge(5, "br0"),
    ];
    let error = try_plan(&links, &["eth0", "eth1"], XdpMode::Auto, &[], true)
        .expect_err("which of them would it be");
    assert_eq!(
        error.to_string(),
        "eth0 and eth1 are ports of the same bridge br0, and the program cannot know behind which of them \
         a host is; name br0 itself in node.interfaces instead of them"
    );
    let one = auto(&links, &["eth0"], &[]);
    assert!(
        one.notes[0].starts_with("what the program sends for br0 leaves by eth0 only"),
        "{:?}",
        one.notes
    );
}

#[test]
fn a_vlan_that_is_a_port_leads_to_its_bridge() {
    let links = [
        nic(2, "eth0"),
        part(5, vlan(3, "eth0.16", 2, Q, 16)),
        bridge(5, "br16"),
    ];
    let plan = auto(&links, &["eth0"], &[]);
    assert_eq!(interfaces(&plan), ["2/81000010 -> 5"]);
    assert_eq!(exits(&plan), ["5 -> 2/81000010"]);
    assert!(!plan.members);
}

#[test]
fn a_bond_that_is_a_port_leads_to_its_bridge() {
    let links = [
        part(5, nic(2, "eth0")),
        part(6, bond(5, "bond0")),
        bridge(6, "br0"),
    ];
    let plan = auto(&links, &["bond0"], &[]);
    assert_eq!(sites(&plan), ["bond0 native"]);
    assert_eq!(interfaces(&plan), ["2 -> 6", "5 -> 6"]);
    assert_eq!(exits(&plan), ["6 -> 5"]);
    assert_eq!(plan.hosts, ["br0"]);
}

#[test]
fn a_vrf_leaves_its_members_their_frames() {
    let vrf = Link {
        kind: Kind::Vrf,
        ..nic(5, "red")
    };
    let plan = auto(&[part(5, nic(2, "eth0")), vrf], &["eth0"], &[]);
    assert_eq!(plan.hosts, ["eth0"]);
    assert!(plan.interfaces.is_empty() && plan.exits.is_empty());
}

#[test]
fn what_is_not_there_is_absent_and_the_rest_goes_on() {
    let plan = auto(&[nic(2, "eth0")], &["eth0", "eth1"], &[]);
    assert_eq!(sites(&plan), ["eth0 native"]);
    assert_eq!(plan.absent, ["eth1"]);
    assert!(plan.site_of("eth1").is_none());
}

#[test]
fn large_frames_need_the_program_that_takes_them() {
    let links = [large(nic(2, "eth0")), vlan(3, "eth0.16", 2, Q, 16)];
    let plan = auto(&links, &["eth0.16"], &[]);
    assert_eq!(sites(&plan), ["eth0 native"]);
    assert!(plan.large_frames(), "the device's own MTU counts");
    assert!(!auto(&[nic(2, "eth0")], &["eth0"], &[]).large_frames());

    let old = try_plan(&links, &["eth0"], XdpMode::Auto, &[], false).expect("it falls back");
    assert_eq!(sites(&old), ["eth0 generic"]);
    assert!(
        old.notes[0].contains("MTU of 9000") && old.notes[0].contains("Linux 5.18 or later"),
        "{:?}",
        old.notes
    );
    let error = try_plan(&links, &["eth0"], XdpMode::Native, &[], false).expect_err("it cannot");
    assert!(error.to_string().contains("MTU of 9000"), "{error}");

    let able = Link {
        xdp: Some(Carried {
            mode: Mode::Native,
            program: None,
        }),
        ..links[0].clone()
    };
    let plan = try_plan(&[able], &["eth0"], XdpMode::Auto, &[], false).expect("it can");
    assert_eq!(sites(&plan), ["eth0 native"], "its driver took it");
}

#[test]
fn generic_that_was_asked_for_is_generic_where_it_was_asked_for() {
    let links = [
        nic(2, "eth0"),
        vlan(3, "eth0.16", 2, Q, 16),
        part(5, nic(4, "eth1")),
        bridge(5, "br0"),
    ];
    let plan = try_plan(&links, &["eth0.16", "br0"], XdpMode::Generic, &[], true).expect("it can");
    assert_eq!(sites(&plan), ["eth0.16 generic", "br0 generic"]);
    assert_eq!(plan.notes, [""; 0], "nobody is told what they asked for");
}

#[test]
fn circles_end() {
    let links = [
        part(3, bond(2, "a")),
        part(2, bond(3, "b")),
        vlan(4, "c", 5, Q, 1),
        vlan(5, "d", 4, Q, 2),
    ];
    let plan = auto(&links, &["a", "c"], &[]);
    assert!(plan.attach.len() <= 2);
}
