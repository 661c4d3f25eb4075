//! The memory of a table of connections in this process, for as many threads as
//! like: what the kernel's maps are to the CPUs.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use lb_common::Word;
use lb_common::abi::{AnswerBucket, Connection, TagBucket, tag};
use lb_ebpf::{Memory, Shape, connections};

/// See the module.
pub struct SharedMemory {
    shape: Shape,
    connections: Vec<Connection>,
    answers: Vec<AnswerBucket>,
    live: Vec<Word<u64>>,
}

impl SharedMemory {
    /// Empty, with so many backends.
    pub fn new(shape: Shape, backends: u32) -> Self {
        Self {
            shape,
            connections: many(shape.tag_buckets * tag::WORDS),
            answers: many(shape.answer_buckets),
            live: many(backends),
        }
    }

    /// How many connections of this backend live.
    pub fn live(&self, backend: u32) -> u64 {
        self.live.get(backend as usize).map_or(0, Word::load)
    }

    /// The classes of all tags: how many there are of each.
    pub fn classes(&self) -> [usize; 8] {
        let mut classes = [0; 8];
        for (number, bucket) in self.buckets() {
            for (_, word) in bucket.tags(number) {
                classes[(word.load() & tag::CLASS) as usize] += 1;
            }
        }
        classes
    }

    /// How many words of answers are in use.
    pub fn listed(&self) -> usize {
        let buckets = (0..).zip(&self.answers);
        let words = buckets.flat_map(|(number, bucket)| bucket.answers(number));
        words.filter(|word| word.load() != 0).count()
    }

    /// How many connections, and how many answers, the buckets count elsewhere.
    pub fn elsewhere(&self) -> [u64; 2] {
        let tags = self
            .buckets()
            .map(|(number, tags)| u64::from(tags.elsewhere(number).load()));
        let answers = (0..).zip(&self.answers);
        let answers = answers.map(|(number, bucket)| bucket.elsewhere(number).load());
        [tags.sum(), answers.sum()]
    }

    /// The tags of all buckets.
    fn buckets(&self) -> impl Iterator<Item = (u32, &TagBucket)> {
        let numbers = 0..self.shape.tag_buckets;
        numbers.filter_map(|number| Some((number, self.tags(number)?)))
    }

    /// All places with a connection that can be found.
    pub fn places(&self) -> impl Iterator<Item = u32> {
        0..connections::places(self)
    }
}

fn many<T: Default>(count: u32) -> Vec<T> {
    (0..count).map(|_| T::default()).collect()
}

impl Memory for SharedMemory {
    fn shape(&self) -> Shape {
        self.shape
    }

    fn connection(&self, place: u32) -> Option<&Connection> {
        self.connections.get(place as usize)
    }

    fn answers(&self, bucket: u32) -> Option<&AnswerBucket> {
        self.answers.get(bucket as usize)
    }

    fn exchange(&self, word: &Word<u32>, old: u32, new: u32) -> bool {
        // SAFETY: an aligned word that is borrowed, and only ever accessed whole.
        let word = unsafe { AtomicU32::from_ptr(word.as_ptr()) };
        word.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
    }

    fn exchange_wide(&self, word: &Word<u64>, old: u64, new: u64) -> bool {
        wide(word)
            .compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
    }

    fn add(&self, word: &Word<u32>, by: i32) {
        // SAFETY: as above.
        let word = unsafe { AtomicU32::from_ptr(word.as_ptr()) };
        word.fetch_add(by.cast_unsigned(), Ordering::SeqCst);
    }

    fn add_wide(&self, word: &Word<u64>, by: i64) {
        wide(word).fetch_add(by.cast_unsigned(), Ordering::SeqCst);
    }

    fn swap_wide(&self, word: &Word<u64>, new: u64) -> u64 {
        wide(word).swap(new, Ordering::SeqCst)
    }

    fn count_live(&self, backend: u32, by: i32) {
        if let Some(live) = self.live.get(backend as usize) {
            wide(live).fetch_add(i64::from(by).cast_unsigned(), Ordering::SeqCst);
        }
    }
}

fn wide(word: &Word<u64>) -> &AtomicU64 {
    // SAFETY: an aligned word that is borrowed, and only ever accessed whole.
    unsafe { AtomicU64::from_ptr(word.as_ptr()) }
}
