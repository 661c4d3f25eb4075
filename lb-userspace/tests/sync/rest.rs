//! The collector on a node that follows another.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use lb_common::flow::{ANSWERED, ESTABLISHED};
use lb_userspace::collector::Collector;
use lb_userspace::config::Timeouts;
use lb_userspace::host;

use super::peer::until;
use super::world::Node;

/// For how long a connection may be silent here.
const SILENT: Duration = Duration::from_secs(4);

#[tokio::test]
async fn silence_ends_no_connection_at_rest_and_counts_from_when_the_rest_ends() {
    let node = Node::new(1, 64, 0);
    // Last heard long ago, as far as this node knows.
    let place = node.begin_as(0, 1, 2_000, 0, ANSWERED | ESTABLISHED);
    let place = place.expect("there is room");
    let hertz = host::ticks_per_second();
    let long_ago = host::ticks_now(hertz).wrapping_sub(3_600 * hertz);
    lb_ebpf::connections::touch(&*node.table, place, long_ago);
    let half_open = node.begin_as(0, 2, 2_001, 0, 0).expect("there is room");
    lb_ebpf::connections::touch(&*node.table, half_open, long_ago);
    let timeouts = Timeouts {
        established: SILENT,
        ..Timeouts::DEFAULT
    };
    let table = Arc::clone(&node.table);
    let collector = Collector::start(table, timeouts, true).expect("it starts");
    // A handshake that was never finished goes all the same, so it has walked by.
    until("it has walked", || collector.census().removed == 1).await;
    until("it has walked again", || collector.census().removed == 0).await;
    assert_eq!(collector.census().established, 1);
    let ended = Instant::now();
    collector.resting().store(false, Ordering::SeqCst);
    until("it goes in the end", || node.facts().is_empty()).await;
    // A tick is a few milliseconds.
    assert!(ended.elapsed() > SILENT - Duration::from_millis(100));
}
