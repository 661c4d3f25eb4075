//! Health checks: who is probed, when, and what becomes of the results.
//!
//! [`machine`] decides, purely; [`probe`] asks one backend once; this file is
//! the thin driver between them and the only one with tasks and clocks.
//!
//! - One tokio task a target: it waits for its tick, probes, notes the result,
//!   and so can never have two probes in flight. Ticks are multiples of the
//!   interval from the task's start (no drift); those that a slow probe
//!   overran are skipped, not made up for.
//! - The first probe starts at once, but for a small [`spread`] by which the
//!   targets of a large configuration do not all knock in the same
//!   millisecond.
//! - [`Checker::reconcile`] takes the whole list of targets and is harmless to
//!   repeat. A target that did not change keeps its state and its rhythm; one
//!   whose settings or way changed begins a new rhythm with the state it had;
//!   one at a new address is another machine, and starts from its `initial`
//!   state.
//! - Every verdict is reported once. A task takes its place in the queue of
//!   reports before it notes a result, and notes and reports under one lock:
//!   stopping a task can therefore never lose a verdict that has already
//!   changed the state. When the receiver falls behind, probing waits for it.
//! - What everyone may read at any time is on the [`Board`].
//! - A probe goes to the backend directly, or to the service's address by the
//!   way of clients' packets: [`Way`].

pub mod machine;
pub mod probe;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};

pub use machine::{Settings, State};

use machine::{Event, Transition};
use probe::through::{Prober, Through};

/// The longest that a first probe is held back.
pub const MAX_SPREAD: Duration = Duration::from_millis(50);

/// The shortest interval; a shorter one acts as this.
const MIN_INTERVAL: Duration = Duration::from_millis(1);

/// A backend of a service, by their names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TargetId {
    /// The service's name.
    pub service: String,
    /// The backend's name, unique in its service.
    pub backend: String,
}

impl fmt::Display for TargetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.service, self.backend)
    }
}

/// How a probe gets to the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To the backend's own address.
    Direct,
    /// To the service's address, as its packets get to the backend.
    Through(Through),
}

/// What is to be checked, and how.
#[derive(Clone, Debug)]
pub struct Target {
    /// Whose health it is.
    pub id: TargetId,
    /// The backend that is asked.
    pub address: SocketAddr,
    /// How the probe gets there.
    pub way: Way,
    /// How often, how patiently, and how many results decide.
    pub settings: Settings,
    /// What is believed until the first results: [`State::Unknown`], or what
    /// an earlier run of the controller left behind ([`State::adopted`]).
    pub initial: State,
}

/// A verdict: sent when a target is judged first and whenever that changes.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Whose health it is.
    pub id: TargetId,
    /// The backend that was asked. A report may still be in the queue when its
    /// target is removed or moved: the receiver compares.
    pub address: SocketAddr,
    /// Whether new connections may go there.
    pub up: bool,
    /// The last result, in words.
    pub reason: String,
    /// When the result came.
    pub at: SystemTime,
    /// How long the last probe took.
    pub check_seconds: f64,
}

/// How a target stands now.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// The verdict, and the count towards the opposite one; [`State::word`] names it.
    pub state: State,
    /// Since when the verdict holds.
    pub since: SystemTime,
    /// The last result, in words; empty before the first.
    pub last_result: String,
    /// How long the last probe took.
    pub last_duration: Option<Duration>,
    /// How many results in a row were like the last (passes, or failures, or
    /// probes that could not be made).
    pub consecutive: u32,
    last_event: Option<Event>,
}

impl Status {
    const fn new(state: State, since: SystemTime) -> Self {
        Self {
            state,
            since,
            last_result: String::new(),
            last_duration: None,
            consecutive: 0,
            last_event: None,
        }
    }

    /// The status after one more result, and whether the verdict is new.
    fn after(
        &self,
        settings: &Settings,
        outcome: Outcome,
        now: SystemTime,
    ) -> (Self, Option<Transition>) {
        let (state, transition) = machine::step(settings, self.state, outcome.event);
        let repeated = self.last_event == Some(outcome.event);
        let status = Self {
            state,
            since: if transition.is_some() {
                now
            } else {
                self.since
            },
            last_result: outcome.text,
            last_duration: Some(outcome.took),
            consecutive: if repeated {
                self.consecutive.saturating_add(1)
            } else {
                1
            },
            last_event: Some(outcome.event),
        };
        (status, transition)
    }
}

