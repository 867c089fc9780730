//! The agent of the end-to-end tests: well-behaved and broken skills in one small program.
//!
//! `test-agent` serves `Handler`, or attaches where ATTACHE_LISTEN says so; `test-agent garbage` answers each task with bytes that are no
//! message. `health=watch` or `health=check` has it serve so much of `grpc.health.v1`, SERVING unless
//! the file of `sick=FILE` is there; while that of `full=FILE` is, it begins no task and says so; the
//! file of `ill=FILE` says how its tasks go wrong, see `ill`. Beside it stands a service that is none
//! of the mesh's, see `plain`.
//! Each run of a task is written to the file that TEST_RUNS names, one line per run.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::cognitive_complexity,
    clippy::too_many_lines,
    reason = "a test's program may just end, and its skills are one list"
)]

use std::{env, fs::File, io::Write, path::Path, pin::Pin, time::Duration};

use attache::{
    pb::{
        self, CancelRequest, CancelResponse, DescribeRequest, DescribeResponse, HandleRequest,
        HandleResponse,
        agent_client::AgentClient,
        handle_response::Update,
        handler_server::{Handler, HandlerServer},
        part::Content,
    },
    telemetry::TraceContext,
    wire::json,
};
use tokio::{
    net::UnixListener,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::sleep,
};
use tokio_stream::{
    Stream,
    wrappers::{ReceiverStream, UnixListenerStream},
};
use tonic::{
    Request, Response, Status,
    service::Routes,
    transport::{Endpoint, Server},
};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_check_response::ServingStatus,
    health_server::{Health, HealthServer},
};

#[path = "agent/attached.rs"]
mod attached;
#[path = "agent/consult.rs"]
mod consult;
#[path = "agent/ill.rs"]
mod ill;
#[path = "agent/plain.rs"]
mod plain;
#[path = "agent/plenty.rs"]
mod plenty;
#[path = "agent/tree.rs"]
mod tree;

use ill::{Ill, not_begun};

/// How often a held task looks whether it may end; also the pace of its events.
const TICK: Duration = Duration::from_millis(20);
/// A result that is too large, in bytes.
const TOO_BIG: usize = 2 << 20;
/// What `garbage` answers: a gRPC frame of 9 bytes that are no protobuf message.
const GARBAGE: &[u8] = b"\0\0\0\0\x09\xff\xff\xff\xff\xff\xff\xff\xff\xff";

type Updates = mpsc::Sender<Result<HandleResponse, Status>>;

#[derive(Clone, Debug)]
struct Agent;

#[tonic::async_trait]
impl Handler for Agent {
    type HandleStream = Pin<Box<dyn Stream<Item = Result<HandleResponse, Status>> + Send>>;

