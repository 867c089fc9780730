//! The CA's files: `root.pem`, `root.key.pem` (may be kept elsewhere), `issuing.pem`, `ca.json`.
//!
//! `issuing.pem` holds certificate and key, so that one rename replaces both. `ca.json` is written
//! last: a directory without it holds no CA yet.

use std::{
    path::{Path, PathBuf},
    time::SystemTime,
};

use rcgen::{Issuer, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde::{Deserialize, Serialize};

use super::{AuthorityError, BACKDATE, ISSUING_LIFE, Issuing, ROOT_LIFE, Validity, shape};
use crate::domain::TrustDomain;
use crate::identity::certificate;
use crate::identity::files;

/// Whose names stand in members' certificates beside their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// Nobody's.
    Mesh,
    /// `localhost`, 127.0.0.1 and ::1 too: everything runs on one machine.
    Development,
}

/// What a directory holds.
pub(super) struct Opened {
    pub(super) domain: TrustDomain,
    pub(super) names: Names,
    pub(super) root: CertificateDer<'static>,
    pub(super) issuing: Issuing,
}

#[derive(Serialize, Deserialize)]
struct About {
    trust_domain: String,
    development: bool,
}

pub(super) fn exists(dir: &Path) -> bool {
    dir.join("ca.json").exists()
}

pub(super) fn create(
    dir: &Path,
    domain: &TrustDomain,
    names: Names,
    now: SystemTime,
) -> Result<(), AuthorityError> {
    if exists(dir) {
        return Err(AuthorityError::Exists(dir.to_path_buf()));
    }
    files::private_dir(dir)?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let life = Validity {
        not_before: now - BACKDATE,
        not_after: now + ROOT_LIFE,
    };
    let params = shape::authority(domain, "root", 1, life)?;
    let root = params.self_signed(&key)?;
    let secret = key.serialize_pem();
    files::replace(&root_key_path(dir), secret.as_bytes(), files::SECRET)?;
    files::replace(&root_path(dir), root.pem().as_bytes(), files::PUBLIC)?;
    issuing(dir, domain, &Issuer::new(params, key), now)?;
    let about = About {
        trust_domain: domain.to_string(),
        development: names == Names::Development,
    };
    let path = dir.join("ca.json");
    let text = serde_json::to_vec_pretty(&about);
    let text = text.map_err(|_| AuthorityError::Malformed(path.clone()))?;
    files::replace(&path, &text, files::PUBLIC)?;
    Ok(())
}

pub(super) fn open(dir: &Path) -> Result<Opened, AuthorityError> {
    let path = dir.join("ca.json");
    let malformed = || AuthorityError::Malformed(path.clone());
    let about: About = serde_json::from_str(&files::read(&path)?).map_err(|_| malformed())?;
    let names = if about.development {
        Names::Development
    } else {
        Names::Mesh
    };
    let root = certificate_in(&root_path(dir), &files::read(&root_path(dir))?)?;
    // Looked at here so that a key that others may read is noticed before it is needed.
    match files::read_secret(&root_key_path(dir)) {
        Err(error) if !error.is_absent() => return Err(error.into()),
        Ok(_) | Err(_) => {}
    }
    let text = files::read_secret(&issuing_path(dir))?;
    Ok(Opened {
        domain: about.trust_domain.parse().map_err(|_| malformed())?,
        names,
        root,
        issuing: read_issuing(dir, &text)?,
    })
}

/// A new issuing CA if the root's key is here.
pub(super) fn roll_over(
    dir: &Path,
    domain: &TrustDomain,
    root: &CertificateDer<'static>,
    now: SystemTime,
) -> Result<Option<Issuing>, AuthorityError> {
    let path = root_key_path(dir);
    let key = match files::read_secret(&path) {
        Ok(text) => KeyPair::from_pem(&text).map_err(|_| AuthorityError::Malformed(path))?,
        Err(error) if error.is_absent() => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let issuer = Issuer::from_ca_cert_der(root, key)?;
    issuing(dir, domain, &issuer, now).map(Some)
}

pub(super) fn root_path(dir: &Path) -> PathBuf {
    dir.join("root.pem")
}

fn root_key_path(dir: &Path) -> PathBuf {
    dir.join("root.key.pem")
}

fn issuing_path(dir: &Path) -> PathBuf {
    dir.join("issuing.pem")
}

/// Makes an issuing CA, and uses it as it was written.
fn issuing(
    dir: &Path,
    domain: &TrustDomain,
    root: &Issuer<'_, KeyPair>,
    now: SystemTime,
) -> Result<Issuing, AuthorityError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let life = Validity {
        not_before: now - BACKDATE,
        not_after: now + ISSUING_LIFE,
    };
    let params = shape::authority(domain, "issuing CA", 0, life)?;
    let certificate = params.signed_by(&key, root)?;
    let text = certificate.pem() + &key.serialize_pem();
    files::replace(&issuing_path(dir), text.as_bytes(), files::SECRET)?;
    read_issuing(dir, &text)
}

fn read_issuing(dir: &Path, text: &str) -> Result<Issuing, AuthorityError> {
    let path = issuing_path(dir);
    let certificate = certificate_in(&path, text)?;
    let key = text
        .find("-----BEGIN PRIVATE KEY-----")
        .map(|at| &text[at..]);
    let key = key.and_then(|text| KeyPair::from_pem(text).ok());
    let key = key.ok_or(AuthorityError::Malformed(path))?;
    let (not_before, not_after) = certificate::validity(&certificate)?;
    Ok(Issuing {
        issuer: Issuer::from_ca_cert_der(&certificate, key)?,
        certificate,
        life: Validity {
            not_before,
            not_after,
        },
    })
}

fn certificate_in(path: &Path, text: &str) -> Result<CertificateDer<'static>, AuthorityError> {
    let read = CertificateDer::from_pem_slice(text.as_bytes());
    read.map_err(|_| AuthorityError::Malformed(path.to_path_buf()))
}
