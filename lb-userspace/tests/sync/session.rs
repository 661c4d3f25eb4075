//! Sessions over a stream in memory: with another node, and with somebody who does what
//! no node does.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use futures_util::{SinkExt as _, StreamExt as _};
use lb_common::abi::TCP;
use lb_common::flow::{ANSWERED, ESTABLISHED, ONE_WAY};
use lb_userspace::sync::board::{Rejected, Word};
use lb_userspace::sync::channel::{Channel, Failure, SILENCE};
use lb_userspace::sync::feed::Feed;
use lb_userspace::sync::hear::hear;
use lb_userspace::sync::message::{
    Flows, Frame, Hello, LARGEST, News, Reply, Role, Status, read_frame, write_frame, write_hello,
    write_reply,
};
use lb_userspace::sync::tell::{MOST_BYTES, MOST_FRAMES, tell};
use tokio::io::{AsyncWriteExt as _, DuplexStream, duplex};
use tokio::time::{sleep, timeout};
use tokio_util::codec::{Framed, LengthDelimitedCodec};

use super::peer::{Peer, until};

/// What a pipe holds.
const PIPE: usize = 64 * 1024;

const UP: u32 = ANSWERED | ESTABLISHED;

/// A session from one node to another, until it is dropped.
fn session(teller: &Peer, hearer: &Peer) -> [tokio::task::JoinHandle<Failure>; 2] {
    let (near, far) = duplex(PIPE);
    let (local, remote) = (teller.local.clone(), hearer.local.clone());
    let tells = tokio::spawn(async move {
        let mut channel = Channel::new(near);
        channel.greet(&local.hello).await.expect("it is a node");
        let mut feed = Feed::new(&*local.table);
        tell(&mut channel, &local, &mut feed).await
    });
    let hears = tokio::spawn(async move {
        let mut channel = Channel::new(far);
        let hello = channel.greet(&remote.hello).await.expect("it is a node");
        hear(&mut channel, &remote, hello).await
    });
    [tells, hears]
}

#[tokio::test]
async fn flows_are_there_soon_and_gone_soon_and_the_peer_is_known() {
    let (active, passive) = (Peer::new("a", 1, 400, 0), Peer::new("b", 2, 400, 5));
    active.acts(Role::Active);
    let mut rng = Rng::with_seed(1);
    let mut places = Vec::new();
    for _ in 0..2_000 {
        places.extend(active.node.begin(&mut rng, UP));
    }
    let _session = session(&active, &passive);
    until("the snapshot is complete", || passive.view().ready).await;
    assert_eq!(active.node.facts(), passive.node.facts());
    for place in places.drain(..1_000) {
        active.node.remove(place);
    }
    for _ in 0..500 {
        places.extend(active.node.begin(&mut rng, UP));
    }
    until("they are alike", || {
        active.node.facts() == passive.node.facts()
    })
    .await;
    until("all is acknowledged", || {
        active.view().behind_since.is_none()
    })
    .await;
    let (told, heard) = (active.view(), passive.view());
    assert_eq!((told.behind, told.snapshots), (0, 1));
    assert_eq!(told.lag(), Duration::ZERO);
    assert!(heard.hears());
    let peer = heard.peer.expect("it was heard");
    assert_eq!(
        (peer.hello.node.as_str(), peer.status.role),
        ("a", Role::Active)
    );
    assert!(heard.rejected.is_empty());
}

#[tokio::test]
async fn who_is_passive_tells_no_flows_and_lets_the_other_be_ready() {
    let (one, other) = (Peer::new("a", 1, 100, 0), Peer::new("b", 2, 100, 5));
    one.acts(Role::Backup);
    let mut rng = Rng::with_seed(2);
    other.node.begin(&mut rng, UP).expect("there is room");
    let facts = other.node.facts();
    let _session = session(&one, &other);
    until("it is ready", || other.view().ready).await;
    one.node.begin(&mut rng, UP).expect("there is room");
    sleep(Duration::from_millis(50)).await;
    assert_eq!(other.node.facts(), facts);
    assert_eq!(one.view().lag(), Duration::ZERO);
}

