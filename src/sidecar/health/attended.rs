//! Whether an agent that attaches is there: as long as one stream of it has places.
//!
//! It is not probed: its stream breaks with its process, and the pings of its connection find one
//! that is stopped.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};

use super::{Counts, Describer, verdict::Look};
use crate::{
    runtime::Stop,
    sidecar::standing::{Agent, Progress},
    task::attach::{Attendance, Desk},
};

/// How soon an agent is looked at again whose card cannot be, or that may be stuck.
const DOUBT: Duration = Duration::from_secs(1);
/// How long an agent may be busy with nothing but attempts that were cut: then it is stuck. Well
/// above what a handler takes that looks at nothing while it waits for a model.
const STUCK: Duration = Duration::from_mins(1);

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
        let (mut described, mut busy_since) = (None, None);
        loop {
            let now = *attendance.borrow_and_update();
            let slots = self.describer.executor.set_places(now.places, now.held);
            if slots > 0 || now.held == 0 {
                busy_since = None;
            } else {
                busy_since.get_or_insert_with(Instant::now);
            }
            let mut found = self.look(now, &mut described).await;
            if found.is_ok() && busy_since.is_some_and(|since| since.elapsed() >= STUCK) {
                let why = "the agent has ended none of the attempts that were cut, and has no place \
                           left: restart it";
                found = Err((Look::Missed, why.to_owned()));
            }
            self.tell(found.as_ref().err());
            let doubt = busy_since.is_some() || matches!(found, Err((Look::Missed, _)));
            tokio::select! {
                changed = attendance.changed() => if changed.is_err() { return },
                () = sleep(DOUBT), if doubt => {}
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
        if *described != Some(now.cards) {
            let asked = self.describer.describe().await;
            asked.map_err(|why| (Look::Missed, why))?;
            *described = Some(now.cards);
        }
        Ok(())
    }

    fn tell(&self, wrong: Option<&(Look, String)>) {
        let look = wrong.map_or(Look::Serving, |(look, _)| *look);
        self.counts.attended(look, wrong.is_none());
        self.describer.executor.set_healthy(wrong.is_none());
        self.progress.set_agent(match wrong {
            None => Agent::Healthy,
            Some((_, why)) => Agent::Unhealthy(why.clone().into()),
        });
    }
}

#[cfg(test)]
mod tests {
    use tokio::{sync::mpsc, sync::watch, time::timeout};
    use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};

    use super::*;
    use crate::pb::{self, attach_request::Say};
    use crate::runtime::Nursery;
    use crate::task::executor::{Executor, ExecutorConfig, HandlerLink as _, Offers};
    use crate::telemetry::Telemetry;

    fn request(task: &str) -> pb::HandleRequest {
        let task = pb::Task {
            id: task.into(),
            ..Default::default()
        };
        pb::HandleRequest {
            task: Some(task),
            attempt: 1,
            ..Default::default()
        }
    }

    /// What the agent is held for, within this time.
    async fn becomes(progress: &Progress, wanted: pb::Health, within: Duration) -> bool {
        let mut reports = progress.reports();
        let waited = reports.wait_for(|report| report.health == wanted);
        timeout(within, waited).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_is_busy_with_cut_work_alone_is_stuck_after_a_minute() {
        let nursery = Nursery::here();
        let desk = Desk::new("i1".parse().unwrap(), vec![nursery.clone()]);
        let config = ExecutorConfig {
            own: "spiffe://a/ns/default/agent/x".parse().unwrap(),
            slots: 4,
            boot_id: String::new(),
            skills: Offers::default(),
        };
        let link = Arc::new(desk.clone());
        let executor = Executor::new(config, link.clone(), vec![nursery.clone()]);
        let progress = Arc::new(Progress::new(true, Telemetry::default()));
        let attended = Attended {
            desk: desk.clone(),
            describer: Describer {
                link,
                configured: pb::AgentCard::default(),
                described: watch::Sender::default(),
                executor: executor.clone(),
            },
            progress: Arc::clone(&progress),
            counts: Counts::default(),
        };
        nursery.start("attended", |stop| attended.run(stop));
        let (says, asked) = mpsc::channel(8);
        let mut hears = Box::pin(desk.serve(ReceiverStream::new(asked), Stop::new()).unwrap());
        let say = async |say| {
            says.send(Ok(pb::AttachRequest { say: Some(say) }))
                .await
                .unwrap();
        };
        let minute = Duration::from_secs(60);
        say(Say::Hello(pb::AttachHello {
            places: 2,
            card: None,
        }))
        .await;
        hears.next().await.unwrap().unwrap();
        assert!(becomes(&progress, pb::Health::Serving, minute).await);
        for task in ["i.1", "i.2"] {
            let given = desk.handle(request(task), minute, None).await.unwrap();
            hears.next().await.unwrap().unwrap();
            drop(given);
            hears.next().await.unwrap().unwrap();
            if task == "i.1" {
                // It has another place.
                assert!(!becomes(&progress, pb::Health::NotServing, 2 * minute).await);
            }
        }
        let began = Instant::now();
        assert!(becomes(&progress, pb::Health::NotServing, 2 * minute).await);
        let took = began.elapsed();
        assert!(took >= STUCK && took < STUCK + 2 * DOUBT, "{took:?}");
        assert_eq!(executor.load().slots, 0);
        // One that has ended after all makes room.
        say(Say::End(pb::AttachEnd {
            work: 1,
            ..Default::default()
        }))
        .await;
        assert!(becomes(&progress, pb::Health::Serving, minute).await);
        assert_eq!(executor.load().slots, 1);
        nursery.abort().await;
    }
}
