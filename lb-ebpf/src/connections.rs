//! The table of connections: how one is found, begun, and taken away.
//!
//! Two arrays of fixed size stand in shared memory ([`Memory`]). The data path
//! on all CPUs and the controller work on them at the same time, and nobody
//! locks anything.
//!
//! ```text
//! CONNECTIONS  buckets of 15 entries: ends, backend, life       (one line for IPv4)
//!              and of as many tags: hash | stamp | class        (one cache line)
//! ANSWERS      buckets of 7 words: hash | place                 (nat and full-nat)
//! ```
//!
//! **Finding.** A connection can stand in two buckets, which the hash of its ends
//! says. It is nearly always in the first: the second is for what the first has no
//! comfortable room for ([`COMFORT`]), and the first counts how many are there
//! instead of here, so that the second is looked at only where it is worth while. A
//! packet from a backend finds the place in `ANSWERS` the same way. So a known
//! packet costs two lines of memory, whichever way it goes, one of no connection
//! one line for each way, and both directions of a connection are one entry that
//! cannot come apart.
//!
//! **Beginning.** Who makes a tag [`tag::BUSY`] by an exchange owns the place:
//! it writes the entry, enters the answers, and publishes both by the tag. A full
//! bucket gives up, in this order, a connection that has ended, the oldest
//! first, or one whose client has proved nothing, the oldest first. One that is
//! established is given up for nobody: with 30 of them the newcomer is refused.
//! So a flood of forged clients displaces only its own.
//!
//! **Living.** What changes while a connection lives is one word, [`life`]: its
//! state and the version of the entry. It is exchanged whole, so a change that
//! comes late, when the place is already another's, finds another version and
//! does nothing; and each change of state happens once, whoever sees it, so that
//! the counts of live connections are exact. A reader compares the version
//! before and after: what was written meanwhile it has not seen.
//!
//! [`life`]: Connection::life

use core::hint::black_box;

use lb_common::abi::{
    ANSWER_WAYS, ANSWER_WORDS, AnswerBucket, Connection, Flow, FlowKey, Life, TCP, TagBucket, UDP,
    connection, forward, tag,
};
use lb_common::flow::{ESTABLISHED, ONE_WAY, class, ended};
use lb_common::{Address, Be16, Word};

/// The memory that the table stands in: maps of the kernel for the data path,
/// the same mapped by the controller, and vectors in the tests. A trait of its
/// own because the controller has none of the other answers of
/// [`crate::Tables`]. What several may write at once is
/// exchanged.
pub trait Memory {
    /// How large the arrays are.
    fn shape(&self) -> Shape;

    /// The connection at this place, if there are as many.
    fn connection(&self, place: u32) -> Option<&Connection>;

    /// The tags of the bucket with this number, if there are as many.
    #[inline(always)]
    fn tags(&self, bucket: u32) -> Option<&TagBucket> {
        let first = bucket.wrapping_mul(tag::WORDS);
        let entry = self.connection(first.wrapping_add(tag::own(bucket)));
        entry.map(Connection::tags)
    }

    /// The bucket of answers with this number, if there are as many.
    fn answers(&self, bucket: u32) -> Option<&AnswerBucket>;

    /// Writes the new value if the old one stands there; whether it did.
    fn exchange(&self, word: &Word<u32>, old: u32, new: u32) -> bool;

    /// The same for a wide word.
    fn exchange_wide(&self, word: &Word<u64>, old: u64, new: u64) -> bool;

    /// Adds to a word that several count with, or with -1 takes one off.
    fn add(&self, word: &Word<u32>, by: i32);

    /// The same for a wide word.
    fn add_wide(&self, word: &Word<u64>, by: i64);

    /// Writes the new value into a wide word; gives what stood there.
    fn swap_wide(&self, word: &Word<u64>, new: u64) -> u64;

    /// Counts a live connection of this backend more, or with -1 one less.
    fn count_live(&self, backend: u32, by: i32);

    /// Notes that an established connection of this bucket has come, has changed its
    /// state, or has gone, for whoever keeps another table alike. Where nobody does,
    /// nothing is noted.
    #[inline(always)]
    fn note_change(&self, _bucket: u32) {}
}

/// How large the arrays of a table are, and what its hash begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// How many buckets of connections.
    pub tag_buckets: u32,
    /// How many buckets of answers.
    pub answer_buckets: u32,
    /// Unknown to outsiders, so that they cannot fill a bucket on purpose.
    pub seed: u32,
}

/// The first bucket takes what comes as long as one of its first so many places is
/// free; else the two are compared.
const COMFORT: u32 = 12;

/// The same for words of answers; else the second bucket takes it, if it has as many.
const ANSWER_COMFORT: u32 = 5;

/// How often an exchange is tried that another has spoiled.
const TRIES: u32 = 3;

const ODD: u32 = 1;
const VERSION_SHIFT: u32 = 32;

/// The hash of a packet's ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hash(u64);

impl Hash {
    /// Multiplies and folds word by word, as MurmurHash3's 64-bit finaliser does;
    /// IPv4 has fewer words.
    #[inline(always)]
    pub const fn of(key: &FlowKey, seed: u32) -> Self {
        let [a, b, c, d] = key.src.words();
        let [e, f, g, h] = key.dst.words();
        let ports = key.src_port.word() as u64 | (key.dst_port.word() as u64) << 16;
        let mut hash = mix(seed as u64 ^ (d as u64 | (h as u64) << 32));
        hash = mix(hash ^ (ports | (key.protocol as u64) << 32));
        if !key.src.is_v4() {
            hash = mix(hash ^ (a as u64 | (b as u64) << 32));
            hash = mix(hash ^ (c as u64 | (g as u64) << 32));
            hash = mix(hash ^ (e as u64 | (f as u64) << 32));
        }
        Self(hash)
    }

