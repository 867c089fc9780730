//! Handlers that ask: their attempt is over, and so is all that belongs to it.

use super::*;

fn question(id: &str) -> Update {
    Update::Question(pb::Question {
        question_id: id.into(),
        ..pb::Question::default()
    })
}

fn answered(task: u128, attempt: u32, answers: &[(&str, &str)]) -> Box<pb::Start> {
    let mut start = start(task, attempt);
    let said = |id: &str, role: pb::Role, text: &str| pb::Message {
        message_id: id.into(),
        role: role.into(),
        parts: vec![pb::Part {
            content: Some(pb::part::Content::Text(text.into())),
            ..pb::Part::default()
        }],
        ..pb::Message::default()
    };
    let mut inputs = vec![said("input", pb::Role::User, "shirt")];
    for (id, text) in answers {
        inputs.push(said(id, pb::Role::Agent, "?"));
        inputs.push(said(id, pb::Role::User, text));
    }
    start.handle.as_mut().unwrap().inputs = inputs;
    start
}

#[tokio::test(start_paused = true)]
async fn a_question_is_the_last_word_and_gives_the_slot_back() {
    let bench = Bench::new(1, OnCancel::Ends);
    let mut home = bench.started(1, 1).await;
    let token = bench.agent.handled.lock()[0].parent_token.clone();
    assert!(bench.executor.lives(&token));
    bench.say(said(question("size"))).await;
    bench.hang_up();
    assert_eq!(home.next().await, "1: asks size");
    bench.freed().await;
    assert!(!bench.executor.lives(&token), "its children end with it");
    // The answer is quicker than the home's last acknowledgement.
    let mut next = bench.started(1, 2).await;
    bench.say(result()).await;
    bench.hang_up();
    assert_eq!(next.next().await, "1: result");

    let bench = Bench::new(1, OnCancel::Ends);
    let mut home = bench.started(1, 1).await;
    bench.say(said(question("size"))).await;
    bench.say(progress("and another thing")).await;
    assert_eq!(home.next().await, "1: AGENT_ERROR, cut");
}

#[tokio::test]
async fn an_agent_that_asks_begins_anew_with_the_answer() {
    use crate::agent::{Question, Task, text};

    let wired = wired(|task: Task| async move {
        task.progress(0.5, "half").await;
        let size = task.ask(Question::new("size", "Which size?")).await.text();
        let both = async {
            let one = task.ask(Question::new("color", "Which color?").auth());
            let other = task.ask(Question::new("never", "both at once?"));
            tokio::join!(one, other, task.message("too late")).0.text()
        };
        let color = match task.answer("color") {
            Some(color) => color.text(),
            None => both.await,
        };
        Ok(text(format!("{} {size} {color}", task.text())))
    })
    .await;
    let mut attempt = 0;
    for (answers, end) in [
        (&[][..], "2: asks size"),
        (&[("size", "large")], "2: asks color"),
        (&[("size", "large"), ("color", "red")], "2: result"),
    ] {
        attempt += 1;
        let mut home = wired.open(Ask::Start(answered(1, attempt, answers))).await;
        assert_eq!(home.next().await, "accepted");
        assert_eq!(home.next().await, "1: half");
        assert_eq!(home.next().await, end);
        home.ack(2).await;
        assert_eq!(home.next().await, "end");
    }
    assert_eq!(wired.executor.load().running, 0);
}
