//! `attache task tree`: a task and all that was made for it, on whatever sidecars they live.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};

use crate::{
    cli::{
        args::MeshArgs,
        exit::{Exit, Failed},
        mesh::Mesh,
        output::{Output, clean},
        show,
        task::everywhere,
    },
    pb,
    runtime::Nursery,
    task::descendants::DESCENDANTS_MAX,
    wire::json,
};

/// Most tasks of one home that are shown: a root has no more descendants.
const TASKS_MAX: usize = 1001;

/// Draws the tree below `id`, or prints its tasks for programs.
///
/// # Errors
/// What the task's home answers.
pub(super) async fn run(
    args: MeshArgs,
    id: &str,
    output: &Output,
    nursery: &Nursery,
) -> Result<Exit, Failed> {
    let mesh = Mesh::find(&args, nursery)?;
    let request = pb::GetTaskRequest {
        task_id: id.to_owned(),
        view: pb::TaskView::Basic.into(),
    };
    let got = mesh.home_of(id).await?.get_task(request).await?;
    let task = got.into_inner().task.unwrap_or_default();
    let mut all = vec![task.clone()];
    let request = pb::ListTasksRequest {
        page_size: 1000,
        root_task_id: task.root_task_id,
        ..Default::default()
    };
    all.extend(everywhere(&mesh, &request, TASKS_MAX, output).await?);
    let tree = Tree::of(all, id);
    if output.is_json() {
        let tasks = tree.walk().into_iter();
        output.json(&tasks.map(|(_, task)| json::message("Task", task)).collect());
    } else {
        let header = ["skill", "by", "state", "tries", "after", "took", "task"];
        output.table(&header, tree.rows());
        if let Some(text) = tree.made() {
            output.line(&text);
        }
    }
    Ok(Exit::Done)
}

/// Tasks by their parents, the oldest first.
struct Tree {
    top: String,
    tasks: BTreeMap<String, pb::Task>,
    children: BTreeMap<String, Vec<String>>,
}

impl Tree {
    fn of(all: Vec<pb::Task>, top: &str) -> Self {
        let tasks: BTreeMap<_, _> = all
            .into_iter()
            .map(|task| (task.id.clone(), task))
            .collect();
        let mut children: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut sorted: Vec<_> = tasks.values().collect();
        sorted.sort_by_key(|task| task.created_at.map(|at| (at.seconds, at.nanos)));
        for task in sorted {
            let siblings = children.entry(task.parent_task_id.clone()).or_default();
            siblings.push(task.id.clone());
        }
        Self {
            top: top.to_owned(),
            tasks,
            children,
        }
    }

    /// The top and all below it, parents first, each with the lines that lead to it.
    fn walk(&self) -> Vec<(String, &pb::Task)> {
        let mut found = Vec::new();
        // What a home says is not trusted to be a tree.
        let mut seen = BTreeSet::new();
        let mut open = vec![(String::new(), String::new(), self.top.as_str())];
        while let Some((lead, below, id)) = open.pop() {
            let Some(task) = self.tasks.get(id).filter(|_| seen.insert(id)) else {
                continue;
            };
            found.push((lead, task));
            let children = self.children.get(id).map_or(&[][..], Vec::as_slice);
            for (place, child) in children.iter().enumerate().rev() {
                let last = place + 1 == children.len();
                let (corner, bar) = if last {
                    ("└─ ", "   ")
                } else {
                    ("├─ ", "│  ")
                };
                open.push((format!("{below}{corner}"), format!("{below}{bar}"), child));
            }
        }
        found
    }

    /// How many there are below a root, and may be; `None`: it is none.
    fn made(&self) -> Option<String> {
        let top = self.tasks.get(&self.top)?;
        let is_root = top.parent_task_id.is_empty();
        // Without the top itself.
        let made = self.walk().len().saturating_sub(1);
        is_root.then(|| format!("{made} tasks below it, of {DESCENDANTS_MAX} that it may have"))
    }

