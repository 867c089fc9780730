//! Keeps a member's certificate valid: when to renew is decided purely, then done in a loop.
//!
//! A failed renewal keeps the old certificate and tries again. Never ends by itself.

mod counted;
mod own;

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use rustls::pki_types::CertificateDer;
use tokio::time::{Instant, sleep, timeout};

use crate::identity::credentials::Credentials;
use crate::identity::csr::{Draft, DraftError};
use crate::identity::files::FileError;
use crate::identity::join::JoinError;
use crate::identity::peer::Peer;
use crate::identity::svid::{Svid, SvidError};
use crate::runtime::Stop;
use crate::runtime::clock;

pub use counted::Counted;
pub use own::OwnSigner;

/// Renew at half of life: leaves room for many failed tries.
const RENEW_AT: f64 = 0.5;
/// Spread of that moment, as a share of it: members that joined together do not renew together.
const SPREAD: f64 = 0.1;
/// Longest time between two looks at the wall clock: timers stand still while a laptop sleeps, and a
/// clock that was set ends certificates at once. A lease of 15 s should not run out over it.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// First wait after a failure; doubles.
const RETRY_FIRST: Duration = Duration::from_millis(500);
/// Longest wait after a failure, and never more than this part of the certificate's life: half of it
/// is all the time there is.
const RETRY_MOST: Duration = Duration::from_mins(1);
const RETRY_PART: u32 = 20;
/// Longest time that one attempt may take: connect, handshake and call. Never more than this part
/// of the certificate's life, and never less than a busy registry needs.
const ATTEMPT: Duration = Duration::from_secs(15);
const ATTEMPT_PART: u32 = 8;
const ATTEMPT_LEAST: Duration = Duration::from_secs(1);

/// What to do about a certificate now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing for this long.
    In(Duration),
    /// Renew over mutual TLS.
    Renew,
    /// It is not valid now: rejoin with its key.
    Rejoin,
}

/// What is due at wall time `now`; `chance` from 0 to 1 picks the moment within its spread.
pub fn renewal_due(peer: &Peer, now: SystemTime, chance: f64) -> Due {
    let Ok(age) = now.duration_since(peer.not_before) else {
        return Due::Rejoin;
    };
    if now > peer.not_after {
        return Due::Rejoin;
    }
    let shift = 1.0 + SPREAD * (chance.clamp(0.0, 1.0) * 2.0 - 1.0);
    let moment = life_of(peer).mul_f64(RENEW_AT * shift);
    match moment.checked_sub(age) {
        None | Some(Duration::ZERO) => Due::Renew,
        Some(left) => Due::In(left),
    }
}

/// What is due of a certificate whose root is to go, `noticed` as long ago: a tenth of its life is
/// time for all members to be served, and none should use it to its end.
pub fn rotation_due(life: Duration, noticed: Duration, chance: f64) -> Due {
    let moment = life.mul_f64(SPREAD * chance.clamp(0.0, 1.0));
    match moment.checked_sub(noticed) {
        None | Some(Duration::ZERO) => Due::Renew,
        Some(left) => Due::In(left),
    }
}

impl Due {
    /// Whichever comes first; what is not valid now can only rejoin.
    fn or_sooner(self, other: Self) -> Self {
        match (self, other) {
            (Self::Rejoin, _) | (_, Self::Rejoin) => Self::Rejoin,
            (Self::Renew, _) | (_, Self::Renew) => Self::Renew,
            (Self::In(one), Self::In(two)) => Self::In(one.min(two)),
        }
    }
}

/// Dials the registry and asks: what the loop needs from the layers above.
#[tonic::async_trait]
pub trait Renewer: Send + Sync {
    /// [`crate::identity::join::renew`] over mutual TLS.
    async fn renew(&self, present: &Svid, draft: &Draft) -> Result<Svid, JoinError>;

    /// [`crate::identity::join::rejoin`] over the enrolment listener.
    async fn rejoin(&self, present: &Svid, draft: &Draft) -> Result<Svid, JoinError>;
}

