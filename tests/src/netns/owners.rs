//! Who answers for an address: every node is asked, at its own link address, again
//! and again, and what comes back is noted with the moment and the node.
//!
//! A neighbour's cache never says that two answer; so this does not use one. The
//! questions come from a host of their own, with an address and a link address that
//! nobody has, so that no answer moves anybody's traffic. What the stack of a node
//! answers itself (segments) goes to that host, which has asked nothing and is silent.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};

use super::{Host, Wire};
use crate::frame::{Link, icmp, ping, tcp};

/// From one round of questions to the next.
pub const EVERY: Duration = Duration::from_millis(1);

/// Who asks for neighbours, and pings: nobody.
const ASKER: Link = [2, 0, 0, 0, 0x99, 1];
const ASKER_V4: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 250);
const ASKER_V6: Ipv6Addr = Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 0x250);

/// A port at which nothing is served: the stack answers with a RST.
const NO_PORT: u16 = 81;

/// What a node is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Asked {
    /// Who has the address: ARP, or a neighbour solicitation.
    Neighbour,
    /// What a segment of no connection is answered with: the host's stack sends a RST.
    Segment,
    /// A ping, which the data path answers.
    Ping,
}

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answered {
    /// When it came.
    pub at: Instant,
    /// Which node's link address it came from.
    pub node: usize,
    /// What it answers.
    pub to: Asked,
}

/// See the module. Dropped, it asks no more.
pub struct Owners {
    ended: Arc<AtomicBool>,
    answers: Arc<Mutex<Vec<Answered>>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Owners {
    /// Begins to ask these nodes from a host, by `eth0`.
    pub fn watch(host: &Host, address: IpAddr, nodes: &[&Host]) -> Result<Self> {
        let links: Vec<Link> = nodes
            .iter()
            .map(|node| link(&node.card("eth0")?))
            .collect::<Result<_>>()?;
        let own = link(&host.card("eth0")?)?;
        let rounds: Vec<[Vec<u8>; 3]> = links
            .iter()
            .map(|&node| questions(host, own, address, node))
            .collect();
        let (ended, answers) = (
            Arc::<AtomicBool>::default(),
            Arc::<Mutex<Vec<Answered>>>::default(),
        );
        let (end, noted) = (Arc::clone(&ended), Arc::clone(&answers));
        let thread = host.spawn(move || {
            let wire = Wire::listening("eth0")?;
            let mut next = Instant::now();
            let mut buffer = [0; 256];
            while !end.load(Ordering::Relaxed) {
                let now = Instant::now();
                if next <= now {
                    for frame in rounds.iter().flatten() {
                        wire.send(frame)?;
                    }
                    // A round that is missed is missed.
                    next = (next + EVERY).max(now);
                }
                wire.wait(next.saturating_duration_since(now))?;
                while let Some(frame) = wire.receive(&mut buffer)? {
                    let at = Instant::now();
                    let Some(node) = links.iter().position(|link| frame[6..12] == *link) else {
                        continue;
                    };
                    if let Some(to) = answers_to(frame, address) {
                        let mut noted = noted.lock().unwrap_or_else(PoisonError::into_inner);
                        noted.push(Answered { at, node, to });
                    }
                }
            }
            Ok(())
        });
        Ok(Self {
            ended,
            answers,
            thread: Some(thread),
        })
    }

    /// The answers since then, in the order in which they came.
    pub fn since(&self, since: Instant) -> Vec<Answered> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let later = answers.iter().filter(|answer| answer.at > since);
        later.copied().collect()
    }

    /// Ends, and gives the answers since then.
    pub fn finish(mut self, since: Instant) -> Result<Vec<Answered>> {
        self.ended.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("it has not been waited for")?;
        thread
            .join()
            .map_err(|_| anyhow!("the one who asks panicked"))??;
        Ok(self.since(since))
    }
}

impl Drop for Owners {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // What it says does not matter any more.
            let _ = thread.join();
        }
    }
}

