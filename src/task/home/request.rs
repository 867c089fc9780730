//! What a shard can be asked, and what it answers with.

use std::{collections::VecDeque, sync::Arc};

use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::Instant;
use uuid::Uuid;

use crate::domain::{Fault, InstanceId, SpiffeId};
use crate::pb;
use crate::task::archive::ArchiveError;
use crate::task::callback::{Delivery, Outcome, Tells, Ticket};
use crate::task::journal::blobs::Hash;
use crate::task::spec::NewTask;

use super::attempt::Heard;
use super::dialogue::Response;
use super::granted::Granted;
use super::reads::{Batch, Page, Pieces};
use super::view::{ListQuery, Whole};

/// What a caller gets back, once it may.
pub(super) type Reply<T> = oneshot::Sender<Result<T, Fault>>;

/// What a shard can be asked.
pub(super) enum Request {
    Submit {
        new: Box<NewTask>,
        looked: Option<Instant>,
        answer: Reply<Answered<pb::Task>>,
    },
    Run {
        new: Box<NewTask>,
        looked: Option<Instant>,
        answer: Reply<Answered<Watching>>,
    },
    Cancel {
        task: Uuid,
        viewer: Arc<SpiffeId>,
        reason: String,
        answer: Reply<pb::Task>,
    },
    Respond {
        task: Uuid,
        viewer: Arc<SpiffeId>,
        response: Response,
        answer: Reply<(pb::Task, bool)>,
    },
    Get {
        task: Uuid,
        viewer: Arc<SpiffeId>,
        full: bool,
        answer: Reply<Whole>,
    },
    Naming {
        task: Uuid,
        viewer: Arc<SpiffeId>,
        hash: Hash,
        answer: Reply<pb::Part>,
    },
    List {
        query: Arc<ListQuery>,
        answer: Reply<Page>,
    },
    Watch {
        task: Uuid,
        viewer: Arc<SpiffeId>,
        after_seq: u64,
        answer: Reply<Watching>,
    },
    Next {
        task: Uuid,
        after_seq: u64,
        answer: Reply<Batch>,
    },
    Pieces {
        task: Uuid,
        viewer: Arc<SpiffeId>,
        artifact: String,
        from: usize,
        answer: Reply<Pieces>,
    },
    Heard {
        task: Uuid,
        attempt: u32,
        heard: Heard,
    },
    /// About tasks that may be made below this one.
    Supply(Uuid, SupplyWord),
    /// An executor says something about its slots.
    Slots(SlotsWord),
    /// The courier says something about what is to be told.
    Courier(CourierWord),
    /// Gives nothing more out; answered once no attempt is under way.
    Settle {
        answer: Reply<()>,
    },
    /// The archive has these tasks, or could not take them.
    Moved {
        tasks: Vec<Uuid>,
        outcome: Result<(), ArchiveError>,
    },
    Drain {
        answer: Reply<()>,
    },
}

impl Request {
    /// The task that it is about, where that may have ended long ago.
    pub(super) fn asks_for(&self) -> Option<Uuid> {
        match self {
            Self::Cancel { task, .. }
            | Self::Respond { task, .. }
            | Self::Get { task, .. }
            | Self::Naming { task, .. }
            | Self::Watch { task, .. }
            | Self::Next { task, .. }
            | Self::Pieces { task, .. }
            | Self::Supply(task, _) => Some(*task),
            // An attempt of a task that has ended is told so, whatever else is known of it.
            Self::Submit { .. }
            | Self::Run { .. }
            | Self::Heard { .. }
            | Self::List { .. }
            | Self::Slots(_)
            | Self::Courier(_)
            | Self::Settle { .. }
            | Self::Moved { .. }
            | Self::Drain { .. } => None,
        }
    }
}

/// What is said about tasks that may be made below one.
pub(super) enum SupplyWord {
    /// What came of asking whoever made it, for this attempt of it.
    Drawn { attempt: u32, drawn: Drawn },
    /// An attempt of a task that tells of it needs so many.
    Draw { by: Asker, count: u32 },
    /// So many of those were not needed.
    GiveBack { count: u32 },
}