    /// One of so many buckets.
    #[inline(always)]
    pub const fn first(self, of: u32) -> u32 {
        (((self.0 & 0xffff_ffff) * of as u64) >> 32) as u32
    }

    /// Another one, mostly. Of the same half of the hash, the other way round: the
    /// other half tells apart who is in one bucket.
    #[inline(always)]
    const fn second(self, of: u32) -> u32 {
        (((self.0 as u32).rotate_left(16) as u64 * of as u64) >> 32) as u32
    }

    /// The bits in a tag.
    #[inline(always)]
    const fn tag(self) -> u32 {
        (self.0 >> 24) as u32 & tag::HASH
    }

    /// Bits to tell flows apart by, for others.
    #[inline(always)]
    pub const fn spread(self) -> u32 {
        (self.0 >> 16) as u32
    }

    /// The high half of an answer, which is never zero: a free word has no mark.
    #[inline(always)]
    const fn mark(self) -> u64 {
        self.0 & !0xffff_ffff | 1 << 32
    }
}

#[inline(always)]
const fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let word = (word ^ (word >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    word ^ (word >> 33)
}

/// Finds the connection of a packet from a client, and what becomes of it.
#[inline(always)]
pub fn of_client(memory: &impl Memory, key: &FlowKey, flow: &mut Flow) -> bool {
    let shape = memory.shape();
    let hash = Hash::of(key, shape.seed);
    let first = hash.first(shape.tag_buckets);
    flow.spread = hash.spread();
    look(memory, first, hash, key, flow)
        || spilled(memory, first) && look(memory, hash.second(shape.tag_buckets), hash, key, flow)
}

/// Whether a connection stands in its second bucket whose first one this is.
#[inline(always)]
fn spilled(memory: &impl Memory, bucket: u32) -> bool {
    let tags = memory.tags(bucket);
    tags.is_some_and(|tags| tags.elsewhere(bucket).load() != 0)
}

/// The same for answers.
#[inline(always)]
fn answers_spilled(memory: &impl Memory, bucket: u32) -> bool {
    let answers = memory.answers(bucket);
    answers.is_some_and(|answers| answers.elsewhere(bucket).load() != 0)
}

/// Finds the connection of a packet from a backend, and what becomes of it.
#[inline(always)]
pub fn of_backend(memory: &impl Memory, key: &FlowKey, flow: &mut Flow) -> bool {
    let shape = memory.shape();
    let hash = Hash::of(key, shape.seed);
    let first = hash.first(shape.answer_buckets);
    look_back(memory, first, hash, key, flow)
        || answers_spilled(memory, first)
            && look_back(memory, hash.second(shape.answer_buckets), hash, key, flow)
}

/// How many tags, or answers, of one bucket with the same bits of the hash are
/// looked behind. That another one is behind two that are not it, where 24 bits
/// agree by chance, happens to one connection in 10^12.
const LOOKED_BEHIND: u32 = 2;

/// Looks in one bucket. Its number goes by way of the flow's memory, of whose contents
/// the verifier knows nothing: in a table of few buckets it would know which ones there
/// are, and take each way in each of them for another.
#[inline(always)]
fn look(memory: &impl Memory, bucket: u32, hash: Hash, key: &FlowKey, flow: &mut Flow) -> bool {
    flow.place = bucket;
    let bucket = black_box(&mut *flow).place;
    let Some(tags) = memory.tags(bucket) else {
        return false;
    };
    let mut way = same_tag(tags, hash, bucket, tag::WAYS);
    let mut behind = 0;
    while behind < LOOKED_BEHIND && way < tag::WORDS {
        if read(memory, bucket * tag::WORDS + way, key, flow) {
            return true;
        }
        way = same_tag(tags, hash, way + 1, left(bucket, way));
        behind += 1;
    }
    false
}

/// How many tags of the bucket there are behind this one, from the word of the
/// bucket's own number on.
#[inline(always)]
const fn left(bucket: u32, way: u32) -> u32 {
    bucket.wrapping_sub(way).wrapping_sub(2) % tag::WORDS
}

/// The first way with a tag of this hash, of so many from here on and round the
/// end; [`tag::WORDS`] if there is none. Not inlined, and given as a sum with what
/// the verifier does not know: so all ways are one to it.
#[inline(never)]
fn same_tag(tags: &TagBucket, hash: Hash, from: u32, count: u32) -> u32 {
    let mut step = 0;
    while step < tag::WAYS && step < count {
        let way = from.wrapping_add(step) % tag::WORDS;
        let found = tags.0[way as usize].load();
        if found & tag::HASH == hash.tag() && found & tag::CLASS > tag::BUSY {
            return way;
        }
        step += 1;
    }
    tag::WORDS
}

#[inline(never)]
fn look_back(
    memory: &impl Memory,
    bucket: u32,
    hash: Hash,
    key: &FlowKey,
    flow: &mut Flow,
) -> bool {
    let Some(answers) = memory.answers(bucket) else {
        return false;
    };
    let mut way = same_mark(answers, hash, bucket, ANSWER_WAYS);
    let mut behind = 0;
    while behind < LOOKED_BEHIND && way < ANSWER_WORDS {
        let place = place_of(answers.0[(way % ANSWER_WORDS) as usize].load());
        if read_back(memory, place, key, flow) {
            return true;
        }
        way = same_mark(answers, hash, way + 1, answers_left(bucket, way));
        behind += 1;
    }
    false
}

/// The same as [`left`] for answers.
#[inline(always)]
const fn answers_left(bucket: u32, way: u32) -> u32 {
    bucket.wrapping_sub(way).wrapping_sub(2) % ANSWER_WORDS
}

/// The same as [`same_tag`] for answers.
#[inline(never)]
fn same_mark(answers: &AnswerBucket, hash: Hash, from: u32, count: u32) -> u32 {
    let mut step = 0;
    while step < ANSWER_WAYS && step < count {
        let way = from.wrapping_add(step) % ANSWER_WORDS;
        if is_mark(answers.0[way as usize].load(), hash) {
            return way;
        }
        step += 1;
    }
    ANSWER_WORDS
}

#[inline(always)]
const fn is_mark(word: u64, hash: Hash) -> bool {
    word & !0xffff_ffff == hash.mark()
}

#[inline(always)]
const fn place_of(word: u64) -> u32 {
    (word as u32).wrapping_sub(1)
}

/// Reads the connection at a place, if packets with this key are its client's.
#[inline(always)]
fn read(memory: &impl Memory, place: u32, key: &FlowKey, flow: &mut Flow) -> bool {
    match memory.connection(place) {
        Some(entry) => read_entry(entry, place, key, flow),
        None => false,
    }
}

#[inline(always)]
fn read_entry(entry: &Connection, place: u32, key: &FlowKey, flow: &mut Flow) -> bool {
    let life = entry.life.load();
    let marks = entry.service.load() >> 16;
    if version(life) & ODD != 0
        || entry.front_ports.load() != ports(key.src_port, key.dst_port)
        || protocol(marks) != key.protocol
        || address(entry, CLIENT, marks & connection::CLIENT_V4) != key.src
        || address(entry, SERVICE, marks & connection::CLIENT_V4) != key.dst
    {
        return false;
    }
    common(entry, life, place, false, flow);
    let forward = (marks & connection::FORWARD) as u8;
    let [src_port, dst_port] = unpack(entry.back_ports.load());
    let deltas = entry.deltas.load();
    flow.src = if forward == forward::FULL_NAT {
        key.dst
    } else {
        key.src
    };
    flow.dst = address(entry, BACKEND, marks & connection::BACKEND_V4);
    flow.src_port = src_port;
    flow.dst_port = dst_port;
    flow.kind = u16::from(forward);
    flow.ip_delta = deltas as u16;
    flow.transport_delta = (deltas >> 16) as u16;
    unchanged(entry, life)
}

/// Reads the connection at a place, if packets with this key are its backend's.
#[inline(always)]
fn read_back(memory: &impl Memory, place: u32, key: &FlowKey, flow: &mut Flow) -> bool {
    let Some(entry) = memory.connection(place) else {
        return false;
    };
    let life = entry.life.load();
    if version(life) & ODD != 0 || !answers_with(entry, key) {
        return false;
    }
    common(entry, life, place, true, flow);
    let marks = entry.service.load() >> 16;
    let [client, service] = unpack(entry.front_ports.load());
    let deltas = !entry.deltas.load();
    flow.src = address(entry, SERVICE, marks & connection::CLIENT_V4);
    flow.dst = address(entry, CLIENT, marks & connection::CLIENT_V4);
    flow.src_port = service;
    flow.dst_port = client;
    flow.kind = marks as u16 & connection::FORWARD as u16 | Flow::REPLY;
    flow.ip_delta = deltas as u16;
    flow.transport_delta = (deltas >> 16) as u16;
    unchanged(entry, life)
}

/// Whether packets with this key are from the entry's backend, or would be.
#[inline(always)]
fn answers_with(entry: &Connection, key: &FlowKey) -> bool {
    let marks = entry.service.load() >> 16;
    let source = if marks & connection::FORWARD == u32::from(forward::FULL_NAT) {
        SERVICE
    } else {
        CLIENT
    };
    entry.back_ports.load() == ports(key.dst_port, key.src_port)
        && protocol(marks) == key.protocol
        && address(entry, BACKEND, marks & connection::BACKEND_V4) == key.src
        && address(entry, source, marks & connection::CLIENT_V4) == key.dst
}

#[inline(always)]
fn common(entry: &Connection, life: u64, place: u32, reply: bool, flow: &mut Flow) {
    flow.backend = entry.backend.load();
    flow.service = entry.service.load() as u16;
    flow.place = place;
    flow.hop = entry.hops[usize::from(reply)].load();
    flow.life = Life {
        seen: entry.seen.load(),
        proof: entry.proof.load(),
        state: life as u32,
        version: version(life),
    };
}

/// Whether what was read is of one connection.
#[inline(always)]
fn unchanged(entry: &Connection, life: u64) -> bool {
    version(entry.life.load()) == version(life)
}

#[inline(always)]
const fn version(life: u64) -> u32 {
    (life >> VERSION_SHIFT) as u32
}

const CLIENT: usize = 0;
const SERVICE: usize = 1;
const BACKEND: usize = 2;

#[inline(always)]
fn address(entry: &Connection, whose: usize, is_v4: u32) -> Address {
    let low = entry.low[whose].load();
    if is_v4 != 0 {
        return Address::v4(low.to_ne_bytes());
    }
    let [a, b, c] = &entry.high[whose];
    Address::from_words([a.load(), b.load(), c.load(), low])
}

#[inline(always)]
const fn protocol(marks: u32) -> u32 {
    if marks & connection::TCP != 0 {
        TCP as u32
    } else {
        UDP as u32
    }
}

#[inline(always)]
const fn ports(first: Be16, second: Be16) -> u32 {
    first.word() as u32 | (second.word() as u32) << 16
}

#[inline(always)]
const fn unpack(ports: u32) -> [Be16; 2] {
    [
        Be16::from_wire((ports as u16).to_ne_bytes()),
        Be16::from_wire(((ports >> 16) as u16).to_ne_bytes()),
    ]
}

/// What a bucket offers to a newcomer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Survey {
    /// How many places are free.
    free: u32,
    /// The best place, as `rank` has it.
    best: u32,
}

