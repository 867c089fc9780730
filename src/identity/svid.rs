//! A certificate with its key and the roots to trust, whole and consistent, in memory and on disk.
//!
//! `svid.json` is the truth, replaced in one rename; the PEM files beside it are copies for
//! clients in other languages. Shows nobody the key: neither `Debug` nor an error has it.

use std::{fmt, path::Path, sync::Arc, time::SystemTime};

use rustls::{
    pki_types::{
        CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer,
        pem::{PemObject, SectionKind},
    },
    sign::CertifiedKey,
};
use serde::{Deserialize, Serialize};

use crate::identity::certificate::{self, CertificateError};
use crate::identity::files::{self, FileError};
use crate::identity::peer::Peer;
use crate::identity::verify::{Trust, provider, unix};

/// Leaf, key and whole state of a member.
const STATE_FILE: &str = "svid.json";
/// Chain for other clients, leaf first.
const CHAIN_FILE: &str = "cert.pem";
/// Key for other clients.
const KEY_FILE: &str = "key.pem";
/// Roots for other clients.
const BUNDLE_FILE: &str = "ca.pem";

/// Most certificates in a chain or bundle: leaf, issuing CA and roots of all rotations that a CA
/// knows.
const CERTIFICATES_MAX: usize = 16;

/// Why these parts make no usable certificate.
#[derive(Debug, thiserror::Error)]
pub enum SvidError {
    /// A file could not be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file cannot be read as what it should be.
    #[error("{0} cannot be read: remove it and join again")]
    Malformed(String),
    /// The leaf names no member.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// Chain, key and bundle do not belong together.
    #[error("the certificate, its key and the bundle do not fit: {0}")]
    Unfit(#[from] rustls::Error),
    /// No certificate, or more than any CA of ours sends.
    #[error("1 to {CERTIFICATES_MAX} certificates are expected, not {0}")]
    Count(usize),
}

/// A member's certificate, ready to be shown.
pub struct Svid {
    chain: Vec<CertificateDer<'static>>,
    key: PrivatePkcs8KeyDer<'static>,
    bundle: Vec<CertificateDer<'static>>,
    /// Trusted no more, shown to who has only their pin.
    former: Vec<CertificateDer<'static>>,
    is_under_signing_root: bool,
    generation: u64,
    peer: Arc<Peer>,
    trust: Trust,
    shown: Arc<CertifiedKey>,
    shown_with_root: Arc<CertifiedKey>,
}

impl Svid {
    /// Puts a chain (leaf first), its PKCS#8 key and the roots together. Dates are not judged:
    /// an expired certificate is still what a rejoin is made from.
    ///
    /// # Errors
    /// When the leaf is not a member's, the key is another's, or the chain leads to no root given.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivatePkcs8KeyDer<'static>,
        bundle: Vec<CertificateDer<'static>>,
        generation: u64,
    ) -> Result<Self, SvidError> {
        let svid = Self::assembled((chain, key), (bundle, Vec::new()), generation)?;
        let (leaf, rest) = (&svid.chain[0], &svid.chain[1..]);
        svid.trust.client(leaf, rest, unix(svid.peer.not_before))?;
        Ok(svid)
    }

    /// The same certificate with other roots, be its own among them or not; `former` are shown to who
    /// has only a pin.
    ///
    /// # Errors
    /// When there is no root, or one is none.
    pub(super) fn trusting(
        &self,
        bundle: Vec<CertificateDer<'static>>,
        former: Vec<CertificateDer<'static>>,
    ) -> Result<Self, SvidError> {
        let own = (self.chain.clone(), self.key.clone_key());
        Self::assembled(own, (bundle, former), self.generation)
    }

