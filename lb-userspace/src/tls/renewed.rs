//! An identity whose files may be renewed while it is used.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use log::{error, info, warn};

use super::{Identity, Paths, TlsFault};

/// The identity of the files as they are now: looked at whenever it is asked for, which
/// is at each connection, so that renewed files need no restart and no reload. While the
/// files are no good (a renewal that is half done, or went wrong) the last good ones
/// stand, and each fault is warned of once.
#[derive(Debug)]
pub struct Renewed {
    paths: Paths,
    /// What the certificate must name, if that is known.
    address: Option<IpAddr>,
    held: Mutex<Held>,
}

#[derive(Debug)]
struct Held {
    identity: Arc<Identity>,
    /// The files that it was read from.
    stamps: [Option<Stamp>; 3],
    /// What was warned of last.
    fault: Option<TlsFault>,
}

/// By which a file that was written or replaced is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    mode: u32,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Renewed {
    /// Reads the files; `listen` is where this node is called, which its certificate
    /// must name unless that is any of its addresses.
    ///
    /// # Errors
    /// Why they are no identity.
    pub fn open(paths: Paths, listen: IpAddr) -> Result<Self, TlsFault> {
        let opened = Self::open_untimely(paths, listen)?;
        let untimely = opened.now().untimely.clone();
        untimely.map_or(Ok(opened), Err)
    }

    /// The same, but the certificate's time may be over, which is warned of: a balancer
    /// does not stay away for it. The peer refuses it until it is renewed.
    ///
    /// # Errors
    /// Why the files are no identity.
    pub fn open_untimely(paths: Paths, listen: IpAddr) -> Result<Self, TlsFault> {
        let address = (!listen.is_unspecified()).then_some(listen);
        // Before they are read: what is written meanwhile is noticed the next time.
        let stamps = stamps(&paths);
        let identity = Identity::load(&paths)?;
        named(&identity, address)?;
        if let Some(fault) = &identity.untimely {
            error!(
                "{fault}; until then the other node refuses this one, and no connection goes over to it"
            );
        }
        let identity = Arc::new(identity);
        let held = Mutex::new(Held {
            identity,
            stamps,
            fault: None,
        });
        Ok(Self {
            paths,
            address,
            held,
        })
    }

    /// The identity of the files now, or of the last good ones.
    pub fn now(&self) -> Arc<Identity> {
        // Each change of what is held is a single assignment, so it is never half made.
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let stamps = stamps(&self.paths);
        if held.stamps != stamps {
            match read(&self.paths, self.address) {
                Ok(identity) => {
                    info!("took up the certificate {}", self.paths.cert.display());
                    *held = Held {
                        identity: Arc::new(identity),
                        stamps,
                        fault: None,
                    };
                }
                Err(fault) if held.fault.as_ref() != Some(&fault) => {
                    warn!("{fault}; the certificate read before stays in use");
                    held.fault = Some(fault);
                }
                Err(_) => {}
            }
        }
        Arc::clone(&held.identity)
    }

    /// When the certificate expires that is in use.
    pub fn expiry(&self) -> SystemTime {
        self.now().expiry()
    }
}

fn read(paths: &Paths, address: Option<IpAddr>) -> Result<Identity, TlsFault> {
    let identity = Identity::read(paths)?;
    named(&identity, address)?;
    Ok(identity)
}

fn named(identity: &Identity, address: Option<IpAddr>) -> Result<(), TlsFault> {
    address.map_or(Ok(()), |address| identity.names(address))
}

fn stamps(paths: &Paths) -> [Option<Stamp>; 3] {
    [&paths.cert, &paths.key, &paths.ca].map(|path| {
        let found = fs::metadata(path).ok()?;
        Some(Stamp {
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            mode: found.mode(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    })
}
