//! What happened in a run: its digest, so that two runs can be compared, and the facts that the
//! checker replays. What breaks an invariant at once is noted as it is seen.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

use tokio::time::Instant;

use crate::domain::Reason;
use crate::pb;

use super::trees::Refused;

/// Lines that are kept for whoever reads how a seed failed.
const LINES: usize = 200;

/// One thing that somebody wants done; submitted again only under its key, or after a refusal.
#[derive(Debug, Default)]
pub(super) struct Request {
    pub(super) node: usize,
    /// Names it in its tasks, so that tasks that nobody was told of are found again.
    pub(super) context: String,
    /// Ids that came back with OK.
    pub(super) ids: BTreeSet<String>,
    /// OKs without `replayed`.
    pub(super) fresh: u32,
    /// Calls whose outcome is not known.
    pub(super) unknown: u32,
}

/// One run of a handler.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) task: String,
    pub(super) attempt: u32,
    pub(super) node: usize,
    /// Ids of the questions and answers that it was given.
    pub(super) talk: Vec<String>,
    /// The agent said that it has not begun.
    pub(super) void: bool,
    /// It is over.
    pub(super) over: bool,
}

/// What happened.
#[derive(Debug)]
pub(super) struct History {
    began: Instant,
    digest: DefaultHasher,
    lines: VecDeque<String>,
    trace: bool,
    pub(super) requests: Vec<Request>,
    pub(super) runs: Vec<Run>,
    /// Every event that anybody was shown, by task and number.
    pub(super) shown: BTreeMap<String, BTreeMap<u64, pb::TaskEvent>>,
    /// What whoever is called back was told, by task and number.
    pub(super) told: BTreeMap<String, BTreeMap<u64, String>>,
    /// Which task has told an agent of which change.
    pub(super) tellers: BTreeMap<String, (String, u64)>,
    /// Tasks whose cancellation was acknowledged.
    pub(super) canceled: BTreeSet<String>,
    /// Answers that were acknowledged, by their tasks and questions.
    pub(super) answered: BTreeSet<(String, String)>,
    /// Children that were not taken.
    pub(super) refused: Vec<Refused>,
    /// Tasks in memory only, with what they were in the end where that was seen.
    pub(super) fleeting: BTreeMap<String, Option<pb::Task>>,
    /// How often each kind of fault came.
    pub(super) faults: BTreeMap<&'static str, u64>,
    /// Invariants that were broken, and how.
    pub(super) broken: Vec<String>,
}

impl History {
    pub(super) fn new(trace: bool) -> Self {
        Self {
            began: Instant::now(),
            digest: DefaultHasher::new(),
            lines: VecDeque::new(),
            trace,
            requests: Vec::new(),
            runs: Vec::new(),
            shown: BTreeMap::new(),
            told: BTreeMap::new(),
            tellers: BTreeMap::new(),
            canceled: BTreeSet::new(),
            answered: BTreeSet::new(),
            refused: Vec::new(),
            fleeting: BTreeMap::new(),
            faults: BTreeMap::new(),
            broken: Vec::new(),
        }
    }

    /// Adds a line to what happened.
    pub(super) fn note(&mut self, fact: fmt::Arguments<'_>) {
        let line = format!("{:>8} {fact}", self.began.elapsed().as_millis());
        line.hash(&mut self.digest);
        if self.trace {
            #[allow(
                clippy::print_stderr,
                reason = "asked for by whoever looks at one seed"
            )]
            {
                eprintln!("{line}");
            }
        }
        if self.lines.len() == LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    /// A fault was made.
    pub(super) fn fault(&mut self, kind: &'static str, how: fmt::Arguments<'_>) {
        *self.faults.entry(kind).or_default() += 1;
        self.note(format_args!("fault {kind} {how}"));
    }

    /// Somebody was refused a task, of the tree below `root`; without: of none.
    pub(super) fn refuse(&mut self, root: Option<String>, reason: Reason) {
        let refused = root.map(|root| Refused { root, reason });
        self.refused.extend(refused);
    }

    /// An invariant is broken.
    pub(super) fn breach(&mut self, how: String) {
        self.note(format_args!("BROKEN {how}"));
        self.broken.push(how);
    }

    /// Somebody was shown an event: whatever was shown once stays as it is.
    pub(super) fn show(&mut self, who: &str, event: &pb::TaskEvent) {
        self.note(format_args!(
            "{who} sees {} #{} attempt {} {:?} {:?}",
            event.task_id,
            event.seq,
            event.attempt,
            event.state(),
            event.kind
        ));
        let shown = self.shown.entry(event.task_id.clone()).or_default();
        match shown.get(&event.seq) {
            Some(before) if before != event => {
                let how = format!(
                    "I2 I13: event {} of {} was {before:?} and is {event:?}",
                    event.seq, event.task_id
                );
                self.breach(how);
            }
            Some(_) => {}
            None => {
                shown.insert(event.seq, event.clone());
            }
        }
    }

    /// The handler of an agent begins; gives the run's number.
    pub(super) fn begin(&mut self, node: usize, task: &str, attempt: u32) -> usize {
        let run = self.runs.len();
        self.note(format_args!(
            "run {run} of {task} attempt {attempt} begins at {node}"
        ));
        self.runs.push(Run {
            task: task.to_owned(),
            attempt,
            node,
            talk: Vec::new(),
            void: false,
            over: false,
        });
        run
    }

    /// Of everything that happened.
    pub(super) fn digest(&self) -> u64 {
        self.digest.finish()
    }

    /// The last lines.
    pub(super) fn tail(&self) -> String {
        let lines: Vec<_> = self.lines.iter().map(String::as_str).collect();
        lines.join("\n")
    }
}
