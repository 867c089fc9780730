//! All attached streams of one agent, as the one agent that the executor calls.
//!
//! An attempt goes to the stream with the most free places, by turns among equals. What nobody has
//! room for was not begun: its home gives it elsewhere, or again.

use std::{
    cmp::Reverse,
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    runtime::Handle,
    sync::{Notify, mpsc, watch},
    time::Instant,
};
use tonic::{Code, Status};

use super::session::{Given, Heard, Session, Violation};
use crate::domain::InstanceId;
use crate::pb;
use crate::runtime::Nursery;
use crate::task::executor::HandlerError;

/// Most streams at a time: as many processes or hosts of one agent as one sidecar is good for.
pub const STREAMS_MAX: usize = 64;
pub(super) type Word = Result<pb::HandleResponse, HandlerError>;

/// Who is attached now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attendance {
    /// Streams that have said hello.
    pub streams: usize,
    /// Attempts that they say to take at once.
    pub places: u32,
    /// Attempts that were cut, and have not ended by their agent's word: it may still be busy with
    /// them.
    pub held: u32,
    /// Moves on with every stream that opens, and with every one that ends and had given a card:
    /// who is there then may describe itself otherwise.
    pub cards: u64,
}

/// The streams of one agent. Clones are the same.
#[derive(Clone)]
pub struct Desk {
    shared: Arc<Shared>,
}

struct Shared {
    instance: InstanceId,
    seats: Mutex<Vec<Arc<Seat>>>,
    attendance: watch::Sender<Attendance>,
    turns: AtomicU64,
    nurseries: Vec<Nursery>,
    thread: AtomicUsize,
}

/// One stream.
pub(super) struct Seat {
    state: Mutex<State>,
    /// Moves on when there is something to say.
    pub(super) wake: Notify,
    /// When it last got an attempt, in turns.
    turn: AtomicU64,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) session: Session,
    card: Option<Box<pb::AgentCard>>,
    pub(super) outlets: HashMap<u64, Outlet>,
}

/// What a message of the agent means for the desk.
pub(super) enum News {
    /// It has attached; its card, if it gave one.
    Arrived(Option<Box<pb::AgentCard>>),
    /// It takes more, or less, than it did.
    Room,
    /// Nothing: it was about one attempt, and was passed on.
    Passed,
}

/// Where the words of one attempt go.
pub(super) struct Outlet {
    pub(super) task: String,
    pub(super) attempt: u32,
    pub(super) words: mpsc::Sender<Word>,
}

impl Desk {
    /// A desk of this instance's agent; streams are served in `nurseries`, one per data thread.
    ///
    /// # Panics
    /// Without a nursery.
    pub fn new(instance: InstanceId, nurseries: Vec<Nursery>) -> Self {
        assert!(!nurseries.is_empty(), "streams need a runtime to run on");
        Self {
            shared: Arc::new(Shared {
                instance,
                seats: Mutex::default(),
                attendance: watch::Sender::default(),
                turns: AtomicU64::new(0),
                nurseries,
                thread: AtomicUsize::new(0),
            }),
        }
    }

    /// Who is attached, as it changes.
    pub fn attendance(&self) -> watch::Receiver<Attendance> {
        self.shared.attendance.subscribe()
    }

    /// The nursery of the calling data thread, so that a stream stays on its connection's core.
    pub(super) fn nursery(&self) -> &Nursery {
        let all = &self.shared.nurseries;
        let own = Handle::try_current().ok().and_then(|here| {
            all.iter()
                .find(|nursery| nursery.runtime().id() == here.id())
        });
        own.unwrap_or_else(|| &all[self.shared.thread.fetch_add(1, Ordering::Relaxed) % all.len()])
    }

    /// A place for one more stream, which takes part once it has said hello; `None`: there are
    /// [`STREAMS_MAX`].
    pub(super) fn sit(&self) -> Option<Arc<Seat>> {
        let mut seats = self.shared.seats.lock();
        if seats.len() >= STREAMS_MAX {
            return None;
        }
        let seat = Arc::new(Seat {
            state: Mutex::default(),
            wake: Notify::new(),
            turn: AtomicU64::new(0),
        });
        seats.push(Arc::clone(&seat));
        Some(seat)
    }

    /// The stream is over: its attempts are lost, but for those that were never written to it.
    pub(super) fn leave(&self, seat: &Arc<Seat>, why: &str) {
        self.shared
            .seats
            .lock()
            .retain(|other| !Arc::ptr_eq(other, seat));
        let State {
            session,
            card,
            mut outlets,
        } = std::mem::take(&mut *seat.state.lock());
        for (number, written) in session.over() {
            let Some(outlet) = outlets.remove(&number) else {
                continue;
            };
            outlet.word(Err(if written {
                HandlerError::Lost(why.to_owned())
            } else {
                HandlerError::Unreachable(why.to_owned())
            }));
        }
        self.shared.count(u64::from(card.is_some()));
    }

    /// Somebody has said hello.
    pub(super) fn arrived(&self, seat: &Seat, card: Option<Box<pb::AgentCard>>) {
        let mut state = seat.state.lock();
        state.card = card;
        state.session.welcome(self.shared.instance.as_str());
        drop(state);
        self.shared.count(1);
    }

