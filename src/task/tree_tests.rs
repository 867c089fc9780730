//! Trees of tasks over a real home and a real executor: who may get a task, and how many there may be.

use std::collections::VecDeque;

use crate::domain::Reason;
use crate::pb;

use super::descendants::DESCENDANTS_MAX;
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
            loop {
                let skill = format!("bomb.{}", depth + 1);
                match child(&bench, &skill, &parent).await {
                    Ok(task) => {
                        made += 1;
                        assert_eq!(task.root_task_id, root.task.id);
                        assert_eq!(task.correlation_id, root.task.correlation_id);
                        let next = (depth + 1, token(&mut bench, made).await);
                        open.push_back(next);
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
        }
        let most = DESCENDANTS_MAX as usize;
        let least = if idempotent { most / 3 } else { most };
        assert!((least..=most).contains(&made), "{made}");
        assert!(stopped > 0);
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_child_has_not_used_is_there_again_after_its_end() {
    let mut bench = Bench::new(8);
    bench
        .home
        .submit(bench.asked("bomb.0", ""), 0)
        .await
        .unwrap();
    let token = token(&mut bench, 0).await;
    // Each would hold shares for ever, if they did not come back.
    for _ in 0..DESCENDANTS_MAX {
        let made = child(&bench, "work.do", &token).await.unwrap();
        let task = bench.end(&made.id).await;
        assert_eq!(task.state(), pb::TaskState::Completed);
    }
    let fault = child(&bench, "work.do", &token).await.unwrap_err();
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
