//! The prober against agents that answer this way and that.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};
use tokio_stream::{StreamExt as _, wrappers::UnixListenerStream};
use tonic::service::Routes;

use super::{
    choice::Kind,
    verdict::{CALM, CLOSES, DOUBT},
    *,
};
use crate::{
    admin::{Inspect as _, health::Health},
    pb,
    runtime::Nursery,
    sidecar::Probing,
    task::executor::{
        Executor, ExecutorConfig, HandleStream, HandlerError, HandlerLink, HomePeer, Offers,
    },
    telemetry::{Telemetry, TraceContext},
};

/// Longest wait for anything: the machine may be busy.
const LIMIT: Duration = Duration::from_secs(30);

/// A link that counts how often it was asked for the card, and breaks down under some of it.
struct Counting(watch::Sender<u32>, std::ops::Range<u32>);

#[tonic::async_trait]
impl HandlerLink for Counting {
    async fn handle(
        &self,
        _: pb::HandleRequest,
        _: Duration,
        _: Option<&TraceContext>,
    ) -> Result<HandleStream, HandlerError> {
        Err(HandlerError::Unreachable("not asked for".into()))
    }

    async fn cancel(&self, _: pb::CancelRequest) -> Result<(), tonic::Status> {
        Ok(())
    }

    async fn describe(&self) -> Result<Option<pb::AgentCard>, tonic::Status> {
        self.0.send_modify(|asked| *asked += 1);
        let asked = *self.0.borrow();
        assert!(!self.1.contains(&asked), "as it was told");
        Ok(None)
    }
}

/// A prober of an agent that lives in a directory.
struct Bench {
    dir: tempfile::TempDir,
    nursery: Nursery,
    progress: Arc<Progress>,
    counts: Counts,
    asked: watch::Receiver<u32>,
    executor: Executor,
}

impl Bench {
    fn socket(&self) -> std::path::PathBuf {
        self.dir.path().join("agent")
    }

    /// Starts to look; the agent has to be there.
    fn watching(asked: Probing, serve: impl FnOnce(&Self)) -> Self {
        Self::breaking(0..0, asked, serve)
    }

    /// The same with a link that panics as often as it is asked for these cards.
    fn breaking(cards: std::ops::Range<u32>, asked: Probing, serve: impl FnOnce(&Self)) -> Self {
        let (described, nursery) = (watch::Sender::new(0), Nursery::here());
        let asks = described.subscribe();
        let link: Arc<dyn HandlerLink> = Arc::new(Counting(described, cards));
        let config = ExecutorConfig {
            own: "spiffe://a/ns/default/agent/x".parse().unwrap(),
            slots: 1,
            boot_id: String::new(),
            skills: Offers::default(),
        };
        let bench = Self {
            dir: tempfile::tempdir().unwrap(),
            executor: Executor::new(config, link.clone(), vec![nursery.clone()]),
            nursery,
            progress: Arc::new(Progress::new(true, Telemetry::default())),
            counts: Counts::default(),
            asked: asks,
        };
        serve(&bench);
        let address = format!("unix:{}", bench.socket().display());
        let prober = Prober {
            probe: Probe::new(address, (asked, String::new()), bench.nursery.clone()),
            describer: Describer {
                link,
                configured: pb::AgentCard::default(),
                described: watch::Sender::default(),
                executor: bench.executor.clone(),
            },
            progress: Arc::clone(&bench.progress),
            counts: bench.counts.clone(),
        };
        bench.nursery.start("prober", |stop| prober.run(stop));
        bench
    }

