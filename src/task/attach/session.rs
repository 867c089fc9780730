//! What may be said on one attached stream, and what is to be said next.
//!
//! Pure: numbers, places and credit; no stream and no channel. What is to be said is not queued but
//! kept with its attempt, so that an agent that does not read costs no more than its attempts do.
//!
//! ```text
//!   work:  given --written--> open --its end--> gone
//!            |                 '--cut--> cut --its end--> gone
//!            '--cut--> gone, and never begun
//! ```

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

use crate::pb;
use crate::pb::attach_request::Say as Said;
use crate::pb::attach_response::Say;
use crate::wire::credit::{COST_LEAST, cost};

/// Most attempts that one stream takes at once: what a card may promise is no less, and each may
/// keep [`CREDIT`] and one update more.
pub const PLACES_MAX: u32 = 1024;
/// Bytes of updates that an attempt may have on their way to its home: enough for a pause of the
/// home, little beside the 1 MiB that the executor keeps of an attempt by itself.
pub const CREDIT: u64 = 256 << 10;
/// Taken updates are given back in pieces of this: a message for each would double the traffic.
const GIVE_BACK: u64 = CREDIT / 4;
/// Longest message of an `end`, as a gRPC trailer bounds it; the executor passes less of it on.
const MESSAGE_MAX: usize = 8 << 10;

/// A rule of the stream was broken; the sentence is for the agent's author.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Violation(String);

/// What a message of the agent comes to.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Heard {
    /// It has attached; its card, if it gave one.
    Hello(Option<Box<pb::AgentCard>>),
    /// It takes more or less from now on, or a place has become free.
    Places,
    /// An update for whoever runs this attempt.
    Update(u64, Box<pb::HandleResponse>),
    /// The attempt's end.
    End(u64, pb::AttachEnd),
    /// Something for an attempt that was cut.
    Late,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    Cut,
}

#[derive(Debug)]
struct Work {
    phase: Phase,
    /// Not written yet.
    given: Option<Given>,
    cancel: Option<String>,
    cut_due: bool,
    /// What the agent may still send; below 0 after an update that was larger.
    credit: i64,
    /// What was taken and not given back.
    owed: u64,
    /// Whether it is in the line of those with something to say.
    in_line: bool,
}

/// An attempt to run.
#[derive(Debug)]
pub(super) struct Given {
    pub(super) request: Box<pb::HandleRequest>,
    pub(super) deadline: Instant,
    /// Trace parent and state; empty: none.
    pub(super) trace: (String, String),
}

/// One stream of an agent.
#[derive(Debug, Default)]
pub(super) struct Session {
    greeted: bool,
    welcome: Option<String>,
    places: u32,
    last: u64,
    /// Sorted: what is lost with the stream is told in order.
    works: BTreeMap<u64, Work>,
    line: VecDeque<u64>,
}

impl Session {
    /// Attempts that it may get now.
    pub(super) fn free(&self) -> usize {
        (self.places as usize).saturating_sub(self.works.len())
    }

    /// Attempts that were cut, and by the agent's word have not ended.
    pub(super) fn held(&self) -> u32 {
        let cut = self.works.values().filter(|work| work.phase == Phase::Cut);
        u32::try_from(cut.count()).unwrap_or(u32::MAX)
    }

    /// Whether the agent takes no more and has nothing left: it may go without a loss.
    pub(super) fn is_done(&self) -> bool {
        self.greeted && self.places == 0 && self.works.is_empty()
    }

    /// Whether the agent has said hello.
    pub(super) fn greeted(&self) -> bool {
        self.greeted
    }

    /// Attempts that it takes at once by its own word.
    pub(super) fn places(&self) -> u32 {
        self.places
    }

    /// Answers `hello` as this instance.
    pub(super) fn welcome(&mut self, instance: &str) {
        self.welcome = Some(instance.to_owned());
    }

    /// Takes an attempt in and gives its number.
    ///
    /// # Errors
    /// Gives it back where there is no place for it.
    pub(super) fn give(&mut self, given: Given) -> Result<u64, Given> {
        if self.free() == 0 {
            return Err(given);
        }
        self.last += 1;
        let work = Work {
            phase: Phase::Open,
            given: Some(given),
            cancel: None,
            cut_due: false,
            credit: CREDIT.cast_signed(),
            owed: 0,
            in_line: false,
        };
        self.works.insert(self.last, work);
        self.put_in_line(self.last);
        Ok(self.last)
    }

    /// The attempt shall stop.
    pub(super) fn cancel(&mut self, number: u64, reason: String) {
        if let Some(work) = self.works.get_mut(&number)
            && work.phase == Phase::Open
        {
            work.cancel = Some(reason);
            self.put_in_line(number);
        }
    }

    /// Nobody wants the attempt any more. One that was not written yet is gone at once.
    pub(super) fn cut(&mut self, number: u64) {
        let Some(work) = self.works.get_mut(&number) else {
            return;
        };
        if work.given.is_some() {
            self.works.remove(&number);
            return;
        }
        if work.phase == Phase::Open {
            work.phase = Phase::Cut;
            work.cancel = None;
            work.owed = 0;
            work.cut_due = true;
            self.put_in_line(number);
        }
    }

    /// An update that cost this much was taken by whoever runs the attempt.
    pub(super) fn taken(&mut self, number: u64, cost: u64) {
        if let Some(work) = self.works.get_mut(&number)
            && work.phase == Phase::Open
        {
            work.owed += cost;
            if work.owed >= GIVE_BACK {
                self.put_in_line(number);
            }
        }
    }

