//! `Enrollment`: a join token, or an expired certificate and its key, for a valid certificate.
//!
//! Reached without a client certificate. What is refused is told in one sentence that does not say
//! which check failed; our own log says it.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::pki_types::CertificateDer;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use crate::domain::Fault;
use crate::domain::InstanceId;
use crate::domain::Reason;
use crate::domain::SpiffeId;
use crate::identity::authority::{Authority, AuthorityError, ISSUED_LIFE, ROOTS_MAX};
use crate::identity::certificate;
use crate::identity::csr::PublicKey;
use crate::identity::ledger::{Ledger, LedgerError, Redeemed, Redemption, TokenRecord};
use crate::identity::peer::Connection;
use crate::identity::revocation::Revoked;
use crate::identity::token::{Guesses, Token};
use crate::pb;
use crate::pb::enrollment_server::Enrollment;
use crate::runtime::clock;
use crate::telemetry::metrics::Outcomes;

/// How long after its end a certificate may be rejoined with.
pub const REJOIN_WINDOW: Duration = Duration::from_hours(7 * 24);
/// How long after a revocation nothing is issued to whom it names.
const REFUSED_FOR: Duration = Duration::from_secs(1);
/// Longest nonce, in bytes.
pub const NONCE_MAX: usize = 64;
/// Most certificates in a chain to rejoin with: leaf, issuing CA, what leads to former roots, root.
const CHAIN_MAX: usize = 2 + ROOTS_MAX;
/// Keeps a rejoin's signature apart from all else that a member's key signs.
const REJOIN_CONTEXT: &[u8] = b"attache rejoin v1\0";

/// Labels of the counts.
const JOIN: &str = "join";
const REJOIN: &str = "rejoin";
const OK: &str = "ok";

/// Makes members of those who may be.
pub struct EnrollmentService {
    authority: Arc<Authority>,
    ledger: Arc<dyn Ledger>,
    guesses: Guesses,
    outcomes: Outcomes<2>,
    wall: fn() -> SystemTime,
}

/// What the holder of an expired certificate's key signs: the request, bound to one connection.
pub(super) fn rejoin_message(csr: &[u8], exporter: &[u8; 32]) -> Vec<u8> {
    // Fixed sizes first: no two pairs of parts give the same bytes.
    [REJOIN_CONTEXT, exporter, csr].concat()
}

impl EnrollmentService {
    /// Signs with `authority`, remembers in `ledger`.
    pub fn new(authority: Arc<Authority>, ledger: Arc<dyn Ledger>) -> Self {
        Self {
            authority,
            ledger,
            guesses: Guesses::default(),
            outcomes: Outcomes::of([[JOIN, OK], [REJOIN, OK]]),
            wall: clock::wall,
        }
    }

    /// Counts by kind and outcome, for the process' metrics. Clones go on counting.
    pub fn outcomes(&self) -> Outcomes<2> {
        self.outcomes.clone()
    }

    /// The same with another clock, for tests that live through a week.
    #[must_use]
    pub fn with_clock(mut self, wall: fn() -> SystemTime) -> Self {
        self.wall = wall;
        self
    }

    async fn enrolled(&self, request: &pb::EnrollRequest) -> Result<pb::Svid, Fault> {
        if request.nonce.len() > NONCE_MAX {
            return Err(Fault::field("nonce", "a nonce has at most 64 bytes"));
        }
        let key = PublicKey::of_request(&request.csr)?;
        let token = Token::parse(&request.token).ok_or_else(|| refused_token("unreadable"))?;
        let record = self
            .ledger
            .token(&token.hash())
            .await
            .map_err(from_ledger)?;
        let record = record.ok_or_else(|| refused_token("unknown"))?;
        let instance = chosen_instance(&record, &request.instance_id)?;
        let redemption = self.redemption(&record, key, instance, &request.nonce)?;
        self.is_not_refused(&redemption).await?;
        let redeemed = self.ledger.redeem(&token.hash(), redemption).await;
        let redeemed = redeemed.map_err(|error| {
            if error == LedgerError::InstanceUnknown {
                refused_token("for an instance of another member")
            } else {
                from_ledger(error)
            }
        })?;
        let id = &record.entry.id;
        tracing::info!(%id, instance = ?redeemed.instance, generation = redeemed.generation, "enrolled");
        answer(&self.authority, redeemed)
    }

    /// Signs ahead of the decision, so that what the ledger stores is the very answer.
    fn redemption(
        &self,
        record: &TokenRecord,
        key: PublicKey,
        instance: Option<InstanceId>,
        nonce: &[u8],
    ) -> Result<Redemption, Fault> {
        let now = (self.wall)();
        let id = &record.entry.id;
        // Operators and registries have no sidecar that would renew theirs every half hour.
        let life = if instance.is_some() {
            self.authority.leaf_life()
        } else {
            ISSUED_LIFE
        };
        let chain = self.authority.issue(&key, id, instance.as_ref(), life);
        Ok(Redemption {
            now,
            key: key.hash(),
            nonce: nonce.to_vec(),
            instance,
            chain: chain
                .map_err(from_authority)?
                .iter()
                .map(|der| der.to_vec())
                .collect(),
        })
    }

