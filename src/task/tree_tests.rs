//! Trees of tasks over a real home and a real executor: who may get a task, and how many there may be.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::time::sleep;

use crate::domain::Reason;
use crate::pb;

use super::descendants::{DESCENDANTS_MAX, RESERVE};
use super::doors::descendants_exhausted;
use super::journal::Journal;
use super::lineage::CHAIN_MAX;
use super::tests::Bench;

/// A child for `skill` of the one agent that there is.
async fn child(bench: &Bench, skill: &str, token: &str) -> Result<pb::Task, crate::domain::Fault> {
    let mut asked = bench.asked(skill, token);
    let selector = asked.spec.selector.get_or_insert_default();
    selector.agent = "default/worker".into();
    bench.home.submit(asked, 0).await.map(|made| made.task)
}

/// The token of the handler that was called as number `place`.
async fn token(bench: &mut Bench, place: usize) -> String {
    let tokens = bench.tokens.wait_for(|tokens| tokens.len() > place).await;
    tokens.unwrap()[place].clone()
}

#[tokio::test(start_paused = true)]
async fn a_fork_bomb_stops_at_a_thousand_tasks() {
    for idempotent in [false, true] {
        let mut bench = Bench::over(2 * DESCENDANTS_MAX, idempotent, Journal::memory());
        let root = bench
            .home
            .submit(bench.asked("bomb.0", ""), 0)
            .await
            .unwrap();
        let mut open = VecDeque::from([(0, token(&mut bench, 0).await)]);
        let (mut made, mut stopped) = (0, 0);
        while let Some((depth, parent)) = open.pop_front() {
            // Breadth first and depth first in turn.
            for _ in 0..1 + made % 30 {
                let skill = format!("bomb.{}", depth + 1);
                match child(&bench, &skill, &parent).await {
                    Ok(task) => {
                        made += 1;
                        assert_eq!(task.root_task_id, root.task.id);
                        assert_eq!(task.correlation_id, root.task.correlation_id);
                        let next = (depth + 1, token(&mut bench, made).await);
                        if made % 2 == 0 {
                            open.push_front(next);
                        } else {
                            open.push_back(next);
                        }
                    }
                    Err(fault) => {
                        let deep = depth == CHAIN_MAX && fault.reason == Reason::InvalidField;
                        let full = fault.reason == Reason::DescendantsExhausted;
                        assert!(deep || full, "{fault:?}");
                        stopped += usize::from(full);
                        break;
                    }
                }
            }
            if stopped == 0 {
                open.push_back((depth, parent));
            }
        }
        assert_eq!(made, DESCENDANTS_MAX as usize);
        assert!(stopped > 0);
    }
}

/// Makes a tree all of whose tasks are there at a time: so many children by depth. Gives how many.
async fn grown(shape: &[usize], at_once: bool) -> usize {
    let mut bench = Bench::new(2 * DESCENDANTS_MAX);
    bench
        .home
        .submit(bench.asked("bomb.0", ""), 0)
        .await
        .unwrap();
    let mut made = 0;
    let mut level = vec![token(&mut bench, 0).await];
    for (depth, wide) in shape.iter().enumerate() {
        let skill = format!("bomb.{}", depth + 1);
        let children = || level.iter().flat_map(|parent| vec![parent; *wide]);
        if at_once {
            let all = children().map(|parent| child(&bench, &skill, parent));
            for one in join_all(all).await {
                one.unwrap();
            }
        } else {
            for parent in children() {
                child(&bench, &skill, parent).await.unwrap();
            }
        }
        let (from, count) = (made + 1, children().count());
        made += count;
        token(&mut bench, made).await;
        level = bench.tokens.borrow()[from..=made].to_vec();
    }
    made
}