    /// What to write next, if anything.
    pub(super) fn next(&mut self, now: Instant) -> Option<pb::AttachResponse> {
        if let Some(instance) = self.welcome.take() {
            return Some(said(Say::Attached(pb::Attached { instance })));
        }
        while let Some(number) = self.line.pop_front() {
            let Some(work) = self.works.get_mut(&number) else {
                continue;
            };
            work.in_line = false;
            let Some(say) = work.next(number, now) else {
                continue;
            };
            if work.has_more() {
                self.put_in_line(number);
            }
            return Some(said(say));
        }
        None
    }

    /// Whether [`Session::next`] has something.
    pub(super) fn has_next(&self) -> bool {
        self.welcome.is_some() || !self.line.is_empty()
    }

    /// Takes in a message of the agent.
    ///
    /// # Errors
    /// [`Violation`]: the stream has to be closed.
    pub(super) fn hear(&mut self, message: pb::AttachRequest) -> Result<Heard, Violation> {
        let Some(said) = message.say else {
            return wrong("a message without content, or of a newer version");
        };
        match said {
            Said::Hello(_) if self.greeted => wrong("hello is the first message only"),
            Said::Hello(hello) => {
                if !(1..=PLACES_MAX).contains(&hello.places) {
                    return wrong(format!("hello.places is from 1 to {PLACES_MAX}"));
                }
                self.greeted = true;
                self.places = hello.places;
                Ok(Heard::Hello(hello.card.map(Box::new)))
            }
            _ if !self.greeted => wrong("the first message is hello"),
            Said::Places(places) if places > PLACES_MAX => {
                wrong(format!("places is from 0 to {PLACES_MAX}"))
            }
            Said::Places(places) => {
                self.places = places;
                Ok(Heard::Places)
            }
            Said::Update(update) => self.update(update),
            Said::End(end) => self.ended(end),
        }
    }

    /// The stream is over: the numbers of all attempts, and whether each was written.
    pub(super) fn over(self) -> impl Iterator<Item = (u64, bool)> {
        self.works
            .into_iter()
            .map(|(number, work)| (number, work.given.is_none()))
    }

    fn update(&mut self, update: pb::AttachUpdate) -> Result<Heard, Violation> {
        let number = update.work;
        let work = self.open(number, "an update")?;
        let Some(update) = update.update else {
            return wrong(format!("an update of work {number} without its content"));
        };
        if work.credit <= 0 {
            return wrong(format!(
                "an update of work {number} without credit: count what you send, each update with \
                 its encoded size and at least {COST_LEAST} bytes, and wait for `credit` at 0"
            ));
        }
        work.credit -= cost(&update).cast_signed();
        Ok(match work.phase {
            Phase::Open => Heard::Update(number, Box::new(update)),
            // What crosses a cut was within its credit as well.
            Phase::Cut => Heard::Late,
        })
    }

    fn ended(&mut self, end: pb::AttachEnd) -> Result<Heard, Violation> {
        let number = end.work;
        let phase = self.open(number, "an end")?.phase;
        if end.message.len() > MESSAGE_MAX {
            return wrong(format!(
                "the message of the end of work {number} is longer than {MESSAGE_MAX} bytes"
            ));
        }
        self.works.remove(&number);
        Ok(match phase {
            Phase::Open => Heard::End(number, end),
            Phase::Cut => Heard::Places,
        })
    }

    /// An attempt that the agent may speak of.
    fn open(&mut self, number: u64, what: &str) -> Result<&mut Work, Violation> {
        let written = self.works.get_mut(&number);
        written.filter(|work| work.given.is_none()).ok_or_else(|| {
            Violation(format!(
                "{what} of work {number}, which has ended or was never given on this stream"
            ))
        })
    }

    fn put_in_line(&mut self, number: u64) {
        if let Some(work) = self.works.get_mut(&number)
            && !std::mem::replace(&mut work.in_line, true)
        {
            self.line.push_back(number);
        }
    }
}

impl Work {
    fn next(&mut self, number: u64, now: Instant) -> Option<Say> {
        if let Some(given) = self.given.take() {
            return Some(Say::Work(Box::new(given.written(number, now))));
        }
        if let Some(reason) = self.cancel.take() {
            let work = number;
            return Some(Say::Cancel(pb::AttachCancel { work, reason }));
        }
        if std::mem::take(&mut self.cut_due) {
            return Some(Say::Cut(pb::AttachCut { work: number }));
        }
        if self.owed >= GIVE_BACK {
            let bytes = std::mem::take(&mut self.owed);
            self.credit += bytes.cast_signed();
            let work = number;
            return Some(Say::Credit(pb::AttachCredit { work, bytes }));
        }
        None
    }

    fn has_more(&self) -> bool {
        self.cancel.is_some() || self.cut_due || self.owed >= GIVE_BACK
    }
}

impl Given {
    fn written(self, number: u64, now: Instant) -> pb::AttachWork {
        // A time that protobuf cannot say is as good as none.
        let remaining: Duration = self.deadline.saturating_duration_since(now);
        let (traceparent, tracestate) = self.trace;
        pb::AttachWork {
            work: number,
            request: Some(*self.request),
            remaining: remaining.try_into().ok(),
            credit: CREDIT,
            traceparent,
            tracestate,
        }
    }
}

fn said(say: Say) -> pb::AttachResponse {
    pb::AttachResponse { say: Some(say) }
}

fn wrong<T>(text: impl Into<String>) -> Result<T, Violation> {
    Err(Violation(text.into()))
}
