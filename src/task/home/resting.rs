//! Finished tasks that are in memory only, folded into one piece of bytes each until somebody asks
//! for one. Pure.
//!
//! A task is some forty allocations. Thousands of finished ones, each let go of a while after the
//! next one was made, had new tasks always made of memory that was in no cache any more: that cost a
//! home a fifth of its rate. Folded, one is a fifth as large, and what it was made of is used again at
//! once. Where there is an archive it takes finished tasks, and nothing rests.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    sync::Arc,
};

use prost::{DecodeError, Message};
use tokio::time::Instant;
use uuid::Uuid;

use crate::pb;
use crate::pb::journal::Snapshot;

use super::entry::Entry;
use super::kept::Kept;
use super::machine::Tasks;
use super::request::Request;
use super::snapshot::Numbered;

/// Finished tasks of a shard that are not folded yet: whoever watched their ends is mostly through
/// with them by then, and few enough to stay in a processor's cache.
#[cfg(not(test))]
pub(super) const AWAKE: usize = 128;
/// In tests so few that nearly all of theirs rest.
#[cfg(test)]
pub(super) const AWAKE: usize = 2;

/// Tasks that are folded at once: somebody waits meanwhile.
const FOLDS: usize = 64;

/// The folded ones of a shard.
#[derive(Debug, Default)]
pub(super) struct Resting {
    folded: BTreeMap<Uuid, Folded>,
    /// Those to be folded next, the first first. Some may have gone meanwhile.
    next: VecDeque<Uuid>,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Folded {
    /// The task, for lists; all else in a snapshot without it; its events. Each behind its length.
    bytes: Box<[u8]>,
    ended_at: Instant,
}

impl Folded {
    fn of(kept: &Kept, ended_at: Instant) -> Self {
        let mut snapshot = kept.snapshot();
        let task = snapshot.submitted.as_mut().and_then(|one| one.task.take());
        let task = task.unwrap_or_default();
        let events: Vec<_> = kept.all_events().collect();
        let lengths = events.iter().map(|event| framed(event.as_ref()));
        let size = framed(&task) + framed(&snapshot) + lengths.sum::<usize>();
        let mut bytes = Vec::with_capacity(size);
        let room = "a vector has room for whatever is encoded into it";
        task.encode_length_delimited(&mut bytes).expect(room);
        snapshot.encode_length_delimited(&mut bytes).expect(room);
        for event in events {
            event.encode_length_delimited(&mut bytes).expect(room);
        }
        Self {
            bytes: bytes.into_boxed_slice(),
            ended_at,
        }
    }

    /// Only what lists filter by: far less than all of it.
    pub(super) fn task(&self) -> Option<pb::Task> {
        pb::Task::decode_length_delimited(&self.bytes[..]).ok()
    }

    /// The task as it was.
    pub(super) fn kept(&self) -> Option<Kept> {
        let read = || -> Result<_, DecodeError> {
            let mut rest = &self.bytes[..];
            let task = pb::Task::decode_length_delimited(&mut rest)?;
            let mut snapshot = Snapshot::decode_length_delimited(&mut rest)?;
            snapshot.submitted.get_or_insert_default().task = Some(task);
            let mut events = Numbered::new();
            while !rest.is_empty() {
                let event = pb::TaskEvent::decode_length_delimited(&mut rest)?;
                events.insert(event.seq, Arc::new(event));
            }
            Ok((snapshot, events))
        };
        let (snapshot, events) = read().ok()?;
        Kept::restored(snapshot, &events).ok()
    }

    /// Bytes of memory, about.
    fn size(&self) -> usize {
        self.bytes.len() + size_of::<Self>()
    }
}

fn framed(message: &impl Message) -> usize {
    let length = message.encoded_len();
    prost::length_delimiter_len(length) + length
}

impl Resting {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.folded.len()
    }

    pub(super) fn get(&self, task: Uuid) -> Option<&Folded> {
        self.folded.get(&task)
    }

    /// By their ids, the oldest first.
    pub(super) fn iter_before(
        &self,
        before: Option<Uuid>,
    ) -> impl DoubleEndedIterator<Item = (&Uuid, &Folded)> {
        let upto = before.map_or(Bound::Unbounded, Bound::Excluded);
        self.folded.range((Bound::Unbounded, upto))
    }
}

impl Tasks {
    /// Tasks that are here, folded or not.
    pub(super) fn here(&self) -> usize {
        self.tasks.len() + self.resting.len()
    }

    /// A task has ended: it is folded when enough others have.
    pub(super) fn will_rest(&mut self, task: Uuid) {
        if self.in_memory {
            self.resting.next.push_back(task);
        }
    }

    /// Folds those that ended a while ago, where their ends have been shown.
    pub(super) fn fold(&mut self) {
        for _ in 0..FOLDS.min(self.resting.next.len().saturating_sub(AWAKE)) {
            let Some(task) = self.resting.next.front().copied() else {
                return;
            };
            let entry = self.tasks.get(&task);
            if entry.is_some_and(|entry| entry.shown() != entry.kept.task.last_seq) {
                return;
            }
            if let Some(entry) = entry
                && let Some(ended_at) = entry.ended_at
            {
                let folded = Folded::of(&entry.kept, ended_at);
                self.ended_bytes = self.ended_bytes - entry.counted + folded.size();
                self.tasks.remove(&task);
                self.resting.folded.insert(task, folded);
            }
            self.resting.next.pop_front();
        }
    }

