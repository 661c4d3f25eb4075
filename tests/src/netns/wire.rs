//! Frames as they are: put on a wire byte by byte, and written down as they
//! arrive behind an interface's XDP program.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::ptr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::netdevice::name_to_index;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketType, bind, recvfrom, sendto, socket,
};
use rustix::process::{Pid, Signal, kill_process};

use super::{Host, wait_until};

/// How long tcpdump may take to begin or to end.
const BOUND: Duration = Duration::from_secs(30);

/// An interface by which frames go out.
#[derive(Debug)]
pub struct Wire {
    socket: OwnedFd,
    end: LinkEnd,
}

impl Wire {
    /// An interface of the calling thread's host.
    pub fn open(interface: &str) -> Result<Self> {
        // Without a protocol it receives nothing.
        let socket = socket(AddressFamily::PACKET, SocketType::RAW, None)
            .context("cannot open a packet socket; this needs root")?;
        let index = name_to_index(&socket, interface)
            .with_context(|| format!("there is no interface {interface}"))?;
        let end = LinkEnd {
            family: AddressFamily::PACKET.as_raw(),
            protocol: 0,
            index,
            hardware: 0,
            kind: 0,
            address_length: 0,
            address: [0; 8],
        };
        Ok(Self { socket, end })
    }

    /// The same, and it receives every frame, for whoever reads them.
    pub(super) fn listening(interface: &str) -> Result<Self> {
        const EVERYTHING: u16 = 3_u16.to_be();
        let mut wire = Self::open(interface)?;
        wire.end.protocol = EVERYTHING;
        bind(&wire.socket, &wire.end)?;
        Ok(wire)
    }

    /// The next frame that came in, if one did: its first bytes in `buffer`.
    pub(super) fn receive<'a>(&self, buffer: &'a mut [u8]) -> Result<Option<&'a [u8]>> {
        match recvfrom(&self.socket, &mut *buffer, RecvFlags::DONTWAIT) {
            Ok((length, _, _)) => Ok(Some(&buffer[..length])),
            Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(None),
            Err(error) => Err(error).context("cannot receive frames"),
        }
    }

    /// Waits until a frame has come in, at most so long.
    pub(super) fn wait(&self, at_most: Duration) -> Result<()> {
        let timeout = Timespec {
            tv_sec: 0,
            tv_nsec: at_most.subsec_nanos().into(),
        };
        let mut awaited = [PollFd::new(&self.socket, PollFlags::IN)];
        match poll(&mut awaited, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error).context("cannot wait for frames"),
        }
    }

    /// Sends a frame, link header first.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        let sent = sendto(&self.socket, frame, SendFlags::empty(), &self.end)
            .with_context(|| format!("cannot send a frame of {} bytes", frame.len()))?;
        ensure!(sent == frame.len(), "only {sent} bytes were sent");
        Ok(())
    }
}

/// The kernel's `sockaddr_ll`.
#[repr(C)]
#[derive(Debug)]
struct LinkEnd {
    family: u16,
    protocol: u16,
    index: u32,
    hardware: u16,
    kind: u8,
    address_length: u8,
    address: [u8; 8],
}

// SAFETY: the pointer and the length are those of `self`, which has the
// kernel's layout and outlives the call.
unsafe impl SocketAddrArg for LinkEnd {
    unsafe fn with_sockaddr<R>(
        &self,
        f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R,
    ) -> R {
        const LENGTH: SocketAddrLen = size_of::<LinkEnd>() as SocketAddrLen;
        f(ptr::from_ref(self).cast(), LENGTH)
    }
}

/// tcpdump on an interface. It sees what the XDP program lets through, before
/// the host's stack does, with VLAN tags where they were, and in order: of the
/// listeners to an interface the kernel keeps the oldest waiting for frames of
/// which nobody else wants to hear, until it is through with a batch
/// (`__netif_receive_skb_list_core`). So an older one listens as well.
#[derive(Debug)]
pub struct Capture {
    child: Child,
    file: PathBuf,
    log: PathBuf,
    _older: Wire,
}

impl Capture {
    /// Begins to write down what comes in by `interface` and passes `filter`.
    pub fn start(host: &Host, interface: &str, filter: &str, file: &Path) -> Result<Self> {
        let older = host.enter(|| Wire::listening(interface))?;
        let log = file.with_extension("log");
        let mut command = host.command("tcpdump");
        command
            .args(["-i", interface, "-Q", "in", "-U", "--immediate-mode", "-n"])
            // As root, so that it may write where the test does.
            .args(["-Z", "root", "-s", "0", "-B", "65536", "-w"])
            .arg(file)
            .arg(filter)
            .stdin(Stdio::null())
            .stderr(File::create(&log)?);
        let child = command
            .spawn()
            .context("cannot run tcpdump; it is in Debian's package of that name")?;
        let mut capture = Self {
            child,
            file: file.to_owned(),
            log,
            _older: older,
        };
        wait_until("tcpdump listens", BOUND, || {
            let ended = capture.child.try_wait()?;
            ensure!(ended.is_none(), "tcpdump ended: {}", capture.logged());
            Ok(capture.logged().contains("listening on"))
        })?;
        Ok(capture)
    }

    /// The frames so far.
    pub fn frames(&self) -> Result<Vec<Vec<u8>>> {
        let file = fs::read(&self.file).unwrap_or_default();
        // A file header of 24 bytes; before each frame a header of 16, with the
        // length that was kept and the one that the frame had.
        let mut rest = file.get(24..).unwrap_or_default();
        let mut frames = Vec::new();
        while let Some((head, behind)) = rest.split_at_checked(16) {
            let word = |at: usize| {
                let bytes = [head[at], head[at + 1], head[at + 2], head[at + 3]];
                u32::from_le_bytes(bytes) as usize
            };
            ensure!(word(8) == word(12), "tcpdump has cut a frame off");
            let Some((frame, next)) = behind.split_at_checked(word(8)) else {
                break;
            };
            frames.push(frame.to_vec());
            rest = next;
        }
        Ok(frames)
    }

    /// Ends, and gives all frames. That none was lost is what tcpdump says.
    pub fn stop(mut self) -> Result<Vec<Vec<u8>>> {
        kill_process(Pid::from_child(&self.child), Signal::INT)?;
        let deadline = Instant::now() + BOUND;
        while self.child.try_wait()?.is_none() {
            ensure!(Instant::now() < deadline, "tcpdump does not end");
            thread::sleep(Duration::from_millis(5));
        }
        let log = self.logged();
        ensure!(
            log.contains("\n0 packets dropped by kernel"),
            "tcpdump has lost frames: {log}"
        );
        self.frames()
    }

    fn logged(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
