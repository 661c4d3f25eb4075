//! The command line's side of the control socket: HTTP/1 over a Unix socket.
//!
//! One request, one connection: the command line asks seldom, and a daemon
//! that was replaced in between is then no special case. What comes back is
//! bounded in size and in time, and every way to fail is a sentence of its own.

use std::fmt::{self, Write as _};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::types::{Events, Refused};

/// The largest answer that is read.
pub const MAX_ANSWER_BYTES: usize = 64 << 20;

/// How long an answer may take.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// How long an answer may take for which the flow table is read, be it only to
/// count.
pub const PATIENCE_FOR_FLOWS: Duration = Duration::from_secs(60);

/// The daemon behind a control socket.
#[derive(Clone, Debug)]
pub struct Client {
    control: PathBuf,
}

/// What is asked for: a path and a query, encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    encoded: String,
    has_query: bool,
}

/// Why there is no answer, or not the one that was hoped for.
#[derive(Debug, Error)]
pub enum ClientError {
    /// No socket, or nobody behind it.
    #[error(
        "no daemon answers on {}: is `lb run` running? (--control names another socket)",
        .control.display()
    )]
    NoDaemon {
        /// The socket.
        control: PathBuf,
    },
    /// The socket is not for this user.
    #[error(
        "no permission to use {}: run it as root, or as a member of the socket's group",
        .control.display()
    )]
    NotAllowed {
        /// The socket.
        control: PathBuf,
    },
    /// The socket could not be used for another reason.
    #[error("cannot connect to {}: {source}; is it the daemon's control socket?", .control.display())]
    Connect {
        /// The socket.
        control: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The connection ended, or what came was not HTTP.
    #[error(
        "the daemon on {} gave no proper answer ({source}): did it stop just now? See its log",
        .control.display()
    )]
    Broken {
        /// The socket.
        control: PathBuf,
        /// What HTTP said.
        source: hyper::Error,
    },
    /// No answer in time.
    #[error(
        "the daemon on {} did not answer within {} s{}; see its log",
        .control.display(),
        .limit.as_secs(),
        if *.changing { ", and may or may not have made the change" } else { "" }
    )]
    Late {
        /// The socket.
        control: PathBuf,
        /// How long was waited.
        limit: Duration,
        /// Whether a change was asked for.
        changing: bool,
    },
    /// The answer is larger than [`MAX_ANSWER_BYTES`].
    #[error("the daemon's answer is larger than {} MiB: ask for less, as by --limit", MAX_ANSWER_BYTES >> 20)]
    TooLarge,
    /// The daemon said no; these are its words.
    #[error("{0}")]
    Refused(String),
    /// The answer is of another form than this program knows.
    #[error(
        "the answer to {asked} is not understood ({why}): is the daemon of another version than this `lb`?"
    )]
    NotUnderstood {
        /// What was asked.
        asked: String,
        /// What is wrong with it.
        why: String,
    },
}

impl Client {
    /// The daemon behind the socket at this path; nothing is opened yet.
    pub fn new(control: impl Into<PathBuf>) -> Self {
        Self {
            control: control.into(),
        }
    }

    /// Reads something.
    pub async fn get<T: DeserializeOwned>(&self, resource: &Resource) -> Result<T, ClientError> {
        self.get_within(PATIENCE, resource).await
    }

    /// Reads something that may take that long to put together.
    pub async fn get_within<T: DeserializeOwned>(
        &self,
        limit: Duration,
        resource: &Resource,
    ) -> Result<T, ClientError> {
        self.ask(Method::GET, resource, Bytes::new(), limit).await
    }

    /// Reads events: those after a number, for which the daemon is let wait if
    /// there are none yet, or without a number the last ones.
    pub async fn events(
        &self,
        after: Option<u64>,
        limit: usize,
        wait: Duration,
    ) -> Result<Events, ClientError> {
        let resource = Resource::new(["events"])
            .with("after", after)
            .with("limit", Some(limit))
            .with("wait", Some(wait.as_secs()).filter(|&seconds| seconds > 0));
        self.get_within(wait + PATIENCE, &resource).await
    }

    /// Sets something.
    pub async fn put<T: DeserializeOwned>(
        &self,
        resource: &Resource,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.ask(Method::PUT, resource, json(body), PATIENCE).await
    }