/// The current status of every target; clones show the same board.
#[derive(Clone, Debug, Default)]
pub struct Board(Arc<Mutex<BTreeMap<TargetId, Entry>>>);

#[derive(Debug)]
struct Entry {
    /// Which task may write here; what an older one still has to say is void.
    generation: u64,
    address: SocketAddr,
    status: Status,
}

impl Board {
    /// A copy of everything, for one consistent answer.
    pub fn status(&self) -> BTreeMap<TargetId, Status> {
        self.entries()
            .iter()
            .map(|(id, entry)| (id.clone(), entry.status.clone()))
            .collect()
    }

    /// The status of one target, if it is checked.
    pub fn status_of(&self, id: &TargetId) -> Option<Status> {
        self.entries().get(id).map(|entry| entry.status.clone())
    }

    /// Gives a target's place to the task with number `generation`.
    fn assign(&self, target: &Target, generation: u64, now: SystemTime) {
        let mut entries = self.entries();
        let status = match entries.remove(&target.id) {
            Some(entry) if entry.address == target.address => entry.status,
            Some(_) | None => Status::new(target.initial, now),
        };
        let address = target.address;
        entries.insert(
            target.id.clone(),
            Entry {
                generation,
                address,
                status,
            },
        );
    }

    /// Notes a result and reports a new verdict; `false` when the place has
    /// been given to another task or taken away.
    fn note(
        &self,
        target: &Target,
        generation: u64,
        outcome: Outcome,
        queue: mpsc::Permit<'_, Report>,
    ) -> bool {
        let mut entries = self.entries();
        let Some(entry) = entries
            .get_mut(&target.id)
            .filter(|entry| entry.generation == generation)
        else {
            return false;
        };
        let now = SystemTime::now();
        let check_seconds = outcome.took.as_secs_f64();
        let (status, transition) = entry.status.after(&target.settings, outcome, now);
        if let Some(transition) = transition {
            queue.send(Report {
                id: target.id.clone(),
                address: target.address,
                up: transition == Transition::WentUp,
                reason: status.last_result.clone(),
                at: now,
                check_seconds,
            });
        }
        entry.status = status;
        true
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<TargetId, Entry>> {
        // Every change is a whole assignment: a panic elsewhere leaves no half.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps one probing task for each target; dropping it stops them all.
#[derive(Debug)]
pub struct Checker {
    reports: mpsc::Sender<Report>,
    board: Board,
    prober: Arc<Prober>,
    running: BTreeMap<TargetId, Running>,
    started: u64,
}

/// A target under check, and its task, which ends with this value.
#[derive(Debug)]
struct Running {
    address: SocketAddr,
    way: Way,
    settings: Settings,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Checker {
    /// A checker without targets, whose verdicts go to `reports`.
    pub fn new(reports: mpsc::Sender<Report>) -> Self {
        Self {
            reports,
            board: Board::default(),
            prober: Arc::default(),
            running: BTreeMap::new(),
            started: 0,
        }
    }

    /// Makes `targets` the ones that are checked: starts, stops and restarts
    /// tasks as needed (called within a tokio runtime). Of two targets with
    /// the same id the later one counts.
    pub fn reconcile(&mut self, targets: Vec<Target>) {
        let wanted: BTreeMap<TargetId, Target> = targets
            .into_iter()
            .map(|target| (target.id.clone(), target))
            .collect();
        self.running.retain(|id, running| {
            wanted.get(id).is_some_and(|target| {
                running.address == target.address
                    && running.way == target.way
                    && running.settings == target.settings
            })
        });
        self.board.entries().retain(|id, _| wanted.contains_key(id));
        for (id, target) in wanted {
            if !self.running.contains_key(&id) {
                let running = self.start(target);
                self.running.insert(id, running);
            }
        }
    }

    /// The current status of every target.
    pub fn status(&self) -> BTreeMap<TargetId, Status> {
        self.board.status()
    }

    /// The board itself, for readers that outlive a borrow of the checker.
    pub fn board(&self) -> Board {
        self.board.clone()
    }

    fn start(&mut self, target: Target) -> Running {
        self.started += 1;
        self.board.assign(&target, self.started, SystemTime::now());
        Running {
            address: target.address,
            way: target.way,
            settings: target.settings,
            task: tokio::spawn(check_forever(
                target,
                self.started,
                self.board.clone(),
                Arc::clone(&self.prober),
                self.reports.clone(),
            )),
        }
    }
}

/// How long the first probe of a target is held back: the same for the same
/// target, at most a tenth of the interval and [`MAX_SPREAD`].
pub fn spread(id: &TargetId, interval: Duration) -> Duration {
    let most = (interval / 10).min(MAX_SPREAD).as_micros() as u64;
    // FNV-1a: small, and the same in every run, unlike the standard hasher.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in id.service.bytes().chain([b'/']).chain(id.backend.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    Duration::from_micros(hash % (most + 1))
}

/// One result, ready for the board.
struct Outcome {
    event: Event,
    text: String,
    took: Duration,
}

async fn check_forever(
    target: Target,
    generation: u64,
    board: Board,
    prober: Arc<Prober>,
    reports: mpsc::Sender<Report>,
) {
    let interval = target.settings.interval.max(MIN_INTERVAL);
    let first = Instant::now() + spread(&target.id, interval);
    let mut ticks = tokio::time::interval_at(first, interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        let outcome = check_once(&target, &prober).await;
        // Nobody hears the verdicts any more: nothing is left to check for.
        let Ok(queue) = reports.reserve().await else {
            return;
        };
        if !board.note(&target, generation, outcome, queue) {
            return;
        }
    }
}

async fn check_once(target: &Target, prober: &Prober) -> Outcome {
    let started = Instant::now();
    let timeout = target.settings.timeout;
    let (answer, text) = match &target.way {
        Way::Direct => {
            let answer = probe::tcp::probe(target.address, timeout).await;
            let text = match &answer {
                Ok(_) => String::from("accepted a connection"),
                Err(error) => error.to_string(),
            };
            (answer, text)
        }
        Way::Through(through) => {
            let answer = prober.probe(through, target.address, timeout).await;
            let text = through.tell(&answer);
            (answer, text)
        }
    };
    let event = match &answer {
        Ok(_) => Event::Passed,
        Err(error) if error.judges() => Event::Failed,
        Err(_) => Event::Inconclusive,
    };
    Outcome {
        event,
        text,
        took: answer.unwrap_or_else(|_| started.elapsed()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// Far beyond anything that passes; only a fault waits this long.
    const GENEROUS: Duration = Duration::from_secs(30);
    const HOUR: Duration = Duration::from_secs(3600);

    fn id(backend: &str) -> TargetId {
        TargetId {
            service: "web".into(),
            backend: backend.into(),
        }
    }

    fn settings(interval: Duration) -> Settings {
        Settings {
            interval,
            timeout: Duration::from_secs(5),
            rise: 2,
            fall: 3,
        }
    }

    fn target(backend: &str, address: SocketAddr, interval: Duration) -> Target {
        Target {
            id: id(backend),
            address,
            way: Way::Direct,
            settings: settings(interval),
            initial: State::Unknown,
        }
    }

    /// A backend: it accepts until it is dropped.
    struct Backend(JoinHandle<()>);

    impl Drop for Backend {
        fn drop(&mut self) {
            self.0.abort();
        }
    }

    /// Each test listens on loopback addresses of its own, so that no other
    /// socket can take a port while its listener is closed.
    async fn listen(address: &str) -> (Backend, SocketAddr) {
        let listener = TcpListener::bind(address)
            .await
            .expect("loopback can be bound");
        let address = listener
            .local_addr()
            .expect("a bound socket has an address");
        let accepting = tokio::spawn(async move { while listener.accept().await.is_ok() {} });
        (Backend(accepting), address)
    }

    /// An address at which nobody listens.
    async fn closed(address: &str) -> SocketAddr {
        let listener = TcpListener::bind(address)
            .await
            .expect("loopback can be bound");
        listener
            .local_addr()
            .expect("a bound socket has an address")
    }

    async fn next(reports: &mut mpsc::Receiver<Report>) -> Report {
        tokio::time::timeout(GENEROUS, reports.recv())
            .await
            .expect("a report comes")
            .expect("the checker lives")
    }

    const QUICK: Duration = Duration::from_millis(10);

    #[tokio::test]
    async fn a_backend_goes_down_after_fall_failures_and_up_after_rise_passes() {
        let (backend, address) = listen("127.71.0.1:0").await;
        let (tx, mut rx) = mpsc::channel(8);
        let mut checker = Checker::new(tx);
        checker.reconcile(vec![target("a", address, QUICK)]);

        let report = next(&mut rx).await;
        assert_eq!(
            (report.id, report.address, report.up),
            (id("a"), address, true)
        );
        assert_eq!(report.reason, "accepted a connection");
        assert!(report.check_seconds < 5.0);

        drop(backend);
        let report = next(&mut rx).await;
        assert!(!report.up);
        assert_eq!(
            report.reason,
            "connection refused: nothing listens on that port"
        );
        let status = checker.status()[&id("a")].clone();
        assert_eq!(status.state.word(), "down");
        assert_eq!(status.since, report.at);
        assert!(status.consecutive >= 3, "{status:?}");

        let (_backend, _) = listen(&address.to_string()).await;
        let report = next(&mut rx).await;
        assert!(report.up);
        let status = checker.board().status_of(&id("a")).expect("it is checked");
        assert_eq!(status.last_result, "accepted a connection");
        assert!(status.consecutive >= 2, "{status:?}");
        assert!(status.last_duration.is_some());
    }

    #[tokio::test]
    async fn the_first_failure_decides_for_a_backend_not_judged_yet() {
        let address = closed("127.71.0.2:0").await;
        let (tx, mut rx) = mpsc::channel(8);
        let mut checker = Checker::new(tx);
        // One probe in an hour: a second one cannot have decided.
        checker.reconcile(vec![target("a", address, HOUR)]);
        assert!(!next(&mut rx).await.up);
        assert_eq!(checker.status()[&id("a")].consecutive, 1);
    }

    #[tokio::test]
    async fn an_adopted_verdict_holds_until_enough_results_speak_against_it() {
        let (_backend, open) = listen("127.71.0.3:0").await;
        let closed = closed("127.71.0.4:0").await;
        let (tx, mut rx) = mpsc::channel(8);
        let mut checker = Checker::new(tx);
        let adopt = |mut target: Target, up| {
            target.initial = State::adopted(up);
            target
        };
        checker.reconcile(vec![
            adopt(target("open", open, QUICK), false),
            adopt(target("closed", closed, QUICK), true),
        ]);
        let reports = [next(&mut rx).await, next(&mut rx).await];
        let status = checker.status();
        for report in reports {
            assert_eq!(report.up, report.address == open);
            let least = if report.up { 2 } else { 3 };
            assert!(status[&report.id].consecutive >= least);
        }
    }

    #[tokio::test]
    async fn an_unchanged_target_keeps_its_task_and_a_removed_one_loses_it() {
        let (_backend, address) = listen("127.71.0.5:0").await;
        let (tx, mut rx) = mpsc::channel(8);
        let mut checker = Checker::new(tx);
        checker.reconcile(vec![target("a", address, HOUR), target("b", address, HOUR)]);
        let task = checker.running[&id("a")].task.id();
        let (one, two) = (next(&mut rx).await, next(&mut rx).await);
        assert!(one.up && two.up && one.id != two.id);

        checker.reconcile(vec![target("a", address, HOUR)]);
        assert_eq!(checker.running[&id("a")].task.id(), task);
        assert_eq!(checker.running.len(), 1);
        assert_eq!(checker.status().into_keys().collect::<Vec<_>>(), [id("a")]);
    }

    #[tokio::test]
    async fn new_settings_keep_the_state_and_a_new_address_does_not() {
        let (_backend, here) = listen("127.71.0.6:0").await;
        let (_other, there) = listen("127.71.0.7:0").await;
        let (tx, mut rx) = mpsc::channel(8);
        let mut checker = Checker::new(tx);
        checker.reconcile(vec![target("a", here, HOUR)]);
        assert!(next(&mut rx).await.up);
        let judged = checker.status()[&id("a")].clone();

        checker.reconcile(vec![target("a", here, 2 * HOUR)]);
        assert_eq!(checker.status()[&id("a")], judged);

        checker.reconcile(vec![target("a", there, 2 * HOUR)]);
        assert_eq!(checker.status()[&id("a")].state, State::Unknown);
        let report = next(&mut rx).await;
        assert_eq!((report.up, report.address), (true, there));
    }

    #[tokio::test]
    async fn a_task_that_was_replaced_has_no_say() {
        let (_backend, address) = listen("127.71.0.8:0").await;
        let (tx, mut rx) = mpsc::channel(8);
        let target = target("a", address, HOUR);
        let board = Board::default();
        board.assign(&target, 1, SystemTime::UNIX_EPOCH);
        board.assign(&target, 2, SystemTime::UNIX_EPOCH);
        let passed = || Outcome {
            event: Event::Passed,
            text: "answered".into(),
            took: Duration::from_millis(1),
        };
        let queue = tx.reserve().await.expect("there is room");
        assert!(!board.note(&target, 1, passed(), queue));
        assert!(rx.try_recv().is_err());
        let queue = tx.reserve().await.expect("there is room");
        assert!(board.note(&target, 2, passed(), queue));
        assert!(rx.try_recv().expect("a report").up);
    }

    #[tokio::test]
    async fn checking_ends_when_nobody_hears_the_verdicts() {
        let (_backend, address) = listen("127.71.0.9:0").await;
        let (tx, rx) = mpsc::channel(8);
        drop(rx);
        let task = tokio::spawn(check_forever(
            target("a", address, QUICK),
            1,
            Board::default(),
            Arc::default(),
            tx,
        ));
        tokio::time::timeout(GENEROUS, task)
            .await
            .expect("it ends")
            .expect("it ends in order");
    }

    #[tokio::test]
    async fn a_slow_receiver_gets_every_verdict_later() {
        let (_backend, address) = listen("127.71.0.10:0").await;
        let (tx, mut rx) = mpsc::channel(1);
        let mut checker = Checker::new(tx);
        let names: Vec<String> = (0..20).map(|n| format!("b{n}")).collect();
        checker.reconcile(
            names
                .iter()
                .map(|name| target(name, address, HOUR))
                .collect(),
        );
        let mut heard = Vec::new();
        for _ in &names {
            heard.push(next(&mut rx).await.id.backend);
        }
        heard.sort();
        let mut expected = names;
        expected.sort();
        assert_eq!(heard, expected);
    }

    #[test]
    fn a_status_counts_results_of_one_kind_and_remembers_when_the_verdict_changed() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let outcome = |event| Outcome {
            event,
            text: format!("{event:?}"),
            took: QUICK,
        };
        let settings = settings(HOUR);
        let mut status = Status::new(State::Unknown, at(0));
        let story = [
            // event, word, consecutive, since
            (Event::Inconclusive, "unknown", 1, 0),
            (Event::Passed, "up", 1, 2),
            (Event::Failed, "up", 1, 2),
            (Event::Failed, "up", 2, 2),
            (Event::Inconclusive, "up", 1, 2),
            (Event::Failed, "down", 1, 6),
            (Event::Failed, "down", 2, 6),
        ];
        for (second, (event, word, consecutive, since)) in (1..).zip(story) {
            status = status.after(&settings, outcome(event), at(second)).0;
            assert_eq!(status.state.word(), word, "at {second}");
            assert_eq!(status.consecutive, consecutive, "at {second}");
            assert_eq!(status.since, at(since), "at {second}");
            assert_eq!(status.last_result, format!("{event:?}"));
        }
    }

    #[test]
    fn the_spread_is_small_steady_and_different() {
        let ids: Vec<TargetId> = (0..100).map(|n| id(&format!("web{n}"))).collect();
        for interval in [QUICK, Duration::from_secs(1), HOUR] {
            let spreads: Vec<Duration> = ids.iter().map(|id| spread(id, interval)).collect();
            assert!(
                spreads
                    .iter()
                    .all(|s| *s <= MAX_SPREAD && *s <= interval / 10)
            );
            let again: Vec<Duration> = ids.iter().map(|id| spread(id, interval)).collect();
            assert_eq!(spreads, again);
            let mut different = spreads;
            different.sort();
            different.dedup();
            assert!(different.len() > 80, "{} of 100", different.len());
        }
        assert_eq!(spread(&id("a"), Duration::ZERO), Duration::ZERO);
    }
}
