//! What a collector sees of a task, and what a log can be told while it runs.

use std::{fs, time::Duration};

use attache::{pb, telemetry::TraceContext};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use rustix::process::Signal;
use serde_json::json;
use tokio::net::TcpListener;

use crate::support::{
    client::{self, Local, Seen, spec},
    collector::{Collector, Span},
    mesh::{Site, agent},
    process::signal,
    tools::run,
    wait::{eventually, within},
};

/// What a client that traces by itself comes with.
const ROOT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const ROOT_TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const ROOT_SPAN: &str = "b7ad6b7169203331";

fn mesh(collector: &str) -> String {
    let telemetry = format!("[telemetry]\notlp = {collector:?}\n");
    let front = agent("front", &["test.ask", "test.ask_plain"], "");
    let back = agent("back", &["test.echo", "test.status", "test.hold"], "");
    telemetry + &front + &back
}

/// Runs a task with this trace around it.
async fn run_within(client: &mut Local, spec: pb::TaskSpec, trace: Option<&TraceContext>) -> Seen {
    let request = TraceContext::on(trace, pb::RunTaskRequest { spec: Some(spec) });
    within("a task that is run ends", async {
        let mut stream = client.run_task(request).await.unwrap().into_inner();
        let mut seen = Seen::default();
        while let Some(response) = stream.message().await.unwrap() {
            seen.take(response.update.unwrap());
        }
        seen.whole()
    })
    .await
}

/// Puts a trace of one line in order, the first span first.
fn chain(mut spans: Vec<Span>, above: &str) -> Vec<Span> {
    let mut ordered = Vec::new();
    let mut above = above.to_owned();
    while !spans.is_empty() {
        let Some(next) = spans.iter().position(|span| span.parent == above) else {
            panic!("nothing below {above}:\n{spans:#?}\nafter\n{ordered:#?}");
        };
        above.clone_from(&spans[next].id);
        ordered.push(spans.remove(next));
    }
    ordered
}

fn told(spans: &[Span]) -> Vec<String> {
    let told = spans.iter().map(|span| {
        let (service, skill) = (
            &span.resource["service.name"],
            &span.attributes["attache.skill"],
        );
        format!("{service} {} {skill}", span.name)
    });
    told.collect()
}

