//! Every key and value that crosses the kernel boundary.
//!
//! All are `repr(C)`, plain old data, without implicit padding, and of a size
//! asserted here. Ports and addresses are in network order and have types that
//! say so; a plain integer is in host order. Keys and values
//! that the program holds on its stack are aligned to 8 bytes and have no byte
//! arrays: it copies them by whole words, which the verifier wants aligned. Change any of it, and
//! [`ABI_VERSION`] goes up: a daemon adopts only tables of its own version.

use bytemuck::{Pod, Zeroable};

use crate::{Address, Be16, Word};

/// The version of everything in this module.
pub const ABI_VERSION: u32 = 5;

/// No service, or no backend: the packet ended before one was known.
pub const NOBODY: u32 = u32::MAX;

/// IP protocol numbers (RFC 9293, RFC 768) that can be balanced.
pub const TCP: u8 = 6;
/// See [`TCP`].
pub const UDP: u8 = 17;

/// IP protocol numbers of ICMP (RFC 792) and ICMPv6 (RFC 4443), whose errors
/// about flows are carried.
pub const ICMP: u8 = 1;
/// See [`ICMP`].
pub const ICMPV6: u8 = 58;

/// One end of a connection: the key of the `ENDPOINTS` table.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct Endpoint {
    /// The address.
    pub address: Address,
    /// The port.
    pub port: Be16,
    /// [`TCP`] or [`UDP`].
    pub protocol: u16,
    /// Always zero.
    pub zero: u32,
}

/// How packets of a service reach its backends.
pub mod forward {
    /// Both addresses rewritten; the source becomes the service's own.
    pub const FULL_NAT: u8 = 1;
    /// Only the destination rewritten; the backend sees the client's address.
    pub const NAT: u8 = 2;
    /// Only the link addresses rewritten: the backend has the service's address
    /// itself, and answers the client without the balancer.
    pub const DSR: u8 = 3;
    /// Wrapped in another IP header to the backend (RFC 2003, RFC 2473, RFC
    /// 4213), which unwraps it and answers the client without the balancer.
    pub const TUNNEL: u8 = 4;

    /// Whether the balancer sees only the packets from the client.
    #[inline(always)]
    pub const fn one_way(forward: u8) -> bool {
        forward == DSR || forward == TUNNEL
    }
}

/// Who stands behind an [`Endpoint`].
pub mod role {
    /// A service: packets to it are balanced.
    pub const SERVICE: u8 = 1;
    /// A backend: packets from it may be answers.
    pub const BACKEND: u8 = 2;
    /// The address of a service, whatever the port: an [`super::Endpoint`] with
    /// port and protocol 0.
    pub const ADDRESS: u8 = 4;
    /// An address that moves with the role of a pair, and of which no service need
    /// be: an endpoint like that of [`ADDRESS`].
    pub const HELD: u8 = 8;
}

/// Who stands behind an [`Endpoint`]: the value of the `ENDPOINTS` table.
///
/// One endpoint may be both a service and another service's backend, so the
/// roles are bits.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Party {
    /// The service's number, where `roles` has [`role::SERVICE`].
    pub service: u32,
    /// One of [`forward`], where `roles` has [`role::SERVICE`].
    pub forward: u8,
    /// Bits of [`role`].
    pub roles: u8,
    /// The largest TCP segment that either side of a connection may announce,
    /// in bytes; 0 leaves it to them. Where `roles` has [`role::SERVICE`].
    pub max_mss: u16,
}

/// A backend of a service: the value of the `BACKENDS` table, by number.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Backend {
    /// Where it listens.
    pub address: Address,
    /// The port it listens on.
    pub port: Be16,
    /// [`TCP`] or [`UDP`].
    pub protocol: u8,
    /// Bits of [`backend`]; zero in an unused slot.
    pub flags: u8,
    /// The service it belongs to.
    pub service: u32,
}

