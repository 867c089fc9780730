//! How long a home takes to come back with many open tasks in its log.
//!
//! In this process, over the real log on the real disk: tasks are submitted through the home until
//! so many wait, a part of them is sent to an executor that works on, and the home is dropped
//! without a word. Then it is opened again, as often as there are rounds.

use std::{fmt, path::Path, sync::Arc, time::Duration};

use attache::{
    domain::{InstanceId, SpiffeId},
    pb::{self, execute_response::Step},
    runtime::Nursery,
    task::{
        Call, Candidate, Connect, Contract, Parent, Parents, Pick, Route, Steps, Updates, Want,
        home::{Home, HomeConfig, LOST_AFTER, ListQuery, Replay, Submission},
        journal::{Journal, JournalConfig},
    },
    telemetry::TraceContext,
};
use futures_util::{StreamExt, stream};
use tokio::{sync::watch, time::Instant};
use tonic::Status;

use crate::Outcome;

/// Submissions at once while the log is filled.
const AT_ONCE: usize = 256;
/// Of so many tasks one is under way; the others wait.
const RUNS: usize = 20;
/// Bytes of a segment, as a sidecar has it.
const SEGMENT: u64 = 16 << 20;
/// Shards, as on a machine of two cores.
const SHARDS: usize = 2;
const HOME: &str = "home";
/// Above what anybody may send: all of it stands in the log.
pub(crate) const LARGE: usize = usize::MAX >> 8;
const BUSY: &str = "bench.run";
pub(crate) const IDLE: &str = "bench.wait";

/// One start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Restart {
    /// The log is read, and every record taken in.
    open: Duration,
    /// Every shard answers.
    ready: Duration,
    /// One more task is on disk.
    accepts: Duration,
}

/// Fills a log with so many open tasks, and starts on it again and again.
pub(crate) async fn measure(scratch: &Path, tasks: usize, rounds: usize) -> Outcome<Vec<Restart>> {
    let dir = scratch.join("recovery");
    let began = Instant::now();
    let (home, nurseries) = start(&dir, LARGE)?;
    let submit = |number: usize| {
        let home = home.clone();
        async move {
            let skill = if number.is_multiple_of(RUNS) {
                BUSY
            } else {
                IDLE
            };
            home.submit(asked(skill), number).await
        }
    };
    let mut submitted = stream::iter((0..tasks).map(submit)).buffer_unordered(AT_ONCE);
    while let Some(task) = submitted.next().await {
        task.map_err(|fault| fault.text)?;
    }
    drop(submitted);
    end(home, nurseries).await;
    eprintln!(
        "filled a log with {tasks} open tasks in {:.1?}",
        began.elapsed()
    );
    let mut restarts = Vec::new();
    for round in 1..=rounds {
        let began = Instant::now();
        let (home, nurseries) = start(&dir, LARGE)?;
        let open = began.elapsed();
        let query = ListQuery {
            viewer: Arc::new(own()),
            filter: pb::ListTasksRequest::default(),
            before: None,
            limit: 10,
        };
        let listed = home.list(query).await.map_err(|fault| fault.text)?;
        let ready = began.elapsed();
        let known: usize = home.counts().iter().map(|shard| shard.live).sum();
        // Each round before has ended one.
        if listed.tasks.len() < 10 || known + round <= tasks {
            return Err(format!("{known} of {tasks} tasks came back").into());
        }
        // Room for one more: the bound is what was filled.
        let first = listed.tasks[0].id.parse()?;
        home.cancel(&first, &Arc::new(own()), String::new())
            .await
            .map_err(|fault| fault.text)?;
        let accepts = began.elapsed();
        let restart = Restart {
            open,
            ready,
            accepts,
        };
        eprintln!("round {round}: {restart}");
        restarts.push(restart);
        end(home, nurseries).await;
    }
    Ok(restarts)
}

impl Restart {
    /// From nothing to answers.
    pub(crate) fn ready(&self) -> Duration {
        self.ready
    }
}

