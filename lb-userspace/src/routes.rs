//! Listens for changes of routes and neighbours, for the data path's sake.
//!
//! The data path asks the kernel's routing table once for a flow, and goes on with
//! the answer until something changes (`lb_ebpf::hops`). What the answer depends
//! on the kernel reports: routes, rules, next hops, neighbours, interfaces,
//! addresses and the settings of forwarding. A thread of its own, so that nothing
//! else that the daemon does comes between, waits for such reports, counts a change
//! for all that are there, and vouches for another [`VOUCHED`] every [`ROUND`]. If it
//! ends or hangs, the data path stops relying on it when that is over.
//!
//! A report is nearly always a reason to ask again; only neighbours are told of
//! every half minute without any change, so it is remembered what was last heard
//! of each ([`heard`]).
//!
//! Some reports come before their effect: that of a route which goes is sent before
//! it is taken out of the table, that of an interface before its routes have gone.
//! A packet in between would be noted with an old answer in the new epoch, so a
//! change is counted once more a [`ROUND`] later. And some changes are not reported
//! at all, such as an MTU that a router has told of, the expiry of what a router has
//! announced, or how paths are chosen (`fib_multipath_hash_policy`): for their sake
//! a change is counted every [`UNSEEN`] in any case.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use log::{error, warn};
use rtnetlink::packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::neighbour::NeighbourMessage;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{Socket, SocketAddr};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use thiserror::Error;

use crate::dataplane::Changes;
use crate::host;

mod heard;

use heard::Heard;

/// How long it waits at most before it vouches again.
const ROUND: Duration = Duration::from_millis(100);

/// For how long it vouches at a time; less than the second that the data path
/// takes for the most.
const VOUCHED: Duration = Duration::from_millis(750);

/// How long a change may go unnoticed of which nobody tells.
const UNSEEN: Duration = Duration::from_secs(10);

/// How long it rests when it has counted a change: in a flood of reports flows ask
/// again once in a while, and not for every report.
const REST: Duration = Duration::from_millis(1);

/// What is listened to (`RTNLGRP_*`, linux/rtnetlink.h).
const GROUPS: [u32; 11] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_NEIGH,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV4_RULE,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV6_ROUTE,
    libc::RTNLGRP_IPV6_RULE,
    libc::RTNLGRP_IPV4_NETCONF,
    libc::RTNLGRP_IPV6_NETCONF,
    libc::RTNLGRP_NEXTHOP,
];

/// How much may wait to be read: what does not fit is reported as lost, and
/// counts as a change.
const QUEUE: usize = 1 << 20;

/// Reports that come together are one change; so many at most.
const BATCH: usize = 256;

/// No netlink socket, or no thread.
#[derive(Debug, Error)]
#[error("cannot listen to the kernel about routes (netlink): {0}")]
pub struct RoutesError(#[from] io::Error);

/// Listens; stops when dropped.
#[derive(Debug)]
pub struct Routes {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Routes {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // It tells of its own troubles itself.
            let _ = thread.join();
        }
    }
}

impl Routes {
    /// Listens from now on, in the calling thread's network namespace.
    pub fn listen(changes: Arc<Changes>) -> Result<Self, RoutesError> {
        let listener = Listener::begin(QUEUE)?;
        let ended = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&ended);
        let thread = thread::Builder::new()
            .name("routes".into())
            .spawn(move || attend(listener, &changes, &end))?;
        Ok(Self {
            ended,
            thread: Some(thread),
        })
    }
}

fn attend(mut listener: Listener, changes: &Changes, end: &AtomicBool) {
    let vouched = u32::try_from(VOUCHED.as_millis()).unwrap_or(0) * host::ticks_per_second() / 1000;
    // What happened before it listened.
    changes.count();
    let mut due = Instant::now() + ROUND;
    while !end.load(Ordering::Acquire) {
        // Vouched is from before it looked: what comes while it is held up it has
        // not seen.
        let now = changes.now();
        let changed = match listener.look() {
            Ok(changed) => changed,
            Err(error) => {
                error!(
                    "cannot hear of changed routes any more: {error}; packets go on, but each flow asks for its way again and again until lb is restarted"
                );
                break;
            }
        };
        if changed || Instant::now() >= due {
            changes.count();
            due = Instant::now() + if changed { ROUND } else { UNSEEN };
        }
        changes.vouch(now.wrapping_add(vouched));
        if changed {
            thread::sleep(REST);
        }
        wait(&listener.socket);
    }
    changes.vouch(changes.now());
}

/// Waits for a report, one round at most.
fn wait(socket: &Socket) {
    let mut sockets = [PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN)];
    let round = Timespec::try_from(ROUND).ok();
    if let Err(error) = poll(&mut sockets, round.as_ref())
        && error != rustix::io::Errno::INTR
    {
        warn!("cannot wait for changed routes: {error}");
        thread::sleep(ROUND);
    }
}

/// A socket on which reports come, and what was heard.
struct Listener {
    socket: Socket,
    buffer: Vec<u8>,
    /// How many reports it reads at a time.
    batch: usize,
    heard: Heard,
}

