//! One look at the agent after the other, each with an end; what it holds in between tells when the
//! agent's process has ended.

use std::{future::pending, io, time::Duration};

use futures_util::future::{Either, FutureExt, select};
use tokio::{io::AsyncReadExt, time::timeout};
use tonic::{Code, Request, Streaming};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_client::HealthClient};

use super::{
    choice::{Choice, Kind},
    line::{Io, Line, connected},
    look::{Found, Unserved},
    verdict::Look,
};
use crate::{runtime::Nursery, sidecar::Probing};

/// How long a connection, or an answer, may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// How an agent answers that takes no more calls at once.
const FULL: Code = Code::ResourceExhausted;
/// Largest answer of a health service, which is a number.
const ANSWER_MAX: usize = 4096;

/// What the agent says unasked.
pub(super) enum Heard {
    /// A change of its health.
    Said(Found),
    /// Its connection ended: so has its process, for all that is known.
    Ended,
}

/// How a Check went.
enum Checked {
    Said(Found),
    /// No answer in time: the agent hangs, or the connection leads nowhere any more.
    Late,
    /// It takes no more calls at once.
    Full(Found),
    Unserved,
}

/// The words of a Watch.
struct Words {
    stream: Streaming<HealthCheckResponse>,
    /// The last one.
    found: Found,
}

/// Asks one agent.
pub(in crate::sidecar) struct Probe {
    address: String,
    service: String,
    choice: Choice,
    nursery: Nursery,
    line: Option<Line>,
    /// Whether an answer over the line is overdue: the next question takes another one.
    stale: bool,
    words: Option<Words>,
    /// Held where nothing is asked over it: it ends with the process.
    silent: Option<Box<dyn Io>>,
}

impl Probe {
    /// Of the agent at `unix:/path` or `host:port`, asked for the health of `service`.
    pub(in crate::sidecar) fn new(
        address: String,
        (asked, service): (Probing, String),
        nursery: Nursery,
    ) -> Self {
        Self {
            address,
            service,
            choice: Choice::new(asked),
            nursery,
            line: None,
            stale: false,
            words: None,
            silent: None,
        }
    }

    /// How it looks now.
    pub(super) fn kind(&self) -> Kind {
        self.choice.kind()
    }

    /// Whether it would see the end of the agent's process.
    pub(super) fn holds(&self) -> bool {
        self.line.is_some() || self.silent.is_some()
    }

    /// Looks once; takes a few [`PATIENCE`]s at most.
    pub(super) async fn look(&mut self) -> Found {
        if self.is_over() {
            // Whoever answers now is somebody else, and not asked before that is told.
            self.forget();
            return Found::new(Look::Cut, "the agent's connection ended");
        }
        loop {
            let found = match self.choice.kind() {
                Kind::Watch => self.watch().await,
                Kind::Check => self.check().await,
                Kind::Connect => Ok(self.connect().await),
            };
            let found = found.or_else(|Unserved| {
                if self.choice.unserved() {
                    return Err(Unserved);
                }
                Ok(Found::new(
                    Look::Missed,
                    "the agent does not serve grpc.health.v1 as `agent_health` asks: set that to \
                     \"auto\"",
                ))
            });
            let Ok(found) = found else { continue };
            if matches!(found.look, Look::Cut | Look::Away) {
                self.forget();
            }
            return found;
        }
    }

    /// What the agent says before the next look is due. Never, where nothing is held.
    pub(super) async fn hears(&mut self) -> Heard {
        let said = {
            let ended = Box::pin(ended(self.line.as_ref(), self.silent.as_mut()));
            let word = Box::pin(word(self.words.as_mut(), &self.service));
            match select(ended, word).await {
                Either::Left(((), _)) => None,
                Either::Right((said, _)) => Some(said),
            }
        };
        match said {
            Some(Ok(found)) => Heard::Said(found),
            // The watch is over, the process is not: the next look opens another one.
            Some(Err(found)) if found.look == Look::Missed => {
                self.words = None;
                Heard::Said(found)
            }
            Some(Err(_)) | None => {
                self.forget();
                Heard::Ended
            }
        }
    }

    /// Whether what it holds has ended, and nobody has said so yet.
    fn is_over(&mut self) -> bool {
        let ended = Box::pin(ended(self.line.as_ref(), self.silent.as_mut()));
        ended.now_or_never().is_some()
    }

    /// Another process is there, or none.
    pub(super) fn forget(&mut self) {
        (self.line, self.words, self.silent) = (None, None, None);
        self.stale = false;
        self.choice.anew();
    }

    /// The agent's own word, as long as it answers at all: no word comes from a process that hangs,
    /// nor over a connection that leads nowhere.
    async fn watch(&mut self) -> Result<Found, Unserved> {
        let Some(Words { found: said, .. }) = &self.words else {
            return self.open_watch().await;
        };
        let said = said.clone();
        match self.ask().await {
            // What serves Watch alone is believed.
            Checked::Unserved => Ok(said),
            Checked::Said(found) => Ok(match (said.look, found.look) {
                (Look::Serving, _) | (_, Look::Cut | Look::Away) => found,
                _ => said,
            }),
            Checked::Late => {
                self.words = None;
                self.choice.crowded();
                Ok(late())
            }
            Checked::Full(found) => {
                self.words = None;
                self.choice.crowded();
                Ok(found)
            }
        }
    }

