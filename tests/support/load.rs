//! Callers that submit small tasks in a loop and follow each to its end, coming back with their last
//! number whenever a stream breaks, and a book of all that must not happen meanwhile.

use std::{error::Error, sync::Arc, time::Duration};

use attache::{
    domain::Reason,
    pb::{self, task_update::Update},
    wire::status::reason_of,
};
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};
use tonic::Status;
use tonic_types::StatusExt;

use super::{
    client::{self, Local},
    ledger::{Count, Ledger, Outcome},
    wait::eventually,
};

/// How long what is open may take to end once nothing new comes. Far above what it does take.
const ENDS: Duration = Duration::from_secs(90);
/// Wait before a home that is away is asked again.
const AGAIN: Duration = Duration::from_millis(50);

/// What the callers do.
#[derive(Clone, Debug)]
pub struct Shape {
    pub skill: &'static str,
    /// How long the agent works on each task, for a skill that takes time; see `test.slow`.
    pub work: Duration,
    /// What a caller waits between two tasks, so that a load leaves some of the machine.
    pub pause: Duration,
    /// Bound of each task, in seconds.
    pub bound: i64,
    /// Failures that are no breach.
    pub may_fail_by: &'static [&'static str],
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            skill: "test.echo",
            work: Duration::ZERO,
            pause: Duration::from_millis(5),
            bound: 300,
            may_fail_by: &[],
        }
    }
}

/// Callers at work. Dropped, they stop at once and nothing is checked.
pub struct Load {
    callers: JoinSet<()>,
    all: All,
    stop: watch::Sender<bool>,
}

/// What the callers of one load share.
#[derive(Clone)]
struct All {
    homes: Vec<Local>,
    shape: Shape,
    ledger: Arc<Mutex<Ledger>>,
    /// Tells this load's tasks from all others.
    mark: Arc<str>,
    stopping: watch::Receiver<bool>,
}

impl Load {
    /// So many callers that have small tasks echoed, over one connection: at most 50, so that
    /// watchers do not use up its streams.
    pub fn start(home: Local, callers: usize) -> Self {
        Self::shaped(vec![home], callers, Shape::default())
    }

    /// The same with tasks of another shape, over several connections to one home.
    pub fn shaped(homes: Vec<Local>, callers: usize, shape: Shape) -> Self {
        let (stop, stopping) = watch::channel(false);
        let all = All {
            homes,
            ledger: Arc::new(Mutex::new(Ledger::new(shape.may_fail_by))),
            shape,
            mark: uuid::Uuid::new_v4().simple().to_string()[..8].into(),
            stopping,
        };
        let mut set = JoinSet::new();
        for caller in 0..callers {
            set.spawn(all.clone().call(caller));
        }
        Self {
            callers: set,
            all,
            stop,
        }
    }

    pub fn count(&self) -> Count {
        self.all.ledger.lock().count().clone()
    }

    /// Waits until so many more tasks are done.
    pub async fn goes_on(&self, tasks: usize) {
        let before = self.count().completed;
        eventually("more tasks are done", || async {
            match self.count().completed - before {
                done if done >= tasks => Ok(()),
                few => Err(format!("{few} of {tasks}: {:?}", self.count())),
            }
        })
        .await;
    }

    /// Acknowledged and not seen to end.
    pub fn open(&self) -> usize {
        self.all.ledger.lock().open()
    }

    /// Submits nothing more, waits until everything that was taken has ended, and looks at what the
    /// home has.
    pub async fn stop(mut self) -> Outcome {
        self.stop.send_replace(true);
        let ended = timeout(ENDS, async {
            while let Some(ended) = self.callers.join_next().await {
                ended.unwrap();
            }
            self.all.look_over().await;
        });
        if ended.await.is_err() {
            let text = format!("not everything has ended within {ENDS:?}");
            self.all.ledger.lock().breach(text);
        }
        self.all.ledger.lock().close()
    }
}

