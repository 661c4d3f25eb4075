//! Golden messages. The bytes are not this program's own: scapy made those with a
//! pseudo-header and tshark's dissector judged them; the one without is RFC 9568's
//! sum, made by hand.

use super::*;

/// 10.0.0.2 to the group: router 51, priority 150, 10 centiseconds, two addresses.
const V4: [u8; 16] = [
    0x31, 0x33, 0x96, 0x02, 0x00, 0x0a, 0xd6, 0x13, 203, 0, 113, 10, 203, 0, 113, 11,
];

/// The same with the checksum over the message alone.
const V4_PLAIN: [u8; 16] = [
    0x31, 0x33, 0x96, 0x02, 0x00, 0x0a, 0xc0, 0xa8, 203, 0, 113, 10, 203, 0, 113, 11,
];

/// 10.0.0.3 to 10.0.0.2: router 51 is left.
const V4_LEAVING: [u8; 12] = [
    0x31, 0x33, 0x00, 0x01, 0x00, 0x0a, 0x7e, 0x35, 203, 0, 113, 10,
];

/// fe80::2 to the group: router 51, priority 150, 100 centiseconds, fe80::51 and
/// 2001:db8::10.
const V6: [u8; 40] = [
    0x31, 0x33, 0x96, 0x02, 0x00, 0x64, 0x0d, 0x9b, 0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    0x00, 0x51, 0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x00, 0x10,
];

/// The header in front of [`V4`], as scapy made it.
const V4_HEADER: [u8; 20] = [
    0x45, 0x00, 0x00, 0x24, 0x00, 0x01, 0x00, 0x00, 0xff, 0x70, 0xd1, 0x54, 10, 0, 0, 2, 224, 0, 0,
    18,
];

const ROUTER: Expected = Expected::of(51);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| ip(text)).collect()
}

fn envelope(source: &str, destination: &str) -> Envelope {
    Envelope {
        source: ip(source),
        destination: ip(destination),
        hop_limit: HOP_LIMIT,
    }
}

fn advertisement(priority: u8, centiseconds: u16, addresses: &[&str]) -> Advertisement {
    Advertisement {
        virtual_router: 51,
        priority,
        interval: Interval::from_centiseconds(centiseconds).unwrap(),
        addresses: ips(addresses),
    }
}

/// Every golden message: its bytes, its envelope, its meaning, its checksum.
fn golden() -> Vec<(&'static [u8], Envelope, Advertisement, Checksum)> {
    let two = ["203.0.113.10", "203.0.113.11"];
    vec![
        (
            &V4,
            envelope("10.0.0.2", "224.0.0.18"),
            advertisement(150, 10, &two),
            Checksum::PseudoHeader,
        ),
        (
            &V4_PLAIN,
            envelope("10.0.0.2", "224.0.0.18"),
            advertisement(150, 10, &two),
            Checksum::Plain,
        ),
        (
            &V4_LEAVING,
            envelope("10.0.0.3", "10.0.0.2"),
            advertisement(LEAVING, 10, &two[..1]),
            Checksum::PseudoHeader,
        ),
        (
            &V6,
            envelope("fe80::2", "ff02::12"),
            advertisement(150, 100, &["fe80::51", "2001:db8::10"]),
            Checksum::PseudoHeader,
        ),
    ]
}

/// A change to [`V4_PLAIN`], and its checksum made right again.
fn changed(change: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    let mut message = V4_PLAIN.to_vec();
    change(&mut message);
    message[6..8].fill(0);
    let sum = !fold(words(&message));
    message[6..8].copy_from_slice(&sum.to_be_bytes());
    message
}

fn refused(message: &[u8]) -> Rejected {
    parse(message, &envelope("10.0.0.2", "224.0.0.18"), ROUTER).unwrap_err()
}

#[test]
fn golden_messages_are_read_and_written_alike() {
    for (bytes, envelope, meaning, checksum) in golden() {
        assert_eq!(
            parse(bytes, &envelope, ROUTER),
            Ok((meaning.clone(), checksum)),
            "{bytes:02x?}"
        );
        let written = meaning.write(envelope.source, envelope.destination, checksum);
        assert_eq!(written.as_deref(), Ok(bytes));
    }
}

#[test]
fn a_whole_packet_is_opened_with_options_and_without_what_pads_it() {
    let mut packet = [&V4_HEADER[..], &V4].concat();
    let expected = Ok((envelope("10.0.0.2", "224.0.0.18"), &V4[..]));
    assert_eq!(open_v4(&packet), expected);
    // Ethernet pads to 46 bytes.
    packet.resize(46, 0);
    assert_eq!(open_v4(&packet), expected);
    // Four bytes of options: router alert, say.
    let mut optioned = [&V4_HEADER[..], &[0x94, 4, 0, 0], &V4].concat();
    optioned[0] = 0x46;
    optioned[3] = 0x28;
    assert_eq!(open_v4(&optioned), expected);
}

#[test]
fn a_packet_whose_header_contradicts_itself_is_truncated() {
    let whole = [&V4_HEADER[..], &V4].concat();
    for length in 0..whole.len() {
        assert_eq!(open_v4(&whole[..length]), Err(Rejected::Truncated));
    }
    for (at, value) in [(0, 0x65), (0, 0x44), (2, 0xff), (3, 19)] {
        let mut packet = whole.clone();
        packet[at] = value;
        assert_eq!(open_v4(&packet), Err(Rejected::Truncated), "{at} {value}");
    }
}