/// Bits of [`Backend::flags`].
pub mod backend {
    /// The slot is in use.
    pub const USED: u8 = 1;
    /// It was healthy when the controller last wrote; a restarted controller
    /// goes on from here.
    pub const UP: u8 = 2;
    /// It takes new connections: it stands in its service's sequence.
    pub const OPEN: u8 = 4;
    /// Its flows end: each next packet of TCP is answered with a RST, and the
    /// next datagram begins a new flow.
    pub const RESET: u8 = 8;
    /// Its flows move: each next packet from a client goes to another backend.
    pub const REHASH: u8 = 16;
}

/// How the data path chooses among the slots of a service's sequence.
pub mod pick {
    /// The next one in turn.
    pub const TURN: u32 = 0;
    /// The one at the place that the hash of both ends says.
    pub const FLOW_HASH: u32 = 1;
    /// The one at the place that the hash of the client's address says.
    pub const SOURCE_HASH: u32 = 2;
    /// The one with the fewest live flows for its weight.
    pub const LEAST: u32 = 3;
}

/// How a service chooses backends: the value of the `POLICIES` table, by the
/// service's number.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Policy {
    /// One of [`pick`].
    pub pick: u32,
    /// For how many kernel ticks after its last new connection a client's
    /// address keeps its backend; 0 for not at all.
    pub affinity_ticks: u32,
}

/// A client of a service with affinity: the key of the `AFFINITIES` table.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct AffinityKey {
    /// The client's address.
    pub client: Address,
    /// The service's number.
    pub service: u32,
    /// Always zero.
    pub zero: u32,
}

/// Where that client's connections go: the value of the `AFFINITIES` table.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Affinity {
    /// The backend's number.
    pub backend: u32,
    /// When the last one began, in kernel ticks, the low 32 bits.
    pub seen: u32,
}

/// The two ends of a packet as it arrived.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct FlowKey {
    /// Source address.
    pub src: Address,
    /// Destination address.
    pub dst: Address,
    /// Source port.
    pub src_port: Be16,
    /// Destination port.
    pub dst_port: Be16,
    /// [`TCP`] or [`UDP`].
    pub protocol: u32,
}

/// One direction of a connection: what becomes of a packet with its
/// [`FlowKey`].
///
/// Of a translated connection each direction can be made of the other (see
/// [`crate::flow::twin`]). Where the balancer sees one direction only (`dsr`,
/// `tunnel`) the packet keeps its addresses and ports, and `dst` is where it is
/// taken. It stands in no table: it is read off a [`Connection`].
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Flow {
    /// The source address on the way out.
    pub src: Address,
    /// The destination address on the way out.
    pub dst: Address,
    /// The source port on the way out.
    pub src_port: Be16,
    /// The destination port on the way out.
    pub dst_port: Be16,
    /// The backend's number.
    pub backend: u32,
    /// The service's number.
    pub service: u16,
    /// One of [`forward`], and [`Flow::REPLY`] from the backend to the client.
    pub kind: u16,
    /// What the change of addresses does to the IPv4 header checksum.
    pub ip_delta: u16,
    /// What the change of addresses and ports does to the transport checksum.
    pub transport_delta: u16,
    /// The place of the connection's entry.
    pub place: u32,
    /// Bits of the hash of the ends of the client's packets, where that was
    /// computed.
    pub spread: u32,
    /// How the connection stood.
    pub life: Life,
    /// What was noted of the way: see [`Connection::hops`].
    pub hop: u64,
}

impl Flow {
    /// From the backend to the client; a bit of [`Self::kind`].
    pub const REPLY: u16 = 1 << 15;

    /// Whether it leads from the backend to the client.
    #[inline(always)]
    pub const fn is_reply(&self) -> bool {
        self.kind & Self::REPLY != 0
    }

    /// One of [`forward`].
    #[inline(always)]
    pub const fn forward(&self) -> u8 {
        self.kind as u8
    }

    /// Whether there is no entry for the other direction.
    #[inline(always)]
    pub const fn one_way(&self) -> bool {
        forward::one_way(self.forward())
    }
}