#[tokio::test]
async fn of_two_that_forward_each_learns_of_the_others_and_who_gives_way_has_those_alone() {
    let (stays, gives_way) = (Peer::new("a", 1, 100, 0), Peer::new("b", 2, 100, 5));
    stays.acts(Role::Active);
    gives_way.acts(Role::Active);
    let mut rng = Rng::with_seed(3);
    for _ in 0..300 {
        stays.node.begin(&mut rng, UP);
        gives_way.node.begin(&mut rng, UP);
    }
    let mut both = gives_way.node.facts();
    // What it knows itself it keeps, as it is.
    let theirs = stays.node.facts();
    both.extend(
        theirs
            .iter()
            .filter(|(key, _)| !both.contains_key(key))
            .map(|(key, fact)| (*key, fact.clone()))
            .collect::<Vec<_>>(),
    );
    let _session = session(&stays, &gives_way);
    until("it knows both", || gives_way.node.facts() == both).await;
    for place in 0..1_600 {
        stays.node.remove(place);
    }
    let own: Vec<_> = both
        .keys()
        .filter(|key| !theirs.contains_key(key))
        .collect();
    until(
        "what it has learnt of goes again, and its own stays",
        || {
            let facts = gives_way.node.facts();
            facts.len() == own.len() && own.iter().all(|key| facts.contains_key(key))
        },
    )
    .await;
    gives_way.acts(Role::Backup);
    until("they are alike", || {
        stays.node.facts() == gives_way.node.facts()
    })
    .await;
    until("it is ready", || gives_way.view().ready).await;
}

#[tokio::test]
async fn the_last_words_of_a_node_that_stops_forwarding_reach_the_one_that_has_begun_to() {
    let (before, after) = (Peer::new("a", 1, 400, 0), Peer::new("b", 2, 400, 5));
    before.acts(Role::Active);
    let mut rng = Rng::with_seed(5);
    for _ in 0..300 {
        before.node.begin(&mut rng, UP);
    }
    let _session = session(&before, &after);
    until("it is ready", || after.view().ready).await;
    // All of it before anybody can look.
    after.acts(Role::Active);
    for _ in 0..200 {
        before.node.begin(&mut rng, UP);
        before.node.begin(&mut rng, ANSWERED);
        before.node.begin(&mut rng, 0);
    }
    before.acts(Role::Backup);
    until("the last words have arrived", || before.view().parted).await;
    assert_eq!(before.node.facts(), after.node.facts());
    // Those that the client has still to prove, of TCP: answered, or where answers are
    // not seen.
    let waiting = |peer: &Peer| {
        let all: Vec<_> = peer.node.table.all().collect();
        all.into_iter()
            .filter(|(key, flow, established)| {
                let answered = flow.life.state & (ANSWERED | ONE_WAY) != 0;
                !established && answered && key.protocol == u32::from(TCP)
            })
            .map(|(key, flow, _)| (key, flow.life.proof, flow.src_port))
            .collect::<BTreeSet<_>>()
    };
    assert!(!waiting(&before).is_empty());
    assert_eq!(waiting(&before), waiting(&after));
    let unproved = after
        .node
        .table
        .all()
        .filter(|(_, _, established)| !established);
    assert_eq!(unproved.count(), waiting(&after).len(), "and no others");
}

#[tokio::test]
async fn last_words_are_heard_as_well_by_one_that_has_not_begun_to_forward() {
    let (active, passive) = (Peer::new("a", 1, 100, 0), Peer::new("b", 2, 100, 5));
    active.acts(Role::Active);
    passive.acts(Role::Backup);
    let _session = session(&active, &passive);
    until("the snapshot is complete", || active.view().snapshots == 1).await;
    let mut rng = Rng::with_seed(9);
    for _ in 0..20 {
        active.node.begin(&mut rng, UP);
        active.node.begin(&mut rng, ANSWERED);
    }
    active.acts(Role::Backup);
    until("the last words have arrived", || active.view().parted).await;
    assert_eq!(active.node.facts(), passive.node.facts());
    let waiting = |peer: &Peer| {
        let all = peer.node.table.all();
        all.filter(|(_, _, established)| !established).count()
    };
    assert!(
        waiting(&passive) > 5,
        "also those whose clients have to prove themselves"
    );
}

