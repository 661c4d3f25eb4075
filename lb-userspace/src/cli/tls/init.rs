//! `lb tls init`: a CA and certificates for people who have none.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::{anyhow, bail};
use clap::Args;
use humantime::format_rfc3339_seconds;
use serde::Serialize;

use super::remaining;
use crate::cli::output::{Cell, Column, Screen, Table};
use crate::cli::{Json, refused};
use crate::config::value;
use crate::tls::authority::Named;
use crate::tls::folder::Folder;

/// The port in the lines for the configuration.
const PORT: u16 = 9444;

/// Make a small CA, and a certificate and key for each node
///
/// Into DIR go ca.crt and ca.key, and for each node NODE/node.crt, NODE/node.key and
/// NODE/ca.crt, which belong on that node. The nodes know each other by the ADDRESSes
/// in their certificates: give those that stand in [ha.sync] as listen and peer. A CA
/// that is in DIR is used, never replaced. ca.key is needed for no more than to add
/// and renew nodes: keep it off the balancers.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  lb tls init lb-a=10.0.0.2 lb-b=10.0.0.3            a CA, and certificates for two nodes
  lb tls init lb-a=10.0.0.2,fd00::2 lb-b=10.0.0.3,fd00::3
  lb tls init --renew --days 90 lb-a=10.0.0.2        another certificate for one of them")]
pub(in crate::cli) struct Init {
    /// A node's name, and the addresses by which the other node knows it
    #[arg(value_name = "NODE=ADDRESS[,ADDRESS]", required = true)]
    nodes: Vec<String>,
    /// Where the files go
    #[arg(short, long, value_name = "DIR", default_value = "tls")]
    directory: PathBuf,
    /// How long the nodes' certificates are valid; the CA is for ten years
    #[arg(long, value_name = "N", default_value_t = 825)]
    days: u32,
    /// Give nodes that have a certificate another one, with another key
    #[arg(long)]
    renew: bool,
    #[command(flatten)]
    json: Json,
}

/// What was made.
#[derive(Debug, Serialize)]
struct Made {
    ca: Ca,
    nodes: Vec<Node>,
    #[serde(skip)]
    renewed: bool,
}

#[derive(Debug, Serialize)]
struct Ca {
    certificate: PathBuf,
    key: PathBuf,
    /// Whether it was made, rather than used.
    made: bool,
    not_after: String,
}

#[derive(Debug, Serialize)]
struct Node {
    name: String,
    addresses: Vec<IpAddr>,
    certificate: PathBuf,
    key: PathBuf,
    ca: PathBuf,
    not_after: String,
    #[serde(skip)]
    until: SystemTime,
}

impl Init {
    pub(super) fn obey(self, screen: &mut Screen) -> anyhow::Result<()> {
        if !(1..=3_650).contains(&self.days) {
            bail!("--days must be 1 to 3650, not {}", self.days);
        }
        let nodes = nodes(&self.nodes)?;
        let now = SystemTime::now();
        let folder = Folder::open(&self.directory, &nodes, self.renew, now)?;
        let mut made = Made {
            ca: Ca {
                certificate: folder.certificate(),
                key: folder.key(),
                made: folder.fresh,
                not_after: format_rfc3339_seconds(folder.authority().not_after()).to_string(),
            },
            nodes: Vec::new(),
            renewed: self.renew,
        };
        for node in nodes {
            let (paths, until) = folder.issue(&node, now, self.days)?;
            made.nodes.push(Node {
                name: node.name().to_owned(),
                addresses: node.addresses,
                certificate: paths.cert,
                key: paths.key,
                ca: paths.ca,
                not_after: format_rfc3339_seconds(until).to_string(),
                until,
            });
        }
        Ok(screen.result(self.json, &made, |made, width| text(made, now, width))?)
    }
}

