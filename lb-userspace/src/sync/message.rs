//! What the nodes of a pair say to each other on the sync channel, as bytes.
//!
//! Each message is a frame: its length in four bytes, big end first, then so many
//! bytes and no more than [`LARGEST`]. The first frame each way is a [`Hello`], whose
//! beginning is the same in every version of the protocol, so that two versions can
//! tell that they do not understand each other. Behind it, the one who has the flows
//! sends [`Frame`]s and the one who follows sends [`Reply`]s, in the format of postcard
//! (a byte or more for each number, no names).
//!
//! A flow says who its ends are by addresses and ports, never by the numbers that
//! services and backends have on one node. It is identified by the place that it has
//! in its sender's table: that is what a removal names. IPv4 takes about 28 bytes of
//! it, IPv6 about 64.
//!
//! Whatever is read has been looked at: [`read_frame`] gives no flow that the data path
//! could not have had.

use lb_common::abi::forward;
use lb_common::flow::{ANSWERED, BACKEND_FIN, CLIENT_FIN, ESTABLISHED, ONE_WAY, ended};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The version of everything in this module.
pub const PROTOCOL: u16 = 1;

/// How many bytes a frame has at most, without its length.
pub const LARGEST: usize = 64 * 1024;

/// How many flows and removals a message has at most: with IPv6 that is half of
/// [`LARGEST`], and no more work than a millisecond's for who applies them.
pub const BATCH: usize = 512;

/// What every first frame begins with.
const MAGIC: [u8; 4] = *b"lb-s";

/// How long names are at most, in bytes.
const LONGEST_NAME: usize = 255;

/// The bits of a flow's state that the other node is told.
pub const TOLD: u32 = ANSWERED | CLIENT_FIN | BACKEND_FIN | ESTABLISHED | ONE_WAY;

/// Set in [`Record::kind`] besides one of [`forward`]: it is TCP, else it is UDP.
const TCP: u8 = 1 << 7;

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// Another version of lb.
    #[error(
        "it speaks version {0} of the sync protocol, and this node version {PROTOCOL}: run the same version of lb on both"
    )]
    Protocol(u16),
    /// It ends too early.
    #[error("a message ends in the middle")]
    Truncated,
    /// It makes no sense.
    #[error("a message makes no sense")]
    Garbage,
}

/// Who speaks: the first message each way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The node's name.
    pub node: String,
    /// The version of lb.
    pub version: String,
    /// The version of its tables.
    pub abi: u32,
    /// A random number of this run.
    pub boot: u64,
}

/// What a node is in the pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// It takes no part.
    #[default]
    Initialize,
    /// It waits.
    Backup,
    /// It forwards.
    Active,
    /// It forwards until another is heard to.
    Leaving,
}

impl Role {
    /// Whether it forwards, so that its flows are the ones that count.
    pub const fn acts(self) -> bool {
        matches!(self, Self::Active | Self::Leaving)
    }

    /// The word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Initialize => "initialize",
            Self::Backup => "backup",
            Self::Active => "active",
            Self::Leaving => "leaving",
        }
    }
}

/// How a node is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// What it is in the pair.
    pub role: Role,
    /// Its priority now.
    pub priority: u8,
    /// A hash over the parts of its file that both must have alike.
    pub configuration: u64,
    /// How many established flows it has.
    pub flows: u64,
    /// How many of its services have a healthy backend.
    pub healthy: u32,
    /// How many services it has.
    pub services: u32,
    /// How many flows and removals it knows of that this follower has not
    /// acknowledged.
    pub behind: u64,
}

/// The addresses of client and service, which are of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ends {
    /// IPv4.
    V4 {
        /// The client's.
        client: [u8; 4],
        /// The service's.
        service: [u8; 4],
    },
    /// IPv6.
    V6 {
        /// The client's.
        client: [u8; 16],
        /// The service's.
        service: [u8; 16],
    },
}

/// The address of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Host {
    /// IPv4.
    V4([u8; 4]),
    /// IPv6.
    V6([u8; 16]),
}

/// A flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Where it stands in its sender's table.
    pub place: u32,
    /// One of [`forward`], and whether it is TCP.
    pub kind: u8,
    /// Bits of [`lb_common::flow`], those of [`TOLD`].
    pub state: u8,
    /// Client and service.
    pub ends: Ends,
    /// The backend.
    pub backend: Host,
    /// The ports of the client, of the service, of the source towards the backend, and
    /// of the backend, as on the wire.
    pub ports: [[u8; 2]; 4],
    /// Of one whose client has not proved itself: which acknowledgement would.
    pub proof: u32,
}