/// A place that was taken for a newcomer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Seat {
    /// The place.
    pub place: u32,
    /// What stood there: [`tag::FREE`], or the class of what was displaced.
    pub displaced: u32,
    /// For how many stamps it had been of this class.
    pub age: u32,
    /// Not zero if the place is in the second bucket.
    pub elsewhere: u32,
}

/// Room for the search for a place.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Search {
    surveys: [Survey; 2],
    /// What was found.
    pub seat: Seat,
}

/// Takes a place for a connection whose client's packets have this key: nobody
/// else touches it until it is published ([`publish`]) or given up ([`abandon`]).
/// What stood there is gone. False if the table is full.
#[inline(always)]
pub fn take(memory: &impl Memory, hash: Hash, stamp: u32, search: &mut Search) -> bool {
    let first = hash.first(memory.shape().tag_buckets);
    let way = free(memory, first);
    let place = first.wrapping_mul(tag::WORDS).wrapping_add(way);
    if way < tag::WORDS
        && let Some(word) = tag_at(memory, place)
        && memory.exchange(word, tag::FREE, hash.tag() | tag::BUSY)
    {
        search.seat.place = place;
        search.seat.displaced = tag::FREE;
        search.seat.elsewhere = 0;
        return true;
    }
    contend(memory, hash, stamp, search)
}

