//! The interfaces of this host over rtnetlink: what there is, and word when it
//! changes.
//!
//! What the kernel says in a notification is not used: it may come late, come
//! in hundreds, or be lost when they are too many. A notification only means
//! "look again", many of them mean it once, and whoever looks reads the whole
//! list ([`Links::list`]). A bounded number of things is therefore ever waiting,
//! whatever happens to interfaces.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp,
    XdpAttached,
};
use thiserror::Error;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::dataplane::{Carried, Mode};
use crate::host::topology::{Kind, Link, Tag};

/// From the first notification to the look: an interface that is made comes
/// with several, and its maker may not be done with it.
const SETTLE: Duration = Duration::from_millis(50);

/// Before a connection that ended is opened again.
const REOPEN: Duration = Duration::from_secs(1);

/// Why interfaces could not be listed.
#[derive(Debug, Error)]
pub enum LinksError {
    /// No netlink socket.
    #[error("cannot speak to the kernel about interfaces (netlink): {0}")]
    Connect(#[source] io::Error),
    /// The list could not be read.
    #[error("cannot list the interfaces of this host: {0}")]
    List(String),
}

/// A netlink connection for interfaces; closed when dropped.
#[derive(Debug)]
pub struct Links {
    handle: rtnetlink::Handle,
    connection: JoinHandle<()>,
}

impl Drop for Links {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Links {
    /// Opens the connection, in the calling thread's network namespace
    /// (called within a tokio runtime).
    pub fn connect() -> Result<Self, LinksError> {
        let (connection, handle, _messages) =
            rtnetlink::new_connection().map_err(LinksError::Connect)?;
        let connection = tokio::spawn(connection);
        Ok(Self { handle, connection })
    }

