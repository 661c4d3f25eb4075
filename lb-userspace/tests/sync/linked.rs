//! Two nodes over TCP and TLS on the loopback interface, and others who are none.

use std::fs::{self, Permissions};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fastrand::Rng;
use lb_common::flow::{ANSWERED, ESTABLISHED};
use lb_userspace::sync::board::Rejected;
use lb_userspace::sync::channel::Channel;
use lb_userspace::sync::link::{Ends, run};
use lb_userspace::sync::message::Role;
use lb_userspace::tls::{Identity, Paths, Renewed};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;

use super::peer::{Peer, until};

const UP: u32 = ANSWERED | ESTABLISHED;

const HOSTS: [&str; 2] = ["127.0.0.1", "127.0.0.2"];

const DAY: Duration = Duration::from_secs(24 * 3600);

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    folder: TempDir,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().expect("there is randomness");
        let certificate = params.self_signed(&key).expect("it is well-formed");
        Self {
            pem: certificate.pem(),
            issuer: Issuer::new(params, key),
            folder: tempfile::tempdir().expect("there is room"),
        }
    }

    /// The files of a node; they are written anew each time.
    fn node(&self, host: &str, change: impl FnOnce(&mut CertificateParams)) -> Paths {
        let mut params = CertificateParams::default();
        let address: IpAddr = host.parse().expect("it is an address");
        params.subject_alt_names = vec![SanType::IpAddress(address)];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        change(&mut params);
        let key = KeyPair::generate().expect("there is randomness");
        let certificate = params.signed_by(&key, &self.issuer);
        let certificate = certificate.expect("it is well-formed").pem();
        let path = |kind: &str| self.folder.path().join(format!("{host}.{kind}"));
        let paths = Paths {
            cert: path("crt"),
            key: path("key"),
            ca: path("ca"),
        };
        for (path, text) in [
            (&paths.cert, &certificate),
            (&paths.key, &key.serialize_pem()),
            (&paths.ca, &self.pem),
        ] {
            fs::write(path, text).expect("there is room");
            fs::set_permissions(path, Permissions::from_mode(0o600)).expect("it is ours");
        }
        paths
    }
}

/// Ports that were free a moment ago.
fn free() -> [SocketAddr; 2] {
    HOSTS.map(|host| {
        let listener = TcpListener::bind((host, 0)).expect("it is a loopback address");
        listener.local_addr().expect("it is bound")
    })
}

fn ends(authority: &Authority, [listen, peer]: [SocketAddr; 2]) -> Ends {
    let paths = authority.node(&listen.ip().to_string(), |_| {});
    let identity = Renewed::open(paths, listen.ip()).expect("the files are good");
    Ends {
        listen,
        peer,
        identity: Arc::new(identity),
    }
}

