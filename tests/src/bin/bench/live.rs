//! Packets a second through a cable, on one core.
//!
//! The generator redirects live frames into the client's end of a cable. At its
//! other end, in another namespace, is the balancer's program, attached by its
//! driver; what it sends back arrives at the first end, is counted there and
//! dropped. Beside it, on cables of their own, a program that drops everything
//! and one that sends everything back.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use lb_common::Verdict;
use tests::netns::{Chain, Daemon};

use crate::load::{End, Order, Sender};
use crate::ours;
use crate::page::{Sample, Section, Table, million};
use crate::report::Figures;

/// The ways to forward that are measured.
const WAYS: [&str; 4] = ["tunnel", "dsr", "nat", "full-nat"];

/// How many servers there are: enough ports for a million connections.
const SERVERS: u8 = 64;

/// The addresses of servers on the client's network.
const FIRST_SERVER: u32 = Ipv4Addr::new(10, 9, 0, 128).to_bits();

/// For how many connections the tables are.
const MAX_FLOWS: u32 = 1_000_000;

/// How much of it is measured.
#[derive(Clone, Copy, Debug)]
struct Extent {
    /// Samples of each line.
    rounds: u32,
    /// How long each takes.
    span: Duration,
    /// The numbers of connections.
    flows: [u32; 2],
}

const WHOLE: Extent = Extent {
    rounds: 7,
    span: Duration::from_millis(400),
    flows: [1, 1_000_000],
};

const GLANCE: Extent = Extent {
    rounds: 1,
    span: Duration::from_millis(50),
    flows: [1, 10_000],
};

/// One line: millions of packets a second, and which part of those that were made
/// did not arrive.
struct Line {
    name: String,
    arrived: Vec<f64>,
    lost: Vec<f64>,
}

impl Line {
    fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            arrived: Vec::new(),
            lost: Vec::new(),
        }
    }

    /// Takes a sample; how many frames were made.
    fn sample(&mut self, sender: &Sender, end: &End, span: Duration) -> Result<u64> {
        let before = end.counts()?.frames;
        let sent = sender.send_for(span, || Ok(end.counts()?.frames))?;
        let arrived = end.counts()?.frames - before;
        self.arrived.push(sent.rate / 1e6);
        self.lost.push(1.0 - arrived as f64 / sent.made as f64);
        Ok(sent.made)
    }
}

/// A cable with a bare program at its other end.
struct Bare {
    sender: Sender,
    /// Where frames are counted.
    end: End,
    /// What sends them back, if anything does.
    _bounce: Option<End>,
    _chain: Chain,
}

impl Bare {
    fn new(bounces: bool) -> Result<Self> {
        let chain = Chain::new(1)?;
        let mut sender = Sender::new(&chain.client, "eth0")?;
        let frame = ours::later(ours::segment(&chain, ours::service())?);
        sender.prepare(&frame, Order::AnyOf(1))?;
        let (end, bounce) = if bounces {
            let bounce = End::bounce(&chain.balancer, "eth0")?;
            (End::attach(&chain.client, "eth0", 0)?, Some(bounce))
        } else {
            (End::attach(&chain.balancer, "eth0", 0)?, None)
        };
        Ok(Self {
            sender,
            end,
            _bounce: bounce,
            _chain: chain,
        })
    }
}

