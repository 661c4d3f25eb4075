//! What a certificate says.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;
use x509_parser::time::ASN1Time;

use super::{File, TlsFault, files};

/// What a certificate says of itself; whether it is true the verifiers judge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Whose it is.
    pub subject: String,
    /// Who issued it.
    pub issuer: String,
    /// The host names and addresses it is for (subject alternative names).
    pub names: Vec<String>,
    /// Whether it may issue others.
    pub authority: bool,
    /// From when on it is valid.
    pub not_before: SystemTime,
    /// Until when.
    pub not_after: SystemTime,
}

impl Facts {
    /// Of each certificate in a PEM file, in its order.
    ///
    /// # Errors
    /// If there is none, or one cannot be read.
    pub fn read(path: &Path) -> Result<Vec<Self>, TlsFault> {
        let certificates = files::certificates(File::Certificate, path)?;
        let facts = certificates.iter();
        facts
            .map(|der| Self::of(File::Certificate, path, der))
            .collect()
    }

    /// Of one certificate of the file.
    pub(super) fn of(file: File, path: &Path, der: &[u8]) -> Result<Self, TlsFault> {
        let unusable = |why: String| TlsFault::Unusable {
            file,
            path: path.to_owned(),
            why,
        };
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|error| unusable(error.to_string()))?;
        let validity = certificate.validity();
        Ok(Self {
            subject: certificate.subject().to_string(),
            issuer: certificate.issuer().to_string(),
            names: names(&certificate),
            authority: certificate.is_ca(),
            not_before: time(validity.not_before),
            not_after: time(validity.not_after),
        })
    }
}

/// Host names and addresses; other kinds of names mean nothing here.
fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else {
        return Vec::new();
    };
    let names = extension.value.general_names.iter();
    names
        .filter_map(|name| match name {
            GeneralName::DNSName(host) => Some(host.escape_debug().to_string()),
            GeneralName::IPAddress(bytes) => address(bytes).map(|address| address.to_string()),
            _ => None,
        })
        .collect()
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(|bytes| Ipv4Addr::from(bytes).into());
    let v6 = || <[u8; 16]>::try_from(bytes).map(|bytes| Ipv6Addr::from(bytes).into());
    v4.or_else(|_| v6()).ok()
}

/// A time before 1970 is 1970.
fn time(time: ASN1Time) -> SystemTime {
    let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
    UNIX_EPOCH + Duration::from_secs(seconds)
}

/// The names in a sentence.
pub(super) fn listed(names: &[String]) -> String {
    if names.is_empty() {
        "nothing at all".into()
    } else {
        names.join(", ")
    }
}
