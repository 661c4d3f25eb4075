//! The program that unwraps, in the kernel, and its tables. Nothing is pinned:
//! the link is this process's, and the program goes with it, however it ends.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use anyhow::{Context as _, anyhow};
use aya::Ebpf;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap, Map, MapData, MapError, PerCpuArray};
use aya::programs::links::FdLink;
use aya::programs::xdp::XdpMode as AyaMode;
use aya::programs::{ProgramError, Xdp};
use lb_common::Address;
use lb_common::decap::{MAX_ADDRESSES, MAX_SOURCES, Outcome};
use rustix::io::Errno;

use crate::config::{Prefix, XdpMode};
use crate::dataplane::{self, Mode};

/// The XDP program, built with this crate; needs no toolchain where it runs.
pub static PROGRAM: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb-decap.o"));

/// The two flavours of it: for frames that fit a page, which every kernel and
/// driver can take, and for larger ones (Linux 5.18 and later).
const PLAIN: &str = "lb_decap";
const FRAGS: &str = "lb_decap_frags";

/// The program and its maps, and from [`Self::attach`] on its link.
pub struct Program {
    ebpf: Ebpf,
    addresses: HashMap<MapData, [u8; 16], u32>,
    outcomes: PerCpuArray<MapData, u64>,
    #[expect(dead_code, reason = "open for the flavour that is loaded later")]
    sources: LpmTrie<MapData, [u8; 16], u32>,
    link: Option<FdLink>,
}

impl Program {
    /// Loads the program, which trusts these sources and knows no address of
    /// the host yet.
    pub fn load(sources: &[Prefix]) -> anyhow::Result<Self> {
        let mut ebpf =
            Ebpf::load(PROGRAM).context("the kernel did not take the maps of the XDP program")?;
        named(&mut ebpf, PLAIN)?
            .load()
            .map_err(dataplane::refused)?;
        let mut trie: LpmTrie<MapData, [u8; 16], u32> = taken(&mut ebpf, "SOURCES")?;
        if sources.len() > MAX_SOURCES as usize {
            return Err(anyhow!(
                "--from is given {} times, and there is room for {MAX_SOURCES} prefixes; join neighbouring ones into shorter prefixes",
                sources.len()
            ));
        }
        for source in sources {
            trie.insert(&key(*source), 1, 0)
                .with_context(|| format!("cannot enter the prefix {source}"))?;
        }
        Ok(Self {
            addresses: taken(&mut ebpf, "ADDRESSES")?,
            outcomes: taken(&mut ebpf, "OUTCOMES")?,
            sources: trie,
            link: None,
            ebpf,
        })
    }

    /// Attaches the program to an interface; gives how.
    pub fn attach(&mut self, interface: &str, index: u32, mode: XdpMode) -> anyhow::Result<Mode> {
        let refused = match mode {
            XdpMode::Generic => None,
            XdpMode::Native | XdpMode::Auto => match self.attach_native(index) {
                Ok(()) => return Ok(Mode::Native),
                Err(error) if mode == XdpMode::Native || taken_by_another(&error) => {
                    return Err(explain(interface, Mode::Native, &error));
                }
                Err(error) => Some(error),
            },
        };
        self.try_attach(PLAIN, index, AyaMode::Skb)
            .map_err(|error| explain(interface, Mode::Generic, &error))?;
        if let Some(error) = refused {
            log::warn!(
                "{interface}: its driver refused native XDP ({error}); attached in generic mode, which is slower"
            );
        }
        Ok(Mode::Generic)
    }

    /// A driver whose frames are larger than a page wants the other flavour of
    /// the program. If neither will do, what it said of the first counts.
    fn attach_native(&mut self, index: u32) -> io::Result<()> {
        let Err(error) = self.try_attach(PLAIN, index, AyaMode::Driver) else {
            return Ok(());
        };
        if taken_by_another(&error) {
            return Err(error);
        }
        let second = named(&mut self.ebpf, FRAGS)
            .and_then(|xdp| xdp.load().map_err(dataplane::refused))
            .and_then(|()| Ok(self.try_attach(FRAGS, index, AyaMode::Driver)?));
        second.map_err(|second| {
            log::debug!("the flavour for frames larger than a page: {second:#}");
            error
        })
    }