/// How a stream ended.
enum Left {
    /// The home is away or sends its callers away: come back.
    Back,
    /// Nothing more is to be had.
    Over,
}

impl All {
    fn book<T>(&self, write: impl FnOnce(&mut Ledger) -> T) -> T {
        write(&mut self.ledger.lock())
    }

    fn stopped(&self) -> bool {
        *self.stopping.borrow()
    }

    /// One caller: every other task is handed over and watched, the others are run.
    async fn call(self, caller: usize) {
        let mut home = self.homes[caller % self.homes.len()].clone();
        let mut turn = 0;
        while !self.stopped() {
            let name = format!("{}-{caller}-{turn}", self.mark);
            let taken = if turn % 2 == 0 {
                self.submit(&mut home, &name).await
            } else {
                self.run(&mut home, &name).await
            };
            turn += 1;
            match taken {
                Some(id) => {
                    self.follow(&mut home, &name, &id).await;
                    sleep(self.shape.pause).await;
                }
                None => sleep(AGAIN).await,
            }
        }
    }

    fn spec(&self, name: &str) -> pb::TaskSpec {
        let text = match self.shape.work.as_millis() {
            0 => name.to_owned(),
            millis => format!("{millis} {name}"),
        };
        self.book(|book| book.asks(name, &text));
        pb::TaskSpec {
            correlation_id: name.to_owned(),
            ..client::bounded(self.shape.skill, &text, self.shape.bound)
        }
    }

    /// Hands a task over; its id if it was taken.
    async fn submit(&self, home: &mut Local, name: &str) -> Option<String> {
        let request = pb::SubmitTaskRequest {
            spec: Some(self.spec(name)),
        };
        match home.submit_task(request).await {
            Ok(answer) => {
                let id = answer.into_inner().task.unwrap().id;
                self.book(|book| book.acknowledged(name, &id));
                Some(id)
            }
            Err(status) => {
                self.not_taken(name, &status);
                None
            }
        }
    }

