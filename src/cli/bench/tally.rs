//! What came of the calls of a bench.

use std::collections::BTreeMap;

use tokio::time::Instant;
use tonic::Code;

use super::{call::Failure, histogram::Histogram};

/// What came of calls that were begun in a span of time.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    begin: Instant,
    end: Instant,
    /// How long those with status OK took.
    pub(super) took: Histogram,
    /// Answers with their messages; those of unary calls are in `took` alone.
    pub(super) messages: u64,
    /// Calls that failed, by status: how many, and what the first of them said.
    pub(super) failures: BTreeMap<i32, (u64, String)>,
    /// Calls that have neither ended nor failed.
    pub(super) open: u64,
    /// When the last of the counted ones ended.
    pub(super) last: Instant,
}

impl Tally {
    /// Counts calls that begin between `begin` and `end`.
    pub(super) fn between(begin: Instant, end: Instant) -> Self {
        Self {
            begin,
            end,
            took: Histogram::new(),
            messages: 0,
            failures: BTreeMap::new(),
            open: 0,
            last: end,
        }
    }

    /// Whether what begins now counts.
    pub(super) fn counts(&self, now: Instant) -> bool {
        (self.begin..self.end).contains(&now)
    }

    /// A call that was begun, or came due, at `since` ended at `now`.
    pub(super) fn ended(&mut self, since: Instant, now: Instant) {
        if self.counts(since) {
            self.took.record(now.saturating_duration_since(since));
            self.last = self.last.max(now);
        }
    }

    /// So many answers of a stream came at `now`.
    pub(super) fn answered(&mut self, messages: u64, now: Instant) {
        if self.counts(now) {
            self.messages += messages;
        }
    }

    /// A call that was begun, or came due, at `since` failed.
    pub(super) fn failed(&mut self, since: Instant, failure: Failure) {
        if self.counts(since) {
            self.fail(failure.code, 1, failure.text);
        }
    }

    /// Counts what never ended as failed.
    pub(super) fn give_up(&mut self, text: &str) {
        let open = std::mem::take(&mut self.open);
        if open > 0 {
            self.fail(Code::DeadlineExceeded, open, text.to_owned());
        }
    }

    /// Adds what another one has counted.
    pub(super) fn add(&mut self, other: Self) {
        self.took.add(&other.took);
        self.messages += other.messages;
        self.open += other.open;
        self.last = self.last.max(other.last);
        for (code, (count, text)) in other.failures {
            self.fail(Code::from_i32(code), count, text);
        }
    }

    /// How many calls failed.
    pub(super) fn failed_calls(&self) -> u64 {
        self.failures.values().map(|(count, _)| count).sum()
    }

    fn fail(&mut self, code: Code, count: u64, text: String) {
        let entry = self.failures.entry(code as i32);
        entry.or_insert_with(|| (0, text)).0 += count;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_what_begins_in_the_span_counts() {
        let begin = Instant::now();
        let at = |millis| begin + Duration::from_millis(millis);
        let mut tally = Tally::between(at(10), at(20));
        for (since, now) in [(9, 11), (10, 15), (19, 30), (20, 21)] {
            tally.ended(at(since), at(now));
            tally.failed(
                at(since),
                Failure::new(Code::Aborted, format!("at {since}")),
            );
            tally.answered(1, at(now));
        }
        assert_eq!((tally.took.count(), tally.messages), (2, 2));
        assert_eq!(tally.last, at(30), "what began in time is waited for");
        assert_eq!(tally.failures[&10], (2, "at 10".to_owned()));
        tally.open = 3;
        let mut all = Tally::between(at(10), at(20));
        all.add(tally);
        all.give_up("no answer");
        assert_eq!(all.failed_calls(), 5);
        all.give_up("no answer");
        assert_eq!(all.failed_calls(), 5);
    }
}
