//! The operator of a local mesh: makes the development CA on first use, keeps its own certificate
//! fresh, and invites the sidecars.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use super::{error::UpError, state::State};
use crate::{
    domain::{Fault, Member, Reason, SpiffeId, TrustDomain},
    identity::{Authority, Credentials, Due, Expect, Names, Svid, renewal_due, write_secret},
    pb::{self, identity_client::IdentityClient},
    runtime::{Nursery, clock},
    transport::{Pool, Target},
};

/// Life of the operator's certificate.
const OPERATOR_LIFE: Duration = Duration::from_secs(24 * 60 * 60);
/// A certificate that ended this long ago is not counted on for a rejoin, which the registry takes
/// for 7 days: a new invitation is on the safe side.
const REJOIN_TRUSTED: Duration = Duration::from_secs(6 * 24 * 60 * 60);

/// Acts for whoever runs `attache up`.
#[derive(Debug)]
pub struct Operator {
    authority: Authority,
    id: SpiffeId,
    dir: PathBuf,
    credentials: Credentials,
}

impl Operator {
    /// Opens the CA in the state, or makes it, and signs the operator a certificate for a day.
    ///
    /// # Errors
    /// When the CA cannot be used, or is of another trust domain.
    pub fn prepare(state: &State, domain: &TrustDomain) -> Result<Self, UpError> {
        let ca = state.path("ca");
        let authority = if Authority::exists(&ca) {
            Authority::open(&ca)?
        } else {
            Authority::create(&ca, domain, Names::Development)?
        };
        if authority.trust_domain() != domain {
            let found = authority.trust_domain().to_string();
            return Err(UpError::OtherDomain {
                found,
                wanted: domain.to_string(),
            });
        }
        let name = "local".parse().expect("a plain word is a label");
        let id = SpiffeId {
            trust_domain: domain.clone(),
            member: Member::Operator(name),
        };
        let svid = authority.svid(&id, None, OPERATOR_LIFE)?;
        let dir = state.private("operator")?;
        svid.save(&dir)?;
        Ok(Self {
            authority,
            id,
            dir,
            credentials: Credentials::new(svid),
        })
    }

    /// Signs a new certificate when half of the present one's life is over, when it is not valid by
    /// this clock, or when other roots are trusted.
    ///
    /// # Errors
    /// When it cannot be signed or written.
    pub fn refresh(&self, now: SystemTime) -> Result<(), UpError> {
        self.authority.refresh(now)?;
        let present = self.credentials.current();
        let same_roots = present.bundle() == self.authority.bundle();
        if same_roots && matches!(renewal_due(present.peer(), now, 0.5), Due::In(_)) {
            return Ok(());
        }
        let svid = self.authority.svid(&self.id, None, OPERATOR_LIFE)?;
        svid.save(&self.dir)?;
        self.credentials.replace(svid);
        Ok(())
    }

    /// Writes a join string for `id` to `join`, unless `dir` holds a certificate that will do.
    ///
    /// # Errors
    /// When the registry refuses.
    pub async fn invite(
        &self,
        registry: &str,
        id: &SpiffeId,
        dir: &Path,
        join: &Path,
        nursery: &Nursery,
    ) -> Result<(), UpError> {
        let saved = Svid::load(dir).ok();
        let usable = saved
            .as_ref()
            .is_some_and(|svid| clock::wall() < svid.peer().not_after + REJOIN_TRUSTED);
        if usable {
            return Ok(());
        }
        let instance = saved.and_then(|svid| svid.peer().instance.clone());
        let pool = Pool::new(self.credentials.clone(), nursery.clone());
        let target = Target {
            endpoints: vec![registry.to_owned()],
            expect: Some(Expect::AnyRegistry),
        };
        let request = pb::CreateJoinTokenRequest {
            spiffe_id: id.to_string(),
            ttl: None,
            instance_id: instance.map(|id| id.to_string()).unwrap_or_default(),
        };
        let answer = IdentityClient::new(pool.channel(target))
            .create_join_token(request)
            .await;
        let fault = |text: String| UpError::Invite(Fault::new(Reason::PeerUnreachable, text));
        let answer = answer
            .map_err(|status| fault(status.message().to_owned()))?
            .into_inner();
        write_secret(join, &answer.join).map_err(|error| fault(error.to_string()))
    }

    /// The instance that a sidecar's saved certificate names.
    pub fn instance_in(&self, dir: &Path) -> Option<String> {
        let svid = Svid::load(dir).ok()?;
        svid.peer().instance.as_ref().map(ToString::to_string)
    }
}
