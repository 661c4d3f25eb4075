//! Fulcrum beside what users would pick in its place: the kernel's address
//! translation, and a proxy.
//!
//! Each stands in the middle of three hosts in a row of its own
//! ([`tests::netns::Chain`]), all of the same kind and all at the same time, and
//! is measured by turns. Small packets and new connections are made and taken by
//! XDP programs, so that generator, cables and ends cost little of the one core
//! that all of it shares; what a proxy does can be measured with sockets only, and
//! so everything is measured with sockets as well.

mod contender;
mod cpu;
mod sockets;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::netns::Offloads;

use crate::load::{End, Order, Sender};
use crate::ours;
use crate::page::{Sample, Section, Table, shown};
use crate::recipe::does;
use crate::report::Figures;

use contender::{Contender, Stand};
use sockets::Server;

/// How much is measured.
struct Extent {
    /// Samples of each figure.
    rounds: u32,
    /// How long one takes, without sockets.
    short: Duration,
    /// How long one takes, with sockets.
    long: Duration,
    /// The numbers of connections that packets are of.
    flows: &'static [u32],
}

const WHOLE: Extent = Extent {
    rounds: 5,
    short: Duration::from_millis(400),
    long: Duration::from_millis(1_500),
    flows: &[1, 1_000, 100_000],
};

const GLANCE: Extent = Extent {
    rounds: 1,
    short: Duration::from_millis(50),
    long: Duration::from_millis(200),
    flows: &[1, 1_000],
};

/// How many connections begin before the first of them comes again: fewer than
/// the kernel's table of connections holds.
const NEW: u32 = 100_000;

/// How many clients connect at a time.
const CLIENTS: u32 = 64;

/// How many connections ask, and how often each.
const ASKING: (u32, Duration) = (8, Duration::from_millis(4));

/// Samples of one figure, by contender.
struct Column {
    name: String,
    unit: &'static str,
    of: Vec<(Contender, Vec<f64>)>,
}

impl Column {
    fn new(name: impl Into<String>, unit: &'static str) -> Self {
        Self {
            name: name.into(),
            unit,
            of: Vec::new(),
        }
    }

    fn add(&mut self, contender: Contender, figure: f64) {
        match self.of.iter_mut().find(|(of, _)| *of == contender) {
            Some((_, samples)) => samples.push(figure),
            None => self.of.push((contender, vec![figure])),
        }
    }

    fn figures(&self, contender: Contender) -> Option<Figures> {
        let (_, samples) = self.of.iter().find(|(of, _)| *of == contender)?;
        Some(Figures::of(samples.iter().copied()))
    }

    fn median(&self, contender: Contender) -> Option<f64> {
        self.figures(contender).map(|figures| figures.median)
    }

    /// How much it is beyond what another one takes.
    fn beyond(&self, contender: Contender, other: Contender) -> Option<f64> {
        Some(self.median(contender)? - self.median(other)?)
    }
}

/// Measures all of it.
pub(crate) fn measure(quick: bool) -> Result<Section> {
    let extent = if quick { GLANCE } else { WHOLE };
    let mut stands = Vec::new();
    for contender in Contender::ALL {
        let stand = Stand::new(contender);
        stands.push(stand.with_context(|| format!("cannot put up: {}", contender.name()))?);
    }
    let packets = packets(&stands, &extent)?;
    let begun = begun(&stands, &extent)?;
    let sockets = with_sockets(&stands, &extent)?;
    let tables = vec![
        times_table(&packets, &begun, &sockets),
        packets_table(&packets),
        begun_table(&begun),
        connections_table(&sockets),
        rest_table(&sockets),
    ];
    let charts = vec![
        chart(
            "bench-beside-packets.svg",
            "Millions of small packets a second, one core, 1,000 connections",
            &packets,
            1,
        ),
        chart(
            "bench-beside-connections.svg",
            "Thousands of new connections a second, one core",
            std::slice::from_ref(&begun),
            0,
        ),
    ];
    let columns = packets.iter().chain([&begun]).chain(sockets.columns());
    let samples = columns.flat_map(|column| {
        column.of.iter().map(|(contender, samples)| {
            let name = format!("{}: {}", column.name, contender.name());
            Sample::new(name, column.unit, samples)
        })
    });
    Ok(Section {
        name: "beside",
        title: "Beside what users would pick".into(),
        text: METHOD.into(),
        samples: samples.collect(),
        tables,
        charts,
    })
}

