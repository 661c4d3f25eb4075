//! Certificates made for each case, and handshakes between two ends in memory.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);
const A: &str = "10.0.0.2";
const B: &str = "10.0.0.3";

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A CA of a test.
struct Authority {
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        Self {
            certificate,
            issuer,
        }
    }

    /// Writes the files of a node with a certificate for this name.
    fn node(&self, name: &str) -> Node {
        self.node_with(name, |_| {})
    }

    /// The same, with a certificate that is out of the ordinary.
    fn node_with(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Node {
        let node = Node::new();
        self.certify(&node.paths, name, change);
        node
    }

    /// Writes another certificate where a node has its own.
    fn certify(&self, paths: &Paths, name: &str, change: impl FnOnce(&mut CertificateParams)) {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::IpAddress(address(name))];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(&paths.cert, certificate.pem()).unwrap();
        fs::write(&paths.ca, self.certificate.pem()).unwrap();
        write_key(&paths.key, &key.serialize_pem());
    }
}

fn write_key(path: &Path, pem: &str) {
    fs::write(path, pem).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
}

/// A node's files, for as long as a test needs them.
struct Node {
    folder: TempDir,
    paths: Paths,
}

impl Node {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let paths = Paths {
            cert: folder.path().join("node.crt"),
            key: folder.path().join("node.key"),
            ca: folder.path().join("ca.crt"),
        };
        Self { folder, paths }
    }

    fn identity(&self) -> Identity {
        Identity::read(&self.paths).unwrap()
    }

    /// What is said of its files, which are called by their names alone.
    fn fault(&self) -> String {
        let folder = format!("{}/", self.folder.path().display());
        let fault = Identity::read(&self.paths).unwrap_err();
        fault.to_string().replace(&folder, "")
    }
}

/// A certificate that was expired a day ago.
fn expired(params: &mut CertificateParams) {
    params.not_before = (SystemTime::now() - 3 * DAY).into();
    params.not_after = (SystemTime::now() - DAY).into();
}

/// What both ends say of a handshake: the server's word, and what the client finds at
/// its first read.
async fn meet(
    server: &Identity,
    client: &Identity,
) -> (Result<&'static str, Refused>, Result<String, Refused>) {
    let (near, far) = duplex(64 << 10);
    let serve = async {
        let mut stream = server.accept(address(B), near).await?;
        stream.write_all(b"hello").await?;
        stream.shutdown().await?;
        Ok("accepted")
    };
    let call = async {
        let mut stream = client.connect(address(A), far).await?;
        let mut heard = String::new();
        stream.read_to_string(&mut heard).await?;
        Ok(heard)
    };
    tokio::join!(serve, call)
}

/// The names under which both ends count what happened.
async fn names(server: &Identity, client: &Identity) -> (&'static str, &'static str) {
    let (serve, call) = meet(server, client).await;
    let name = |refused: Refused| refused.name();
    (
        serve.map_or_else(name, |_| "good"),
        call.map_or_else(name, |_| "good"),
    )
}

/// An identity whose certificate was good when it was read: as one of a node that has
/// run for long, or whose clock is wrong.
fn unjudged(paths: &Paths) -> Identity {
    let good = Authority::new().node(A).identity();
    let chain = files::certificates(File::Certificate, &paths.cert).unwrap();
    let key = files::key(&paths.key).unwrap();
    let provider = Arc::new(ring::default_provider());
    let certified = CertifiedKey::from_der(chain.clone(), key, &provider).unwrap();
    let roots = Arc::new(roots(paths).unwrap());
    let servers = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone());
    let clients = WebPkiClientVerifier::builder_with_provider(roots, provider);
    Identity {
        chain,
        certified: Arc::new(certified.into()),
        servers: servers.build().unwrap(),
        clients: clients.build().unwrap(),
        ..good
    }
}

