//! The handshake, in bounded time, and by what name it failed.
//!
//! In TLS 1.3 a client is done before the server has judged the client's certificate: a
//! server that refuses it is noticed by the client at its first read.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError, Error};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::{client, server};

use super::{Identity, PROTOCOL};

/// How long a handshake may take.
pub const HANDSHAKE: Duration = Duration::from_secs(5);

/// Why there is no channel to whoever is at the other end.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// It shows no certificate.
    #[error("it shows no certificate")]
    NoCertificate,
    /// Its certificate's time is over.
    #[error("its certificate has expired")]
    Expired,
    /// Its certificate's time has not begun.
    #[error("its certificate is not valid yet: are both clocks right?")]
    NotYetValid,
    /// Another CA's, or a forged one.
    #[error("its certificate is not issued by our CA")]
    OtherCa,
    /// Another holder of a certificate of our CA.
    #[error("its certificate does not name the peer's address")]
    OtherName,
    /// Anything else that the verifiers have against its certificate.
    #[error("its certificate is not acceptable: {0}")]
    Certificate(CertificateError),
    /// It judged ours.
    #[error("it refuses us: {0:?}")]
    ByPeer(AlertDescription),
    /// It speaks TLS, but not ours.
    #[error("it does not speak fulcrum-sync/1")]
    OtherProtocol,
    /// An older version, or no TLS at all.
    #[error("it does not speak TLS 1.3 as we do: {0}")]
    NotTls(Error),
    /// Too slow.
    #[error("the handshake took longer than {} s", HANDSHAKE.as_secs())]
    Slow,
    /// The connection itself.
    #[error("the connection broke: {0}")]
    Broken(io::Error),
}

impl Refused {
    /// The name by which it is counted.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::NoCertificate => "no-certificate",
            Self::Expired => "expired",
            Self::NotYetValid => "not-yet-valid",
            Self::OtherCa => "other-ca",
            Self::OtherName => "other-name",
            Self::Certificate(_) => "certificate",
            Self::ByPeer(_) => "by-peer",
            Self::OtherProtocol => "other-protocol",
            Self::NotTls(_) => "not-tls",
            Self::Slow => "slow",
            Self::Broken(_) => "broken",
        }
    }
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
        match cause {
            Some(Error::NoCertificatesPresented) => Self::NoCertificate,
            Some(Error::InvalidCertificate(fault)) => fault.clone().into(),
            Some(Error::AlertReceived(AlertDescription::NoApplicationProtocol))
            | Some(Error::NoApplicationProtocol) => Self::OtherProtocol,
            Some(Error::AlertReceived(alert)) => Self::ByPeer(*alert),
            Some(other) => Self::NotTls(other.clone()),
            None => Self::Broken(error),
        }
    }
}

impl From<CertificateError> for Refused {
    fn from(fault: CertificateError) -> Self {
        match fault {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                Self::NotYetValid
            }
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::OtherCa,
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Self::OtherName
            }
            other => Self::Certificate(other),
        }
    }
}

impl Identity {
    /// Answers whoever has connected, if it is the peer with this address.
    ///
    /// # Errors
    /// Why it is not, or that it takes too long.
    pub async fn accept<S>(&self, peer: IpAddr, stream: S) -> Result<server::TlsStream<S>, Refused>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let stream = within(self.acceptor(peer).accept(stream)).await?;
        ours(stream.get_ref().1.alpn_protocol())?;
        Ok(stream)
    }

    /// Speaks to whoever was connected to, if it is the peer with this address. Whether
    /// the peer accepts this node the first read tells.
    ///
    /// # Errors
    /// Why it is not, or that it takes too long.
    pub async fn connect<S>(&self, peer: IpAddr, stream: S) -> Result<client::TlsStream<S>, Refused>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = ServerName::from(peer);
        let stream = within(self.connector().connect(name, stream)).await?;
        ours(stream.get_ref().1.alpn_protocol())?;
        Ok(stream)
    }
}

async fn within<T>(handshake: impl Future<Output = io::Result<T>>) -> Result<T, Refused> {
    match timeout(HANDSHAKE, handshake).await {
        Ok(outcome) => Ok(outcome?),
        Err(_) => Err(Refused::Slow),
    }
}

/// One that names no protocol is let through by TLS.
fn ours(protocol: Option<&[u8]>) -> Result<(), Refused> {
    if protocol == Some(PROTOCOL) {
        Ok(())
    } else {
        Err(Refused::OtherProtocol)
    }
}
