//! `Identity`: what members ask of the registry's CA over mutual TLS.

use std::{fmt, pin::Pin, sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt, stream};
use tonic::{Request, Response, Status};

use crate::domain::Fault;
use crate::domain::InstanceId;
use crate::domain::Reason;
use crate::domain::SpiffeId;
use crate::identity::authority::Authority;
use crate::identity::authorize::{Action, authorize};
use crate::identity::csr::PublicKey;
use crate::identity::enrollment::{from_authority, from_ledger, reissue};
use crate::identity::ledger::Ledger;
use crate::identity::peer::Connection;
use crate::identity::token::{TOKEN_LIFE, TokenError, create_join_token};
use crate::pb;
use crate::pb::identity_server::Identity;
use crate::runtime::Stop;
use crate::runtime::clock;

/// Renews members' certificates, and makes join tokens for operators.
pub struct IdentityService {
    authority: Arc<Authority>,
    ledger: Arc<dyn Ledger>,
    stop: Stop,
}

impl IdentityService {
    /// Signs with `authority`, remembers in `ledger`; open watches end at `stop`.
    pub fn new(authority: Arc<Authority>, ledger: Arc<dyn Ledger>, stop: Stop) -> Self {
        Self {
            authority,
            ledger,
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
        let id: SpiffeId = request
            .spiffe_id
            .parse()
            .map_err(|error| Fault::field("spiffe_id", format!("{error}")))?;
        let life = match request.ttl {
            None => TOKEN_LIFE,
            // A negative life is none at all; both are refused by their bounds.
            Some(ttl) => Duration::try_from(ttl).unwrap_or_default(),
        };
        let instance = match request.instance_id.as_str() {
            "" => None,
            text => Some(
                text.parse::<InstanceId>()
                    .map_err(|error| Fault::field("instance_id", error.to_string()))?,
            ),
        };
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

    /// The bundle once; the stream then stays open for changes, of which this version has none.
    async fn watch_bundle(
        &self,
        request: Request<pb::WatchBundleRequest>,
    ) -> Result<Response<Self::WatchBundleStream>, Status> {
        Connection::of(&request)?.member()?;
        let first = pb::WatchBundleResponse {
            revision: 1,
            bundle: self
                .authority
                .bundle()
                .iter()
                .map(|der| der.to_vec())
                .collect(),
            revocations: Vec::new(),
            generation: String::new(),
        };
        let open = stream::once(async { Ok(first) }).chain(stream::pending());
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
        authorize(&connection.member()?.id, Action::Admin, None)?;
        Err(not_yet("Revoke"))
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
