//! Who a node is, and the channel that only the two nodes of a pair can have:
//! TLS 1.3 with a certificate on either side.
//!
//! # Who is let in
//! A node believes in one CA, that of its file, and in none of the system's. The other
//! node's certificate must be issued by that CA, be within its time, be meant for this
//! use (`serverAuth` where it answers, `clientAuth` where it calls, if it limits its
//! uses at all), and name the peer's address among its subject alternative names. The
//! last holds in both directions: a server asks it of a client too ([`verify`]), so that
//! no other certificate of the same CA, such as an operator's, is a peer. The address is
//! the one of the configuration, never the one that a connection comes from. All of it is
//! judged by rustls' and webpki's own verifiers; ours adds a condition and takes none away.
//!
//! There are no older versions than 1.3 (they are not even compiled in), no resumed
//! sessions and no early data: each connection shows both certificates anew, and nothing
//! can be replayed. The protocol is named by ALPN, [`PROTOCOL`], and nothing else is
//! spoken. There are no revocation lists: a certificate that must not count any more is
//! got rid of by a new CA.
//!
//! # Files
//! PEM. The certificate's file may hold the intermediate ones after it, the CA's file
//! several CAs, as while one is replaced. A key that others may read is refused, as it
//! is no secret any more. [`Renewed`] takes up renewed files without a restart.

pub mod authority;
mod channel;
mod facts;
mod files;
pub mod folder;
mod renewed;
mod verify;

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use humantime::format_rfc3339_seconds;
use rustls::client::{
    Resumption, WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor, verify_server_name,
};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, Error, InconsistentKeys, RootCertStore, ServerConfig,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

pub use channel::{HANDSHAKE, Refused};
pub use facts::Facts;
pub use files::File;
pub use renewed::Renewed;

/// What is spoken in the channel, as ALPN has it (RFC 7301).
pub const PROTOCOL: &[u8] = b"fulcrum-sync/1";

/// With less time than this, a certificate is worth a warning.
pub const SOON: Duration = Duration::from_secs(30 * 24 * 3600);

/// Where a node's identity is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// Its certificate, and the intermediate ones if there are some.
    pub cert: PathBuf,
    /// The key of that certificate.
    pub key: PathBuf,
    /// The CA that both nodes' certificates come from.
    pub ca: PathBuf,
}

/// What keeps files from being an identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the sentences say what the fields are")]
pub enum TlsFault {
    #[error("cannot read the {file} {}: {why}", path.display())]
    Unreadable {
        file: File,
        path: PathBuf,
        why: String,
    },
    #[error("{} has no {file} in PEM form", path.display())]
    NotPem { file: File, path: PathBuf },
    #[error("the {file} {} cannot be used: {why}", path.display())]
    Unusable {
        file: File,
        path: PathBuf,
        why: String,
    },
    #[error(
        "the key {} may be used by others than its owner (mode {mode:04o}): `chmod 600` it, and replace it if somebody may have read it",
        path.display()
    )]
    Exposed { path: PathBuf, mode: u32 },
    #[error("the key {} does not belong to the certificate {}", key.display(), cert.display())]
    OtherKey { key: PathBuf, cert: PathBuf },
    #[error(
        "the certificate {} has expired, at {}: renew it",
        path.display(),
        format_rfc3339_seconds(*not_after)
    )]
    Expired {
        path: PathBuf,
        not_after: SystemTime,
    },
    #[error(
        "the certificate {} is not valid yet, but from {} on: is this host's clock right?",
        path.display(),
        format_rfc3339_seconds(*not_before)
    )]
    NotYetValid {
        path: PathBuf,
        not_before: SystemTime,
    },
    #[error("the certificate {} is not issued by a CA in {}", cert.display(), ca.display())]
    OtherCa { cert: PathBuf, ca: PathBuf },
    #[error(
        "the certificate {} does not name {address}, the address of this node, but {}: the other node would refuse it",
        path.display(),
        facts::listed(names)
    )]
    OtherName {
        path: PathBuf,
        address: IpAddr,
        names: Vec<String>,
    },
}

/// Who a node is: its certificate and key, and in which CA it believes.
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    /// The chain with its key.
    certified: Arc<SingleCertAndKey>,
    /// Judges the certificates of servers.
    servers: Arc<WebPkiServerVerifier>,
    /// Judges those of clients, but for their names.
    clients: Arc<dyn ClientCertVerifier>,
    facts: Facts,
    path: PathBuf,
    /// Its time is over, or has not begun.
    untimely: Option<TlsFault>,
}

impl Identity {
    /// Reads it from its files, and sees that they fit: each can be read and is what it
    /// should be, the key is a secret and belongs to the certificate, which the CA has
    /// issued for both uses and which is within its time.
    ///
    /// # Errors
    /// The first that is not so.
    pub fn read(paths: &Paths) -> Result<Self, TlsFault> {
        let identity = Self::load(paths)?;
        match identity.untimely.clone() {
            Some(fault) => Err(fault),
            None => Ok(identity),
        }
    }