    fn try_attach(&mut self, flavour: &str, index: u32, mode: AyaMode) -> io::Result<()> {
        let xdp = named(&mut self.ebpf, flavour).map_err(io::Error::other)?;
        let id = xdp
            .attach_to_if_index(index, mode)
            .map_err(|error| match error {
                ProgramError::SyscallError(error) => error.io_error,
                other => io::Error::other(other),
            })?;
        let link = xdp.take_link(id).map_err(io::Error::other)?;
        self.link = Some(FdLink::try_from(link).map_err(io::Error::other)?);
        Ok(())
    }

    /// Detaches the program; what it has counted stays.
    pub fn detach(&mut self) {
        self.link = None;
    }

    /// Makes the program take these for the host's addresses, and no others.
    pub fn hold(&mut self, addresses: &BTreeSet<IpAddr>) -> anyhow::Result<()> {
        if addresses.len() > MAX_ADDRESSES as usize {
            return Err(anyhow!(
                "this host has {} addresses, and there is room for {MAX_ADDRESSES}; those known before stay in force",
                addresses.len()
            ));
        }
        let wanted: BTreeSet<[u8; 16]> = addresses
            .iter()
            .map(|&address| Address::from(address).octets())
            .collect();
        let held: BTreeSet<[u8; 16]> = self
            .addresses
            .keys()
            .collect::<Result<_, _>>()
            .context("cannot read the table of addresses")?;
        for gone in held.difference(&wanted) {
            match self.addresses.remove(gone) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(error).context("cannot remove an address"),
            }
        }
        for new in wanted.difference(&held) {
            self.addresses
                .insert(*new, 1, 0)
                .context("cannot enter an address")?;
        }
        Ok(())
    }

    /// How many packets had each outcome.
    pub fn outcomes(&self) -> anyhow::Result<Vec<(Outcome, u64)>> {
        Outcome::ALL
            .iter()
            .map(|&outcome| {
                let counts = self
                    .outcomes
                    .get(&(outcome as u32), 0)
                    .context("cannot read the counters")?;
                Ok((outcome, counts.iter().sum()))
            })
            .collect()
    }
}

/// A prefix as the trie has it: addresses of both families are 16 bytes.
fn key(prefix: Prefix) -> Key<[u8; 16]> {
    let mapped = if prefix.address().is_ipv4() { 96 } else { 0 };
    let bits = mapped + u32::from(prefix.length());
    Key::new(bits, Address::from(prefix.address()).octets())
}

fn named<'e>(ebpf: &'e mut Ebpf, name: &str) -> anyhow::Result<&'e mut Xdp> {
    ebpf.program_mut(name)
        .with_context(|| format!("the object holds no program `{name}`"))?
        .try_into()
        .with_context(|| format!("the program `{name}` is not for XDP"))
}

fn taken<T: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &str) -> anyhow::Result<T> {
    let map = ebpf
        .take_map(name)
        .with_context(|| format!("the program has no map {name}"))?;
    T::try_from(map).with_context(|| format!("the map {name} is of another form"))
}

/// In the same mode, or in the other one, which excludes this.
fn taken_by_another(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::BUSY | Errno::EXIST)
    )
}

fn explain(interface: &str, mode: Mode, error: &io::Error) -> anyhow::Error {
    let name = mode.name();
    if taken_by_another(error) {
        anyhow!(
            "{interface} already has an XDP program (another `lb decap`, an `lb run`, or another tool); detach it first: `bpftool net` shows it"
        )
    } else if mode == Mode::Native {
        anyhow!(
            "cannot attach to {interface} in {name} mode: {error}; its driver may have none, or not with this MTU: `--mode auto` falls back to generic mode"
        )
    } else {
        anyhow!("cannot attach to {interface} in {name} mode: {error}")
    }
}
