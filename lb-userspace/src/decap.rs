//! `lb decap`: the end of a tunnel on a backend, which needs no daemon, no
//! configuration and no tunnel device there.
//!
//! The program ([`lb_common::decap`] has what can happen to a packet) is
//! attached for as long as this process runs. It unwraps only what comes from
//! the [`Options::sources`] to an address of this host, so the process keeps
//! the program's table of addresses true: it listens to the kernel's news about
//! addresses and reads all of them again whenever there are any, and now and
//! then even if there are none, for the kernel may lose some.

mod program;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::StreamExt as _;
use lb_common::decap::Outcome;
use log::{info, warn};
use rtnetlink::MulticastGroup;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};

use crate::address::Addresses;
use crate::config::{Prefix, XdpMode};
use crate::dataplane::{self, Mode};
use crate::host;

pub use program::{PROGRAM, Program};

/// How often the addresses are read where nothing is heard of them.
const RHYTHM: Duration = Duration::from_secs(5);

/// What `lb decap` was told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the tunnel packets come in.
    pub interface: String,
    /// Where they may come from.
    pub sources: Vec<Prefix>,
    /// How the program is attached.
    pub mode: XdpMode,
}

/// What it did.
#[derive(Clone, Debug)]
pub struct Report {
    /// How the program was attached.
    pub mode: Mode,
    /// How many packets had each outcome.
    pub outcomes: Vec<(Outcome, u64)>,
}

/// Unwraps until SIGTERM or SIGINT.
pub async fn run(options: &Options) -> anyhow::Result<Report> {
    let interface = &options.interface;
    host::check_bpf(dataplane::probe)?;
    let index = host::ifindex(interface)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // Listened to before the addresses are read the first time.
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
    ];
    let (connection, _handle, news) = rtnetlink::new_multicast_connection(&groups)
        .context("cannot listen to the kernel's news about addresses (netlink)")?;
    let connection = tokio::spawn(connection);
    // Many at once are one reason to look; without any, the clock is.
    let mut news = news.ready_chunks(256).fuse();
    let addresses = Addresses::connect()?;

    let mut program = Program::load(&options.sources)?;
    program.hold(&own(&addresses).await?)?;
    let mode = program.attach(interface, index, options.mode)?;
    info!(
        "attached to {interface} ({}); unwraps tunnel packets from {} to this host's addresses",
        mode.name(),
        listed(&options.sources)
    );
    let mut rhythm = interval(RHYTHM);
    rhythm.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            Some(_) = news.next() => {}
            _ = rhythm.tick() => {}
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
        if host::interface_name(index).is_err() {
            bail!(
                "interface {interface} has gone, and the program with it; start `lb decap` again when it is back"
            );
        }
        if let Err(error) = keep_true(&mut program, &addresses).await {
            warn!("{error:#}; tried again within {} s", RHYTHM.as_secs());
        }
    }
    program.detach();
    connection.abort();
    Ok(Report {
        mode,
        outcomes: program.outcomes()?,
    })
}

async fn keep_true(program: &mut Program, addresses: &Addresses) -> anyhow::Result<()> {
    program.hold(&own(addresses).await?)
}

/// The addresses that packets may come to from outside.
async fn own(addresses: &Addresses) -> anyhow::Result<BTreeSet<IpAddr>> {
    let listed = addresses.list().await?;
    let addresses = listed.into_iter().map(|entry| entry.address);
    Ok(addresses.filter(|address| !address.is_loopback()).collect())
}

fn listed(prefixes: &[Prefix]) -> String {
    let prefixes: Vec<String> = prefixes.iter().map(ToString::to_string).collect();
    prefixes.join(", ")
}