#[tokio::test]
async fn a_task_through_two_agents_is_one_trace() {
    let collector = Collector::start().await;
    let site = Site::new(&mesh(&collector.endpoint));
    let up = site.up(&[]).await;
    let mut front = client::local(&up.instance("default/front", 0).local);
    let root = TraceContext::parse(ROOT, "vendor=x").unwrap();

    let seen = run_within(&mut front, spec("test.ask", "test.echo hello"), Some(&root)).await;
    assert_eq!(
        seen.result().as_deref(),
        Some("hello"),
        "{:?}",
        seen.failure()
    );
    let spans = collector.wait(8, |span| span.trace == ROOT_TRACE).await;
    let spans = chain(spans, ROOT_SPAN);
    let way = |first: &str| {
        [
            "attache-front submit FIRST",
            "attache-front attempt FIRST",
            "attache-front execute FIRST",
            "attache-front handle FIRST",
            "attache-front submit test.echo",
            "attache-front attempt test.echo",
            "attache-back execute test.echo",
            "attache-back handle test.echo",
        ]
        .map(|line| line.replace("FIRST", first))
    };
    assert_eq!(told(&spans), way("test.ask"));

    let (server, client) = (SpanKind::Server, SpanKind::Client);
    let kinds: Vec<SpanKind> = spans.iter().map(|span| span.kind).collect();
    assert_eq!(kinds, [server, client, server, client].repeat(2));
    let attribute = |place: usize, name: &str| spans[place].attributes[name].clone();
    for (place, span) in spans.iter().enumerate() {
        assert_eq!(attribute(place, "rpc.system"), "grpc");
        assert_eq!(span.error, None);
        assert_eq!(
            attribute(place, "attache.correlation_id"),
            attribute(0, "attache.correlation_id")
        );
        if span.name != "submit" {
            assert_eq!(attribute(place, "attache.attempt"), "1");
        }
    }
    assert_eq!(attribute(0, "attache.task_id"), seen.id);
    assert_eq!(attribute(3, "attache.task_id"), seen.id);
    assert_eq!(attribute(5, "attache.executor"), "default/back");
    assert_eq!(
        [attribute(0, "rpc.method"), attribute(7, "rpc.method")],
        ["RunTask", "Handle"]
    );
    let resource = &spans[7].resource;
    let instance = &up.instance("default/back", 0).instance;
    for (name, value) in [
        ("service.namespace", "default"),
        ("service.instance.id", instance),
        ("attache.role", "sidecar"),
    ] {
        assert_eq!(resource[name], value);
    }

    // A handler that passes nothing on is known by its token; and a task may begin the trace.
    let seen = run_within(&mut front, spec("test.ask_plain", "test.echo x"), None).await;
    let id = &seen.id;
    let first = collector.wait(1, |span| {
        span.name == "submit" && span.attributes["attache.task_id"] == *id
    });
    let trace = first.await[0].trace.clone();
    assert_ne!(trace, ROOT_TRACE);
    let spans = chain(collector.wait(8, |span| span.trace == trace).await, "");
    assert_eq!(told(&spans), way("test.ask_plain"));

    // Whoever failed says so, up to whoever asked.
    let seen = run_within(&mut front, spec("test.ask", "test.status x"), None).await;
    let id = &seen.id;
    let first = collector.wait(1, |span| {
        span.name == "submit" && span.attributes["attache.task_id"] == *id
    });
    let trace = first.await[0].trace.clone();
    let spans = chain(collector.wait(8, |span| span.trace == trace).await, "");
    let failed: Vec<bool> = spans.iter().map(|span| span.error.is_some()).collect();
    assert_eq!(failed, [false, true, true, true, false, true, true, true]);
    assert_eq!(spans[7].error.as_deref(), Some("AGENT_ERROR"));

    // Whoever does not record it is left out, with all below.
    let quiet = ROOT.replace("-01", "-00").replace("0af765", "aaaaaa");
    let quiet = TraceContext::parse(&quiet, "").unwrap();
    run_within(
        &mut front,
        spec("test.ask", "test.echo quiet"),
        Some(&quiet),
    )
    .await;
    run_within(&mut front, spec("test.ask", "test.echo last"), None).await;
    eventually("what came later is there", || async {
        let submits = collector
            .spans()
            .iter()
            .filter(|span| span.name == "submit")
            .count();
        if submits >= 8 {
            Ok(())
        } else {
            Err(submits.to_string())
        }
    })
    .await;
    assert!(
        collector
            .spans()
            .iter()
            .all(|span| span.trace != quiet.trace_id())
    );
}

#[tokio::test]
async fn a_killed_home_goes_on_with_the_trace_of_its_tasks() {
    let collector = Collector::start().await;
    let site = Site::new(&mesh(&collector.endpoint));
    let up = site.up(&[]).await;
    let gate = site.path("gate");
    let mut front = client::local(&up.instance("default/front", 0).local);
    let root = TraceContext::parse(ROOT, "").unwrap();

    let spec = Some(spec("test.hold", &gate.display().to_string()));
    let request = TraceContext::on(Some(&root), pb::SubmitTaskRequest { spec });
    let submitted = within("a task is accepted", front.submit_task(request)).await;
    let id = submitted.unwrap().into_inner().task.unwrap().id;
    let of_task =
        |span: &Span| span.trace == ROOT_TRACE && span.attributes["attache.task_id"] == id;
    // What a crash must not take along has left the process.
    let submit = collector.wait(1, of_task).await.remove(0);
    assert_eq!(
        (submit.name.as_str(), submit.parent.as_str()),
        ("submit", ROOT_SPAN)
    );

    let before = site.mark.process(&["sidecar", "front-1"]).pid;
    signal(before, Signal::KILL);
    eventually("the task goes on after the crash", || {
        let mut front = front.clone();
        let (site, id) = (&site, &id);
        async move {
            let all = site.mark.processes();
            let again = all.iter().any(|one| {
                one.pid != before
                    && one.command.contains("sidecar")
                    && one.command.contains("front-1")
            });
            let task = client::full(&mut front, id)
                .await
                .map_err(|s| s.to_string())?;
            if again && task.state() == pb::TaskState::Working {
                Ok(())
            } else {
                Err(format!("{again} {:?}", task.state()))
            }
        }
    })
    .await;
    fs::write(&gate, "").unwrap();
    let seen = client::watch_whole(&mut front, &id).await;
    assert_eq!(seen.result().as_deref(), Some("let go"));

    // The attempt that was under way died with its process; the one after it stands below the same
    // submission, and the executor's spans below the one that died.
    let spans = collector.wait(4, of_task).await;
    let named = |name: &str| spans.iter().find(|span| span.name == name).unwrap();
    let attempt = named("attempt");
    assert_eq!(attempt.parent, submit.id);
    assert_eq!(attempt.attributes["attache.resumed"], "true");
    assert_eq!(named("handle").parent, named("execute").id);
}

