//! The sync channel as the controller has it: a thread, and what it is told.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use lb_common::abi::ABI_VERSION;
use tokio::sync::{mpsc, oneshot, watch};

use super::board::{Board, View, Word};
use super::dictionary::Dictionary;
use super::link::{Ends, run};
use super::message::{Hello, Status};
use super::{Clock, Local};
use crate::dataplane::Table;
use crate::host;

/// Words for people that may wait.
const QUEUE: usize = 64;

/// How long the last words may take.
const PARTING: Duration = Duration::from_secs(1);

/// From one look whether they have arrived to the next.
const LOOK: Duration = Duration::from_millis(2);

/// The thread; it ends when this is dropped.
pub struct Running {
    status: watch::Sender<Status>,
    dictionary: watch::Sender<Arc<Dictionary>>,
    board: Arc<Board>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Running {
    /// Begins to call the other node, and to answer it; gives what people want to know
    /// of it.
    pub fn start(
        node: &str,
        table: Arc<Table>,
        ends: Ends,
        status: Status,
        dictionary: Dictionary,
    ) -> io::Result<(Self, mpsc::Receiver<Word>)> {
        let (status, its_status) = watch::channel(status);
        let (dictionary, its_dictionary) = watch::channel(Arc::new(dictionary));
        let (say, words) = mpsc::channel(QUEUE);
        let board = Arc::new(Board::new(say));
        let [high, low] = [host::random()?, host::random()?];
        let local = Arc::new(Local {
            table,
            hello: Hello {
                node: node.to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                abi: ABI_VERSION,
                boot: u64::from(high) << 32 | u64::from(low),
            },
            status: its_status,
            dictionary: its_dictionary,
            board: Arc::clone(&board),
            clock: Clock::of_host(),
        });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new()
            .name("sync".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        () = run(local, ends) => {}
                        // Told, or nobody is there any more who could.
                        _ = stopped => {}
                    }
                });
            })?;
        let running = Self {
            status,
            dictionary,
            board,
            stop: Some(stop),
            thread: Some(thread),
        };
        Ok((running, words))
    }

    /// How everything stands.
    pub fn view(&self) -> View {
        self.board.view()
    }

    /// Where it is said how this node is; whoever has it may say so from any thread.
    pub fn status(&self) -> &watch::Sender<Status> {
        &self.status
    }

    /// The numbers of services and backends are these now.
    pub fn number(&self, dictionary: Dictionary) {
        self.dictionary.send_if_modified(|before| {
            let differs = **before != dictionary;
            if differs {
                *before = Arc::new(dictionary);
            }
            differs
        });
    }
}

impl Running {
    /// Ends it, for a node that forwards no longer: as soon as the other node has its
    /// last words, or [`PARTING`] is over, or there is nobody to have them. Blocks.
    pub fn part(self) {
        let end = Instant::now() + PARTING;
        loop {
            let view = self.view();
            if !view.telling.up || view.parted || Instant::now() >= end {
                return;
            }
            thread::sleep(LOOK);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread of the sync channel has panicked");
        }
    }
}
