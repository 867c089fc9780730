//! Keys: the private one that a member makes, and the public one that the CA takes from a request.
//!
//! Of a PKCS#10 request only the public key is used, after proof that the sender holds the private
//! one. Names, extensions and flags that it asks for are not even looked at.

use std::{fmt, path::Path};

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ED25519, UnparsedPublicKey, VerificationAlgorithm,
};
use rcgen::{
    CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SubjectPublicKeyInfo,
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use x509_parser::{
    certification_request::X509CertificationRequest,
    oid_registry::{
        OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_SIG_ECDSA_WITH_SHA256, OID_SIG_ED25519, Oid,
    },
    prelude::FromDer,
    x509::SubjectPublicKeyInfo as ParsedKey,
};

use crate::domain::Fault;
use crate::domain::Reason;
use crate::identity::certificate::sha256;
use crate::identity::files::{self, FileError};
use crate::identity::svid::{Svid, SvidError};

/// Largest request that is read, in bytes; one with a P-256 key takes about 200.
pub const CSR_MAX: usize = 8 << 10;

/// The key of a renewal under way, so that a crash before its answer does not lock the member out.
const NEXT_KEY_FILE: &str = "next-key.pem";

/// Why a request or key is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// Not PKCS#10 in DER, or beyond its bound.
    #[error("the certificate request is not PKCS#10 in DER of at most {CSR_MAX} bytes")]
    Unreadable,
    /// RSA, another curve, another signature.
    #[error("the key is of another kind: use P-256 with SHA-256, or Ed25519")]
    KeyKind,
    /// The signature is not by the key inside.
    #[error("the certificate request is not signed by its own key")]
    Proof,
}

impl From<CsrError> for Fault {
    fn from(error: CsrError) -> Self {
        Self::new(Reason::InvalidCsr, error.to_string())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    P256,
    Ed25519,
}

/// A public key that certificates are made for: P-256 or Ed25519.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    kind: Kind,
    point: Vec<u8>,
    spki: Vec<u8>,
}

impl PublicKey {
    /// The key of a PKCS#10 request, once its holder has proved to hold the private one.
    ///
    /// # Errors
    /// When the request cannot be read, its key is of another kind, or the proof does not hold.
    pub fn of_request(der: &[u8]) -> Result<Self, CsrError> {
        if der.len() > CSR_MAX {
            return Err(CsrError::Unreadable);
        }
        let Ok(([], request)) = X509CertificationRequest::from_der(der) else {
            return Err(CsrError::Unreadable);
        };
        let info = &request.certification_request_info;
        let key = Self::read(&info.subject_pki)?;
        if request.signature_algorithm.algorithm != key.signature_oid() {
            return Err(CsrError::KeyKind);
        }
        if key.has_signed(info.raw, &request.signature_value.data) {
            Ok(key)
        } else {
            Err(CsrError::Proof)
        }
    }

    /// A key as SPKI in DER.
    ///
    /// # Errors
    /// When it cannot be read or is of another kind.
    pub fn of_spki(der: &[u8]) -> Result<Self, CsrError> {
        match ParsedKey::from_der(der) {
            Ok(([], parsed)) => Self::read(&parsed),
            Ok(_) | Err(_) => Err(CsrError::Unreadable),
        }
    }

    /// Whether the holder of the private key signed `message`.
    pub fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        let algorithm: &dyn VerificationAlgorithm = match self.kind {
            Kind::P256 => &ECDSA_P256_SHA256_ASN1,
            Kind::Ed25519 => &ED25519,
        };
        let key = UnparsedPublicKey::new(algorithm, &self.point);
        key.verify(message, signature).is_ok()
    }

    /// SHA-256 of the SPKI.
    pub fn hash(&self) -> [u8; 32] {
        sha256(&self.spki)
    }

    pub(super) fn to_rcgen(&self) -> Result<SubjectPublicKeyInfo, rcgen::Error> {
        SubjectPublicKeyInfo::from_der(&self.spki)
    }

    fn read(parsed: &ParsedKey<'_>) -> Result<Self, CsrError> {
        let algorithm = &parsed.algorithm;
        let curve = algorithm.parameters.as_ref();
        let curve: Option<Oid<'_>> = curve.and_then(|any| any.as_oid().ok());
        let kind = if algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
            (curve == Some(OID_EC_P256)).then_some(Kind::P256)
        } else {
            (algorithm.algorithm == OID_SIG_ED25519).then_some(Kind::Ed25519)
        };
        Ok(Self {
            kind: kind.ok_or(CsrError::KeyKind)?,
            point: parsed.subject_public_key.data.to_vec(),
            spki: parsed.raw.to_vec(),
        })
    }

    fn signature_oid(&self) -> Oid<'static> {
        match self.kind {
            Kind::P256 => OID_SIG_ECDSA_WITH_SHA256,
            Kind::Ed25519 => OID_SIG_ED25519,
        }
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublicKey")
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

/// A new key, and the request for its certificate. Kept across retries: the CA answers the same
/// key again where its first answer was lost.
pub struct Draft {
    key: KeyPair,
    csr: Vec<u8>,
}