/// The nodes of the command line: each name and each address once.
fn nodes(written: &[String]) -> anyhow::Result<Vec<Named>> {
    let mut nodes: Vec<Named> = Vec::new();
    let mut owners = BTreeMap::new();
    for text in written {
        let Some((name, addresses)) = text.split_once('=') else {
            bail!("\"{text}\" names no address: write NODE=ADDRESS, such as lb-a=10.0.0.2");
        };
        let parsed = addresses
            .split(',')
            .map(|text| value::host("ADDRESS", text));
        let addresses: Vec<IpAddr> = parsed
            .collect::<Result<_, _>>()
            .map_err(|fault| refused(&fault))?;
        for &address in &addresses {
            if let Some(owner) = owners.insert(address, name) {
                bail!(
                    "the address {address} is given to {owner} and to {name}: each has one node, once"
                );
            }
        }
        let node = Named::new(name, addresses).ok_or_else(|| {
            anyhow!("\"{name}\" cannot be a node's name here: it is a host name, of letters, digits, dots and dashes")
        })?;
        if nodes.iter().any(|other| other.name() == node.name()) {
            bail!("the node {name} is given twice: write its addresses with commas between them");
        }
        nodes.push(node);
    }
    Ok(nodes)
}

fn text(made: &Made, now: SystemTime, width: Option<usize>) -> String {
    let ca = &made.ca;
    let (certificate, key) = (ca.certificate.display(), ca.key.display());
    let day = &ca.not_after[..10];
    let mut text = if ca.made {
        format!("Made a CA, {certificate} with {key}, valid until {day}.\n\n")
    } else {
        format!("Used the CA {certificate}, valid until {day}.\n\n")
    };
    let mut table =
        Table::new(["NODE", "CERTIFICATE", "UNTIL", "EXPIRES", "ADDRESSES"].map(Column::Left));
    for node in &made.nodes {
        let (style, left) = remaining(node.until, now);
        let addresses: Vec<String> = node.addresses.iter().map(ToString::to_string).collect();
        table.row([
            node.name.as_str().into(),
            node.certificate.display().to_string().into(),
            node.not_after[..10].to_owned().into(),
            Cell::new(style, left),
            addresses.join(", ").into(),
        ]);
    }
    text += &table.render(width);
    text += "\nCopy each node's three files to /etc/lb/tls on that node, with their modes:\n\n";
    for Node {
        name, certificate, ..
    } in &made.nodes
    {
        let folder = certificate.parent().unwrap_or(certificate).display();
        text += &format!("  scp -p {folder}/* root@{name}:/etc/lb/tls/\n");
    }
    text += &format!(
        "\nKeep {key} secret and off the nodes: who has it can pretend to be any of them.\n"
    );
    if made.renewed {
        text += "A running node takes up renewed files at its next connection.\n";
    } else {
        text += &configuration(&made.nodes);
    }
    text
}

/// The lines for the nodes' configurations.
fn configuration(nodes: &[Node]) -> String {
    let mut text = "\nIn /etc/lb/lb.toml, with a section [ha]:\n".to_owned();
    for (place, node) in nodes.iter().enumerate() {
        let mut own = node.addresses.iter();
        let (listen, peer) = match nodes {
            // The nodes of a pair hear each other by one family.
            [_, _] => {
                let others = &nodes[1 - place].addresses;
                let pair = own.find_map(|own| {
                    let peer = others.iter().find(|peer| peer.is_ipv4() == own.is_ipv4());
                    peer.map(|peer| (*own, Some(*peer)))
                });
                pair.unwrap_or((node.addresses[0], None))
            }
            _ => (node.addresses[0], None),
        };
        let at = |address| SocketAddr::new(address, PORT).to_string();
        let peer = peer.map_or_else(|| format!("ADDRESS:{PORT}"), at);
        let (name, listen) = (&node.name, at(listen));
        text += &format!(
            "
[ha.sync]                          # on {name}
listen = \"{listen}\"
peer = \"{peer}\"
cert = \"tls/node.crt\"
key = \"tls/node.key\"
ca = \"tls/ca.crt\"
"
        );
    }
    text
}
