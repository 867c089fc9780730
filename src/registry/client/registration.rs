//! A sidecar's own place in the catalog: registered, kept by heartbeats, given back at the end.
//!
//! ```text
//!   Away --Register answered--> Here --LEASE_UNKNOWN--> Away
//!                               Here --no beat answered--> Here (the lease runs on, or out)
//! ```

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};
use tonic::{Code, Status};

use super::source::Source;
use crate::domain::Reason;
use crate::pb;
use crate::runtime::Backoff;
use crate::runtime::Nursery;
use crate::runtime::Stop;
use crate::telemetry::metrics::{self, Sheet, family};
use crate::wire::status::reason_of;

/// Longest wait for the answer to a last goodbye: the lease would run out anyhow.
const GOODBYE: Duration = Duration::from_secs(2);
/// Longest wait for a registry that is away, where there is no lease to keep.
const RETURN: Duration = Duration::from_secs(2);
/// Bounds of a dictated interval: no registry makes us silent for long, or busy.
const BEAT_MIN: Duration = Duration::from_secs(1);
const BEAT_MAX: Duration = Duration::from_secs(60);

/// What is told of the instance; a change is registered anew.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Described {
    /// The card; empty for a member that only calls.
    pub card: pb::AgentCard,
    /// The instance; its health and load come from the [`Report`].
    pub instance: pb::Instance,
}

/// What is told with every beat. Another health is told at once, load with the next beat.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Report {
    /// Whether the instance takes work.
    pub health: pb::Health,
    /// How much it does.
    pub load: Option<pb::Load>,
}

/// Whether the registry knows of the instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Not yet, or no more; with the last refusal, if any.
    Away(Option<String>),
    /// Not as it describes itself: what the registry says is wrong with that. The same is refused
    /// again.
    Refused(String),
    /// It is in the catalog, with this health.
    Here(pb::Health),
}

/// The registration of this process.
#[derive(Clone, Debug)]
pub struct Registration {
    standing: watch::Receiver<Standing>,
    accepted: watch::Receiver<Option<Instant>>,
}

impl Registration {
    /// Registers in `nursery` and stays until it closes; then the instance is taken out. To be
    /// told of as draining, change the report first.
    pub fn start(
        nursery: &Nursery,
        source: Arc<dyn Source>,
        described: watch::Receiver<Arc<Described>>,
        report: watch::Receiver<Report>,
    ) -> Self {
        let (tell, standing) = watch::channel(Standing::Away(None));
        let (beaten, accepted) = watch::channel(None);
        let keeper = Keeper {
            source,
            described,
            report,
            standing: tell,
            accepted: beaten,
            lease: None,
            stale: false,
            told: pb::Health::Unspecified,
            due: Instant::now(),
            interval: BEAT_MIN,
            backoff: Backoff::RECONNECT,
        };
        nursery.start("registration", |stop| keeper.run(stop));
        Self { standing, accepted }
    }

    /// How it stands.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }
}

impl metrics::Source for Registration {
    fn write(&self, sheet: &mut Sheet<'_>) {
        let here = u8::from(matches!(*self.standing.borrow(), Standing::Here(_)));
        let accepted = *self.accepted.borrow();
        let age = accepted.map(|at| ([], at.elapsed().as_secs_f64()));
        sheet.gauge(&family::REGISTERED, [([], f64::from(here))]);
        sheet.gauge(&family::BEAT_AGE, age);
    }
}

struct Keeper {
    source: Arc<dyn Source>,
    described: watch::Receiver<Arc<Described>>,
    report: watch::Receiver<Report>,
    standing: watch::Sender<Standing>,
    /// When the registry last took what we say.
    accepted: watch::Sender<Option<Instant>>,
    lease: Option<String>,
    /// The catalog does not have the newest description.
    stale: bool,
    told: pb::Health,
    due: Instant,
    interval: Duration,
    backoff: Backoff,
}