/// Millions of small datagrams a second, for each number of connections.
fn packets(stands: &[Stand], extent: &Extent) -> Result<Vec<Column>> {
    let mut columns = Vec::new();
    for &flows in extent.flows {
        let name = crate::live::connections(flows);
        let mut column = Column::new(name, "Mpps");
        let mut ready = Vec::new();
        for stand in stands
            .iter()
            .filter(|stand| stand.contender.takes_packets())
        {
            ready.push(Datagrams::new(stand, flows)?);
        }
        for round in 0..=extent.rounds {
            for datagrams in &ready {
                let rate = datagrams.sample(extent.short);
                let rate = rate.with_context(|| failed(datagrams.contender))?;
                // The first round warms the caches.
                if round > 0 {
                    column.add(datagrams.contender, rate);
                }
            }
        }
        report(&column);
        columns.push(column);
    }
    Ok(columns)
}

/// Datagrams of connections that a contender knows, as their clients have sent
/// again after an answer.
struct Datagrams {
    contender: Contender,
    sender: Sender,
    _client: End,
    server: End,
}

impl Datagrams {
    fn new(stand: &Stand, flows: u32) -> Result<Self> {
        let chain = &stand.chain;
        let frame = ours::datagram(chain, stand.target())?;
        let mut sender = Sender::new(&chain.client, "eth0")?;
        let client = End::attach(&chain.client, "eth0", 0)?;
        let mut server = End::attach(&chain.backend, "eth0", does::ECHO)?;
        sender.prepare(&frame, Order::Turns { from: 0, of: flows })?;
        for _ in 0..3 {
            sender.send(flows)?;
        }
        let answers = client.counts()?.frames;
        ensure!(
            answers >= 3 * u64::from(flows) * 99 / 100,
            "{}: of {} datagrams only {answers} were answered",
            stand.contender.name(),
            3 * flows
        );
        server.now(0)?;
        sender.prepare(&frame, Order::AnyOf(flows))?;
        Ok(Self {
            contender: stand.contender,
            sender,
            _client: client,
            server,
        })
    }

    /// Millions a second that arrive.
    fn sample(&self, span: Duration) -> Result<f64> {
        let arrived = || Ok(self.server.counts()?.frames);
        Ok(self.sender.send_for(span, arrived)?.rate / 1e6)
    }
}

/// Thousands of connections a second that begin, have an answer and are closed.
fn begun(stands: &[Stand], extent: &Extent) -> Result<Column> {
    let mut column = Column::new("new connections a second, one core", "thousand/s");
    let mut ready = Vec::new();
    for stand in stands
        .iter()
        .filter(|stand| stand.contender.takes_packets())
    {
        let chain = &stand.chain;
        let mut sender = Sender::new(&chain.client, "eth0")?;
        let client = End::attach(&chain.client, "eth0", does::ASK | does::CLOSE)?;
        let server = End::attach(&chain.backend, "eth0", does::ACCEPT | does::SERVE)?;
        let frame = ours::first(ours::segment(chain, stand.target())?);
        sender.prepare(&frame, Order::Turns { from: 0, of: NEW })?;
        ready.push((stand.contender, sender, client, server));
    }
    for round in 0..=extent.rounds {
        for (contender, sender, client, _server) in &ready {
            let before = client.counts()?.closed;
            let sent = sender.send_for(extent.short, || Ok(client.counts()?.closed));
            let sent = sent.with_context(|| failed(*contender))?;
            let closed = client.counts()?.closed - before;
            // What a queue has no room for is lost, and nothing is sent again.
            ensure!(
                closed >= sent.made * 3 / 4,
                "{}: of {} connections only {closed} came to their end",
                contender.name(),
                sent.made
            );
            if round > 0 {
                column.add(*contender, sent.rate / 1e3);
            }
        }
    }
    report(&column);
    Ok(column)
}

