//! The reader of advertisements against a bounded number of packets, good ones and
//! damaged ones: what the fuzzer does for as long as it is let
//! (`cargo xtask fuzz`), in every run of the tests, with the same properties.
//!
//! Everything follows from a seed, which is printed: `LB_TEST_SEED=N` takes another
//! one, `LB_TEST_ADVERTISEMENTS=N` takes more or fewer.

use std::net::IpAddr;

use fastrand::Rng;
use lb_userspace::vrrp::packet;
use packet::{Advertisement, Checksum, Interval};

mod hostile;

#[path = "../../fuzz/properties/advertisement.rs"]
mod advertisement;

const SEED: u64 = 20_261_125;
const PACKETS: u64 = 200_000;

#[test]
fn whatever_comes_from_the_link_is_taken_for_what_it_is() {
    let these = ("LB_TEST_ADVERTISEMENTS", PACKETS, "packets");
    hostile::bounded(SEED, these, good, advertisement::holds);
}

/// What the properties take for a good packet: a byte that says how it is to be
/// read, then the packet.
fn good(rng: &mut Rng) -> Vec<u8> {
    let v6 = rng.bool();
    let summed = rng.u8(0..4) << 1;
    let address = |rng: &mut Rng| -> IpAddr {
        if v6 {
            rng.u128(..).to_be_bytes().into()
        } else {
            rng.u32(..).to_be_bytes().into()
        }
    };
    let (source, destination) = (address(rng), address(rng));
    let sent = Advertisement {
        virtual_router: if rng.u8(0..8) == 0 { rng.u8(..) } else { 51 },
        priority: rng.u8(..),
        interval: Interval::from_centiseconds(rng.u16(1..4_096)).expect("it is in range"),
        addresses: (0..rng.usize(1..6)).map(|_| address(rng)).collect(),
    };
    let checksum = if rng.bool() {
        Checksum::PseudoHeader
    } else {
        Checksum::Plain
    };
    let message = sent
        .write(source, destination, checksum)
        .expect("it is of one family, and short");
    let mut data = vec![summed | u8::from(v6)];
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let total = 20 + message.len() as u16;
            data.extend([0x45, 0]);
            data.extend(total.to_be_bytes());
            data.extend([0, 0, 0, 0, packet::HOP_LIMIT, packet::PROTOCOL, 0, 0]);
            data.extend(source.octets());
            data.extend(destination.octets());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            data.push(packet::HOP_LIMIT);
            data.extend(source.octets());
            data.extend(destination.octets());
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
            unreachable!("both are of the family that was chosen")
        }
    }
    data.extend(message);
    data
}
