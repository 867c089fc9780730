//! An executor's slots go to whoever's turn it is, wherever its tasks wait.

use attache::pb;
use tokio::task::JoinSet;

use crate::support::{
    client::{self, Local},
    hand::ByHand,
    mesh::agent,
    scrape::{OPEN_METRICS, Page},
    wait::eventually,
};

const SKILL: &str = "test.echo.brief";
/// Tasks of the one home, and of the other one.
const MANY: usize = 2_000;
const FEW: usize = 10;
/// Runs among which those of the other one have to be: a hundredth of ten thousand.
const FIRST: usize = 100;

fn mesh() -> String {
    agent("many", &["test.many"], "")
        + &agent("few", &["test.few"], "")
        + &agent("worker", &[SKILL], "max_concurrent_tasks = 4")
}

fn brief(priority: u32) -> pb::TaskSpec {
    pb::TaskSpec {
        options: Some(pb::TaskOptions {
            priority,
            ..Default::default()
        }),
        ..client::spec(SKILL, "50")
    }
}

async fn submit(home: &Local, count: usize, priority: u32) -> Vec<String> {
    let mut callers = JoinSet::new();
    for caller in 0..32 {
        let mut home = home.clone();
        callers.spawn(async move {
            let mut ids = Vec::new();
            for _ in (caller..count).step_by(32) {
                ids.push(client::submit(&mut home, brief(priority)).await.unwrap().id);
            }
            ids
        });
    }
    callers.join_all().await.concat()
}

/// Waits until an executor has granted slots, and they were used.
async fn are_used(what: &str, worker: &str) {
    eventually(what, || async {
        let page = Page::of(worker, OPEN_METRICS).await;
        let used = page.sum("attache_executor_grants_total", &["outcome=\"used\""]);
        if used > 10.0 {
            Ok(())
        } else {
            Err(format!("{used} grants were used"))
        }
    })
    .await;
}

#[tokio::test]
async fn ten_tasks_of_another_sidecar_are_soon_done_though_thousands_wait() {
    let mut mesh = ByHand::started(&mesh()).await;
    submit(&mesh.local("many-1"), MANY, 10).await;
    are_used("slots are granted", &mesh.admin("worker-1")).await;
    let few = mesh.local("few-1");
    let before = mesh.site.runs().len();
    let ids = submit(&few, FEW, 1).await;
    for id in &ids {
        client::watch_whole(&mut few.clone(), id).await;
    }
    let runs = mesh.site.runs();
    let last = runs
        .iter()
        .rposition(|(_, id, _)| ids.contains(id))
        .unwrap();
    assert!(last - before < FIRST, "number {} of all", last - before);
    assert!(runs.len() < MANY, "many still wait");
    // Whoever grants goes away and comes back.
    mesh.kill("worker-1").await;
    mesh.start("worker-1");
    mesh.ready("worker-1").await;
    let ids = submit(&few, FEW, 1).await;
    for id in &ids {
        client::watch_whole(&mut few.clone(), id).await;
    }
    are_used("slots are granted again", &mesh.admin("worker-1")).await;
}
