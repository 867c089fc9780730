//! What became of every task of a load, and what must not have: a task that was acknowledged and is
//! gone, two for one submission, a number left out or told twice, two ends, a wrong result.
//!
//! Pure: it is told what was seen and asks nobody. A submission whose answer was lost is a maybe: it
//! may be there or not, but once at most, and then it ends like every other.

use std::collections::BTreeMap;

use attache::pb::{TaskEvent, TaskState, task_event::Kind};

use super::client::{is_end, text_of};

/// Sentences that are kept; the rest is counted.
const KEPT: usize = 20;

/// The book of one load, by the names that its submissions carry.
#[derive(Debug, Default)]
pub struct Ledger {
    tasks: BTreeMap<String, Entry>,
    /// Reasons of failures that are no breach here, such as AGENT_LOST where executors are killed.
    may_fail_by: Vec<&'static str>,
    count: Count,
    broken: Vec<String>,
    more: usize,
}

#[derive(Debug)]
struct Entry {
    /// Text that the result must be.
    wanted: String,
    /// As acknowledged.
    id: Option<String>,
    refused: bool,
    last_seq: u64,
    state: TaskState,
}

/// How much was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Submissions, refused ones and maybes included.
    pub submitted: usize,
    /// Acknowledged, by the call or by being found later.
    pub acknowledged: usize,
    pub completed: usize,
    /// Ended with a failure that is allowed here.
    pub failed: usize,
    /// Certainly not taken: the answer says so.
    pub refused: usize,
    /// Calls that were not sent, for want of a connection: a client that waits for one sees nothing
    /// of it.
    pub unsent: usize,
    /// The answer was lost on the way.
    pub unknown: usize,
    /// Streams that broke and were taken up again.
    pub breaks: usize,
    /// Streams that ended with a cursor and the word to come back.
    pub sent_away: usize,
}

/// How a load went.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub submitted: usize,
    pub completed: usize,
    pub count: Count,
    /// What must not have happened, the first of it.
    pub broken: Vec<String>,
}

impl Outcome {
    /// Checks that nothing was lost, doubled, left out or wrong, and that there was a load at all.
    ///
    /// # Panics
    /// With the first things that were.
    pub fn clean(&self) {
        assert!(
            self.broken.is_empty(),
            "{:?}\n{}",
            self.count,
            self.broken.join("\n")
        );
        assert!(self.completed > 0, "nothing ran: {:?}", self.count);
    }

    /// The same, and that no call that was sent has failed, and no stream ended but with its cursor.
    ///
    /// # Panics
    /// With what did.
    pub fn unbroken(&self) {
        self.clean();
        let Count {
            refused,
            unknown,
            breaks,
            failed,
            ..
        } = self.count;
        let failures = (refused, unknown, breaks, failed);
        assert_eq!(failures, (0, 0, 0, 0), "{:?}", self.count);
    }
}

