//! Attaching the program to interfaces, by links that outlive the daemon.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use aya::programs::ProgramError;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::{XdpLink, XdpMode as AyaMode};
use rustix::io::Errno;

use super::{Attached, Dataplane, program};
use crate::config::XdpMode;

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
}

impl Dataplane {
    /// Attaches the program to an interface: into the link that is pinned for
    /// it, or by a new one. Gives the mode of a new link, `None` for one adopted.
    pub fn attach(
        &mut self,
        interface: &str,
        index: u32,
        mode: XdpMode,
    ) -> anyhow::Result<Option<Mode>> {
        let pin = self.link_pin(interface);
        let (link, made) = match self.exchange(&pin)? {
            Some(link) => (link, None),
            None => {
                let (link, mode) = self.new_link(interface, index, mode)?;
                let pinned = link
                    .pin(&pin)
                    .with_context(|| format!("cannot pin the link of {interface}"))?;
                (FdLink::from(pinned), Some(mode))
            }
        };
        self.links.insert(
            interface.to_owned(),
            Attached {
                index,
                link,
                fresh: made.is_some(),
            },
        );
        self.devices
            .insert(index, index, None, 0)
            .with_context(|| format!("cannot allow redirects to {interface}"))?;
        Ok(made)
    }

    /// Puts this program into a pinned link; `None` when there is none, or its
    /// interface has gone.
    fn exchange(&mut self, pin: &Path) -> anyhow::Result<Option<FdLink>> {
        if !pin.exists() {
            return Ok(None);
        }
        let link = PinnedLink::from_pin(pin)
            .with_context(|| format!("cannot open the pinned link {}", pin.display()))?;
        let link = XdpLink::try_from(FdLink::from(link))
            .with_context(|| format!("{} is not a link of an XDP program", pin.display()))?;
        let xdp = program(&mut self.ebpf, self.program)?;
        match xdp.attach_to_link(link) {
            Ok(id) => Ok(Some(FdLink::try_from(xdp.take_link(id)?)?)),
            Err(ProgramError::SyscallError(error))
                if Errno::from_io_error(&error.io_error) == Some(Errno::NOLINK) =>
            {
                fs::remove_file(pin)
                    .with_context(|| format!("cannot remove the dead link {}", pin.display()))?;
                Ok(None)
            }
            Err(error) => Err(error)
                .with_context(|| format!("cannot exchange the program of {}", pin.display())),
        }
    }

    fn new_link(
        &mut self,
        interface: &str,
        index: u32,
        mode: XdpMode,
    ) -> anyhow::Result<(FdLink, Mode)> {
        let native = match mode {
            XdpMode::Generic => None,
            XdpMode::Native | XdpMode::Auto => Some(self.try_attach(index, AyaMode::Driver)),
        };
        let refused = match native {
            Some(Ok(link)) => return Ok((link, Mode::Native)),
            Some(Err(error)) if mode == XdpMode::Native || busy(&error) => {
                return Err(explain(interface, "native", &error));
            }
            Some(Err(error)) => Some(error),
            None => None,
        };
        match self.try_attach(index, AyaMode::Skb) {
            Ok(link) => {
                if let Some(error) = refused {
                    log::warn!(
                        "{interface}: its driver refused native XDP ({error}); attached in generic mode, which is several times slower"
                    );
                }
                Ok((link, Mode::Generic))
            }
            Err(error) => Err(explain(interface, "generic", &error)),
        }
    }

    fn try_attach(&mut self, index: u32, mode: AyaMode) -> io::Result<FdLink> {
        let xdp = program(&mut self.ebpf, self.program).map_err(io::Error::other)?;
        let id = xdp
            .attach_to_if_index(index, mode)
            .map_err(|error| match error {
                ProgramError::SyscallError(error) => error.io_error,
                other => io::Error::other(other),
            })?;
        let link = xdp.take_link(id).map_err(io::Error::other)?;
        FdLink::try_from(link).map_err(io::Error::other)
    }

    fn link_pin(&self, interface: &str) -> PathBuf {
        self.pin_path.join(format!("link-{interface}"))
    }

    /// Detaches from interfaces that are attached or pinned but not in `keep`.
    pub fn detach_others(&mut self, keep: &[String]) -> anyhow::Result<Vec<String>> {
        let mut detached = Vec::new();
        for entry in fs::read_dir(&self.pin_path)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(interface) = name.to_str().and_then(|name| name.strip_prefix("link-")) else {
                continue;
            };
            if keep.iter().any(|kept| kept == interface) {
                continue;
            }
            if let Some(attached) = self.links.remove(interface) {
                // Absent from the table is as good as removed.
                let _ = self.devices.remove(attached.index);
            }
            fs::remove_file(entry.path())
                .with_context(|| format!("cannot remove the link of {interface}"))?;
            detached.push(interface.to_owned());
        }
        Ok(detached)
    }

    /// Takes away the links that this process made: a start that failed leaves
    /// interfaces as it found them.
    pub fn detach_fresh(&mut self) {
        for (interface, _) in self.links.iter().filter(|(_, attached)| attached.fresh) {
            let pin = self.pin_path.join(format!("link-{interface}"));
            if let Err(error) = fs::remove_file(&pin) {
                log::error!("cannot remove {}: {error}", pin.display());
            }
        }
        self.links.clear();
    }
}

fn busy(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::BUSY)
}

fn explain(interface: &str, mode: &str, error: &io::Error) -> anyhow::Error {
    if busy(error) {
        anyhow!(
            "{interface} already has an XDP program (another lb with its own pin folder, or another tool); detach it first: `bpftool net` shows it"
        )
    } else if mode == "native" {
        anyhow!(
            "cannot attach to {interface} in {mode} mode: {error}; its driver may have none: node.xdp_mode = \"auto\" falls back to generic mode"
        )
    } else {
        anyhow!("cannot attach to {interface} in {mode} mode: {error}")
    }
}
