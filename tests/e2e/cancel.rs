//! Cancellation of a whole tree of tasks, whose handlers run on several sidecars.

use std::{collections::BTreeSet, time::Duration};

use attache::pb::{self, TaskState};
use tokio::time::Instant;

use crate::support::{
    client::{self, Local},
    mesh::{Site, agent},
    wait::{eventually, within},
};

/// What leaves do when they are cancelled, and how many children the root has, and each of these. Who
/// is deaf is let go after 10 s only, which leaves a machine that is busy little of the bound: few.
const TREES: [(&str, usize); 2] = [("obeys", 10), ("deaf", 3)];
/// Nothing may run any more after this.
const STOPPED: Duration = Duration::from_secs(15);

fn mesh() -> String {
    let room = "max_concurrent_tasks = 100";
    agent("top", &["test.fan"], room)
        + &agent("mid", &["test.fan.mid"], room)
        + &agent("leaf", &["test.leaf"], room)
}

/// The tasks of a home that belong to one piece of work.
async fn tasks(home: &mut Local, correlation: &str) -> Vec<pb::Task> {
    let request = pb::ListTasksRequest {
        page_size: 1000,
        correlation_id: correlation.into(),
        ..Default::default()
    };
    let page = within("a list", home.list_tasks(request)).await.unwrap();
    page.into_inner().tasks
}

/// Runs of a skill, or of what is `over`, among `ids`.
fn runs(site: &Site, skill: &str, ids: &BTreeSet<String>) -> usize {
    let all = site.runs().into_iter();
    all.filter(|(what, id, _)| what == skill && ids.contains(id))
        .count()
}

#[tokio::test]
async fn a_cancelled_root_stops_a_hundred_leaves() {
    let site = Site::new(&mesh());
    let up = site.up(&[]).await;
    let mut homes =
        ["default/top", "default/mid"].map(|agent| client::local(&up.instance(agent, 0).local));
    for (leaves, wide) in TREES {
        // Root, its children, and the leaves.
        let all = 1 + wide + wide * wide;
        let spec = pb::TaskSpec {
            correlation_id: leaves.into(),
            ..client::spec(
                "test.fan",
                &format!("{wide} test.fan.mid {wide} test.leaf {leaves}"),
            )
        };
        let root = client::submit(&mut homes[0], spec).await.unwrap();
        let ids = eventually("all leaves run", || {
            let mut homes = homes.clone();
            let site = &site;
            async move {
                let mut ids = BTreeSet::new();
                for home in &mut homes {
                    ids.extend(tasks(home, leaves).await.into_iter().map(|task| task.id));
                }
                let run = runs(site, "test.leaf", &ids);
                if run == wide * wide {
                    Ok(ids)
                } else {
                    Err(format!("{run} of {} tasks", ids.len()))
                }
            }
        })
        .await;
        assert_eq!(ids.len(), all);
        assert_eq!(runs(&site, "over", &ids), 0);

        let request = pb::CancelTaskRequest {
            task_id: root.id.clone(),
            reason: "enough".into(),
        };
        let asked = Instant::now();
        within("a cancellation", homes[0].cancel_task(request))
            .await
            .unwrap();
        eventually("every handler has seen it", || async {
            let over = runs(&site, "over", &ids);
            (over == all)
                .then_some(())
                .ok_or_else(|| format!("{over} of {all}"))
        })
        .await;
        let took = asked.elapsed();
        assert!(took < STOPPED, "{leaves}: {took:?}");
        for home in &mut homes {
            for task in tasks(home, leaves).await {
                let seen = client::watch_whole(home, &task.id).await;
                assert_eq!(seen.state(), TaskState::Canceled, "{task:?}");
                let task = client::full(home, &task.id).await.unwrap();
                let confirmed = task.skill == "test.leaf" && leaves == "obeys";
                assert_eq!(task.cancel_confirmed, confirmed, "{task:?}");
                assert!(task.cancel_requested && task.attempt == 1, "{task:?}");
            }
        }
    }
}
