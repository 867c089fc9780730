//! What all homes tell of their tasks in the end.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio_stream::StreamExt as _;

use crate::domain::{Fault, TaskId};
use crate::pb;
use crate::pb::task_update::Update as Shown;
use crate::task::home::{Home, ListQuery};

use super::World;
use super::node::Node;

/// Tasks of a page.
const PAGE: usize = 100;

/// A task as its home tells it in the end.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Final {
    pub(super) task: pb::Task,
    pub(super) events: Vec<pb::TaskEvent>,
}

/// All tasks of all homes.
pub(super) type Told = BTreeMap<String, Final>;

/// Whether nothing follows this state.
pub(super) fn ended(state: pb::TaskState) -> bool {
    matches!(
        state,
        pb::TaskState::Completed
            | pb::TaskState::Failed
            | pb::TaskState::Canceled
            | pb::TaskState::Rejected
    )
}

/// All tasks of a home, page by page.
async fn listed(node: &Node, home: &Home) -> Result<Vec<pb::Task>, Fault> {
    let (mut listed, mut before) = (Vec::new(), None);
    loop {
        let query = ListQuery {
            viewer: node.own.clone(),
            filter: pb::ListTasksRequest::default(),
            before,
            limit: PAGE,
        };
        let page = home.list(query).await?;
        listed.extend(page.tasks);
        before = page.next;
        if before.is_none() {
            return Ok(listed);
        }
    }
}

/// Asks every home for every task, from its first event on.
pub(super) async fn ask(world: &Arc<World>) -> Told {
    let mut told = Told::new();
    for node in &world.nodes {
        let life = node.up().await;
        let tasks = listed(node, &life.home).await;
        for task in tasks.expect("a home in calm answers") {
            let id: TaskId = task.id.parse().unwrap();
            let updates = life.home.watch(&id, &node.own, 0, false).await;
            let updates = updates.expect("a task that is listed can be watched");
            let events: Vec<_> = updates
                .filter_map(|update| {
                    let update = update.ok()?.update?;
                    let Shown::Event(event) = update else {
                        return None;
                    };
                    Some(event)
                })
                .collect()
                .await;
            told.insert(task.id.clone(), Final { task, events });
        }
    }
    told
}

/// What has not ended, or was not told of, home by home; of a home that does not answer, nothing.
pub(super) async fn left(world: &Arc<World>) -> Vec<pb::Task> {
    let mut left = Vec::new();
    for node in &world.nodes {
        let life = node.up().await;
        let tasks = listed(node, &life.home).await.unwrap_or_default();
        let tells = |task: &pb::Task| task.callback.as_ref().is_some_and(|told| told.waiting > 0);
        left.extend(
            tasks
                .into_iter()
                .filter(|task| !ended(task.state()) || tells(task)),
        );
    }
    left
}
