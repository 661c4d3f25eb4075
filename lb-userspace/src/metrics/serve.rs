//! The listener: whoever reaches it may read, and can do nothing else.
//!
//! One connection carries one request without a body. It has [`PATIENCE`] for all of it,
//! and no more than [`MOST_AT_ONCE`] are looked after at a time; others wait in the
//! kernel's queue, whose length the kernel bounds.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use log::warn;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

/// The most connections that are looked after at a time.
pub const MOST_AT_ONCE: usize = 16;

/// How long a connection may take, from its first byte to its last.
const PATIENCE: Duration = Duration::from_secs(5);

/// The most bytes of a request's head.
const MOST_HEAD: usize = 16 << 10;

/// How long to wait when no connection can be accepted, for want of descriptors, say.
const PAUSE: Duration = Duration::from_millis(100);

/// Takes the address.
///
/// # Errors
/// If it cannot be had.
pub async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address} for [api] metrics_listen; is another program there?")
    })
}

/// Answers for ever; `scrape` makes the text, or says why there is none.
pub async fn serve<F, S>(listener: TcpListener, scrape: F)
where
    F: Fn() -> S + Clone + Send + Sync + 'static,
    S: Future<Output = anyhow::Result<String>> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(MOST_AT_ONCE));
    loop {
        // It is closed by nobody.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!("cannot accept a connection for /metrics: {error}");
                sleep(PAUSE).await;
                continue;
            }
        };
        let scrape = scrape.clone();
        tokio::spawn(async move {
            // One that is too slow, or breaks, is its client's loss.
            let _ = timeout(PATIENCE, attend(stream, scrape)).await;
            drop(place);
        });
    }
}

async fn attend<F, S>(stream: TcpStream, scrape: F) -> hyper::Result<()>
where
    F: Fn() -> S + Clone,
    S: Future<Output = anyhow::Result<String>>,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let scrape = scrape.clone();
        async move { Ok::<_, Infallible>(answer(&request, &scrape).await) }
    });
    http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(MOST_HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

async fn answer<F, S>(request: &Request<Incoming>, scrape: &F) -> Response<Full<Bytes>>
where
    F: Fn() -> S,
    S: Future<Output = anyhow::Result<String>>,
{
    if request.uri().path() != "/metrics" {
        return plain(
            StatusCode::NOT_FOUND,
            "there is nothing here but /metrics\n",
        );
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut refusal = plain(StatusCode::METHOD_NOT_ALLOWED, "metrics can only be read\n");
        let headers = refusal.headers_mut();
        headers.insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
        return refusal;
    }
    match scrape().await {
        Ok(text) => with_type(StatusCode::OK, super::CONTENT_TYPE, text),
        Err(error) => {
            warn!("cannot tell the metrics: {error:#}");
            let said = format!("cannot tell the metrics: {error:#}\n");
            with_type(StatusCode::INTERNAL_SERVER_ERROR, TEXT, said)
        }
    }
}

const TEXT: &str = "text/plain; charset=utf-8";

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    with_type(status, TEXT, text)
}

fn with_type(
    status: StatusCode,
    kind: &'static str,
    text: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    let kind = hyper::header::HeaderValue::from_static(kind);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
