//! Upgrades: another build of `lb` takes over from the one that ran, and tables
//! of another size from those that were there, while a thousand connections are
//! in the middle of conversations. None is lost.
//!
//! The other build has another ABI ([`tests::other_build`]); making it takes some
//! minutes, once.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{Array, Map, MapData};
use lb_common::abi::ABI_VERSION;
use tests::netns::{
    After, CALM, Clients, Echo, Family, Line, Service, Stage, lb_binary, wait_until,
};
use tests::other_build::{OTHER_ABI, other_build};
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// How many connections there are from the beginning.
const CONNECTIONS: usize = 1_000;

/// How many more are begun after each change: two turns of the schedule, and so
/// many of them to each backend.
const MORE: usize = 12;
const SHARES: [usize; 3] = [6, 4, 2];

/// How long a connection is silent between an answer and the next question.
const PACE: Duration = Duration::from_millis(250);

/// The promise: no answer takes longer, whatever happens. TCP sends a lost
/// segment again after a fifth of a second and then at double intervals, and a
/// busy machine needs a while itself.
const STALL: Duration = Duration::from_secs(5);

/// For how long nothing must come where nothing can: far longer than answers take.
const SILENCE: Duration = Duration::from_secs(3);

/// How long something may take that a busy machine does in a few seconds.
const BOUND: Duration = Duration::from_secs(60);

/// They take turns: what they measure is time.
static MACHINE: Mutex<()> = Mutex::new(());

fn whole_machine() -> MutexGuard<'static, ()> {
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn upgrades_lose_none_of_a_thousand_connections_in_full_nat() -> Result<()> {
    upgrades_lose_none("full-nat", Family::V4)
}

#[test]
fn upgrades_lose_none_of_a_thousand_connections_in_dsr() -> Result<()> {
    upgrades_lose_none("dsr", Family::V6)
}

fn upgrades_lose_none(forward: &'static str, family: Family) -> Result<()> {
    let (this, other) = (lb_binary(), other()?);
    let _turn = whole_machine();
    let mut crowd = Crowd::new(forward, family, CONNECTIONS)?;
    let size = crowd.stage.balancer.max_flows;
    let all = [
        ("an upgrade", End::Asked, &other, size, OTHER_ABI),
        ("a downgrade", End::Asked, &this, size, ABI_VERSION),
        ("half the size", End::Asked, &this, size / 2, ABI_VERSION),
        ("another size back", End::Asked, &this, size, ABI_VERSION),
        (
            "an upgrade after a kill",
            End::Killed,
            &other,
            size,
            OTHER_ABI,
        ),
        ("another of both", End::Killed, &this, size / 2, ABI_VERSION),
    ];
    for (what, end, lb, max_flows, abi) in all {
        let longest = crowd
            .take_over(end, lb, max_flows, abi)
            .with_context(|| format!("{forward} over {family:?}, {what}"))?;
        println!(
            "{forward} over {family:?}, {what}: {} connections, the longest wait for an answer was {longest:.1?}",
            crowd.traffic.talks.len()
        );
    }
    crowd.traffic.end(&crowd.clients).map(drop)
}

/// What stands for a version whose entries cannot be read is the words that it
/// has left beside its tables.
#[test]
fn tables_that_cannot_be_read_are_refused_and_go_on_unless_they_are_to_be_discarded() -> Result<()>
{
    let other = other()?;
    let _turn = whole_machine();
    let mut crowd = Crowd::new("full-nat", Family::V4, MORE)?;
    let words = crowd
        .stage
        .balancer
        .pins
        .join(format!("v{ABI_VERSION}/LAYOUT"));
    let mut told = Words::open(&words)?;
    let good = told.text()?;
    for (field, changed) in [
        ("Connection.proof", "Connection.proved "),
        ("Backend.service", "Backend.service 0 2\nBackend.more "),
    ] {
        told.write(&good.replacen(&format!("{field} "), changed, 1))?;
        crowd.is_refused(&other, field)?;
    }

    let Crowd {
        stage,
        traffic,
        clients,
    } = &mut crowd;
    let lines = traffic.end(clients)?;
    stage.balancer.lb.clone_from(&other);
    stage.balancer.arguments.push("--fresh".into());
    stage.balancer.restart()?;
    assert_eq!(stage.balancer.json(&["status"])?["adopted"], false);
    ensure!(
        !stage.balancer.has_told("upgraded")?,
        "there was an upgrade"
    );
    for (mut line, first) in lines {
        let answer = clients.run(async move { line.ask_within(SILENCE, After::Stay).await })?;
        ensure!(answer.is_err(), "{first:?} was answered again: {answer:?}");
    }
    wait_up(&crowd.stage)?;
    crowd.takes_new_connections()?;
    crowd.counts_are_true()
}

fn other() -> Result<PathBuf> {
    other_build(Path::new(env!("CARGO_TARGET_TMPDIR")))
}

/// How a daemon ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Asked,
    Killed,
}

/// A balancer and connections through it that are never silent for long.
struct Crowd {
    traffic: Traffic,
    clients: Clients,
    stage: Stage,
}

