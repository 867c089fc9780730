//! What a mesh did can be read from it: numbers on `/metrics`, one line per call in the log.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use attache::pb::{self, TaskState};
use http::uri::PathAndQuery;
use serde_json::Value;
use tonic::{Code, Status, transport::Endpoint};
use tonic_prost::ProstCodec;

use crate::{
    foreign_clients::issue_service,
    support::{
        client,
        mesh::{Site, Up, agent},
        process::text,
        scrape::{OPEN_METRICS, Page},
        wait::{eventually, within},
    },
};

/// Two agents: one that only asks, and one that works.
fn site() -> Site {
    let worker = agent("worker", &["test.echo", "test.nothing", "test.hold"], "");
    let mut site = Site::new(&format!("{}{worker}", agent("asker", &[], "")));
    site.env.push(("ATTACHE_LOG_FORMAT", "json".to_owned()));
    site
}

async fn page(up: &Up, agent: &str) -> Page {
    Page::of(&up.instance(agent, 0).admin, OPEN_METRICS).await
}

/// The lines that a process logged to a target, as their fields. Every line must be JSON.
fn lines(site: &Site, name: &str, target: &str) -> Vec<Value> {
    let dir = site.state().join("logs");
    let logs = fs::read_dir(&dir)
        .unwrap()
        .flatten()
        .map(|entry| entry.path());
    let fits = |path: &Path| {
        let file = path.file_name().unwrap().to_string_lossy().into_owned();
        file.contains(name) && file.ends_with(".log") && !file.ends_with("-agent.log")
    };
    let log = logs.into_iter().find(|path| fits(path));
    let log = log.unwrap_or_else(|| panic!("no log of {name} in {}", dir.display()));
    let mut found = Vec::new();
    for line in text(&log).lines() {
        // What `attache sidecar` says to whoever started it.
        if line.starts_with("sidecar of ") {
            continue;
        }
        let line: Value = serde_json::from_str(line).unwrap_or_else(|error| {
            panic!("{error}: {line}");
        });
        if line["target"] == target {
            found.push(line["fields"].clone());
        }
    }
    found
}

fn about<'a>(lines: &'a [Value], task: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["task"] == task).collect()
}