/// How a connection stands, as a packet found it.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Life {
    /// When a packet was last noted (at most once in [`Settings::refresh_ticks`]),
    /// in kernel ticks, the low 32 bits.
    pub seen: u32,
    /// The acknowledgement number that proves that the client heard the
    /// backend's SYN-ACK; meaningful once `state` has [`crate::flow::ANSWERED`].
    pub proof: u32,
    /// Bits of [`crate::flow`].
    pub state: u32,
    /// The version of the connection's entry: see [`Connection::life`].
    pub version: u32,
}

/// One connection: an entry of the `CONNECTIONS` table.
///
/// Sixteen entries are a bucket; fifteen of them are connections', and one, which is
/// another in each bucket ([`tag::own`]), holds their [`tag`]s in its second half,
/// and zeros in its first. So tags and connections of a bucket lie in one page of
/// memory.
///
/// It is shared by all CPUs and by the controller, which maps the table, and
/// nobody locks it: see `lb_ebpf::connections` for who writes what when. What
/// packets of IPv4 need is the first 64 bytes, a line of the cache; IPv6 has the
/// rest of its addresses behind them. Words that hold two values have the first
/// in their low half.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Connection {
    /// In the low half bits of [`crate::flow`]; in the high half the version,
    /// which is odd while the entry is written, and another for each connection
    /// that the entry ever holds.
    pub life: Word<u64>,
    /// Where the next hop of packets from the client stands, and of those from
    /// the backend: see [`hop`].
    pub hops: [Word<u64>; 2],
    /// See [`Life::seen`].
    pub seen: Word<u32>,
    /// See [`Life::proof`].
    pub proof: Word<u32>,
    /// The backend's number.
    pub backend: Word<u32>,
    /// The service's number, and one of [`forward`] with [`connection`]'s marks.
    pub service: Word<u32>,
    /// See [`Flow::ip_delta`] and [`Flow::transport_delta`], from the client to
    /// the backend.
    pub deltas: Word<u32>,
    /// The client's port and the service's, as on the wire.
    pub front_ports: Word<u32>,
    /// The source port towards the backend and the backend's, as on the wire.
    pub back_ports: Word<u32>,
    /// The last four bytes of the addresses of client, service and backend.
    pub low: [Word<u32>; 3],
    /// The first twelve bytes of those that are IPv6.
    pub high: [[Word<u32>; 3]; 3],
    /// Always zero.
    pub rest: [Word<u32>; 7],
}

impl Connection {
    /// The tags, where this is the entry of its bucket that holds them.
    #[inline(always)]
    pub const fn tags(&self) -> &TagBucket {
        let place: *const Self = self;
        // SAFETY: the second half of the entry.
        let half = unsafe { place.byte_add(size_of::<TagBucket>()) };
        let tags: *const TagBucket = half.cast();
        // SAFETY: words that are accessed whole, as the ones of the entry are, with
        // the same alignment and within it.
        unsafe { &*tags }
    }
}

/// Marks in the high half of [`Connection::service`].
pub mod connection {
    /// Which of [`super::forward`].
    pub const FORWARD: u32 = 0xff;
    /// The client and the service have IPv4 addresses.
    pub const CLIENT_V4: u32 = 1 << 8;
    /// The backend has an IPv4 address.
    pub const BACKEND_V4: u32 = 1 << 9;
    /// The protocol is TCP; otherwise it is UDP.
    pub const TCP: u32 = 1 << 10;
    /// The connection stands in its second bucket.
    pub const ELSEWHERE: u32 = 1 << 11;
}

/// What a connection notes of its way ([`Connection::hops`]): the number of an
/// entry of the `HOPS` table plus one, so that zero is nothing; the six bits of
/// the packets' DSCP (RFC 2474), which routes may depend on; the low bits of the
/// connection's own version, because a note may come late, when the place is
/// already another's; and the version of the entry.
pub mod hop {
    /// How many entries the table has; a power of two.
    pub const PLACES: u32 = 1024;
    /// The bits of the number.
    pub const NUMBER: u64 = 0xffff;
    /// Where the DSCP stands.
    pub const DSCP_SHIFT: u32 = 16;
    /// Where the low bits of the connection's version stand.
    pub const OWNER_SHIFT: u32 = 24;
    /// Where the entry's version stands.
    pub const VERSION_SHIFT: u32 = 32;
}

