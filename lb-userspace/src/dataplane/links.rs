//! Attaching the program to interfaces, by links that outlive the daemon.
//!
//! A link belongs to a device, not to its name: the device may be renamed, or
//! vanish and leave the link behind with nothing to hold on to. So a pinned link
//! is taken over only if the device has its very program, in the mode that is
//! wanted. (Devices that have exchanged their names are told apart by nobody,
//! and nothing: each has this program afterwards.)

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use aya::maps::MapError;
use aya::maps::xdp::XdpMapError;
use aya::programs::ProgramError;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::{XdpLink, XdpMode as AyaMode};
use rustix::io::Errno;
use thiserror::Error;

use super::{Attached, Dataplane};

/// The kernel detaches a program some moments after its link is closed.
const LET_GO: Duration = Duration::from_secs(1);

/// How the program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// By the driver.
    Native,
    /// By the kernel's network stack, after it made a socket buffer.
    Generic,
}

impl Mode {
    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }

    const fn flag(self) -> AyaMode {
        match self {
            Self::Native => AyaMode::Driver,
            Self::Generic => AyaMode::Skb,
        }
    }
}

/// The program that a device has, whosever it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carried {
    /// How it is attached.
    pub mode: Mode,
    /// Its number in the kernel, where that is known.
    pub program: Option<u32>,
}

/// How the program came to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Came {
    /// By a new link.
    New,
    /// Into a link that was there: no packet passed without a program.
    TookOver,
}

/// Why the program could not be attached.
#[derive(Debug, Error)]
pub enum AttachError {
    /// The device, or its driver, does not take it in this mode.
    #[error("cannot attach to {device} in {} mode: {source}{}", mode.name(), advice(*mode))]
    Refused {
        /// The device.
        device: String,
        /// The mode.
        mode: Mode,
        /// What the kernel said.
        source: io::Error,
    },
    /// There is another program.
    #[error(
        "{0} already has an XDP program (another lb with its own pin folder, or another tool); detach it first: `bpftool net` shows it"
    )]
    Busy(String),
    /// Anything else.
    #[error("{0:#}")]
    Failed(#[from] anyhow::Error),
}

const fn advice(mode: Mode) -> &'static str {
    match mode {
        Mode::Native => {
            "; its driver may have none: node.xdp_mode = \"auto\" falls back to generic mode"
        }
        Mode::Generic => "",
    }
}

impl Dataplane {
    /// Attaches the program to a device, which now has the program `has`: into
    /// the link that is pinned for it, if that is it and in the wanted mode, or
    /// by a new one.
    pub fn attach(
        &mut self,
        device: &str,
        index: u32,
        mode: Mode,
        has: Option<Carried>,
    ) -> Result<Came, AttachError> {
        self.program.object()?;
        self.follow_rename(device, index)?;
        let pin = self.link_pin(device);
        let mut let_go = false;
        let mut taken = None;
        if pin.exists() {
            if let Some(has) = has.filter(|has| has.mode == mode) {
                taken = self.exchange(&pin, has)?;
            }
            if taken.is_none() {
                self.links.remove(device);
                remove_pin(&pin)?;
                let_go = true;
            }
        }
        let (link, came) = match taken {
            Some(link) => (link, Came::TookOver),
            None => {
                // What nobody had when it was last looked at, or had before this
                // process came, may be on its way out as well.
                let_go |= has.is_none() || self.links.is_empty();
                let link = self.new_link(device, index, mode, let_go)?;
                let pinned = link
                    .pin(&pin)
                    .with_context(|| format!("cannot pin the link of {device}"))?;
                (FdLink::from(pinned), Came::New)
            }
        };
        self.links.insert(
            device.to_owned(),
            Attached {
                index,
                link,
                fresh: came == Came::New,
            },
        );
        Ok(came)
    }

    /// A device that is attached under another name has been renamed.
    fn follow_rename(&mut self, device: &str, index: u32) -> anyhow::Result<()> {
        let old = self
            .links
            .iter()
            .find(|(name, attached)| attached.index == index && *name != device)
            .map(|(name, _)| name.clone());
        if let Some(old) = old
            && let Some(attached) = self.links.remove(&old)
        {
            let (from, to) = (self.link_pin(&old), self.link_pin(device));
            fs::rename(&from, &to)
                .with_context(|| format!("cannot rename {} to {}", from.display(), to.display()))?;
            self.links.insert(device.to_owned(), attached);
        }
        Ok(())
    }

