//! The two agents together: `research` asks a sidecar for passages, the sidecar is a stand-in that
//! hands the task to a real `search` and turns its updates into the events of a task.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use std::fs;
use std::path::Path;

use futures_util::{StreamExt as _, stream};
use research_desk::attempt::Updates;
use research_desk::pb::agent_client::AgentClient;
use research_desk::pb::agent_server::{Agent, AgentServer};
use research_desk::pb::handle_response::Update;
use research_desk::pb::handler_server::Handler as _;
use research_desk::pb::task_event::Kind;
use research_desk::pb::task_update::Update as Told;
use research_desk::pb::{self, Failure, HandleRequest, Message, Task, TaskState};
use research_desk::research::{Answer, Research};
use research_desk::search::{self, Index, Search};
use research_desk::{found::Found, part};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::codegen::BoxStream;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Request, Response, Status};

const TOKEN: &str = "token of the parent";

/// What the stand-in does with a search.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    /// Hands it to `search` and tells every event.
    Runs,
    /// The same, but the caller was away for the end and is told only that it is completed.
    RunsUnseen,
    /// The agent is lost.
    Lost,
    /// It ends without saying how.
    BreaksOff,
    /// No such skill: the call is refused.
    Refused,
}

struct FakeSidecar {
    search: Search,
    fate: Fate,
}

impl FakeSidecar {
    /// What `search` makes of the input: its last update.
    async fn searched(&self, input: Vec<pb::Part>) -> Update {
        let inputs = vec![Message {
            parts: input,
            ..Message::default()
        }];
        let request = HandleRequest {
            inputs,
            ..HandleRequest::default()
        };
        let updates = self
            .search
            .handle(Request::new(request))
            .await
            .unwrap()
            .into_inner();
        last(updates).await
    }
}

fn event(state: TaskState, kind: Kind) -> Told {
    Told::Event(pb::TaskEvent {
        state: i32::from(state),
        kind: Some(kind),
        ..Default::default()
    })
}

fn task(state: TaskState) -> Told {
    Told::Task(Task {
        id: "home.1".into(),
        state: i32::from(state),
        ..Task::default()
    })
}

fn told(updates: Vec<Told>) -> BoxStream<pb::RunTaskResponse> {
    let responses = stream::iter(updates).map(|update| {
        let update = Some(pb::TaskUpdate {
            update: Some(update),
        });
        Ok(pb::RunTaskResponse {
            update,
            replayed: false,
        })
    });
    Box::pin(responses)
}

#[tonic::async_trait]
impl Agent for FakeSidecar {
    async fn run_task(
        &self,
        request: Request<pb::RunTaskRequest>,
    ) -> Result<Response<BoxStream<pb::RunTaskResponse>>, Status> {
        let spec = request.into_inner().spec.unwrap();
        assert_eq!(spec.selector.unwrap().skill, "search.passages");
        assert_eq!(spec.parent_token, TOKEN, "a child names its parent");
        let end = match self.fate {
            Fate::Refused => return Err(Status::failed_precondition("nobody has this skill")),
            Fate::BreaksOff => vec![],
            Fate::RunsUnseen => vec![task(TaskState::Completed)],
            Fate::Lost => vec![event(
                TaskState::Failed,
                Kind::Failure(Failure {
                    reason: "AGENT_LOST".into(),
                    message: "its executor is gone".into(),
                    code: i32::from(Code::Unavailable),
                    retryable: true,
                    details: None,
                }),
            )],
            Fate::Runs => {
                let Update::Result(result) = self.searched(spec.input).await else {
                    panic!("the search failed")
                };
                vec![event(TaskState::Completed, Kind::Result(result))]
            }
        };
        Ok(Response::new(told(
            [vec![task(TaskState::Submitted)], end].concat(),
        )))
    }