impl Record {
    /// [`Self::kind`] of one of [`forward`], and whether it is TCP.
    pub const fn kind(forward: u8, tcp: bool) -> u8 {
        forward | if tcp { TCP } else { 0 }
    }

    /// One of [`forward`].
    pub const fn forward(&self) -> u8 {
        self.kind & !TCP
    }

    /// Whether it is TCP; it is UDP otherwise.
    pub const fn is_tcp(&self) -> bool {
        self.kind & TCP != 0
    }

    /// Whether it is TCP whose backend has answered, or whose backend's answers are not
    /// seen, and the client's proof is still to come. Of such there is word only when a
    /// node stops forwarding.
    pub const fn half_open(&self) -> bool {
        let state = self.state as u32;
        state & ESTABLISHED == 0 && state & (ANSWERED | ONE_WAY) != 0 && self.is_tcp()
    }

    /// Whether the data path could have had it.
    fn makes_sense(&self) -> bool {
        let state = u32::from(self.state);
        let forward = self.forward();
        matches!(
            forward,
            forward::FULL_NAT | forward::NAT | forward::DSR | forward::TUNNEL
        ) && state & !TOLD == 0
            && (state & ESTABLISHED != 0 || self.half_open())
            && !ended(state)
            && (state & ONE_WAY != 0) == forward::one_way(forward)
    }
}

/// Changes of flows. What has gone is gone before the others come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flows {
    /// The places of those that are no more.
    pub gone: Vec<u32>,
    /// Those that have begun, or stand otherwise. Whatever had the place before is no
    /// more.
    pub there: Vec<Record>,
}

impl Flows {
    /// How many changes these are.
    pub const fn len(&self) -> usize {
        self.gone.len() + self.there.len()
    }

    /// Whether nothing has changed.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What the one who has the flows says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum News {
    /// How it is: when that changes, and every half second to be heard.
    Status(Status),
    /// All flows follow, of so many places, and about so many.
    SnapshotBegin {
        /// Places are below this.
        places: u32,
        /// How many flows there are, about.
        estimate: u64,
    },
    /// Flows of a snapshot, or changes after it.
    Flows(Flows),
    /// These were all.
    SnapshotEnd,
}

/// News with their number: 1, 2, 3 and so on within a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// The number.
    pub sequence: u64,
    /// What is said.
    pub news: News,
}

/// What the one who follows says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Everything up to the frame of this number has come and is done.
    Ack(u64),
    /// Send all flows again: some could not be used before.
    Again,
}

/// The bytes of a greeting.
pub fn write_hello(hello: &Hello) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(PROTOCOL.to_be_bytes());
    write_behind(bytes, hello)
}

/// The greeting that these bytes are.
pub fn read_hello(bytes: &[u8]) -> Result<Hello, Unreadable> {
    let (magic, rest) = bytes.split_first_chunk().ok_or(Unreadable::Truncated)?;
    if *magic != MAGIC {
        return Err(Unreadable::Garbage);
    }
    let (protocol, rest) = rest.split_first_chunk().ok_or(Unreadable::Truncated)?;
    let protocol = u16::from_be_bytes(*protocol);
    if protocol != PROTOCOL {
        return Err(Unreadable::Protocol(protocol));
    }
    let hello: Hello = read(rest)?;
    // They are shown to people.
    let is_name = |text: &str| {
        (1..=LONGEST_NAME).contains(&text.len()) && !text.chars().any(char::is_control)
    };
    if !is_name(&hello.node) || !is_name(&hello.version) {
        return Err(Unreadable::Garbage);
    }
    Ok(hello)
}

/// The bytes of a frame.
pub fn write_frame(frame: &Frame) -> Vec<u8> {
    write_behind(Vec::new(), frame)
}

/// The frame that these bytes are.
pub fn read_frame(bytes: &[u8]) -> Result<Frame, Unreadable> {
    let frame: Frame = read(bytes)?;
    match &frame.news {
        News::Flows(flows)
            if flows.len() > BATCH || !flows.there.iter().all(Record::makes_sense) =>
        {
            Err(Unreadable::Garbage)
        }
        News::Status(status) if status.healthy > status.services => Err(Unreadable::Garbage),
        News::Status(_) | News::SnapshotBegin { .. } | News::Flows(_) | News::SnapshotEnd => {
            Ok(frame)
        }
    }
}

/// The bytes of a reply.
pub fn write_reply(reply: Reply) -> Vec<u8> {
    write_behind(Vec::new(), &reply)
}

