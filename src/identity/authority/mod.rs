//! The mesh's CA: a root that may stay offline, and an issuing CA that signs members.
//!
//! Decides every byte of a certificate but the public key. Does not decide who may have one:
//! the enrolment and identity services do.

mod directory;
mod shape;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use rcgen::{Issuer, KeyPair};
use rustls::{RootCertStore, pki_types::CertificateDer};

use crate::domain::InstanceId;
use crate::domain::SpiffeId;
use crate::domain::TrustDomain;
use crate::identity::certificate::{self, CertificateError};
use crate::identity::csr::{CsrError, Draft, PublicKey};
use crate::identity::files::FileError;
use crate::identity::svid::{Svid, SvidError};
use crate::identity::verify::member_signed;
use crate::runtime::clock;

pub use directory::Names;

/// Life of a root: 10 years.
pub const ROOT_LIFE: Duration = Duration::from_hours(10 * 365 * 24);
/// Life of an issuing CA.
pub const ISSUING_LIFE: Duration = Duration::from_hours(90 * 24);
/// Life of a sidecar's certificate where nobody says another: short, since renewal is automatic.
pub const LEAF_LIFE: Duration = Duration::from_hours(1);
/// Life of a certificate that no sidecar renews: an operator's, or a lone service's.
pub const ISSUED_LIFE: Duration = Duration::from_hours(24);
/// Certificates start that much earlier, for clocks that are behind; short ones a tenth of their
/// life, or they would be half over when they begin.
pub const BACKDATE: Duration = Duration::from_mins(1);
/// No certificate is backdated by more than this part of its life.
pub const BACKDATED_PART: u32 = 10;

/// Why the CA cannot be used, or does not sign.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file could not be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// There is a CA already.
    #[error("{0} holds a CA already: choose another directory, or remove it")]
    Exists(PathBuf),
    /// A file is not what it should be.
    #[error("{0} cannot be read: restore it from a backup")]
    Malformed(PathBuf),
    /// Signing failed.
    #[error("the CA could not sign: {0}")]
    Sign(#[from] rcgen::Error),
    /// The issuing CA's life is over, and the root's key is not here to make another.
    #[error("the issuing CA has expired: bring root.key.pem back to {0} and start again")]
    Expired(PathBuf),
    /// The issuing CA was made by a clock that was ahead, and the root's key is not here.
    #[error(
        "the issuing CA is not valid yet: is this machine's clock behind? else bring root.key.pem back to {0} and start again"
    )]
    NotYet(PathBuf),
    /// The id is of another trust domain.
    #[error("{id} is not of this CA's trust domain, {domain}")]
    Foreign {
        /// Who was asked for.
        id: Box<SpiffeId>,
        /// Whom the CA vouches for.
        domain: TrustDomain,
    },
    /// Operators and registries have no instances.
    #[error("{0} has no instances")]
    NoInstances(Box<SpiffeId>),
    /// A certificate of ours cannot be read.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// A key of ours cannot be used.
    #[error(transparent)]
    Key(#[from] CsrError),
    /// What was signed does not fit together.
    #[error(transparent)]
    Svid(#[from] SvidError),
}

/// When a certificate is valid; whole seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// Start.
    pub not_before: SystemTime,
    /// End.
    pub not_after: SystemTime,
}

/// The CA of one trust domain, in a directory.
pub struct Authority {
    dir: PathBuf,
    domain: TrustDomain,
    names: Names,
    root: CertificateDer<'static>,
    roots: RootCertStore,
    issuing: ArcSwap<Issuing>,
    leaf_life: Duration,
}

/// The CA's certificate and key that sign members.
pub(super) struct Issuing {
    certificate: CertificateDer<'static>,
    life: Validity,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes a root and an issuing CA in `dir`, keys with mode 0600.
    ///
    /// # Errors
    /// When there is a CA already, or the system refuses to write.
    pub fn create(dir: &Path, domain: &TrustDomain, names: Names) -> Result<Self, AuthorityError> {
        directory::create(dir, domain, names, clock::wall())?;
        Self::open(dir)
    }

    /// Opens the CA in `dir`, and makes a new issuing CA when less than half of the present one's
    /// life is left and the root's key is there.
    ///
    /// # Errors
    /// When a file is missing or broken, others may read a key, or the issuing CA has expired.
    pub fn open(dir: &Path) -> Result<Self, AuthorityError> {
        let opened = directory::open(dir)?;
        let mut roots = RootCertStore::empty();
        let added = roots.add(opened.root.clone());
        added.map_err(|_| AuthorityError::Malformed(directory::root_path(dir)))?;
        let authority = Self {
            dir: dir.to_path_buf(),
            domain: opened.domain,
            names: opened.names,
            root: opened.root,
            roots,
            issuing: ArcSwap::from_pointee(opened.issuing),
            leaf_life: LEAF_LIFE,
        };
        authority.roll_over(clock::wall())?;
        Ok(authority)
    }

    /// The same with another life for the certificates that sidecars renew.
    #[must_use]
    pub fn with_leaf_life(mut self, life: Duration) -> Self {
        self.leaf_life = life;
        self
    }

