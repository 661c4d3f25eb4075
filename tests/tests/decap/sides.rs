//! The two that a frame is given to: the library on the host, and the program
//! in the kernel (`BPF_PROG_TEST_RUN`).

use std::cell::RefCell;
use std::net::IpAddr;

use anyhow::{Context as _, Result, bail};
use aya::Ebpf;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap, Map, MapData, MapError, PerCpuArray};
use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use lb_common::decap::Outcome;
use lb_common::{Action, Address};
use lb_ebpf::decap::{Trust, decap};
use lb_userspace::config::value;
use lb_userspace::decap::PROGRAM;
use tests::host::{HEADROOM, HostPacket};

/// The addresses of the host on which all cases play.
pub(crate) const OURS: [&str; 2] = ["10.9.0.17", "fd09::11"];

/// Where tunnels may come from.
pub(crate) const SOURCES: [&str; 3] = ["198.18.0.0/16", "100::/64", "192.0.2.66/32"];

/// The program's names in its object.
pub(crate) const FLAVOURS: [&str; 2] = ["lb_decap", "lb_decap_frags"];

/// What became of a frame.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Done {
    pub(crate) action: Action,
    pub(crate) frame: Vec<u8>,
}

pub(crate) trait Side {
    fn arrive(&mut self, frame: &[u8]) -> Result<Done>;

    /// Packets by outcome.
    fn counters(&self) -> Result<Vec<u64>>;
}

#[derive(Default)]
pub(crate) struct Host {
    counters: RefCell<[u64; Outcome::ALL.len()]>,
}

impl Side for Host {
    fn arrive(&mut self, frame: &[u8]) -> Result<Done> {
        let mut packet = HostPacket {
            bytes: frame.to_vec(),
            ingress: 1,
            headroom: HEADROOM,
        };
        let outcome = decap(&mut packet, self);
        Ok(Done {
            action: outcome.action(),
            frame: packet.bytes,
        })
    }

    fn counters(&self) -> Result<Vec<u64>> {
        Ok(self.counters.borrow().to_vec())
    }
}

impl Trust for Host {
    fn ours(&self, address: &Address) -> bool {
        OURS.map(parsed).contains(&address.ip())
    }

    fn trusted(&self, source: &Address) -> bool {
        SOURCES.iter().any(|text| {
            let (prefix, length) = text.split_once('/').expect("a prefix has a length");
            match (parsed(prefix), source.ip()) {
                (IpAddr::V4(prefix), IpAddr::V4(source)) => {
                    let differ = prefix.to_bits() ^ source.to_bits();
                    differ.leading_zeros() >= number(length)
                }
                (IpAddr::V6(prefix), IpAddr::V6(source)) => {
                    let differ = prefix.to_bits() ^ source.to_bits();
                    differ.leading_zeros() >= number(length)
                }
                _ => false,
            }
        })
    }

    fn count(&self, outcome: Outcome) {
        self.counters.borrow_mut()[outcome as usize] += 1;
    }
}

pub(crate) struct Kernel {
    flavour: &'static str,
    ebpf: Ebpf,
    outcomes: PerCpuArray<MapData, u64>,
}

impl Kernel {
    pub(crate) fn new(flavour: &'static str) -> Result<Self> {
        let mut ebpf = Ebpf::load(PROGRAM).context("cannot read the XDP program")?;
        let xdp: &mut Xdp = ebpf
            .program_mut(flavour)
            .context("the object holds no such program")?
            .try_into()?;
        xdp.load().context("the kernel refused the XDP program")?;
        let mut addresses: HashMap<MapData, [u8; 16], u32> = take(&mut ebpf, "ADDRESSES")?;
        for address in OURS.map(parsed) {
            addresses.insert(Address::from(address).octets(), 1, 0)?;
        }
        let mut sources: LpmTrie<MapData, [u8; 16], u32> = take(&mut ebpf, "SOURCES")?;
        for source in SOURCES {
            let prefix = value::prefix("sources", source)?;
            let mapped = if prefix.address().is_ipv4() { 96 } else { 0 };
            let bits = mapped + u32::from(prefix.length());
            let octets = Address::from(prefix.address()).octets();
            sources.insert(&Key::new(bits, octets), 1, 0)?;
        }
        Ok(Self {
            flavour,
            outcomes: take(&mut ebpf, "OUTCOMES")?,
            ebpf,
        })
    }
}

impl Side for Kernel {
    fn arrive(&mut self, frame: &[u8]) -> Result<Done> {
        let xdp: &Xdp = self
            .ebpf
            .program(self.flavour)
            .context("the object holds no such program")?
            .try_into()?;
        let mut out = vec![0; frame.len() + 64];
        let result = xdp.test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ..TestRunOptions::new()
        })?;
        out.truncate(result.data_size_out as usize);
        // enum xdp_action (linux/bpf.h)
        let action = match result.return_value {
            1 => Action::Drop,
            2 => Action::Pass,
            other => bail!("the program returned {other}"),
        };
        Ok(Done { action, frame: out })
    }

    fn counters(&self) -> Result<Vec<u64>> {
        (Outcome::ALL.iter())
            .map(|&outcome| Ok(self.outcomes.get(&(outcome as u32), 0)?.iter().sum()))
            .collect()
    }
}

fn take<T: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &str) -> Result<T> {
    let map = ebpf
        .take_map(name)
        .with_context(|| format!("the program has no map {name}"))?;
    T::try_from(map).with_context(|| format!("the map {name} is of another kind than expected"))
}

fn parsed(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn number(text: &str) -> u32 {
    text.parse().expect("a number")
}