/// Two nodes, of which the first is active; they run until they are aborted.
async fn pair(
    authority: &Authority,
    at: [SocketAddr; 2],
    buckets: u32,
) -> ([Peer; 2], [JoinHandle<()>; 2]) {
    let nodes = [Peer::new("a", 1, buckets, 0), Peer::new("b", 2, buckets, 5)];
    nodes[0].acts(Role::Active);
    nodes[1].acts(Role::Backup);
    let there = [at[1], at[0]];
    let run = [
        tokio::spawn(run(nodes[0].local.clone(), ends(authority, at))),
        tokio::spawn(run(nodes[1].local.clone(), ends(authority, there))),
    ];
    until("both hear each other", || {
        nodes
            .iter()
            .all(|node| node.view().hears() && node.view().telling.up)
    })
    .await;
    (nodes, run)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_comes_back_gets_what_has_changed_and_tells_what_it_has() {
    let authority = Authority::new();
    let at = free();
    let ([active, passive], running) = pair(&authority, at, 400).await;
    let mut rng = Rng::with_seed(1);
    let mut places = Vec::new();
    for _ in 0..5 {
        for _ in 0..200 {
            active.node.happens(&mut rng, &mut places);
        }
        until("they are alike", || {
            active.node.facts() == passive.node.facts()
        })
        .await;
    }
    // The passive one goes away, and much happens.
    running[1].abort();
    until("it is missed", || {
        !active.view().telling.up && !active.view().hears()
    })
    .await;
    for _ in 0..500 {
        active.node.happens(&mut rng, &mut places);
    }
    assert!(active.view().lag() > Duration::ZERO);
    let again = ends(&authority, [at[1], at[0]]);
    let again = tokio::spawn(run(passive.local.clone(), again));
    until("they are alike again", || {
        active.node.facts() == passive.node.facts() && passive.view().ready
    })
    .await;
    until("nothing is behind", || {
        active.view().lag() == Duration::ZERO
    })
    .await;
    // They change roles.
    active.acts(Role::Backup);
    passive.acts(Role::Active);
    for _ in 0..100 {
        passive.node.begin(&mut rng, UP);
    }
    until("they are alike the other way round", || {
        active.node.facts() == passive.node.facts() && active.view().ready
    })
    .await;
    for task in [&running[0], &again] {
        task.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_the_peer_is_counted_and_disturbs_nothing() {
    let authority = Authority::new();
    let at = free();
    let ([active, passive], running) = pair(&authority, at, 100).await;
    let mut rng = Rng::with_seed(2);
    for _ in 0..300 {
        active.node.begin(&mut rng, UP);
    }
    until("they are alike", || {
        active.node.facts() == passive.node.facts()
    })
    .await;
    let count = |rejected| active.view().rejected.get(&rejected).copied().unwrap_or(0);
    let sessions = [active.view().telling, passive.view().following];
    // With a certificate of another CA, with an expired one, with another's name.
    let other = Authority::new();
    let stranger = other.node(HOSTS[1], |_| {});
    fs::write(&stranger.ca, format!("{}{}", authority.pem, other.pem)).expect("there is room");
    let mut wrong = vec![Identity::read(&stranger).expect("it is good for itself")];
    let named = authority.node("127.0.0.3", |_| {});
    wrong.push(Identity::read(&named).expect("it is good for itself"));
    for (before, identity) in wrong.iter().enumerate() {
        let stream = TcpStream::connect(at[0]).await.expect("it listens");
        let stream = identity.connect(at[0].ip(), stream).await;
        // A client hears at its first read what the server thinks of it.
        let mut channel = Channel::new(stream.expect("the server is good"));
        let failure = channel.greet(&passive.local.hello).await;
        let failure = failure.expect_err("it is refused");
        assert_eq!(
            failure.rejected(),
            Some(Rejected::BadCertificate),
            "{failure}"
        );
        until("it is counted", || {
            count(Rejected::BadCertificate) == before as u64 + 1
        })
        .await;
    }
    // Without TLS.
    let mut stream = TcpStream::connect(at[0]).await.expect("it listens");
    let _ = stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await;
    let _ = stream.read_to_end(&mut Vec::new()).await;
    until("it is counted", || count(Rejected::Protocol) == 1).await;
    assert_eq!(sessions, [active.view().telling, passive.view().following]);
    for _ in 0..100 {
        active.node.begin(&mut rng, UP);
    }
    until("they are alike", || {
        active.node.facts() == passive.node.facts()
    })
    .await;
    running.iter().for_each(JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_whose_certificate_expires_is_not_let_in_again_and_it_is_said_why() {
    let authority = Authority::new();
    let at = free();
    let (nodes, running) = pair(&authority, at, 16).await;
    running[1].abort();
    until("it is missed", || !nodes[0].view().hears()).await;
    // Its files are no good to itself any more, so it goes on with what it has read.
    let expires = SystemTime::now() + Duration::from_secs(2);
    let paths = authority.node(HOSTS[1], |params| {
        params.not_before = (SystemTime::now() - DAY).into();
        params.not_after = expires.into();
    });
    let identity = Renewed::open(paths, at[1].ip()).expect("it is good for a while");
    tokio::time::sleep(Duration::from_secs(3)).await;
    let ends = Ends {
        listen: at[1],
        peer: at[0],
        identity: Arc::new(identity),
    };
    let again = tokio::spawn(run(nodes[1].local.clone(), ends));
    until("it is refused by name", || {
        nodes.iter().all(|node| {
            let view = node.view();
            view.rejected.contains_key(&Rejected::BadCertificate)
                && view.following.why.is_some_and(|why| {
                    why.contains("its certificate has expired") || why.contains("it refuses us")
                })
        })
    })
    .await;
    assert!(nodes.iter().all(|node| !node.view().hears()));
    running[0].abort();
    again.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_who_connect_and_say_nothing_do_not_keep_the_peer_out() {
    let authority = Authority::new();
    let at = free();
    let ([active, passive], running) = pair(&authority, at, 16).await;
    running[1].abort();
    until("it is missed", || !active.view().telling.up).await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        let socket = TcpSocket::new_v4().expect("there are sockets");
        let stranger = "127.0.0.9:0".parse().expect("it is an address");
        socket.bind(stranger).expect("it is a loopback address");
        silent.push(socket.connect(at[0]).await.expect("it listens"));
    }
    until("there are too many", || {
        active.view().rejected.contains_key(&Rejected::Crowded)
    })
    .await;
    let again = ends(&authority, [at[1], at[0]]);
    let again = tokio::spawn(run(passive.local.clone(), again));
    until("the peer is told all the same", || active.view().telling.up).await;
    drop(silent);
    running[0].abort();
    again.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_began_while_a_node_had_no_daemon_is_told_when_it_has_one() {
    let authority = Authority::new();
    let at = free();
    let ([killed, other], running) = pair(&authority, at, 400).await;
    let mut rng = Rng::with_seed(3);
    for _ in 0..300 {
        killed.node.begin(&mut rng, UP);
    }
    until("they are alike", || {
        killed.node.facts() == other.node.facts()
    })
    .await;
    running[0].abort();
    until("it is missed", || !other.view().hears()).await;
    // The data path goes on until its lease is over; then the other node has begun.
    for _ in 0..100 {
        killed.node.begin(&mut rng, UP);
    }
    let all = killed.node.facts();
    other.acts(Role::Active);
    killed.acts(Role::Backup);
    let again = tokio::spawn(run(killed.local.clone(), ends(&authority, at)));
    until("the other knows them", || other.node.facts() == all).await;
    until("this one follows", || killed.view().ready).await;
    until("both have all", || killed.node.facts() == all).await;
    running[1].abort();
    again.abort();
}