#[tokio::test]
async fn what_was_unknown_is_asked_for_again_when_it_is_known() {
    let (active, mut passive) = (Peer::new("a", 1, 100, 0), Peer::new("b", 2, 100, 5));
    active.acts(Role::Active);
    let mut rng = Rng::with_seed(4);
    for _ in 0..200 {
        active.node.begin(&mut rng, UP);
    }
    let all = passive.node.tables.clone();
    passive.node.tables.parties.pop_last();
    passive.says_numbers();
    let _session = session(&active, &passive);
    until("some are unknown", || {
        passive.view().ready && passive.view().counts.unknown > 0
    })
    .await;
    passive.node.tables = all;
    passive.says_numbers();
    until("they are alike", || {
        active.node.facts() == passive.node.facts()
    })
    .await;
}

#[tokio::test]
async fn a_peer_that_is_gone_is_not_shown_as_well_and_the_lag_grows() {
    let (active, passive) = (Peer::new("a", 1, 100, 0), Peer::new("b", 2, 100, 5));
    active.acts(Role::Active);
    let [tells, hears] = session(&active, &passive);
    until("all is acknowledged", || {
        let view = active.view();
        view.telling.up && view.snapshots == 1 && view.behind_since.is_none()
    })
    .await;
    hears.abort();
    tells.await.expect("it ends by itself");
    let view = active.view();
    assert!(!view.telling.up);
    sleep(Duration::from_millis(20)).await;
    assert!(view.lag() >= Duration::from_millis(20));
}

#[tokio::test]
async fn a_peer_that_is_heard_no_longer_is_only_known_as_it_was() {
    let (active, passive) = (Peer::new("a", 1, 100, 0), Peer::new("b", 2, 100, 5));
    active.acts(Role::Active);
    let [tells, hears] = session(&active, &passive);
    until("it is heard", || passive.view().hears()).await;
    tells.abort();
    hears.await.expect("it ends by itself");
    let view = passive.view();
    assert!(!view.hears() && view.status().is_none() && !view.ready);
    assert!(view.peer.is_some(), "when it was last heard is still known");
    assert!(view.following.why.is_some());
}

/// Somebody's end of a pipe, who has greeted as a node does.
async fn stranger(stream: DuplexStream) -> Framed<DuplexStream, LengthDelimitedCodec> {
    let mut stream = Framed::new(stream, LengthDelimitedCodec::new());
    let hello = Hello {
        node: "x".into(),
        version: "0".into(),
        abi: 1,
        boot: 1,
    };
    stream
        .send(Bytes::from(write_hello(&hello)))
        .await
        .expect("it is read");
    stream.next().await.expect("it greets").expect("it greets");
    stream
}

fn frame(sequence: u64, news: News) -> Bytes {
    Bytes::from(write_frame(&Frame { sequence, news }))
}

fn status(role: Role) -> News {
    News::Status(Status {
        role,
        ..Status::default()
    })
}

/// What a node that hears makes of a stranger who has told it a flow's worth of things
/// and then does `what`; the flows must be what they were.
async fn heard(what: impl AsyncFnOnce(Framed<DuplexStream, LengthDelimitedCodec>)) -> Failure {
    let passive = Peer::new("b", 2, 100, 5);
    let mut rng = Rng::with_seed(5);
    for _ in 0..50 {
        passive.node.begin(&mut rng, UP);
    }
    let facts = passive.node.facts();
    let (near, far) = duplex(PIPE);
    let local = passive.local.clone();
    let hears = tokio::spawn(async move {
        let mut channel = Channel::new(far);
        match channel.greet(&local.hello).await {
            Ok(hello) => hear(&mut channel, &local, hello).await,
            Err(failure) => failure,
        }
    });
    let mut stream = stranger(near).await;
    for news in [
        frame(1, status(Role::Active)),
        frame(
            2,
            News::SnapshotBegin {
                places: 64,
                estimate: 9,
            },
        ),
        frame(
            3,
            News::Flows(Flows {
                gone: vec![1],
                there: Vec::new(),
            }),
        ),
    ] {
        stream.send(news).await.expect("it is read");
        stream
            .next()
            .await
            .expect("it is there")
            .expect("it acknowledges");
    }
    what(stream).await;
    let failure = timeout(SILENCE * 4, hears).await;
    let failure = failure.expect("it ends").expect("it does not panic");
    assert_eq!(passive.node.facts(), facts, "{failure}");
    assert!(!passive.view().hears());
    failure
}