fn link(text: &str) -> Result<Link> {
    let bytes: Vec<u8> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16))
        .collect::<Result<_, _>>()?;
    bytes
        .try_into()
        .map_err(|_| anyhow!("{text} is no link address"))
}

/// One of each kind, for a node.
fn questions(host: &Host, own: Link, address: IpAddr, node: Link) -> [Vec<u8>; 3] {
    let (asker, sender, port) = match address {
        IpAddr::V4(_) => (
            ASKER_V4.to_string(),
            host.v4.to_string(),
            format!("{address}:{NO_PORT}"),
        ),
        IpAddr::V6(_) => (
            ASKER_V6.to_string(),
            format!("[{}]", host.v6),
            format!("[{address}]:{NO_PORT}"),
        ),
    };
    let neighbour = match address {
        IpAddr::V4(address) => arp_request(address, node),
        IpAddr::V6(target) => {
            // The target, and the source's link address (RFC 4861, section 4.3).
            let mut behind = target.octets().to_vec();
            behind.extend([1, 1]);
            behind.extend(ASKER);
            icmp(&asker, &address.to_string(), 135, 0, [0; 4])
                .payload(&behind)
                .ttl(255)
                .over([ASKER, node])
                .bytes()
        }
    };
    let segment = tcp(&format!("{sender}:9"), &port).ack(1).over([own, node]);
    // The host has the stack answer; the asker's own would have to be resolved.
    let sender = match address {
        IpAddr::V4(_) => host.v4.to_string(),
        IpAddr::V6(_) => host.v6.to_string(),
    };
    let ping = ping(&sender, &address.to_string(), 9, 9, b"").over([own, node]);
    [neighbour, segment.bytes(), ping.bytes()]
}

fn arp_request(target: Ipv4Addr, node: Link) -> Vec<u8> {
    const ETHERNET_IPV4_REQUEST: [u8; 8] = [0, 1, 0x08, 0x00, 6, 4, 0, 1];
    let mut frame = [node, ASKER].concat();
    frame.extend([0x08, 0x06]);
    frame.extend(ETHERNET_IPV4_REQUEST);
    frame.extend(ASKER);
    frame.extend(ASKER_V4.octets());
    frame.extend([0; 6]);
    frame.extend(target.octets());
    frame
}

/// What a frame of a node answers, if it speaks for the address to the asker.
fn answers_to(frame: &[u8], address: IpAddr) -> Option<Asked> {
    const ARP: [u8; 2] = [0x08, 0x06];
    const IPV4: [u8; 2] = [0x08, 0x00];
    const RST: u8 = 0x04;
    // Announcements are to everybody.
    if frame.first()? & 1 != 0 {
        return None;
    }
    let kind = frame.get(12..14)?;
    match address {
        IpAddr::V4(address) if kind == ARP => {
            let speaks = frame.get(20..22)? == [0, 2] && frame.get(28..32)? == address.octets();
            speaks.then_some(Asked::Neighbour)
        }
        IpAddr::V4(address) => {
            if kind != IPV4 || frame.get(26..30)? != address.octets() {
                return None;
            }
            match *frame.get(23)? {
                1 if *frame.get(34)? == 0 => Some(Asked::Ping),
                6 if frame.get(47)? & RST != 0 => Some(Asked::Segment),
                _ => None,
            }
        }
        IpAddr::V6(address) => {
            // An advertisement may come from another address of the node.
            let (from, behind) = (frame.get(22..38)?, frame.get(54..)?);
            match (*frame.get(20)?, *behind.first()?) {
                (58, 136) if behind.get(8..24)? == address.octets() => Some(Asked::Neighbour),
                (58, 129) if from == address.octets() => Some(Asked::Ping),
                (6, _) if from == address.octets() && behind.get(13)? & RST != 0 => {
                    Some(Asked::Segment)
                }
                _ => None,
            }
        }
    }
}