/// Takes a place where there is none to be had in comfort, or where another has just
/// taken it.
#[inline(never)]
fn contend(memory: &impl Memory, hash: Hash, stamp: u32, search: &mut Search) -> bool {
    let shape = memory.shape();
    let [first, second] = [
        hash.first(shape.tag_buckets),
        hash.second(shape.tag_buckets),
    ];
    let mut tries = 0;
    while tries < TRIES {
        if !choose(memory, [first, second], stamp, search) {
            return false;
        }
        if seize(memory, hash, search) {
            count_elsewhere(memory, first, search);
            return true;
        }
        tries += 1;
    }
    false
}

/// Chooses a place in the first bucket, if there is one to be had in comfort, or else
/// the best that both offer; false if they offer nothing.
#[inline(never)]
fn choose(memory: &impl Memory, buckets: [u32; 2], stamp: u32, search: &mut Search) -> bool {
    let [first, _] = buckets;
    let way = free(memory, first);
    if way < tag::WORDS {
        search.seat.place = first * tag::WORDS + way;
        search.seat.age = 0;
        return true;
    }
    compare(memory, buckets, stamp, search)
}

/// Has the first bucket know if the place is in the second.
#[inline(never)]
fn count_elsewhere(memory: &impl Memory, first: u32, search: &mut Search) {
    search.seat.elsewhere = u32::from(search.seat.place / tag::WORDS != first);
    if search.seat.elsewhere == 0 {
        return;
    }
    if let Some(tags) = memory.tags(first) {
        memory.add(tags.elsewhere(first), 1);
    }
}

/// The first free way of a bucket, of the first [`COMFORT`]; [`tag::WORDS`] if there is
/// none.
#[inline(always)]
fn free(memory: &impl Memory, bucket: u32) -> u32 {
    let Some(tags) = memory.tags(bucket) else {
        return tag::WORDS;
    };
    let mut step = 0;
    while step < COMFORT {
        let way = bucket.wrapping_add(step) % tag::WORDS;
        if tags.0[way as usize].load() & tag::CLASS == tag::FREE {
            return way;
        }
        step += 1;
    }
    tag::WORDS
}

/// Chooses the best that two buckets offer; false if they offer nothing.
#[inline(never)]
fn compare(
    memory: &impl Memory,
    [first, second]: [u32; 2],
    stamp: u32,
    search: &mut Search,
) -> bool {
    survey(memory, first, stamp, &mut search.surveys[0]);
    survey(memory, second, stamp, &mut search.surveys[1]);
    let (which, rank) = best(&search.surveys);
    if rank < RANK_USEFUL {
        return false;
    }
    let bucket = if which == 0 { first } else { second };
    let step = tag::WAYS.wrapping_sub(rank % (1 << RANK_AGE));
    search.seat.place = bucket * tag::WORDS + bucket.wrapping_add(step) % tag::WORDS;
    search.seat.age = rank >> RANK_AGE & (tag::STAMPS - 1);
    true
}