    /// Every interface of this host.
    pub async fn list(&self) -> Result<Vec<Link>, LinksError> {
        let mut messages = self.handle.link().get().execute();
        let mut links = Vec::new();
        let failed = |error: rtnetlink::Error| LinksError::List(error.to_string());
        while let Some(message) = messages.try_next().await.map_err(failed)? {
            links.extend(link_from(&message));
        }
        Ok(links)
    }
}

/// Word of changes; ends when dropped.
#[derive(Debug)]
pub struct Watcher {
    changed: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watcher {
    /// Listens from now on, in the calling thread's network namespace.
    pub fn start() -> Result<Self, LinksError> {
        let changed = Arc::new(Notify::new());
        let first = open()?;
        let task = tokio::spawn(listen(first, Arc::clone(&changed)));
        Ok(Self { changed, task })
    }

    /// Waits until something changed since the last call. Nothing is lost if
    /// it is not waited for to the end.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}

struct Feed {
    connection: JoinHandle<()>,
    messages: Box<dyn futures_util::Stream<Item = ()> + Send + Unpin>,
}

fn open() -> Result<Feed, LinksError> {
    let (connection, _handle, messages) =
        rtnetlink::new_multicast_connection(&[MulticastGroup::Link])
            .map_err(LinksError::Connect)?;
    Ok(Feed {
        connection: tokio::spawn(connection),
        messages: Box::new(messages.map(drop)),
    })
}

/// Says so once for all messages that come together; one of them may be that
/// some were lost.
async fn listen(first: Feed, changed: Arc<Notify>) {
    let mut feed = first;
    loop {
        while feed.messages.next().await.is_some() {
            sleep(SETTLE).await;
            while feed.messages.next().now_or_never().flatten().is_some() {}
            changed.notify_one();
        }
        feed.connection.abort();
        log::warn!("the kernel's word of changes to interfaces ended; listening again");
        feed = loop {
            sleep(REOPEN).await;
            match open() {
                Ok(feed) => break feed,
                Err(error) => log::debug!("{error}"),
            }
        };
        // Whatever happened in between.
        changed.notify_one();
    }
}

/// `None` for a message that is not of an interface with a name.
fn link_from(message: &LinkMessage) -> Option<Link> {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: Kind::Plain,
        parent: None,
        master: None,
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        xdp: None,
    };
    let mut elsewhere = false;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Link(index) => link.parent = Some(*index),
            LinkAttribute::LinkNetNsId(_) => elsewhere = true,
            LinkAttribute::Controller(index) => link.master = Some(*index).filter(|&of| of != 0),
            LinkAttribute::LinkInfo(infos) => link.kind = kind(infos),
            LinkAttribute::Xdp(parts) => link.xdp = carried(parts),
            _ => {}
        }
    }
    if elsewhere {
        // The index is one of the other namespace.
        link.parent = None;
    }
    (!link.name.is_empty()).then_some(link)
}

fn kind(infos: &[LinkInfo]) -> Kind {
    let is = |kind: &InfoKind| {
        infos
            .iter()
            .any(|info| matches!(info, LinkInfo::Kind(of) if of == kind))
    };
    if is(&InfoKind::Bond) {
        Kind::Bond
    } else if is(&InfoKind::Bridge) {
        Kind::Bridge
    } else if is(&InfoKind::Vrf) {
        Kind::Vrf
    } else if is(&InfoKind::Vlan) {
        let mut tag = Tag {
            protocol: 0x8100,
            id: 0,
        };
        for info in infos {
            if let LinkInfo::Data(InfoData::Vlan(parts)) = info {
                for part in parts {
                    match part {
                        InfoVlan::Id(id) => tag.id = *id,
                        InfoVlan::Protocol(protocol) => tag.protocol = (*protocol).into(),
                        _ => {}
                    }
                }
            }
        }
        Kind::Vlan(tag)
    } else {
        Kind::Plain
    }
}

/// The program that the kernel says is attached.
fn carried(parts: &[LinkXdp]) -> Option<Carried> {
    let mode = parts.iter().find_map(|part| match part {
        LinkXdp::Attached(XdpAttached::SocketBuffer) => Some(Mode::Generic),
        LinkXdp::Attached(XdpAttached::None) => None,
        LinkXdp::Attached(_) => Some(Mode::Native),
        _ => None,
    })?;
    let program = parts.iter().find_map(|part| match part {
        LinkXdp::ProgId(number) => Some(*number),
        _ => None,
    });
    Some(Carried { mode, program })
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::link::VlanProtocol;

    use super::*;

    fn message(attributes: Vec<LinkAttribute>) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = 7;
        message.header.flags = LinkFlags::Up;
        message.attributes = attributes;
        message
    }

    #[test]
    fn a_vlan_interface_is_read_with_its_tag_and_the_nic_below() {
        let link = link_from(&message(vec![
            LinkAttribute::IfName("eth0.10".into()),
            LinkAttribute::Mtu(1500),
            LinkAttribute::Link(2),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Vlan),
                LinkInfo::Data(InfoData::Vlan(vec![
                    InfoVlan::Id(10),
                    InfoVlan::Protocol(VlanProtocol::Ieee8021Ad),
                ])),
            ]),
        ]))
        .expect("it has a name");
        assert_eq!(
            link.kind,
            Kind::Vlan(Tag {
                protocol: 0x88a8,
                id: 10
            })
        );
        assert_eq!((link.index, link.parent, link.up), (7, Some(2), true));
    }

    #[test]
    fn a_parent_in_another_namespace_is_none_of_ours() {
        let link = link_from(&message(vec![
            LinkAttribute::IfName("eth0".into()),
            LinkAttribute::Link(2),
            LinkAttribute::LinkNetNsId(0),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth)]),
        ]))
        .expect("it has a name");
        assert_eq!((link.kind, link.parent), (Kind::Plain, None));
        assert_eq!(link_from(&message(Vec::new())), None);
    }

    #[tokio::test]
    async fn the_list_has_the_loopback_interface() {
        let links = Links::connect().unwrap().list().await.unwrap();
        let lo = links.iter().find(|link| link.name == "lo").expect("it has");
        assert_eq!(lo.index, 1);
        assert_eq!(lo.kind, Kind::Plain);
    }
}
