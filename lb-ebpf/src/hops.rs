//! What a flow knows of its way, so that the routing table is not asked for each
//! packet.
//!
//! A flow's entry notes for each direction where the next hop stands that the
//! routing table gave for its last packet. It is the flow that notes it, because
//! what the answer depends on is a flow's: both addresses, ports and protocol
//! (policy routing, several paths); what may differ from packet to packet is
//! compared (DSCP, the interface, the length). Next hops are few, and stand in
//! a small table of their own (`HOPS`), which stays in the cache.
//!
//! A note is good in the epoch in which it was made ([`shared::epoch`]). The
//! controller listens to the kernel's notifications about routes, rules,
//! neighbours, interfaces and addresses, counts every change, and vouches for
//! counting them for a second at a time: so an epoch ends when something changes,
//! and if the controller is gone or hangs, an epoch is a kernel tick, and each flow
//! asks again once in a tick. The controller counts a change too when it marks a
//! backend whose flows are to end or to move. The epoch is read before all that it
//! vouches for.
//!
//! An entry of the table is written by whoever first needs it in an epoch: its
//! version is made odd by an exchange, and another even one when it is written. A
//! note is good only with the version that it was made with, and a reader compares
//! it before and after. If all places for a next hop hold others of this epoch, it
//! is not remembered, and the routing table is asked again.
//!
//! [`shared::epoch`]: lb_common::abi::shared::epoch

use lb_common::abi::{NextHop, hop};

use crate::connections;
use crate::room::Room;
use crate::tables::{LinkAddress, Tables};

/// In how many places of the table a next hop may stand.
const WAYS: u32 = 4;

const ODD: u32 = 1;

/// Reads the next hop that the room's flow has noted, if it is still good.
#[inline(always)]
pub fn recall(tables: &impl Tables, room: &mut Room) {
    room.epoch = tables.epoch();
    room.marked = 0;
    let note = room.flow.hop;
    let number = (note & hop::NUMBER) as u32;
    let Some(entry) = tables.hop(number.wrapping_sub(1)) else {
        return;
    };
    let version = (note >> hop::VERSION_SHIFT) as u32;
    if entry.version.load() != version
        || entry.epoch.load() != room.epoch
        || note as u32 ^ about(room) >= 1 << hop::DSCP_SHIFT
    {
        return;
    }
    let way = &mut room.way;
    way.hop.egress = entry.egress.load();
    way.hop.router = entry.router.load();
    way.hop.src_link = LinkAddress::from_word(entry.src_link.load());
    way.hop.dst_link = LinkAddress::from_word(entry.dst_link.load());
    way.ingress = entry.ingress.load();
    way.mtu = entry.mtu.load();
    room.known = u32::from(entry.version.load() == version);
}

/// What a note says of the packet and of its connection.
#[inline(always)]
const fn about(room: &Room) -> u32 {
    let dscp = room.parsed.traffic_class >> 2;
    dscp << hop::DSCP_SHIFT | room.flow.life.version << hop::OWNER_SHIFT
}

/// Notes the next hop that the routing table gave for the room's packet.
#[inline(always)]
pub fn remember(tables: &impl Tables, room: &mut Room) -> u32 {
    if room.parsed.is_icmp() || room.marked != 0 || room.query.mtu == 0 {
        return 0;
    }
    let start = spread(room);
    let mut way = 0;
    while way < WAYS {
        let number = start.wrapping_add(way) % hop::PLACES;
        let version = enter(tables, room, number);
        if version & ODD == 0 {
            let note = u64::from(number.wrapping_add(1) | about(room))
                | u64::from(version) << hop::VERSION_SHIFT;
            let reply = room.flow.is_reply();
            connections::note_hop(tables, room.flow.place, reply, note);
            return 1;
        }
        way += 1;
    }
    0
}

/// Where the places of the room's next hop begin.
#[inline(always)]
const fn spread(room: &Room) -> u32 {
    let hop = &room.way.hop;
    let word = hop.dst_link.word() ^ (hop.egress as u64) << 32 ^ (room.query.ingress as u64) << 48;
    (word.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u32
}

/// Finds the room's next hop at this place of the table, or writes it there if the
/// place is free in this epoch; its version, or an odd number if neither.
#[inline(always)]
fn enter(tables: &impl Tables, room: &Room, number: u32) -> u32 {
    let Some(entry) = tables.hop(number) else {
        return ODD;
    };
    let version = entry.version.load();
    if entry.epoch.load() == room.epoch {
        let same = holds(entry, room) && entry.version.load() == version;
        return if same { version } else { ODD };
    }
    if version & ODD != 0 || !tables.exchange(&entry.version, version, version | ODD) {
        return ODD;
    }
    let hop = &room.way.hop;
    entry.epoch.store(room.epoch);
    entry.ingress.store(room.query.ingress);
    entry.egress.store(hop.egress);
    entry.router.store(hop.router);
    entry.mtu.store(room.query.mtu);
    entry.src_link.store(hop.src_link.word());
    entry.dst_link.store(hop.dst_link.word());
    entry.version.store(version.wrapping_add(2));
    version.wrapping_add(2)
}

/// Whether the entry is the room's next hop.
#[inline(always)]
fn holds(entry: &NextHop, room: &Room) -> bool {
    let hop = &room.way.hop;
    entry.ingress.load() == room.query.ingress
        && entry.egress.load() == hop.egress
        && entry.router.load() == hop.router
        && entry.mtu.load() == room.query.mtu
        && entry.src_link.load() == hop.src_link.word()
        && entry.dst_link.load() == hop.dst_link.word()
}
