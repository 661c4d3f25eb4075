//! The packets of a probe through the service's address, as bytes: what is
//! sent, what counts as an answer, and the kernel's filter for it. Pure.

use std::io;
use std::net::{IpAddr, SocketAddr};

use etherparse::{
    IpHeaders, IpNumber, Ipv4Header, Ipv6Header, NetSlice, PacketBuilder, SlicedPacket, TcpHeader,
    TcpOptionElement, TransportSlice,
};
use libc::{
    BPF_ABS, BPF_B, BPF_H, BPF_IMM, BPF_IND, BPF_JEQ, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_LDX,
    BPF_MSH, BPF_RET,
};
use socket2::SockFilter;

/// The TTL or hop limit of a probe: the backend may take it, and nobody may
/// pass it on.
const INNER_TTL: u8 = 1;

/// The TTL or hop limit of what it is wrapped in.
const OUTER_TTL: u8 = 64;

/// What a host announces that will not receive anything: like others do, so
/// that nothing on the way takes offence.
const WINDOW: u16 = 64240;

/// The most bytes of a packet that are looked at.
pub(super) const MOST: usize = 2048;

/// The two ends of a probe's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ends {
    /// This host's address and the port reserved.
    pub(super) here: SocketAddr,
    /// The service.
    pub(super) there: SocketAddr,
}

/// What the backend said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// SYN-ACK: it accepts.
    Accepted,
    /// RST: it does not.
    Refused,
}

/// An answer to somebody's SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// To which connection.
    pub(super) ends: Ends,
    /// The sequence number of the SYN it acknowledges.
    pub(super) sequence: u32,
    /// What it says.
    pub(super) said: Said,
}

/// The packet that asks for a connection.
pub(super) fn syn(ends: &Ends, sequence: u32) -> io::Result<Vec<u8>> {
    let mut header = tcp(ends, sequence);
    header.syn = true;
    // What fits an Ethernet frame. One option always has room.
    let mss = if ends.there.is_ipv4() { 1460 } else { 1440 };
    let _ = header.set_options(&[TcpOptionElement::MaximumSegmentSize(mss)]);
    with_ip(ends, header)
}

/// The packet that makes the backend forget the connection (RFC 9293, section
/// 3.10.7.4: a reset counts where its sequence number is the next one expected).
pub(super) fn reset(ends: &Ends, sequence: u32) -> io::Result<Vec<u8>> {
    let mut header = tcp(ends, sequence.wrapping_add(1));
    header.rst = true;
    header.window_size = 0;
    with_ip(ends, header)
}

/// A packet wrapped for a tunnel (RFC 2003, RFC 2473, RFC 4213).
pub(super) fn wrap(inner: &[u8], source: IpAddr, destination: IpAddr) -> io::Result<Vec<u8>> {
    let protocol = match inner.first().map(|byte| byte >> 4) {
        Some(6) => IpNumber::IPV6,
        _ => IpNumber::IPV4,
    };
    let mut packet = Vec::new();
    PacketBuilder::ip(ip(source, destination, OUTER_TTL)?)
        .write_to_vec(&mut packet, protocol, inner)
        .map_err(io::Error::other)?;
    Ok(packet)
}

fn tcp(ends: &Ends, sequence: u32) -> TcpHeader {
    TcpHeader::new(ends.here.port(), ends.there.port(), sequence, WINDOW)
}

fn with_ip(ends: &Ends, header: TcpHeader) -> io::Result<Vec<u8>> {
    let mut packet = Vec::new();
    PacketBuilder::ip(ip(ends.here.ip(), ends.there.ip(), INNER_TTL)?)
        .tcp_header(header)
        .write_to_vec(&mut packet, &[])
        .map_err(io::Error::other)?;
    Ok(packet)
}

/// An IP header, in which the builder fills in what follows it.
fn ip(source: IpAddr, destination: IpAddr, ttl: u8) -> io::Result<IpHeaders> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let header = Ipv4Header {
                dont_fragment: true,
                time_to_live: ttl,
                source: source.octets(),
                destination: destination.octets(),
                ..Ipv4Header::default()
            };
            Ok(IpHeaders::Ipv4(header, Default::default()))
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let header = Ipv6Header {
                hop_limit: ttl,
                source: source.octets(),
                destination: destination.octets(),
                ..Ipv6Header::default()
            };
            Ok(IpHeaders::Ipv6(header, Default::default()))
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("no packet can go from {source} to {destination}: only one of them is IPv4"),
        )),
    }
}

