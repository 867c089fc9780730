//! What is written into certificates: names, usages, dates. Everything but the public key.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyUsagePurpose, SanType, SerialNumber,
};

use super::{Names, Validity};
use crate::domain::InstanceId;
use crate::domain::SpiffeId;
use crate::domain::TrustDomain;

/// A member's certificate: SPIFFE X.509-SVID section 4, plus the DNS names that clients in other
/// languages verify. Without a subject: the URI SAN is the name.
pub(super) fn leaf(
    id: &SpiffeId,
    instance: Option<&InstanceId>,
    life: Validity,
    names: Names,
) -> Result<CertificateParams, rcgen::Error> {
    let mut params = dated(life);
    params.subject_alt_names = vec![SanType::URI(id.to_string().try_into()?)];
    let signed = instance.map(|instance| id.member.instance_dns_name(instance));
    for name in signed.into_iter().chain([id.member.dns_name()]) {
        params
            .subject_alt_names
            .push(SanType::DnsName(name.try_into()?));
    }
    if names == Names::Development {
        params.subject_alt_names.extend([
            SanType::DnsName("localhost".try_into()?),
            SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            SanType::IpAddress(IpAddr::V6(Ipv6Addr::LOCALHOST)),
        ]);
    }
    // Written out: rcgen leaves basicConstraints away from other certificates than a CA's.
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    Ok(params)
}

/// A CA's certificate that may have `below` CAs between itself and a member.
pub(super) fn authority(
    domain: &TrustDomain,
    role: &str,
    below: u8,
    life: Validity,
) -> Result<CertificateParams, rcgen::Error> {
    let mut params = dated(life);
    let name = format!("attache {role} of {domain}");
    // X.520 bounds a common name to 64 characters.
    let name: String = name.chars().take(64).collect();
    params.distinguished_name.push(DnType::CommonName, name);
    let uri = format!("spiffe://{domain}");
    params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn dated(life: Validity) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = life.not_before.into();
    params.not_after = life.not_after.into();
    params.use_authority_key_identifier_extension = true;
    let mut serial: [u8; 16] = rand::random();
    // Positive and of full length (RFC 5280 section 4.1.2.2), still 126 random bits.
    serial[0] = (serial[0] & 0x7f) | 0x40;
    params.serial_number = Some(SerialNumber::from(serial.to_vec()));
    params
}
