//! PEM files, read with a bound.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::TlsFault;

/// The most bytes a file may have: a chain of ten certificates has a fiftieth.
const MOST_BYTES: u64 = 1 << 20;

/// Which of a node's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum File {
    /// `cert`
    Certificate,
    /// `key`
    Key,
    /// `ca`
    Ca,
}

impl fmt::Display for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Certificate => "certificate",
            Self::Key => "key",
            Self::Ca => "CA certificate",
        })
    }
}

/// All certificates of a file; at least one.
pub(super) fn certificates(
    file: File,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, TlsFault> {
    let (bytes, _) = read(file, path)?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let not_pem = || TlsFault::NotPem {
        file,
        path: path.to_owned(),
    };
    read.ok()
        .filter(|found| !found.is_empty())
        .ok_or_else(not_pem)
}

/// The key of a file that nobody but its owner may touch.
pub(super) fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsFault> {
    // What exactly is wrong could show a part of it.
    PrivateKeyDer::from_pem_slice(&secret(path)?).map_err(|_| no_key(path))
}

/// The same, as text.
pub(super) fn key_text(path: &Path) -> Result<String, TlsFault> {
    key(path)?;
    String::from_utf8(secret(path)?).map_err(|_| no_key(path))
}

fn secret(path: &Path) -> Result<Vec<u8>, TlsFault> {
    let (bytes, metadata) = read(File::Key, path)?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 == 0 {
        return Ok(bytes);
    }
    Err(TlsFault::Exposed {
        path: path.to_owned(),
        mode,
    })
}

fn no_key(path: &Path) -> TlsFault {
    TlsFault::NotPem {
        file: File::Key,
        path: path.to_owned(),
    }
}

/// What is in a file, and what the file is.
pub(super) fn read(file: File, path: &Path) -> Result<(Vec<u8>, fs::Metadata), TlsFault> {
    open_and_read(path).map_err(|error| TlsFault::Unreadable {
        file,
        path: path.to_owned(),
        why: match error.kind() {
            io::ErrorKind::NotFound => "there is no such file".into(),
            io::ErrorKind::PermissionDenied => "permission denied".into(),
            io::ErrorKind::IsADirectory => "it is a directory".into(),
            _ => error.to_string(),
        },
    })
}

fn open_and_read(path: &Path) -> io::Result<(Vec<u8>, fs::Metadata)> {
    // To open a pipe would wait for a writer.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if !metadata.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut bytes = Vec::new();
    file.take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(io::Error::other("it is larger than 1 MiB"));
    }
    Ok((bytes, metadata))
}
