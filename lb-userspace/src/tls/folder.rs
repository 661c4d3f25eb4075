//! The folder where a CA and the files of its nodes are kept.
//!
//! ```text
//! DIR/ca.crt  DIR/ca.key  DIR/NODE/node.crt  DIR/NODE/node.key  DIR/NODE/ca.crt
//! ```
//! A file is written under another name, with its final mode from the first moment, and
//! gets its own when it is whole: nobody ever sees a part of one, or a key with another
//! mode. A CA is never replaced; that two are made at once the file system prevents.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::authority::{Authority, Made, Named};
use super::{Facts, File, Paths, TlsFault, files};

/// Who may do what with a certificate, and with a key.
const PUBLIC: u32 = 0o644;
const SECRET: u32 = 0o600;

/// Why nothing was made.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the sentences say what the fields are")]
pub enum FolderFault {
    #[error(transparent)]
    Tls(#[from] TlsFault),
    #[error(
        "there is {} but no {}: a CA needs both; bring the other back, or name an empty folder with --directory",
        there.display(),
        missing.display()
    )]
    HalfAuthority { there: PathBuf, missing: PathBuf },
    #[error("the certificate {} is not a CA's: it can issue no others", path.display())]
    NoAuthority { path: PathBuf },
    #[error(
        "{} has a certificate already ({}): --renew gives it another one, with another key",
        name,
        path.display()
    )]
    Exists { name: String, path: PathBuf },
    #[error("cannot write {}: {why}", path.display())]
    Write { path: PathBuf, why: io::Error },
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
}

/// The folder, and the CA in it.
pub struct Folder {
    path: PathBuf,
    authority: Authority,
    /// Whether the CA was made just now.
    pub fresh: bool,
}

impl Folder {
    /// Uses the CA of the folder, or makes one if there is none. That none of `nodes` has
    /// a certificate there is made sure of first, unless they are renewed.
    ///
    /// # Errors
    /// Why the CA cannot be used or made, or which node has a certificate. Then nothing
    /// was made.
    pub fn open(
        path: &Path,
        nodes: &[Named],
        renew: bool,
        now: SystemTime,
    ) -> Result<Self, FolderFault> {
        for node in nodes {
            let cert = files_of(path, node).cert;
            if !renew && cert.symlink_metadata().is_ok() {
                let name = node.name().to_owned();
                return Err(FolderFault::Exists { name, path: cert });
            }
        }
        let (cert, key) = (path.join("ca.crt"), path.join("ca.key"));
        let there = |path: &Path| path.symlink_metadata().is_ok();
        let (authority, fresh) = match (there(&cert), there(&key)) {
            (true, true) => (load(&cert, &key, now)?, false),
            (false, false) => (make(path, &cert, &key, now)?, true),
            (true, false) => {
                let (there, missing) = (cert, key);
                return Err(FolderFault::HalfAuthority { there, missing });
            }
            (false, true) => {
                let (there, missing) = (key, cert);
                return Err(FolderFault::HalfAuthority { there, missing });
            }
        };
        Ok(Self {
            path: path.to_owned(),
            authority,
            fresh,
        })
    }

    /// The CA's certificate.
    pub fn certificate(&self) -> PathBuf {
        self.path.join("ca.crt")
    }

    /// The CA's key.
    pub fn key(&self) -> PathBuf {
        self.path.join("ca.key")
    }

    /// The CA.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Makes the files of a node, or makes them anew.
    ///
    /// # Errors
    /// If they cannot be written; each is then the old one or the new one.
    pub fn issue(
        &self,
        node: &Named,
        now: SystemTime,
        days: u32,
    ) -> Result<(Paths, SystemTime), FolderFault> {
        let Made {
            certificate,
            key,
            not_after,
        } = self.authority.issue(node, now, days)?;
        let authority = read(&self.certificate())?;
        let paths = files_of(&self.path, node);
        make_folder(&self.path.join(node.name()))?;
        let written = [
            Draft::write(&paths.key, SECRET, key.as_bytes())?,
            Draft::write(&paths.cert, PUBLIC, certificate.as_bytes())?,
            Draft::write(&paths.ca, PUBLIC, &authority)?,
        ];
        for draft in written {
            draft.publish(RenameFlags::empty())?;
        }
        Ok((paths, not_after))
    }
}