    /// A stream takes more, or less, than it did.
    pub(super) fn changed(&self) {
        self.shared.count(0);
    }

    /// The stream that gets the next attempt.
    pub(super) fn next_seat(&self) -> Option<Arc<Seat>> {
        let seats = self.shared.seats.lock();
        let free = seats
            .iter()
            .map(|seat| (seat.state.lock().session.free(), seat));
        let (_, seat) = free
            .filter(|(free, _)| *free > 0)
            .max_by_key(|(free, seat)| (*free, Reverse(seat.turn.load(Ordering::Relaxed))))?;
        let turn = self.shared.turns.fetch_add(1, Ordering::Relaxed) + 1;
        seat.turn.store(turn, Ordering::Relaxed);
        Some(Arc::clone(seat))
    }

    /// The card of the newest stream that has given one.
    pub(super) fn card(&self) -> Option<pb::AgentCard> {
        let seats = self.shared.seats.lock();
        let cards = seats.iter().rev();
        let mut cards = cards.filter_map(|seat| seat.state.lock().card.clone());
        cards.next().map(|card| *card)
    }

    /// Where an attempt runs, and under which number.
    pub(super) fn find(&self, task: &str, attempt: u32) -> Option<(Arc<Seat>, u64)> {
        let seats = self.shared.seats.lock();
        seats.iter().find_map(|seat| {
            let number = seat.number_of(task, attempt)?;
            Some((Arc::clone(seat), number))
        })
    }
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk")
            .field("attendance", &*self.shared.attendance.borrow())
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn count(&self, cards: u64) {
        let seats = self.seats.lock();
        let mut now = Attendance::default();
        for seat in seats.iter() {
            let state = seat.state.lock();
            now.streams += usize::from(state.session.greeted());
            now.places = now.places.saturating_add(state.session.places());
            now.held = now.held.saturating_add(state.session.held());
        }
        self.attendance.send_if_modified(|before| {
            now.cards = before.cards + cards;
            let changed = *before != now;
            *before = now;
            changed
        });
    }
}

impl Seat {
    /// Takes in a message of the agent, and passes on what it says of an attempt.
    ///
    /// # Errors
    /// [`Violation`].
    pub(super) fn hear(&self, message: pb::AttachRequest) -> Result<News, Violation> {
        let mut state = self.state.lock();
        let heard = state.session.hear(message)?;
        Ok(match heard {
            Heard::Hello(card) => News::Arrived(card),
            Heard::Places => News::Room,
            Heard::Late => News::Passed,
            Heard::Update(number, update) => {
                if let Some(outlet) = state.outlets.get(&number) {
                    outlet.word(Ok(*update));
                }
                News::Passed
            }
            Heard::End(number, end) => {
                if let Some(outlet) = state.outlets.remove(&number)
                    && let Some(error) = ended(&end)
                {
                    outlet.word(Err(error));
                }
                News::Passed
            }
        })
    }

    /// Takes an attempt in and gives its number.
    ///
    /// # Errors
    /// Gives it back where there is no place for it, or nobody any more.
    pub(super) fn give(&self, given: Given, outlet: Outlet) -> Result<u64, Given> {
        let number = {
            let mut state = self.state.lock();
            let number = state.session.give(given)?;
            state.outlets.insert(number, outlet);
            number
        };
        self.wake.notify_one();
        Ok(number)
    }

    /// What to write next, if anything.
    pub(super) fn next(&self, now: Instant) -> Option<pb::AttachResponse> {
        self.state.lock().session.next(now)
    }

    /// Whether it may end without a loss, as its agent wants.
    pub(super) fn is_done(&self) -> bool {
        self.state.lock().session.is_done()
    }

    pub(super) fn has_next(&self) -> bool {
        self.state.lock().session.has_next()
    }

    fn number_of(&self, task: &str, attempt: u32) -> Option<u64> {
        let state = self.state.lock();
        let mut all = state.outlets.iter();
        all.find(|(_, outlet)| outlet.attempt == attempt && outlet.task == task)
            .map(|(number, _)| *number)
    }

    /// Does something to the stream, and has said what follows from it.
    pub(super) fn act(&self, act: impl FnOnce(&mut State)) {
        let mut state = self.state.lock();
        act(&mut state);
        if state.session.has_next() {
            self.wake.notify_one();
        }
    }
}

impl Outlet {
    fn word(&self, word: Word) {
        // Credit bounds what is on its way below the room for it; who runs the attempt may be gone.
        if self.words.try_send(word).is_err() {
            tracing::trace!(task = self.task, "a word for an attempt that is over");
        }
    }
}

/// How the call ends by the agent's word; `None`: well.
pub(super) fn ended(end: &pb::AttachEnd) -> Option<HandlerError> {
    let code = Code::from(end.code);
    if code == Code::Ok {
        return None;
    }
    let mut status = Status::new(code, end.message.clone());
    if end.not_processed {
        let marks = status.metadata_mut();
        marks.insert("attache-not-processed", "1".parse().expect("is ASCII"));
        if let Some(wait) = end.retry_after {
            let wait = Duration::try_from(wait)
                .unwrap_or(Duration::MAX)
                .as_millis();
            let wait = wait.to_string().parse().expect("digits are ASCII");
            marks.insert("grpc-retry-pushback-ms", wait);
        }
    }
    Some(HandlerError::Status(status))
}
