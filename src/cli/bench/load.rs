//! Callers, each on its connection, each connection on its thread.

use std::{
    io,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use parking_lot::Mutex;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep_until},
};
use tonic::Code;

use super::{
    args::Kind,
    call::{Failure, Template},
    line::{self, Line},
    pace::Pace,
    tally::Tally,
    target::Target,
};
use crate::runtime::DataThreads;

/// How long calls that were begun in time may take after it; what is open then has failed.
const GRACE: Duration = Duration::from_secs(5);

/// What is done.
#[derive(Clone)]
pub(super) struct Plan {
    pub(super) target: Target,
    pub(super) template: Template,
    pub(super) kind: Kind,
    pub(super) callers: usize,
    pub(super) connections: usize,
    pub(super) threads: usize,
    /// Calls per second of all together; `None`: as fast as answers come.
    pub(super) rate: Option<f64>,
    pub(super) warmup: Duration,
    pub(super) time: Duration,
}

/// What all callers of a thread share.
struct Job {
    template: Template,
    kind: Kind,
    end: Instant,
    pace: Option<Arc<Pace>>,
    tally: Mutex<Tally>,
}

type Caller = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Carries out the plan; what came of it, and how long what counts took.
///
/// # Errors
/// When the target cannot be reached at all, or the system gives no thread.
pub(super) async fn run(plan: &Plan) -> io::Result<Tally> {
    // Later on it is dialled again for as long as it takes; a typo should not take that long.
    drop(line::dial(&plan.target).await?);
    let threads = DataThreads::start(plan.threads)?;
    let began = Instant::now();
    let begin = began + plan.warmup;
    let end = begin + plan.time;
    let pace = match plan.rate {
        Some(rate) => Some(Arc::new(Pace::start(began, rate)?)),
        None => None,
    };
    let mut told = Vec::new();
    let nurseries = threads.nurseries();
    for (thread, nursery) in nurseries.iter().enumerate() {
        let job = Arc::new(Job {
            template: plan.template.clone(),
            kind: plan.kind,
            end,
            pace: pace.clone(),
            tally: Mutex::new(Tally::between(begin, end)),
        });
        let plan = plan.clone();
        let (tell, result) = oneshot::channel();
        told.push(result);
        nursery.adopt("callers", async move {
            on_thread(&plan, thread, &job).await;
            if tell.send(job.tally.lock().clone()).is_err() {
                tracing::debug!("nobody waits for what was measured");
            }
        });
    }
    let mut all = Tally::between(begin, end);
    for result in told {
        all.add(result.await.map_err(io::Error::other)?);
    }
    all.give_up("no answer within 5 s of the end; counted as failed");
    if let Some(pace) = &pace {
        all.open = pace.untaken(begin, end);
        all.give_up("came due and never got its turn: more --callers, or a lower --rate");
    }
    Ok(all)
}

/// Runs the callers whose connections are this thread's.
async fn on_thread(plan: &Plan, thread: usize, job: &Arc<Job>) {
    // In one task, so that what many callers send and get goes in one batch.
    let callers: FuturesUnordered<Caller> = FuturesUnordered::new();
    let keepers: FuturesUnordered<Caller> = FuturesUnordered::new();
    for connection in (thread..plan.connections).step_by(plan.threads) {
        let (line, keeper) = line::line(plan.target.clone());
        keepers.push(Box::pin(keeper.keep()));
        for _ in (connection..plan.callers).step_by(plan.connections) {
            let (job, line) = (Arc::clone(job), line.clone());
            callers.push(Box::pin(async move { job.caller(line).await }));
        }
    }
    let mut called = pin!(callers.collect::<Vec<()>>());
    let mut kept = pin!(keepers.collect::<Vec<()>>());
    let mut late = pin!(sleep_until(job.end + GRACE));
    tokio::select! {
        biased;
        _ = &mut called => {}
        // Never before: a keeper has no end.
        _ = &mut kept => {}
        () = &mut late => {}
    }
}

impl Job {
    async fn caller(&self, mut line: Line) {
        match self.kind {
            Kind::Unary => self.unary(&mut line).await,
            Kind::ServerStream => self.server_stream(&mut line).await,
            Kind::PingPong => self.ping_pong(&mut line).await,
        }
    }

    /// When the next call begins; `None`: none does.
    async fn turn(&self) -> Option<Instant> {
        match &self.pace {
            Some(pace) => pace.turn(self.end).await,
            None => Some(Instant::now()).filter(|now| *now < self.end),
        }
    }

    fn begin(&self, since: Instant) {
        let mut tally = self.tally.lock();
        if tally.counts(since) {
            tally.open += 1;
        }
    }

    fn settle(&self, since: Instant, outcome: Result<(), Failure>) {
        let mut tally = self.tally.lock();
        if tally.counts(since) {
            tally.open = tally.open.saturating_sub(1);
        }
        match outcome {
            Ok(()) => tally.ended(since, Instant::now()),
            Err(failure) => tally.failed(since, failure),
        }
    }

    async fn unary(&self, line: &mut Line) {
        while let Some(since) = self.turn().await {
            self.begin(since);
            let outcome = self.template.unary(line.ready().await).await;
            if outcome.as_ref().is_err_and(|failure| failure.lost) {
                line.lost();
            }
            self.settle(since, outcome);
        }
    }

    async fn server_stream(&self, line: &mut Line) {
        while Instant::now() < self.end {
            let since = Instant::now();
            let outcome = self.stream(line).await;
            if let Err(failure) = outcome {
                if failure.lost {
                    line.lost();
                }
                self.tally.lock().failed(since, failure);
            }
        }
    }

    async fn stream(&self, line: &mut Line) -> Result<(), Failure> {
        let (_stream, mut answers) = self.template.open(line.ready().await, true).await?;
        while let Some(count) = answers.next().await? {
            let now = Instant::now();
            self.tally.lock().answered(count, now);
            if now >= self.end {
                return Ok(());
            }
        }
        Ok(())
    }

    async fn ping_pong(&self, line: &mut Line) {
        while let Some(since) = self.turn().await {
            self.begin(since);
            match self.exchange(line, since).await {
                Ok(()) => return,
                Err((since, failure)) => {
                    if failure.lost {
                        line.lost();
                    }
                    self.settle(since, Err(failure));
                }
            }
        }
    }

    /// Exchanges messages on one stream until the end, the first of them due at `since`; which
    /// exchange failed, and how.
    async fn exchange(&self, line: &mut Line, since: Instant) -> Result<(), (Instant, Failure)> {
        let mut since = since;
        let opened = self.template.open(line.ready().await, false).await;
        let (mut stream, mut answers) = opened.map_err(|failure| (since, failure))?;
        loop {
            let mut count = 0;
            while count == 0 {
                match answers.next().await {
                    Ok(Some(some)) => count = some,
                    Ok(None) => {
                        let text = "the stream ended before its answer came";
                        return Err((since, Failure::new(Code::Internal, text)));
                    }
                    Err(failure) => return Err((since, failure)),
                }
            }
            self.settle(since, Ok(()));
            let Some(next) = self.turn().await else {
                return Ok(());
            };
            since = next;
            self.begin(since);
            let sent = stream.send_data(self.template.message.clone(), false);
            sent.map_err(|error| (since, error.into()))?;
        }
    }
}