/// A next hop: an entry of the `HOPS` table, which all CPUs share and nobody locks;
/// see `lb_ebpf::hops`.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct NextHop {
    /// Odd while the entry is written, and another for each next hop that it
    /// ever holds.
    pub version: Word<u32>,
    /// In which epoch ([`shared::epoch`]) the routing table said so.
    pub epoch: Word<u32>,
    /// The host's interface that packets came in by.
    pub ingress: Word<u32>,
    /// The interface to leave by.
    pub egress: Word<u32>,
    /// One if it is a router, zero if it is the destination itself.
    pub router: Word<u32>,
    /// How long an IP packet may be, in bytes.
    pub mtu: Word<u32>,
    /// The link address of the interface to leave by.
    pub src_link: Word<u64>,
    /// The link address of the next hop.
    pub dst_link: Word<u64>,
    /// Always zero.
    pub rest: [Word<u32>; 6],
}

/// The tags of a bucket, a line of the cache. The place of a tag is the bucket's
/// number times [`tag::WORDS`], and its number in the bucket.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct TagBucket(pub [Word<u32>; tag::WORDS as usize]);

impl TagBucket {
    /// The tags of the bucket with this number, and their numbers in it.
    pub fn tags(&self, bucket: u32) -> impl Iterator<Item = (u32, &Word<u32>)> {
        let all = (0..).zip(&self.0);
        all.filter(move |(way, _)| *way != tag::own(bucket))
    }

    /// One word is no tag: it counts the connections that stand in their second
    /// bucket, and whose first one this is. Without any, who finds nothing here need
    /// not look there.
    #[inline(always)]
    pub const fn elsewhere(&self, bucket: u32) -> &Word<u32> {
        &self.0[tag::own(bucket) as usize]
    }
}

/// What a tag says: in the low bits what the connection's place holds, above it
/// when that began, above that bits of the key's hash.
pub mod tag {
    /// How many words a bucket has; a power of two.
    pub const WORDS: u32 = 16;
    /// How many of them are tags.
    pub const WAYS: u32 = WORDS - 1;

    /// The word of a bucket that is no tag: the last one, if a bucket begins with the
    /// word of its own number. That it is not the same one in all of them lets them
    /// share the caches evenly: what stands in the same place of each bucket would
    /// crowd the same few sets.
    #[inline(always)]
    pub const fn own(bucket: u32) -> u32 {
        bucket.wrapping_add(WAYS) % WORDS
    }

    /// The bits that tell what stands there.
    pub const CLASS: u32 = 0x7;
    /// Nothing. A tag of zero is that of a place that was never used.
    pub const FREE: u32 = 0;
    /// Something is being written or taken away.
    pub const BUSY: u32 = 1;
    /// A connection whose client has proved nothing yet.
    pub const HALF_OPEN: u32 = 2;
    /// A connection that has ended.
    pub const CLOSED: u32 = 3;
    /// A connection.
    pub const ESTABLISHED: u32 = 4;

    /// Where the stamp stands: when the class began, in units of
    /// [`super::Settings::stamp_shift`], modulo [`STAMPS`].
    pub const STAMP_SHIFT: u32 = 3;
    /// How many stamps there are.
    pub const STAMPS: u32 = 32;
    /// The bits of the hash.
    pub const HASH: u32 = 0xffff_ff00;
}

/// A bucket of the `ANSWERS` table, a line of the cache: by which place the
/// packets from backends find their connection. A word of zero is free; of
/// another the low half is the place plus one, the high half a hash.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct AnswerBucket(pub [Word<u64>; ANSWER_WORDS as usize]);

impl AnswerBucket {
    /// The answers of the bucket with this number.
    pub fn answers(&self, bucket: u32) -> impl Iterator<Item = &Word<u64>> {
        let all = (0..).zip(&self.0);
        let answers = all.filter(move |(way, _)| *way != own_answer(bucket));
        answers.map(|(_, word)| word)
    }

    /// See [`TagBucket::elsewhere`].
    #[inline(always)]
    pub const fn elsewhere(&self, bucket: u32) -> &Word<u64> {
        &self.0[own_answer(bucket) as usize]
    }
}