    /// Serves `grpc.health.v1` as these methods, until the nursery ends.
    fn serve(&self, methods: &'static [&'static str], health: &Health) {
        let socket = tokio::net::UnixListener::bind(self.socket()).unwrap();
        let routes = Routes::new(health.service(Stop::new())).into_axum_router();
        let only = axum::middleware::from_fn(
            move |request: axum::extract::Request, next: axum::middleware::Next| async move {
                let path = request.uri().path().to_owned();
                if methods.iter().any(|method| path.ends_with(method)) {
                    return next.run(request).await;
                }
                tonic::Status::unimplemented("").into_http()
            },
        );
        let served = tonic::transport::Server::builder()
            .add_routes(Routes::from(routes.layer(only)))
            .serve_with_incoming(UnixListenerStream::new(socket));
        self.nursery
            .adopt("agent", async move { served.await.unwrap() });
    }

    async fn is(&self, wanted: pb::Health) {
        let mut reports = self.progress.reports();
        let waited = reports.wait_for(|report| report.health == wanted);
        timeout(LIMIT, waited).await.unwrap().unwrap();
    }

    /// Offers an attempt, which the link does not reach the agent with.
    async fn offer(&self, task: u128) {
        let task = pb::Task {
            id: format!("i1.{}", uuid::Uuid::from_u128(task)),
            skill: "demo.echo".into(),
            caller: "spiffe://a/ns/default/agent/x".into(),
            ..Default::default()
        };
        let handle = pb::HandleRequest {
            task: Some(task),
            attempt: 1,
            ..Default::default()
        };
        let start = pb::Start {
            handle: Some(handle),
            remaining: Some(prost_types::Duration {
                seconds: 60,
                nanos: 0,
            }),
            home: "i1".into(),
            ..Default::default()
        };
        let home = HomePeer {
            id: "spiffe://a/ns/default/agent/x".parse().unwrap(),
            instance: "i1".parse().unwrap(),
        };
        let step = Some(pb::execute_request::Step::Start(Box::new(start)));
        let steps = tokio_stream::once(pb::ExecuteRequest { step });
        let mut answers = self.executor.execute(home, Box::pin(steps), None);
        let answer = answers.next().await.unwrap().unwrap().step.unwrap();
        assert!(
            matches!(&answer, pb::execute_response::Step::Refused(refused) if refused.reason == "AGENT_UNAVAILABLE"),
            "{answer:?}"
        );
    }

    async fn end(self) {
        self.nursery.close(Duration::from_secs(1)).await;
    }
}

#[tokio::test]
async fn the_best_way_that_the_agent_serves_is_taken() {
    use pb::Health::{NotServing, Serving};
    const BOTH: &[&str] = &["/Watch", "/Check"];
    for (methods, asked, kind, health) in [
        (BOTH, Probing::Auto, Kind::Watch, Serving),
        (&["/Watch"], Probing::Auto, Kind::Watch, Serving),
        (&["/Check"], Probing::Auto, Kind::Check, Serving),
        (&[], Probing::Auto, Kind::Connect, Serving),
        (BOTH, Probing::Check, Kind::Check, Serving),
        (BOTH, Probing::Connect, Kind::Connect, Serving),
        (&["/Check"], Probing::Watch, Kind::Watch, NotServing),
        (&[], Probing::Check, Kind::Check, NotServing),
    ] {
        let bench = Bench::watching(asked, |bench| bench.serve(methods, &Health::new(&[])));
        let mut kinds = Vec::new();
        while kinds.is_empty() {
            tokio::task::yield_now().await;
            kinds = bench.counts.kinds();
        }
        assert_eq!(kinds, [kind.label()], "{methods:?} {asked:?}");
        assert_eq!(
            bench.progress.reports().borrow().health,
            health,
            "{methods:?} {asked:?}"
        );
        bench.end().await;
    }
}

#[tokio::test]
async fn a_watched_agent_is_out_at_its_word_and_back_after_a_second_look() {
    let health = Health::new(&[]);
    let bench = Bench::watching(Probing::Auto, |bench| {
        bench.serve(&["/Watch", "/Check"], &health);
    });
    bench.is(pb::Health::Serving).await;
    let began = Instant::now();
    health.stop();
    bench.is(pb::Health::NotServing).await;
    // Long before the next look is due.
    assert!(began.elapsed() < CALM / 2, "{:?}", began.elapsed());
    let why = bench.progress.ready().unwrap_err();
    assert!(why.iter().any(|why| why.contains("NOT_SERVING")), "{why:?}");
    let began = Instant::now();
    health.set([("", true)]);
    bench.is(pb::Health::Serving).await;
    assert!(began.elapsed() >= DOUBT / 2, "{:?}", began.elapsed());
    // The same process: it was asked for its card once.
    assert_eq!(*bench.asked.borrow(), 1);
    bench.end().await;
}

#[tokio::test]
async fn an_agent_that_starts_again_at_once_is_asked_for_its_card_again() {
    let mut agent = None;
    let mut bench = Bench::watching(Probing::Connect, |bench| {
        agent = Some(tokio::net::UnixListener::bind(bench.socket()).unwrap());
    });
    let agent = agent.unwrap();
    let began = Instant::now();
    for times in 1..=CLOSES {
        let again = async {
            let (process, _) = agent.accept().await.unwrap();
            bench.asked.wait_for(|asked| *asked == times).await.unwrap();
            process
        };
        drop(timeout(LIMIT, again).await.unwrap());
    }
    assert!(began.elapsed() < CALM, "{:?}", began.elapsed());
    bench.end().await;
}

