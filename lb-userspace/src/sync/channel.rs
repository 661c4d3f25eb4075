//! Messages over a stream of bytes, and what can be wrong with them.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_util::codec::{Framed, LengthDelimitedCodec, LengthDelimitedCodecError};

use super::board::Rejected;
use super::message::{Hello, LARGEST, Unreadable, read_hello, write_hello};
use crate::tls::Refused;

/// How often a node says how it is, at least.
pub const HEARTBEAT: Duration = Duration::from_millis(500);

/// Who says nothing for so long is gone.
pub const SILENCE: Duration = Duration::from_millis(3 * 500);

/// Why a session has ended, or did not begin.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The other one does what it must not.
    #[error("{1}")]
    Rejected(Rejected, String),
    /// It has ended it.
    #[error("the other node closed the connection")]
    Closed,
    /// This node has ended it.
    #[error("this node ended it")]
    Ended,
    /// There is no connection to it.
    #[error("cannot reach {0}: {1}")]
    Unreachable(SocketAddr, String),
    /// The connection itself.
    #[error("the connection broke: {0}")]
    Broken(io::Error),
}

impl Failure {
    /// For what it is counted, if it is.
    pub const fn rejected(&self) -> Option<Rejected> {
        match self {
            Self::Rejected(rejected, _) => Some(*rejected),
            Self::Closed | Self::Ended | Self::Unreachable(..) | Self::Broken(_) => None,
        }
    }

    pub(super) fn silent() -> Self {
        Self::Rejected(
            Rejected::Timeout,
            format!("nothing was heard for {} ms", SILENCE.as_millis()),
        )
    }
}

impl From<Unreadable> for Failure {
    fn from(unreadable: Unreadable) -> Self {
        let rejected = match unreadable {
            Unreadable::Protocol(_) => Rejected::Protocol,
            Unreadable::Truncated => Rejected::Truncated,
            Unreadable::Garbage => Rejected::Garbage,
        };
        Self::Rejected(rejected, unreadable.to_string())
    }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        let why = refused.to_string();
        let rejected = match refused {
            Refused::Broken(error) => return Self::Broken(error),
            Refused::NoCertificate
            | Refused::Expired
            | Refused::NotYetValid
            | Refused::OtherCa
            | Refused::OtherName
            | Refused::Certificate(_)
            | Refused::ByPeer(_) => Rejected::BadCertificate,
            Refused::OtherProtocol | Refused::NotTls(_) => Rejected::Protocol,
            Refused::Slow => Rejected::Timeout,
        };
        Self::Rejected(rejected, why)
    }
}

/// A stream on which messages go both ways.
pub struct Channel<S>(Framed<S, LengthDelimitedCodec>);

impl<S: AsyncRead + AsyncWrite + Unpin> Channel<S> {
    /// On this stream.
    pub fn new(stream: S) -> Self {
        let mut codec = LengthDelimitedCodec::builder();
        Self(codec.max_frame_length(LARGEST).new_framed(stream))
    }

    /// The next message. Nothing is lost if this is not waited for to its end.
    pub(super) async fn next(&mut self) -> Result<BytesMut, Failure> {
        match self.0.next().await {
            Some(Ok(bytes)) => Ok(bytes),
            Some(Err(error)) => Err(self.failure(error)),
            None => Err(Failure::Closed),
        }
    }

    /// Sends a message, in bounded time.
    pub(super) async fn send(&mut self, bytes: Vec<u8>) -> Result<(), Failure> {
        match timeout(SILENCE, self.0.send(Bytes::from(bytes))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.failure(error)),
            Err(_) => Err(Failure::Rejected(
                Rejected::Timeout,
                format!("nothing was taken for {} ms", SILENCE.as_millis()),
            )),
        }
    }

    /// Greets, and is greeted.
    pub async fn greet(&mut self, hello: &Hello) -> Result<Hello, Failure> {
        self.send(write_hello(hello)).await?;
        let bytes = timeout(SILENCE, self.next()).await;
        let theirs = read_hello(&bytes.map_err(|_| Failure::silent())??)?;
        if theirs.boot == hello.boot {
            let why = "it is this node itself: `ha.sync.peer` must be the other one's address";
            return Err(Failure::Rejected(Rejected::Protocol, why.to_owned()));
        }
        Ok(theirs)
    }

    fn failure(&self, error: io::Error) -> Failure {
        let is_codec = |cause: &(dyn std::error::Error + Send + Sync + 'static)| {
            cause.is::<LengthDelimitedCodecError>()
        };
        if error.get_ref().is_some_and(is_codec) {
            let why = format!("a message is longer than {LARGEST} bytes");
            Failure::Rejected(Rejected::Oversized, why)
        } else if !self.0.read_buffer().is_empty() {
            Unreadable::Truncated.into()
        } else {
            match Refused::from(error) {
                // Records that are not the next ones, or nobody's.
                Refused::NotTls(why) => {
                    Failure::Rejected(Rejected::Garbage, format!("it does not speak TLS: {why}"))
                }
                refused => refused.into(),
            }
        }
    }
}