/// Makes the tag of the chosen place busy, and empties the place. The tag follows
/// the state a moment later, and it is by the state that a connection is displaced
/// or left alone: exchanged, so that it cannot be established meanwhile.
#[inline(never)]
fn seize(memory: &impl Memory, hash: Hash, search: &mut Search) -> bool {
    let place = search.seat.place;
    let (Some(entry), Some(word)) = (memory.connection(place), tag_at(memory, place)) else {
        return false;
    };
    let old = word.load();
    let displaced = old & tag::CLASS;
    if displaced == tag::BUSY || displaced == tag::ESTABLISHED {
        return false;
    }
    if !memory.exchange(word, old, hash.tag() | tag::BUSY) {
        return false;
    }
    search.seat.displaced = displaced;
    if displaced == tag::FREE {
        return true;
    }
    let life = entry.life.load();
    if class(life as u32) != displaced || !memory.exchange_wide(&entry.life, life, odd(life)) {
        word.store(old & !tag::CLASS | class(entry.life.load() as u32));
        return false;
    }
    forget(memory, entry, place, life);
    true
}

#[inline(always)]
fn tag_at(memory: &impl Memory, place: u32) -> Option<&Word<u32>> {
    let bucket = place / tag::WORDS;
    let tags = memory.tags(bucket)?;
    let way = place % tag::WORDS;
    if way == tag::own(bucket) {
        return None;
    }
    Some(&tags.0[way as usize])
}

/// Looks at all tags of a bucket. Without branches: to the verifier there is one way
/// through, and to the processor none that it could foresee wrongly. [`black_box`]
/// keeps the compiler from making branches of it again.
#[inline(never)]
fn survey(memory: &impl Memory, bucket: u32, stamp: u32, found: &mut Survey) {
    let mut all = Survey::default();
    let Some(tags) = memory.tags(bucket) else {
        *found = all;
        return;
    };
    let mut step = 0;
    while step < tag::WAYS {
        let word = tags.0[(bucket.wrapping_add(step) % tag::WORDS) as usize].load();
        let rank = rank(word, stamp, step);
        all.free += rank >> RANK_FREE.trailing_zeros();
        all.best = greater(all.best, rank);
        step += 1;
    }
    *found = all;
}

/// How good the place with this tag is for a newcomer: a free one is better than one
/// of a connection that has ended, that is better than one of a half-open connection,
/// and any other is of no use. Within a class the older is better, then the earlier.
#[inline(always)]
const fn rank(word: u32, stamp: u32, step: u32) -> u32 {
    // Four bits for each class of tags.
    const CLASSES: u32 = 4 << (4 * tag::FREE) | 2 << (4 * tag::CLOSED) | 1 << (4 * tag::HALF_OPEN);
    let class = CLASSES >> (4 * (word & tag::CLASS)) & 0xf;
    let age = stamp.wrapping_sub(word >> tag::STAMP_SHIFT) % tag::STAMPS;
    class << RANK_CLASS | age << RANK_AGE | (tag::WAYS - step)
}

/// Where class and age stand in a [`rank`].
const RANK_CLASS: u32 = 16;
const RANK_AGE: u32 = 4;

/// A [`rank`] that is not less is that of a free place.
const RANK_FREE: u32 = 4 << RANK_CLASS;

/// A [`rank`] that is less is of no use.
const RANK_USEFUL: u32 = 1 << RANK_CLASS;

/// The greater of two ranks.
#[inline(always)]
fn greater(one: u32, other: u32) -> u32 {
    let less = black_box(one.wrapping_sub(other));
    one.wrapping_sub(less & (less.cast_signed() >> 31).cast_unsigned())
}

/// Which of the two buckets has the better place, and its rank: the one with more
/// room, where both have some, and the first if both are as good.
#[inline(always)]
const fn best([first, second]: &[Survey; 2]) -> (u32, u32) {
    let room = [first.free, second.free];
    let elsewhere = if room[0] != 0 && room[1] != 0 {
        room[1] > room[0]
    } else {
        second.best >> RANK_AGE > first.best >> RANK_AGE
    };
    if elsewhere {
        (1, second.best)
    } else {
        (0, first.best)
    }
}

/// Takes what stands at a place whose tag the caller has made busy: from here on
/// nobody finds it, and what others still want to note of it comes too late.
#[inline(always)]
fn empty(memory: &impl Memory, entry: &Connection, place: u32) {
    // The version is the caller's to change; the state is what it was last.
    let life = memory.swap_wide(&entry.life, odd(entry.life.load()));
    forget(memory, entry, place, life);
}

/// Takes away what is elsewhere of a connection whose life was this until it was
/// given an odd version.
#[inline(never)]
fn forget(memory: &impl Memory, entry: &Connection, place: u32, life: u64) {
    if version(life) & ODD != 0 {
        // It was never published.
        return;
    }
    let state = life as u32;
    if !ended(state) {
        memory.count_live(entry.backend.load(), -1);
    }
    if state & ONE_WAY == 0 {
        let answers = answers_key(entry);
        unlist(memory, &answers, place);
    }
    if state & ESTABLISHED != 0 {
        memory.note_change(place / tag::WORDS);
    }
    uncount(memory, entry);
}