    /// Adds or starts something; an empty body is `&()`, JSON's `null`.
    pub async fn post<T: DeserializeOwned>(
        &self,
        resource: &Resource,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.ask(Method::POST, resource, json(body), PATIENCE).await
    }

    /// Removes something.
    pub async fn delete<T: DeserializeOwned>(&self, resource: &Resource) -> Result<T, ClientError> {
        self.ask(Method::DELETE, resource, Bytes::new(), PATIENCE)
            .await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        resource: &Resource,
        body: Bytes,
        limit: Duration,
    ) -> Result<T, ClientError> {
        let asked = format!("{method} {resource}");
        let changing = method != Method::GET;
        let exchange = self.exchange(request(method, resource, body));
        let (status, answer) =
            timeout(limit, exchange)
                .await
                .map_err(|_elapsed| ClientError::Late {
                    control: self.control.clone(),
                    limit,
                    changing,
                })??;
        understand(asked, status, &answer)
    }

    async fn exchange(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let broken = |source| ClientError::Broken {
            control: self.control.clone(),
            source,
        };
        let stream = UnixStream::connect(&self.control)
            .await
            .map_err(|error| unreachable_because(&self.control, error))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        let answer = async {
            let response = sender.send_request(request).await.map_err(broken)?;
            let status = response.status();
            Ok((status, self.bounded_body(response).await?))
        };
        // The connection moves the bytes while the answer is awaited; it ends
        // first only if it fails, and then the answer says why.
        tokio::pin!(answer);
        tokio::select! {
            answer = &mut answer => answer,
            _ended = connection => answer.await,
        }
    }

    async fn bounded_body(&self, response: Response<Incoming>) -> Result<Bytes, ClientError> {
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES)
            .collect()
            .await;
        match body {
            Ok(collected) => Ok(collected.to_bytes()),
            Err(error) => match error.downcast::<hyper::Error>() {
                Ok(source) => Err(ClientError::Broken {
                    control: self.control.clone(),
                    source: *source,
                }),
                // The only other thing that goes wrong with a bounded body.
                Err(_length_limit) => Err(ClientError::TooLarge),
            },
        }
    }
}

fn json(body: &impl Serialize) -> Bytes {
    serde_json::to_vec(body)
        .expect("our own types have a JSON form")
        .into()
}

fn request(method: Method, resource: &Resource, body: Bytes) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = method;
    *request.uri_mut() = resource
        .encoded
        .parse()
        .expect("an encoded resource is a URI");
    let headers = request.headers_mut();
    // Required by HTTP/1.1 (RFC 9112, section 3.2); a Unix socket has no host.
    headers.insert(HOST, HeaderValue::from_static("localhost"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    request
}

fn understand<T: DeserializeOwned>(
    asked: String,
    status: StatusCode,
    answer: &[u8],
) -> Result<T, ClientError> {
    if !status.is_success() {
        return Err(match serde_json::from_slice::<Refused>(answer) {
            Ok(refused) => ClientError::Refused(refused.error),
            Err(_) => ClientError::NotUnderstood {
                asked,
                why: status.to_string(),
            },
        });
    }
    serde_json::from_slice(answer).map_err(|error| ClientError::NotUnderstood {
        asked,
        why: error.to_string(),
    })
}

fn unreachable_because(control: &Path, source: io::Error) -> ClientError {
    let control = control.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            ClientError::NoDaemon { control }
        }
        io::ErrorKind::PermissionDenied => ClientError::NotAllowed { control },
        _ => ClientError::Connect { control, source },
    }
}

impl Resource {
    /// `/v1/` and these parts, each encoded, with slashes between.
    pub fn new<'part>(parts: impl IntoIterator<Item = &'part str>) -> Self {
        let mut encoded = "/v1".to_owned();
        for part in parts {
            encoded.push('/');
            encode(part, &mut encoded);
        }
        Self {
            encoded,
            has_query: false,
        }
    }

    /// With a condition, if there is one.
    #[must_use]
    pub fn with(mut self, name: &str, value: Option<impl fmt::Display>) -> Self {
        if let Some(value) = value {
            self.encoded.push(if self.has_query { '&' } else { '?' });
            self.has_query = true;
            encode(name, &mut self.encoded);
            self.encoded.push('=');
            encode(&value.to_string(), &mut self.encoded);
        }
        self
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.encoded)
    }
}