/// Measures all of it.
pub(crate) fn measure(quick: bool) -> Result<Section> {
    let extent = &if quick { GLANCE } else { WHOLE };
    let (drops, bounces) = (Bare::new(false)?, Bare::new(true)?);
    let mut lines = vec![
        Line::new("bare `XDP_DROP`, the cable once"),
        Line::new("bare `XDP_TX`"),
    ];
    for way in WAYS {
        let servers: Vec<Ipv4Addr> = (0..u32::from(SERVERS))
            .map(|number| Ipv4Addr::from_bits(FIRST_SERVER + number))
            .collect();
        let chain = Chain::new(1)?;
        chain.neighbours_at_client(servers.iter().copied())?;
        let daemon = ours::start(&chain, &["eth0"], way, &servers, MAX_FLOWS)?;
        let mut sender = Sender::new(&chain.client, "eth0")?;
        let mut end = End::attach(&chain.client, "eth0", 0)?;
        let one_way = ["tunnel", "dsr"].contains(&way);
        for flows in extent.flows {
            ours::hold(&chain, &daemon, &mut sender, &mut end, one_way, flows)?;
            let frame = ours::later(ours::segment(&chain, ours::service())?);
            sender.prepare(&frame, Order::AnyOf(flows))?;
            let mut line = Line::new(format!("`{way}`, {}", connections(flows)));
            for round in 0..=extent.rounds {
                let mut sampled = [Line::new(""), Line::new(""), Line::new("")];
                let [dropped, bounced, own] = &mut sampled;
                dropped.sample(&drops.sender, &drops.end, extent.span)?;
                bounced.sample(&bounces.sender, &bounces.end, extent.span)?;
                checked(&daemon, || own.sample(&sender, &end, extent.span))
                    .with_context(|| format!("by {way} with {flows} connections"))?;
                // The first round warms the caches.
                if round > 0 {
                    let [first, second, ..] = &mut lines[..] else {
                        continue;
                    };
                    for (line, one) in [first, second, &mut line].into_iter().zip(sampled) {
                        line.arrived.extend(one.arrived);
                        line.lost.extend(one.lost);
                    }
                }
            }
            eprintln!(
                "{:>7.2} Mpps  {}",
                Figures::of(line.arrived.iter().copied()).median,
                line.name
            );
            lines.push(line);
        }
    }
    Ok(section(&lines, extent))
}

/// Takes a sample of which every packet has to be forwarded.
fn checked(daemon: &Daemon, sample: impl FnOnce() -> Result<u64>) -> Result<()> {
    let name = Verdict::ForwardTx.name();
    let before = ours::verdicts(daemon)?;
    let made = sample()?;
    ours::ensure_nearly_all(daemon, &before, made, name)
}

/// `1 connection`, `1,000 connections`.
pub(crate) fn connections(count: u32) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{} connection{plural}", crate::cases::grouped(count))
}

fn section(lines: &[Line], extent: &Extent) -> Section {
    let mut table = Table::new(
        &[
            "",
            "million packets a second",
            "min",
            "max",
            "lost on the way",
        ],
        "",
    );
    let mut chart = Vec::new();
    for line in lines {
        let arrived = Figures::of(line.arrived.iter().copied());
        let lost = Figures::of(line.lost.iter().copied()).median * 100.0;
        table.row(&[
            line.name.clone(),
            format!("**{}**", million(arrived.median)),
            million(arrived.min),
            million(arrived.max),
            format!("{lost:.2} %"),
        ]);
        chart.push((line.name.replace('`', ""), arrived.median));
    }
    Section {
        name: "live",
        title: "Packets a second, live frames through a cable, one core".into(),
        text: format!(
            "{} samples of {} ms each, by turns. {METHOD}",
            extent.rounds,
            extent.span.as_millis()
        ),
        tables: vec![table],
        charts: vec![crate::draw::Chart {
            file: "bench-live.svg",
            title: "Millions of packets a second, one core, through a veth and back".into(),
            bars: chart,
        }],
        samples: lines
            .iter()
            .map(|line| Sample::new(line.name.clone(), "Mpps", &line.arrived))
            .collect(),
    }
}

const METHOD: &str = "Frames of 62 bytes, TCP over IPv4, are made by\n\
`BPF_F_TEST_XDP_LIVE_FRAMES` (each written whole, 64 at a time) and redirected into one\n\
end of a veth pair; the program under test is attached natively to the other end, in\n\
another namespace, by `lb run` itself; what it sends back is counted and dropped by an\n\
XDP program at the first end. All of it, the generator included, runs on one core, and\n\
only frames that arrived count; the balancer's own counters must say that each frame was\n\
forwarded. The segments are of connections that are known, each drawn at random;\n\
`max_flows` is 1,000,000, and 64 backends share them.";
