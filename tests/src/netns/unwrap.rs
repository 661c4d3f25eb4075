//! A backend that unwraps tunnel packets without the kernel's help: raw sockets
//! hear them, after the stack has put their fragments together, and what was
//! inside is put on the loopback interface.
//!
//! `lb decap` does it better; this one is another's opinion of what a tunnel
//! packet is, and takes those that arrive in fragments.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::net::sockopt::{Timeout, set_socket_recv_buffer_size_force, set_socket_timeout};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketType, ipproto, recv, socket};

use super::{Family, Host, Wire};

/// How often an idle thread looks whether it is to end.
const GLANCE: Duration = Duration::from_millis(50);

/// See the module.
#[derive(Debug)]
pub struct Unwrapper {
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Unwrapper {
    /// Begins to unwrap what comes to a host: either family outside, either
    /// inside.
    pub fn start(host: &Host) -> Result<Self> {
        let mut unwrapper = Self {
            ended: Arc::default(),
            threads: Vec::new(),
        };
        for outer in Family::ALL {
            for inner in Family::ALL {
                let sockets = host.enter(|| open(outer, inner));
                let (socket, lo) =
                    sockets.with_context(|| format!("{} cannot unwrap", host.name))?;
                let ended = Arc::clone(&unwrapper.ended);
                unwrapper.threads.push(thread::spawn(move || {
                    while !ended.load(Ordering::Relaxed) {
                        let _ = unwrap_one(&socket, outer, inner, &lo);
                    }
                }));
            }
        }
        Ok(unwrapper)
    }
}

impl Drop for Unwrapper {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn open(outer: Family, inner: Family) -> Result<(OwnedFd, Wire)> {
    let domain = match outer {
        Family::V4 => AddressFamily::INET,
        Family::V6 => AddressFamily::INET6,
    };
    // RFC 2003 and RFC 4213, or RFC 2473.
    let protocol: Protocol = match inner {
        Family::V4 => ipproto::IPIP,
        Family::V6 => ipproto::IPV6,
    };
    let socket = socket(domain, SocketType::RAW, Some(protocol))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(GLANCE))?;
    set_socket_recv_buffer_size_force(&socket, 16 << 20)?;
    Ok((socket, Wire::open("lo")?))
}

/// `None` where nothing came, or nothing that is a packet.
fn unwrap_one(socket: &OwnedFd, outer: Family, inner: Family, lo: &Wire) -> Option<()> {
    let mut packet = [0; 1 << 16];
    let (length, _) = recv(socket, &mut packet[..], RecvFlags::empty()).ok()?;
    let mut packet = packet.get(..length)?;
    if outer == Family::V4 {
        // Only IPv4 shows its header.
        packet = packet.get(usize::from(packet.first()? & 15) * 4..)?;
    }
    let (version, ether_type) = match inner {
        Family::V4 => (4, [0x08, 0x00]),
        Family::V6 => (6, [0x86, 0xdd]),
    };
    if packet.first()? >> 4 != version {
        return None;
    }
    let frame = [&[0; 12][..], &ether_type, packet].concat();
    lo.send(&frame).ok()
}