/// Has its first bucket know that a connection stands in its second no more.
#[inline(never)]
fn uncount(memory: &impl Memory, entry: &Connection) {
    if entry.service.load() >> 16 & connection::ELSEWHERE == 0 {
        return;
    }
    let shape = memory.shape();
    let hash = Hash::of(&key_of(entry), shape.seed);
    let first = hash.first(shape.tag_buckets);
    if let Some(tags) = memory.tags(first) {
        memory.add(tags.elsewhere(first), -1);
    }
}

/// The life of an entry that is being written.
#[inline(always)]
const fn odd(life: u64) -> u64 {
    ((version(life) | ODD) as u64) << VERSION_SHIFT
}

/// The key of the packets from the entry's backend.
#[inline(always)]
fn answers_key(entry: &Connection) -> FlowKey {
    let marks = entry.service.load() >> 16;
    let source = if marks & connection::FORWARD == u32::from(forward::FULL_NAT) {
        SERVICE
    } else {
        CLIENT
    };
    let [src_port, dst_port] = unpack(entry.back_ports.load());
    FlowKey {
        src: address(entry, BACKEND, marks & connection::BACKEND_V4),
        dst: address(entry, source, marks & connection::CLIENT_V4),
        src_port: dst_port,
        dst_port: src_port,
        protocol: protocol(marks),
    }
}

/// Writes a connection into a place that was taken for it: what the client's
/// packets have for a key, and what becomes of them.
#[inline(always)]
pub fn write(memory: &impl Memory, seat: &Seat, key: &FlowKey, flow: &Flow) {
    let Some(entry) = memory.connection(seat.place) else {
        return;
    };
    entry.life.store(odd(entry.life.load()));
    let mark = |set: bool, mark: u32| if set { mark } else { 0 };
    let marks = u32::from(flow.forward())
        | mark(key.src.is_v4(), connection::CLIENT_V4)
        | mark(flow.dst.is_v4(), connection::BACKEND_V4)
        | mark(key.protocol == u32::from(TCP), connection::TCP)
        | mark(seat.elsewhere != 0, connection::ELSEWHERE);
    entry.hops[0].store(0);
    entry.hops[1].store(0);
    entry.seen.store(flow.life.seen);
    entry.proof.store(flow.life.proof);
    entry.backend.store(flow.backend);
    let service = u32::from(flow.service) | marks << 16;
    entry.service.store(service);
    let front = ports(key.src_port, key.dst_port);
    entry.front_ports.store(front);
    store(entry, CLIENT, &key.src);
    store(entry, SERVICE, &key.dst);
    store(entry, BACKEND, &flow.dst);
    write_source(entry, flow);
}

/// Writes what depends on the source port.
#[inline(always)]
fn write_source(entry: &Connection, flow: &Flow) {
    let back = ports(flow.src_port, flow.dst_port);
    entry.back_ports.store(back);
    let deltas = u32::from(flow.ip_delta) | u32::from(flow.transport_delta) << 16;
    entry.deltas.store(deltas);
}

#[inline(always)]
fn store(entry: &Connection, whose: usize, address: &Address) {
    let [a, b, c, d] = address.words();
    entry.low[whose].store(d);
    if address.is_v4() {
        // What the rest says is not looked at, and stands in another line.
        return;
    }
    let [x, y, z] = &entry.high[whose];
    x.store(a);
    y.store(b);
    z.store(c);
}

/// No place.
pub const NOWHERE: u32 = u32::MAX;

/// The place that seems to have the packets from backends with this key, or
/// [`NOWHERE`]. Only hashes are compared: that another's is taken for it happens
/// once in 2^32, and makes a port look taken that is free.
#[inline(always)]
pub fn occupant(memory: &impl Memory, key: &FlowKey) -> u32 {
    let shape = memory.shape();
    let hash = Hash::of(key, shape.seed);
    let first = hash.first(shape.answer_buckets);
    let place = marked(memory, first, hash);
    if place == NOWHERE && answers_spilled(memory, first) {
        marked(memory, hash.second(shape.answer_buckets), hash)
    } else {
        place
    }
}

#[inline(always)]
fn marked(memory: &impl Memory, bucket: u32, hash: Hash) -> u32 {
    let Some(answers) = memory.answers(bucket) else {
        return NOWHERE;
    };
    let way = same_mark(answers, hash, bucket, ANSWER_WAYS);
    if way >= ANSWER_WORDS {
        return NOWHERE;
    }
    place_of(answers.0[(way % ANSWER_WORDS) as usize].load())
}

/// Whether packets from backends with this key are another's than the connection
/// at this place. One counts that is still being written, too.
#[inline(always)]
fn contested(memory: &impl Memory, key: &FlowKey, besides: u32) -> bool {
    let shape = memory.shape();
    let hash = Hash::of(key, shape.seed);
    let [first, second] = [
        hash.first(shape.answer_buckets),
        hash.second(shape.answer_buckets),
    ];
    held(memory, first, hash, key, besides)
        || answers_spilled(memory, first) && held(memory, second, hash, key, besides)
}

#[inline(never)]
fn held(memory: &impl Memory, bucket: u32, hash: Hash, key: &FlowKey, besides: u32) -> bool {
    let Some(answers) = memory.answers(bucket) else {
        return false;
    };
    let mut way = same_mark(answers, hash, bucket, ANSWER_WAYS);
    let mut behind = 0;
    // One of them may be the one that does not count.
    while behind < LOOKED_BEHIND && way < ANSWER_WORDS {
        let place = place_of(answers.0[(way % ANSWER_WORDS) as usize].load());
        if place != besides
            && memory
                .connection(place)
                .is_some_and(|entry| answers_with(entry, key))
        {
            return true;
        }
        way = same_mark(answers, hash, way + 1, answers_left(bucket, way));
        behind += 1;
    }
    false
}

