//! Certificates of a pair: a root, and `a` and `b` with a DNS name and a SPIFFE id each.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};

use super::write_key;

/// Writes `ca.pem`, and `NAME.pem`, `NAME.key` and both in `NAME.both` for `a` and `b`; the
/// directory.
pub fn make(dir: &Path) -> io::Result<PathBuf> {
    fs::create_dir_all(dir)?;
    if dir.join("b.both").exists() {
        return Ok(dir.to_owned());
    }
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "root");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().map_err(io::Error::other)?;
    let root = CertifiedIssuer::self_signed(params, key).map_err(io::Error::other)?;
    fs::write(dir.join("ca.pem"), root.pem())?;
    for name in ["a", "b"] {
        let (chain, key) = leaf(name, &root).map_err(io::Error::other)?;
        fs::write(dir.join(format!("{name}.pem")), &chain)?;
        write_key(&dir.join(format!("{name}.key")), &key)?;
        write_key(&dir.join(format!("{name}.both")), &(chain + &key))?;
    }
    Ok(dir.to_owned())
}

fn leaf(name: &str, root: &CertifiedIssuer<'_, KeyPair>) -> Result<(String, String), rcgen::Error> {
    let mut params = CertificateParams::new(vec!["localhost".to_owned()])?;
    params.distinguished_name.push(DnType::CommonName, name);
    let id = format!("spiffe://mesh.local/agent/{name}");
    params.subject_alt_names.push(SanType::URI(id.try_into()?));
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let key = KeyPair::generate()?;
    let leaf = params.signed_by(&key, root)?;
    Ok((leaf.pem(), key.serialize_pem()))
}