    /// Has a task run; its id if it was taken.
    async fn run(&self, home: &mut Local, name: &str) -> Option<String> {
        let request = pb::RunTaskRequest {
            spec: Some(self.spec(name)),
        };
        let mut stream = match home.run_task(request).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => {
                self.not_taken(name, &status);
                return None;
            }
        };
        let mut id = None;
        loop {
            let status = match stream.message().await {
                Ok(Some(response)) => {
                    if let Some(told) = self.take(name, response.update) {
                        id = Some(told);
                    }
                    continue;
                }
                Ok(None) => None,
                Err(status) => Some(status),
            };
            match (&id, status) {
                (None, Some(status)) => self.not_taken(name, &status),
                (None, None) => self.book(Ledger::unknown),
                // Broken or sent away: it is followed from here.
                (Some(_), status) => drop(self.left(name, status)),
            }
            return id;
        }
    }

    /// Watches a task to its end over as many streams as it takes.
    async fn follow(&self, home: &mut Local, name: &str, id: &str) {
        while !self.book(|book| book.has_ended(name)) {
            let request = pb::WatchTaskRequest {
                task_id: id.to_owned(),
                after_seq: self.book(|book| book.last_seq(name)),
                transients: false,
            };
            let left = match home.watch_task(request).await {
                Err(status) => self.left(name, Some(status)),
                Ok(answer) => {
                    let mut stream = answer.into_inner();
                    loop {
                        match stream.message().await {
                            Ok(Some(response)) => drop(self.take(name, response.update)),
                            Ok(None) => break self.left(name, None),
                            Err(status) => break self.left(name, Some(status)),
                        }
                    }
                }
            };
            if !left.comes_back() {
                return;
            }
            sleep(AGAIN).await;
        }
    }

    /// Takes an update in; gives the task's id where it comes with it.
    fn take(&self, name: &str, update: Option<pb::TaskUpdate>) -> Option<String> {
        match update?.update? {
            Update::Task(task) => {
                self.book(|book| book.acknowledged(name, &task.id));
                return Some(task.id);
            }
            Update::Event(event) => self.book(|book| book.event(name, &event)),
            Update::Keepalive(alive) => self.book(|book| {
                let last = book.last_seq(name);
                if alive.last_seq != last {
                    let text = format!("{name}: a keepalive with {} at {last}", alive.last_seq);
                    book.breach(text);
                }
            }),
            Update::Transient(_) => {}
        }
        None
    }

    /// A submission that brought no task.
    fn not_taken(&self, name: &str, status: &Status) {
        if never_sent(status) {
            return self.book(|book| book.unsent(Some(name)));
        }
        let refused = said(status, NOT_TAKEN);
        self.book(|book| match (refused, is_break(status)) {
            (true, _) => book.refused(name),
            (false, true) => book.unknown(),
            (false, false) => book.breach(format!("{name} was refused: {status:?}")),
        });
    }

    /// A stream of a task that is known ended.
    fn left(&self, name: &str, status: Option<Status>) -> Left {
        self.book(|book| {
            let Some(status) = status else {
                if book.has_ended(name) {
                    return Left::Over;
                }
                book.ended_early(name);
                return Left::Back;
            };
            // Told its end, and cut before the stream's own.
            if book.has_ended(name) {
                return Left::Over;
            }
            if never_sent(&status) {
                book.unsent(None);
            } else if said(&status, &[Reason::Draining]) {
                book.sent_away(name, cursor(&status));
            } else if is_break(&status) || said(&status, AWAY) {
                book.broke();
            } else {
                book.breach(format!("{name}: its stream broke: {status:?}"));
                return Left::Over;
            }
            Left::Back
        })
    }

    /// Looks at all that the home has: there is one task at most for each submission, and those whose
    /// acknowledgement was lost end like the others.
    async fn look_over(&self) {
        let mut home = self.homes[0].clone();
        let mut request = pb::ListTasksRequest {
            page_size: 1000,
            ..Default::default()
        };
        loop {
            let page = match home.list_tasks(request.clone()).await {
                Ok(answer) => answer.into_inner(),
                Err(status) if is_break(&status) || never_sent(&status) => {
                    sleep(AGAIN).await;
                    continue;
                }
                Err(status) => {
                    let text = format!("the tasks cannot be listed: {status:?}");
                    return self.book(|book| book.breach(text));
                }
            };
            for task in page.tasks {
                let (name, state) = (&task.correlation_id, task.state());
                if name.starts_with(&*self.mark) {
                    self.book(|book| book.listed(name, &task.id, state, task.last_seq));
                }
            }
            if page.next_page_token.is_empty() {
                break;
            }
            request.page_token = page.next_page_token;
        }
        for (name, id) in self.book(|book| book.unseen()) {
            self.follow(&mut home, &name, &id).await;
        }
    }
}

impl Left {
    fn comes_back(&self) -> bool {
        matches!(self, Self::Back)
    }
}

/// Refusals before anything was taken.
const NOT_TAKEN: &[Reason] = &[Reason::Draining, Reason::QueueFull];
/// What a stream that goes over another sidecar may end with.
const AWAY: &[Reason] = &[Reason::HomeUnavailable, Reason::ConnectionLost];

fn said(status: &Status, known: &[Reason]) -> bool {
    let reason = reason_of(status);
    known
        .iter()
        .any(|known| Some(known.label()) == reason.as_deref())
}

/// The cursor that a stream's last word holds.
fn cursor(status: &Status) -> Option<u64> {
    let info = status.get_details_error_info()?;
    info.metadata.get("last_seq")?.parse().ok()
}

/// Whether the connection itself failed: nobody has said a word.
fn is_break(status: &Status) -> bool {
    reason_of(status).is_none() && client::is_away(status)
}

/// Whether there was no connection, so that nothing can have been taken. A sidecar that cannot reach
/// another one says so in other words.
fn never_sent(status: &Status) -> bool {
    if said(status, &[Reason::PeerUnreachable]) {
        return true;
    }
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}
