//! Reads a member out of an X.509 certificate. Does not judge who signed it: `verify` does.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA256, digest};
use x509_parser::prelude::{ASN1Time, FromDer, GeneralName, X509Certificate};

use crate::domain::InstanceId;
use crate::domain::Member;
use crate::domain::SpiffeId;
use crate::domain::spiffe::SpiffeError;
use crate::identity::peer::Peer;

/// Why a certificate names no member.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Not an X.509 certificate in DER.
    #[error("not an X.509 certificate")]
    Unreadable,
    /// A CA's certificate is not a member's.
    #[error("the certificate is a CA's, not a member's")]
    IsCa,
    /// SPIFFE X.509-SVID section 5: exactly one URI SAN.
    #[error("the certificate has {0} URI names; a member's has exactly one")]
    UriCount(usize),
    /// The URI SAN is nobody.
    #[error(transparent)]
    Spiffe(#[from] SpiffeError),
    /// More than one DNS SAN signs an instance.
    #[error("the certificate names more than one instance")]
    Instances,
}

/// The member that a certificate names.
///
/// # Errors
/// When the certificate is not shaped as a member's.
pub fn peer_of(der: &[u8]) -> Result<Peer, CertificateError> {
    let certificate = parse(der)?;
    if certificate.is_ca() {
        return Err(CertificateError::IsCa);
    }
    let names = certificate
        .subject_alternative_name()
        .map_err(|_| CertificateError::Unreadable)?
        .map(|extension| &extension.value.general_names[..])
        .unwrap_or_default();
    let uris: Vec<&str> = names.iter().filter_map(uri).collect();
    let [only] = uris[..] else {
        return Err(CertificateError::UriCount(uris.len()));
    };
    let id: SpiffeId = only.parse()?;
    Ok(Peer {
        instance: instance_of(&id.member, names)?,
        id,
        not_before: wall(certificate.validity().not_before)?,
        not_after: wall(certificate.validity().not_after)?,
        serial: hex(certificate.raw_serial()),
        key: sha256(certificate.public_key().raw),
    })
}

/// SHA-256 of a certificate's public key (SPKI): what a join string pins.
///
/// # Errors
/// When it is not a certificate.
pub fn key_pin(der: &[u8]) -> Result<[u8; 32], CertificateError> {
    Ok(sha256(parse(der)?.public_key().raw))
}

/// A certificate's public key, as SPKI in DER.
pub(super) fn public_key(der: &[u8]) -> Result<Vec<u8>, CertificateError> {
    Ok(parse(der)?.public_key().raw.to_vec())
}

/// Start and end of a certificate's life.
pub(super) fn validity(der: &[u8]) -> Result<(SystemTime, SystemTime), CertificateError> {
    let certificate = parse(der)?;
    let validity = certificate.validity();
    Ok((wall(validity.not_before)?, wall(validity.not_after)?))
}

/// SHA-256.
pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut sum = [0; 32];
    sum.copy_from_slice(digest(&SHA256, bytes).as_ref());
    sum
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, CertificateError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) | Err(_) => Err(CertificateError::Unreadable),
    }
}

fn uri<'a>(name: &GeneralName<'a>) -> Option<&'a str> {
    if let GeneralName::URI(text) = name {
        Some(text)
    } else {
        None
    }
}

fn instance_of(
    member: &Member,
    names: &[GeneralName<'_>],
) -> Result<Option<InstanceId>, CertificateError> {
    if !member.has_instances() {
        return Ok(None);
    }
    let mut found = names.iter().filter_map(|name| {
        if let GeneralName::DNSName(text) = name {
            member.instance_of(text)
        } else {
            None
        }
    });
    let first = found.next();
    match found.next() {
        Some(_) => Err(CertificateError::Instances),
        None => Ok(first),
    }
}

fn wall(at: ASN1Time) -> Result<SystemTime, CertificateError> {
    let seconds = u64::try_from(at.timestamp()).map_err(|_| CertificateError::Unreadable)?;
    Ok(UNIX_EPOCH + Duration::from_secs(seconds))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, IsCa, KeyPair, SanType};

    use super::*;

    const BILLING: &str = "spiffe://attache.local/ns/default/agent/billing";

    fn made(uris: &[&str], dns: &[&str], ca: bool) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for uri in uris {
            let name = (*uri).try_into().unwrap();
            params.subject_alt_names.push(SanType::URI(name));
        }
        for name in dns {
            let name = (*name).try_into().unwrap();
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        if ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn exactly_one_uri_names_the_member() {
        let peer = peer_of(&made(
            &[BILLING],
            &["i1.billing.default.agent.attache", "localhost"],
            false,
        ))
        .unwrap();
        assert_eq!(peer.id.to_string(), BILLING);
        assert_eq!(peer.instance, Some("i1".parse().unwrap()));
        type Check = fn(&CertificateError) -> bool;
        let table: [(&[&str], &[&str], bool, Check); 6] = [
            (&[], &["localhost"], false, |e| {
                *e == CertificateError::UriCount(0)
            }),
            (&[BILLING, BILLING], &[], false, |e| {
                *e == CertificateError::UriCount(2)
            }),
            (&["https://attache.local/"], &[], false, |e| {
                matches!(e, CertificateError::Spiffe(_))
            }),
            (&["spiffe://attache.local"], &[], false, |e| {
                matches!(e, CertificateError::Spiffe(_))
            }),
            (&[BILLING], &[], true, |e| *e == CertificateError::IsCa),
            (
                &[BILLING],
                &[
                    "a.billing.default.agent.attache",
                    "b.billing.default.agent.attache",
                ],
                false,
                |e| *e == CertificateError::Instances,
            ),
        ];
        for (uris, dns, ca, expected) in table {
            let error = peer_of(&made(uris, dns, ca)).unwrap_err();
            assert!(expected(&error), "{uris:?} {dns:?} {ca}: {error}");
        }
    }

    #[test]
    fn another_members_dns_name_signs_no_instance() {
        let peer = peer_of(&made(
            &[BILLING],
            &["i1.research.default.agent.attache"],
            false,
        ))
        .unwrap();
        assert_eq!(peer.instance, None);
        let mut cut = made(&[BILLING], &[], false);
        cut.push(0);
        assert_eq!(peer_of(&cut).unwrap_err(), CertificateError::Unreadable);
        assert_eq!(peer_of(&[]).unwrap_err(), CertificateError::Unreadable);
    }
}