/// Who has made a task, and is asked for what may be made below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Maker {
    /// The attempt with this token, which runs on this sidecar.
    Attempt(String),
    /// No attempt: it tells of this task, which is of this home.
    Task(Uuid),
}

/// The attempt of a task that needs more.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asker {
    pub(super) task: Uuid,
    pub(super) attempt: u32,
}

impl Asker {
    /// What it is told.
    pub(super) fn drawn(self, drawn: Drawn) -> Request {
        let Self { task, attempt } = self;
        Request::Supply(task, SupplyWord::Drawn { attempt, drawn })
    }
}

/// What came of asking for tasks that may be made.
#[derive(Debug)]
pub(super) struct Drawn {
    /// Who was asked.
    pub(super) from: Maker,
    /// How many it gave; 0: it has none, or is over.
    pub(super) got: u32,
    /// How many are left for the tree.
    pub(super) left: u32,
}

/// What the courier says about what is to be told.
pub(super) enum CourierWord {
    /// A try begins: what is to be told.
    Begins {
        ticket: Ticket,
        answer: Reply<Option<Delivery>>,
    },
    /// What became of it.
    Told { ticket: Ticket, outcome: Outcome },
    /// What became of the task that told an agent of a change.
    Answered {
        tells: Tells,
        outcome: Outcome,
        answer: Reply<()>,
    },
}

/// What an executor says about its slots.
pub(super) enum SlotsWord {
    /// It grants them to those who wait for it, or does not any more.
    Grants { instance: InstanceId, grants: bool },
    /// This one is for a task of here.
    Granted {
        grant: Box<Granted>,
        /// Takes it back where no task uses it.
        back: mpsc::Sender<String>,
    },
}

/// What a submission came to, with the answer for it.
#[derive(Debug)]
pub(super) enum Answered<T> {
    /// A task was made.
    New(T),
    /// The task that it made before.
    Again(T),
    /// Its task is, or may be, in the archive by now: look there again.
    Archived(Box<NewTask>),
    /// Its maker has to ask first for what it takes, so many.
    Unpaid(Box<NewTask>, u32),
}

/// Newest events that a mark carries: what one sync mostly shows of a task.
const NEWEST: usize = 4;

/// How far a task's events may be seen.
#[derive(Clone, Debug, Default)]
pub(super) struct Mark {
    pub(super) seq: u64,
    /// The event `seq` is the last one.
    pub(super) ended: bool,
    /// The last few up to `seq`, without a gap: who keeps up need not ask for them.
    newest: VecDeque<Arc<pb::TaskEvent>>,
}

impl Mark {
    /// Nothing after `seq` may be seen yet.
    pub(super) fn at(seq: u64, ended: bool) -> Self {
        Self {
            seq,
            ended,
            newest: VecDeque::new(),
        }
    }

    /// Moves on to `event`, the next one; `None`: it is not kept any more.
    pub(super) fn show(&mut self, seq: u64, ended: bool, event: Option<Arc<pb::TaskEvent>>) {
        if event.is_none() || self.newest.back().is_some_and(|last| last.seq + 1 != seq) {
            self.newest.clear();
        }
        if self.newest.len() == NEWEST {
            self.newest.pop_front();
        }
        self.newest.extend(event);
        self.seq = seq;
        self.ended = ended;
    }

    /// All events from `seq` after the cursor on; `None`: they are not all here.
    pub(super) fn after(&self, cursor: u64) -> Option<VecDeque<Arc<pb::TaskEvent>>> {
        let reaches = self.newest.front().is_some_and(|e| e.seq <= cursor + 1);
        let after = self.newest.iter().filter(|event| event.seq > cursor);
        reaches.then(|| after.cloned().collect())
    }
}

/// A task as it is, and how to hear of what comes.
#[derive(Debug)]
pub(super) struct Watching {
    pub(super) task: pb::Task,
    pub(super) marks: watch::Receiver<Mark>,
    pub(super) transients: broadcast::Receiver<Arc<pb::Transient>>,
}

/// Who hears of a task's changes.
pub(super) struct Watchers {
    pub(super) marks: watch::Sender<Mark>,
    pub(super) transients: broadcast::Sender<Arc<pb::Transient>>,
}