    fn rows(&self) -> Vec<Vec<String>> {
        let top = self.tasks.get(&self.top).and_then(begun);
        let row = |(lead, task): (String, &pb::Task)| {
            let why = task.failure.as_ref().map(|failure| failure.reason.clone());
            let why = why.or_else(|| task.question.as_deref().map(show::asked_briefly));
            let state = match why {
                Some(why) => format!("{}: {why}", show::state(task.state())),
                None => show::state(task.state()).to_owned(),
            };
            let agent = task.executor.as_ref().map_or(&task.agent, |by| &by.agent);
            let by = if task.delegated_to.is_empty() {
                clean(agent)
            } else {
                format!("handed to {}", clean(&task.delegated_to))
            };
            let began = begun(task);
            let ended = task.ended_at.and_then(|at| SystemTime::try_from(at).ok());
            vec![
                format!("{lead}{}", clean(&task.skill)),
                by,
                clean(&state),
                task.attempt.to_string(),
                span(top, began),
                span(began, ended),
                clean(&task.id),
            ]
        };
        self.walk().into_iter().map(row).collect()
    }
}

fn begun(task: &pb::Task) -> Option<SystemTime> {
    SystemTime::try_from(task.created_at?).ok()
}

/// The time between two moments, as people say it; clocks of different homes may differ.
fn span(from: Option<SystemTime>, to: Option<SystemTime>) -> String {
    let (Some(from), Some(to)) = (from, to) else {
        return String::new();
    };
    let took = to.duration_since(from).unwrap_or(Duration::ZERO);
    match took.as_secs() {
        0 => format!("{} ms", took.as_millis()),
        1..120 => format!("{:.1} s", took.as_secs_f64()),
        seconds => format!("{} min", seconds / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(id: &str, parent: &str, millis: i32) -> pb::Task {
        let at = |millis: i32| prost_types::Timestamp {
            seconds: 5,
            nanos: millis * 1_000_000,
        };
        pb::Task {
            id: id.into(),
            parent_task_id: parent.into(),
            skill: format!("do.{id}"),
            agent: "default/a".into(),
            state: pb::TaskState::Completed.into(),
            attempt: 1,
            created_at: Some(at(millis)),
            ended_at: Some(at(millis + 7)),
            ..Default::default()
        }
    }

    #[test]
    fn a_tree_is_drawn_by_age_with_a_line_to_each() {
        let tasks = vec![
            task("root", "", 1),
            task("late", "root", 9),
            task("early", "root", 3),
            task("leaf", "early", 4),
            pb::Task {
                delegated_to: "default/b".into(),
                ..task("other", "early", 5)
            },
            task("elsewhere", "unknown", 2),
        ];
        let tree = Tree::of(tasks, "root");
        let rows = tree.rows();
        let first: Vec<_> = rows.iter().map(|row| row[0].as_str()).collect();
        let drawn = [
            "do.root",
            "├─ do.early",
            "│  ├─ do.leaf",
            "│  └─ do.other",
            "└─ do.late",
        ];
        assert_eq!(first, drawn);
        assert_eq!(rows[4][4..6], ["8 ms", "7 ms"]);
        let by: Vec<_> = rows.iter().map(|row| row[1].as_str()).collect();
        assert_eq!(by[2..4], ["default/a", "handed to default/b"]);
        assert_eq!(
            tree.made().unwrap(),
            "4 tasks below it, of 1000 that it may have"
        );
        let part = Tree::of(tree.tasks.values().cloned().collect(), "early");
        assert_eq!(part.walk().len(), 3);
        assert_eq!(part.made(), None);
    }

    #[test]
    fn what_claims_to_be_its_own_parent_is_shown_once() {
        let tree = Tree::of(vec![task("a", "b", 1), task("b", "a", 2)], "a");
        assert_eq!(tree.walk().len(), 2);
    }
}