/// Where a node's files are.
fn files_of(folder: &Path, node: &Named) -> Paths {
    let folder = folder.join(node.name());
    Paths {
        cert: folder.join("node.crt"),
        key: folder.join("node.key"),
        ca: folder.join("ca.crt"),
    }
}

/// The CA that is there.
fn load(cert: &Path, key: &Path, now: SystemTime) -> Result<Authority, FolderFault> {
    let certificates = files::certificates(File::Ca, cert)?;
    let facts = Facts::of(File::Ca, cert, &certificates[0])?;
    if !facts.authority {
        let path = cert.to_owned();
        return Err(FolderFault::NoAuthority { path });
    }
    if facts.not_after <= now {
        let (path, not_after) = (cert.to_owned(), facts.not_after);
        return Err(TlsFault::Expired { path, not_after }.into());
    }
    let pem = files::key_text(key)?;
    let unusable = |error: rcgen::Error| TlsFault::Unusable {
        file: File::Key,
        path: key.to_owned(),
        why: error.to_string(),
    };
    let authority = Authority::of(&certificates[0], &pem, facts.not_after).map_err(unusable)?;
    authority.ok_or_else(|| {
        let (key, cert) = (key.to_owned(), cert.to_owned());
        TlsFault::OtherKey { key, cert }.into()
    })
}

/// A CA where there is none.
fn make(folder: &Path, cert: &Path, key: &Path, now: SystemTime) -> Result<Authority, FolderFault> {
    let (authority, made) = Authority::make(now)?;
    make_folder(folder)?;
    let secret = Draft::write(key, SECRET, made.key.as_bytes())?;
    let public = Draft::write(cert, PUBLIC, made.certificate.as_bytes())?;
    secret.publish(RenameFlags::NOREPLACE)?;
    public.publish(RenameFlags::NOREPLACE)?;
    Ok(authority)
}

/// A folder that its owner alone may look into, if it is not there.
fn make_folder(path: &Path) -> Result<(), FolderFault> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|why| write_fault(path, why))
}

fn read(path: &Path) -> Result<Vec<u8>, FolderFault> {
    Ok(files::read(File::Ca, path)?.0)
}

fn write_fault(path: &Path, why: io::Error) -> FolderFault {
    FolderFault::Write {
        path: path.to_owned(),
        why,
    }
}

/// A file that is written, but not yet where it belongs; one that is dropped is gone.
struct Draft {
    draft: PathBuf,
    place: PathBuf,
    published: bool,
}

impl Draft {
    fn write(place: &Path, mode: u32, bytes: &[u8]) -> Result<Self, FolderFault> {
        let mut name = place.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.new", std::process::id()));
        let draft = place.with_file_name(name);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&draft)
            .map_err(|why| write_fault(&draft, why))?;
        let this = Self {
            draft,
            place: place.to_owned(),
            published: false,
        };
        let written = file.write_all(bytes).and_then(|()| file.sync_all());
        written.map_err(|why| write_fault(place, why))?;
        Ok(this)
    }

    fn publish(mut self, flags: RenameFlags) -> Result<(), FolderFault> {
        renameat_with(CWD, &self.draft, CWD, &self.place, flags)
            .map_err(|why| write_fault(&self.place, why.into()))?;
        self.published = true;
        if let Some(folder) = self.place.parent() {
            // A name is lasting once its folder is written.
            let kept = fs::File::open(folder).and_then(|folder| folder.sync_all());
            kept.map_err(|why| write_fault(&self.place, why))?;
        }
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.published {
            // That it failed has been said.
            let _ = fs::remove_file(&self.draft);
        }
    }
}