impl Keeper {
    async fn run(mut self, stop: Stop) {
        loop {
            let woken = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                woken = self.wake() => woken,
            };
            self.stale |= woken;
            // A stop does not cut a call under way: an unheard answer would leave a lease behind.
            if self.stale || self.lease.is_none() {
                self.register().await;
            } else {
                self.beat().await;
            }
            // A new description that is refused must not cost the place that the old one has.
            if self.stale && self.lease.is_some() {
                self.beat().await;
            }
        }
        if let Some(lease_id) = self.lease {
            let goodbye = self.source.deregister(pb::DeregisterRequest { lease_id });
            if !matches!(timeout(GOODBYE, goodbye).await, Ok(Ok(_))) {
                tracing::debug!("the registry did not hear the goodbye; the lease runs out");
            }
        }
    }

    /// Waits until something is to be said; true when the description changed.
    async fn wake(&mut self) -> bool {
        let told = self.told;
        tokio::select! {
            biased;
            Ok(()) = self.described.changed() => true,
            Ok(_) = self.report.wait_for(|report| report.health != told),
                if self.lease.is_some() => false,
            () = sleep_until(self.due) => false,
        }
    }

    async fn register(&mut self) {
        let described = Arc::clone(&self.described.borrow_and_update());
        let report = *self.report.borrow_and_update();
        let mut instance = described.instance.clone();
        instance.set_health(report.health);
        instance.load = report.load;
        let ask = pb::RegisterRequest {
            card: Some(described.card.clone()),
            instance: Some(instance),
        };
        match self.source.register(ask).await {
            Ok(granted) => {
                self.lease = Some(granted.lease_id);
                self.stale = false;
                self.dictate(granted.heartbeat_interval);
                self.heard(report.health);
                tracing::info!("registered");
            }
            Err(status) => {
                tracing::warn!(%status, "not registered; trying again");
                if self.lease.is_none() {
                    let refusal = status.message().to_owned();
                    self.standing.send_replace(if is_about_the_card(&status) {
                        Standing::Refused(refusal)
                    } else {
                        Standing::Away(Some(refusal))
                    });
                }
                // Who restarted while the registry was away still has an older entry there, which
                // is taken out soon after the registry is back.
                let away = status.code() == Code::Unavailable;
                self.failed(if away { RETURN } else { Duration::MAX });
            }
        }
    }

    async fn beat(&mut self) {
        let Some(lease_id) = self.lease.clone() else {
            return;
        };
        let report = *self.report.borrow_and_update();
        let ask = pb::HeartbeatRequest {
            lease_id,
            health: report.health.into(),
            load: report.load,
        };
        match self.source.heartbeat(ask).await {
            Ok(kept) => {
                self.dictate(kept.heartbeat_interval);
                self.heard(report.health);
            }
            Err(status) if is_lease_unknown(&status) => {
                self.lease = None;
                self.due = Instant::now();
                self.standing.send_replace(Standing::Away(None));
            }
            Err(status) => {
                tracing::debug!(%status, "a heartbeat was not answered");
                // Never slower than the beat itself: the lease must be kept as soon as it can.
                self.failed(self.interval);
            }
        }
    }

    fn dictate(&mut self, interval: Option<prost_types::Duration>) {
        let asked = interval.and_then(|interval| Duration::try_from(interval).ok());
        if let Some(asked) = asked {
            self.interval = asked.clamp(BEAT_MIN, BEAT_MAX);
        }
    }

    fn heard(&mut self, told: pb::Health) {
        self.told = told;
        self.accepted.send_replace(Some(Instant::now()));
        self.standing.send_if_modified(|standing| {
            let here = Standing::Here(told);
            std::mem::replace(standing, here.clone()) != here
        });
        self.backoff.reset();
        // ±10%: those who started together drift apart.
        let wait = self.interval.mul_f64(0.9 + 0.2 * rand::random::<f64>());
        self.due = Instant::now() + wait;
    }

    fn failed(&mut self, most: Duration) {
        // What could not be told is told with the next try, not in a loop without a pause.
        self.told = self.report.borrow().health;
        self.due = Instant::now() + self.backoff.next(rand::random()).min(most);
    }
}

/// Whether trying again helps only when the description has changed.
fn is_about_the_card(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::InvalidArgument | Code::FailedPrecondition
    )
}