/// What is measured with sockets.
struct Sockets {
    connections: Column,
    busy: Column,
    process: Column,
    median: Column,
    slow: Column,
    bulk: Column,
    bulk_busy: Column,
    bulk_as_made: Column,
}

impl Sockets {
    fn new() -> Self {
        Self {
            connections: Column::new("new connections a second", "1/s"),
            busy: Column::new("CPU of the whole machine a connection", "us"),
            process: Column::new("CPU of the proxy's process a connection", "us"),
            median: Column::new("round trip, median", "us"),
            slow: Column::new("round trip, 99th of a hundred", "us"),
            bulk: Column::new("bulk", "Gbit/s"),
            bulk_busy: Column::new("CPU of the whole machine for bulk", "ms/Gbit"),
            bulk_as_made: Column::new("bulk, packets of 64 KB", "Gbit/s"),
        }
    }

    const fn columns(&self) -> [&Column; 8] {
        [
            &self.connections,
            &self.busy,
            &self.process,
            &self.median,
            &self.slow,
            &self.bulk,
            &self.bulk_busy,
            &self.bulk_as_made,
        ]
    }
}

fn with_sockets(stands: &[Stand], extent: &Extent) -> Result<Sockets> {
    let mut found = Sockets::new();
    let stands = || {
        stands
            .iter()
            .filter(|stand| stand.contender.takes_sockets())
    };
    let mut servers = Vec::new();
    for stand in stands() {
        servers.push(Server::start(&stand.chain.backend)?);
    }
    for _ in 0..extent.rounds {
        for stand in stands() {
            connections(stand, extent, &mut found).with_context(|| failed(stand.contender))?;
        }
        for stand in stands() {
            let (count, pace) = ASKING;
            let (client, target) = (&stand.chain.client, stand.target());
            let took = sockets::round_trips(client, target, count, pace, extent.long)?;
            let at = |part: f64| took.get((took.len() as f64 * part) as usize).copied();
            found
                .median
                .add(stand.contender, at(0.5).context("nothing was answered")?);
            found
                .slow
                .add(stand.contender, at(0.99).context("nothing was answered")?);
        }
        for (stand, server) in stands().zip(&servers) {
            let before = cpu::busy()?;
            let rate = bulk(stand, server, extent)?;
            let busy = (cpu::busy()? - before).as_secs_f64();
            // A quarter as long again goes by before it is measured.
            let gigabits = rate * extent.long.as_secs_f64() * 1.25;
            found.bulk.add(stand.contender, rate);
            found.bulk_busy.add(stand.contender, busy * 1e3 / gigabits);
        }
        for (stand, server) in stands().zip(&servers) {
            if stand.contender.is_ours() {
                continue;
            }
            stand.chain.offload(Offloads::AsMade)?;
            let rate = bulk(stand, server, extent)?;
            stand.chain.offload(Offloads::None)?;
            found.bulk_as_made.add(stand.contender, rate);
        }
    }
    found.columns().into_iter().for_each(report);
    Ok(found)
}

fn connections(stand: &Stand, extent: &Extent, found: &mut Sockets) -> Result<()> {
    let (busy, process) = (cpu::busy()?, stand.process_time()?);
    let (client, target) = (&stand.chain.client, stand.target());
    let done = sockets::connect(client, target, CLIENTS, extent.long)?;
    let busy = (cpu::busy()? - busy).as_secs_f64();
    ensure!(
        done.connections > 0 && done.failed * 1000 <= done.connections,
        "{} connections had no answer, {} had one",
        done.failed,
        done.connections
    );
    let count = done.connections as f64;
    found.connections.add(stand.contender, count / done.seconds);
    found.busy.add(stand.contender, busy / count * 1e6);
    if let (Some(before), Some(after)) = (process, stand.process_time()?) {
        let spent = (after - before).as_secs_f64();
        found.process.add(stand.contender, spent / count * 1e6);
    }
    Ok(())
}

/// Gigabits a second.
fn bulk(stand: &Stand, server: &Server, extent: &Extent) -> Result<f64> {
    let (client, target) = (&stand.chain.client, stand.target());
    let bytes = sockets::bulk(client, target, server, extent.long)
        .with_context(|| format!("in bulk through {}", stand.contender.name()))?;
    Ok(bytes * 8.0 / 1e9)
}