    /// The same, but its time may be over: it is the peer that refuses it then.
    fn load(paths: &Paths) -> Result<Self, TlsFault> {
        let provider = Arc::new(ring::default_provider());
        let chain = files::certificates(File::Certificate, &paths.cert)?;
        let key = files::key(&paths.key)?;
        let roots = Arc::new(roots(paths)?);
        let facts = Facts::of(File::Certificate, &paths.cert, &chain[0])?;
        let unusable = |file, path: &PathBuf, why: String| TlsFault::Unusable {
            file,
            path: path.clone(),
            why,
        };
        let certified =
            CertifiedKey::from_der(chain.clone(), key, &provider).map_err(|error| match error {
                Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => TlsFault::OtherKey {
                    key: paths.key.clone(),
                    cert: paths.cert.clone(),
                },
                other => unusable(File::Key, &paths.key, other.to_string()),
            })?;
        let no_ca = |error: rustls::server::VerifierBuilderError| {
            unusable(File::Ca, &paths.ca, error.to_string())
        };
        let servers = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(no_ca)?;
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(no_ca)?;
        let untimely = match judge(&chain, &roots, &provider, &*clients) {
            Ok(()) => None,
            Err(error) => match unfit(paths, &facts, &error) {
                fault @ (TlsFault::Expired { .. } | TlsFault::NotYetValid { .. }) => Some(fault),
                fault => return Err(fault),
            },
        };
        Ok(Self {
            chain,
            certified: Arc::new(certified.into()),
            servers,
            clients,
            facts,
            path: paths.cert.clone(),
            untimely,
        })
    }

    /// Whether the certificate names this address; without it the other node, which
    /// knows this one by it, would refuse it.
    ///
    /// # Errors
    /// The names it has instead.
    pub fn names(&self, address: IpAddr) -> Result<(), TlsFault> {
        let named = ParsedCertificate::try_from(&self.chain[0])
            .and_then(|parsed| verify_server_name(&parsed, &ServerName::from(address)));
        named.map_err(|_| TlsFault::OtherName {
            path: self.path.clone(),
            address,
            names: self.facts.names.clone(),
        })
    }

    /// When the certificate expires.
    pub fn expiry(&self) -> SystemTime {
        self.facts.not_after
    }

    /// What answers the peer with this address, and nobody else.
    pub fn acceptor(&self, peer: IpAddr) -> TlsAcceptor {
        let verifier = verify::OnlyPeer::new(Arc::clone(&self.clients), peer);
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&TLS13])
            .expect("ring has suites of TLS 1.3")
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::clone(&self.certified) as _);
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        TlsAcceptor::from(Arc::new(config))
    }

    /// What calls a peer, whose address is given to `connect` as the server's name.
    pub fn connector(&self) -> TlsConnector {
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&TLS13])
            .expect("ring has suites of TLS 1.3")
            .with_webpki_verifier(Arc::clone(&self.servers))
            .with_client_cert_resolver(Arc::clone(&self.certified) as _);
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        config.resumption = Resumption::disabled();
        TlsConnector::from(Arc::new(config))
    }
}

/// Never the key.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("path", &self.path)
            .field("facts", &self.facts)
            .finish_non_exhaustive()
    }
}

/// The CAs of the file.
fn roots(paths: &Paths) -> Result<RootCertStore, TlsFault> {
    let mut roots = RootCertStore::empty();
    for authority in files::certificates(File::Ca, &paths.ca)? {
        roots.add(authority).map_err(|error| TlsFault::Unusable {
            file: File::Ca,
            path: paths.ca.clone(),
            why: error.to_string(),
        })?;
    }
    Ok(roots)
}

/// Judges a node's own certificate as its peer will, in both roles.
fn judge(
    chain: &[CertificateDer<'static>],
    roots: &RootCertStore,
    provider: &CryptoProvider,
    clients: &dyn ClientCertVerifier,
) -> Result<(), Error> {
    let now = UnixTime::now();
    let algorithms = provider.signature_verification_algorithms.all;
    let parsed = ParsedCertificate::try_from(&chain[0])?;
    verify_server_cert_signed_by_trust_anchor(&parsed, roots, &chain[1..], now, algorithms)?;
    clients.verify_client_cert(&chain[0], &chain[1..], now)?;
    Ok(())
}

/// The verifiers' word as ours.
fn unfit(paths: &Paths, facts: &Facts, error: &Error) -> TlsFault {
    let path = paths.cert.clone();
    match error {
        Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => TlsFault::Expired {
            path,
            not_after: facts.not_after,
        },
        Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => TlsFault::NotYetValid {
            path,
            not_before: facts.not_before,
        },
        Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => TlsFault::OtherCa {
            cert: path,
            ca: paths.ca.clone(),
        },
        other => TlsFault::Unusable {
            file: File::Certificate,
            path,
            why: other.to_string(),
        },
    }
}

#[cfg(test)]
mod tests;