    async fn handle(
        &self,
        request: Request<HandleRequest>,
    ) -> Result<Response<Self::HandleStream>, Status> {
        let trace = TraceContext::of_request(&request);
        let request = request.into_inner();
        let task = request.task.clone().unwrap_or_default();
        if argument("full").is_some_and(|file| Path::new(&file).exists()) {
            return Err(not_begun("no room for another one", Some("50")));
        }
        let ill = Ill::now(argument("ill").as_deref());
        let failed = if ill.fails.is_some() { " failed" } else { "" };
        note(&format!(
            "{} {} {}{failed}",
            task.skill, task.id, request.attempt
        ));
        if let Some(status) = ill.fails {
            return Err(status);
        }
        let (updates, stream) = mpsc::channel(16);
        let text = text_of(&request);
        #[allow(
            clippy::disallowed_methods,
            reason = "the agent is no part of the mesh"
        )]
        tokio::spawn(async move {
            if let Some(late) = ill.late {
                sleep(late).await;
            }
            if task.skill.ends_with(".consult") {
                return consult::consult(&request, &updates).await;
            }
            // An error means that nobody listens any more.
            if task.skill.starts_with("test.ask") {
                let trace = trace.filter(|_| task.skill == "test.ask");
                drop(ask(&text, request.parent_token, trace, &updates).await);
                return;
            }
            match task.skill.as_str() {
                "test.flood" => plenty::flood(&task.id, &text, &updates).await,
                "test.tell" => plenty::tell(&text, &updates).await,
                "test.leaf" => tree::leaf(&task.id, &text, &updates).await,
                fan if fan.starts_with("test.fan") => {
                    tree::fan(&task.id, &text, &request.parent_token, &updates).await;
                }
                bomb if bomb.starts_with("test.bomb") => {
                    tree::bomb(&task.id, bomb, &request.parent_token, &updates).await;
                }
                pass if pass.starts_with("test.pass") => tree::pass(&text, &updates).await,
                skill => drop(run(skill, &text, &updates).await),
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn describe(
        &self,
        _: Request<DescribeRequest>,
    ) -> Result<Response<DescribeResponse>, Status> {
        Err(Status::unimplemented("the card stands in mesh.toml"))
    }

    async fn cancel(
        &self,
        request: Request<CancelRequest>,
    ) -> Result<Response<CancelResponse>, Status> {
        if tree::stop(&request.get_ref().task_id) {
            return Ok(Response::new(CancelResponse {}));
        }
        Err(Status::unimplemented("work here cannot be stopped"))
    }
}

async fn run(
    skill: &str,
    text: &str,
    updates: &Updates,
) -> Result<(), mpsc::error::SendError<Result<HandleResponse, Status>>> {
    let send = |update: Option<Update>| updates.send(Ok(HandleResponse { update }));
    match skill {
        "test.echo" => {
            for step in 1..=3 {
                send(progress(step)).await?;
            }
            send(result(text)).await
        }
        // Goes on until the file that the input names is there.
        "test.hold" | "test.echo.hold" => {
            let mut step = 0;
            while !Path::new(text).exists() {
                step += 1;
                send(progress(step)).await?;
                sleep(TICK).await;
            }
            send(result("let go")).await
        }
        "test.slow" | "test.echo.slow" => slow(text, updates).await,
        "test.brief" | "test.echo.brief" => brief(text, updates).await,
        // Says something, and makes the artifact "copy" of its input in two pieces.
        "test.make" => {
            send(message("making it")).await?;
            let middle = text.len() / 2;
            send(chunk(&text[..middle], false)).await?;
            send(chunk(&text[middle..], true)).await?;
            send(result("made")).await
        }
        // Adds the numbers of its input up; where 13 is among them, it counts on its fingers.
        "test.sum" => {
            let input: serde_json::Value = serde_json::from_str(text).unwrap();
            let numbers = input["numbers"].as_array().unwrap();
            let unlucky = numbers.iter().any(|number| number == 13);
            let sum: f64 = numbers.iter().filter_map(serde_json::Value::as_f64).sum();
            let sum = if unlucky {
                "many".into()
            } else {
                serde_json::Value::from(sum)
            };
            let part = pb::Part {
                content: Some(Content::Data(json::to_value(
                    serde_json::json!({ "sum": sum }),
                ))),
                ..Default::default()
            };
            send(Some(Update::Result(pb::TaskResult {
                parts: vec![part],
                ..Default::default()
            })))
            .await
        }
        "test.crash" => {
            send(progress(1)).await?;
            sleep(TICK).await;
            std::process::exit(3);
        }
        "test.hang" => {
            send(progress(1)).await?;
            updates.closed().await;
            Ok(())
        }
        "test.endless" => loop {
            send(progress(1)).await?;
        },
        "test.silent" => send(progress(1)).await,
        "test.empty" => send(None).await,
        "test.twice" => {
            send(result("first")).await?;
            send(result("second")).await
        }
        "test.big" => send(result(&"x".repeat(TOO_BIG))).await,
        "test.status" => {
            let status = Status::data_loss("the work was lost on the way");
            updates.send(Err(status)).await
        }
        _ => {
            let failure = pb::Failure {
                reason: "NO_SUCH_WORK".into(),
                message: format!("{skill} is not what this agent does"),
                ..Default::default()
            };
            send(Some(Update::Failure(failure))).await
        }
    }
}

/// Works for the milliseconds that the input begins with, and says nothing before.
async fn brief(
    text: &str,
    updates: &Updates,
) -> Result<(), mpsc::error::SendError<Result<HandleResponse, Status>>> {
    let millis = text.split(' ').next().unwrap().parse().unwrap();
    sleep(Duration::from_millis(millis)).await;
    for update in [progress(1), result(text)] {
        updates.send(Ok(HandleResponse { update })).await?;
    }
    Ok(())
}

/// Works for the milliseconds that the input begins with.
async fn slow(
    text: &str,
    updates: &Updates,
) -> Result<(), mpsc::error::SendError<Result<HandleResponse, Status>>> {
    let millis = text.split(' ').next().unwrap().parse().unwrap();
    let until = tokio::time::Instant::now() + Duration::from_millis(millis);
    let mut step = 0;
    while tokio::time::Instant::now() < until {
        step += 1;
        let update = progress(step);
        updates.send(Ok(HandleResponse { update })).await?;
        sleep(5 * TICK).await;
    }
    let update = result(text);
    updates.send(Ok(HandleResponse { update })).await
}

/// Has whoever can do it, or is named ([`tree::meant`]), do the first word of the input, with the rest as its input. With the trace
/// of its own call, if that is given; the sidecar knows the parent by its token either way.
async fn ask(
    text: &str,
    parent_token: String,
    trace: Option<TraceContext>,
    updates: &Updates,
) -> Result<(), mpsc::error::SendError<Result<HandleResponse, Status>>> {
    let (to, text) = text.split_once(' ').unwrap_or((text, ""));
    let (selector, scope) = tree::meant(to);
    let sidecar = Endpoint::from_shared(env::var("ATTACHE_SIDECAR").unwrap()).unwrap();
    let mut sidecar = AgentClient::new(sidecar.connect_lazy());
    let spec = pb::TaskSpec {
        selector: Some(selector),
        scope,
        input: vec![text_part(text)],
        parent_token,
        ..Default::default()
    };
    let request = pb::RunTaskRequest { spec: Some(spec) };
    let ran = sidecar.run_task(TraceContext::on(trace.as_ref(), request));
    let mut stream = match ran.await {
        Ok(answer) => answer.into_inner(),
        Err(status) => return updates.send(Err(status)).await,
    };
    let mut last = None;
    while let Ok(Some(response)) = stream.message().await {
        let update = response.update.and_then(|update| update.update);
        if let Some(pb::task_update::Update::Event(event)) = update {
            last = event.kind;
        }
    }
    let end = match last {
        Some(pb::task_event::Kind::Result(result)) => Update::Result(result),
        Some(pb::task_event::Kind::Failure(failure)) => Update::Failure(failure),
        other => panic!("{other:?}"),
    };
    let update = Some(end);
    updates.send(Ok(HandleResponse { update })).await
}

fn text_part(text: &str) -> pb::Part {
    pb::Part {
        content: Some(Content::Text(text.into())),
        ..Default::default()
    }
}

fn progress(step: u32) -> Option<Update> {
    let message = format!("step {step}");
    Some(Update::Progress(pb::Progress {
        message,
        ..Default::default()
    }))
}

fn message(text: &str) -> Option<Update> {
    Some(Update::Message(pb::Message {
        parts: vec![text_part(text)],
        ..Default::default()
    }))
}

fn chunk(text: &str, last: bool) -> Option<Update> {
    Some(Update::Artifact(pb::ArtifactChunk {
        artifact_id: "copy".into(),
        part: Some(text_part(text)),
        append: last,
        last_chunk: last,
        ..Default::default()
    }))
}

fn result(text: &str) -> Option<Update> {
    Some(Update::Result(pb::TaskResult {
        parts: vec![text_part(text)],
        ..Default::default()
    }))
}

fn text_of(request: &HandleRequest) -> String {
    let parts = request.inputs.iter().flat_map(|message| &message.parts);
    parts
        .filter_map(|part| match &part.content {
            Some(Content::Text(text)) => Some(text.clone()),
            Some(Content::Data(value)) => Some(json::from_value(value).to_string()),
            _ => None,
        })
        .collect()
}

/// One line of TEST_RUNS; appended in one write, since several agents share the file.
fn note(line: &str) {
    if let Some(path) = env::var_os("TEST_RUNS") {
        let mut file = File::options()
            .create(true)
            .append(true)
            .open(path)
            .unwrap();
        file.write_all(format!("{line}\n").as_bytes()).unwrap();
    }
}

/// The value of `key=value` on the command line.
fn argument(key: &str) -> Option<String> {
    env::args().find_map(|word| Some(word.strip_prefix(key)?.strip_prefix('=')?.to_owned()))
}

/// Health as a file says it.
#[derive(Clone, Debug)]
struct Doctor;

impl Doctor {
    fn status() -> i32 {
        let sick = argument("sick").is_some_and(|file| Path::new(&file).exists());
        let status = if sick {
            ServingStatus::NotServing
        } else {
            ServingStatus::Serving
        };
        status.into()
    }
}

#[tonic::async_trait]
impl Health for Doctor {
    type WatchStream = ReceiverStream<Result<HealthCheckResponse, Status>>;

    async fn check(
        &self,
        _: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let status = Self::status();
        Ok(Response::new(HealthCheckResponse { status }))
    }

    async fn watch(
        &self,
        _: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        if argument("health").as_deref() != Some("watch") {
            return Err(Status::unimplemented("ask by Check"));
        }
        let (words, said) = mpsc::channel(4);
        #[allow(
            clippy::disallowed_methods,
            reason = "the agent is no part of the mesh"
        )]
        tokio::spawn(async move {
            let mut last = None;
            loop {
                let status = Self::status();
                if last.replace(status) != Some(status)
                    && words
                        .send(Ok(HealthCheckResponse { status }))
                        .await
                        .is_err()
                {
                    return;
                }
                sleep(TICK).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(said)))
    }
}

async fn garbage() -> http::Response<axum::body::Body> {
    http::Response::builder()
        .header(http::header::CONTENT_TYPE, "application/grpc")
        .body(axum::body::Body::from(GARBAGE))
        .unwrap()
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let address = env::var("ATTACHE_LISTEN").expect("ATTACHE_LISTEN: the sidecar's side sets it");
    if address == "attach" {
        return attached::serve().await;
    }
    let path = address
        .strip_prefix("unix:")
        .expect("a Unix socket")
        .trim_start_matches("//");
    drop(std::fs::remove_file(path));
    let incoming = UnixListenerStream::new(UnixListener::bind(path).unwrap());
    let routes = if env::args().nth(1).as_deref() == Some("garbage") {
        let broken = axum::routing::post(garbage);
        Routes::from(axum::Router::new().route("/attache.v1.Handler/Handle", broken))
    } else {
        let routes = Routes::new(HandlerServer::new(Agent));
        let routes = match argument("health") {
            Some(_) => routes.add_service(HealthServer::new(Doctor)),
            None => routes,
        };
        let routes = routes.into_axum_router();
        Routes::from(routes.route(plain::PATH, plain::route()))
    };
    let mut terminate = signal(SignalKind::terminate()).unwrap();
    tokio::select! {
        served = Server::builder().add_routes(routes).serve_with_incoming(incoming) => served.unwrap(),
        _ = terminate.recv() => {}
    }
}
