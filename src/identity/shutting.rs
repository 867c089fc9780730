//! A registry's list of who is shut out: kept durably, in force at its own listeners, told to members.
//!
//! ```text
//! Revoke --asks--> keeper --writes--> ledger
//!                    '--then--> own credentials, and whoever watches
//! ```
//!
//! One task does both, so that a caller who does not wait leaves nothing half done.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};

use crate::identity::credentials::Credentials;
use crate::identity::ledger::{Ledger, LedgerError};
use crate::identity::revocation::{Revocation, Revocations, Revoked};
use crate::runtime::{Stop, clock};

/// Revocations that wait to be written. More wait at their callers.
const WAITING: usize = 16;

/// A revocation that was carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// Of the list that has it.
    pub revision: u64,
    /// Instances that were known, and are no more.
    pub forgotten: usize,
}

type Asked = (Revocation, oneshot::Sender<Result<Done, LedgerError>>);

/// Where revocations are asked for and heard of. Clones share it.
#[derive(Clone, Debug)]
pub struct Shutting {
    asked: mpsc::Sender<Asked>,
    told: watch::Receiver<Arc<Revocations>>,
}

/// Who carries them out.
pub struct Keeper {
    ledger: Arc<dyn Ledger>,
    credentials: Credentials,
    asked: mpsc::Receiver<Asked>,
    told: watch::Sender<Arc<Revocations>>,
}

impl Shutting {
    /// With what the ledger has, which is in force at `credentials` from now on. The keeper is to
    /// be run.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub async fn open(
        ledger: Arc<dyn Ledger>,
        credentials: Credentials,
    ) -> Result<(Self, Keeper), LedgerError> {
        let list = ledger.revocations().await?;
        credentials.shut_out(Revoked::of(list.all.iter().cloned()));
        let told = watch::Sender::new(Arc::new(list));
        let (ask, asked) = mpsc::channel(WAITING);
        let shutting = Self {
            asked: ask,
            told: told.subscribe(),
        };
        let keeper = Keeper {
            ledger,
            credentials,
            asked,
            told,
        };
        Ok((shutting, keeper))
    }

    /// Shuts somebody out. It is durable and in force
    /// here then, whether the caller still waits or not.
    ///
    /// # Errors
    /// As [`Ledger::revoke`]; also when this registry stops.
    pub async fn revoke(&self, revocation: Revocation) -> Result<Done, LedgerError> {
        let stopping = || LedgerError::Store("this registry is stopping".into());
        let (done, outcome) = oneshot::channel();
        let asked = self.asked.send((revocation, done)).await;
        asked.map_err(|_| stopping())?;
        outcome.await.unwrap_or_else(|_| Err(stopping()))
    }

    /// The list, now and after each change.
    pub fn watch(&self) -> watch::Receiver<Arc<Revocations>> {
        self.told.clone()
    }
}

impl Keeper {
    /// Carries out what is asked for until `stop`.
    pub async fn run(mut self, stop: Stop) {
        loop {
            let (revocation, done) = tokio::select! {
                () = stop.cancelled() => return,
                asked = self.asked.recv() => match asked {
                    Some(asked) => asked,
                    None => return,
                },
            };
            let outcome = self.carry_out(revocation).await;
            // Nobody may be waiting any more.
            drop(done.send(outcome));
        }
    }

    async fn carry_out(&self, revocation: Revocation) -> Result<Done, LedgerError> {
        let (list, forgotten) = self.ledger.revoke(revocation, clock::wall()).await?;
        let revision = list.revision;
        self.credentials
            .shut_out(Revoked::of(list.all.iter().cloned()));
        self.told.send_replace(Arc::new(list));
        Ok(Done {
            revision,
            forgotten,
        })
    }
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper").finish_non_exhaustive()
    }
}