/// The word of a bucket that is no answer: see [`tag::own`].
#[inline(always)]
pub const fn own_answer(bucket: u32) -> u32 {
    bucket.wrapping_add(ANSWER_WAYS) % ANSWER_WORDS
}

/// How many words an [`AnswerBucket`] has; a power of two.
pub const ANSWER_WORDS: u32 = 8;

/// How many of them are answers.
pub const ANSWER_WAYS: u32 = ANSWER_WORDS - 1;

/// The `SHARED` table: words that all who have the tables share.
pub mod shared {
    /// When a young handshake was last displaced, in kernel ticks, the low 32
    /// bits; 0 for never.
    pub const CHURNED: u32 = 0;
    /// What the hash of the table of connections begins with, as long as the
    /// tables stand: [`super::Settings::seed`].
    pub const SEED: u32 = 1;
    /// For how many connections the tables were made.
    pub const FLOWS: u32 = 2;
    /// How often something changed that next hops depend on, or that decides what
    /// becomes of connections that there are.
    pub const CHANGES: u32 = 3;
    /// Until when the controller vouches for counting every change, in kernel
    /// ticks, the low 32 bits.
    pub const VOUCHED: u32 = 4;
    /// How many there are.
    pub const WORDS: u32 = 5;

    /// What is known in one epoch holds as long as it is the same.
    ///
    /// While the controller vouches for it, an epoch lasts from one change to the
    /// next; otherwise it lasts one kernel tick. Nobody vouches for longer than
    /// `longest` ticks ahead: what seems to lie farther off is past.
    #[inline(always)]
    pub const fn epoch(now: u32, changes: u32, vouched: u32, longest: u32) -> u32 {
        if vouched.wrapping_sub(now).wrapping_sub(1) < longest {
            changes << 1 | 1
        } else {
            (now << 8 | changes & 0xff) << 1
        }
    }
}

/// The `LEASE` table: one word, until when a node of a pair may act for the services'
/// addresses, in kernel ticks, all 64 bits; 0 for not at all. Before that tick has
/// begun nobody else acts; from then on another may.
pub mod lease {
    /// The word.
    pub const UNTIL: u32 = 0;
    /// How many there are.
    pub const WORDS: u32 = 1;
}

/// The `CHANGED` table: a byte for each bucket of connections, which the data path
/// makes 1 when an established connection of the bucket has come, has changed its state,
/// or has gone. Whoever keeps another table alike makes it 0 again, and then reads the bucket.
pub mod changed {
    /// How many bytes an entry has.
    pub const BYTES: u32 = 64;

    /// How many entries there are for so many buckets.
    pub const fn entries(buckets: u32) -> u32 {
        buckets.div_ceil(BYTES)
    }
}

/// The `SIEVE` table: bits that say of an endpoint whether it is worth while to look
/// for a connection of it, by a hash (a Bloom filter with one function). A bit too
/// many costs time, a bit too few loses packets.
pub mod sieve {
    use crate::{Address, Be16};

    /// The first of the words, of 64 bits each, for the endpoints of services.
    pub const SERVICES: u32 = 0;
    /// The first of the words for the endpoints of backends which answer by way of
    /// the balancer.
    pub const BACKENDS: u32 = 1 << (SERVICE_BITS - 6);
    /// How many words there are.
    pub const WORDS: u32 = BACKENDS + (1 << (BACKEND_BITS - 6));

    /// There are two to the power of this many bits for services.
    const SERVICE_BITS: u32 = 16;
    /// The same for backends.
    const BACKEND_BITS: u32 = 18;

    /// The word of this endpoint, behind one of the above, and its bit.
    #[inline(always)]
    pub const fn place(first: u32, address: &Address, port: Be16) -> (u32, u64) {
        let bits = if first == SERVICES {
            SERVICE_BITS
        } else {
            BACKEND_BITS
        };
        let [a, b, c, d] = address.words();
        let low = d as u64 | (port.word() as u64) << 32;
        let mixed = (low ^ ((a ^ b ^ c) as u64) << 16).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let bit = (mixed >> (64 - bits)) as u32;
        (first + (bit >> 6), 1 << (bit & 63))
    }
}

