//! Whether an agent that attaches is there: as long as one stream of it has places.
//!
//! It is not probed: its stream breaks with its process, and the pings of its connection find one
//! that is stopped.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;

use super::{Counts, Describer, verdict::Look};
use crate::{
    runtime::Stop,
    sidecar::standing::{Agent, Progress},
    task::attach::{Attendance, Desk},
};

/// How soon an agent whose card cannot be is looked at again; it attaches anew to mend it.
const DOUBT: Duration = Duration::from_secs(1);

/// Follows who is attached.
pub(in crate::sidecar) struct Attended {
    pub(in crate::sidecar) desk: Desk,
    pub(in crate::sidecar) describer: Describer,
    pub(in crate::sidecar) progress: Arc<Progress>,
    pub(in crate::sidecar) counts: Counts,
}

impl Attended {
    /// Follows until `stop`.
    pub(in crate::sidecar) async fn run(self, stop: Stop) {
        tokio::select! {
            () = Box::pin(self.follow()) => {}
            () = stop.cancelled() => {}
        }
    }

    async fn follow(&self) {
        let mut attendance = self.desk.attendance();
        let mut described = None;
        loop {
            let now = *attendance.borrow_and_update();
            let found = self.look(now, &mut described).await;
            self.tell(now, found.as_ref().err());
            let again = async {
                match &found {
                    Err((Look::Missed, _)) => sleep(DOUBT).await,
                    Ok(()) | Err(_) => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = attendance.changed() => if changed.is_err() { return },
                () = again => {}
            }
        }
    }

    /// What is wrong with who is there; whoever has come is asked for its card, once.
    async fn look(
        &self,
        now: Attendance,
        described: &mut Option<u64>,
    ) -> Result<(), (Look, String)> {
        if now.streams == 0 {
            let why = "no agent is attached to the local listener";
            return Err((Look::Away, why.to_owned()));
        }
        if now.places == 0 {
            let why = "the attached agent takes no work: it is about to leave";
            return Err((Look::Declined, why.to_owned()));
        }
        if *described != Some(now.arrivals) {
            let asked = self.describer.describe().await;
            asked.map_err(|why| (Look::Missed, why))?;
            *described = Some(now.arrivals);
        }
        Ok(())
    }

    fn tell(&self, now: Attendance, wrong: Option<&(Look, String)>) {
        let look = wrong.map_or(Look::Serving, |(look, _)| *look);
        self.counts.attended(look, wrong.is_none());
        let executor = &self.describer.executor;
        executor.set_places(now.usable);
        executor.set_healthy(wrong.is_none());
        self.progress.set_agent(match wrong {
            None => Agent::Healthy,
            Some((_, why)) => Agent::Unhealthy(why.clone().into()),
        });
    }
}
