//! Lists: every filter against all tasks one by one, pages that stay whole while tasks come and move.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::domain::SpiffeId;
use crate::pb;
use crate::pb::execute_request::Step;

use super::config::Submission;
use super::drive_tests::{Bench, result, until};
use super::tests::{own, spec};
use super::view::ListQuery;

/// Tasks of a test: of several shards, some in memory and some in the archive.
const TASKS: usize = 24;

fn other() -> SpiffeId {
    "spiffe://attache.local/ns/default/agent/other"
        .parse()
        .unwrap()
}

/// Submission number `place`: no two filters fit the same ones.
fn submission(place: usize) -> Submission {
    let mut spec = spec(pb::TaskOptions::default());
    let selector = spec.selector.get_or_insert_default();
    selector.skill = ["work.do", "work.go"][place % 2].into();
    selector.agent = ["", "default/one", "default/two"][place % 3].into();
    spec.context_id = format!("context-{}", place % 5);
    spec.correlation_id = format!("work-{}", place % 4);
    Submission {
        spec,
        caller: if place.is_multiple_of(7) {
            other()
        } else {
            own()
        },
        trace: None,
    }
}

/// The operator, who sees all.
fn operator() -> Arc<SpiffeId> {
    Arc::new("spiffe://attache.local/operator/ops".parse().unwrap())
}

fn query(filter: pb::ListTasksRequest, limit: usize) -> ListQuery {
    ListQuery {
        viewer: operator(),
        filter,
        before: None,
        limit,
    }
}

impl Bench {
    /// Submits and, of the first two thirds, ends each in the order in which it came.
    async fn filled(&mut self) -> Vec<pb::Task> {
        let mut all = Vec::new();
        for place in 0..TASKS {
            if place == TASKS * 2 / 3 {
                self.route.set(&[], false);
            }
            let task = self
                .home
                .submit(submission(place), place)
                .await
                .unwrap()
                .task;
            if place < TASKS * 2 / 3 {
                let mut opened = self.next().await;
                assert!(matches!(opened.step().await, Step::Start(_)));
                opened.accept().await;
                opened.update(1, result()).await;
                opened.acked(1).await;
            }
            all.push(task.id);
        }
        let mut read = Vec::new();
        for id in &all {
            let got = self
                .home
                .get(&id.parse().unwrap(), &operator(), false)
                .await;
            read.push(got.unwrap().0);
        }
        read
    }

    /// All pages of a list.
    async fn pages(&self, mut query: ListQuery) -> Vec<pb::Task> {
        let mut found = Vec::new();
        loop {
            let page = self.home.list(query.clone()).await.unwrap();
            assert!(page.tasks.len() <= query.limit);
            found.extend(page.tasks);
            if page.next.is_none() {
                return found;
            }
            query.before = page.next;
        }
    }
}

type Fits = Box<dyn Fn(&pb::Task) -> bool>;

/// Filters, and what each is to find.
#[allow(clippy::too_many_lines, reason = "one table")]
fn cases(all: &[pb::Task]) -> Vec<(pb::ListTasksRequest, Fits)> {
    let middle = all[TASKS / 2].created_at;
    let at = |time: Option<prost_types::Timestamp>| time.map(|at| (at.seconds, at.nanos));
    let since = at(middle);
    let root = all[3].id.clone();
    let filter = pb::ListTasksRequest::default;
    vec![
        (filter(), Box::new(|_| true)),
        (
            pb::ListTasksRequest {
                states: vec![pb::TaskState::Submitted.into()],
                ..filter()
            },
            Box::new(|task| task.state() == pb::TaskState::Submitted),
        ),
        (
            pb::ListTasksRequest {
                states: vec![
                    pb::TaskState::Completed.into(),
                    pb::TaskState::Failed.into(),
                ],
                ..filter()
            },
            Box::new(|task| task.state() == pb::TaskState::Completed),
        ),
        (
            pb::ListTasksRequest {
                skill: "work.go".into(),
                ..filter()
            },
            Box::new(|task| task.skill == "work.go"),
        ),
        (
            pb::ListTasksRequest {
                agent: "default/two".into(),
                ..filter()
            },
            Box::new(|task| match &task.executor {
                Some(ran) => ran.agent == "default/two",
                None => task.agent == "default/two",
            }),
        ),
        (
            pb::ListTasksRequest {
                caller: other().to_string(),
                ..filter()
            },
            Box::new(|task| task.caller == other().to_string()),
        ),
        (
            pb::ListTasksRequest {
                context_id: "context-2".into(),
                correlation_id: "work-1".into(),
                ..filter()
            },
            Box::new(|task| task.context_id == "context-2" && task.correlation_id == "work-1"),
        ),
        (
            pb::ListTasksRequest {
                root_task_id: root.clone(),
                ..filter()
            },
            Box::new(move |task| task.id == root),
        ),
        (
            pb::ListTasksRequest {
                created_after: middle,
                ..filter()
            },
            Box::new(move |task| at(task.created_at) >= since),
        ),
        (
            pb::ListTasksRequest {
                created_before: middle,
                ..filter()
            },
            Box::new(move |task| at(task.created_at) < since),
        ),
    ]
}

#[tokio::test]
async fn every_filter_finds_what_it_names_in_memory_and_in_the_archive() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::archived(dir.path(), &["i1"]);
    let all = Box::pin(bench.filled()).await;
    until("what has ended is moved", || bench.in_memory() == 0).await;
    for (filter, fits) in cases(&all) {
        let mut wanted: Vec<_> = all.iter().filter(|task| fits(task)).cloned().collect();
        wanted.reverse();
        assert!(!wanted.is_empty(), "{filter:?}");
        for limit in [1, 5, 100] {
            let found = bench.pages(query(filter.clone(), limit)).await;
            assert_eq!(found, wanted, "{filter:?}, {limit} a page");
        }
    }
    let stranger = ListQuery {
        viewer: Arc::new(other()),
        ..query(pb::ListTasksRequest::default(), 100)
    };
    let found = bench.pages(stranger).await;
    assert!(found.iter().all(|task| task.caller == other().to_string()));
    assert_eq!(found.len(), TASKS.div_ceil(7));
    bench.stop().await;
}

#[tokio::test]
async fn pages_miss_and_repeat_nothing_while_tasks_come_end_and_move() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::keeping(dir.path(), 4, &["i1"]);
    let known: BTreeSet<String> = Box::pin(bench.filled())
        .await
        .into_iter()
        .map(|task| task.id)
        .collect();
    let mut query = query(pb::ListTasksRequest::default(), 2);
    let mut seen = Vec::new();
    // What waits goes on while the pages are read, and more comes.
    bench.route.set(&["i1"], false);
    loop {
        let page = bench.home.list(query.clone()).await.unwrap();
        seen.extend(page.tasks.into_iter().map(|task| task.id));
        query.before = page.next;
        if page.next.is_none() {
            break;
        }
        bench.home.submit(submission(1), seen.len()).await.unwrap();
        let mut opened = bench.next().await;
        assert!(matches!(opened.step().await, Step::Start(_)));
        opened.accept().await;
        opened.update(1, result()).await;
        opened.acked(1).await;
    }
    let once: BTreeSet<String> = seen.iter().cloned().collect();
    assert_eq!(once.len(), seen.len(), "none twice");
    assert_eq!(
        once, known,
        "what was there before the first page, and nothing else"
    );
    bench.stop().await;
}
