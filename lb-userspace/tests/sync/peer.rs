//! A node as its sessions see it, with what the controller would tell them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lb_userspace::sync::board::{Board, View, Word};
use lb_userspace::sync::dictionary::Dictionary;
use lb_userspace::sync::message::{Hello, Role, Status};
use lb_userspace::sync::{Clock, Local};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use super::world::Node;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Peer {
    pub(crate) node: Node,
    pub(crate) local: Arc<Local>,
    status: watch::Sender<Status>,
    dictionary: watch::Sender<Arc<Dictionary>>,
    pub(crate) words: mpsc::Receiver<Word>,
}

impl Peer {
    pub(crate) fn new(name: &str, seed: u32, buckets: u32, offset: u32) -> Self {
        let node = Node::new(seed, buckets, offset);
        let (status, its_status) = watch::channel(Status::default());
        let (dictionary, its_dictionary) = watch::channel(Arc::new(node.dictionary()));
        let (told, words) = mpsc::channel(64);
        let local = Local {
            table: Arc::clone(&node.table),
            hello: Hello {
                node: name.into(),
                version: "0.1.0".into(),
                abi: 5,
                boot: u64::from(seed) << 32 | 7,
            },
            status: its_status,
            dictionary: its_dictionary,
            board: Arc::new(Board::new(told)),
            clock: Clock::of_host(),
        };
        Self {
            node,
            local: Arc::new(local),
            status,
            dictionary,
            words,
        }
    }

    /// It is this in the pair from now on.
    pub(crate) fn acts(&self, role: Role) {
        self.status.send_modify(|status| status.role = role);
    }

    /// Its file says something else.
    pub(crate) fn says(&self, configuration: u64) {
        let change = |status: &mut Status| status.configuration = configuration;
        self.status.send_modify(change);
    }

    /// Its tables are others.
    pub(crate) fn says_numbers(&self) {
        let dictionary = Arc::new(self.node.dictionary());
        self.dictionary.send_replace(dictionary);
    }

    pub(crate) fn view(&self) -> View {
        self.local.board.view()
    }
}

/// Waits until this is so.
pub(crate) async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !so() {
        assert!(begun.elapsed() < PATIENCE, "never: {what}");
        sleep(Duration::from_millis(2)).await;
    }
}