/// What a packet from its IP header on answers, if it is an answer at all.
///
/// Its TCP checksum is not asked for: between the virtual interfaces of one
/// machine it is never filled in. Ports, addresses and the number acknowledged
/// say enough.
pub(super) fn answer(packet: &[u8]) -> Option<Answer> {
    let sliced = SlicedPacket::from_ip(packet).ok()?;
    let (from, to) = match sliced.net? {
        NetSlice::Ipv4(ip) => (
            IpAddr::from(ip.header().source_addr()),
            IpAddr::from(ip.header().destination_addr()),
        ),
        NetSlice::Ipv6(ip) => (
            IpAddr::from(ip.header().source_addr()),
            IpAddr::from(ip.header().destination_addr()),
        ),
        NetSlice::Arp(_) => return None,
    };
    let Some(TransportSlice::Tcp(tcp)) = sliced.transport else {
        return None;
    };
    let said = match (tcp.ack(), tcp.syn(), tcp.rst()) {
        (true, true, false) => Said::Accepted,
        (true, false, true) => Said::Refused,
        _ => return None,
    };
    Some(Answer {
        ends: Ends {
            here: SocketAddr::new(to, tcp.destination_port()),
            there: SocketAddr::new(from, tcp.source_port()),
        },
        sequence: tcp.acknowledgment_number().wrapping_sub(1),
        said,
    })
}

/// A line of the kernel's filter.
enum Line {
    /// An instruction.
    Do(u32, u32),
    /// A condition without which the packet is not wanted.
    Must(u32, u32),
    /// A condition with which the packet is not wanted.
    MustNot(u32, u32),
}