#[tokio::test]
async fn what_a_mesh_did_is_counted_and_told_in_one_line_each() {
    let site = site();
    let up = site.up(&[]).await;
    let asker = up.instance("default/asker", 0).clone();
    let worker = up.instance("default/worker", 0).clone();
    let mut local = client::local(&asker.local);

    // Three that complete, one that fails, one that is cancelled while nobody can do it.
    let mut echoed = Vec::new();
    for _ in 0..3 {
        let ran = client::run(&mut local, client::bounded("test.echo", "hello", 50));
        let ran = ran.await.unwrap();
        assert_eq!(ran.state(), TaskState::Completed);
        echoed.push(ran.id);
    }
    let failed = client::run(&mut local, client::bounded("test.nothing", "x", 50));
    let failed = failed.await.unwrap();
    assert_eq!(failed.state(), TaskState::Failed);
    let waits = client::spec("test.nobody", "x");
    let waits = client::submit(&mut local, waits).await.unwrap();
    let cancel = pb::CancelTaskRequest {
        task_id: waits.id.clone(),
        reason: "over".into(),
    };
    let canceled = within("a cancellation", local.cancel_task(cancel))
        .await
        .unwrap();
    assert_eq!(
        canceled.into_inner().task.unwrap().state(),
        TaskState::Canceled
    );

    // One whose submitter leaves in the middle: the call ends, the task does not.
    let gate = site.path("gate");
    let held = client::spec("test.hold", &gate.display().to_string());
    let request = pb::RunTaskRequest { spec: Some(held) };
    let stream = within("accepted", local.run_task(request)).await.unwrap();
    let mut stream = stream.into_inner();
    let mut seen = client::Seen::default();
    while seen.state() != TaskState::Working {
        let update = within("an update", stream.message())
            .await
            .unwrap()
            .unwrap();
        seen.take(update.update.unwrap());
    }
    let watched = page(&up, "default/asker").await;
    assert_eq!(watched.sum("attache_task_watchers", &[]), 1.0);
    assert_eq!(watched.sum("attache_tasks", &["state=\"working\""]), 1.0);
    drop(stream);
    let counted = |code: &str, page: &Page| {
        let code = format!("code=\"{code}\"");
        page.sum(
            "attache_calls_total",
            &["listener=\"local\"", "method=\"RunTask\"", &code],
        )
    };
    eventually("the dropped stream is counted", async || {
        let page = page(&up, "default/asker").await;
        match counted("CANCELLED", &page) {
            1.0 => Ok(()),
            other => Err(format!("{other}")),
        }
    })
    .await;
    fs::write(&gate, "").unwrap();

    // One that is denied: a member of another namespace.
    let stranger = issue_service(&site, "other/stranger").await;
    let pool = client::pool(&stranger);
    let mut member = client::member(&pool, &worker.mtls, "ns/default/agent/worker");
    let denied = client::submit_as_member(&mut member, client::spec("test.echo", "x")).await;
    assert_eq!(denied.unwrap_err().code(), Code::PermissionDenied);

    let page = eventually("everything has ended", async || {
        let page = page(&up, "default/asker").await;
        let ended = page.sum("attache_tasks_finished_total", &[]);
        let calls = page.sum(
            "attache_peer_calls_total",
            &["method=\"Execute\"", "code=\"OK\""],
        );
        // Four that were followed, one that was dropped, a submission and a cancellation.
        let own = page.sum("attache_calls_total", &["service=\"attache.v1.Agent\""]);
        match (ended, calls, own) {
            (6.0, 5.0, 7.0) => Ok(page),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    home_counts(&page);
    assert_eq!(counted("OK", &page), 4.0);
    lines_tell(&site, &page, (&echoed, &failed.id, &waits.id, &seen.id));

    let page = eventually("the executor's calls have ended", async || {
        let page = Page::of(&worker.admin, OPEN_METRICS).await;
        match page.sum(
            "attache_calls_total",
            &["method=\"Execute\"", "code=\"OK\""],
        ) {
            5.0 => Ok(page),
            other => Err(format!("{other}")),
        }
    })
    .await;
    executor_counts(&site, &page, &echoed);

    let registry = Page::of(&up.endpoints.registry.admin, OPEN_METRICS).await;
    for (name, labels, expected) in [
        (
            "attache_registry_instances",
            &["health=\"serving\""][..],
            2.0,
        ),
        ("attache_registry_leases", &[], 2.0),
        ("attache_registry_watches", &[], 2.0),
        (
            "attache_enrolments_total",
            &["kind=\"join\"", "outcome=\"ok\""],
            2.0,
        ),
    ] {
        assert_eq!(registry.sum(name, labels), expected, "{name}");
    }
    assert!(registry.sum("attache_registry_oldest_heartbeat_age_seconds", &[]) < 20.0);
}

fn executor_counts(site: &Site, worker: &Page, echoed: &[String]) {
    let execute = ["listener=\"mtls\"", "method=\"Execute\"", "code=\"OK\""];
    assert_eq!(worker.sum("attache_calls_total", &execute), 5.0);
    assert_eq!(worker.sum("attache_executor_running", &[]), 0.0);
    assert!(worker.sum("attache_executor_slots", &[]) >= 1.0);
    let executed = lines(site, "worker", "attache::access");
    for id in echoed {
        let told = about(&executed, id);
        assert_eq!(told.len(), 1, "{told:#?}");
        assert_eq!(
            told[0]["caller"],
            "spiffe://attache.local/ns/default/agent/asker"
        );
        assert_eq!(told[0]["skill"], "test.echo");
    }
    let denied = [
        "listener=\"mtls\"",
        "method=\"SubmitTask\"",
        "code=\"PERMISSION_DENIED\"",
    ];
    assert_eq!(worker.sum("attache_calls_total", &denied), 1.0);
    let told = executed
        .iter()
        .filter(|line| line["method"] == "SubmitTask");
    let told: Vec<_> = told.collect();
    assert_eq!(told.len(), 1, "{told:#?}");
    assert_eq!(
        told[0]["caller"],
        "spiffe://attache.local/ns/other/service/stranger"
    );
    assert_eq!(told[0]["skill"], "test.echo");
    assert_eq!(told[0]["reason"], "PERMISSION_DENIED");
}

fn home_counts(page: &Page) {
    let finished = "attache_tasks_finished_total";
    let calls = "attache_calls_total";
    for (name, labels, expected) in [
        (
            finished,
            &["state=\"completed\"", "reason=\"none\""][..],
            4.0,
        ),
        (finished, &["state=\"failed\"", "reason=\"other\""], 1.0),
        (finished, &["state=\"canceled\"", "reason=\"none\""], 1.0),
        ("attache_tasks_submitted_total", &["skill=\"other\""], 6.0),
        ("attache_tasks", &[], 0.0),
        ("attache_tasks_waiting", &[], 0.0),
        ("attache_task_watchers", &[], 0.0),
        ("attache_attempts_total", &["kind=\"first\""], 5.0),
        ("attache_task_duration_seconds_count", &[], 6.0),
        ("attache_task_start_seconds_count", &[], 5.0),
        (
            calls,
            &["listener=\"local\"", "method=\"SubmitTask\"", "code=\"OK\""],
            1.0,
        ),
        (
            calls,
            &["listener=\"local\"", "method=\"CancelTask\"", "code=\"OK\""],
            1.0,
        ),
        ("attache_calls_in_flight", &["method=\"RunTask\""], 0.0),
        ("attache_registered", &[], 1.0),
        ("attache_catalog_instances", &[], 2.0),
        ("attache_catalog_fresh", &[], 1.0),
        ("attache_journal_failed", &[], 0.0),
    ] {
        assert_eq!(page.sum(name, labels), expected, "{name} {labels:?}");
    }
    let syncs = page.sum("attache_journal_sync_duration_seconds_count", &[]);
    let records = page.sum("attache_journal_records_total", &[]);
    assert!(syncs > 0.0 && records >= syncs, "{records} {syncs}");
    let batched = page.sum("attache_journal_batch_records_sum", &[]);
    assert_eq!(batched, records);
    assert!(page.sum("attache_registration_heartbeat_age_seconds", &[]) < 30.0);
    let left = page.sum(
        "attache_certificate_remaining_seconds",
        &["certificate=\"own\""],
    );
    assert!(left > 0.0, "{left}");
    assert!(page.sum("process_resident_memory_bytes", &[]) > 1e6);
}

/// Each call and each end of a task is one line, and there are as many lines as were counted.
fn lines_tell(site: &Site, page: &Page, ids: (&[String], &str, &str, &str)) {
    let (echoed, failed, canceled, held) = ids;
    let access = lines(site, "asker", "attache::access");
    let own: Vec<_> = access
        .iter()
        .filter(|line| line["service"] == "attache.v1.Agent")
        .collect();
    let counted = page.sum("attache_calls_total", &["service=\"attache.v1.Agent\""]);
    assert_eq!(own.len() as f64, counted);
    for (id, method, code) in echoed
        .iter()
        .map(|id| (id.as_str(), "RunTask", "OK"))
        .chain([(failed, "RunTask", "OK"), (held, "RunTask", "CANCELLED")])
    {
        let told = about(&access, id);
        assert_eq!(told.len(), 1, "{told:#?}");
        assert_eq!(
            (&told[0]["method"], &told[0]["code"]),
            (&method.into(), &code.into())
        );
        assert_eq!(told[0]["caller"], "local");
        assert!(
            told[0]["correlation"]
                .as_str()
                .is_some_and(|id| !id.is_empty())
        );
    }
    let methods: BTreeSet<_> = about(&access, canceled)
        .into_iter()
        .map(|line| line["method"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(
        methods,
        BTreeSet::from(["SubmitTask".to_owned(), "CancelTask".to_owned()])
    );

    let tasks = lines(site, "asker", "attache::tasks");
    assert_eq!(tasks.len(), 6);
    for (id, state, attempts) in [
        (echoed[0].as_str(), "completed", 1),
        (failed, "failed", 1),
        (canceled, "canceled", 0),
        (held, "completed", 1),
    ] {
        let told = about(&tasks, id);
        assert_eq!(told.len(), 1, "{told:#?}");
        assert_eq!(
            (&told[0]["state"], &told[0]["attempts"]),
            (&state.into(), &attempts.into())
        );
    }
    assert_eq!(about(&tasks, failed)[0]["reason"], "NO_SUCH_WORK");
}

/// Name, type, unit, labels and help of everything, as promised.
fn golden() -> BTreeMap<String, [String; 4]> {
    let text = include_str!("../golden/metrics.txt");
    let rows = text.lines().map(|line| {
        let words: Vec<&str> = line.splitn(5, ' ').collect();
        let [name, kind, unit, labels, help] = words[..] else {
            panic!("{line}");
        };
        let words = [kind, unit, labels, help].map(str::to_owned);
        (name.to_owned(), words)
    });
    rows.collect()
}

#[tokio::test]
async fn names_types_and_labels_are_what_is_promised() {
    let site = site();
    let up = site.up(&[]).await;
    let asker = up.instance("default/asker", 0).clone();
    let mut local = client::local(&asker.local);
    client::run(&mut local, client::bounded("test.echo", "x", 50))
        .await
        .unwrap();

    let golden = golden();
    let mut seen = BTreeSet::new();
    for admin in [&asker.admin, &up.endpoints.registry.admin] {
        let page = Page::of(admin, OPEN_METRICS).await;
        let expected = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        assert_eq!(page.content_type, expected);
        assert!(page.text.ends_with("\n# EOF\n"));
        for (name, [kind, unit, help]) in &page.families {
            let shown = if kind == "counter" {
                format!("{name}_total")
            } else {
                name.clone()
            };
            let Some([kind_, unit_, labels, help_]) = golden.get(&shown) else {
                panic!("{shown} is in no list");
            };
            let unit = if unit.is_empty() { "-" } else { unit };
            assert_eq!(
                (kind, unit, help),
                (kind_, unit_.as_str(), help_),
                "{shown}"
            );
            let rows = match kind.as_str() {
                "histogram" => ["bucket", "sum", "count"]
                    .map(|end| format!("{shown}_{end}"))
                    .to_vec(),
                _ => vec![shown.clone()],
            };
            let promised: BTreeSet<_> = labels.split(',').map(str::to_owned).collect();
            let found = page.labels(&rows);
            if rows.iter().any(|row| page.has(row)) && labels != "-" {
                assert_eq!(found, promised, "{shown}");
            } else {
                assert_eq!(found, BTreeSet::new(), "{shown}");
            }
            seen.insert(shown);
        }
        let older = Page::of(admin, "*/*").await;
        assert_eq!(
            older.content_type,
            "text/plain; version=0.0.4; charset=utf-8"
        );
        for name in older.families.keys() {
            assert!(
                golden.contains_key(name),
                "{name}: a counter bears its rows' name there"
            );
        }
    }
    let promised: BTreeSet<_> = golden.into_keys().collect();
    assert_eq!(seen, promised);
}

/// Calls a method of an agent through the sidecar that listens at `local`.
async fn call_agent(local: &str, agent: &str, path: &'static str, trace: &str) -> Status {
    let channel = Endpoint::from_shared(local.to_owned()).unwrap();
    let mut client = tonic::client::Grpc::new(channel.connect_lazy());
    within("a connection", client.ready()).await.unwrap();
    let mut request = tonic::Request::new(pb::GetTaskRequest::default());
    let metadata = request.metadata_mut();
    metadata.insert("attache-agent", agent.parse().unwrap());
    metadata.insert("traceparent", trace.parse().unwrap());
    let codec = ProstCodec::<pb::GetTaskRequest, pb::Task>::default();
    let path = PathAndQuery::from_static(path);
    let answer = within("an answer", client.unary(request, path, codec)).await;
    answer.expect_err("nobody has this method")
}

#[tokio::test]
async fn calls_that_pass_are_counted_and_told_at_both_sidecars() {
    const PATH: &str = "/nobody.Has/This";
    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    let site = site();
    let up = site.up(&[]).await;
    let asker = up.instance("default/asker", 0).clone();
    let above = format!("00-{TRACE}-b7ad6b7169203331-01");
    // Until it has heard of the worker, that one is nobody.
    let unknown = Cell::new(1.0);
    eventually("the worker is known", async || {
        match call_agent(&asker.local, "worker", PATH, &above).await {
            status if status.code() == Code::Unimplemented => Ok(()),
            status => {
                unknown.set(unknown.get() + 1.0);
                Err(status.to_string())
            }
        }
    })
    .await;
    let unknown = unknown.get();
    for (agent, code) in [
        ("worker", Code::Unimplemented),
        ("stranger", Code::Unavailable),
    ] {
        let status = call_agent(&asker.local, agent, PATH, &above).await;
        assert_eq!(status.code(), code, "{status}");
    }
    for (agent, direction, name, code, count) in [
        ("asker", "outward", "default/worker", "UNIMPLEMENTED", 2.0),
        ("asker", "outward", "other", "UNAVAILABLE", unknown),
        ("worker", "inward", "default/worker", "UNIMPLEMENTED", 2.0),
    ] {
        let member = format!("default/{agent}");
        let [direction, name, code] = [("direction", direction), ("agent", name), ("code", code)]
            .map(|(label, value)| format!("{label}=\"{value}\""));
        eventually("all are counted", async || {
            let page = page(&up, &member).await;
            let labels = [direction.as_str(), &name, &code, "method=\"other\""];
            let found = page.sum("attache_passing_calls_total", &labels);
            let running = page.sum("attache_passing_in_flight", &[]);
            match (found == count, running == 0.0) {
                (true, true) => Ok(()),
                _ => Err(page.text),
            }
        })
        .await;
    }
    let passed = |name: &str, code: &str| {
        let lines = lines(&site, name, "attache::access").into_iter();
        let of = lines.filter(|line| line["path"] == PATH && line["code"] == code);
        of.collect::<Vec<_>>()
    };
    let there = passed("asker", "UNIMPLEMENTED");
    let here = passed("worker", "UNIMPLEMENTED");
    let nobody = passed("asker", "UNAVAILABLE");
    assert_eq!((there.len(), here.len()), (2, 2), "{there:#?} {here:#?}");
    assert_eq!(nobody.len() as f64, unknown, "{nobody:#?}");
    for (line, listener, caller, by) in [
        (&there[0], "local", "local", "answer"),
        (
            &here[0],
            "mtls",
            "spiffe://attache.local/ns/default/agent/asker",
            "answer",
        ),
        (&nobody[0], "local", "local", "sidecar"),
    ] {
        assert_eq!(line["listener"], listener, "{line}");
        assert_eq!(line["caller"], caller, "{line}");
        assert_eq!(line["ended_by"], by, "{line}");
        assert_eq!(line["trace"], TRACE, "{line}");
    }
    assert_eq!(there[0]["agent"], "default/worker");
    assert_eq!(there[0]["correlation"], here[0]["correlation"]);
    assert!(there[0]["correlation"].is_string(), "{}", there[0]);
}
