//! How a sidecar comes by its certificate: the saved one, a rejoin, or a join string.

use std::{path::PathBuf, time::Duration};

use tonic::Code;

use super::error::SidecarError;
use crate::{
    domain::Fault,
    identity::{
        Credentials, Draft, Expect, JoinString, Renewer, Svid, certificate::key_pin,
        join as enrollment, join::JoinError, joining_config,
    },
    runtime::{Backoff, Nursery, Stop, clock},
    transport::{Pool, Target, dial_enrollment},
};

/// Longest wait between tries to join: somebody is waiting for it.
const TRY_AGAIN: Backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(5));

/// Where a join string comes from.
#[derive(Clone, Default)]
pub struct Invitation {
    /// The string itself, from the environment.
    pub text: Option<String>,
    /// A file that holds it.
    pub file: Option<PathBuf>,
}

impl std::fmt::Debug for Invitation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Invitation")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

impl Invitation {
    fn read(&self) -> Result<Option<JoinString>, SidecarError> {
        let text = match (&self.text, &self.file) {
            (Some(text), _) => text.clone(),
            (None, Some(file)) if file.exists() => {
                std::fs::read_to_string(file).map_err(|error| {
                    SidecarError::JoinString(format!("{}: {error}", file.display()))
                })?
            }
            (None, _) => return Ok(None),
        };
        let parsed = text.trim().parse::<JoinString>();
        parsed
            .map(Some)
            .map_err(|error| SidecarError::JoinString(error.to_string()))
    }
}

/// Gets certificates for one sidecar.
#[derive(Clone, Debug)]
pub(super) struct Joiner {
    pub(super) dir: PathBuf,
    pub(super) registry: Vec<String>,
    pub(super) enrollment: Vec<String>,
    pub(super) invitation: Invitation,
    pub(super) nursery: Nursery,
}

impl Joiner {
    /// The saved certificate, made valid again if need be, or a first one. Tries until `stop`
    /// while the registry cannot be reached.
    ///
    /// # Errors
    /// When there is no invitation, or the registry refuses.
    pub(super) async fn credentials(
        &self,
        stop: &Stop,
    ) -> Result<Option<Credentials>, SidecarError> {
        if Svid::is_saved(&self.dir) {
            let saved = Svid::load(&self.dir)?;
            if saved.is_valid_at(clock::wall()) {
                return Ok(Some(Credentials::new(saved)));
            }
            tracing::info!("the saved certificate has expired: rejoining");
            match self.again(stop, || self.rejoin_kept(&saved)).await? {
                Tried::Done(svid) => return Ok(Some(Credentials::new(svid))),
                Tried::Stopped => return Ok(None),
                Tried::Refused(why) if self.invitation.read()?.is_none() => {
                    return Err(SidecarError::Refused(why));
                }
                Tried::Refused(why) => {
                    tracing::warn!(why, "the rejoin was refused: using the join string");
                }
            }
        }
        let dir = self.dir.display().to_string();
        let invited = self
            .invitation
            .read()?
            .ok_or(SidecarError::NotInvited { dir })?;
        let nonce: [u8; 16] = rand::random();
        match self.again(stop, || self.enroll(&invited, nonce)).await? {
            Tried::Done(svid) => Ok(Some(Credentials::new(svid))),
            Tried::Stopped => Ok(None),
            Tried::Refused(why) => Err(SidecarError::Refused(why)),
        }
    }

    async fn again<F>(&self, stop: &Stop, attempt: impl Fn() -> F) -> Result<Tried, SidecarError>
    where
        F: Future<Output = Result<Svid, JoinError>>,
    {
        let mut backoff = TRY_AGAIN;
        loop {
            let error = match Box::pin(attempt()).await {
                Ok(svid) => {
                    svid.save(&self.dir)?;
                    if let Err(error) = Draft::settle(&self.dir) {
                        tracing::warn!(%error, "a used key is left behind");
                    }
                    return Ok(Tried::Done(svid));
                }
                Err(error) => error,
            };
            if !passing(&error) {
                return Ok(Tried::Refused(error.to_string()));
            }
            tracing::warn!(%error, "the registry is not reached: trying again");
            tokio::select! {
                () = tokio::time::sleep(backoff.next(rand::random())) => {}
                () = stop.cancelled() => return Ok(Tried::Stopped),
            }
        }
    }

    async fn enroll(&self, invited: &JoinString, nonce: [u8; 16]) -> Result<Svid, JoinError> {
        let draft = self.draft()?;
        let config = joining_config(invited.pin);
        let (channel, _) = Box::pin(dial_enrollment(&self.enrollment, config, &self.nursery))
            .await
            .map_err(refused)?;
        enrollment::enroll(channel, invited, &draft, nonce).await
    }

    async fn rejoin_kept(&self, present: &Svid) -> Result<Svid, JoinError> {
        let draft = self.draft()?;
        self.rejoin_with(present, &draft).await
    }

    async fn rejoin_with(&self, present: &Svid, draft: &Draft) -> Result<Svid, JoinError> {
        // The roots that we know are the pin now.
        let root = present.bundle().first().ok_or(JoinError::Pin)?;
        let config = joining_config(key_pin(root).map_err(|_| JoinError::Pin)?);
        let (channel, exporter) =
            Box::pin(dial_enrollment(&self.enrollment, config, &self.nursery))
                .await
                .map_err(refused)?;
        enrollment::rejoin(channel, &exporter, present, draft).await
    }

    fn draft(&self) -> Result<Draft, JoinError> {
        Draft::kept_in(&self.dir)
            .map_err(|error| JoinError::Refused(tonic::Status::internal(error.to_string())))
    }
}

enum Tried {
    Done(Svid),
    Refused(String),
    Stopped,
}

/// Whether another try may end otherwise.
fn passing(error: &JoinError) -> bool {
    match error {
        JoinError::Refused(status) => matches!(
            status.code(),
            Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted | Code::Aborted
        ),
        JoinError::Empty
        | JoinError::Unfit(_)
        | JoinError::Pin
        | JoinError::Stranger { .. }
        | JoinError::Authority(_)
        | JoinError::Sign(_) => false,
    }
}

fn refused(fault: Fault) -> JoinError {
    JoinError::Refused(fault.into())
}

/// Renewals of a running sidecar.
pub(super) struct Renewals {
    pub(super) joiner: Joiner,
    pub(super) pool: Pool,
}

#[tonic::async_trait]
impl Renewer for Renewals {
    async fn renew(&self, present: &Svid, draft: &Draft) -> Result<Svid, JoinError> {
        let endpoints = self.joiner.registry.clone();
        let target = Target {
            endpoints,
            expect: Some(Expect::AnyRegistry),
        };
        enrollment::renew(self.pool.channel(target), present, draft).await
    }

    async fn rejoin(&self, present: &Svid, draft: &Draft) -> Result<Svid, JoinError> {
        self.joiner.rejoin_with(present, draft).await
    }
}