/// The reply that these bytes are.
pub fn read_reply(bytes: &[u8]) -> Result<Reply, Unreadable> {
    read(bytes)
}

fn write_behind(bytes: Vec<u8>, message: &impl Serialize) -> Vec<u8> {
    // Only a serializer that is out of room, or a value of unknown length, fails: a
    // vector grows, and there is none of the other.
    postcard::to_extend(message, bytes).expect("every message can be written into memory")
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Unreadable> {
    match postcard::take_from_bytes(bytes) {
        Ok((message, [])) => Ok(message),
        Ok(_) => Err(Unreadable::Garbage),
        Err(postcard::Error::DeserializeUnexpectedEnd) => Err(Unreadable::Truncated),
        Err(_) => Err(Unreadable::Garbage),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(v6: bool) -> Record {
        Record {
            place: 1_600_000,
            kind: Record::kind(forward::FULL_NAT, true),
            state: (ESTABLISHED | ANSWERED) as u8,
            ends: if v6 {
                Ends::V6 {
                    client: [1; 16],
                    service: [2; 16],
                }
            } else {
                Ends::V4 {
                    client: [192, 0, 2, 1],
                    service: [192, 0, 2, 2],
                }
            },
            backend: if v6 {
                Host::V6([3; 16])
            } else {
                Host::V4([10, 0, 0, 1])
            },
            ports: [[200, 1], [0, 80], [200, 2], [31, 144]],
            proof: 0,
        }
    }

    fn frame(flows: Flows) -> Frame {
        Frame {
            sequence: 1,
            news: News::Flows(flows),
        }
    }

    #[test]
    fn a_flow_of_ipv4_takes_less_than_thirty_bytes_and_a_full_message_fits() {
        for (v6, most) in [(false, 30), (true, 66)] {
            let there = vec![record(v6); BATCH];
            let bytes = write_frame(&frame(Flows {
                there,
                gone: Vec::new(),
            }));
            assert!(bytes.len() <= LARGEST);
            assert!(bytes.len() / BATCH <= most, "{}", bytes.len() / BATCH);
        }
    }

    #[test]
    fn every_beginning_of_a_message_is_told_to_be_one_and_nothing_may_follow() {
        let hello = Hello {
            node: "lb-a".into(),
            version: "0.1.0".into(),
            abi: 5,
            boot: u64::MAX,
        };
        let bytes = write_hello(&hello);
        assert_eq!(read_hello(&bytes), Ok(hello));
        for end in 0..bytes.len() {
            assert_eq!(read_hello(&bytes[..end]), Err(Unreadable::Truncated));
        }
        let flows = Flows {
            gone: vec![7, 300],
            there: vec![record(false), record(true)],
        };
        let mut bytes = write_frame(&frame(flows.clone()));
        assert_eq!(read_frame(&bytes), Ok(frame(flows)));
        for end in 0..bytes.len() {
            assert_eq!(read_frame(&bytes[..end]), Err(Unreadable::Truncated));
        }
        bytes.push(0);
        assert_eq!(read_frame(&bytes), Err(Unreadable::Garbage));
    }

    #[test]
    fn another_protocol_is_told_by_its_number_whatever_follows() {
        let refused = read_hello(b"lb-s\x00\x07 something new").unwrap_err();
        assert_eq!(refused, Unreadable::Protocol(7));
        let said = refused.to_string();
        assert!(said.contains("version 7"), "{said}");
        assert!(
            said.contains("run the same version of lb on both"),
            "{said}"
        );
        assert_eq!(read_hello(b"GET / HTTP/1.1"), Err(Unreadable::Garbage));
    }

    #[test]
    fn flows_that_the_data_path_could_not_have_are_refused() {
        let good = record(false);
        let with = |change: &dyn Fn(&mut Record)| {
            let mut record = good;
            change(&mut record);
            read_frame(&write_frame(&frame(Flows {
                gone: Vec::new(),
                there: vec![record],
            })))
        };
        assert!(with(&|_| ()).is_ok());
        assert!(with(&|record| record.kind = Record::kind(0, true)).is_err());
        assert!(with(&|record| record.kind = Record::kind(forward::DSR, true)).is_err());
        assert!(with(&|record| record.state = 0).is_err());
        assert!(with(&|record| record.state |= 64).is_err());
        assert!(with(&|record| record.state |= (CLIENT_FIN | BACKEND_FIN) as u8).is_err());
        let many = Flows {
            gone: vec![0; BATCH + 1],
            there: Vec::new(),
        };
        assert!(read_frame(&write_frame(&frame(many))).is_err());
    }
}
