use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

use super::*;

fn snapshot() -> Snapshot {
    let mut verdicts = vec![0; Verdict::ALL.len()];
    verdicts[Verdict::ForwardTx as usize] = 7;
    verdicts[Verdict::NoBackend as usize] = u64::MAX;
    let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    Snapshot {
        version: "1.2.3",
        flows: 5,
        flow_capacity: 1_000_000,
        verdicts,
        ha_state: "active",
        ha_transitions: Some(3),
        sync_lag: Some(Duration::from_millis(1_500)),
        certificates: vec![
            ("/etc/lb/tls/node.crt".into(), at(4_000_000_000)),
            ("odd \"name\"\n\\.crt".into(), at(0)),
        ],
    }
}

#[test]
fn every_figure_has_its_name() {
    let text = snapshot().render();
    for line in [
        "# TYPE lb_build info",
        "lb_build_info{version=\"1.2.3\"} 1",
        "# TYPE lb_flows gauge",
        "lb_flows 5",
        "lb_flow_capacity 1000000",
        "# TYPE lb_packets counter",
        "lb_packets_total{verdict=\"tx\",reason=\"forward_tx\"} 7",
        "lb_packets_total{verdict=\"drop\",reason=\"no_backend\"} 18446744073709551615",
        "lb_packets_total{verdict=\"pass\",reason=\"not_ip\"} 0",
        "lb_ha_state{state=\"active\"} 1",
        "lb_ha_state{state=\"backup\"} 0",
        "lb_ha_state{state=\"standalone\"} 0",
        "lb_ha_transitions_total 3",
        "lb_sync_lag_seconds 1.5",
        "lb_certificate_expiry_timestamp_seconds{file=\"/etc/lb/tls/node.crt\"} 4000000000",
        "lb_certificate_expiry_timestamp_seconds{file=\"odd \\\"name\\\"\\n\\\\.crt\"} 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}: {text}");
    }
    assert!(text.ends_with("# EOF\n"), "{text}");
    let packets = text
        .lines()
        .filter(|line| line.starts_with("lb_packets_total{"));
    assert_eq!(packets.count(), Verdict::ALL.len());
    let own = |line: &str| line.starts_with("lb_") || line.starts_with("# ");
    assert!(text.lines().all(own), "{text}");
}

#[test]
fn what_there_is_not_is_left_out() {
    let text = Snapshot {
        ha_state: STANDALONE,
        ha_transitions: None,
        sync_lag: None,
        certificates: Vec::new(),
        ..snapshot()
    }
    .render();
    assert!(
        text.contains("lb_ha_state{state=\"standalone\"} 1\n"),
        "{text}"
    );
    assert!(text.contains("lb_ha_state{state=\"active\"} 0\n"), "{text}");
    for absent in ["transitions", "certificate"] {
        assert!(!text.contains(absent), "{absent}: {text}");
    }
}

/// A listener that answers with this text.
fn server(text: Result<&'static str, &'static str>) -> (Runtime, SocketAddr) {
    let runtime = Runtime::new().unwrap();
    let listener = runtime
        .block_on(listen(([127, 0, 0, 1], 0).into()))
        .unwrap();
    let address = listener.local_addr().unwrap();
    runtime.spawn(serve(listener, move || async move {
        text.map(str::to_owned).map_err(anyhow::Error::msg)
    }));
    (runtime, address)
}

/// All that is answered until the connection ends.
fn answer(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    // What it does not read it resets.
    let _ = stream.read_to_string(&mut answer);
    answer
}

#[test]
fn a_scrape_is_answered_and_the_connection_ends() {
    let (_runtime, address) = server(Ok("lb_flows 5\n# EOF\n"));
    let text = answer(address, "GET /metrics HTTP/1.1\r\nHost: lb\r\n\r\n");
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
    assert!(
        text.contains(&format!("content-type: {CONTENT_TYPE}\r\n")),
        "{text}"
    );
    assert!(text.ends_with("\r\n\r\nlb_flows 5\n# EOF\n"), "{text}");
    let text = answer(address, "HEAD /metrics?x HTTP/1.1\r\nHost: lb\r\n\r\n");
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
    assert!(text.ends_with("\r\n\r\n"), "{text}");
}

#[test]
fn nothing_else_is_answered() {
    let (_runtime, address) = server(Ok("x"));
    let padding = "x".repeat(20_000);
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: lb\r\n\r\n", "404 Not Found"),
        (
            "GET /metrics/ HTTP/1.1\r\nHost: lb\r\n\r\n",
            "404 Not Found",
        ),
        (
            "DELETE /metrics HTTP/1.1\r\nHost: lb\r\n\r\n",
            "405 Method Not Allowed",
        ),
        (
            "POST /metrics HTTP/1.1\r\nHost: lb\r\nContent-Length: 1\r\n\r\nx",
            "405 Method Not Allowed",
        ),
        ("garbage\r\n\r\n", "400 Bad Request"),
        (
            &format!("GET /metrics HTTP/1.1\r\nX: {padding}\r\n\r\n"),
            "431 Request Header Fields Too Large",
        ),
    ] {
        let text = answer(address, request);
        assert!(
            text.starts_with(&format!("HTTP/1.1 {status}\r\n")),
            "{request}: {text}"
        );
    }
    let (_runtime, address) = server(Err("the kernel does not say"));
    let text = answer(address, "GET /metrics HTTP/1.1\r\nHost: lb\r\n\r\n");
    assert!(text.starts_with("HTTP/1.1 500 "), "{text}");
    assert!(
        text.ends_with("cannot tell the metrics: the kernel does not say\n"),
        "{text}"
    );
}

#[test]
fn silent_connections_neither_stay_nor_keep_others_out() {
    let (_runtime, address) = server(Ok("fine"));
    let began = Instant::now();
    let silent: Vec<TcpStream> = (0..2 * MOST_AT_ONCE)
        .map(|_| TcpStream::connect(address).unwrap())
        .collect();
    // The next one waits for those before it, and no longer.
    let text = answer(address, "GET /metrics HTTP/1.1\r\nHost: lb\r\n\r\n");
    assert!(text.ends_with("fine"), "{text}");
    assert!(began.elapsed() < Duration::from_secs(20));
    for mut stream in silent {
        stream.shutdown(Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.is_empty());
    }
}

#[test]
fn an_address_that_is_taken_is_told() {
    let (runtime, address) = server(Ok("x"));
    let error = runtime.block_on(listen(address)).unwrap_err();
    let expected =
        format!("cannot listen on {address} for [api] metrics_listen; is another program there?");
    assert_eq!(error.to_string(), expected);
}
