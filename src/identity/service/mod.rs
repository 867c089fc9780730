//! `Identity`: what members ask of the registry's CA over mutual TLS.

use std::{fmt, pin::Pin, sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt, stream};
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use crate::domain::Fault;
use crate::domain::InstanceId;
use crate::domain::Member;
use crate::domain::Reason;
use crate::domain::SpiffeId;
use crate::identity::authority::Authority;
use crate::identity::authorize::{Action, authorize};
use crate::identity::certificate::sha256;
use crate::identity::csr::PublicKey;
use crate::identity::enrollment::{from_authority, from_ledger, reissue};
use crate::identity::ledger::Ledger;
use crate::identity::peer::Connection;
use crate::identity::revocation::{Revocation, Revocations};
use crate::identity::shutting::{Done, Shutting};
use crate::identity::token::{TOKEN_LIFE, TokenError, create_join_token};
use crate::pb;
use crate::pb::identity_server::Identity;
use crate::runtime::Stop;
use crate::runtime::clock;

/// Longest reason of a revocation, in bytes.
const REASON_MAX: usize = 1024;

/// Renews members' certificates, makes join tokens for operators, and shuts out whom they name.
pub struct IdentityService {
    authority: Arc<Authority>,
    ledger: Arc<dyn Ledger>,
    shutting: Shutting,
    stop: Stop,
}

impl IdentityService {
    /// Signs with `authority`, remembers in `ledger`, whose revocations are `shutting`'s; open
    /// watches end at `stop`.
    pub fn new(
        authority: Arc<Authority>,
        ledger: Arc<dyn Ledger>,
        shutting: Shutting,
        stop: Stop,
    ) -> Self {
        Self {
            authority,
            ledger,
            shutting,
            stop,
        }
    }

    async fn renewed(
        &self,
        connection: &Connection,
        request: &pb::RenewRequest,
    ) -> Result<pb::Svid, Fault> {
        let peer = connection.member()?;
        let key = PublicKey::of_request(&request.csr)?;
        let Some(instance) = &peer.instance else {
            return Err(Fault::new(
                Reason::PermissionDenied,
                "only a sidecar's certificate is renewed: issue a new one with `attache ca issue`",
            ));
        };
        let known = self.ledger.instance(instance).await.map_err(from_ledger)?;
        if known.is_none_or(|known| known.id != peer.id) {
            return Err(Fault::new(
                Reason::GenerationStale,
                "this registry does not know the instance: join again with a new token",
            ));
        }
        let from = request.generation;
        let svid = reissue(
            &self.authority,
            &*self.ledger,
            &peer.id,
            instance,
            from,
            &key,
        )
        .await?;
        tracing::debug!(id = %peer.id, %instance, generation = svid.generation, "renewed");
        Ok(svid)
    }

    async fn token(
        &self,
        connection: &Connection,
        request: &pb::CreateJoinTokenRequest,
    ) -> Result<pb::CreateJoinTokenResponse, Fault> {
        let operator = &connection.member()?.id;
        authorize(operator, Action::Admin, None)?;
        let id = id_of(&request.spiffe_id)?;
        let life = match request.ttl {
            None => TOKEN_LIFE,
            // A negative life is none at all; both are refused by their bounds.
            Some(ttl) => Duration::try_from(ttl).unwrap_or_default(),
        };
        let instance = instance_of(&request.instance_id)?;
        let now = clock::wall();
        let ledger = &*self.ledger;
        let made = create_join_token(&self.authority, ledger, id.clone(), instance, life, now);
        let (join, expires_at) = made.await.map_err(from_token)?;
        tracing::info!(%operator, %id, "join token made");
        Ok(pb::CreateJoinTokenResponse {
            join: join.reveal(),
            expires_at: Some(expires_at.into()),
        })
    }
}

impl IdentityService {
    async fn revoked(
        &self,
        connection: &Connection,
        request: &pb::RevokeRequest,
    ) -> Result<Done, Fault> {
        let operator = &connection.member()?.id;
        authorize(operator, Action::Admin, None)?;
        let id = id_of(&request.spiffe_id)?;
        if id.trust_domain != *self.authority.trust_domain() {
            return Err(Fault::field("spiffe_id", "not a member of this mesh"));
        }
        let instance = instance_of(&request.instance_id)?;
        match id.member {
            // Every member would take us for an impostor, and this registry holds the CA itself.
            Member::Registry(_) => {
                let text = "a registry is not shut out by its certificate: take its CA out of use";
                return Err(Fault::field("spiffe_id", text));
            }
            Member::Agent(_) | Member::Service(_) | Member::Operator(_) => {}
        }
        if request.reason.len() > REASON_MAX {
            return Err(Fault::field("reason", "a reason has at most 1024 bytes"));
        }
        let revocation = Revocation::at(clock::wall(), id.clone(), instance.clone());
        let done = self.shutting.revoke(revocation).await;
        let done = done.map_err(from_ledger)?;
        let (revision, instances) = (done.revision, done.forgotten);
        let reason = &*request.reason;
        tracing::warn!(%operator, %id, ?instance, ?reason, revision, instances, "shut out");
        Ok(done)
    }
}