    /// Life of the certificates that sidecars renew.
    pub fn leaf_life(&self) -> Duration {
        self.leaf_life
    }

    /// Whether `dir` holds a CA.
    pub fn exists(dir: &Path) -> bool {
        directory::exists(dir)
    }

    /// Makes a new issuing CA if less than half of the present one's life is left, or none of it has
    /// begun (the clock was ahead when it was made), and the root's key is at hand; says whether it did. Members need no new bundle: the root stays.
    ///
    /// # Errors
    /// When the present one is not valid at `now` and the root's key is away, or files cannot be used.
    pub fn roll_over(&self, now: SystemTime) -> Result<bool, AuthorityError> {
        let life = self.issuing.load().life;
        if (life.not_before..life.not_after - ISSUING_LIFE / 2).contains(&now) {
            return Ok(false);
        }
        match directory::roll_over(&self.dir, &self.domain, &self.root, now)? {
            Some(fresh) => {
                self.issuing.store(Arc::new(fresh));
                tracing::info!(trust_domain = %self.domain, "a new issuing CA signs from now on");
                Ok(true)
            }
            None if now < life.not_before => Err(AuthorityError::NotYet(self.dir.clone())),
            None if now >= life.not_after => Err(AuthorityError::Expired(self.dir.clone())),
            None => Ok(false),
        }
    }

    /// End of the issuing CA's life.
    pub fn issuing_until(&self) -> SystemTime {
        self.issuing.load().life.not_after
    }

    /// Whom this CA vouches for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// Whether its members' certificates name this machine too.
    pub fn names(&self) -> Names {
        self.names
    }

    /// The roots that members trust.
    pub fn bundle(&self) -> Vec<CertificateDer<'static>> {
        vec![self.root.clone()]
    }

    /// SHA-256 of the root's public key: what join strings carry.
    ///
    /// # Errors
    /// When the root cannot be read; `open` has read it before.
    pub fn root_key_pin(&self) -> Result<[u8; 32], AuthorityError> {
        Ok(certificate::key_pin(&self.root)?)
    }

    /// Signs a member's key for `ttl` from now, backdated by a tenth of it and 60 s at most, within
    /// the issuing CA's life. Returns leaf and issuing CA.
    ///
    /// # Errors
    /// When the id is of another trust domain, has no instances, or the CA has expired.
    pub fn issue(
        &self,
        key: &PublicKey,
        id: &SpiffeId,
        instance: Option<&InstanceId>,
        ttl: Duration,
    ) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
        let now = clock::wall();
        let life = Validity {
            not_before: now - BACKDATE.min(ttl / BACKDATED_PART),
            not_after: now + ttl,
        };
        self.issue_within(key, id, instance, life)
    }

    /// As [`Self::issue`], with dates of the caller's choice, cut to the issuing CA's life.
    ///
    /// # Errors
    /// As [`Self::issue`]; also when nothing of the dates is within the issuing CA's life.
    pub fn issue_within(
        &self,
        key: &PublicKey,
        id: &SpiffeId,
        instance: Option<&InstanceId>,
        life: Validity,
    ) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
        if id.trust_domain != self.domain {
            return Err(AuthorityError::Foreign {
                id: Box::new(id.clone()),
                domain: self.domain.clone(),
            });
        }
        if instance.is_some() && !id.member.has_instances() {
            return Err(AuthorityError::NoInstances(Box::new(id.clone())));
        }
        let issuing = self.issuing.load();
        let life = Validity {
            not_before: life.not_before.max(issuing.life.not_before),
            not_after: life.not_after.min(issuing.life.not_after),
        };
        if life.not_before >= life.not_after {
            return Err(if life.not_after <= issuing.life.not_before {
                AuthorityError::NotYet(self.dir.clone())
            } else {
                AuthorityError::Expired(self.dir.clone())
            });
        }
        let params = shape::leaf(id, instance, life, self.names)?;
        let leaf = params.signed_by(&key.to_rcgen()?, &issuing.issuer)?;
        Ok(vec![leaf.der().clone(), issuing.certificate.clone()])
    }

    /// A certificate with a key made here: for the registry itself, and for operators and
    /// services whose key never leaves this machine.
    ///
    /// # Errors
    /// As [`Self::issue`].
    pub fn svid(
        &self,
        id: &SpiffeId,
        instance: Option<&InstanceId>,
        ttl: Duration,
    ) -> Result<Svid, AuthorityError> {
        let draft = Draft::new()?;
        let chain = self.issue(&draft.public_key()?, id, instance, ttl)?;
        // A first generation where there is an instance, as enrolment gives it.
        let generation = u64::from(instance.is_some());
        Ok(draft.certified(chain, self.bundle(), generation)?)
    }

    /// Whether this CA signed the chain, whatever its dates.
    pub(super) fn has_signed(&self, chain: &[CertificateDer<'_>], not_before: SystemTime) -> bool {
        let Some((leaf, rest)) = chain.split_first() else {
            return false;
        };
        member_signed(leaf, &self.roots, rest, not_before).is_ok()
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("dir", &self.dir)
            .field("domain", &self.domain)
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
