//! The CA's files: `root.pem`, `root.key.pem` (may be kept elsewhere), `issuing.pem`, `ca.json`.
//!
//! `issuing.pem` holds certificate and key, so that one rename replaces both. `ca.json` is written
//! last: a directory without it holds no CA yet, and a rotation that it does not name has not
//! happened. The second root's files are `root-2.pem`, `root-2.key.pem`, `root-2.cross.pem` (signed
//! by the root before) and `issuing-2.pem`, and so on.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rcgen::{Issuer, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde::{Deserialize, Serialize};

use super::roots::{ROOTS_MAX, Root, Roots};
use super::{AuthorityError, BACKDATE, ISSUING_LIFE, Issuing, ROOT_LIFE, Validity, shape};
use crate::domain::TrustDomain;
use crate::identity::certificate;
use crate::identity::files;
use crate::runtime::clock::unix_seconds;

/// Number of a CA's first root.
const FIRST: u32 = 1;

/// CAs that may stand between a root and a member: the issuing CA, and each root that came
/// after.
const BELOW_ROOT: u8 = 4;
const _: () = assert!(BELOW_ROOT as usize == ROOTS_MAX);

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
    pub(super) roots: Roots,
    /// Of the root that signs.
    pub(super) issuing: Issuing,
}

/// `ca.json`.
#[derive(Serialize, Deserialize)]
struct About {
    trust_domain: String,
    development: bool,
    /// None: the first one alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    roots: Vec<Times>,
}

/// When a root signs and is trusted, in seconds since 1970.
#[derive(Serialize, Deserialize)]
struct Times {
    root: u32,
    signs_from: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    trusted_until: Option<u64>,
}

pub(super) fn exists(dir: &Path) -> bool {
    about_path(dir).exists()
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
    root(dir, domain, (FIRST, None), now)?;
    let about = About {
        trust_domain: domain.to_string(),
        development: names == Names::Development,
        roots: Vec::new(),
    };
    write_about(dir, &about)
}

pub(super) fn open(dir: &Path, now: SystemTime) -> Result<Opened, AuthorityError> {
    let path = about_path(dir);
    let malformed = || AuthorityError::Malformed(path.clone());
    let about: About = serde_json::from_str(&files::read(&path)?).map_err(|_| malformed())?;
    let names = if about.development {
        Names::Development
    } else {
        Names::Mesh
    };
    let roots = if about.roots.is_empty() {
        let root = FIRST;
        vec![Times {
            root,
            signs_from: 0,
            trusted_until: None,
        }]
    } else {
        about.roots
    };
    let roots: Result<Vec<_>, _> = roots.iter().map(|times| read_root(dir, times)).collect();
    let roots = Roots::new(roots?).ok_or_else(malformed)?;
    let signing = roots.signing(now).number;
    // Looked at here so that a key that others may read is noticed before it is needed.
    match files::read_secret(&root_key_path(dir, signing)) {
        Err(error) if !error.is_absent() => return Err(error.into()),
        Ok(_) | Err(_) => {}
    }
    let text = files::read_secret(&issuing_path(dir, signing))?;
    Ok(Opened {
        domain: about.trust_domain.parse().map_err(|_| malformed())?,
        names,
        issuing: read_issuing(dir, signing, &text)?,
        roots,
    })
}

/// A new issuing CA of a root if its key is here.
pub(super) fn roll_over(
    dir: &Path,
    domain: &TrustDomain,
    root: &Root,
    now: SystemTime,
) -> Result<Option<Issuing>, AuthorityError> {
    let issuer = issuer_of(dir, root)?;
    let made = issuer.map(|issuer| issuing(dir, domain, (root.number, &issuer), now));
    made.transpose()
}

/// Makes the next root with its issuing CA, and writes down when it signs and how long the last one
/// is trusted. Roots that are known no more are removed.
pub(super) fn rotate(
    dir: &Path,
    opened: &Opened,
    (signs_from, trusted_until): (SystemTime, SystemTime),
    now: SystemTime,
) -> Result<(), AuthorityError> {
    let before = opened.roots.last();
    let number = before.number + 1;
    let signed_by = issuer_of(dir, before)?;
    root(dir, &opened.domain, (number, signed_by), now)?;
    let mut roots: Vec<_> = opened.roots.known(now).map(Times::of).collect();
    if let Some(last) = roots.last_mut() {
        last.trusted_until = Some(unix_seconds(trusted_until));
    }
    roots.push(Times {
        root: number,
        signs_from: unix_seconds(signs_from),
        trusted_until: None,
    });
    let about = About {
        trust_domain: opened.domain.to_string(),
        development: opened.names == Names::Development,
        roots,
    };
    write_about(dir, &about)?;
    let known = |gone: &&Root| !about.roots.iter().any(|root| root.root == gone.number);
    for gone in opened.roots.all().iter().filter(known) {
        for path in paths(dir, gone.number) {
            files::remove(&path)?;
        }
    }
    Ok(())
}