    /// A certificate of the second in which its member was shut out would be refused as well.
    async fn is_not_refused(&self, redemption: &Redemption) -> Result<(), Fault> {
        let revocations = self.ledger.revocations().await.map_err(from_ledger)?;
        let leaf = redemption
            .chain
            .first()
            .map(|der| certificate::peer_of(der));
        let Some(Ok(peer)) = leaf else {
            return Ok(());
        };
        if Revoked::of(revocations.all).refuses(&peer) {
            let text = "the member was shut out just now: try again in a second";
            return Err(Fault::new(Reason::RateLimited, text).retry_after(REFUSED_FOR));
        }
        Ok(())
    }

    async fn rejoined(
        &self,
        connection: &Connection,
        request: &pb::RejoinRequest,
    ) -> Result<pb::Svid, Fault> {
        let new = PublicKey::of_request(&request.csr)?;
        if request.chain.len() > CHAIN_MAX {
            return Err(Fault::field("chain", "a chain has at most 6 certificates"));
        }
        let chain: Vec<_> = request
            .chain
            .iter()
            .map(|der| CertificateDer::from(&der[..]))
            .collect();
        let leaf = chain
            .first()
            .ok_or_else(|| refused_rejoin("no certificate"))?;
        let peer = certificate::peer_of(leaf).map_err(|_| refused_rejoin("not a member's"))?;
        if peer.id.trust_domain != *self.authority.trust_domain()
            || !self.authority.has_signed(&chain, peer.not_before)
        {
            return Err(refused_rejoin("signed by somebody else"));
        }
        if (self.wall)() > peer.not_after + REJOIN_WINDOW {
            return Err(refused_rejoin("expired more than 7 days ago"));
        }
        let exporter = connection.exporter.as_ref();
        let exporter = exporter.ok_or_else(|| refused_rejoin("connection without an exporter"))?;
        let old = certificate::public_key(leaf).ok();
        let old = old.and_then(|spki| PublicKey::of_spki(&spki).ok());
        let message = rejoin_message(&request.csr, exporter);
        if !old.is_some_and(|old| old.has_signed(&message, &request.proof)) {
            return Err(refused_rejoin("no proof of the key"));
        }
        let instance = peer.instance.as_ref();
        let instance = instance.ok_or_else(|| refused_rejoin("no instance"))?;
        let known = self.ledger.instance(instance).await.map_err(from_ledger)?;
        let known = known.filter(|known| known.id == peer.id);
        let known = known.ok_or_else(|| refused_rejoin("instance not known here"))?;
        let from = known.held_by(peer.key, new.hash());
        let from = from.ok_or_else(|| refused_rejoin("not the latest certificate"))?;
        let svid = reissue(
            &self.authority,
            &*self.ledger,
            &peer.id,
            instance,
            from,
            &new,
        )
        .await;
        tracing::info!(id = %peer.id, %instance, ok = svid.is_ok(), "rejoined");
        svid.map_err(|fault| {
            if fault.reason == Reason::GenerationStale {
                refused_rejoin("not the latest certificate")
            } else {
                fault
            }
        })
    }

    fn admit<T>(&self, request: &Request<T>) -> Result<(Arc<Connection>, IpAddr), Fault> {
        let connection = Connection::of(request)?;
        // A Unix socket has one caller for all that we can tell.
        let nowhere = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        let remote = connection.remote.map_or(nowhere, |remote| remote.ip());
        self.guesses.admit(remote, Instant::now())?;
        Ok((connection, remote))
    }

    /// Only failures that a guess could cause count; a full or broken store is not the caller's.
    fn judged(&self, remote: IpAddr, outcome: Result<pb::Svid, Fault>) -> Result<pb::Svid, Fault> {
        outcome.inspect_err(|fault| {
            let guessed = matches!(
                fault.reason,
                Reason::TokenRefused | Reason::RejoinRefused | Reason::InvalidCsr
            );
            if guessed {
                self.guesses.failed(remote, Instant::now());
                tracing::warn!(%remote, reason = %fault.reason, "join refused");
            }
        })
    }

    fn counted(
        &self,
        kind: &'static str,
        outcome: Result<pb::Svid, Fault>,
    ) -> Result<pb::Svid, Fault> {
        let label = outcome.as_ref().err();
        let label = label.map_or(OK, |fault| fault.reason.label());
        self.outcomes.count([kind, label]);
        outcome
    }
}

#[tonic::async_trait]
impl Enrollment for EnrollmentService {
    async fn enroll(
        &self,
        request: Request<pb::EnrollRequest>,
    ) -> Result<Response<pb::EnrollResponse>, Status> {
        let svid = match self.admit(&request) {
            Ok((_, remote)) => self.judged(remote, self.enrolled(request.get_ref()).await),
            Err(refused) => Err(refused),
        };
        let svid = Some(self.counted(JOIN, svid)?);
        Ok(Response::new(pb::EnrollResponse { svid }))
    }