impl Ledger {
    /// A book in which tasks may also fail for these reasons.
    pub fn new(may_fail_by: &[&'static str]) -> Self {
        Self {
            may_fail_by: may_fail_by.to_vec(),
            ..Self::default()
        }
    }

    pub fn count(&self) -> &Count {
        &self.count
    }

    /// Acknowledged and not ended, as far as anybody has seen.
    pub fn open(&self) -> usize {
        let open = |entry: &&Entry| entry.id.is_some() && !is_end(entry.state);
        self.tasks.values().filter(open).count()
    }

    /// A submission is on its way.
    pub fn asks(&mut self, name: &str, wanted: &str) {
        self.count.submitted += 1;
        let entry = Entry {
            wanted: wanted.to_owned(),
            id: None,
            refused: false,
            last_seq: 0,
            state: TaskState::Unspecified,
        };
        let before = self.tasks.insert(name.to_owned(), entry);
        assert!(before.is_none(), "{name} was submitted before");
    }

    /// Nothing was taken, for certain.
    pub fn refused(&mut self, name: &str) {
        self.count.refused += 1;
        self.entry(name).refused = true;
    }

    /// It was not sent; `name`: what it would have submitted.
    pub fn unsent(&mut self, name: Option<&str>) {
        self.count.unsent += 1;
        if let Some(name) = name {
            self.entry(name).refused = true;
        }
    }

    /// It may have been taken.
    pub fn unknown(&mut self) {
        self.count.unknown += 1;
    }

    /// The task is on disk, says the home.
    pub fn acknowledged(&mut self, name: &str, id: &str) {
        let entry = self.entry(name);
        match &entry.id {
            None => {
                entry.id = Some(id.to_owned());
                self.count.acknowledged += 1;
            }
            Some(known) if known == id => {}
            Some(known) => {
                let text = format!("{name} has two tasks: {known} and {id}");
                self.breach(text);
            }
        }
    }

    /// A watcher was shown an event.
    pub fn event(&mut self, name: &str, event: &TaskEvent) {
        let entry = self.entry(name);
        let (last, state, wanted) = (entry.last_seq, entry.state, entry.wanted.clone());
        if event.seq <= last {
            return self.breach(format!("{name}: event {} twice", event.seq));
        }
        if event.seq > last + 1 {
            self.breach(format!("{name}: event {} after {last}, a gap", event.seq));
        }
        if is_end(state) {
            self.breach(format!("{name}: {:?} after {state:?}", event.state()));
        }
        let entry = self.entry(name);
        (entry.last_seq, entry.state) = (event.seq, event.state());
        if is_end(event.state()) {
            self.end(name, &wanted, event);
        }
    }

    fn end(&mut self, name: &str, wanted: &str, event: &TaskEvent) {
        match (event.state(), event.kind.as_ref()) {
            (TaskState::Completed, Some(Kind::Result(result)))
                if text_of(&result.parts) == wanted =>
            {
                self.count.completed += 1;
            }
            (TaskState::Failed, Some(Kind::Failure(failure)))
                if self.may_fail_by.contains(&failure.reason.as_str()) =>
            {
                self.count.failed += 1;
            }
            (state, kind) => self.breach(format!("{name} ended {state:?} with {kind:?}")),
        }
    }

    pub fn has_ended(&mut self, name: &str) -> bool {
        is_end(self.entry(name).state)
    }

    pub fn last_seq(&mut self, name: &str) -> u64 {
        self.entry(name).last_seq
    }

    /// A stream broke, and is taken up again.
    pub fn broke(&mut self) {
        self.count.breaks += 1;
    }

    /// A stream ended in good order before the task did.
    pub fn ended_early(&mut self, name: &str) {
        let text = format!("{name}: the stream ended well, and the task has not ended");
        self.breach(text);
    }

    /// A stream ended with the word to come back, and said this cursor.
    pub fn sent_away(&mut self, name: &str, cursor: Option<u64>) {
        self.count.sent_away += 1;
        let last = self.entry(name).last_seq;
        if cursor != Some(last) {
            self.breach(format!("{name}: sent away at {last} with {cursor:?}"));
        }
    }

    /// A list of what there is has this task.
    pub fn listed(&mut self, name: &str, id: &str, state: TaskState, last_seq: u64) {
        let Some(entry) = self.tasks.get(name) else {
            return;
        };
        if entry.refused {
            self.breach(format!("{name} was refused and is there: {id}"));
        }
        self.acknowledged(name, id);
        let entry = self.entry(name);
        let known = (entry.last_seq, entry.state);
        if is_end(known.1) && known != (last_seq, state) {
            self.breach(format!(
                "{name} ended as {known:?} and stands as {:?}",
                (last_seq, state)
            ));
        }
    }

    /// Tasks that were listed and of which nobody has seen the end.
    pub fn unseen(&self) -> Vec<(String, String)> {
        let open = self.tasks.iter().filter(|(_, one)| !is_end(one.state));
        open.filter_map(|(name, one)| Some((name.clone(), one.id.clone()?)))
            .collect()
    }

    /// Something else must not have happened.
    pub fn breach(&mut self, text: String) {
        if self.broken.len() < KEPT {
            self.broken.push(text);
        } else {
            self.more += 1;
        }
    }

    /// Closes the book: what was acknowledged has ended by now.
    pub fn close(&mut self) -> Outcome {
        for (name, id) in self.unseen() {
            let (seq, state) = (self.last_seq(&name), self.entry(&name).state);
            self.breach(format!(
                "{name} is lost: {id} was acknowledged, seen last at {seq} as {state:?}"
            ));
        }
        let mut broken = std::mem::take(&mut self.broken);
        if self.more > 0 {
            broken.push(format!("and {} more", self.more));
        }
        Outcome {
            submitted: self.count.submitted,
            completed: self.count.completed,
            count: self.count.clone(),
            broken,
        }
    }

    fn entry(&mut self, name: &str) -> &mut Entry {
        self.tasks
            .get_mut(name)
            .unwrap_or_else(|| panic!("{name} was never submitted"))
    }
}

#[cfg(test)]
mod tests {
    use attache::pb::{Failure, Part, Progress, TaskResult, part::Content};