/// Renews until `stop`. Each new certificate is saved in `dir`, where one is given, and then used;
/// so are other roots. Where another root signs now, what the one before signed is renewed early.
pub async fn keep_renewed(
    credentials: Credentials,
    dir: Option<&Path>,
    renewer: &dyn Renewer,
    stop: Stop,
) {
    let mut changes = credentials.changes();
    let saved = dir.and_then(|dir| Svid::load(dir).ok());
    let mut kept = saved.map_or_else(Vec::new, |svid| svid.bundle().to_vec());
    let mut failures: u32 = 0;
    let mut chance = rand::random();
    let mut draft = None;
    // Since when another root signs than the one behind our certificate.
    let mut noticed: Option<Instant> = None;
    loop {
        changes.mark_unchanged();
        let present = credentials.current();
        keep_roots(&present, dir, &mut kept);
        let life = life_of(present.peer());
        let mut due = renewal_due(present.peer(), clock::wall(), chance);
        if present.is_under_signing_root() {
            noticed = None;
        } else {
            let since = noticed.get_or_insert_with(Instant::now).elapsed();
            due = due.or_sooner(rotation_due(life, since, chance));
        }
        let wait = match due {
            Due::In(left) => left.min(LOOK_EVERY),
            due @ (Due::Renew | Due::Rejoin) => {
                let attempt = attempt(&credentials, &present, dir, renewer, due, &mut draft);
                let limit = attempt_limit(life);
                let done = tokio::select! {
                    () = stop.cancelled() => return,
                    done = timeout(limit, attempt) => {
                        done.unwrap_or(Err(RenewalError::Late(limit)))
                    }
                };
                match done {
                    Ok(()) => {
                        draft = None;
                        noticed = None;
                        chance = rand::random();
                        // Still due: this machine's clock is off. No faster than after failures.
                        let due = renewal_due(credentials.current().peer(), clock::wall(), chance);
                        failures = if matches!(due, Due::In(_)) {
                            0
                        } else {
                            failures + 1
                        };
                    }
                    Err(error) => {
                        failures = failures.saturating_add(1);
                        tracing::warn!(%error, failures, "no new certificate; the old one stays");
                    }
                }
                retry_wait(failures, retry_most(life), rand::random())
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(wait) => {}
            // Other roots are told: they are to be kept, and one of them may sign now.
            Ok(()) = changes.changed(), if failures == 0 => {}
        }
    }
}

/// Keeps roots that were told since the certificate was saved: after a restart they are trusted.
fn keep_roots(present: &Svid, dir: Option<&Path>, kept: &mut Vec<CertificateDer<'static>>) {
    let Some(dir) = dir.filter(|_| present.bundle() != *kept) else {
        return;
    };
    match present.save(dir) {
        Ok(()) => *kept = present.bundle().to_vec(),
        Err(error) => {
            tracing::error!(%error, "the new roots are not kept: a restart may trust old ones");
        }
    }
}

/// Why an attempt failed.
#[derive(Debug, thiserror::Error)]
enum RenewalError {
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error("no answer within {} s", .0.as_secs_f64())]
    Late(Duration),
    #[error(transparent)]
    Draft(#[from] DraftError),
    #[error(transparent)]
    Svid(#[from] SvidError),
    #[error(transparent)]
    File(#[from] FileError),
}

async fn attempt(
    credentials: &Credentials,
    present: &Svid,
    dir: Option<&Path>,
    renewer: &dyn Renewer,
    due: Due,
    draft: &mut Option<Draft>,
) -> Result<(), RenewalError> {
    let draft = match draft {
        Some(kept) => kept,
        empty @ None => empty.insert(match dir {
            Some(dir) => kept_draft(dir, present)?,
            None => Draft::new().map_err(DraftError::from)?,
        }),
    };
    let asked = if due == Due::Rejoin {
        renewer.rejoin(present, draft)
    } else {
        renewer.renew(present, draft)
    };
    let fresh = asked.await?;
    if let Some(dir) = dir {
        fresh.save(dir)?;
        Draft::settle(dir)?;
    }
    tracing::info!(generation = fresh.generation(), ?due, "new certificate");
    credentials.replace(fresh);
    Ok(())
}

/// The key under way in `dir`, unless it is the present one: then a crash came before it settled.
fn kept_draft(dir: &Path, present: &Svid) -> Result<Draft, RenewalError> {
    let kept = Draft::kept_in(dir)?;
    if kept.public_key().map(|key| key.hash()) != Ok(present.peer().key) {
        return Ok(kept);
    }
    Draft::settle(dir)?;
    Ok(Draft::kept_in(dir)?)
}

fn life_of(peer: &Peer) -> Duration {
    let life = peer.not_after.duration_since(peer.not_before);
    life.unwrap_or_default()
}

fn retry_most(life: Duration) -> Duration {
    (life / RETRY_PART).clamp(RETRY_FIRST, RETRY_MOST)
}

fn attempt_limit(life: Duration) -> Duration {
    (life / ATTEMPT_PART).clamp(ATTEMPT_LEAST, ATTEMPT)
}

/// Doubles up to `most`; `chance` from 0 to 1 takes away up to a half, so that members whose
/// registry was away together do not come back together.
fn retry_wait(failures: u32, most: Duration, chance: f64) -> Duration {
    if failures == 0 {
        return Duration::ZERO;
    }
    let doubled = 1_u32.checked_shl(failures - 1).unwrap_or(u32::MAX);
    let wait = RETRY_FIRST.saturating_mul(doubled).min(most);
    wait.mul_f64(0.5 + 0.5 * chance.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests;