/// gRPC servers take pings for an attack, and send whoever pings away.
#[tokio::test(start_paused = true)]
async fn an_agent_is_never_pinged() {
    let (tell, mut frames) = tokio::sync::mpsc::channel(8);
    let bench = Bench::watching(Probing::Check, |bench| {
        let socket = tokio::net::UnixListener::bind(bench.socket()).unwrap();
        // Takes everything in and answers nothing but its settings.
        bench.nursery.adopt("agent", async move {
            loop {
                let (mut io, _) = socket.accept().await.unwrap();
                io.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
                let mut preface = [0; 24];
                io.read_exact(&mut preface).await.unwrap();
                let mut head = [0; 9];
                while io.read_exact(&mut head).await.is_ok() {
                    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
                    let mut content = vec![0; length as usize];
                    io.read_exact(&mut content).await.unwrap();
                    tell.send(head[3]).await.unwrap();
                }
            }
        });
    });
    let mut asked = 0;
    while asked < 100 {
        let kind = frames.recv().await.unwrap();
        assert_ne!(kind, 6, "a PING");
        // HEADERS: one question.
        asked += u32::from(kind == 1);
    }
    assert_eq!(bench.counts.kinds(), ["check"]);
    bench.end().await;
}

#[tokio::test]
async fn an_agent_that_answers_what_nobody_can_read_does_not_serve_and_ends_nothing() {
    let odd = watch::Sender::new(false);
    let answers = odd.subscribe();
    let bench = Bench::watching(Probing::Check, |bench| {
        let socket = tokio::net::UnixListener::bind(bench.socket()).unwrap();
        let health = Health::new(&[]);
        let routes = Routes::new(health.service(Stop::new())).into_axum_router();
        let spoils = axum::middleware::from_fn(
            move |request: axum::extract::Request, next: axum::middleware::Next| {
                let odd = *answers.borrow();
                async move {
                    if !odd {
                        return next.run(request).await;
                    }
                    let mut answer = tonic::Status::unavailable("").into_http();
                    let details = http::HeaderValue::from_static("!");
                    answer
                        .headers_mut()
                        .insert("grpc-status-details-bin", details);
                    answer
                }
            },
        );
        let served = tonic::transport::Server::builder()
            .add_routes(Routes::from(routes.layer(spoils)))
            .serve_with_incoming(UnixListenerStream::new(socket));
        bench
            .nursery
            .adopt("agent", async move { served.await.unwrap() });
    });
    bench.is(pb::Health::Serving).await;
    odd.send_replace(true);
    bench.is(pb::Health::NotServing).await;
    odd.send_replace(false);
    bench.is(pb::Health::Serving).await;
    bench.end().await;
}

#[tokio::test]
async fn an_agent_that_calls_get_no_word_out_of_is_looked_at_at_once() {
    let health = Health::new(&[]);
    let bench = Bench::watching(Probing::Check, |bench| bench.serve(&["/Check"], &health));
    bench.is(pb::Health::Serving).await;
    bench
        .executor
        .set_skills(Offers::from_iter(["demo.echo".to_owned()]));
    // It says that it does not serve when it is asked: out after three looks.
    health.stop();
    let began = Instant::now();
    for task in 1..=3 {
        bench.offer(task).await;
    }
    bench.is(pb::Health::NotServing).await;
    // The suspicion is one of the three misses, and no look waited for its calm turn.
    assert!(began.elapsed() < CALM, "{:?}", began.elapsed());
    bench.end().await;
}

#[tokio::test]
async fn looking_that_breaks_off_takes_the_agent_out_and_begins_anew() {
    let mut agent = None;
    let mut bench = Bench::breaking(2..4, Probing::Connect, |bench| {
        agent = Some(tokio::net::UnixListener::bind(bench.socket()).unwrap());
    });
    let agent = agent.unwrap();
    bench.is(pb::Health::Serving).await;
    // It starts again, and is asked for its card again.
    drop(agent.accept().await.unwrap());
    bench.is(pb::Health::NotServing).await;
    bench.is(pb::Health::Serving).await;
    let asked = bench.asked.wait_for(|asked| *asked >= 4);
    timeout(LIMIT, asked).await.unwrap().unwrap();
    bench.end().await;
}