#[test]
fn each_rejection_has_its_reason() {
    let far = Envelope {
        hop_limit: 254,
        ..envelope("10.0.0.2", "224.0.0.18")
    };
    assert_eq!(parse(&V4, &far, ROUTER), Err(Rejected::HopLimit));
    let lenient = Expected {
        hop_limit: 254,
        ..ROUTER
    };
    assert!(parse(&V4, &far, lenient).is_ok());
    assert_eq!(refused(&[]), Rejected::Truncated);
    assert_eq!(refused(&V4[..7]), Rejected::Truncated);
    type Change = fn(&mut Vec<u8>);
    let table: [(Change, Rejected); 9] = [
        (|m| m[0] = 0x21, Rejected::OtherVersion),
        (|m| m[0] = 0x41, Rejected::OtherVersion),
        (|m| m[0] = 0x32, Rejected::OtherType),
        (|m| m[3] = 0, Rejected::NoAddress),
        (|m| m[3] = 1, Rejected::Length),
        (|m| m[3] = 255, Rejected::Length),
        (|m| m.push(0), Rejected::Length),
        (|m| m[5] = 0, Rejected::ZeroInterval),
        (|m| m[1] = 52, Rejected::OtherRouter),
    ];
    for (change, rejected) in table {
        assert_eq!(refused(&changed(change)), rejected);
    }
}

#[test]
fn no_single_wrong_bit_passes() {
    // The sum finds each: no bit's weight is a multiple of 65,535. A change of
    // reserved bits is found by it as well, though they have no meaning.
    for (bytes, envelope, _, _) in golden() {
        for bit in 0..bytes.len() * 8 {
            let mut message = bytes.to_vec();
            message[bit / 8] ^= 1 << (bit % 8);
            assert!(parse(&message, &envelope, ROUTER).is_err(), "bit {bit}");
        }
    }
}

#[test]
fn the_sum_without_pseudo_header_is_for_ipv4_only() {
    let mut message = V6;
    message[6..8].fill(0);
    let sum = !fold(words(&message));
    message[6..8].copy_from_slice(&sum.to_be_bytes());
    let envelope = envelope("fe80::2", "ff02::12");
    assert_eq!(
        parse(&message, &envelope, ROUTER),
        Err(Rejected::BadChecksum)
    );
}

#[test]
fn reserved_bits_are_sent_as_zero_and_not_looked_at() {
    let message = changed(|m| m[4] |= 0xf0);
    let read = parse(&message, &envelope("10.0.0.2", "224.0.0.18"), ROUTER);
    assert_eq!(read.unwrap().0.interval.centiseconds(), 10);
    for (_, envelope, mut meaning, checksum) in golden() {
        meaning.interval = Interval::from_centiseconds(4_095).unwrap();
        let sent = meaning.write(envelope.source, envelope.destination, checksum);
        assert_eq!(sent.unwrap()[4] >> 4, 0);
    }
}

#[test]
fn as_many_addresses_go_as_fit_a_frame_and_one_more_is_refused() {
    for (source, group, most, longest) in [
        ("10.0.0.2", "224.0.0.18", 255, 20 + 8 + 255 * 4),
        ("fe80::2", "ff02::12", 90, 40 + 8 + 90 * 16),
    ] {
        let (source, group) = (ip(source), ip(group));
        assert_eq!(most_addresses(source), most);
        let mut full = advertisement(100, 100, &[]);
        full.addresses = vec![source; most];
        let message = full.write(source, group, Checksum::PseudoHeader).unwrap();
        let header = if source.is_ipv4() { 20 } else { 40 };
        assert_eq!(header + message.len(), longest);
        assert!(longest <= FRAME);
        full.addresses.push(source);
        let wanted = most + 1;
        assert_eq!(
            full.write(source, group, Checksum::PseudoHeader),
            Err(Unwritable::Count { wanted, most })
        );
    }
}

#[test]
fn what_no_receiver_would_take_is_not_written() {
    let (source, group) = (ip("10.0.0.2"), ip("224.0.0.18"));
    let plain =
        |advertisement: &Advertisement, to| advertisement.write(source, to, Checksum::Plain);
    let nothing = advertisement(100, 100, &[]);
    assert!(matches!(
        plain(&nothing, group),
        Err(Unwritable::Count { wanted: 0, .. })
    ));
    let mixed = advertisement(100, 100, &["203.0.113.10", "2001:db8::10"]);
    assert_eq!(plain(&mixed, group), Err(Unwritable::Families));
    let whole = advertisement(100, 100, &["203.0.113.10"]);
    assert_eq!(plain(&whole, ip("ff02::12")), Err(Unwritable::Families));
}

#[test]
fn intervals_are_of_twelve_bits_and_not_zero() {
    assert_eq!(Interval::from_centiseconds(0), None);
    assert_eq!(Interval::from_centiseconds(4_096), None);
    let longest = Interval::from_centiseconds(4_095).unwrap();
    assert_eq!(longest.duration(), Duration::from_millis(40_950));
}

#[test]
fn reasons_are_words_of_their_own_and_say_what_they_mean() {
    let names: std::collections::BTreeSet<&str> =
        Rejected::ALL.iter().map(|reason| reason.name()).collect();
    assert_eq!(names.len(), Rejected::ALL.len());
    for reason in Rejected::ALL {
        let word = |letter: char| letter.is_ascii_lowercase() || letter == '_';
        assert!(reason.name().chars().all(word), "{}", reason.name());
        assert!(reason.help().ends_with('.'), "{}", reason.name());
    }
}
