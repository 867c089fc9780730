//! Carries what a home has to tell to whoever is called back, and tells the home what came of it.
//!
//! The home decides what is told and when it is tried again; here one try is made. `desk`: who goes
//! next; pure. `agent`: by a task of the mesh. `web`: by an https URL. Nothing is kept here: what a
//! stop cuts off is told again after the restart.

mod agent;
mod desk;
pub mod web;

use std::fmt;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::runtime::{Nursery, Stop};
use crate::task::callback::{Delivery, Outcome, TRY, Target, Url};

use super::home::Home;
use desk::{Desk, IN_FLIGHT};

/// Carries one delivery to a URL.
#[tonic::async_trait]
pub trait Post: Send + Sync + 'static {
    /// One try, which takes as long as it takes: who asks bounds it.
    async fn post(&self, url: &Url, delivery: &Delivery) -> Outcome;
}

/// Who carries a home's callbacks.
pub struct Courier {
    home: Home,
    post: Arc<dyn Post>,
}

impl Courier {
    /// For the callbacks of `home`; URLs are called by `post`.
    pub fn new(home: Home, post: Arc<dyn Post>) -> Self {
        Self { home, post }
    }

    /// Carries them until `stop`; each in a task of its own in `nursery`.
    pub async fn run(self, nursery: Nursery, stop: Stop) {
        let Some(mut deliveries) = self.home.deliveries() else {
            return;
        };
        let (done, mut over) = mpsc::channel(IN_FLIGHT);
        let mut desk = Desk::default();
        loop {
            while let Some(delivery) = desk.next() {
                self.carry(delivery, &nursery, done.clone());
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Some(place) = over.recv() => desk.done(&place),
                delivery = deliveries.recv() => {
                    let Some(delivery) = delivery else { return };
                    if let Err(back) = desk.take(delivery) {
                        self.home.told(&back.id, back.event.seq, Outcome::Busy).await;
                    }
                }
            }
        }
    }

    fn carry(&self, delivery: Delivery, nursery: &Nursery, done: mpsc::Sender<String>) {
        let (home, post) = (self.home.clone(), self.post.clone());
        nursery.start("callback", |stop| async move {
            let tried = timeout(TRY, Box::pin(one_try(&home, post.as_ref(), &delivery)));
            let outcome = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                tried = tried => tried.unwrap_or_else(|_| late(&delivery)),
            };
            home.told(&delivery.id, delivery.event.seq, outcome).await;
            // The desk has ended with the courier.
            drop(done.send(delivery.target.place()).await);
        });
    }
}

async fn one_try(home: &Home, post: &dyn Post, delivery: &Delivery) -> Outcome {
    let delivery = match home.whole_delivery(delivery).await {
        Ok(whole) => &Box::new(whole),
        Err(fault) => {
            return Outcome::Later {
                why: fault.to_string(),
                wait: None,
            };
        }
    };
    match &delivery.target {
        Target::Agent { agent, skill } => agent::tell(home, delivery, agent, skill).await,
        Target::Url(url) => post.post(url, delivery).await,
    }
}

/// What to say of a try that was cut.
fn late(delivery: &Delivery) -> Outcome {
    let why = match &delivery.target {
        Target::Agent { .. } => "its task there has not ended yet",
        Target::Url(_) => "no answer within 10 s",
    };
    Outcome::Later {
        why: why.into(),
        wait: None,
    }
}

impl fmt::Debug for Courier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Courier").finish_non_exhaustive()
    }
}