/// The kernel's filter, over packets of one family from their IP header on:
/// unfragmented TCP with ACK and one of SYN and RST, that acknowledges a number
/// whose upper half is `mark`. A load beyond the packet's end refuses it.
pub(super) fn filter(ipv4: bool, mark: u16) -> Vec<SockFilter> {
    use Line::{Do, Must, MustNot};
    const ACK: u32 = 0x10;
    const SYN_OR_RST: u32 = 0x02 | 0x04;
    const TCP: u32 = libc::IPPROTO_TCP as u32;
    let mut lines = if ipv4 {
        vec![
            Do(BPF_LD | BPF_B | BPF_ABS, 9),
            Must(BPF_JEQ, TCP),
            Do(BPF_LD | BPF_H | BPF_ABS, 6),
            MustNot(BPF_JSET, 0x1fff),
            // X becomes the header's length: four times the low half of byte 0.
            Do(BPF_LDX | BPF_B | BPF_MSH, 0),
        ]
    } else {
        vec![
            Do(BPF_LD | BPF_B | BPF_ABS, 6),
            Must(BPF_JEQ, TCP),
            Do(BPF_LDX | BPF_IMM, 40),
        ]
    };
    lines.extend([
        Do(BPF_LD | BPF_B | BPF_IND, 13),
        Must(BPF_JSET, ACK),
        Must(BPF_JSET, SYN_OR_RST),
        Do(BPF_LD | BPF_H | BPF_IND, 8),
        Must(BPF_JEQ, u32::from(mark)),
        Do(BPF_RET | BPF_K, MOST as u32),
        Do(BPF_RET | BPF_K, 0),
    ]);
    let last = lines.len() - 1;
    let line = |(number, line): (usize, &Line)| {
        // To the last line, which refuses; a filter has a dozen of them.
        let away = last.saturating_sub(number + 1) as u8;
        let (code, when_true, when_false, value) = match *line {
            Do(code, value) => (code, 0, 0, value),
            Must(test, value) => (BPF_JMP | test | BPF_K, 0, away, value),
            MustNot(test, value) => (BPF_JMP | test | BPF_K, away, 0, value),
        };
        SockFilter::new(code as u16, when_true, when_false, value)
    };
    lines.iter().enumerate().map(line).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    const MARK: u16 = 0xabcd;
    const SEQUENCE: u32 = 0xabcd_fffe;

    /// One pair of ends for each family.
    fn both() -> [Ends; 2] {
        [
            ("10.9.0.2:40000", "10.9.0.100:80"),
            ("[fd09::2]:40000", "[fd09::100]:80"),
        ]
        .map(|(here, there)| Ends {
            here: here.parse().expect("an address"),
            there: there.parse().expect("an address"),
        })
    }

    /// What the service sends: flags are those of the TCP header.
    fn from_service(ends: &Ends, flags: u8, acknowledged: u32) -> Vec<u8> {
        let back = Ends {
            here: ends.there,
            there: ends.here,
        };
        let mut header = tcp(&back, 7);
        header.fin = flags & 0x01 != 0;
        header.syn = flags & 0x02 != 0;
        header.rst = flags & 0x04 != 0;
        header.ack = flags & 0x10 != 0;
        header.acknowledgment_number = acknowledged;
        with_ip(&back, header).expect("it can be built")
    }

    #[test]
    fn a_syn_is_a_whole_packet_with_checksums_that_hold() {
        let [v4, v6] = both();
        let packet = syn(&v4, 0x0102_0304).expect("it can be built");
        let expected = [
            &[0x45, 0, 0, 44, 0, 0, 0x40, 0, 1, 6][..],
            &packet[10..12],
            &[10, 9, 0, 2, 10, 9, 0, 100],
            &[0x9c, 0x40, 0, 80, 1, 2, 3, 4, 0, 0, 0, 0],
            &[0x60, 0x02, 0xfa, 0xf0],
            &packet[36..38],
            &[0, 0, 2, 4, 0x05, 0xb4],
        ]
        .concat();
        assert_eq!(packet, expected);
        assert_eq!(sum(&packet[..20]), 0xffff);
        let pseudo = [&packet[12..20], &[0, 6, 0, 24]].concat();
        assert_eq!(sum(&[&pseudo, &packet[20..]].concat()), 0xffff);

        let packet = syn(&v6, 0x0102_0304).expect("it can be built");
        assert_eq!(packet[..8], [0x60, 0, 0, 0, 0, 24, 6, 1]);
        assert_eq!(packet[60..], [2, 4, 0x05, 0xa0]);
        let pseudo = [&packet[8..40], &[0, 0, 0, 24, 0, 0, 0, 6]].concat();
        assert_eq!(sum(&[&pseudo, &packet[40..]].concat()), 0xffff);
    }

    /// The ones' complement sum of RFC 1071.
    fn sum(bytes: &[u8]) -> u32 {
        let words = bytes
            .chunks(2)
            .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
        words.fold(0, |sum, word| {
            let sum = sum + word;
            (sum & 0xffff) + (sum >> 16)
        })
    }

    #[test]
    fn a_reset_has_the_number_that_the_backend_expects_next() {
        for ends in both() {
            let packet = reset(&ends, u32::MAX).expect("it can be built");
            let tcp = &packet[packet.len() - 20..];
            assert_eq!(tcp[4..8], [0; 4]);
            assert_eq!(tcp[13], 0x04);
        }
    }

    #[test]
    fn a_tunnel_puts_a_header_in_front_and_leaves_the_rest() {
        let table = [
            // the inner's family, outer source and destination, the header's start
            (
                0,
                "198.18.1.2",
                "10.9.0.17",
                vec![0x45, 0, 0, 64, 0, 0, 0x40, 0, 64, 4],
            ),
            (
                1,
                "198.18.1.2",
                "10.9.0.17",
                vec![0x45, 0, 0, 84, 0, 0, 0x40, 0, 64, 41],
            ),
            (0, "100::1", "fd09::11", vec![0x60, 0, 0, 0, 0, 44, 4, 64]),
            (1, "100::1", "fd09::11", vec![0x60, 0, 0, 0, 0, 64, 41, 64]),
        ];
        for (family, source, destination, start) in table {
            let inner = syn(&both()[family], 1).expect("it can be built");
            let source = source.parse().expect("an address");
            let destination = destination.parse().expect("an address");
            let packet = wrap(&inner, source, destination).expect("it can be built");
            assert_eq!(packet[..start.len()], start);
            assert_eq!(packet[packet.len() - inner.len()..], inner);
        }
    }

    #[test]
    fn no_packet_joins_two_families() {
        let [v4, v6] = both();
        let mixed = Ends {
            here: v4.here,
            there: v6.there,
        };
        let error = syn(&mixed, 1).expect_err("there is no such packet");
        assert_eq!(
            error.to_string(),
            "no packet can go from 10.9.0.2 to fd09::100: only one of them is IPv4"
        );
    }

    #[test]
    fn answers_are_told_from_everything_else() {
        for ends in both() {
            let told = |flags| {
                let packet = from_service(&ends, flags, SEQUENCE.wrapping_add(1));
                answer(&packet)
            };
            let saying = |said| {
                Some(Answer {
                    ends,
                    sequence: SEQUENCE,
                    said,
                })
            };
            assert_eq!(told(0x12), saying(Said::Accepted));
            assert_eq!(told(0x14), saying(Said::Refused));
            for flags in [0x00, 0x02, 0x04, 0x06, 0x10, 0x11, 0x16] {
                assert_eq!(told(flags), None, "flags {flags:#04x}");
            }
        }
    }

    #[test]
    fn damaged_packets_are_no_answers() {
        for ends in both() {
            let packet = from_service(&ends, 0x12, SEQUENCE.wrapping_add(1));
            for length in 0..packet.len() {
                assert_eq!(answer(&packet[..length]), None, "{length} bytes");
            }
            // Every byte with every value: whatever it is, it is not a panic.
            for at in 0..packet.len() {
                for value in 0..=u8::MAX {
                    let mut damaged = packet.clone();
                    damaged[at] = value;
                    let _ = answer(&damaged);
                }
            }
            let padded = [&packet[..], &[0; 6]].concat();
            assert!(answer(&padded).is_some(), "a frame's padding is no damage");
        }
    }

    #[test]
    fn the_filter_lets_in_what_acknowledges_the_mark_and_nothing_else() {
        let whole = |ends: &Ends, flags| from_service(ends, flags, SEQUENCE.wrapping_add(1));
        for ends in both() {
            let accepted = whole(&ends, 0x12);
            let mut udp = accepted.clone();
            udp[if ends.there.is_ipv4() { 9 } else { 6 }] = 17;
            let table = [
                ("SYN-ACK", accepted.clone(), true),
                ("RST", whole(&ends, 0x14), true),
                ("SYN", whole(&ends, 0x02), false),
                ("ACK", whole(&ends, 0x10), false),
                ("RST without ACK", whole(&ends, 0x04), false),
                (
                    "another mark",
                    from_service(&ends, 0x12, 0xabce_0000),
                    false,
                ),
                ("UDP", udp, false),
                ("cut off", accepted[..accepted.len() - 10].to_vec(), false),
                ("empty", vec![0x45], false),
            ];
            for (what, packet, wanted) in table {
                assert_eq!(passes(&ends, &packet), wanted, "{what} of {ends:?}");
            }
        }
        let [v4, _] = both();
        let mut later_fragment = whole(&v4, 0x12);
        later_fragment[7] = 1;
        assert!(!passes(&v4, &later_fragment));
        // Four bytes of options.
        let mut longer = whole(&v4, 0x12);
        longer.splice(20..20, [1; 4]);
        longer[0] = 0x46;
        assert!(passes(&v4, &longer));
    }

    /// Whether the kernel lets it in: a filter does the same on every socket.
    fn passes(ends: &Ends, packet: &[u8]) -> bool {
        let (near, far) = UnixDatagram::pair().expect("a pair of sockets");
        far.set_nonblocking(true).expect("it can");
        let far = socket2::Socket::from(std::os::fd::OwnedFd::from(far));
        far.attach_filter(&filter(ends.there.is_ipv4(), MARK))
            .expect("the kernel takes the filter");
        near.send(packet).expect("it is sent, wanted or not");
        let far = UnixDatagram::from(std::os::fd::OwnedFd::from(far));
        let mut bytes = [0; MOST];
        far.recv(&mut bytes).is_ok()
    }
}