/// What came of a claim to the packets from a backend.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claimed {
    /// They are the connection's.
    Yes,
    /// They are another's.
    Contested,
    /// There is no room to enter it.
    NoRoom,
}

/// Gives the packets from the backend with this key to the connection at this
/// place, which has been written, for the flow's source port.
#[inline(always)]
pub fn claim(memory: &impl Memory, answers: &FlowKey, place: u32, flow: &Flow) -> Claimed {
    let Some(entry) = memory.connection(place) else {
        return Claimed::NoRoom;
    };
    write_source(entry, flow);
    if !list(memory, answers, place) {
        return Claimed::NoRoom;
    }
    // Two who looked at the same time have both entered; at least one of them
    // sees the other here, and gives way.
    if !contested(memory, answers, place) {
        return Claimed::Yes;
    }
    unlist(memory, answers, place);
    Claimed::Contested
}

#[inline(always)]
fn list(memory: &impl Memory, answers: &FlowKey, place: u32) -> bool {
    let shape = memory.shape();
    let hash = Hash::of(answers, shape.seed);
    let word = hash.mark() | u64::from(place + 1);
    let [first, second] = [
        hash.first(shape.answer_buckets),
        hash.second(shape.answer_buckets),
    ];
    let exchange = [0, word];
    let buckets = [first, second];
    replace(memory, first, ANSWER_COMFORT, exchange)
        || list_elsewhere(memory, buckets, ANSWER_COMFORT, exchange)
        || replace(memory, first, ANSWER_WAYS, exchange)
        || list_elsewhere(memory, buckets, ANSWER_WAYS, exchange)
}

/// Enters a word in its second bucket, and has the first know.
#[inline(never)]
fn list_elsewhere(
    memory: &impl Memory,
    [first, second]: [u32; 2],
    count: u32,
    exchange: [u64; 2],
) -> bool {
    let Some(answers) = memory.answers(first).filter(|_| first != second) else {
        return false;
    };
    // Before it stands there: nobody is to miss it.
    memory.add_wide(answers.elsewhere(first), 1);
    let listed = replace(memory, second, count, exchange);
    if !listed {
        memory.add_wide(answers.elsewhere(first), -1);
    }
    listed
}

/// Takes the packets from the backend away again.
#[inline(always)]
pub fn unlist(memory: &impl Memory, answers: &FlowKey, place: u32) {
    let shape = memory.shape();
    let hash = Hash::of(answers, shape.seed);
    let exchange = [hash.mark() | u64::from(place + 1), 0];
    let first = hash.first(shape.answer_buckets);
    if !replace(memory, first, ANSWER_WAYS, exchange)
        && replace(
            memory,
            hash.second(shape.answer_buckets),
            ANSWER_WAYS,
            exchange,
        )
        && let Some(answers) = memory.answers(first)
    {
        memory.add_wide(answers.elsewhere(first), -1);
    }
}

/// Exchanges the first such answer of a bucket, among so many.
#[inline(never)]
fn replace(memory: &impl Memory, bucket: u32, count: u32, [old, new]: [u64; 2]) -> bool {
    let Some(answers) = memory.answers(bucket) else {
        return false;
    };
    let mut step = 0;
    while step < ANSWER_WAYS && step < count {
        let way = bucket.wrapping_add(step) % ANSWER_WORDS;
        let word = &answers.0[way as usize];
        if word.load() == old && memory.exchange_wide(word, old, new) {
            return true;
        }
        step += 1;
    }
    false
}

/// Lets the connection at a place that was taken and written live: it is found
/// from here on. Gives the version that it has.
#[inline(always)]
pub fn publish(memory: &impl Memory, place: u32, stamp: u32, state: u32) -> u32 {
    let (Some(entry), Some(word)) = (memory.connection(place), tag_at(memory, place)) else {
        return 0;
    };
    if !ended(state) {
        memory.count_live(entry.backend.load(), 1);
    }
    let even = version(entry.life.load()).wrapping_add(1);
    entry
        .life
        .store(u64::from(even) << VERSION_SHIFT | u64::from(state));
    let hash = word.load() & tag::HASH;
    word.store(hash | stamped(stamp, class(state)));
    if state & ESTABLISHED != 0 {
        memory.note_change(place / tag::WORDS);
    }
    even
}

#[inline(always)]
const fn stamped(stamp: u32, class: u32) -> u32 {
    (stamp % tag::STAMPS) << tag::STAMP_SHIFT | class
}

/// Gives up a place that was taken and written, and not published.
#[inline(never)]
pub fn abandon(memory: &impl Memory, place: u32) {
    if let (Some(entry), Some(word)) = (memory.connection(place), tag_at(memory, place)) {
        uncount(memory, entry);
        word.store(tag::FREE);
    }
}