impl Crowd {
    fn new(forward: &'static str, family: Family, connections: usize) -> Result<Self> {
        let service = Service {
            check: CALM,
            ..Service::new("web", forward, family, [3, 2, 1])
        };
        let stage = Stage::new(service, "")?;
        let clients = Clients::on(&stage.net.client, 2)?;
        wait_up(&stage)?;
        let mut traffic = Traffic::default();
        for line in clients.run(open(stage.service.listen, connections))?? {
            traffic.add(&clients, line)?;
        }
        let crowd = Self {
            traffic,
            clients,
            stage,
        };
        crowd.traffic.goes_on()?;
        crowd.counts_are_true()?;
        Ok(crowd)
    }

    /// Lets this `lb`, with tables of this size, take over from the one that runs.
    /// Gives the longest time that any connection waited for an answer.
    fn take_over(&mut self, end: End, lb: &Path, max_flows: u32, abi: u32) -> Result<Duration> {
        let Stage {
            balancer,
            service,
            net,
            ..
        } = &mut self.stage;
        let link = balancer.link_id("eth0")?;
        self.traffic.longest.store(0, Ordering::Relaxed);
        match end {
            End::Asked => {
                let status = balancer.stop()?;
                ensure!(status.success(), "lb run ended with {status}");
            }
            End::Killed => balancer.kill9()?,
        }
        self.traffic.goes_on().context("without a daemon")?;

        balancer.lb = lb.to_owned();
        balancer.max_flows = max_flows;
        let node = balancer.node(net.interfaces());
        fs::write(&balancer.config, node + &service.toml(net))?;
        balancer.restart()?;
        self.traffic.goes_on().context("with the new daemon")?;
        let longest = self.traffic.longest.load(Ordering::Relaxed);

        assert_eq!(balancer.json(&["status"])?["adopted"], true);
        assert_eq!(balancer.link_id("eth0")?, link, "it is the same link");
        let mut tables = balancer.pinned();
        tables.retain(|name| name.starts_with('v') && !name.contains('/'));
        assert_eq!(tables, [format!("v{abi}")], "the old tables are gone");
        self.told_of_upgrade()?;
        self.counts_are_true()?;
        self.takes_new_connections()?;
        self.counts_are_true()?;
        self.traffic.goes_on()?;
        let drops = self.stage.balancer.json(&["drops"])?;
        assert_eq!(drops, serde_json::json!([]));
        Ok(Duration::from_micros(longest))
    }

    fn told_of_upgrade(&self) -> Result<()> {
        let told = self.stage.balancer.json(&["events", "--limit", "1000"])?;
        let mut events = told["events"].as_array().into_iter().flatten();
        let upgraded = events.find(|event| event["kind"] == "upgraded");
        let upgraded = upgraded.with_context(|| format!("no upgrade was told: {told:#}"))?;
        let sentence = upgraded["sentence"]
            .as_str()
            .context("it is told in words")?;
        ensure!(!sentence.contains("lost"), "{sentence}");
        Ok(())
    }

    /// More connections, which stay: each backend gets its share of them.
    fn takes_new_connections(&mut self) -> Result<()> {
        let lines = self.clients.run(open(self.stage.service.listen, MORE))??;
        let mut shares = [0; 3];
        for (line, first) in lines {
            shares[usize::from(first.backend)] += 1;
            self.traffic.add(&self.clients, (line, first))?;
        }
        assert_eq!(shares, SHARES, "shares of new connections");
        Ok(())
    }

    /// `lb backend list` and `lb service show` count the connections that are open.
    fn counts_are_true(&self) -> Result<()> {
        let mut open = [0; 3];
        for talk in &self.traffic.talks {
            open[usize::from(talk.first.backend)] += 1;
        }
        let mut last = [[0; 3]; 2];
        let right = wait_until("live flows are as many as are open", BOUND, || {
            last = self.stage.active_flows()?;
            Ok(last == [open; 2])
        });
        right.with_context(|| format!("{open:?} are open, but counted are {last:?}"))
    }

    /// The daemon's end, and the refusal of this `lb` to go on: because of this
    /// field, in one sentence, and without harm to anybody.
    fn is_refused(&mut self, lb: &Path, field: &str) -> Result<()> {
        let balancer = &mut self.stage.balancer;
        if balancer.pid().is_some() {
            balancer.stop()?;
        }
        let (link, pinned) = (balancer.link_id("eth0")?, balancer.pinned());
        let output = balancer.refused(&[&lb.display().to_string()])?;
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = String::from_utf8(output.stderr)?;
        let errors: Vec<&str> = said
            .lines()
            .filter(|line| line.contains("--fresh"))
            .collect();
        let [sentence] = errors[..] else {
            bail!("there is to be one sentence that names --fresh:\n{said}");
        };
        ensure!(
            sentence.contains(&format!("keeps {field} in another form")),
            "{field}: {sentence}"
        );
        println!("{sentence}");
        assert_eq!(balancer.pinned(), pinned, "the tables are as they were");
        assert_eq!(balancer.link_id("eth0")?, link, "it is the same link");
        self.traffic.goes_on()
    }
}