#[tokio::test]
async fn a_collector_that_never_answers_is_in_nobodys_way() {
    // It takes connections, as the system does for whoever listens, and never reads.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let site = Site::new(&mesh(&endpoint));
    let mut up = site.up(&[]).await;
    let instance = up.instance("default/front", 0).clone();
    let mut front = client::local(&instance.local);
    for number in 0..50 {
        let text = number.to_string();
        let seen = run_within(
            &mut front,
            spec("test.ask", &format!("test.echo {text}")),
            None,
        )
        .await;
        assert_eq!(seen.result(), Some(text));
    }
    // What does not leave is counted.
    let admin = instance.admin.as_str();
    let dropped = eventually("spans are dropped", || async {
        let page = attache::admin::client::ask(admin, "/", None).await;
        let traces = page.map_err(|error| error.to_string())?.body["traces"].clone();
        match traces["dropped"].as_u64() {
            Some(dropped) if dropped > 0 => Ok(traces),
            _ => Err(traces.to_string()),
        }
    })
    .await;
    assert_eq!(
        (&dropped["sent"], &dropped["collector"]),
        (&json!(0), &json!(endpoint))
    );

    up.signal(Signal::TERM);
    let took = within("up ends", elapsed(up.child.wait())).await;
    // Two seconds for the last spans, and the drain of who has nothing to do.
    assert!(took < Duration::from_secs(20), "{took:?}");
    for log in ["front-1", "back-1", "registry"] {
        let text = fs::read_to_string(site.state().join(format!("logs/{log}.log"))).unwrap();
        let said = text
            .lines()
            .filter(|line| line.contains("the collector"))
            .count();
        assert!(said <= 1, "{log}:\n{text}");
        assert!(!text.contains("cut at the end"), "{log}:\n{text}");
    }
}

async fn elapsed<T>(work: impl Future<Output = T>) -> Duration {
    let began = tokio::time::Instant::now();
    work.await;
    began.elapsed()
}

#[tokio::test]
async fn the_log_of_a_running_process_is_turned_up_and_down() {
    let site = Site::new(&agent("home", &["test.echo"], ""));
    let up = site.up(&[]).await;
    let admin = up.instance("default/home", 0).admin.clone();
    let state = site.state().display().to_string();
    let log = |more: &[&str]| {
        let mut arguments = vec!["log", "--mesh", &state, "--output", "json"];
        arguments.extend(more);
        site.attache(&arguments)
    };
    let shown = run(&mut log(&[])).await.json_lines();
    let filters: Vec<_> = shown.iter().map(|one| one["filter"].clone()).collect();
    assert_eq!(filters, [json!("info"), json!("info")], "{shown:?}");

    let lines = || {
        let text = fs::read_to_string(site.state().join("logs/home-1.log")).unwrap();
        text.lines().filter(|line| line.contains("DEBUG")).count()
    };
    assert_eq!(lines(), 0);
    let changed = run(&mut log(&["home", "debug"])).await.json_lines();
    assert_eq!(changed.len(), 1);
    assert_eq!(changed[0]["filter"], "debug");
    let page = || async {
        attache::admin::client::ask(&admin, "/", None)
            .await
            .unwrap()
    };
    eventually("debug lines are written", || async {
        // Asking makes and ends a connection, which is worth a line.
        page().await;
        if lines() > 0 {
            Ok(())
        } else {
            Err(String::new())
        }
    })
    .await;
    let by_address = run(&mut log(&[&admin, "info"])).await.json_lines();
    assert_eq!(by_address[0]["filter"], "info");

    let refused = run(&mut log(&["home", "loud"])).await;
    assert_eq!(refused.code, Some(2), "{}", refused.err);
    assert!(
        refused.err.contains("attache=debug,info"),
        "{}",
        refused.err
    );
    let nobody = run(&mut log(&["stranger", "info"])).await;
    assert_eq!(nobody.code, Some(5), "{}", nobody.err);
}
