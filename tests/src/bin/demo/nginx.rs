//! nginx on a backend, with a folder of its own: nothing of the host's own
//! nginx is read, written or disturbed.

use std::{
    fs::{self, File},
    net::{SocketAddr, TcpStream},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use tests::netns::{Host, wait_until};

/// How long a start may take.
const BOUND: Duration = Duration::from_secs(10);

/// A web server that answers its host's name and the client it sees. Dropped,
/// it ends.
pub(crate) struct Nginx {
    /// The host it runs on.
    pub(crate) host: Host,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    folder: PathBuf,
    child: Option<Child>,
}

impl Nginx {
    /// Starts it, and waits until it answers; its files go below `folder`.
    pub(crate) fn start(host: &Host, address: SocketAddr, folder: &Path) -> Result<Self> {
        let folder = folder.join(format!("nginx-{}", host.name));
        fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let text = configuration(&host.name, address, &folder);
        fs::write(folder.join("nginx.conf"), text)
            .with_context(|| format!("cannot write into {}", folder.display()))?;
        let mut nginx = Self {
            host: host.clone(),
            address,
            folder,
            child: None,
        };
        nginx.restart()?;
        Ok(nginx)
    }

    /// Its process, while it runs.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Kills it with no chance to say goodbye; the kernel ends its connections.
    pub(crate) fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("this nginx does not run")?;
        child.kill().context("cannot kill nginx")?;
        child.wait().context("cannot wait for nginx's end")?;
        Ok(())
    }

    /// Starts it (again), and waits until it takes connections.
    pub(crate) fn restart(&mut self) -> Result<()> {
        let errors = self.folder.join("error.log");
        let said = File::create(self.folder.join("stderr"))
            .with_context(|| format!("cannot write into {}", self.folder.display()))?;
        let child = self
            .host
            .command("nginx")
            .arg("-p")
            .arg(&self.folder)
            .arg("-c")
            .arg(self.folder.join("nginx.conf"))
            .arg("-e")
            .arg(&errors)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(said)
            // Ctrl-C is for the demonstration, which then ends it in order.
            .process_group(0)
            .spawn()
            .context("cannot run nginx through nsenter")?;
        let child = self.child.insert(child);
        let (name, address) = (&self.host.name, self.address);
        wait_until(
            &format!("nginx on {name} takes connections"),
            BOUND,
            || match child.try_wait()? {
                Some(status) => bail!(
                    "nginx on {name} ended ({status}): {}",
                    fs::read_to_string(&errors).unwrap_or_default().trim()
                ),
                None => Ok(self.host.enter(|| TcpStream::connect(address)).is_ok()),
            },
        )
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        if self.child.is_some() {
            // It may have ended by itself.
            let _ = self.kill();
        }
    }
}

/// One process in the foreground, so that one process id is all of it.
fn configuration(name: &str, address: SocketAddr, folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "daemon off;
master_process off;
pid {folder}/pid;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    default_type text/plain;
    keepalive_timeout 1h;
    keepalive_requests 1000000;
    server {{
        listen {address};
        location / {{ return 200 \"{name} $remote_addr:$remote_port\"; }}
    }}
}}
"
    )
}