fn wait_up(stage: &Stage) -> Result<()> {
    for backend in 0..3 {
        wait_until("every backend is up", BOUND, || {
            Ok(stage.backend(backend)?["state"] == "up")
        })?;
    }
    Ok(())
}

/// A connection, and who answered on it first.
type Open = (Line, Echo);

async fn open(listen: SocketAddr, count: usize) -> Result<Vec<Open>> {
    let mut lines = Vec::new();
    for _ in 0..count {
        let mut line = Line::open_within(BOUND, listen).await?;
        let echo = line.ask_within(BOUND, After::Stay).await?;
        lines.push((line, echo));
    }
    Ok(lines)
}

/// Conversations, one on each connection.
#[derive(Default)]
struct Traffic {
    talks: Vec<Arc<Talk>>,
    tasks: Vec<JoinHandle<Result<Line>>>,
    /// The longest time until an answer, in microseconds.
    longest: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
}

/// One of them.
struct Talk {
    /// Who answers, and whom it sees.
    first: Echo,
    /// How many answers there were.
    answers: AtomicU64,
    /// How it failed.
    failed: OnceLock<String>,
}

impl Traffic {
    fn add(&mut self, clients: &Clients, (line, first): Open) -> Result<()> {
        let talk = Arc::new(Talk {
            first,
            answers: AtomicU64::new(0),
            failed: OnceLock::new(),
        });
        let (longest, over) = (Arc::clone(&self.longest), Arc::clone(&self.over));
        let task = converse(line, Arc::clone(&talk), longest, over);
        self.talks.push(talk);
        self.tasks.push(clients.spawn(task)?);
        Ok(())
    }

    /// Waits until there was another answer on each, to a question that was asked
    /// from now on.
    fn goes_on(&self) -> Result<()> {
        let answers = |talk: &Arc<Talk>| talk.answers.load(Ordering::Relaxed);
        let before: Vec<u64> = self.talks.iter().map(answers).collect();
        wait_until("each connection has had an answer", BOUND, || {
            let mut failed = BTreeMap::new();
            for talk in &self.talks {
                if let Some(why) = talk.failed.get() {
                    failed.insert(talk.first.client, why);
                }
            }
            let (count, some) = (failed.len(), failed.iter().take(5));
            ensure!(
                failed.is_empty(),
                "{count} connections have failed: {:#?}",
                some.collect::<Vec<_>>()
            );
            // The first of two may be the answer to an earlier question.
            let mut both = before.iter().zip(&self.talks);
            Ok(both.all(|(before, talk)| answers(talk) >= before + 2))
        })
    }

    /// Ends all conversations and gives the connections.
    fn end(&mut self, clients: &Clients) -> Result<Vec<Open>> {
        self.over.store(true, Ordering::Relaxed);
        let mut lines = Vec::new();
        for (task, talk) in self.tasks.drain(..).zip(self.talks.drain(..)) {
            lines.push((clients.run(task)???, talk.first));
        }
        self.over = Arc::default();
        Ok(lines)
    }
}

/// Asks again and again until it is over; the same backend answers, to the same
/// client.
async fn converse(
    mut line: Line,
    talk: Arc<Talk>,
    longest: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
) -> Result<Line> {
    // Not all at the same time.
    sleep(PACE.mul_f32(fastrand::f32())).await;
    while !over.load(Ordering::Relaxed) {
        let asked = Instant::now();
        let answer = line.ask_within(STALL, After::Stay).await;
        let took = u64::try_from(asked.elapsed().as_micros())?;
        longest.fetch_max(took, Ordering::Relaxed);
        let problem = match answer {
            Ok(echo) if echo == talk.first => None,
            Ok(echo) => Some(format!("{:?} has become {echo:?}", talk.first)),
            Err(error) => Some(format!("{error:#}")),
        };
        if let Some(problem) = problem {
            // Nobody else writes there.
            let _ = talk.failed.set(problem.clone());
            bail!(problem);
        }
        talk.answers.fetch_add(1, Ordering::Relaxed);
        sleep(PACE).await;
    }
    Ok(line)
}

/// The words beside tables that say where the fields of their entries stand.
struct Words(Array<MapData, [u8; 4096]>);

impl Words {
    fn open(pin: &Path) -> Result<Self> {
        let map = MapData::from_pin(pin);
        let map = map.with_context(|| format!("cannot open {}", pin.display()))?;
        Ok(Self(Array::try_from(Map::Array(map))?))
    }

    fn text(&self) -> Result<String> {
        let words = self.0.get(&0, 0)?.to_vec();
        Ok(String::from_utf8(words)?.trim_end_matches('\0').to_owned())
    }

    fn write(&mut self, text: &str) -> Result<()> {
        let mut words = [0; 4096];
        let place = words.get_mut(..text.len()).context("too many words")?;
        place.copy_from_slice(text.as_bytes());
        Ok(self.0.set(0, words, 0)?)
    }
}