    /// Puts this program into a pinned link; `None` when its device is not this
    /// one any more.
    fn exchange(&mut self, pin: &Path, has: Carried) -> anyhow::Result<Option<FdLink>> {
        let opened = || format!("cannot open the pinned link {}", pin.display());
        let link = FdLink::from(PinnedLink::from_pin(pin).with_context(opened)?);
        let program_of_link = link.info().with_context(opened)?.program_id();
        if has.program.is_some_and(|has| has != program_of_link) {
            return Ok(None);
        }
        let link = XdpLink::try_from(link)
            .with_context(|| format!("{} is not a link of an XDP program", pin.display()))?;
        let xdp = self.program.program()?;
        match xdp.attach_to_link(link) {
            Ok(id) => Ok(Some(FdLink::try_from(xdp.take_link(id)?)?)),
            Err(ProgramError::SyscallError(error))
                if Errno::from_io_error(&error.io_error) == Some(Errno::NOLINK) =>
            {
                Ok(None)
            }
            Err(error) => Err(error)
                .with_context(|| format!("cannot exchange the program of {}", pin.display())),
        }
    }

    /// Makes a link; where another program may be on its way out, waits for
    /// that.
    fn new_link(
        &mut self,
        device: &str,
        index: u32,
        mode: Mode,
        patient: bool,
    ) -> Result<FdLink, AttachError> {
        let deadline = Instant::now() + if patient { LET_GO } else { Duration::ZERO };
        loop {
            match self.try_attach(index, mode) {
                Ok(link) => return Ok(link),
                Err(error) if busy(&error) && Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(5));
                }
                Err(error) if busy(&error) => return Err(AttachError::Busy(device.to_owned())),
                Err(source) => {
                    return Err(AttachError::Refused {
                        device: device.to_owned(),
                        mode,
                        source,
                    });
                }
            }
        }
    }

    fn try_attach(&mut self, index: u32, mode: Mode) -> io::Result<FdLink> {
        let xdp = self.program.program().map_err(io::Error::other)?;
        let id = xdp
            .attach_to_if_index(index, mode.flag())
            .map_err(|error| match error {
                ProgramError::SyscallError(error) => error.io_error,
                other => io::Error::other(other),
            })?;
        let link = xdp.take_link(id).map_err(io::Error::other)?;
        FdLink::try_from(link).map_err(io::Error::other)
    }

    fn link_pin(&self, device: &str) -> PathBuf {
        self.pin_path.join(format!("link-{device}"))
    }

    /// Detaches from devices that are attached or pinned but not in `keep`.
    pub fn detach_others(&mut self, keep: &[String]) -> anyhow::Result<Vec<String>> {
        let mut detached = linked(&self.pin_path)?;
        detached.retain(|device| !keep.contains(device));
        for device in &detached {
            self.detach(device)?;
        }
        Ok(detached)
    }

    /// Detaches from a device, or forgets one that has gone.
    pub fn detach(&mut self, device: &str) -> anyhow::Result<()> {
        self.links.remove(device);
        remove_pin(&self.link_pin(device))
    }

    /// Lets the program send through these devices and no others. One that is
    /// just going is left out; word of it follows.
    pub fn set_devices(&mut self, wanted: impl IntoIterator<Item = u32>) -> anyhow::Result<()> {
        let wanted: Vec<u32> = wanted.into_iter().collect();
        let mut present = Vec::new();
        for index in self.devices.keys() {
            present.push(index.context("cannot read the table of devices")?);
        }
        for index in present.iter().filter(|index| !wanted.contains(index)) {
            // Absent from the table is as good as removed.
            let _ = self.devices.remove(*index);
        }
        for &index in &wanted {
            match self.devices.insert(index, index, None, 0) {
                Ok(()) => {}
                Err(XdpMapError::MapError(MapError::SyscallError(error)))
                    if Errno::from_io_error(&error.io_error) == Some(Errno::INVAL) =>
                {
                    log::debug!("the device {index} has gone");
                }
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("cannot allow redirects to the device {index}"));
                }
            }
        }
        Ok(())
    }

    /// Takes away the links that this process made: a start that failed leaves
    /// interfaces as it found them.
    pub fn detach_fresh(&mut self) {
        for (device, _) in self.links.iter().filter(|(_, attached)| attached.fresh) {
            if let Err(error) = remove_pin(&self.link_pin(device)) {
                log::error!("{error:#}");
            }
        }
        self.links.clear();
    }
}

/// The devices with a pinned link, in use or left by an earlier run.
pub fn linked(pin_path: &Path) -> io::Result<Vec<String>> {
    let mut devices = Vec::new();
    for entry in fs::read_dir(pin_path)? {
        let name = entry?.file_name();
        let device = name.to_str().and_then(|name| name.strip_prefix("link-"));
        devices.extend(device.map(ToOwned::to_owned));
    }
    devices.sort();
    Ok(devices)
}

fn remove_pin(pin: &Path) -> anyhow::Result<()> {
    match fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove the link {}", pin.display()))
        }
        _ => Ok(()),
    }
}

fn busy(error: &io::Error) -> bool {
    // The latter where the other program is attached in the other mode.
    matches!(
        Errno::from_io_error(error),
        Some(Errno::BUSY | Errno::EXIST)
    )
}