    async fn open_watch(&mut self) -> Result<Found, Unserved> {
        let mut client = match self.client().await {
            Ok(client) => client,
            Err(found) => return Ok(found),
        };
        let request = self.request();
        let first = timeout(PATIENCE, async {
            let mut stream = client.watch(request).await?.into_inner();
            let first = stream.message().await?;
            Ok((stream, first))
        });
        match first.await {
            Ok(Ok((stream, Some(first)))) => {
                let found = Found::answer(first.status, &self.service, Look::Declined);
                let words = Words {
                    stream,
                    found: found.clone(),
                };
                self.words = Some(words);
                Ok(found)
            }
            Ok(Ok((_, None))) => Ok(Found::new(
                Look::Missed,
                "the agent ends a health watch without a word",
            )),
            Ok(Err(status)) => Found::error(&status, &self.service),
            Err(_) => {
                self.stale = true;
                Ok(late())
            }
        }
    }

    async fn check(&mut self) -> Result<Found, Unserved> {
        match self.ask().await {
            Checked::Said(found) | Checked::Full(found) => Ok(found),
            Checked::Late => Ok(late()),
            Checked::Unserved => Err(Unserved),
        }
    }

    async fn ask(&mut self) -> Checked {
        let mut client = match self.client().await {
            Ok(client) => client,
            Err(found) => return Checked::Said(found),
        };
        let mut request = self.request();
        request.set_timeout(PATIENCE);
        match timeout(PATIENCE, client.check(request)).await {
            Ok(Ok(answer)) => {
                let status = answer.into_inner().status;
                Checked::Said(Found::answer(status, &self.service, Look::Missed))
            }
            Ok(Err(status)) => match Found::error(&status, &self.service) {
                Ok(found) if found.look == Look::Missed && status.code() == FULL => {
                    Checked::Full(found)
                }
                Ok(found) => Checked::Said(found),
                Err(Unserved) => Checked::Unserved,
            },
            Err(_) => {
                self.stale = true;
                Checked::Late
            }
        }
    }

    async fn connect(&mut self) -> Found {
        match within(connected(&self.address)).await {
            Ok(silent) => {
                // One that was opened to ask, and goes on to its end, is held already; and of the
                // one that is held the end has to be seen.
                if self.line.is_none() && self.silent.is_none() {
                    self.silent = Some(silent);
                }
                Found::SERVING
            }
            Err(found) => found,
        }
    }

    fn request(&self) -> Request<HealthCheckRequest> {
        Request::new(HealthCheckRequest {
            service: self.service.clone(),
        })
    }

    async fn client(&mut self) -> Result<HealthClient<Line>, Found> {
        let line = match &self.line {
            Some(line) if !self.stale && !line.is_closed() => line.clone(),
            // The old one is held until there is a new one: its end would be news.
            Some(_) | None => within(Line::open(&self.address, &self.nursery)).await?,
        };
        self.stale = false;
        self.line = Some(line.clone());
        Ok(HealthClient::new(line).max_decoding_message_size(ANSWER_MAX))
    }
}

/// The next change of the agent's word.
///
/// # Errors
/// With a miss where the stream ended and the connection has not, else with a cut.
async fn word(words: Option<&mut Words>, service: &str) -> Result<Found, Found> {
    let Some(words) = words else {
        return pending().await;
    };
    loop {
        let found = match words.stream.message().await {
            Ok(Some(said)) => Found::answer(said.status, service, Look::Declined),
            Ok(None) => {
                let why = "the agent ended its health watch";
                return Err(Found::new(Look::Missed, why));
            }
            Err(status) => {
                let why = "the agent does not serve its health watch any more";
                let unserved = |Unserved| Found::new(Look::Missed, why);
                return Err(Found::error(&status, service).unwrap_or_else(unserved));
            }
        };
        if found != words.found {
            words.found.clone_from(&found);
            return Ok(found);
        }
    }
}

async fn ended(line: Option<&Line>, silent: Option<&mut Box<dyn Io>>) {
    match (line, silent) {
        (Some(line), _) => line.closed().await,
        (None, Some(silent)) => {
            // What it says is nothing to us.
            let mut ignored = [0; 256];
            while silent.read(&mut ignored).await.is_ok_and(|count| count > 0) {}
        }
        (None, None) => pending().await,
    }
}

async fn within<T>(connecting: impl Future<Output = io::Result<T>>) -> Result<T, Found> {
    match timeout(PATIENCE, connecting).await {
        Ok(Ok(connected)) => Ok(connected),
        // Somebody listens, and has not accepted for long.
        Ok(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => Err(late()),
        Ok(Err(_)) => Err(Found::new(
            Look::Away,
            "the agent does not answer on its address",
        )),
        Err(_) => Err(late()),
    }
}

fn late() -> Found {
    let why = format!("the agent did not answer within {PATIENCE:?}");
    Found::new(Look::Missed, why)
}
