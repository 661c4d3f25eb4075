//! What must hold of the reader of advertisements, whatever the bytes: shared by
//! the fuzzer's target and by a bounded run among the ordinary tests.

use std::net::{IpAddr, Ipv6Addr};

use crate::packet::{
    Advertisement, Checksum, Envelope, Expected, HOP_LIMIT, Rejected, most_addresses, open_v4,
    parse,
};

/// The virtual router that is listened for.
const ROUTER: u8 = 51;

/// Set in the first byte: the rest is IPv6's, else a whole IPv4 packet.
const V6: u8 = 1;

/// Set in the first byte: the checksum is made right before the message is read,
/// which a fuzzer would not find by itself.
const SUMMED: u8 = 2;

/// Set in the first byte, with [`SUMMED`]: without the pseudo-header.
const PLAIN: u8 = 4;

/// Reads `data` as some packet, and panics if that does not end as it must.
pub(crate) fn holds(data: &[u8]) {
    let Some((&how, data)) = data.split_first() else {
        return;
    };
    let Some((envelope, mut message)) = received(how, data) else {
        return;
    };
    if how & SUMMED != 0 {
        make_right(&envelope, &mut message, how & PLAIN != 0);
    }
    match parse(&message, &envelope, Expected::of(ROUTER)) {
        Ok((advertisement, checksum)) => accepted(&message, &envelope, &advertisement, checksum),
        Err(rejected) => refused(&message, &envelope, rejected),
    }
}

/// The packet in `data`, as the sockets of one family give it.
fn received(how: u8, data: &[u8]) -> Option<(Envelope, Vec<u8>)> {
    if how & V6 == 0 {
        let (envelope, message) = open_v4(data).ok()?;
        assert!(message.len() + 20 <= data.len());
        return Some((envelope, message.to_vec()));
    }
    let (hop_limit, data) = data.split_first()?;
    let (source, data) = data.split_first_chunk::<16>()?;
    let (destination, message) = data.split_first_chunk::<16>()?;
    let envelope = Envelope {
        source: Ipv6Addr::from(*source).into(),
        destination: Ipv6Addr::from(*destination).into(),
        hop_limit: *hop_limit,
    };
    Some((envelope, message.to_vec()))
}

/// Whatever is accepted is what its sender wrote: written again it is the same
/// but for reserved bits.
fn accepted(
    message: &[u8],
    envelope: &Envelope,
    advertisement: &Advertisement,
    checksum: Checksum,
) {
    assert_eq!(envelope.hop_limit, HOP_LIMIT);
    assert_eq!(advertisement.virtual_router, ROUTER);
    assert!((1..=255).contains(&advertisement.addresses.len()));
    assert!((1..=4_095).contains(&advertisement.interval.centiseconds()));
    let (source, destination) = (envelope.source, envelope.destination);
    let written = advertisement.write(source, destination, checksum);
    if advertisement.addresses.len() > most_addresses(source) {
        // Somebody with longer frames.
        assert!(written.is_err());
        return;
    }
    let written = written.expect("it fits, and is of one family");
    if message[4] & 0xf0 == 0 && message[6..8] != [0xff, 0xff] {
        // (0xffff is another way to write the sum 0.)
        assert_eq!(written, message);
    }
    let again = parse(&written, envelope, Expected::of(ROUTER)).expect("it was written here");
    assert_eq!(again.0, *advertisement);
}

/// The reason is true of the message.
fn refused(message: &[u8], envelope: &Envelope, rejected: Rejected) {
    let width = if envelope.source.is_ipv4() { 4 } else { 16 };
    let byte = |at: usize| message.get(at).copied();
    let told = match rejected {
        Rejected::HopLimit => envelope.hop_limit != HOP_LIMIT,
        Rejected::Truncated => message.len() < 8,
        Rejected::OtherVersion => byte(0).is_some_and(|byte| byte >> 4 != 3),
        Rejected::OtherType => byte(0).is_some_and(|byte| byte & 0xf != 1),
        Rejected::NoAddress => byte(3) == Some(0),
        Rejected::Length => {
            byte(3).is_some_and(|count| usize::from(count) * width + 8 != message.len())
        }
        Rejected::BadChecksum => {
            let right = |plain| {
                let mut other = message.to_vec();
                make_right(envelope, &mut other, plain);
                other == message
            };
            !right(false) && (envelope.source.is_ipv6() || !right(true))
        }
        Rejected::ZeroInterval => byte(4).is_some_and(|byte| byte & 0xf == 0) && byte(5) == Some(0),
        Rejected::OtherRouter => byte(1) != Some(ROUTER),
        // These are the socket's to tell.
        Rejected::Stranger | Rejected::Reflected => false,
    };
    assert!(told, "{rejected:?} is not so");
}

/// The checksum as RFC 1071 describes it, in another way than the program's: byte
/// by byte, with the carry added in each time.
fn make_right(envelope: &Envelope, message: &mut [u8], plain: bool) {
    let Some(field) = message.get_mut(6..8) else {
        return;
    };
    field.fill(0);
    let mut all = Vec::new();
    let bytes = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    if !plain || envelope.source.is_ipv6() {
        all.extend(bytes(envelope.source));
        all.extend(bytes(envelope.destination));
        all.extend([0, 112]);
        all.extend((message.len() as u32).to_be_bytes());
    }
    all.extend_from_slice(message);
    let mut sum: u32 = 0;
    for (place, byte) in all.iter().enumerate() {
        sum += u32::from(*byte) << if place % 2 == 0 { 8 } else { 0 };
        if sum > 0xffff {
            sum -= 0xffff;
        }
    }
    let sum = !(sum as u16);
    message[6..8].copy_from_slice(&sum.to_be_bytes());
}