    /// Unfolds a task that somebody asks for, if it is folded.
    pub(super) fn wake(&mut self, task: Uuid) {
        let Some(folded) = self.resting.get(task) else {
            return;
        };
        let ended_at = folded.ended_at;
        let Some(kept) = folded.kept() else {
            tracing::error!(%task, "a finished task cannot be read any more; it is forgotten");
            self.let_go_of(task, None);
            return;
        };
        self.forget_folded(task);
        let mut entry = Entry::new(kept, 0, self.base);
        entry.shown = entry.kept.task.last_seq;
        entry.counted = entry.kept.bytes;
        entry.ended_at = Some(ended_at);
        (entry.filed, entry.start_counted, entry.left_maker) = (true, true, true);
        self.ended_bytes += entry.counted;
        self.tasks.insert(task, Box::new(entry));
        self.resting.next.push_back(task);
    }

    /// Unfolds the task that this asks for, if it is folded.
    pub(super) fn wake_for(&mut self, request: &Request) {
        if let Some(task) = request.asks_for() {
            self.wake(task);
        }
    }

    /// Lets go of a folded task; whether there was one.
    pub(super) fn forget_folded(&mut self, task: Uuid) -> bool {
        let folded = self.resting.folded.remove(&task);
        self.ended_bytes -= folded.as_ref().map_or(0, Folded::size);
        folded.is_some()
    }

    /// When a folded task ended.
    pub(super) fn folded_since(&self, task: Uuid) -> Option<Instant> {
        Some(self.resting.get(task)?.ended_at)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::attempt::Heard;
    use super::super::tests::{Bench, done, own};
    use super::super::{ephemeral, reads, view::ListQuery};
    use super::*;

    /// A bench of tasks in memory only, of which so many have ended and been shown.
    fn ended(count: usize) -> (Bench, Vec<(Uuid, Arc<Kept>)>) {
        let mut bench = Bench::new(&["i1"], false);
        bench.tasks.in_memory = true;
        bench.tasks.limits = ephemeral::limits(1);
        let mut all = Vec::new();
        for _ in 0..count {
            let task = bench.submit();
            bench.hear(task, Heard::Accepted);
            bench.update(task, 1, done());
            bench.step(|tasks, _| tasks.shown(task, 2));
            all.push((task, Arc::clone(&bench.tasks.tasks[&task].kept)));
        }
        bench.step(|tasks, _| tasks.fold());
        (bench, all)
    }

    #[tokio::test(start_paused = true)]
    async fn a_finished_task_rests_in_one_piece_and_wakes_as_it_was() {
        let (mut bench, all) = ended(AWAKE + 20);
        assert_eq!(bench.tasks.resting.len(), 20);
        assert_eq!(bench.tasks.here(), all.len());
        let bytes = bench.tasks.ended_bytes;
        for (task, kept) in &all {
            bench.step(|tasks, _| tasks.wake(*task));
            assert_eq!(&bench.tasks.tasks[task].kept, kept);
        }
        assert!(bytes < bench.tasks.ended_bytes, "folded they are smaller");
        assert_eq!(bench.tasks.resting.len(), 0);
        bench.step(|tasks, _| tasks.fold());
        assert_eq!(bench.tasks.resting.len(), 20, "and it rests again");
        assert_eq!(bench.tasks.ended_bytes, bytes);

        bench.pass(ephemeral::RETENTION + Duration::from_secs(1));
        assert_eq!(bench.tasks.here(), 0);
        assert_eq!((bench.tasks.ended.len(), bench.tasks.ended_bytes), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn who_may_still_read_its_end_has_it_awake() {
        let (mut bench, _) = ended(AWAKE);
        let unseen = bench.submit();
        bench.hear(unseen, Heard::Accepted);
        bench.update(unseen, 1, done());
        for _ in 0..2 * AWAKE {
            let task = bench.submit();
            bench.hear(task, Heard::Accepted);
            bench.update(task, 1, done());
            bench.step(|tasks, _| tasks.shown(task, 2));
        }
        bench.step(|tasks, _| tasks.fold());
        assert!(bench.tasks.tasks.contains_key(&unseen));
        bench.step(|tasks, _| tasks.shown(unseen, 2));
        bench.step(|tasks, _| tasks.fold());
        assert!(!bench.tasks.tasks.contains_key(&unseen));
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_has_those_that_rest() {
        let (mut bench, all) = ended(AWAKE + 20);
        let waits = bench.submit();
        let newest = all.iter().map(|(task, _)| *task).chain([waits]).rev();
        let query = ListQuery {
            viewer: Arc::new(own()),
            filter: pb::ListTasksRequest::default(),
            before: None,
            limit: 1000,
        };
        let page = reads::list(&bench.tasks, &query);
        let listed: Vec<Uuid> = page.tasks.iter().map(|(task, _)| *task).collect();
        assert_eq!(listed, newest.collect::<Vec<_>>());
        assert!(
            page.tasks
                .iter()
                .all(|(id, task)| task.id.ends_with(&id.to_string()))
        );
    }
}