fn failed(contender: Contender) -> String {
    format!("through {}", contender.name())
}

/// Says what was found as it is found.
fn report(column: &Column) {
    for (contender, samples) in &column.of {
        let figures = Figures::of(samples.iter().copied());
        eprintln!(
            "{:>9} {:<10} {}: {}",
            shown(figures.median),
            column.unit,
            column.name,
            contender.name()
        );
    }
}

fn chart(file: &'static str, title: &str, columns: &[Column], place: usize) -> crate::draw::Chart {
    let bars = columns.get(place).into_iter().flat_map(|column| {
        column.of.iter().map(|(contender, samples)| {
            let median = Figures::of(samples.iter().copied()).median;
            (contender.name().replace('`', ""), median)
        })
    });
    crate::draw::Chart {
        file,
        title: title.to_owned(),
        bars: bars.collect(),
    }
}

/// A figure with its ends.
fn cell(column: &Column, contender: Contender) -> String {
    column.figures(contender).map_or_else(
        || "–".to_owned(),
        |Figures { median, min, max }| {
            format!("**{}** ({} to {})", shown(median), shown(min), shown(max))
        },
    )
}

fn optional(figure: Option<f64>) -> String {
    figure.map_or_else(|| "–".to_owned(), shown)
}

/// How many times what users would pick.
fn times_table(packets: &[Column], begun: &Column, sockets: &Sockets) -> Table {
    let head = ["how many times", "`nat`", "`full-nat`"];
    let mut table = Table::new(&head, TIMES);
    let pairs = [
        (Contender::Nat, Contender::Nftables { masquerade: false }),
        (Contender::FullNat, Contender::Nftables { masquerade: true }),
    ];
    let mut row = |name: String, times: &dyn Fn((Contender, Contender)) -> Option<f64>| {
        let cells = pairs.map(|pair| optional(times(pair)));
        let [nat, full] = cells.map(|cell| format!("**{cell}**"));
        table.row(&[name, nat, full]);
    };
    for column in packets {
        let name = format!("nftables' small packets a second, {}", column.name);
        row(name, &|(own, other)| {
            Some(column.median(own)? / column.median(other)?)
        });
    }
    row("nftables' new connections a second".into(), &|(
        own,
        other,
    )| {
        Some(begun.median(own)? / begun.median(other)?)
    });
    let floor = begun.median(Contender::Across);
    let proxy = sockets.process.median(Contender::HaProxy);
    row(
        "HAProxy's connections a CPU second, by packets".into(),
        &|(own, _)| {
            let each = 1e3 / begun.median(own)? - 1e3 / floor?;
            Some(proxy? / each)
        },
    );
    let beyond = |one| sockets.busy.beyond(one, Contender::Forwarding);
    row("the same by sockets".into(), &|(own, _)| {
        Some(beyond(Contender::HaProxy)? / beyond(own)?)
    });
    table
}

fn packets_table(columns: &[Column]) -> Table {
    let mut head = vec!["small packets, millions a second".to_owned()];
    for column in columns {
        head.push(column.name.clone());
        head.push("ns of CPU each".to_owned());
    }
    let head: Vec<&str> = head.iter().map(String::as_str).collect();
    let mut table = Table::new(&head, PACKETS);
    for contender in Contender::ALL.into_iter().filter(|one| one.takes_packets()) {
        let mut row = vec![contender.name().to_owned()];
        for column in columns {
            row.push(cell(column, contender));
            let each = |one| column.median(one).map(|rate| 1e3 / rate);
            let floor = each(Contender::Across);
            let own = each(contender).zip(floor).map(|(own, floor)| own - floor);
            row.push(optional(own));
        }
        table.row(&row);
    }
    table
}

fn begun_table(column: &Column) -> Table {
    let head = [
        "whole short connections, made of packets",
        "thousands a second",
        "µs of CPU each",
    ];
    let mut table = Table::new(&head, BEGUN);
    for contender in Contender::ALL.into_iter().filter(|one| one.takes_packets()) {
        let each = |one| column.median(one).map(|rate| 1e3 / rate);
        let floor = each(Contender::Across);
        let own = each(contender).zip(floor).map(|(own, floor)| own - floor);
        table.row(&[
            contender.name().to_owned(),
            cell(column, contender),
            optional(own),
        ]);
    }
    table
}