    use super::*;

    fn step(seq: u64) -> TaskEvent {
        TaskEvent {
            seq,
            state: TaskState::Working.into(),
            kind: Some(Kind::Progress(Progress::default())),
            ..Default::default()
        }
    }

    fn result(seq: u64, text: &str) -> TaskEvent {
        let part = Part {
            content: Some(Content::Text(text.into())),
            ..Default::default()
        };
        let parts = vec![part];
        TaskEvent {
            state: TaskState::Completed.into(),
            kind: Some(Kind::Result(TaskResult {
                parts,
                ..Default::default()
            })),
            ..step(seq)
        }
    }

    fn lost(seq: u64) -> TaskEvent {
        let reason = "AGENT_LOST".into();
        TaskEvent {
            state: TaskState::Failed.into(),
            kind: Some(Kind::Failure(Failure {
                reason,
                ..Default::default()
            })),
            ..step(seq)
        }
    }

    /// A book with one acknowledged task, to which `then` is done.
    fn after(then: impl FnOnce(&mut Ledger)) -> Vec<String> {
        let mut ledger = Ledger::default();
        ledger.asks("a", "text a");
        ledger.acknowledged("a", "home.1");
        then(&mut ledger);
        ledger.close().broken
    }

    fn breach(what: &str, then: impl FnOnce(&mut Ledger)) {
        let broken = after(then);
        assert!(
            broken.iter().any(|text| text.contains(what)),
            "{what}: {broken:?}"
        );
    }

    #[test]
    fn a_task_that_goes_well_over_a_broken_stream_is_clean() {
        let broken = after(|book| {
            book.event("a", &step(1));
            book.broke();
            book.event("a", &step(2));
            book.sent_away("a", Some(2));
            book.event("a", &result(3, "text a"));
            book.listed("a", "home.1", TaskState::Completed, 3);
        });
        assert!(broken.is_empty(), "{broken:?}");
    }

    #[test]
    fn what_must_not_happen_is_noticed() {
        let done = |book: &mut Ledger| {
            book.event("a", &step(1));
            book.event("a", &result(2, "text a"));
        };
        breach("a gap", |book| book.event("a", &step(2)));
        breach("twice", |book| {
            book.event("a", &step(1));
            book.event("a", &step(1));
        });
        breach("is lost", |book| book.event("a", &step(1)));
        breach("after Completed", |book| {
            done(book);
            book.event("a", &lost(3));
        });
        breach("ended Completed", |book| {
            book.event("a", &result(1, "text b"));
        });
        breach("ended Failed", |book| book.event("a", &lost(1)));
        breach("two tasks", |book| {
            done(book);
            book.listed("a", "home.2", TaskState::Completed, 2);
        });
        breach("stands as", |book| {
            done(book);
            book.listed("a", "home.1", TaskState::Failed, 2);
        });
        breach("sent away", |book| {
            book.event("a", &step(1));
            book.sent_away("a", Some(7));
        });
        breach("ended well", |book| book.ended_early("a"));
        breach("was refused", |book| {
            book.asks("b", "text b");
            book.refused("b");
            book.listed("b", "home.2", TaskState::Submitted, 0);
        });
        breach("b is lost", |book| {
            book.asks("b", "text b");
            book.unknown();
            book.listed("b", "home.2", TaskState::Submitted, 0);
        });
    }

    #[test]
    fn a_maybe_that_is_not_there_and_an_allowed_loss_are_clean() {
        let mut book = Ledger::new(&["AGENT_LOST"]);
        book.asks("a", "text a");
        book.unknown();
        book.asks("b", "text b");
        book.acknowledged("b", "home.2");
        book.event("b", &lost(1));
        let outcome = book.close();
        assert!(outcome.broken.is_empty(), "{:?}", outcome.broken);
        assert_eq!((outcome.count.failed, outcome.count.unknown), (1, 1));
    }
}