    async fn get_task(
        &self,
        request: Request<pb::GetTaskRequest>,
    ) -> Result<Response<pb::GetTaskResponse>, Status> {
        let request = request.into_inner();
        assert_eq!(
            (request.task_id.as_str(), request.view()),
            ("home.1", pb::TaskView::Full)
        );
        let query = part::text("What survives a crash of the home?".into(), "text/plain");
        let Update::Result(result) = self.searched(vec![query]).await else {
            panic!("the search failed")
        };
        let task = Task {
            result: Some(result),
            ..Task::default()
        };
        Ok(Response::new(pb::GetTaskResponse {
            task: Some(task),
            truncated: false,
        }))
    }
}

/// Documents on disk, an index of them, and a stand-in sidecar on a Unix socket.
struct Desk {
    folder: TempDir,
    sidecar: Channel,
}

impl Desk {
    async fn open(fate: Fate) -> (Self, impl Future<Output = ()>) {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("docs")).unwrap();
        write(folder.path(), "docs/promises.md", PROMISES);
        write(
            folder.path(),
            "docs/weather.md",
            "# Weather\n\nIt rains in the mountains.\n",
        );
        let documents = search::read(&folder.path().join("docs")).unwrap();
        let search = Search::new(Index::build(&documents).unwrap());

        let socket = folder.path().join("sidecar.sock");
        let incoming = UnixListenerStream::new(UnixListener::bind(&socket).unwrap());
        let router = Server::builder().add_service(AgentServer::new(FakeSidecar { search, fate }));
        let serving = async { router.serve_with_incoming(incoming).await.unwrap() };
        let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display())).unwrap();
        (
            Self {
                folder,
                sidecar: endpoint.connect_lazy(),
            },
            serving,
        )
    }

    async fn ask(&self, input: pb::Part) -> Vec<Update> {
        let request = HandleRequest {
            inputs: vec![Message {
                parts: vec![input],
                ..Message::default()
            }],
            parent_token: TOKEN.to_owned(),
            ..HandleRequest::default()
        };
        let research = Research::new(self.sidecar.clone());
        let updates = research
            .handle(Request::new(request))
            .await
            .unwrap()
            .into_inner();
        updates
            .map(|update| update.unwrap().update.unwrap())
            .collect()
            .await
    }
}

const PROMISES: &str = "\
# What is promised

## A crash of the home

A home that restarts after a crash replays its journal:
every task it acknowledged survives. Transient output is gone.

## A crash of the registry

The data plane goes on.
";

fn write(folder: &Path, file: &str, text: &str) {
    fs::write(folder.join(file), text).unwrap();
}

async fn last(updates: Updates) -> Update {
    let all: Vec<_> = updates.collect().await;
    all.last()
        .unwrap()
        .as_ref()
        .unwrap()
        .update
        .clone()
        .unwrap()
}

/// Asks a desk of its own, whose stand-in is served only as long as the question runs.
async fn asked(fate: Fate, question: &str) -> (Desk, Vec<Update>) {
    let (desk, serving) = Desk::open(fate).await;
    let updates = tokio::select! {
        updates = desk.ask(part::text(question.into(), "text/plain")) => updates,
        () = serving => panic!("the stand-in stopped"),
    };
    (desk, updates)
}

fn failure(updates: &[Update]) -> &Failure {
    let Some(Update::Failure(failure)) = updates.last() else {
        panic!("{updates:?}")
    };
    failure
}

#[tokio::test]
async fn a_question_is_answered_with_quotes_that_stand_in_the_files() {
    for fate in [Fate::Runs, Fate::RunsUnseen] {
        let (desk, updates) = asked(fate, "What survives a crash of the home?").await;
        let stages: Vec<_> = updates.iter().filter_map(stage).collect();
        assert_eq!(stages, ["searching", "reading", "composing"]);
        let Some(Update::Result(result)) = updates.last() else {
            panic!("{updates:?}")
        };
        let answer: Answer =
            serde_json::from_value(part::first_data(&result.parts).unwrap()).unwrap();
        let text = part::all_text(&result.parts);
        assert!(
            text.contains("every task it acknowledged survives."),
            "{text}"
        );
        assert_eq!(text, answer.markdown());
        for citation in answer.citations {
            let file = desk.folder.path().join("docs").join(&citation.file);
            let file = fs::read_to_string(file).unwrap();
            let lines: Vec<_> = file.lines().collect();
            let lines = &lines[citation.line as usize - 1..citation.end_line as usize];
            assert!(lines.join("\n").contains(&citation.quote), "{citation:?}");
            assert!(text.contains(&format!("[{}] {}", citation.n, citation.place())));
        }
    }
}