/// What the fragments of one datagram have in common: the key of the
/// `FRAGMENTS` table (RFC 791, section 3.2; RFC 8200, section 4.5).
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct FragmentKey {
    /// Source address.
    pub src: Address,
    /// Destination address.
    pub dst: Address,
    /// The identification, as a number; 16 bits of it with IPv4.
    pub id: u32,
    /// With IPv4 the protocol; zero with IPv6, whose later fragments need not
    /// tell it.
    pub protocol: u32,
}

/// What the first fragment of a datagram said, for those that follow it: the
/// value of the `FRAGMENTS` table.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Fragment {
    /// Source port.
    pub src_port: Be16,
    /// Destination port.
    pub dst_port: Be16,
    /// The identification on the way out, as a number: translation may bring
    /// datagrams of several senders under one source address.
    pub id: u32,
    /// When the first fragment came, in kernel ticks, the low 32 bits.
    pub seen: u32,
    /// [`TCP`] or [`UDP`] if the datagram is for a service, zero if it is the
    /// host's.
    pub protocol: u32,
}

/// A device and the tags of some of the frames on it. The key of the
/// `INTERFACES` table, whose value is the index of the interface that the host
/// has for such frames; and the value of the `EXITS` table, whose key is the
/// index of an interface that sends such frames. Tags are as they stand in a
/// frame, four bytes each (protocol and control information), with priority
/// bits zero; a tag that is not there is zero.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct Tagged {
    /// The index of the device.
    pub device: u32,
    /// The outer tag.
    pub outer: u32,
    /// The inner tag.
    pub inner: u32,
    /// Always zero.
    pub zero: u32,
}

/// Packets and bytes by direction: the value of the `SERVICE_TRAFFIC` and
/// `BACKEND_TRAFFIC` tables, per CPU. Bytes are those of whole frames as they
/// arrived.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Traffic {
    /// Packets from clients.
    pub forward_packets: u64,
    /// Bytes from clients.
    pub forward_bytes: u64,
    /// Packets from backends.
    pub reply_packets: u64,
    /// Bytes from backends.
    pub reply_bytes: u64,
    /// Connections begun.
    pub new_flows: u64,
}

/// Whose drop it was: the key of the `DROPS` table, whose value is a count per CPU.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct DropKey {
    /// The service's number, or [`NOBODY`].
    pub service: u32,
    /// The backend's number, or [`NOBODY`].
    pub backend: u32,
    /// The number of the [`crate::Verdict`].
    pub verdict: u32,
    /// Always zero.
    pub zero: u32,
}

/// What the program is told when it is loaded; constants to the verifier.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Settings {
    /// How many kernel ticks may pass before a packet of a known flow notes
    /// that the flow lives: one second.
    pub refresh_ticks: u32,
    /// How many ticks without a packet make a flow's port free to take again.
    pub idle_ticks: u32,
    /// The first source port of full-nat, in host order.
    pub first_port: u32,
    /// How many source ports full-nat may use, from the first on.
    pub port_count: u32,
    /// Mixed into the choice of ports, so that outsiders cannot steer it.
    pub seed: u32,
    /// By how many bits ticks are shifted to make the coarse stamp of a tag
    /// ([`tag`]): about half a second.
    pub stamp_shift: u32,
    /// How many buckets the `CONNECTIONS` table has.
    pub tag_buckets: u32,
    /// How many buckets the `ANSWERS` table has.
    pub answer_buckets: u32,
    /// How many ICMP errors each CPU may send within [`Self::refresh_ticks`].
    pub error_limit: u32,
    /// One if frames come in by members of an interface (a bond), so that the
    /// `INTERFACES` table is asked even where there is no tag.
    pub members: u32,
    /// One if this node is one of a pair: it acts by lease only ([`lease`]), and
    /// notes what has changed in the table of connections ([`changed`]).
    pub paired: u32,
    /// No meaning: the fields are whole words.
    pub zero: u32,
    /// How many low bits of [`Self::tunnel_v4`] vary with the flow.
    pub tunnel_v4_bits: u32,
    /// How many low bits of [`Self::tunnel_v6`] vary with the flow, at most 32.
    pub tunnel_v6_bits: u32,
    /// The first of the outer source addresses of tunnels over IPv4.
    pub tunnel_v4: Address,
    /// The first of the outer source addresses of tunnels over IPv6.
    pub tunnel_v6: Address,
}