impl Draft {
    /// A fresh P-256 key.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn new() -> Result<Self, rcgen::Error> {
        Self::of(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?)
    }

    /// The key of a renewal that was under way in `dir`, or a fresh one that is kept there.
    ///
    /// # Errors
    /// When the system gives no randomness, or refuses to write.
    pub fn kept_in(dir: &Path) -> Result<Self, DraftError> {
        let path = dir.join(NEXT_KEY_FILE);
        match files::read_secret(&path) {
            Ok(text) => {
                if let Ok(key) = KeyPair::from_pem(&text) {
                    return Ok(Self::of(key)?);
                }
                tracing::warn!(file = %path.display(), "cannot be read: a fresh key replaces it");
            }
            Err(error) if error.is_absent() => {}
            Err(error) => return Err(error.into()),
        }
        let draft = Self::new()?;
        files::private_dir(dir)?;
        let pem = draft.key.serialize_pem();
        files::replace(&path, pem.as_bytes(), files::SECRET)?;
        Ok(draft)
    }

    /// Ends what [`Self::kept_in`] began, once its certificate is saved.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn settle(dir: &Path) -> Result<(), FileError> {
        files::remove(&dir.join(NEXT_KEY_FILE))
    }

    /// The request: PKCS#10, DER, without names.
    pub fn csr(&self) -> &[u8] {
        &self.csr
    }

    /// The public key.
    ///
    /// # Errors
    /// Never for a draft of ours: its request is read back as the CA would.
    pub fn public_key(&self) -> Result<PublicKey, CsrError> {
        PublicKey::of_request(&self.csr)
    }

    /// The certificate that was issued for this key.
    ///
    /// # Errors
    /// When it is for another key, or does not lead to the bundle.
    pub fn certified(
        &self,
        chain: Vec<CertificateDer<'static>>,
        bundle: Vec<CertificateDer<'static>>,
        generation: u64,
    ) -> Result<Svid, SvidError> {
        let key = PrivatePkcs8KeyDer::from(self.key.serialize_der());
        Svid::new(chain, key, bundle, generation)
    }

    fn of(key: KeyPair) -> Result<Self, rcgen::Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let csr = params.serialize_request(&key)?.der().to_vec();
        Ok(Self { key, csr })
    }
}

impl fmt::Debug for Draft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Draft").finish_non_exhaustive()
    }
}

/// Why a key could not be made or kept.
#[derive(Debug, thiserror::Error)]
pub enum DraftError {
    /// No key.
    #[error("no key could be made: {0}")]
    Key(#[from] rcgen::Error),
    /// Not kept.
    #[error(transparent)]
    File(#[from] FileError),
}

#[cfg(test)]
mod tests {
    use rcgen::{PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SignatureAlgorithm};

    use super::*;

    fn request(algorithm: &'static SignatureAlgorithm) -> Vec<u8> {
        let key = KeyPair::generate_for(algorithm).unwrap();
        Draft::of(key).unwrap().csr
    }

    #[test]
    fn two_kinds_of_keys_are_taken() {
        for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ED25519] {
            PublicKey::of_request(&request(algorithm)).unwrap();
        }
        let error = PublicKey::of_request(&request(&PKCS_ECDSA_P384_SHA384)).unwrap_err();
        assert_eq!(error, CsrError::KeyKind);
    }

    #[test]
    fn a_request_without_proof_is_refused() {
        let mut csr = request(&PKCS_ECDSA_P256_SHA256);
        let last = csr.len() - 1;
        csr[last] ^= 1;
        assert_eq!(PublicKey::of_request(&csr), Err(CsrError::Proof));
        assert_eq!(PublicKey::of_request(&[]), Err(CsrError::Unreadable));
        assert_eq!(
            PublicKey::of_request(&[0; CSR_MAX + 1]),
            Err(CsrError::Unreadable)
        );
        csr[last] ^= 1;
        csr.push(0);
        assert_eq!(PublicKey::of_request(&csr), Err(CsrError::Unreadable));
    }

    #[test]
    fn another_keys_request_is_no_proof() {
        // The second request's signature under the first one's content: a stolen public key.
        let (one, two) = (Draft::new().unwrap(), Draft::new().unwrap());
        let spliced = |csr: &[u8]| {
            let (_, parsed) = X509CertificationRequest::from_der(csr).unwrap();
            let signature = parsed.signature_value.data.to_vec();
            (parsed.certification_request_info.raw.to_vec(), signature)
        };
        let ((content, own), (_, foreign)) = (spliced(&one.csr), spliced(&two.csr));
        let key = one.public_key().unwrap();
        assert!(key.has_signed(&content, &own));
        assert!(!key.has_signed(&content, &foreign));
    }

    #[test]
    fn a_kept_key_is_the_same_until_settled() {
        let dir = tempfile::tempdir().unwrap();
        let kept = || Draft::kept_in(dir.path()).unwrap().public_key().unwrap();
        let first = kept();
        assert_eq!(kept(), first);
        Draft::settle(dir.path()).unwrap();
        assert_ne!(kept(), first);
    }
}
