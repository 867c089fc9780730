//! Callers that run one task after the other, each to its end.

use std::{fmt, time::Duration};

use attache::{
    agent::Channel,
    pb::{self, agent_client::AgentClient, handler_client::HandlerClient, task_update::Update},
    runtime::Nursery,
};
use futures_util::{StreamExt, future::try_join_all};
use tokio::time::Instant;

use crate::{Outcome, SKILL};

/// Callers that share a connection at most; a sidecar takes 100 calls at once on one.
const SHARING: usize = 64;

/// What is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// `RunTask`, on disk before it begins.
    Durable,
    /// `RunTask`, in memory only.
    Ephemeral,
    /// `Handle` of plain tonic, see `plain`.
    Plain,
}

/// How many callers ask for what.
pub(crate) struct Load {
    pub(crate) call: Call,
    pub(crate) callers: usize,
    pub(crate) input: String,
}

/// How long each of many took.
#[derive(Clone, Debug, Default)]
pub(crate) struct Measured {
    /// In rising order.
    took: Vec<Duration>,
    elapsed: Duration,
}

impl Load {
    /// Runs tasks on the sidecar at `local` for this long.
    pub(crate) async fn run(&self, local: &str, time: Duration) -> Outcome<Measured> {
        let nursery = Nursery::here();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let connections = cores.min(self.callers).max(self.callers.div_ceil(SHARING));
        let channels: Vec<Channel> = (0..connections)
            .map(|_| Channel::new(local, nursery.clone()))
            .collect::<Result<_, _>>()?;
        // Dialled one after the other, so that each thread of the sidecar gets its share.
        for channel in &channels {
            self.one(channel.clone()).await?;
        }
        let began = Instant::now();
        let callers = (0..self.callers)
            .map(|caller| self.caller(channels[caller % connections].clone(), began + time));
        let took: Vec<Vec<Duration>> = try_join_all(callers).await?;
        let elapsed = began.elapsed();
        drop(channels);
        nursery.abort().await;
        Ok(Measured::new(took.concat(), elapsed))
    }

    async fn caller(&self, channel: Channel, until: Instant) -> Outcome<Vec<Duration>> {
        let mut took = Vec::new();
        while Instant::now() < until {
            let start = Instant::now();
            self.one(channel.clone()).await?;
            took.push(start.elapsed());
        }
        Ok(took)
    }

    async fn one(&self, channel: Channel) -> Outcome<()> {
        let part = text(&self.input);
        match self.call {
            Call::Durable => task(channel, part, pb::Durability::Durable).await,
            Call::Ephemeral => task(channel, part, pb::Durability::Ephemeral).await,
            Call::Plain => plain(channel, part).await,
        }
    }
}

/// One call of plain tonic, to its answer.
async fn plain(channel: Channel, part: pb::Part) -> Outcome<()> {
    let input = pb::Message {
        parts: vec![part],
        ..Default::default()
    };
    let request = pb::HandleRequest {
        inputs: vec![input],
        ..Default::default()
    };
    let mut client = HandlerClient::new(channel);
    let mut answers = client.handle(request).await?.into_inner();
    let mut count = 0;
    while let Some(answer) = answers.next().await {
        answer?;
        count += 1;
    }
    if count == 1 {
        Ok(())
    } else {
        Err(format!("{count} answers").into())
    }
}

/// A task for the agent.
pub(crate) fn spec(part: pb::Part, durability: pb::Durability) -> pb::TaskSpec {
    let options = pb::TaskOptions {
        durability: durability.into(),
        ..Default::default()
    };
    pb::TaskSpec {
        selector: Some(pb::Selector {
            skill: SKILL.into(),
            ..Default::default()
        }),
        input: vec![part],
        options: Some(options),
        ..Default::default()
    }
}

/// A part of this text.
pub(crate) fn text(text: &str) -> pb::Part {
    pb::Part {
        content: Some(pb::part::Content::Text(text.to_owned())),
        ..Default::default()
    }
}

/// One task, from the call to its result.
async fn task(channel: Channel, part: pb::Part, durability: pb::Durability) -> Outcome<()> {
    let spec = spec(part, durability);
    let request = pb::RunTaskRequest { spec: Some(spec) };
    let mut client = AgentClient::new(channel);
    let mut updates = client.run_task(request).await?.into_inner();
    let mut state = pb::TaskState::Submitted;
    while let Some(update) = updates.next().await {
        if let Some(Update::Event(event)) = update?.update.and_then(|update| update.update) {
            state = event.state();
        }
    }
    match state {
        pb::TaskState::Completed => Ok(()),
        other => Err(format!("a task ended as {other:?}").into()),
    }
}

impl Measured {
    pub(crate) fn new(mut took: Vec<Duration>, elapsed: Duration) -> Self {
        took.sort_unstable();
        Self { took, elapsed }
    }

    pub(crate) fn count(&self) -> usize {
        self.took.len()
    }

    pub(crate) fn per_second(&self) -> f64 {
        self.took.len() as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// The time that this share of them kept within, in milliseconds.
    pub(crate) fn within(&self, share: f64) -> f64 {
        let last = self.took.len().saturating_sub(1);
        let place = (last as f64 * share).round();
        let place = (0..=last).find(|&at| at as f64 >= place).unwrap_or(last);
        self.took
            .get(place)
            .map_or(0.0, |took| took.as_secs_f64() * 1e3)
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (rate, p50, p99) = (self.per_second(), self.within(0.5), self.within(0.99));
        write!(f, "{rate:7.0}/s, p50 {p50:.2} ms, p99 {p99:.2} ms")
    }
}