/// Whether the key of a root is in the directory.
pub(super) fn has_key(dir: &Path, number: u32) -> bool {
    root_key_path(dir, number).exists()
}

pub(super) fn root_path(dir: &Path, number: u32) -> PathBuf {
    dir.join(named("root", number, "pem"))
}

pub(super) fn root_key_path(dir: &Path, number: u32) -> PathBuf {
    dir.join(named("root", number, "key.pem"))
}

fn cross_path(dir: &Path, number: u32) -> PathBuf {
    dir.join(named("root", number, "cross.pem"))
}

fn issuing_path(dir: &Path, number: u32) -> PathBuf {
    dir.join(named("issuing", number, "pem"))
}

fn about_path(dir: &Path) -> PathBuf {
    dir.join("ca.json")
}

fn paths(dir: &Path, number: u32) -> [PathBuf; 4] {
    [root_key_path, issuing_path, cross_path, root_path].map(|path| path(dir, number))
}

fn named(stem: &str, number: u32, end: &str) -> String {
    if number == FIRST {
        format!("{stem}.{end}")
    } else {
        format!("{stem}-{number}.{end}")
    }
}

impl Times {
    fn of(root: &Root) -> Self {
        Self {
            root: root.number,
            signs_from: unix_seconds(root.signs_from),
            trusted_until: root.trusted_until.map(unix_seconds),
        }
    }
}

fn write_about(dir: &Path, about: &About) -> Result<(), AuthorityError> {
    let path = about_path(dir);
    let text = serde_json::to_vec_pretty(about);
    let text = text.map_err(|_| AuthorityError::Malformed(path.clone()))?;
    Ok(files::replace(&path, &text, files::PUBLIC)?)
}

/// Makes a root with its issuing CA; `before`, the root in whose place it comes, vouches for it.
fn root(
    dir: &Path,
    domain: &TrustDomain,
    (number, before): (u32, Option<Issuer<'_, KeyPair>>),
    now: SystemTime,
) -> Result<(), AuthorityError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let life = Validity {
        not_before: now - BACKDATE,
        not_after: now + ROOT_LIFE,
    };
    let role = match number {
        FIRST => "root".to_owned(),
        number => format!("root {number}"),
    };
    let params = || shape::authority(domain, &role, BELOW_ROOT, life);
    let root = params()?.self_signed(&key)?;
    if let Some(before) = before {
        let cross = params()?.signed_by(&key, &before)?;
        let path = cross_path(dir, number);
        files::replace(&path, cross.pem().as_bytes(), files::PUBLIC)?;
    }
    let secret = key.serialize_pem();
    let path = root_key_path(dir, number);
    files::replace(&path, secret.as_bytes(), files::SECRET)?;
    let path = root_path(dir, number);
    files::replace(&path, root.pem().as_bytes(), files::PUBLIC)?;
    let issuer = Issuer::from_ca_cert_der(root.der(), key)?;
    issuing(dir, domain, (number, &issuer), now)?;
    Ok(())
}

/// A root as who signs; `None`: its key is not here.
fn issuer_of(dir: &Path, root: &Root) -> Result<Option<Issuer<'static, KeyPair>>, AuthorityError> {
    let path = root_key_path(dir, root.number);
    let key = match files::read_secret(&path) {
        Ok(text) => KeyPair::from_pem(&text).map_err(|_| AuthorityError::Malformed(path))?,
        Err(error) if error.is_absent() => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    Ok(Some(Issuer::from_ca_cert_der(&root.certificate, key)?))
}

/// Makes an issuing CA, and uses it as it was written.
fn issuing(
    dir: &Path,
    domain: &TrustDomain,
    (number, root): (u32, &Issuer<'_, KeyPair>),
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
    let path = issuing_path(dir, number);
    files::replace(&path, text.as_bytes(), files::SECRET)?;
    read_issuing(dir, number, &text)
}

fn read_issuing(dir: &Path, number: u32, text: &str) -> Result<Issuing, AuthorityError> {
    let path = issuing_path(dir, number);
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

fn read_root(dir: &Path, times: &Times) -> Result<Root, AuthorityError> {
    let path = root_path(dir, times.root);
    let certificate = certificate_in(&path, &files::read(&path)?)?;
    let path = cross_path(dir, times.root);
    let cross = match files::read(&path) {
        Ok(text) => Some(certificate_in(&path, &text)?),
        Err(error) if error.is_absent() => None,
        Err(error) => return Err(error.into()),
    };
    let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    Ok(Root {
        number: times.root,
        certificate,
        cross,
        signs_from: at(times.signs_from),
        trusted_until: times.trusted_until.map(at),
    })
}

fn certificate_in(path: &Path, text: &str) -> Result<CertificateDer<'static>, AuthorityError> {
    let read = CertificateDer::from_pem_slice(text.as_bytes());
    read.map_err(|_| AuthorityError::Malformed(path.to_path_buf()))
}