/// Takes the connection at a place away, if it still is the one with this
/// version; whether it was.
#[inline(never)]
pub fn remove(memory: &impl Memory, place: u32, version_then: u32) -> bool {
    let (Some(entry), Some(word)) = (memory.connection(place), tag_at(memory, place)) else {
        return false;
    };
    let old = word.load();
    if old & tag::CLASS <= tag::BUSY
        || version_then & ODD != 0
        || version(entry.life.load()) != version_then
    {
        return false;
    }
    if !memory.exchange(word, old, old & tag::HASH | tag::BUSY) {
        return false;
    }
    // Since the comparison it may have become another's.
    if version(entry.life.load()) != version_then {
        word.store(old);
        return false;
    }
    empty(memory, entry, place);
    word.store(tag::FREE);
    true
}

/// Changes the state of a connection: these bits off, those on. What is not the
/// connection that the flow was read off any more stays as it is.
#[inline(never)]
pub fn advance(memory: &impl Memory, flow: &Flow, off: u32, on: u32, stamp: u32) {
    let Some(entry) = memory.connection(flow.place) else {
        return;
    };
    let mut tries = 0;
    while tries < TRIES {
        let life = entry.life.load();
        let state = life as u32;
        let next = state & !off | on;
        if version(life) != flow.life.version || next == state {
            return;
        }
        let next_life = u64::from(version(life)) << VERSION_SHIFT | u64::from(next);
        if memory.exchange_wide(&entry.life, life, next_life) {
            if ended(state) != ended(next) {
                let by = if ended(next) { -1 } else { 1 };
                memory.count_live(flow.backend, by);
            }
            if class(state) != class(next) {
                retag(memory, flow.place, stamp);
            }
            if (state | next) & ESTABLISHED != 0 {
                memory.note_change(flow.place / tag::WORDS);
            }
            return;
        }
        tries += 1;
    }
}

/// Writes the class of a connection into its tag.
#[inline(never)]
pub fn retag(memory: &impl Memory, place: u32, stamp: u32) {
    let (Some(entry), Some(word)) = (memory.connection(place), tag_at(memory, place)) else {
        return;
    };
    let mut tries = 0;
    while tries < TRIES {
        let old = word.load();
        let life = entry.life.load();
        if old & tag::CLASS <= tag::BUSY || version(life) & ODD != 0 {
            return;
        }
        let class = class(life as u32);
        if old & tag::CLASS == class
            || memory.exchange(word, old, old & tag::HASH | stamped(stamp, class))
        {
            return;
        }
        tries += 1;
    }
}

/// Notes that a connection lives.
#[inline(always)]
pub fn touch(memory: &impl Memory, place: u32, now: u32) {
    if let Some(entry) = memory.connection(place) {
        entry.seen.store(now);
    }
}

/// Notes where the next hop stands, of packets from the client or from the
/// backend.
#[inline(always)]
pub fn note_hop(memory: &impl Memory, place: u32, reply: bool, hop: u64) {
    if let Some(entry) = memory.connection(place) {
        entry.hops[usize::from(reply)].store(hop);
    }
}

/// Notes which acknowledgement proves that the client hears the backend.
#[inline(always)]
pub fn expect(memory: &impl Memory, place: u32, proof: u32) {
    if let Some(entry) = memory.connection(place) {
        entry.proof.store(proof);
    }
}

/// The state and the version of an entry.
#[inline(always)]
pub fn stands(entry: &Connection) -> (u32, u32) {
    let life = entry.life.load();
    (life as u32, version(life))
}

/// Whether a connection is one of TCP.
#[inline(always)]
pub fn is_tcp(entry: &Connection) -> bool {
    entry.service.load() >> 16 & connection::TCP != 0
}

/// Frees a place that was left busy, with this tag, by a process that ended in the
/// middle of its work.
pub fn release(memory: &impl Memory, place: u32, tag: u32) {
    let (Some(entry), Some(word)) = (memory.connection(place), tag_at(memory, place)) else {
        return;
    };
    empty(memory, entry, place);
    // Whatever it had done before: nobody else's word has this place.
    unlist(memory, &answers_key(entry), place);
    memory.exchange(word, tag, tag::FREE);
}

/// The connection at this place, as its client's packets find it: their key and
/// what becomes of them. For those who go through the whole table.
pub fn at(memory: &impl Memory, place: u32) -> Option<(FlowKey, Flow)> {
    let class = tag_at(memory, place)?.load() & tag::CLASS;
    if class <= tag::BUSY {
        return None;
    }
    let entry = memory.connection(place)?;
    let key = key_of(entry);
    let mut flow = Flow::default();
    read(memory, place, &key, &mut flow).then_some((key, flow))
}

/// The same for an entry that nobody writes any more, wherever it is from.
pub fn of_entry(entry: &Connection) -> Option<(FlowKey, Flow)> {
    let (_, version) = stands(entry);
    if version == 0 {
        return None;
    }
    let key = key_of(entry);
    let mut flow = Flow::default();
    read_entry(entry, 0, &key, &mut flow).then_some((key, flow))
}

/// The key of the client's packets.
fn key_of(entry: &Connection) -> FlowKey {
    let marks = entry.service.load() >> 16;
    let [src_port, dst_port] = unpack(entry.front_ports.load());
    FlowKey {
        src: address(entry, CLIENT, marks & connection::CLIENT_V4),
        dst: address(entry, SERVICE, marks & connection::CLIENT_V4),
        src_port,
        dst_port,
        protocol: protocol(marks),
    }
}

/// How many numbers places have. One in sixteen is of no place: [`at`] gives nothing
/// there.
pub fn places(memory: &impl Memory) -> u32 {
    memory.shape().tag_buckets * tag::WORDS
}
