//! Does the backend accept a TCP connection?
//!
//! The connection is cut at once with a reset (`SO_LINGER` of zero) instead of
//! being closed in turn. The end that closes first keeps the connection in
//! TIME_WAIT for a minute: with a thousand backends probed every second that
//! would be sixty thousand dead sockets on the balancer, or on the backends
//! were they made to close first. A reset leaves nothing on either end, and a
//! server that never sent or read a byte has nothing to lose by it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::net::TcpSocket;
use tokio::time;

use super::ProbeError;

/// Opens a connection to `address` and cuts it; gives how long the handshake took.
pub async fn probe(address: SocketAddr, timeout: Duration) -> Result<Duration, ProbeError> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }
    .map_err(ProbeError::NotMade)?;
    socket.set_zero_linger().map_err(ProbeError::NotMade)?;
    let started = Instant::now();
    match time::timeout(timeout, socket.connect(address)).await {
        Ok(Ok(_cut_when_dropped)) => Ok(started.elapsed()),
        Ok(Err(error)) => Err(ProbeError::from_connect(error, timeout)),
        Err(_elapsed) => Err(ProbeError::Silent(timeout)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Read};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    const GENEROUS: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_listener_passes_over_both_families() {
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(host).expect("loopback can be bound");
            let address = listener
                .local_addr()
                .expect("a bound socket has an address");
            let took = probe(address, GENEROUS).await.expect("it listens");
            assert!(took < GENEROUS);
        }
    }

    #[tokio::test]
    async fn the_connection_ends_in_a_reset_so_nothing_waits_on_either_side() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback can be bound");
        let address = listener
            .local_addr()
            .expect("a bound socket has an address");
        probe(address, GENEROUS).await.expect("it listens");
        let (mut accepted, _) = listener.accept().expect("the probe is in the queue");
        let error = accepted
            .read(&mut [0])
            .expect_err("a reset is an error, an orderly end is not");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn a_closed_port_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback can be bound");
        let address = listener
            .local_addr()
            .expect("a bound socket has an address");
        drop(listener);
        let error = probe(address, GENEROUS).await.expect_err("nobody listens");
        assert!(error.judges());
        assert_eq!(
            error.to_string(),
            "connection refused: nothing listens on that port"
        );
    }

    #[tokio::test]
    async fn silence_ends_with_the_timeout_and_names_it() {
        // A full queue of connections: the kernel drops further SYNs.
        let listener = rustix::net::socket(
            rustix::net::AddressFamily::INET,
            rustix::net::SocketType::STREAM,
            None,
        )
        .expect("a socket");
        let loopback: SocketAddr = "127.0.0.1:0".parse().expect("an address");
        rustix::net::bind(&listener, &loopback).expect("loopback can be bound");
        rustix::net::listen(&listener, 0).expect("it can listen");
        let listener = TcpListener::from(listener);
        let address = listener
            .local_addr()
            .expect("a bound socket has an address");
        let mut queued = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
            queued.push(stream);
            assert!(queued.len() < 16, "a queue of none does not take 16");
        }
        let error = probe(address, Duration::from_millis(50))
            .await
            .expect_err("nobody answers");
        assert!(error.judges());
        assert_eq!(error.to_string(), "no answer within 50ms");
    }

    #[tokio::test]
    async fn what_this_host_cannot_do_does_not_judge_the_backend() {
        // A link-local address without its interface cannot be connected to.
        let address: SocketAddr = "[fe80::1]:80".parse().expect("an address");
        let error = probe(address, GENEROUS)
            .await
            .expect_err("no interface given");
        assert!(!error.judges(), "{error}");
        assert!(
            error
                .to_string()
                .starts_with("the probe could not be made on this host: ")
        );
    }

    #[test]
    fn the_kernels_errors_become_sentences() {
        let table = [
            (
                113,
                true,
                "no route to host: nobody answers for that address, or a router rejects it",
            ),
            (
                101,
                true,
                "network unreachable: this host has no route to that address",
            ),
            (110, true, "no answer within 1s 500ms"),
            (
                104,
                true,
                "connection reset by the backend, or by a firewall on the way",
            ),
            (
                24,
                false,
                "the probe could not be made on this host: Too many open files (os error 24)",
            ),
        ];
        for (errno, judges, sentence) in table {
            let error = ProbeError::from_connect(
                io::Error::from_raw_os_error(errno),
                Duration::from_millis(1500),
            );
            assert_eq!(error.to_string(), sentence);
            assert_eq!(error.judges(), judges, "{sentence}");
        }
    }
}