    fn assembled(
        (chain, key): (Vec<CertificateDer<'static>>, PrivatePkcs8KeyDer<'static>),
        (bundle, former): (Vec<CertificateDer<'static>>, Vec<CertificateDer<'static>>),
        generation: u64,
    ) -> Result<Self, SvidError> {
        for count in [chain.len(), bundle.len()] {
            if !(1..=CERTIFICATES_MAX).contains(&count) {
                return Err(SvidError::Count(count));
            }
        }
        let peer = certificate::peer_of(&chain[0])?;
        let trust = Trust::new(peer.id.trust_domain.clone(), &bundle)?;
        let certified = |chain: Vec<_>| {
            let key = PrivateKeyDer::Pkcs8(key.clone_key());
            CertifiedKey::from_der(chain, key, &provider()).map(Arc::new)
        };
        let signing = Trust::new(peer.id.trust_domain.clone(), &bundle[..1])?;
        let under = signing.client(&chain[0], &chain[1..], unix(peer.not_before));
        Ok(Self {
            shown: certified(chain.clone())?,
            shown_with_root: certified([&chain[..], &bundle[..], &former[..]].concat())?,
            is_under_signing_root: under.is_ok(),
            chain,
            key,
            bundle,
            former,
            generation,
            peer: Arc::new(peer),
            trust,
        })
    }

    /// Reads what [`Self::save`] wrote.
    ///
    /// # Errors
    /// When a file is missing, broken, or holds a key that others may read.
    pub fn load(dir: &Path) -> Result<Self, SvidError> {
        let path = dir.join(STATE_FILE);
        let malformed = || SvidError::Malformed(path.display().to_string());
        let text = files::read_secret(&path)?;
        let state: State = serde_json::from_str(&text).map_err(|_| malformed())?;
        let key = PrivatePkcs8KeyDer::from_pem_slice(state.key.as_bytes());
        Self::new(
            certificates(&state.chain).ok_or_else(malformed)?,
            key.map_err(|_| malformed())?,
            certificates(&state.bundle).ok_or_else(malformed)?,
            state.generation,
        )
    }

    /// Whether a directory holds a certificate that [`Self::load`] would read.
    pub fn is_saved(dir: &Path) -> bool {
        dir.join(STATE_FILE).exists()
    }

    /// Writes `svid.json`, `cert.pem`, `key.pem` and `ca.pem`; a crash leaves the old state or
    /// the new one.
    ///
    /// # Errors
    /// When the system refuses to write.
    pub fn save(&self, dir: &Path) -> Result<(), SvidError> {
        files::private_dir(dir)?;
        let state = State {
            spiffe_id: self.peer.id.to_string(),
            instance_id: self.peer.instance.as_ref().map(ToString::to_string),
            generation: self.generation,
            chain: pems(&self.chain),
            key: files::pem("PRIVATE KEY", self.key.secret_pkcs8_der()),
            bundle: pems(&self.bundle),
        };
        let text = serde_json::to_vec_pretty(&state)
            .map_err(|_| SvidError::Malformed(STATE_FILE.into()))?;
        files::replace(&dir.join(STATE_FILE), &text, files::SECRET)?;
        files::replace(&dir.join(KEY_FILE), state.key.as_bytes(), files::SECRET)?;
        files::replace(&dir.join(CHAIN_FILE), state.chain.as_bytes(), files::PUBLIC)?;
        let bundle = state.bundle.as_bytes();
        files::replace(&dir.join(BUNDLE_FILE), bundle, files::PUBLIC)?;
        Ok(())
    }

    /// The member that the certificate names.
    pub fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    /// The chain, leaf first, without root.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The roots to trust, the one that signs now first.
    pub fn bundle(&self) -> &[CertificateDer<'static>] {
        &self.bundle
    }

    /// Roots that are trusted no more, and shown to who has only their pin: a registry's.
    pub(super) fn former(&self) -> &[CertificateDer<'static>] {
        &self.former
    }

    /// Whether the first root of the bundle, the one that signs now, vouches for it; else it should
    /// be renewed before the others are trusted no more.
    pub fn is_under_signing_root(&self) -> bool {
        self.is_under_signing_root
    }

    /// What the next renewal has to state; 0 for members without an instance.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether `now` is within the certificate's life.
    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        (self.peer.not_before..=self.peer.not_after).contains(&now)
    }

    pub(super) fn trust(&self) -> &Trust {
        &self.trust
    }

    /// What handshakes show: the chain, with the root too where the other end has only its pin.
    pub(super) fn shown(&self, with_root: bool) -> &Arc<CertifiedKey> {
        if with_root {
            &self.shown_with_root
        } else {
            &self.shown
        }
    }

    #[cfg(test)]
    pub(super) fn key_bytes(&self) -> &[u8] {
        self.key.secret_pkcs8_der()
    }

    /// Signs with the certificate's key.
    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        let schemes = [
            rustls::SignatureScheme::ECDSA_NISTP256_SHA256,
            rustls::SignatureScheme::ED25519,
        ];
        let signer = self.shown.key.choose_scheme(&schemes);
        let signer = signer.ok_or_else(|| rustls::Error::General("key of another kind".into()))?;
        signer.sign(message)
    }
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Svid")
            .field("peer", &self.peer)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