fn is_lease_unknown(status: &Status) -> bool {
    reason_of(status).as_deref() == Some(Reason::LeaseUnknown.label())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::client::source::fake::Fake;
    use crate::registry::fixture::request;

    fn described(skill: &str) -> Arc<Described> {
        let made = request(&[skill]);
        Arc::new(Described {
            card: made.card.unwrap(),
            instance: made.instance.unwrap(),
        })
    }

    fn report(health: pb::Health) -> Report {
        Report { health, load: None }
    }

    type Start = (
        Arc<Fake>,
        Nursery,
        Registration,
        watch::Sender<Arc<Described>>,
        watch::Sender<Report>,
    );

    fn start() -> Start {
        let (fake, nursery) = (Fake::new(), Nursery::here());
        let (describe, described) = watch::channel(described("s"));
        let (tell, told) = watch::channel(report(pb::Health::Serving));
        let registration = Registration::start(&nursery, fake.source(), described, told);
        (fake, nursery, registration, describe, tell)
    }

    async fn here(registration: &Registration) {
        let mut standing = registration.standing();
        let here = |s: &Standing| matches!(s, Standing::Here(_));
        standing.wait_for(here).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn is_in_the_catalog_until_the_nursery_closes() {
        let (fake, nursery, registration, _describe, _tell) = start();
        here(&registration).await;
        assert_eq!(fake.live().catalog().len(), 1);
        tokio::time::advance(Duration::from_secs(12)).await;
        tokio::task::yield_now().await;
        nursery.close(GOODBYE).await;
        assert!(fake.live().catalog().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn draining_is_told_at_once() {
        let (fake, nursery, registration, _describe, tell) = start();
        here(&registration).await;
        let (mut bell, at) = (fake.live().changes(), Instant::now());
        bell.mark_unchanged();
        tell.send_replace(report(pb::Health::Draining));
        bell.changed().await.unwrap();
        assert_eq!(at.elapsed(), Duration::ZERO);
        assert_eq!(*fake.beats.lock(), [pb::Health::Draining]);
        nursery.close(GOODBYE).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_forgetful_registry_is_told_again_and_a_new_card_too() {
        let (fake, nursery, registration, describe, _tell) = start();
        here(&registration).await;
        fake.restart();
        let mut bell = fake.live().changes();
        let at = Instant::now();
        bell.wait_for(|number| *number == 1).await.unwrap();
        assert!(at.elapsed() <= Duration::from_secs(6), "{:?}", at.elapsed());
        describe.send_replace(described("t"));
        bell.wait_for(|number| *number == 2).await.unwrap();
        let catalog = fake.live().catalog();
        let skill = &catalog.entries_after(None).next().unwrap().card.skills[0];
        assert_eq!(skill.name, "t");
        nursery.close(GOODBYE).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_description_does_not_cost_the_place() {
        let (fake, nursery, registration, describe, _tell) = start();
        here(&registration).await;
        let mut bell = fake.live().changes();
        bell.mark_unchanged();
        describe.send_replace(described("Not a skill"));
        let engine = fake.engine();
        nursery.start("sweep", |stop| engine.sweep(stop));
        let beats = || fake.beats.lock().len();
        while beats() < 10 {
            tokio::time::sleep(BEAT_MIN).await;
        }
        assert!(!bell.has_changed().unwrap());
        describe.send_replace(described("t"));
        bell.changed().await.unwrap();
        assert_eq!(fake.live().catalog().len(), 1);
        nursery.close(GOODBYE).await;
        assert!(fake.live().catalog().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_shown_and_tried_again() {
        let (fake, nursery, registration, describe, _tell) = start();
        describe.send_replace(described("Not a skill"));
        let mut standing = registration.standing();
        let refused = |s: &Standing| matches!(s, Standing::Refused(_));
        standing.wait_for(refused).await.unwrap();
        describe.send_replace(described("s"));
        here(&registration).await;
        assert_eq!(fake.live().catalog().len(), 1);
        nursery.close(GOODBYE).await;
    }
}