#[tokio::test]
async fn messages_that_are_not_the_next_one_end_the_session_and_change_nothing() {
    let gone = || {
        News::Flows(Flows {
            gone: vec![2],
            there: Vec::new(),
        })
    };
    for (says, sequence) in [("again", 3), ("from before", 1), ("one is missing", 5)] {
        let failure = heard(async |mut stream| {
            stream
                .send(frame(sequence, gone()))
                .await
                .expect("it is read");
            while stream.next().await.is_some_and(|reply| reply.is_ok()) {}
        })
        .await;
        assert_eq!(failure.rejected(), Some(Rejected::Sequence), "{says}");
    }
}

#[tokio::test]
async fn an_end_of_a_snapshot_that_was_not_whole_takes_nothing_away() {
    let failure = heard(async |mut stream| {
        // The place is beyond those that were told of.
        let beyond = News::Flows(Flows {
            gone: vec![64],
            there: Vec::new(),
        });
        stream.send(frame(4, beyond)).await.expect("it is read");
        let _ = stream.send(frame(5, News::SnapshotEnd)).await;
        while stream.next().await.is_some_and(|reply| reply.is_ok()) {}
    })
    .await;
    assert_eq!(failure.rejected(), Some(Rejected::Garbage));
}

#[tokio::test]
async fn messages_that_are_cut_off_too_long_or_nonsense_end_the_session_under_their_names() {
    let truncated = heard(async |stream| {
        let mut stream = stream.into_inner();
        stream
            .write_all(&[0, 0, 0, 9, 4, 2])
            .await
            .expect("it is read");
    })
    .await;
    assert_eq!(truncated.rejected(), Some(Rejected::Truncated));
    let short = heard(async |mut stream| {
        let whole = frame(4, status(Role::Active));
        stream
            .send(whole.slice(..whole.len() - 1))
            .await
            .expect("it is read");
        while stream.next().await.is_some_and(|reply| reply.is_ok()) {}
    })
    .await;
    assert_eq!(short.rejected(), Some(Rejected::Truncated));
    let oversized = heard(async |stream| {
        let mut stream = stream.into_inner();
        let length = (LARGEST as u32 + 1).to_be_bytes();
        stream.write_all(&length).await.expect("it is read");
        stream.write_all(&[0; 64]).await.expect("it is read");
        sleep(SILENCE / 2).await;
    })
    .await;
    assert_eq!(oversized.rejected(), Some(Rejected::Oversized));
    let garbage = heard(async |mut stream| {
        stream
            .send(Bytes::from_static(&[4, 0x7f, 1]))
            .await
            .expect("it is read");
        while stream.next().await.is_some_and(|reply| reply.is_ok()) {}
    })
    .await;
    assert_eq!(garbage.rejected(), Some(Rejected::Garbage));
}

#[tokio::test]
async fn who_is_silent_is_gone_after_three_heartbeats() {
    let failure = heard(async |mut stream| {
        // Word of this node's own does not count.
        while stream.next().await.is_some_and(|reply| reply.is_ok()) {}
    })
    .await;
    assert_eq!(failure.rejected(), Some(Rejected::Timeout));
}

#[tokio::test]
async fn another_protocol_and_this_node_itself_are_refused_with_a_reason() {
    let node = Peer::new("b", 2, 100, 5);
    for (bytes, says) in [
        (
            b"lb-s\x00\x09 what is this".to_vec(),
            "run the same version of lb on both",
        ),
        (write_hello(&node.local.hello), "it is this node itself"),
    ] {
        let (near, far) = duplex(PIPE);
        let mut stream = Framed::new(near, LengthDelimitedCodec::new());
        stream.send(Bytes::from(bytes)).await.expect("it is read");
        let failure = Channel::new(far).greet(&node.local.hello).await;
        let failure = failure.expect_err("it is refused");
        assert_eq!(failure.rejected(), Some(Rejected::Protocol));
        assert!(failure.to_string().contains(says), "{failure}");
    }
}