/// `svid.json`. No `Debug`: it holds the key.
#[derive(Serialize, Deserialize)]
struct State {
    spiffe_id: String,
    instance_id: Option<String>,
    generation: u64,
    chain: String,
    key: String,
    bundle: String,
}

/// The certificates of a PEM text; `None` if it holds anything else or none.
pub(super) fn certificates(pem: &str) -> Option<Vec<CertificateDer<'static>>> {
    let found: Result<Vec<_>, _> = <(SectionKind, Vec<u8>)>::pem_slice_iter(pem.as_bytes())
        .map(|section| match section {
            Ok((SectionKind::Certificate, der)) => Ok(CertificateDer::from(der)),
            Ok(_) | Err(_) => Err(()),
        })
        .collect();
    found.ok().filter(|list| !list.is_empty())
}

fn pems(chain: &[CertificateDer<'_>]) -> String {
    let blocks = chain.iter().map(|der| files::pem("CERTIFICATE", der));
    blocks.collect()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;
    use crate::identity::fixture::{BILLING, Mesh};

    #[test]
    fn what_is_saved_loads_the_same() {
        let mesh = Mesh::new();
        let dir = mesh.dir.path().join("svid");
        assert!(!Svid::is_saved(&dir));
        mesh.svid(BILLING, None).save(&dir).unwrap();
        let svid = mesh.svid(BILLING, Some("i1"));
        svid.save(&dir).unwrap();
        let loaded = Svid::load(&dir).unwrap();
        assert!(Svid::is_saved(&dir));
        assert_eq!(loaded.peer(), svid.peer());
        assert_eq!(loaded.chain(), svid.chain());
        assert_eq!(loaded.bundle(), svid.bundle());
        assert_eq!(loaded.generation(), 1);
        for (name, expected) in [
            ("svid.json", 0o600),
            ("key.pem", 0o600),
            ("cert.pem", 0o644),
            ("ca.pem", 0o644),
        ] {
            let mode = fs::metadata(dir.join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, expected, "{name}");
        }
        let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
        assert_eq!(certificates(&read("cert.pem")).unwrap(), svid.chain());
        assert_eq!(certificates(&read("ca.pem")).unwrap(), svid.bundle());
        let key = PrivatePkcs8KeyDer::from_pem_slice(read("key.pem").as_bytes()).unwrap();
        assert_eq!(key, svid.key);
    }

    #[test]
    fn a_key_that_others_may_read_is_refused() {
        let mesh = Mesh::new();
        let dir = mesh.dir.path().join("svid");
        mesh.svid(BILLING, None).save(&dir).unwrap();
        let path = dir.join("svid.json");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = Svid::load(&dir).unwrap_err();
        assert!(matches!(error, SvidError::File(FileError::Exposed { .. })));
    }

    #[test]
    fn parts_that_do_not_belong_together_are_refused() {
        let (mesh, other) = (Mesh::new(), Mesh::new());
        let (one, two) = (mesh.svid(BILLING, None), mesh.svid(BILLING, None));
        let key = || one.key.clone_key();
        let bundle = || one.bundle.clone();
        let of = |chain: &[_], key, bundle| Svid::new(chain.to_vec(), key, bundle, 0);
        assert!(of(&one.chain, key(), bundle()).is_ok());
        assert!(of(&two.chain, key(), bundle()).is_err());
        assert!(of(&one.chain[..1], key(), bundle()).is_err());
        assert!(of(&one.chain, key(), other.authority.bundle()).is_err());
        assert!(of(&[], key(), bundle()).is_err());
        assert!(of(&one.chain, key(), Vec::new()).is_err());
        assert!(of(&one.chain[1..], key(), bundle()).is_err());
    }
}