#[tokio::test]
async fn two_nodes_of_one_ca_that_name_each_other_have_a_channel() {
    let authority = Authority::new();
    let (a, b) = (authority.node(A), authority.node(B));
    let (serve, call) = meet(&a.identity(), &b.identity()).await;
    assert_eq!(serve.unwrap(), "accepted");
    assert_eq!(call.unwrap(), "hello");
}

#[tokio::test]
async fn a_channel_is_tls_13_with_our_protocol_and_leaves_nothing_to_resume() {
    let authority = Authority::new();
    let (a, b) = (authority.node(A).identity(), authority.node(B).identity());
    for _ in 0..2 {
        let (near, far) = duplex(64 << 10);
        let (serve, call) = tokio::join!(a.accept(address(B), near), b.connect(address(A), far));
        let (mut serve, mut call) = (serve.unwrap(), call.unwrap());
        serve.write_all(b"x").await.unwrap();
        assert_eq!(call.read_u8().await.unwrap(), b'x');
        let (_, connection) = call.get_ref();
        let version = connection.protocol_version();
        assert_eq!(version, Some(rustls::ProtocolVersion::TLSv1_3));
        assert_eq!(connection.alpn_protocol(), Some(PROTOCOL));
        assert_eq!(
            connection.handshake_kind(),
            Some(rustls::HandshakeKind::Full)
        );
        assert_eq!(connection.tls13_tickets_received(), 0);
    }
}

#[tokio::test]
async fn a_certificate_of_another_ca_is_refused_by_either_side() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let a = ours.node(A).identity();
    let stranger = theirs.node(B).identity();
    // The client is the first to judge, and says so.
    assert_eq!(names(&a, &stranger).await, ("by-peer", "other-ca"));
    // One that believes in our CA but has no certificate of it.
    let mixed = theirs.node(B);
    fs::write(&mixed.paths.ca, ours.certificate.pem()).unwrap();
    let mixed = unjudged(&mixed.paths);
    assert_eq!(names(&a, &mixed).await, ("other-ca", "by-peer"));
}

#[tokio::test]
async fn a_certificate_whose_time_is_over_or_to_come_is_refused_by_either_side() {
    let authority = Authority::new();
    let good = (authority.node(A).identity(), authority.node(B).identity());
    let late = |name| unjudged(&authority.node_with(name, expired).paths);
    assert_eq!(names(&good.0, &late(B)).await, ("expired", "by-peer"));
    assert_eq!(names(&late(A), &good.1).await, ("by-peer", "expired"));
    let early = authority.node_with(B, |params| {
        params.not_before = (SystemTime::now() + DAY).into();
    });
    let early = unjudged(&early.paths);
    assert_eq!(names(&good.0, &early).await, ("not-yet-valid", "by-peer"));
}

#[tokio::test]
async fn a_certificate_of_our_ca_that_does_not_name_the_peer_is_no_peer() {
    let authority = Authority::new();
    let (a, b) = (authority.node(A).identity(), authority.node(B).identity());
    let operator = authority.node("192.0.2.7").identity();
    assert_eq!(names(&a, &operator).await, ("other-name", "by-peer"));
    assert_eq!(names(&operator, &b).await, ("by-peer", "other-name"));
    // A host name that reads like the address is not the address.
    let named = authority.node_with(B, |params| {
        params.subject_alt_names = vec![SanType::DnsName(B.try_into().unwrap())];
    });
    assert_eq!(
        names(&a, &unjudged(&named.paths)).await,
        ("other-name", "by-peer")
    );
}

