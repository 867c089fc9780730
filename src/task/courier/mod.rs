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
use uuid::Uuid;

use crate::runtime::{Nursery, Stop};
use crate::task::callback::{Delivery, Outcome, TRY, Target, Ticket, Url};

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
        let Some(mut tickets) = self.home.tickets() else {
            return;
        };
        let (done, mut over) = mpsc::channel(IN_FLIGHT);
        let mut desk = Desk::default();
        loop {
            while let Some(ticket) = desk.next() {
                let slot = Slot {
                    place: ticket.place.clone(),
                    answered: None,
                    done: done.clone(),
                };
                self.carry(ticket, Some(slot), &nursery);
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                Some((place, answered)) = over.recv() => desk.done(&place, answered),
                ticket = tickets.recv() => match ticket {
                    // Within the home: it waits for nobody, and few of these are out at once.
                    Some(ticket) if ticket.place.is_empty() => self.carry(ticket, None, &nursery),
                    Some(ticket) => desk.take(ticket),
                    None => return,
                },
            }
        }
    }

    fn carry(&self, ticket: Ticket, mut slot: Option<Slot>, nursery: &Nursery) {
        let (home, post) = (self.home.clone(), self.post.clone());
        nursery.start("callback", |stop| async move {
            // What waited for long may be told already, or given up.
            let Some(delivery) = home.delivery(&ticket).await else {
                return;
            };
            let tried = one_try(&home, post.as_ref(), ticket.id.uuid, delivery);
            let tried = timeout(TRY, Box::pin(tried));
            let outcome = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                tried = tried => tried.unwrap_or_else(|_| late()),
            };
            if let Some(slot) = &mut slot {
                slot.answered = Some(!matches!(outcome, Outcome::Later { .. }));
            }
            home.told(ticket, outcome).await;
        });
    }
}

/// A place at the desk: free again when this is dropped, however the try ended.
struct Slot {
    place: Arc<str>,
    answered: Option<bool>,
    done: mpsc::Sender<(Arc<str>, Option<bool>)>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        // There is room for all that are under way; or the desk has ended with the courier.
        drop(self.done.try_send((self.place.clone(), self.answered)));
    }
}

async fn one_try(home: &Home, post: &dyn Post, task: Uuid, delivery: Delivery) -> Outcome {
    let delivery = match home.whole_delivery(task, delivery).await {
        Ok(whole) => whole,
        Err(fault) => {
            return Outcome::Later {
                why: fault.to_string(),
                wait: None,
            };
        }
    };
    match &delivery.target {
        Target::Agent { agent, skill } => agent::tell(home, &delivery, agent, skill).await,
        Target::Url(url) => post.post(url, &delivery).await,
        Target::Task(tells) => agent::answer(home, tells, &delivery.event).await,
    }
}

/// What to say of a try that was cut.
fn late() -> Outcome {
    Outcome::Later {
        why: format!("no answer within {} s", TRY.as_secs()),
        wait: None,
    }
}

impl fmt::Debug for Courier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Courier").finish_non_exhaustive()
    }
}
