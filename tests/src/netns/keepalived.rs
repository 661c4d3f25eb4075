//! keepalived on a host: another implementation of VRRP, as the peer.

use std::fs::{self, OpenOptions};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};

use super::{Host, Net, wait_until};

/// How long it may take to end.
const BOUND: Duration = Duration::from_secs(30);

/// keepalived, with one virtual router of number 51 on `eth0`. Dropped, it is
/// killed.
pub struct Keepalived {
    host: Host,
    child: Option<Child>,
    folder: PathBuf,
}

impl Keepalived {
    /// Writes its configuration, and starts it. It speaks every 100 ms: to the group,
    /// or to `peer` alone.
    pub fn start(
        net: &Net,
        host: &Host,
        priority: u8,
        addresses: &[IpAddr],
        peer: Option<IpAddr>,
    ) -> Result<Self> {
        let folder = net.folder().join(format!("keepalived-{}", host.name));
        fs::create_dir_all(&folder)?;
        let of_family = |address: IpAddr| address.is_ipv4() == addresses[0].is_ipv4();
        let own = [IpAddr::V4(host.v4), IpAddr::V6(host.v6)];
        let own = own.into_iter().find(|&own| of_family(own));
        let unicast = match (peer, own) {
            (Some(peer), Some(own)) => {
                format!("unicast_src_ip {own}\n unicast_peer {{\n {peer}\n }}\n")
            }
            _ => String::new(),
        };
        let list: String = addresses
            .iter()
            .map(|address| format!("  {address} dev eth0\n"))
            .collect();
        let text = format!(
            "global_defs {{\n vrrp_version 3\n router_id {name}\n}}\n\
             vrrp_instance pair {{\n state BACKUP\n interface eth0\n virtual_router_id 51\n \
             priority {priority}\n advert_int 0.1\n {unicast}\n virtual_ipaddress {{\n{list} }}\n}}\n",
            name = host.name
        );
        fs::write(folder.join("keepalived.conf"), text)?;
        let mut keepalived = Self {
            host: host.clone(),
            child: None,
            folder,
        };
        keepalived.restart()?;
        Ok(keepalived)
    }

    /// Starts it (again).
    pub fn restart(&mut self) -> Result<()> {
        let file = |name: &str| self.folder.join(name);
        let mut log = OpenOptions::new();
        let log = log.create(true).append(true).open(file("log"))?;
        let child = self
            .host
            .command("keepalived")
            .args(["--vrrp", "--dont-fork", "--log-console", "--log-detail"])
            .arg("--use-file")
            .arg(file("keepalived.conf"))
            .arg("--pid")
            .arg(file("pid"))
            .arg("--vrrp_pid")
            .arg(file("vrrp.pid"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot run keepalived; it is in Debian's package of that name")?;
        self.child = Some(child);
        Ok(())
    }

    /// Asks it to end, and waits until it has.
    pub fn stop(&mut self) -> Result<()> {
        let mut child = self.child.take().context("keepalived does not run")?;
        kill_process(Pid::from_child(&child), Signal::TERM)?;
        wait_until("keepalived has ended", BOUND, || {
            Ok(child.try_wait()?.is_some())
        })
    }

    /// Kills both of its processes, with no chance to say goodbye.
    pub fn kill9(&mut self) -> Result<()> {
        let mut child = self.child.take().context("keepalived does not run")?;
        let speaker = fs::read_to_string(self.folder.join("vrrp.pid"))?;
        let speaker = speaker.trim().parse().ok().and_then(Pid::from_raw);
        kill_process(speaker.context("its process has a number")?, Signal::KILL)?;
        child.kill()?;
        child.wait()?;
        // Until somebody has waited for it, its speaker counts as alive.
        for name in ["pid", "vrrp.pid"] {
            fs::remove_file(self.folder.join(name))?;
        }
        Ok(())
    }

    /// What it has said.
    pub fn logged(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }
}

impl Drop for Keepalived {
    fn drop(&mut self) {
        if self.child.is_some() {
            // Its network is taken away with whatever is left.
            let _ = self.kill9();
        }
        if std::thread::panicking() {
            eprintln!(
                "the log of keepalived on {}:\n{}",
                self.host.name,
                self.logged()
            );
        }
    }
}