    async fn rejoin(
        &self,
        request: Request<pb::RejoinRequest>,
    ) -> Result<Response<pb::RejoinResponse>, Status> {
        let svid = match self.admit(&request) {
            Ok((connection, remote)) => {
                let svid = self.rejoined(&connection, request.get_ref()).await;
                self.judged(remote, svid)
            }
            Err(refused) => Err(refused),
        };
        let svid = Some(self.counted(REJOIN, svid)?);
        Ok(Response::new(pb::RejoinResponse { svid }))
    }
}

impl std::fmt::Debug for EnrollmentService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EnrollmentService")
            .field("authority", &self.authority)
            .finish_non_exhaustive()
    }
}

/// The next certificate of an instance for the holder of generation `from`.
pub(super) async fn reissue(
    authority: &Authority,
    ledger: &dyn Ledger,
    id: &SpiffeId,
    instance: &InstanceId,
    from: u64,
    key: &PublicKey,
) -> Result<pb::Svid, Fault> {
    // Signed first: a generation must not pass without a certificate that has it.
    let chain = authority.issue(key, id, Some(instance), authority.leaf_life());
    let chain = chain.map_err(from_authority)?;
    let advanced = ledger.advance_generation(instance, from, key.hash()).await;
    let redeemed = Redeemed {
        instance: Some(instance.clone()),
        generation: advanced.map_err(from_ledger)?,
        chain: chain.iter().map(|der| der.to_vec()).collect(),
    };
    answer(authority, redeemed)
}

/// A refusal of the ledger, as callers may know it.
pub(super) fn from_ledger(error: LedgerError) -> Fault {
    match &error {
        LedgerError::TokenUnknown | LedgerError::TokenUsed | LedgerError::TokenExpired => {
            refused_token(&error.to_string())
        }
        LedgerError::InstanceUnknown => Fault::new(
            Reason::GenerationStale,
            "this registry does not know the instance: join again with a new token",
        ),
        LedgerError::GenerationStale { .. } => {
            tracing::warn!(%error, "a stale generation was shown: a key may be stolen");
            Fault::new(
                Reason::GenerationStale,
                "another certificate was issued for this instance since: if that was not this \
                 sidecar its key is stolen; join again with a new token",
            )
        }
        LedgerError::Full(_) => Fault::new(
            Reason::QueueFull,
            format!("the registry has {error}: wait until some have expired"),
        )
        .retry_after(Duration::from_secs(60)),
        LedgerError::Store(_) => {
            tracing::error!(%error, "the ledger failed");
            Fault::new(
                Reason::StorageFailed,
                "the registry could not write: see its log",
            )
        }
    }
}

/// A failure of the CA: ours, so that callers learn no details.
pub(super) fn from_authority(error: AuthorityError) -> Fault {
    tracing::error!(%error, "the CA did not sign");
    Fault::new(
        Reason::Internal,
        "the CA could not sign: see the registry's log",
    )
}

fn answer(authority: &Authority, redeemed: Redeemed) -> Result<pb::Svid, Fault> {
    let leaf = redeemed.chain.first().map(|der| certificate::validity(der));
    let Some(Ok((_, not_after))) = leaf else {
        return Err(Fault::new(
            Reason::Internal,
            "the stored certificate cannot be read: see the registry's log",
        ));
    };
    Ok(pb::Svid {
        chain: redeemed.chain,
        bundle: authority.bundle().iter().map(|der| der.to_vec()).collect(),
        instance_id: redeemed
            .instance
            .map_or_else(String::new, |id| id.to_string()),
        generation: redeemed.generation,
        not_after: Some(not_after.into()),
    })
}

/// The token's instance, a new one where it names none, or none for members without instances.
fn chosen_instance(record: &TokenRecord, asked: &str) -> Result<Option<InstanceId>, Fault> {
    let named = record.entry.instance.as_ref();
    if !asked.is_empty() && named.is_none_or(|named| named.as_str() != asked) {
        return Err(refused_token("for another instance"));
    }
    if let Some(named) = named {
        return Ok(Some(named.clone()));
    }
    let fresh = || InstanceId::from_random(rand::random());
    Ok(record.entry.id.member.has_instances().then(fresh))
}

fn refused_token(why: &str) -> Fault {
    tracing::debug!(why, "token refused");
    Fault::new(
        Reason::TokenRefused,
        "the join token is not known, was used, has expired or is for another instance: ask an \
         operator for a new one",
    )
}

fn refused_rejoin(why: &str) -> Fault {
    tracing::debug!(why, "rejoin refused");
    Fault::new(
        Reason::RejoinRefused,
        "this certificate cannot be rejoined with: it must be this mesh's, the latest of its \
         instance, expired for less than 7 days, with a proof of its key; join again with a new \
         token",
    )
}

#[cfg(test)]
mod tests;