impl Listener {
    /// So many bytes of reports may wait.
    fn begin(queue: usize) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        socket.set_non_blocking(true)?;
        set_socket_recv_buffer_size_force(&socket, queue)?;
        for group in GROUPS {
            socket.add_membership(group)?;
        }
        let mut listener = Self {
            socket,
            buffer: Vec::with_capacity(1 << 16),
            batch: BATCH,
            heard: Heard::default(),
        };
        listener.ask_for_neighbours()?;
        Ok(listener)
    }

    /// Reads what waits, a bounded number of reports; whether there may have been a
    /// change.
    ///
    /// When reports are lost the kernel says so once, and goes on losing them until
    /// the queue has been empty. So it is not over before that, and then the kernel
    /// is asked for what may have been missed.
    fn look(&mut self) -> io::Result<bool> {
        let mut changed = false;
        let mut emptied = false;
        for _ in 0..self.batch {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(_) => changed |= self.heard.changes(&self.buffer),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    emptied = true;
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => self.heard.miss(),
                Err(error) => return Err(error),
            }
        }
        changed |= self.heard.missed();
        if emptied && self.heard.is_to_ask() {
            self.ask_for_neighbours()?;
        }
        Ok(changed)
    }

    /// Asks for all neighbours: they come like reports.
    fn ask_for_neighbours(&mut self) -> io::Result<()> {
        let question = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
        let mut message = NetlinkMessage::new(NetlinkHeader::default(), question.into());
        message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.heard.ask();
        self.socket.send(&bytes, 0).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;
    use std::net::{Ipv4Addr, UdpSocket};
    use std::process::{Command, Stdio};

    use rustix::thread::{UnshareFlags, unshare_unsafe};

    use super::*;

    /// Runs commands of `ip` in the calling thread's network namespace.
    fn ip(commands: &str) {
        let mut ip = Command::new("ip")
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("`ip` is there");
        let mut input = ip.stdin.take().expect("it reads");
        input.write_all(commands.as_bytes()).expect("it reads all");
        drop(input);
        assert!(ip.wait().expect("it ends").success());
    }

    /// Looks until nothing waits; whether anything was a change.
    fn settle(listener: &mut Listener) -> bool {
        let mut changed = false;
        for _ in 0..10_000 {
            changed |= listener.look().expect("it hears");
        }
        changed
    }

    /// In a network namespace of its own, with an interface `one` on which nobody
    /// answers, and one neighbour whose link address is known: what `test` gives. So
    /// many bytes of reports may wait.
    fn beside_nobody<T: Send>(queue: usize, test: impl FnOnce(&mut Listener) -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                // SAFETY: only the network namespace is unshared; file descriptors,
                // of which the function warns, stay as they are.
                unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.expect("these tests need root");
                let mut listener = Listener::begin(queue).expect("there is netlink");
                ip("link add one type veth peer name other\nlink set one up\n\
                    link set other up\naddr add 10.0.0.1/24 dev one\n");
                ip(&format!("{NEIGHBOUR} stale\n"));
                // The links' own reports come a moment later.
                thread::sleep(ROUND);
                settle(&mut listener);
                assert!(!settle(&mut listener));
                test(&mut listener)
            });
            inside.join().expect("it does not panic")
        })
    }

    const NEIGHBOUR: &str = "neigh replace 10.0.0.2 lladdr 02:00:00:00:00:02 dev one nud";

    #[test]
    fn going_through_the_silent_addresses_of_a_network_is_no_change() {
        beside_nobody(QUEUE, |listener| {
            for (setting, value) in [("mcast_solicit", "1"), ("retrans_time_ms", "10")] {
                let path = format!("/proc/sys/net/ipv4/neigh/one/{setting}");
                fs::write(path, value).expect("root may");
            }
            let socket = UdpSocket::bind("0.0.0.0:0").expect("there is an address");
            for host in 100..150 {
                // That nobody is there is told to the next one.
                let _ = socket.send_to(b"anybody?", (Ipv4Addr::new(10, 0, 0, host), 9));
            }
            let failed = || {
                let listed = Command::new("ip").args(["neigh"]).output();
                let listed = String::from_utf8(listed.expect("`ip` is there").stdout);
                listed.expect("it is text").matches("FAILED").count()
            };
            let mut looks = 0;
            while failed() < 50 && looks < 1000 {
                assert!(!listener.look().expect("it hears"));
                looks += 1;
            }
            assert!(!settle(listener), "all have failed");
            ip("neigh flush dev one nud failed\n");
            assert_eq!(failed(), 0);
            assert!(!settle(listener), "all are gone");
            ip("neigh del 10.0.0.2 dev one\n");
            assert!(settle(listener), "one that was there is gone");
        });
    }

    #[test]
    fn what_is_lost_after_the_kernel_said_that_reports_are_lost_is_a_change() {
        beside_nobody(4096, |listener| {
            listener.batch = 1;
            // Many reports, none of which is a change: not all fit.
            let again = format!("{NEIGHBOUR} reachable\n{NEIGHBOUR} stale\n");
            ip(&again.repeat(100));
            assert!(listener.look().expect("it hears"));
            assert!(listener.heard.missed());
            // The socket is still full: nobody is told of this.
            ip("route add 10.1.0.0/24 via 10.0.0.2\n");
            let mut last = false;
            let mut looks = 0;
            while listener.heard.missed() && looks < 10_000 {
                last = listener.look().expect("it hears");
                looks += 1;
            }
            assert!(looks > 1, "there were more reports");
            assert!(!listener.heard.missed());
            assert!(last);
        });
    }
}
