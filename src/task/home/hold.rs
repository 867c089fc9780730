//! Which records may wait for the next ones, so that one sync carries both. Pure.
//!
//! Only that an executor took an attempt may wait: a crash forgets it without harm, since the
//! executor says it again, and its first update mostly follows at once. Nothing is shown earlier
//! for it, only later. Anything else goes to the disk at once, and takes what waits with it.

use std::time::Duration;

use tokio::time::Instant;

use crate::pb;
use crate::pb::journal::{Record, record::Kind as Recorded};
use crate::pb::task_event::Kind;

use super::effect::Effect;
use super::shard::Gated;

/// Longest wait: more than a quick handler takes, and nothing to somebody who watches a task.
const HOLD: Duration = Duration::from_millis(2);

/// Since when the oldest record waits.
#[derive(Debug, Default)]
pub(super) struct Hold {
    since: Option<Instant>,
}

impl Hold {
    /// Until when everything may wait that is to be appended; `None`: append it now.
    pub(super) fn until(
        &mut self,
        records: &[Record],
        pending: &[Gated],
        now: Instant,
    ) -> Option<Instant> {
        let waits = !records.is_empty()
            && records.iter().all(is_acceptance)
            && pending.iter().all(is_shown);
        self.since = waits.then(|| self.since.unwrap_or(now));
        let until = self.since.map(|since| since + HOLD);
        let until = until.filter(|until| now < *until);
        if until.is_none() {
            self.since = None;
        }
        until
    }
}

/// Whether it says that an executor took an attempt.
pub(super) fn is_acceptance(record: &Record) -> bool {
    match &record.kind {
        Some(Recorded::Event(event)) => {
            event.state() == pb::TaskState::Working
                && matches!(event.kind, Some(Kind::StateChanged(_)))
        }
        Some(_) | None => false,
    }
}

fn is_shown(gated: &Gated) -> bool {
    matches!(gated, Gated::Effect(Effect::Shown { ended: false, .. }))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn record(kind: Kind, state: pb::TaskState) -> Record {
        Record {
            kind: Some(Recorded::Event(pb::TaskEvent {
                state: state.into(),
                kind: Some(kind),
                ..Default::default()
            })),
            ..Default::default()
        }
    }

    fn accepted() -> Record {
        let change = Kind::StateChanged(pb::StateChanged::default());
        record(change, pb::TaskState::Working)
    }

    fn shown() -> Gated {
        let task = Uuid::nil();
        Gated::Effect(Effect::Shown {
            task,
            seq: 1,
            ended: false,
        })
    }

    #[tokio::test(start_paused = true)]
    async fn an_acceptance_waits_for_a_moment_and_for_nothing_else_to_come() {
        let (mut hold, now) = (Hold::default(), Instant::now());
        let until = Some(now + HOLD);
        assert_eq!(hold.until(&[], &[], now), None);
        assert_eq!(hold.until(&[accepted()], &[shown()], now), until);
        let later = now + HOLD / 2;
        let two = [accepted(), accepted()];
        assert_eq!(hold.until(&two, &[shown(), shown()], later), until);
        assert_eq!(hold.until(&two, &[], now + HOLD), None, "long enough");
        // Appended: the next one has its own time.
        assert_eq!(hold.until(&[], &[], now + HOLD), None);
        let next = hold.until(&[accepted()], &[shown()], now + HOLD);
        assert_eq!(next, Some(now + 2 * HOLD));
        let progress = Kind::Progress(pb::Progress::default());
        let progress = record(progress, pb::TaskState::Working);
        assert_eq!(hold.until(&[accepted(), progress], &[], now + HOLD), None);
        let lost = Kind::StateChanged(pb::StateChanged::default());
        let lost = record(lost, pb::TaskState::Submitted);
        assert_eq!(hold.until(&[lost], &[], now + HOLD), None);
        let answer = Gated::Answer(Box::new(|| {}));
        assert_eq!(hold.until(&[accepted()], &[answer], now + HOLD), None);
    }
}