impl fmt::Display for Restart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "read in {:.0?}, ready after {:.0?}, a change on disk after {:.0?}",
            self.open, self.ready, self.accepts
        )
    }
}

/// A home whose contents of more than `large` bytes stand beside the log.
pub(crate) fn start(dir: &Path, large_bytes: usize) -> Outcome<(Home, Vec<Nursery>)> {
    let instance: InstanceId = HOME.parse()?;
    let mut replay = Replay::new(&instance, SHARDS);
    let config = JournalConfig {
        segment_bytes: SEGMENT,
        large_bytes,
        ..JournalConfig::default()
    };
    let journal = Journal::open(dir, config, |lsn, record| replay.record(lsn, &record))?;
    let far: Arc<Far> = Arc::default();
    let route: Arc<dyn Route> = far.clone();
    let connect: Arc<dyn Connect> = far.clone();
    let nurseries: Vec<Nursery> = (0..SHARDS).map(|_| Nursery::here()).collect();
    let config = HomeConfig {
        instance,
        own: own(),
        lost_after: LOST_AFTER,
        descendants: attache::task::descendants::DESCENDANTS_MAX,
    };
    let state = (journal, replay);
    let home = Home::on(config, state, &route, &connect, far, nurseries.clone())?;
    Ok((home, nurseries))
}

/// Ends a home as a crash would, but for the lock of its directory.
pub(crate) async fn end(home: Home, nurseries: Vec<Nursery>) {
    for nursery in nurseries {
        nursery.abort().await;
    }
    home.close(Duration::ZERO).await;
}

pub(crate) fn own() -> SpiffeId {
    "spiffe://bench.local/ns/default/agent/home"
        .parse()
        .expect("a SPIFFE id")
}

pub(crate) fn asked(skill: &str) -> Submission {
    let text = pb::part::Content::Text("x".repeat(crate::INPUT));
    let part = pb::Part {
        content: Some(text),
        ..Default::default()
    };
    let spec = pb::TaskSpec {
        selector: Some(pb::Selector {
            skill: skill.into(),
            ..Default::default()
        }),
        input: vec![part],
        ..Default::default()
    };
    Submission {
        spec,
        caller: own(),
        trace: None,
    }
}

/// An executor that takes every task of one skill and never ends it; nobody has the other.
#[derive(Default)]
struct Far {
    changes: watch::Sender<u64>,
}

impl Route for Far {
    fn pick(&self, want: &Want<'_>, _: Instant) -> Pick {
        if want.selector.skill != BUSY {
            return Pick::Nobody;
        }
        let far = Candidate {
            wants_descendants: true,
            instance: "far".parse().expect("an instance"),
            agent: "default/far".parse().expect("an agent"),
            idempotent: true,
            boot_id: String::new(),
            contract: Contract::default(),
        };
        if (want.allows)(&far.instance) {
            Pick::Go(Arc::new(far), Box::default())
        } else {
            Pick::Busy(None)
        }
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

#[tonic::async_trait]
impl Connect for Far {
    async fn execute(
        &self,
        _: &InstanceId,
        steps: Steps,
        _: Option<Box<Call>>,
        _: Option<&TraceContext>,
    ) -> Result<Updates, Status> {
        let accepted = pb::ExecuteResponse {
            step: Some(Step::Accepted(pb::Accepted::default())),
        };
        let said = stream::iter([Ok(accepted)]);
        // It goes on for as long as the home says something.
        let rest = steps.filter_map(|_| async { None });
        Ok(Box::pin(said.chain(rest)))
    }
}

impl Parents for Far {
    fn parent(&self, _: &str) -> Option<Parent> {
        None
    }

    fn lives(&self, _: &str) -> bool {
        false
    }

    fn over(&self) -> tokio::sync::broadcast::Receiver<Arc<str>> {
        tokio::sync::broadcast::Sender::new(1).subscribe()
    }
}
