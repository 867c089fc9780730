//! `grpc.health.v1` of one listener, service by service.
//!
//! A service that is not known is NOT_FOUND to Check and SERVICE_UNKNOWN to Watch, as the protocol
//! has it; a Watch says every change once, and ends with its process.

use std::{
    collections::BTreeMap,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::sync::watch;
use tokio_stream::{Stream, wrappers::WatchStream};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::{Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_check_response::ServingStatus,
    health_server::{self, HealthServer},
};

use crate::{
    domain::{Fault, Reason},
    runtime::Stop,
};

type Serving = BTreeMap<&'static str, bool>;

/// Bytes of a question: a watch keeps the name that it is about.
const QUESTION_MAX: usize = 1024;

/// What a listener's services say of themselves. Clones are the same.
#[derive(Clone, Debug)]
pub struct Health {
    serving: Arc<watch::Sender<Serving>>,
}

impl Health {
    /// `services` and the process itself, the empty name, all SERVING.
    pub fn new(services: &[&'static str]) -> Self {
        let all = services.iter().copied().chain([""]);
        let serving = all.map(|service| (service, true)).collect();
        Self {
            serving: Arc::new(watch::Sender::new(serving)),
        }
    }

    /// Whether these services serve from now on.
    pub fn set(&self, services: impl IntoIterator<Item = (&'static str, bool)>) {
        self.serving.send_if_modified(|present| {
            let mut changed = false;
            for (service, serves) in services {
                changed |= present.insert(service, serves) != Some(serves);
            }
            changed
        });
    }

    /// All services stop taking new calls.
    pub fn stop(&self) {
        let all: Vec<_> = self.serving.borrow().keys().copied().collect();
        self.set(all.into_iter().map(|service| (service, false)));
    }

    /// The service, whose watches end at `ends`, after all that was set before.
    pub fn service(&self, ends: Stop) -> HealthServer<HealthService> {
        HealthServer::new(HealthService {
            serving: self.serving.subscribe(),
            ends,
        })
        .max_decoding_message_size(QUESTION_MAX)
    }
}

/// Answers Check and Watch.
#[derive(Clone, Debug)]
pub struct HealthService {
    serving: watch::Receiver<Serving>,
    ends: Stop,
}

#[tonic::async_trait]
impl health_server::Health for HealthService {
    type WatchStream = Words;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        let known = status(&self.serving.borrow(), &service);
        if known == ServingStatus::ServiceUnknown {
            let text = format!("no service {service:.80} is known here; see reflection");
            return Err(Status::not_found(text));
        }
        Ok(Response::new(response(known)))
    }

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Words>, Status> {
        Ok(Response::new(Words {
            service: request.into_inner().service,
            serving: WatchStream::new(self.serving.clone()),
            ends: Box::pin(self.ends.clone().cancelled_owned()),
            last: None,
            over: false,
        }))
    }
}

/// What a Watch says.
pub struct Words {
    service: String,
    serving: WatchStream<Serving>,
    ends: Pin<Box<WaitForCancellationFutureOwned>>,
    last: Option<ServingStatus>,
    over: bool,
}

impl Stream for Words {
    type Item = Result<HealthCheckResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.over {
            return Poll::Ready(None);
        }
        while let Poll::Ready(Some(serving)) = Pin::new(&mut self.serving).poll_next(context) {
            let word = status(&serving, &self.service);
            if self.last.replace(word) != Some(word) {
                return Poll::Ready(Some(Ok(response(word))));
            }
        }
        if self.ends.as_mut().poll(context).is_pending() {
            return Poll::Pending;
        }
        self.over = true;
        let text = "this process is stopping: watch its health again after its restart";
        Poll::Ready(Some(Err(Fault::new(Reason::Draining, text).into())))
    }
}

impl fmt::Debug for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Words")
            .field("service", &self.service)
            .field("last", &self.last)
            .finish_non_exhaustive()
    }
}

fn status(serving: &Serving, service: &str) -> ServingStatus {
    match serving.get(service) {
        Some(true) => ServingStatus::Serving,
        Some(false) => ServingStatus::NotServing,
        None => ServingStatus::ServiceUnknown,
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse {
        status: status.into(),
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use tokio_stream::StreamExt as _;
    use tonic::Code;
    use tonic_health::pb::{health_client::HealthClient, health_server::Health as _};

    use super::*;
    use crate::wire::status::reason_of;

    fn about(service: &str) -> Request<HealthCheckRequest> {
        Request::new(HealthCheckRequest {
            service: service.into(),
        })
    }

    fn service(health: &Health, ends: &Stop) -> HealthService {
        HealthService {
            serving: health.serving.subscribe(),
            ends: ends.clone(),
        }
    }

    #[tokio::test]
    async fn every_service_is_told_of_by_its_name() {
        let health = Health::new(&["a", "b"]);
        let service = service(&health, &Stop::new());
        health.set([("b", false)]);
        for (name, serves) in [("", 1), ("a", 1), ("b", 2)] {
            let answer = service.check(about(name)).await.unwrap().into_inner();
            assert_eq!(answer.status, serves, "{name}");
        }
        let unknown = service.check(about("c")).await.unwrap_err();
        assert_eq!(unknown.code(), Code::NotFound);
        health.stop();
        for name in ["", "a", "b"] {
            let answer = service.check(about(name)).await.unwrap().into_inner();
            assert_eq!(answer.status, 2, "{name}");
        }
    }

    #[tokio::test]
    async fn a_name_that_nobody_has_takes_no_room() {
        let health = Health::new(&["a"]);
        let mut client = HealthClient::new(health.service(Stop::new()));
        for (length, code) in [
            (QUESTION_MAX / 2, Code::NotFound),
            (QUESTION_MAX, Code::OutOfRange),
        ] {
            let asked = about(&"x".repeat(length));
            assert_eq!(client.check(asked).await.unwrap_err().code(), code);
        }
        let asked = about(&"x".repeat(QUESTION_MAX));
        assert!(client.watch(asked).await.is_err());
    }

    #[tokio::test]
    async fn a_watch_says_every_change_once_and_ends_with_the_process() {
        let (health, ends) = (Health::new(&["a"]), Stop::new());
        let service = service(&health, &ends);
        let mut known = service.watch(about("a")).await.unwrap().into_inner();
        let mut unknown = service.watch(about("c")).await.unwrap().into_inner();
        let next = |words: &mut Words| {
            let said = words.next().now_or_never();
            said.map(|said| said.map(|said| said.map(|said| said.status)))
        };
        let word = |words: &mut Words| match next(words) {
            Some(Some(Ok(status))) => ServingStatus::try_from(status).unwrap(),
            other => panic!("{other:?}"),
        };
        assert_eq!(word(&mut known), ServingStatus::Serving);
        assert_eq!(word(&mut unknown), ServingStatus::ServiceUnknown);
        health.set([("a", true)]);
        assert!(next(&mut known).is_none(), "nothing has changed");
        health.set([("c", true)]);
        assert!(next(&mut known).is_none(), "nothing about it");
        assert_eq!(word(&mut unknown), ServingStatus::Serving);
        health.stop();
        ends.cancel();
        assert_eq!(word(&mut known), ServingStatus::NotServing, "its last word");
        let status = next(&mut known).unwrap().unwrap().unwrap_err();
        assert_eq!(reason_of(&status).as_deref(), Some("DRAINING"));
        assert!(next(&mut known).unwrap().is_none());
    }
}