impl Settings {
    /// No ports, no limit for ICMP errors, no bonds; the outer source addresses
    /// of tunnels from prefixes that nobody has: 198.18.0.0/16 (RFC 2544) and
    /// 100::/64 (RFC 6666).
    pub const PLAIN: Self = Self {
        refresh_ticks: 0,
        idle_ticks: 0,
        first_port: 0,
        port_count: 0,
        seed: 0,
        stamp_shift: 6,
        tag_buckets: 0,
        answer_buckets: 0,
        error_limit: u32::MAX,
        members: 0,
        paired: 0,
        zero: 0,
        tunnel_v4_bits: 16,
        tunnel_v6_bits: 32,
        tunnel_v4: Address::v4([198, 18, 0, 0]),
        tunnel_v6: Address::v6(&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    };
}

/// A schedule as the data path reads it: an array of 64-bit words in a map of
/// its own, exchanged whole.
pub mod sequence {
    /// The word that counts connections scheduled; the place in the sequence
    /// is this modulo the length.
    pub const CURSOR: u32 = 0;
    /// The word that holds the number of slots.
    pub const LENGTH: u32 = 1;
    /// The first of the slots: the number of a backend in the low half, and in
    /// the high half, where the policy is [`super::pick::LEAST`], its weight.
    pub const FIRST: u32 = 2;
    /// The most slots a sequence may have.
    pub const MAX_LENGTH: u32 = 65_536;
}

/// Where a field of a table's entries stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// The entry's type, and the field's name.
    pub name: &'static str,
    /// Where it begins, in bytes.
    pub offset: usize,
    /// How long it is, in bytes.
    pub size: usize,
}

macro_rules! layout {
    ($($entry:ident { $($field:ident)+ })+) => {
        /// What a version of the program that finds tables of this one must be
        /// able to read, to go on with their connections. It is kept beside the
        /// tables in words; names mean for ever what they mean here.
        pub const LAYOUT: &[Field] = &[$($(Field {
            name: concat!(stringify!($entry), ".", stringify!($field)),
            offset: core::mem::offset_of!($entry, $field),
            size: size_of_field(|entry: &$entry| &entry.$field),
        },)+)+];
    };
}

const fn size_of_field<E, F>(_: fn(&E) -> &F) -> usize {
    size_of::<F>()
}

layout! {
    Connection {
        life seen proof backend service deltas front_ports back_ports low high
    }
    Backend { address port protocol flags service }
}

const _: () = {
    assert!(size_of::<Endpoint>() == 24);
    assert!(size_of::<Party>() == 8);
    assert!(size_of::<Backend>() == 24);
    assert!(size_of::<Connection>() == 128 && align_of::<Connection>() == 64);
    assert!(size_of::<TagBucket>() == 64);
    assert!(size_of::<Connection>() == 2 * size_of::<TagBucket>());
    assert!(size_of::<AnswerBucket>() == 64);
    assert!(size_of::<FlowKey>() == 40);
    assert!(size_of::<Flow>() == 80);
    assert!(size_of::<NextHop>() == 64);
    assert!(hop::PLACES as u64 <= hop::NUMBER);
    assert!(size_of::<Life>() == 16);
    assert!(size_of::<Traffic>() == 40);
    assert!(size_of::<DropKey>() == 16);
    assert!(size_of::<Policy>() == 8);
    assert!(size_of::<AffinityKey>() == 24);
    assert!(size_of::<Affinity>() == 8);
    assert!(size_of::<FragmentKey>() == 40);
    assert!(size_of::<Fragment>() == 16);
    assert!(size_of::<Tagged>() == 16);
    assert!(size_of::<Settings>() == 88);
};