#[tokio::test(start_paused = true)]
async fn a_tree_of_any_shape_fits_while_all_of_it_is_there() {
    let most = DESCENDANTS_MAX as usize;
    for (shape, tasks) in [
        (&[1; CHAIN_MAX][..], CHAIN_MAX),
        (&[3, 3, 3, 3], 120),
        (&[2; CHAIN_MAX], 510),
        (&[1, 50], 51),
        (&[10, 10], 110),
        (&[1, 1, 1, 1, 1, 1, 1, 993], most),
        (&[31, 31], 992),
        (&[200, 4], most),
        (&[1000], most),
    ] {
        assert_eq!(Box::pin(grown(shape, true)).await, tasks, "{shape:?}");
        if tasks < 130 {
            assert_eq!(Box::pin(grown(shape, false)).await, tasks, "{shape:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn children_count_also_when_they_have_ended_and_only_those_that_were_made() {
    let mut bench = Bench::new(8);
    bench
        .home
        .submit(bench.asked("bomb.0", ""), 0)
        .await
        .unwrap();
    let token = token(&mut bench, 0).await;
    for _ in 0..DESCENDANTS_MAX {
        // What is refused takes nothing.
        let mut asked = bench.asked("work.do", &token);
        asked.spec.correlation_id = "another one".into();
        let fault = bench.home.submit(asked, 0).await.unwrap_err();
        assert_eq!(fault.reason, Reason::InvalidField);
        let made = child(&bench, "work.do", &token).await.unwrap();
        let task = bench.end(&made.id).await;
        assert_eq!(task.state(), pb::TaskState::Completed);
    }
    let fault = child(&bench, "work.do", &token).await.unwrap_err();
    assert_eq!(fault.reason, Reason::DescendantsExhausted);
    assert!(
        fault.text.contains("without parent_token"),
        "{}",
        fault.text
    );
}

#[tokio::test(start_paused = true)]
async fn a_detached_child_has_what_the_one_that_made_it_has_left() {
    let mut bench = Bench::new(64);
    bench
        .home
        .submit(bench.asked("bomb.0", ""), 0)
        .await
        .unwrap();
    let first = token(&mut bench, 0).await;
    let parent = child(&bench, "bomb.1", &first).await.unwrap();
    let second = token(&mut bench, 1).await;
    let mut asked = bench.asked("bomb.2", &second);
    asked.spec.options.get_or_insert_default().detached = true;
    let detached = bench.home.submit(asked, 0).await.unwrap().task;
    let third = token(&mut bench, 2).await;
    // While its maker is there, it has what the tree has.
    for _ in 0..2 * RESERVE {
        child(&bench, "bomb.3", &third).await.unwrap();
    }
    sleep(Duration::from_secs(1)).await;
    let (id, viewer) = (parent.id.parse().unwrap(), Arc::new(bench.own.clone()));
    let canceled = bench.home.cancel(&id, &viewer, "enough".into()).await;
    canceled.unwrap();
    assert_eq!(bench.end(&parent.id).await.state(), pb::TaskState::Canceled);
    for _ in 0..RESERVE {
        child(&bench, "bomb.3", &third).await.unwrap();
    }
    let fault = child(&bench, "bomb.3", &third).await.unwrap_err();
    assert_eq!(fault.reason, Reason::DescendantsExhausted);
    assert_eq!(fault.text, descendants_exhausted().text);
    let (id, viewer) = (detached.id.parse().unwrap(), Arc::new(bench.own.clone()));
    let task = bench.home.get(&id, &viewer, false).await.unwrap().0;
    assert_eq!(task.state(), pb::TaskState::Working);
    // The rest of the tree has all that is left.
    for _ in 0..DESCENDANTS_MAX - 2 - 3 * RESERVE {
        child(&bench, "bomb.1", &first).await.unwrap();
    }
    let fault = child(&bench, "bomb.1", &first).await.unwrap_err();
    assert_eq!(fault.reason, Reason::DescendantsExhausted);
}

#[tokio::test(start_paused = true)]
async fn an_agent_gets_no_work_that_it_is_at_further_up() {
    let mut bench = Bench::new(8);
    bench
        .home
        .submit(bench.asked("work.wait", ""), 0)
        .await
        .unwrap();
    let first = token(&mut bench, 0).await;
    child(&bench, "work.rest", &first).await.unwrap();
    let second = token(&mut bench, 1).await;
    for skill in ["work.wait", "work.rest"] {
        let fault = child(&bench, skill, &second).await.unwrap_err();
        assert_eq!(fault.reason, Reason::DelegationLoop);
        let cycle = format!("-> default/worker ({skill})");
        assert!(fault.text.contains(&cycle), "{}", fault.text);
    }
    // Where only the skill is named somebody else may come; nobody does.
    let mut asked = bench.asked("work.wait", &second);
    let waits = bench.home.submit(asked.clone(), 0).await.unwrap().task;
    assert_eq!(waits.state(), pb::TaskState::Submitted);
    asked.spec.options.get_or_insert_default().fail_fast = true;
    let task = bench.home.submit(asked, 0).await.unwrap().task;
    let failure = bench.end(&task.id).await.failure.unwrap();
    assert_eq!(failure.reason, "NO_ROUTE");
    assert!(
        failure.message.contains("other than default/worker"),
        "{}",
        failure.message
    );
}

#[tokio::test(start_paused = true)]
async fn a_scope_holds_down_the_chain_and_only_gets_narrower() {
    let mut bench = Bench::new(8);
    let pair = |skill: &str| pb::AgentSkill {
        agent: "default/worker".into(),
        skill: skill.into(),
    };
    let mut root = bench.asked("work.wait", "");
    root.spec.scope = vec![pair("work.rest"), pair("bomb.1"), pair("work.do")];
    bench.home.submit(root, 0).await.unwrap();
    let first = token(&mut bench, 0).await;
    let fault = child(&bench, "bomb.2", &first).await.unwrap_err();
    assert_eq!(fault.reason, Reason::OutOfScope);
    assert!(
        fault.text.contains("default/worker/work.rest"),
        "{}",
        fault.text
    );

    let mut asked = bench.asked("work.rest", &first);
    asked.spec.scope = vec![pair("bomb.1"), pair("bomb.2")];
    let second = bench.home.submit(asked, 0).await.unwrap().task;
    assert_eq!(second.scope, [pair("bomb.1")], "the part that both have");
    let second = token(&mut bench, 1).await;
    // Its own maker could have had this done.
    for skill in ["work.do", "bomb.2"] {
        let fault = child(&bench, skill, &second).await.unwrap_err();
        assert_eq!(fault.reason, Reason::OutOfScope, "{skill}");
    }
    let third = child(&bench, "bomb.1", &second).await.unwrap();
    assert_eq!(third.scope, [pair("bomb.1")], "it goes on");
}

/// Records that so many children in a row take, made so many hops below the root.
async fn records(children: usize, depth: usize, asks: bool) -> u64 {
    let journal = Journal::memory();
    let mut bench = Bench::over(200, false, journal.clone());
    bench.asks.store(asks, Ordering::SeqCst);
    let root = bench.asked("bomb.0", "");
    bench.home.submit(root, 0).await.unwrap();
    let mut parent = token(&mut bench, 0).await;
    for hop in 1..depth {
        let skill = format!("bomb.{hop}");
        child(&bench, &skill, &parent).await.unwrap();
        parent = token(&mut bench, hop).await;
    }
    let (skill, before) = (format!("bomb.{depth}"), journal.stats().records);
    for _ in 0..children {
        child(&bench, &skill, &parent).await.unwrap();
    }
    token(&mut bench, depth - 1 + children).await;
    journal.stats().records - before
}

#[tokio::test(start_paused = true)]
async fn counting_children_takes_few_records_however_deep_they_are_made() {
    const CHILDREN: usize = 50;
    for depth in 1..=CHAIN_MAX {
        let shared_out = Box::pin(records(CHILDREN, depth, false)).await;
        let asked_for = Box::pin(records(CHILDREN, depth, true)).await;
        let more = asked_for - shared_out;
        assert!(more <= CHILDREN as u64 / 10, "{more} more at depth {depth}");
    }
}
