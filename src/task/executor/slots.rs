//! `Executor.Slots`: one stream per home that waits. It carries; the book decides.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};

use super::door::HomePeer;
use super::engine::{Executor, Shared};
use super::grants::{GRANTS_MAX, Said};
use super::shares::Claimant;
use crate::domain::Fault;
use crate::identity::authorize::{Action, authorize};
use crate::runtime::Stop;
use crate::task::doors::{Claims, Grants};

/// How often grants are looked after: they may be void by so much later than said.
const ATTEND: Duration = Duration::from_millis(100);
/// How often a home hears that its stream lives, in such looks: every 10 s.
const WORD: u32 = 100;

impl Executor {
    /// Hears who waits at `home`, and grants it slots as they become free. Its older stream ends.
    ///
    /// # Errors
    /// PERMISSION_DENIED; QUEUE_FULL: too many homes wait; DRAINING.
    pub fn slots(&self, home: &HomePeer, claims: Claims) -> Result<Grants, Fault> {
        let namespace = self.shared.own.member.namespace();
        authorize(&home.id, Action::Execute, namespace)?;
        let (tell, told) = mpsc::channel(GRANTS_MAX);
        let who = self.shared.book.lock().wait(&home.instance, tell)?;
        let waits = Waits {
            shared: Arc::clone(&self.shared),
            who,
            why: None,
        };
        self.nursery()
            .start("slots", |stop| waits.listen(claims, stop));
        Ok(Box::pin(ReceiverStream::new(told)))
    }
}

/// A home that waits, until this is dropped.
struct Waits {
    shared: Arc<Shared>,
    who: Claimant,
    /// Why it is sent away.
    why: Option<Fault>,
}

impl Waits {
    async fn listen(mut self, mut claims: Claims, stop: Stop) {
        let mut attend = interval(ATTEND);
        attend.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let ended = self.shared.stop.clone();
        let mut looks = 0;
        let mut wakes = None;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = ended.cancelled() => return,
                _ = attend.tick() => {
                    looks = (looks + 1) % WORD;
                    let mut book = self.shared.book.lock();
                    if !book.attend(self.who, looks == 0, Instant::now()) {
                        return;
                    }
                }
                () = sleep_until(wakes.unwrap_or_else(Instant::now)), if wakes.is_some() => {
                    wakes = None;
                    self.shared.book.lock().deal(Instant::now());
                }
                said = claims.next() => {
                    let Some(said) = said else { return };
                    let skills = self.shared.skills.lock().clone();
                    match Said::read(said, |skill| skills.get(skill).is_some()) {
                        Ok(said) => {
                            let mut book = self.shared.book.lock();
                            book.say(self.who, said, Instant::now());
                            wakes = book.wakes();
                        }
                        Err(wrong) => {
                            self.why = Some(wrong);
                            return;
                        }
                    }
                }
            }
        }
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        let mut book = self.shared.book.lock();
        book.leave(self.who, self.why.take(), Instant::now());
    }
}