#[tokio::test]
async fn a_certificate_that_is_for_servers_only_is_no_clients() {
    let authority = Authority::new();
    let server_only = authority.node_with(B, |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    let a = authority.node(A).identity();
    let client = unjudged(&server_only.paths);
    assert_eq!(names(&a, &client).await, ("certificate", "by-peer"));
    let said = server_only.fault();
    assert!(
        said.starts_with("the certificate node.crt cannot be used: "),
        "{said}"
    );
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let authority = Authority::new();
    let (a, b) = (authority.node(A).identity(), authority.node(B).identity());
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_webpki_verifier(b.servers)
        .with_no_client_auth();
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    let anonymous = TlsConnector::from(Arc::new(config));
    let (near, far) = duplex(64 << 10);
    let call = anonymous.connect(ServerName::from(address(A)), far);
    let (served, _called) = tokio::join!(a.accept(address(B), near), call);
    assert_eq!(served.unwrap_err().name(), "no-certificate");
}

#[tokio::test]
async fn another_protocol_is_refused_whether_it_is_named_or_not() {
    let authority = Authority::new();
    let (a, b) = (authority.node(A).identity(), authority.node(B).identity());
    for protocols in [vec![b"h2".to_vec()], vec![]] {
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .with_webpki_verifier(Arc::clone(&b.servers))
            .with_client_cert_resolver(Arc::clone(&b.certified) as _);
        config.alpn_protocols = protocols;
        let (near, far) = duplex(64 << 10);
        let connector = TlsConnector::from(Arc::new(config));
        let call = connector.connect(ServerName::from(address(A)), far);
        let (served, _called) = tokio::join!(a.accept(address(B), near), call);
        assert_eq!(served.unwrap_err().name(), "other-protocol");
    }
}

/// A message of TLS's handshake protocol in its record (RFC 5246, sections 6.2.1 and 7.4).
fn record(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = |length: usize| u16::try_from(length).unwrap().to_be_bytes();
    let mut bytes = vec![22, 3, 3];
    bytes.extend(length(body.len() + 4));
    bytes.extend([kind, 0]);
    bytes.extend(length(body.len()));
    bytes.extend(body);
    bytes
}

/// The last alert that an end has sent (RFC 5246, section 7.2).
async fn alert(mut end: DuplexStream) -> Vec<u8> {
    let mut heard = Vec::new();
    end.read_to_end(&mut heard).await.unwrap();
    heard.split_off(heard.len() - 7)
}

/// Fatal, `protocol_version`.
const PROTOCOL_VERSION: [u8; 7] = [21, 3, 3, 0, 2, 2, 70];

#[tokio::test]
async fn tls_12_is_refused_by_either_side() {
    let authority = Authority::new();
    let (a, b) = (authority.node(A).identity(), authority.node(B).identity());
    // A hello of a client of TLS 1.2, with a suite that such a server has, P-256, and
    // signatures that it knows.
    let mut hello = vec![3, 3];
    hello.extend([7; 32]);
    hello.extend([0, 0, 2, 0xc0, 0x2b, 1, 0]);
    let groups = [0, 10, 0, 4, 0, 2, 0, 23];
    let signatures = [0, 13, 0, 4, 0, 2, 4, 3];
    hello.extend([0, 16]);
    hello.extend(groups.iter().chain(&signatures));
    let (near, mut far) = duplex(64 << 10);
    far.write_all(&record(1, &hello)).await.unwrap();
    let (served, told) = tokio::join!(a.accept(address(B), near), alert(far));
    assert_eq!(served.unwrap_err().name(), "not-tls");
    assert_eq!(told, PROTOCOL_VERSION);

    // And one of a server.
    let mut hello = vec![3, 3];
    hello.extend([7; 32]);
    hello.extend([0, 0xc0, 0x2b, 0]);
    let (near, mut far) = duplex(64 << 10);
    far.write_all(&record(2, &hello)).await.unwrap();
    let (called, told) = tokio::join!(b.connect(address(A), near), alert(far));
    assert_eq!(called.unwrap_err().name(), "not-tls");
    assert_eq!(told[..5], PROTOCOL_VERSION[..5]);
}

#[tokio::test]
async fn what_is_no_tls_and_what_ends_is_refused() {
    let authority = Authority::new();
    let a = authority.node(A).identity();
    let (near, mut far) = duplex(64 << 10);
    far.write_all(b"GET / HTTP/1.1\r\nHost: lb\r\n\r\n")
        .await
        .unwrap();
    let refused = a.accept(address(B), near).await.unwrap_err();
    assert_eq!(refused.name(), "not-tls");
    let (near, far) = duplex(64 << 10);
    drop(far);
    let refused = a.accept(address(B), near).await.unwrap_err();
    assert_eq!(refused.name(), "broken");
}

#[tokio::test]
async fn a_silent_end_is_waited_for_five_seconds() {
    let authority = Authority::new();
    let a = authority.node(A).identity();
    let (near, _far) = duplex(64 << 10);
    let before = tokio::time::Instant::now();
    let refused = a.accept(address(B), near).await.unwrap_err();
    assert_eq!(refused.name(), "slow");
    assert!(before.elapsed() >= HANDSHAKE);
}

#[test]
fn a_node_knows_its_expiry_and_its_names() {
    let authority = Authority::new();
    let until = SystemTime::UNIX_EPOCH + Duration::from_secs(4_000_000_000);
    let node = authority.node_with(A, |params| {
        params.not_after = until.into();
        params
            .subject_alt_names
            .push(SanType::DnsName("lb-a".try_into().unwrap()));
        params
            .subject_alt_names
            .push(SanType::IpAddress(address("2001:db8::2")));
    });
    let identity = node.identity();
    assert_eq!(identity.expiry(), until);
    assert_eq!(identity.names(address(A)), Ok(()));
    assert_eq!(identity.names(address("2001:db8::2")), Ok(()));
    let said = identity.names(address(B)).unwrap_err().to_string();
    let end = "does not name 10.0.0.3, the address of this node, but 10.0.0.2, lb-a, 2001:db8::2: the other node would refuse it";
    assert!(said.ends_with(end), "{said}");
}

#[test]
fn what_is_said_of_files_that_are_missing_or_no_pem() {
    let authority = Authority::new();
    let node = authority.node(A);
    let Paths { cert, key, ca } = &node.paths;
    for (path, file) in [(cert, "certificate"), (key, "key"), (ca, "CA certificate")] {
        let name = path.file_name().unwrap().to_str().unwrap();
        let kept = fs::read(path).unwrap();
        fs::write(path, "no PEM at all\n").unwrap();
        assert_eq!(node.fault(), format!("{name} has no {file} in PEM form"));
        fs::write(path, vec![b'#'; (1 << 20) + 1]).unwrap();
        let expected = format!("cannot read the {file} {name}: it is larger than 1 MiB");
        assert_eq!(node.fault(), expected);
        fs::remove_file(path).unwrap();
        let expected = format!("cannot read the {file} {name}: there is no such file");
        assert_eq!(node.fault(), expected);
        fs::create_dir(path).unwrap();
        let expected = format!("cannot read the {file} {name}: it is a directory");
        assert_eq!(node.fault(), expected);
        fs::remove_dir(path).unwrap();
        fs::write(path, kept).unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
    }
    node.identity();
}

#[test]
fn a_key_that_others_may_use_is_refused() {
    let authority = Authority::new();
    let node = authority.node(A);
    for mode in [0o644, 0o640, 0o604, 0o660, 0o601, 0o620] {
        fs::set_permissions(&node.paths.key, Permissions::from_mode(mode)).unwrap();
        let expected = format!(
            "the key node.key may be used by others than its owner (mode {mode:04o}): `chmod 600` it, and replace it if somebody may have read it"
        );
        assert_eq!(node.fault(), expected);
    }
    for mode in [0o600, 0o400, 0o700] {
        fs::set_permissions(&node.paths.key, Permissions::from_mode(mode)).unwrap();
        node.identity();
    }
}

#[test]
fn what_is_said_of_files_that_do_not_fit() {
    let authority = Authority::new();
    let node = authority.node(A);
    write_key(
        &node.paths.key,
        &KeyPair::generate().unwrap().serialize_pem(),
    );
    let expected = "the key node.key does not belong to the certificate node.crt";
    assert_eq!(node.fault(), expected);

    let node = authority.node(A);
    fs::write(&node.paths.ca, Authority::new().certificate.pem()).unwrap();
    let expected = "the certificate node.crt is not issued by a CA in ca.crt";
    assert_eq!(node.fault(), expected);

    let node = authority.node_with(A, |params| {
        params.not_before = (SystemTime::UNIX_EPOCH + DAY).into();
        params.not_after = (SystemTime::UNIX_EPOCH + 2 * DAY).into();
    });
    let expected = "the certificate node.crt has expired, at 1970-01-03T00:00:00Z: renew it";
    assert_eq!(node.fault(), expected);

    let node = authority.node_with(A, |params| {
        params.not_before = (SystemTime::UNIX_EPOCH + 30_000 * DAY).into();
    });
    let expected = "the certificate node.crt is not valid yet, but from 2052-02-20T00:00:00Z on: is this host's clock right?";
    assert_eq!(node.fault(), expected);
}

#[test]
fn a_key_is_in_no_debug_output() {
    let node = Authority::new().node(A);
    let pem = fs::read_to_string(&node.paths.key).unwrap();
    let shown = format!("{:?}", node.identity());
    assert!(shown.contains("not_after"), "{shown}");
    for line in pem.lines() {
        assert!(!shown.contains(line), "{shown}");
    }
    assert!(!shown.contains("key"), "{shown}");
}

#[test]
fn renewed_files_are_taken_up_and_bad_ones_are_not() {
    let authority = Authority::new();
    let node = authority.node(A);
    let until = |days: u32| SystemTime::UNIX_EPOCH + days * DAY;
    let expiring =
        |days: u32| move |params: &mut CertificateParams| params.not_after = until(days).into();
    authority.certify(&node.paths, A, expiring(40_000));
    let renewed = Renewed::open(node.paths.clone(), address(A)).unwrap();
    assert_eq!(renewed.expiry(), until(40_000));
    let first = renewed.now();
    assert!(Arc::ptr_eq(&first, &renewed.now()), "nothing has changed");

    authority.certify(&node.paths, A, expiring(50_000));
    assert_eq!(renewed.expiry(), until(50_000));

    // Half done, exposed, for another node, gone: the last good one stands.
    let good = fs::read_to_string(&node.paths.key).unwrap();
    write_key(
        &node.paths.key,
        &KeyPair::generate().unwrap().serialize_pem(),
    );
    assert_eq!(renewed.expiry(), until(50_000));
    write_key(&node.paths.key, &good);
    fs::set_permissions(&node.paths.key, Permissions::from_mode(0o644)).unwrap();
    assert_eq!(renewed.expiry(), until(50_000));
    authority.certify(&node.paths, B, expiring(60_000));
    assert_eq!(renewed.expiry(), until(50_000));
    fs::remove_file(&node.paths.cert).unwrap();
    assert_eq!(renewed.expiry(), until(50_000));

    authority.certify(&node.paths, A, expiring(70_000));
    assert_eq!(renewed.expiry(), until(70_000));
}

#[test]
fn a_node_that_listens_on_any_address_may_have_any_name() {
    let node = Authority::new().node(A);
    Renewed::open(node.paths.clone(), address("0.0.0.0")).unwrap();
    let fault = Renewed::open(node.paths.clone(), address(B)).unwrap_err();
    assert!(matches!(fault, TlsFault::OtherName { .. }), "{fault}");
}

#[test]
fn a_balancer_starts_although_its_certificate_has_expired_and_takes_up_the_next() {
    let authority = Authority::new();
    let node = authority.node(A);
    let long_ago = SystemTime::UNIX_EPOCH + 10_000 * DAY;
    authority.certify(&node.paths, A, |params| {
        params.not_before = SystemTime::UNIX_EPOCH.into();
        params.not_after = long_ago.into();
    });
    let fault = Renewed::open(node.paths.clone(), address(A)).unwrap_err();
    assert!(matches!(fault, TlsFault::Expired { .. }), "{fault}");
    let renewed = Renewed::open_untimely(node.paths.clone(), address(A)).unwrap();
    assert_eq!(renewed.expiry(), long_ago);
    authority.certify(&node.paths, A, |_| {});
    assert!(renewed.expiry() > SystemTime::now());
}
