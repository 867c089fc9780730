//! By hand, without `up`: a registry and two sidecars on hosts of their own, from files.

use attache::pb::TaskState;

use crate::support::{client, hosts::Hosts, skip::skip};

/// Which host is whose.
const REGISTRY: u8 = 1;
const HOME: u8 = 2;
const WORKER: u8 = 3;

#[tokio::test]
async fn three_hosts_by_hand_run_a_streamed_task() {
    let test = "namespaces::three_hosts_by_hand_run_a_streamed_task";
    let mut hosts = match Hosts::new(3, REGISTRY).await {
        Ok(hosts) => hosts,
        Err(why) => return skip(test, &format!("no network namespaces here: {why}")),
    };
    let home = hosts.join(HOME, "home", &["test.home"], "").await;
    hosts.join(WORKER, "worker", &["test.echo"], "").await;

    let mut home = client::local(&home);
    let ran = client::run(&mut home, client::bounded("test.echo", "over the wire", 50)).await;
    let ran = ran.unwrap_or_else(|status| panic!("{status:?}{}", hosts.site.logs()));
    assert_eq!(
        ran.state(),
        TaskState::Completed,
        "{:?}{}",
        ran.failure(),
        hosts.site.logs()
    );
    assert_eq!(ran.result().as_deref(), Some("over the wire"));
    assert_eq!(
        ran.events.iter().filter(|event| is_progress(event)).count(),
        3
    );
    let task = client::full(&mut home, &ran.id).await.unwrap();
    assert_eq!(task.executor.unwrap().agent, "default/worker");

    // It did go over that wire: without it the task waits, and with it the task goes on.
    hosts.net.plug(WORKER, false);
    let waiting = client::submit(&mut home, client::bounded("test.echo", "later", 50)).await;
    let waiting = waiting.unwrap().id;
    let task = client::full(&mut home, &waiting).await.unwrap();
    assert!(!client::is_end(task.state()), "{task:?}");
    hosts.net.plug(WORKER, true);
    let seen = client::watch_whole(&mut home, &waiting).await;
    assert_eq!(
        seen.result().as_deref(),
        Some("later"),
        "{:?}",
        seen.failure()
    );
}

fn is_progress(event: &attache::pb::TaskEvent) -> bool {
    matches!(event.kind, Some(attache::pb::task_event::Kind::Progress(_)))
}
