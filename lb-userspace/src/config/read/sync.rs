//! `[ha.sync]`

use std::net::SocketAddr;

use crate::config::fault::Fault;
use crate::config::report::Found;
use crate::config::section::{At, Section};
use crate::config::{Ha, Service, Sync, keys, value};
use crate::tls::Paths;

/// The section, if there is one and nothing in it is wrong.
pub(super) fn sync(ha: &Section<'_>, found: &mut Found) -> Option<Sync> {
    let section = ha.section("sync", &keys::HA_SYNC, found)?;
    let listen = section.required(
        "listen",
        "`listen = \"10.0.0.2:9444\"`, an address of this node",
        found,
        |text| value::listening("listen", text),
    );
    let peer = section.required(
        "peer",
        "`peer = \"10.0.0.3:9444\"`, where the other node listens",
        found,
        |text| value::address("peer", text),
    );
    if let (Some(listen), Some(peer)) = (&listen, &peer) {
        apart(listen, peer, found);
    }
    let mut path =
        |key, example| section.required(key, example, found, |text| value::file(key, text));
    let cert = path(
        "cert",
        "`cert = \"tls/node.crt\"`, as `lb tls init` makes it",
    );
    let key = path("key", "`key = \"tls/node.key\"`, as `lb tls init` makes it");
    let ca = path("ca", "`ca = \"tls/ca.crt\"`, as `lb tls init` makes it");
    Some(Sync {
        listen: listen?.value,
        peer: peer?.value,
        files: Paths {
            cert: cert?.value,
            key: key?.value,
            ca: ca?.value,
        },
    })
}

/// Two nodes, which can reach each other.
fn apart(listen: &At<SocketAddr>, peer: &At<SocketAddr>, found: &mut Found) {
    let At {
        value: address,
        span,
    } = peer;
    if address.ip() == listen.value.ip() {
        let fault = Fault::OwnPeer { address: *address };
        found.add(span.clone(), fault);
    } else if address.is_ipv4() != listen.value.is_ipv4() {
        let fault = Fault::SyncOfTwoFamilies {
            listen: listen.value,
            peer: *address,
        };
        found.add(span.clone(), fault);
    }
}

/// What moves with the role is at the other node when it matters.
pub(super) fn stays(section: &Section<'_>, ha: &Ha, services: &[Service], found: &mut Found) {
    let Some(sync) = &ha.sync else { return };
    let protected = ha.protected(services);
    for (key, address) in [("listen", sync.listen.ip()), ("peer", sync.peer.ip())] {
        if protected.contains(&address) {
            let fault = Fault::MovesWithRole { key, address };
            found.add(section.value_span("sync"), fault);
        }
    }
}