/// Percent-encoding of all but the unreserved characters (RFC 3986, section 2.3).
fn encode(text: &str, into: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            into.push(char::from(byte));
        } else {
            write!(into, "%{byte:02X}").expect("a string takes whatever is written");
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixListener;

    use super::*;

    #[test]
    fn names_cannot_leave_their_place_in_the_path() {
        let resource = Resource::new(["services", "a/b ?#%", "é"]).with("limit", Some(3));
        assert_eq!(
            resource.to_string(),
            "/v1/services/a%2Fb%20%3F%23%25/%C3%A9?limit=3"
        );
    }

    #[test]
    fn conditions_that_are_not_there_are_not_sent() {
        let flows = Resource::new(["flows"])
            .with("service", None::<&str>)
            .with("backend", Some("a&b"))
            .with("limit", Some(1));
        assert_eq!(flows.to_string(), "/v1/flows?backend=a%26b&limit=1");
    }

    /// What a client makes of a daemon that says this and hangs up.
    async fn asked_of(answer: &'static [u8]) -> Result<u32, ClientError> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let control = folder.path().join("lb.sock");
        let listener = UnixListener::bind(&control).expect("a socket");
        let daemon = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(answer).await;
        });
        let result = Client::new(&control).get(&Resource::new(["status"])).await;
        daemon.await.expect("the daemon ends");
        result
    }

    #[tokio::test]
    async fn an_answer_is_read() {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n42";
        assert_eq!(asked_of(answer).await.expect("an answer"), 42);
        let until_closed = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n42";
        assert_eq!(asked_of(until_closed).await.expect("an answer"), 42);
    }

    #[tokio::test]
    async fn a_refusal_is_passed_on_in_its_own_words() {
        let answer = b"HTTP/1.1 409 Conflict\r\ncontent-length: 14\r\n\r\n{\"error\":\"no\"}";
        let error = asked_of(answer).await.expect_err("a refusal");
        assert_eq!(error.to_string(), "no");
    }

    #[tokio::test]
    async fn other_answers_are_not_understood() {
        for answer in [
            &b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"[..],
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
        ] {
            let error = asked_of(answer).await.expect_err("no answer");
            assert!(
                matches!(error, ClientError::NotUnderstood { .. }),
                "{error}"
            );
            assert!(
                error
                    .to_string()
                    .starts_with("the answer to GET /v1/status is not")
            );
        }
    }

    #[tokio::test]
    async fn a_daemon_that_hangs_up_is_told_from_none() {
        for answer in [&b""[..], b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n4"] {
            let error = asked_of(answer).await.expect_err("no answer");
            assert!(matches!(error, ClientError::Broken { .. }), "{error}");
        }
        let folder = tempfile::tempdir().expect("a temporary folder");
        let control = folder.path().join("none");
        let error = Client::new(&control)
            .get::<u32>(&Resource::new(["status"]))
            .await
            .expect_err("nobody");
        assert_eq!(
            error.to_string(),
            format!(
                "no daemon answers on {}: is `lb run` running? (--control names another socket)",
                control.display()
            )
        );
    }

    #[tokio::test]
    async fn an_answer_without_end_is_not_read_to_its_end() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let control = folder.path().join("lb.sock");
        let listener = UnixListener::bind(&control).expect("a socket");
        let daemon = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            // An answer before the question would be another fault.
            let mut request = [0; 1024];
            assert!(stream.read(&mut request).await.expect("a request") > 0);
            let head = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n";
            let mut written = stream.write_all(head).await;
            while written.is_ok() {
                written = stream.write_all(&[b' '; 1 << 16]).await;
            }
        });
        let client = Client::new(&control);
        let error = client.get::<u32>(&Resource::new(["status"])).await;
        assert!(matches!(error, Err(ClientError::TooLarge)), "{error:?}");
        daemon.await.expect("the daemon is cut off");
    }

    #[tokio::test]
    async fn a_silent_daemon_is_not_waited_for_without_end() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let control = folder.path().join("lb.sock");
        let _silent = UnixListener::bind(&control).expect("a socket");
        let limit = Duration::from_millis(20);
        let error = Client::new(&control)
            .get_within::<u32>(limit, &Resource::new(["status"]))
            .await
            .expect_err("no answer");
        assert!(matches!(error, ClientError::Late { .. }), "{error}");
    }
}
