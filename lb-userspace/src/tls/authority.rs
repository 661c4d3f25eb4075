//! A small CA of one's own, and the certificates it issues: pure, but for the random
//! numbers of keys and the time, which is given.
//!
//! Keys are ECDSA on P-256, which everything understands. A serial number is the first
//! 20 bytes of a hash over the new key, with the sign bit clear (RFC 5280, section
//! 4.1.2.2): unique, and nothing to keep count of. Certificates begin an hour before they
//! are made, so that a node whose clock is behind can use them at once, and none outlives
//! its CA.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use humantime::format_rfc3339_seconds;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, Error, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData as _, SanType,
};
use rustls::pki_types::ServerName;
use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

/// A day.
pub const DAY: Duration = Duration::from_secs(24 * 3600);

/// How long a CA is valid.
const AUTHORITY_DAYS: u32 = 3_650;

/// How far behind a node's clock may be.
const BEFORE: Duration = Duration::from_secs(3600);

/// A certificate and its key, as PEM.
pub struct Made {
    /// The certificate.
    pub certificate: String,
    /// Its key: secret.
    pub key: String,
    /// Until when it is valid.
    pub not_after: SystemTime,
}

/// A node as its certificate names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Its name, which is a host name too.
    name: String,
    /// Its addresses; at least one.
    pub addresses: Vec<IpAddr>,
}

impl Named {
    /// A node of this name and these addresses, if the name is fit for a certificate
    /// and for a folder: a host name, in letters, digits, dots and dashes.
    pub fn new(name: &str, addresses: Vec<IpAddr>) -> Option<Self> {
        let host = matches!(ServerName::try_from(name), Ok(ServerName::DnsName(_)));
        let plain = !name.starts_with(['.', '-']) && !name.ends_with('.');
        (host && plain && !addresses.is_empty()).then(|| Self {
            name: name.to_owned(),
            addresses,
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// One that can issue certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    not_after: SystemTime,
}

impl Authority {
    /// Makes one, which may issue certificates of nodes and of nothing that issues more.
    ///
    /// # Errors
    /// If no key can be made, for want of random numbers.
    pub fn make(now: SystemTime) -> Result<(Self, Made), Error> {
        let not_after = whole_seconds(now + AUTHORITY_DAYS * DAY);
        let today = format_rfc3339_seconds(now).to_string();
        let mut params = CertificateParams::default();
        params.distinguished_name = called(&format!("Fulcrum CA of {}", &today[..10]));
        params.not_before = (now - BEFORE).into();
        params.not_after = not_after.into();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate()?;
        let made = Made {
            certificate: params.self_signed(&key)?.pem(),
            key: key.serialize_pem(),
            not_after,
        };
        let issuer = Issuer::new(params, key);
        Ok((Self { issuer, not_after }, made))
    }

    /// One that was made before. Gives none if the key is not the certificate's.
    ///
    /// # Errors
    /// If one of them cannot be used.
    pub(super) fn of(
        certificate: &CertificateDer<'_>,
        key: &str,
        not_after: SystemTime,
    ) -> Result<Option<Self>, Error> {
        let key = KeyPair::from_pem(key)?;
        let (_, parsed) =
            X509Certificate::from_der(certificate).map_err(|_| Error::CouldNotParseCertificate)?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Ok(None);
        }
        let issuer = Issuer::from_ca_cert_der(certificate, key)?;
        Ok(Some(Self { issuer, not_after }))
    }

    /// Until when it is valid, and at the longest what it issues.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Issues a node's certificate for so many days, for answering and for calling.
    ///
    /// # Errors
    /// If no key can be made, for want of random numbers.
    pub fn issue(&self, node: &Named, now: SystemTime, days: u32) -> Result<Made, Error> {
        let not_after = whole_seconds(now + days * DAY).min(self.not_after);
        let mut params = CertificateParams::default();
        params.distinguished_name = called(&node.name);
        params.not_before = (now - BEFORE).into();
        params.not_after = not_after.into();
        let addresses = node.addresses.iter().copied().map(SanType::IpAddress);
        params.subject_alt_names = vec![SanType::DnsName(Ia5String::try_from(node.name.as_str())?)];
        params.subject_alt_names.extend(addresses);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        Ok(Made {
            certificate: params.signed_by(&key, &self.issuer)?.pem(),
            key: key.serialize_pem(),
            not_after,
        })
    }
}

fn called(name: &str) -> DistinguishedName {
    let mut called = DistinguishedName::new();
    called.push(DnType::CommonName, name);
    called
}

/// What a certificate can say of a time.
fn whole_seconds(time: SystemTime) -> SystemTime {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    let seconds = since.map_or(0, |since| since.as_secs());
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}
