//! The mesh's CA: a root that may stay offline, and an issuing CA that signs members.
//!
//! Decides every byte of a certificate but the public key. Does not decide who may have one:
//! the enrolment and identity services do.

mod directory;
mod keeper;
mod roots;
mod rotation;
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
use tokio::sync::watch;

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
pub use keeper::keep;
pub use roots::{ROOTS_MAX, Root, Roots};
pub use rotation::Overlap;

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
    #[error("the issuing CA has expired: bring {0} back")]
    Expired(PathBuf),
    /// The issuing CA was made by a clock that was ahead, and the root's key is not here.
    #[error("the issuing CA is not valid yet: is this machine's clock behind? else bring {0} back")]
    NotYet(PathBuf),
    /// The root's key is not here to sign.
    #[error("{0} is not here: bring it back for this, and take it away again after")]
    KeyAway(PathBuf),
    /// The next root is made already, and does not sign yet.
    #[error("root {0} is prepared and does not sign yet: `attache ca status` says when it does")]
    Prepared(u32),
    /// Every chain would become longer and longer.
    #[error("{ROOTS_MAX} roots are known already: rotate again a week after the oldest has ended")]
    Roots,
    /// An overlap that no member could follow.
    #[error("{0}")]
    Overlap(&'static str),
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
    state: ArcSwap<State>,
    /// The roots that members trust, signing one first.
    bundle: watch::Sender<Arc<[CertificateDer<'static>]>>,
    leaf_life: Duration,
}

/// The CA's certificate and key that sign members.
pub(super) struct Issuing {
    certificate: CertificateDer<'static>,
    life: Validity,
    issuer: Issuer<'static, KeyPair>,
}

/// What the directory says, as it is at one moment.
struct State {
    roots: Roots,
    issuing: Arc<Issuing>,
    /// Trusted by members, signing one first.
    bundle: Vec<CertificateDer<'static>>,
    /// No more trusted, and known still.
    former: Vec<CertificateDer<'static>>,
    crosses: Vec<CertificateDer<'static>>,
    /// Those whose members may rejoin.
    known: RootCertStore,
}

impl State {
    fn at(
        dir: &Path,
        now: SystemTime,
        roots: Roots,
        issuing: Arc<Issuing>,
    ) -> Result<Self, AuthorityError> {
        let mut known = RootCertStore::empty();
        for root in roots.known(now) {
            let added = known.add(root.certificate.clone());
            added.map_err(|_| AuthorityError::Malformed(directory::root_path(dir, root.number)))?;
        }
        Ok(Self {
            bundle: roots.trusted(now),
            former: roots.former(now),
            crosses: roots.crosses(now),
            roots,
            issuing,
            known,
        })
    }
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
        let now = clock::wall();
        let opened = directory::open(dir, now)?;
        let state = State::at(dir, now, opened.roots, Arc::new(opened.issuing))?;
        let authority = Self {
            dir: dir.to_path_buf(),
            domain: opened.domain,
            names: opened.names,
            bundle: watch::Sender::new(state.bundle.clone().into()),
            state: ArcSwap::from_pointee(state),
            leaf_life: LEAF_LIFE,
        };
        authority.roll_over(now)?;
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

    /// Takes in what the directory says and what is due at `now`: another root, other times, another
    /// issuing CA. What was known stays where it cannot be read.
    ///
    /// # Errors
    /// When a file is missing or broken, or as [`Self::roll_over`].
    pub fn refresh(&self, now: SystemTime) -> Result<(), AuthorityError> {
        let opened = directory::open(&self.dir, now)?;
        let present = self.state.load();
        let same_issuing = opened.issuing.certificate == present.issuing.certificate;
        let issuing = if same_issuing {
            Arc::clone(&present.issuing)
        } else {
            Arc::new(opened.issuing)
        };
        let fresh = State::at(&self.dir, now, opened.roots, issuing)?;
        if !same_issuing {
            tracing::info!(trust_domain = %self.domain, "another issuing CA signs from now on");
        }
        let bundle: Arc<[_]> = fresh.bundle.clone().into();
        self.state.store(Arc::new(fresh));
        self.bundle.send_if_modified(|told| {
            let changed = *told != bundle;
            if changed {
                tracing::info!(roots = bundle.len(), "the trust bundle has changed");
                *told = bundle;
            }
            changed
        });
        self.roll_over(now).map(drop)
    }

    /// Makes a new issuing CA if less than half of the present one's life is left, or none of it has
    /// begun (the clock was ahead when it was made), and the root's key is at hand; says whether it
    /// did. Members need no new bundle: the root stays.
    ///
    /// # Errors
    /// When the present one is not valid at `now` and the root's key is away, or files cannot be used.
    pub fn roll_over(&self, now: SystemTime) -> Result<bool, AuthorityError> {
        let state = self.state.load();
        let life = state.issuing.life;
        if (life.not_before..life.not_after - ISSUING_LIFE / 2).contains(&now) {
            return Ok(false);
        }
        let root = state.roots.signing(now);
        match directory::roll_over(&self.dir, &self.domain, root, now)? {
            Some(fresh) => {
                let roots = state.roots.clone();
                let fresh = State::at(&self.dir, now, roots, Arc::new(fresh))?;
                self.state.store(Arc::new(fresh));
                tracing::info!(trust_domain = %self.domain, "a new issuing CA signs from now on");
                Ok(true)
            }
            None if now < life.not_before => Err(AuthorityError::NotYet(self.key_path(root))),
            None if now >= life.not_after => Err(AuthorityError::Expired(self.key_path(root))),
            None => Ok(false),
        }
    }

    /// Where the key of a root is, or would be.
    fn key_path(&self, root: &Root) -> PathBuf {
        directory::root_key_path(&self.dir, root.number)
    }

    /// Life of the issuing CA.
    pub fn issuing_life(&self) -> Validity {
        self.state.load().issuing.life
    }

    /// Whom this CA vouches for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// Whether its members' certificates name this machine too.
    pub fn names(&self) -> Names {
        self.names
    }

    /// The roots that members trust, the signing one first.
    pub fn bundle(&self) -> Vec<CertificateDer<'static>> {
        self.state.load().bundle.clone()
    }

    /// The same, now and after each change.
    pub fn bundles(&self) -> watch::Receiver<Arc<[CertificateDer<'static>]>> {
        self.bundle.subscribe()
    }

    /// Roots that are trusted no more, and shown still to who has only their pin.
    pub fn former(&self) -> Vec<CertificateDer<'static>> {
        self.state.load().former.clone()
    }

    /// SHA-256 of the signing root's public key: what join strings carry.
    ///
    /// # Errors
    /// When the root cannot be read; `open` has read it before.
    pub fn root_key_pin(&self) -> Result<[u8; 32], AuthorityError> {
        Ok(certificate::key_pin(&self.state.load().bundle[0])?)
    }

    /// Signs a member's key for `ttl` from now, backdated by a tenth of it and 60 s at most, within
    /// the issuing CA's life. Returns leaf and issuing CA,
    /// and after a rotation what leads to the roots before.
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
        let state = self.state.load();
        let issuing = &state.issuing;
        let life = Validity {
            not_before: life.not_before.max(issuing.life.not_before),
            not_after: life.not_after.min(issuing.life.not_after),
        };
        if life.not_before >= life.not_after {
            let key = self.key_path(state.roots.signing(clock::wall()));
            return Err(if life.not_after <= issuing.life.not_before {
                AuthorityError::NotYet(key)
            } else {
                AuthorityError::Expired(key)
            });
        }
        let params = shape::leaf(id, instance, life, self.names)?;
        let leaf = params.signed_by(&key.to_rcgen()?, &issuing.issuer)?;
        let chain = [leaf.der().clone(), issuing.certificate.clone()];
        Ok(chain.into_iter().chain(state.crosses.clone()).collect())
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
        self.certified(&draft, chain, generation)
    }

    /// Puts a chain of this CA and its key together, with the roots of this moment.
    ///
    /// # Errors
    /// When they do not fit.
    pub fn certified(
        &self,
        draft: &Draft,
        chain: Vec<CertificateDer<'static>>,
        generation: u64,
    ) -> Result<Svid, AuthorityError> {
        let state = self.state.load();
        let svid = draft.certified(chain, state.bundle.clone(), generation)?;
        Ok(svid.trusting(state.bundle.clone(), state.former.clone())?)
    }

    /// Whether this CA signed the chain, whatever its dates.
    pub(super) fn has_signed(&self, chain: &[CertificateDer<'_>], not_before: SystemTime) -> bool {
        let Some((leaf, rest)) = chain.split_first() else {
            return false;
        };
        member_signed(leaf, &self.state.load().known, rest, not_before).is_ok()
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