/// What a watch tells of: who is shut out, and whom to trust.
struct Told {
    shut_out: watch::Receiver<Arc<Revocations>>,
    roots: watch::Receiver<Arc<[CertificateDer<'static>]>>,
}

impl Told {
    fn message(&mut self) -> pb::WatchBundleResponse {
        let list = Arc::clone(&self.shut_out.borrow_and_update());
        let roots = Arc::clone(&self.roots.borrow_and_update());
        pb::WatchBundleResponse {
            revision: list.revision,
            generation: generation(&list.generation, &roots),
            revocations: list.all.iter().map(Revocation::message).collect(),
            bundle: roots.iter().map(|der| der.to_vec()).collect(),
        }
    }

    /// What is in force now, unless it is `known`, and after each change.
    fn messages(self, known: bool) -> impl Stream<Item = pb::WatchBundleResponse> {
        stream::unfold((self, known), |(mut told, known)| async move {
            if known {
                // Their senders go with the registry.
                tokio::select! {
                    changed = told.shut_out.changed() => changed.ok()?,
                    changed = told.roots.changed() => changed.ok()?,
                }
            }
            let message = told.message();
            Some((message, (told, true)))
        })
    }
}

/// Names the store that revisions count in, and the roots, which no revision counts.
fn generation(store: &str, roots: &[CertificateDer<'_>]) -> String {
    let all: Vec<_> = roots.iter().flat_map(|der| der.iter().copied()).collect();
    let sum = sha256(&all);
    let short: String = sum[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{store}/{short}")
}

fn id_of(text: &str) -> Result<SpiffeId, Fault> {
    let id = text.parse::<SpiffeId>();
    id.map_err(|error| Fault::field("spiffe_id", error.to_string()))
}

fn instance_of(text: &str) -> Result<Option<InstanceId>, Fault> {
    if text.is_empty() {
        return Ok(None);
    }
    let instance = text.parse::<InstanceId>();
    let instance = instance.map_err(|error| Fault::field("instance_id", error.to_string()));
    instance.map(Some)
}

#[tonic::async_trait]
impl Identity for IdentityService {
    type WatchBundleStream =
        Pin<Box<dyn Stream<Item = Result<pb::WatchBundleResponse, Status>> + Send>>;

    async fn renew(
        &self,
        request: Request<pb::RenewRequest>,
    ) -> Result<Response<pb::RenewResponse>, Status> {
        let connection = Connection::of(&request)?;
        let svid = Some(self.renewed(&connection, request.get_ref()).await?);
        Ok(Response::new(pb::RenewResponse { svid }))
    }

    /// All in force first, unless the caller has it; then each change.
    async fn watch_bundle(
        &self,
        request: Request<pb::WatchBundleRequest>,
    ) -> Result<Response<Self::WatchBundleStream>, Status> {
        Connection::of(&request)?.member()?;
        let request = request.get_ref();
        let mut told = Told {
            shut_out: self.shutting.watch(),
            roots: self.authority.bundles(),
        };
        let now = told.message();
        let known =
            (request.after_revision, &request.generation) == (now.revision, &now.generation);
        let open = told.messages(known).map(Ok);
        let stopped = self.stop.clone().cancelled_owned();
        Ok(Response::new(Box::pin(open.take_until(stopped))))
    }

    async fn create_join_token(
        &self,
        request: Request<pb::CreateJoinTokenRequest>,
    ) -> Result<Response<pb::CreateJoinTokenResponse>, Status> {
        let connection = Connection::of(&request)?;
        let made = self.token(&connection, request.get_ref()).await?;
        Ok(Response::new(made))
    }

    async fn revoke(
        &self,
        request: Request<pb::RevokeRequest>,
    ) -> Result<Response<pb::RevokeResponse>, Status> {
        let connection = Connection::of(&request)?;
        let done = self.revoked(&connection, request.get_ref()).await?;
        Ok(Response::new(pb::RevokeResponse {
            revision: done.revision,
            instances: u32::try_from(done.forgotten).unwrap_or(u32::MAX),
        }))
    }

    async fn issue_token(
        &self,
        request: Request<pb::IssueTokenRequest>,
    ) -> Result<Response<pb::IssueTokenResponse>, Status> {
        Connection::of(&request)?.member()?;
        Err(not_yet("IssueToken"))
    }
}

impl fmt::Debug for IdentityService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdentityService")
            .field("authority", &self.authority)
            .finish_non_exhaustive()
    }
}

fn not_yet(call: &str) -> Status {
    let text = format!("{call} is not served by this version");
    Fault::new(Reason::Unimplemented, text).into()
}

fn from_token(error: TokenError) -> Fault {
    match error {
        TokenError::Life => Fault::field("ttl", error.to_string()),
        TokenError::Foreign(_) => Fault::field("spiffe_id", error.to_string()),
        TokenError::Instance(_) => Fault::field("instance_id", error.to_string()),
        TokenError::Ledger(error) => from_ledger(error),
        TokenError::Authority(error) => from_authority(error),
    }
}

#[cfg(test)]
mod tests;
