//! What a host hears by ICMP, and pings.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketType, ipproto, recvfrom, sendto, socket,
};

use super::Family;

/// A socket that hears the ICMP messages for a host, beside its stack.
#[derive(Debug)]
pub struct Ear {
    socket: OwnedFd,
    family: Family,
}

/// An ICMP message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// Who sent it.
    pub from: IpAddr,
    /// Its family.
    pub family: Family,
    /// All of it, type first.
    pub message: Vec<u8>,
}

impl Ear {
    /// On the calling thread's host.
    pub fn open(family: Family) -> Result<Self> {
        let (domain, protocol) = match family {
            Family::V4 => (AddressFamily::INET, ipproto::ICMP),
            Family::V6 => (AddressFamily::INET6, ipproto::ICMPV6),
        };
        let socket = socket(domain, SocketType::RAW, Some(protocol))
            .context("cannot open a raw socket; this needs root")?;
        Ok(Self { socket, family })
    }

    /// Waits for a message that `wanted` makes something of; `what` is told if
    /// none comes.
    pub fn hear<T>(
        &self,
        what: &str,
        patience: Duration,
        mut wanted: impl FnMut(&Heard) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + patience;
        let mut others = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("waited {patience:?} in vain for {what}; heard {others:?}");
            }
            match self.next(left)? {
                None => {}
                Some(heard) => match wanted(&heard) {
                    Some(found) => return Ok(found),
                    None => others.push((heard.from, heard.message.first().copied())),
                },
            }
        }
    }

    fn next(&self, patience: Duration) -> Result<Option<Heard>> {
        set_socket_timeout(&self.socket, Timeout::Recv, Some(patience))?;
        let mut packet = vec![0; 1 << 16];
        let (length, from) = match recvfrom(&self.socket, &mut packet[..], RecvFlags::empty()) {
            Ok((_, length, from)) => (length, from),
            Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
            Err(error) => return Err(error).context("cannot hear"),
        };
        packet.truncate(length);
        let from = SocketAddr::try_from(from.context("a packet has a sender")?)?;
        // Only IPv4 shows its header.
        let header = match self.family {
            Family::V4 => usize::from(packet[0] & 15) * 4,
            Family::V6 => 0,
        };
        Ok(Some(Heard {
            from: from.ip(),
            family: self.family,
            message: packet.split_off(header),
        }))
    }
}

impl Heard {
    /// The MTU, if it says that a packet was too big.
    pub fn too_big(&self) -> Option<u32> {
        match (self.family, self.message.as_slice()) {
            (Family::V4, [3, 4, _, _, _, _, high, low, ..]) => {
                Some(u16::from_be_bytes([*high, *low]).into())
            }
            (Family::V6, [2, 0, _, _, mtu @ ..]) => {
                mtu.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
            }
            _ => None,
        }
    }

    /// Whether it says that a packet's TTL or hop limit ran out on the way.
    pub fn time_exceeded(&self) -> bool {
        let kind = match self.family {
            Family::V4 => 11,
            Family::V6 => 3,
        };
        self.message.starts_with(&[kind, 0])
    }

    /// The ends of the packet that it quotes, if that had no options.
    pub fn about(&self) -> Option<[SocketAddr; 2]> {
        let quoted = self.message.get(8..)?;
        let end = |address: IpAddr, ports: usize| {
            let port = quoted.get(ports..ports + 2)?;
            Some(SocketAddr::new(
                address,
                u16::from_be_bytes(port.try_into().ok()?),
            ))
        };
        match self.family {
            Family::V4 => {
                let address =
                    |at: usize| Some(IpAddr::from(*quoted.get(at..)?.first_chunk::<4>()?));
                Some([end(address(12)?, 20)?, end(address(16)?, 22)?])
            }
            Family::V6 => {
                let address =
                    |at: usize| Some(IpAddr::from(*quoted.get(at..)?.first_chunk::<16>()?));
                Some([end(address(8)?, 40)?, end(address(24)?, 42)?])
            }
        }
    }
}

/// Sends a ping from the calling thread's host and waits for the answer, which
/// must have the same number and payload and come from whom it was sent to.
pub fn ping(to: IpAddr, number: u16, payload: &[u8], patience: Duration) -> Result<()> {
    let (family, request, answer) = match to {
        IpAddr::V4(_) => (Family::V4, 8, 0),
        IpAddr::V6(_) => (Family::V6, 128, 129),
    };
    let ear = Ear::open(family)?;
    let identifier = 0x1b1b_u16;
    let mut message = vec![request, 0, 0, 0];
    message.extend(identifier.to_be_bytes());
    message.extend(number.to_be_bytes());
    message.extend(payload);
    if family == Family::V4 {
        // The kernel does it for ICMPv6.
        let check = checksum(&message);
        message[2..4].copy_from_slice(&check.to_be_bytes());
    }
    let end = SocketAddr::new(to, 0);
    sendto(&ear.socket, &message, SendFlags::empty(), &end)
        .with_context(|| format!("cannot send a ping to {to}"))?;
    let what = format!("an answer to a ping of {} bytes to {to}", payload.len());
    ear.hear(&what, patience, |heard| {
        let same = heard.from == to
            && heard.message.first() == Some(&answer)
            && heard.message.get(4..) == message.get(4..);
        same.then_some(())
    })
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