fn connections_table(found: &Sockets) -> Table {
    let head = [
        "short connections, with sockets",
        "a second",
        "µs of CPU each, the whole machine",
        "beyond plain forwarding",
        "of the proxy's process",
    ];
    let mut table = Table::new(&head, CONNECTIONS);
    for contender in Contender::ALL.into_iter().filter(|one| one.takes_sockets()) {
        let beyond = found.busy.beyond(contender, Contender::Forwarding);
        table.row(&[
            contender.name().to_owned(),
            cell(&found.connections, contender),
            cell(&found.busy, contender),
            optional(beyond),
            cell(&found.process, contender),
        ]);
    }
    table
}

fn rest_table(found: &Sockets) -> Table {
    let head = [
        "established connections, with sockets",
        "median µs",
        "99 % within µs",
        "bulk, Gbit/s",
        "ms of CPU a Gbit",
        "bulk with packets of 64 KB",
    ];
    let mut table = Table::new(&head, REST);
    for contender in Contender::ALL.into_iter().filter(|one| one.takes_sockets()) {
        table.row(&[
            contender.name().to_owned(),
            cell(&found.median, contender),
            cell(&found.slow, contender),
            cell(&found.bulk, contender),
            cell(&found.bulk_busy, contender),
            cell(&found.bulk_as_made, contender),
        ]);
    }
    table
}

const TIMES: &str = "`nat` is held against nftables with DNAT, `full-nat` against DNAT and \
masquerade. HAProxy's CPU time \"by packets\" is that of its process, with sockets (its share \
of what the kernel does with its packets is not all in there), Fulcrum's what a connection \
made of packets takes beyond a bare XDP redirect; \"by sockets\" both are what the whole machine \
takes beyond plain forwarding. The latter is more on a veth than on a card: the kernel copies each \
packet that comes from a socket before it shows it to a veth's XDP program.";

const METHOD: &str = "Each stands in the middle of three network namespaces in a row (client, \
balancer, servers), joined by veth pairs with nothing else between; all rows are alike, and all \
are measured by turns. The servers are one host with eight addresses. Unless said otherwise the \
ends of all cables have `tx`, `tso` and `gso` off and `gro` on, so that each packet is on the \
cable as it would be on a wire. nftables has DNAT to `numgen inc mod 8` (and masquerade, which \
is what makes it the like of `full-nat`), its timeouts of ended connections set to 1 s so that \
its table does not fill; HAProxy has one thread, pinned to one CPU, `splice-auto`, and \
`tcp_tw_reuse`. A figure is the median of all samples, with the least and the greatest.";

const PACKETS: &str = "UDP frames of 62 bytes, of connections that each contender knows (their \
clients have sent again after an answer), made and redirected into the client's end of the cable \
by live frames, counted and dropped by an XDP program at the servers' end: only those count. \
Generator, contender and counting share one core. CPU is what one packet takes beyond a bare XDP \
redirect. HAProxy takes no datagrams.";

const BEGUN: &str = "SYN, SYN-ACK, request, answer, FIN, FIN, ACK: clients and servers are XDP \
programs at the ends of the cables that answer each segment by itself, on the same one core. \
Only connections count that came to their end; nothing is sent again. 100,000 clients' ends, one after the other, then \
again. HAProxy has sockets, and such ends cannot wait for it.";

const CONNECTIONS: &str = "64 clients in one thread connect, send 16 bytes, read 16, and close; \
one thread serves them; both CPUs take part, and most of their time goes into these two ends. \
The CPU time is that of the whole machine (`/proc/stat`), whatever else it did included.";

const REST: &str = "Round trips of 16 bytes, on 8 connections that each ask every 4 ms (2,000 a \
second). Bulk is one connection for as long as a sample takes. With packets of 64 KB, which need \
the offloads that a veth has when it is made, the kernel's own ways copy and look at far fewer; \
frames larger than a page are not what a native XDP program sees on a veth.";