/// A stranger who follows a node that has so many flows.
async fn followed(
    flows: usize,
) -> (
    Peer,
    Framed<DuplexStream, LengthDelimitedCodec>,
    tokio::task::JoinHandle<Failure>,
) {
    let active = Peer::new("a", 1, 4_000, 0);
    active.acts(Role::Active);
    let mut rng = Rng::with_seed(6);
    for _ in 0..flows {
        active.node.begin(&mut rng, UP);
    }
    let (near, far) = duplex(PIPE);
    let local = active.local.clone();
    let tells = tokio::spawn(async move {
        let mut channel = Channel::new(far);
        channel.greet(&local.hello).await.expect("it is a node");
        let mut feed = Feed::new(&*local.table);
        tell(&mut channel, &local, &mut feed).await
    });
    (active, stranger(near).await, tells)
}

#[tokio::test]
async fn without_acknowledgements_no_more_is_sent_than_the_bound_and_changes_stay_in_the_table() {
    let (active, mut stream, tells) = followed(20_000).await;
    let (mut bytes, mut frames, mut last) = (0, 0, 0);
    // Until nothing but word of how it is comes.
    while let Ok(Some(Ok(message))) = timeout(SILENCE / 5, stream.next()).await {
        let frame = read_frame(&message).expect("it makes sense");
        last = frame.sequence;
        if matches!(frame.news, News::Flows(_)) {
            bytes += message.len();
            frames += 1;
        }
    }
    assert!(
        bytes <= MOST_BYTES + LARGEST && frames <= MOST_FRAMES,
        "{bytes} {frames}"
    );
    assert!(
        bytes >= MOST_BYTES || frames == MOST_FRAMES,
        "{bytes} {frames}"
    );
    assert!(active.view().lag() > Duration::from_millis(100));
    // With them it goes on to the end.
    let mut ended = false;
    while !ended {
        stream
            .send(Bytes::from(write_reply(Reply::Ack(last))))
            .await
            .expect("it is read");
        let mut next = stream.next().await;
        while let Some(Ok(message)) = next {
            let frame = read_frame(&message).expect("it makes sense");
            last = frame.sequence;
            ended |= frame.news == News::SnapshotEnd;
            next = timeout(Duration::from_millis(20), stream.next())
                .await
                .ok()
                .flatten();
        }
    }
    drop(stream);
    tells.await.expect("it ends by itself");
}

#[tokio::test]
async fn acknowledgements_of_what_was_not_sent_or_twice_end_the_session() {
    for wrong in [[1, 1], [1, 4_000_000_000]] {
        let (_active, mut stream, tells) = followed(1).await;
        stream.next().await.expect("it tells").expect("it tells");
        for sequence in wrong {
            let reply = write_reply(Reply::Ack(sequence));
            let _ = stream.send(Bytes::from(reply)).await;
        }
        let failure = timeout(SILENCE * 4, tells).await.expect("it ends");
        let failure = failure.expect("it does not panic");
        assert_eq!(failure.rejected(), Some(Rejected::Sequence));
    }
}

#[tokio::test]
async fn a_follower_that_acknowledges_nothing_is_gone_after_three_heartbeats() {
    let (_active, mut stream, tells) = followed(1).await;
    let reads = async { while stream.next().await.is_some_and(|read| read.is_ok()) {} };
    let (failure, ()) = tokio::join!(timeout(SILENCE * 4, tells), reads);
    let failure = failure.expect("it ends").expect("it does not panic");
    assert_eq!(failure.rejected(), Some(Rejected::Timeout));
}

#[tokio::test]
async fn what_people_want_to_know_is_said_once() {
    let (mut one, other) = (Peer::new("a", 1, 100, 0), Peer::new("b", 2, 100, 5));
    one.says(1);
    other.says(1);
    other.acts(Role::Active);
    let [tells, _hears] = session(&other, &one);
    let mut said = Vec::new();
    until("it is heard", || one.view().ready).await;
    for alike in [true, false, true] {
        while said.last() != Some(&Word::Alike(alike)) {
            said.extend(one.words.recv().await);
        }
        if said.contains(&Word::Alike(false)) {
            one.says(2);
        } else {
            other.says(2);
        }
    }
    tells.abort();
    until("it is lost", || !one.view().hears()).await;
    while let Ok(word) = one.words.try_recv() {
        said.push(word);
    }
    said.retain(|word| *word != Word::Ready);
    let lost = said.pop();
    assert!(matches!(lost, Some(Word::Lost(_))), "{lost:?}");
    assert_eq!(
        said,
        [
            Word::Heard("b".into()),
            Word::Alike(true),
            Word::Alike(false),
            Word::Alike(true)
        ]
    );
}