fn stage(update: &Update) -> Option<&str> {
    if let Update::Progress(progress) = update {
        Some(&progress.stage)
    } else {
        None
    }
}

#[tokio::test]
async fn what_goes_wrong_is_said_with_its_reason() {
    let question = "What survives a crash of the home?";
    let table = [
        (
            Fate::Runs,
            "What do pandas eat?",
            "NOTHING_FOUND",
            Code::NotFound,
            "pandas",
        ),
        (
            Fate::Lost,
            question,
            "AGENT_LOST",
            Code::Unavailable,
            "its executor is gone",
        ),
        (
            Fate::BreaksOff,
            question,
            "SEARCH_LOST",
            Code::Unavailable,
            "broke off",
        ),
        (
            Fate::Refused,
            question,
            "SEARCH_UNAVAILABLE",
            Code::FailedPrecondition,
            "nobody has",
        ),
    ];
    for (fate, question, reason, code, sentence) in table {
        let (_, updates) = asked(fate, question).await;
        let failure = failure(&updates);
        assert_eq!(
            (failure.reason.as_str(), Code::from(failure.code)),
            (reason, code)
        );
        assert!(failure.message.contains(sentence), "{}", failure.message);
        assert_eq!(failure.retryable, code == Code::Unavailable, "{reason}");
    }
}

#[tokio::test]
async fn what_is_no_question_is_rejected_before_anything_is_asked() {
    let (desk, _never_served) = Desk::open(Fate::Runs).await;
    for input in [
        part::text("  ".into(), "text/plain"),
        part::text("what is it?".into(), "text/plain"),
        part::text("word ".repeat(1_000), "text/plain"),
        part::data(&serde_json::json!({"query": "crash"})),
    ] {
        let updates = desk.ask(input).await;
        assert!(
            matches!(updates.as_slice(), [Update::Rejection(_)]),
            "{updates:?}"
        );
    }
}

#[tokio::test]
async fn the_stand_in_serves_passages_over_the_wire() {
    let (desk, serving) = Desk::open(Fate::Runs).await;
    let spec = pb::TaskSpec {
        selector: Some(pb::Selector {
            skill: "search.passages".into(),
            ..Default::default()
        }),
        input: vec![part::data(
            &serde_json::json!({"query": "registry crash", "limit": 1}),
        )],
        parent_token: TOKEN.into(),
        ..pb::TaskSpec::default()
    };
    let mut agent = AgentClient::new(desk.sidecar.clone());
    let asking = async {
        let updates = agent
            .run_task(pb::RunTaskRequest { spec: Some(spec) })
            .await
            .unwrap();
        updates
            .into_inner()
            .map(|update| update.unwrap().update.unwrap())
            .collect()
            .await
    };
    let updates: Vec<pb::TaskUpdate> = tokio::select! {
        updates = asking => updates,
        () = serving => panic!("the stand-in stopped"),
    };
    let Some(Told::Event(event)) = &updates.last().unwrap().update else {
        panic!("{updates:?}")
    };
    let Some(Kind::Result(result)) = &event.kind else {
        panic!("{event:?}")
    };
    let found: Found = serde_json::from_value(part::first_data(&result.parts).unwrap()).unwrap();
    assert_eq!(found.passages.len(), 1);
    assert_eq!(
        (found.passages[0].line, found.passages[0].end_line),
        (8, 10)
    );
    assert_eq!(
        found.passages[0].text,
        "## A crash of the registry\n\nThe data plane goes on."
    );
}
