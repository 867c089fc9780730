//! Answers through the home: on disk before they are acknowledged, and known in the archive.

use std::sync::Arc;

use crate::domain::{Fault, Reason, SpiffeId, TaskId};
use crate::pb;
use crate::pb::execute_request::Step;
use crate::pb::handle_response::Update;

use super::config::Submission;
use super::dialogue::Response;
use super::drive_tests::{Bench, result};
use super::tests::{own, spec, text};

pub(super) fn question(id: &str) -> Update {
    Update::Question(pb::Question {
        question_id: id.into(),
        message: Some(pb::Message {
            parts: vec![text("which?")],
            ..Default::default()
        }),
        ..Default::default()
    })
}

impl Bench {
    async fn answers(
        &self,
        id: &TaskId,
        who: &SpiffeId,
        (question, said): (&str, &str),
    ) -> Result<(pb::Task, bool), Fault> {
        let response = Response {
            question_id: question.into(),
            parts: vec![text(said)],
        };
        self.home
            .respond(id, &Arc::new(who.clone()), response)
            .await
    }

    /// The answer is known, now that the task has ended.
    async fn knows(&self, id: &TaskId, agent: &SpiffeId) {
        let me = own();
        let (task, replayed) = self.answers(id, &me, ("q1", "this")).await.unwrap();
        assert!(replayed);
        assert_eq!(task.state(), pb::TaskState::Completed);
        for (who, answer, reason) in [
            (&me, ("q1", "that"), Reason::QuestionAnswered),
            (&me, ("q2", "this"), Reason::TaskEnded),
            (agent, ("q1", "this"), Reason::PermissionDenied),
        ] {
            let refused = self.answers(id, who, answer).await.unwrap_err();
            assert_eq!(refused.reason, reason);
        }
        let (full, _) = self.home.get(id, &Arc::new(own()), true).await.unwrap();
        assert_eq!(full.messages.len(), 3);
        assert_eq!(full.messages[2].by, own().to_string());
    }
}

#[tokio::test]
async fn an_answer_outlives_its_home_and_is_known_in_the_archive() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::archived(dir.path(), &["i1"]);
    let asked = Submission {
        spec: spec(pb::TaskOptions::default()),
        caller: own(),
        trace: None,
    };
    let id = bench.home.submit(asked, 0).await.unwrap().task.id;
    let id: TaskId = id.parse().unwrap();
    let mut opened = bench.next().await;
    assert!(matches!(opened.step().await, Step::Start(_)));
    opened.accept().await;
    opened.update(1, question("q1")).await;
    opened.acked(1).await;
    bench.stop().await;

    let mut bench = Bench::archived(dir.path(), &["i1"]);
    assert!(
        bench.idle().await,
        "nobody is given what waits for an answer"
    );
    bench.stop().await;

    let bench = Bench::archived(dir.path(), &[]);
    let me = own();
    let agent: SpiffeId = "spiffe://attache.local/ns/default/agent/worker"
        .parse()
        .unwrap();
    let nameless = bench.answers(&id, &me, ("", "x")).await.unwrap_err();
    assert_eq!(nameless.field.as_deref(), Some("question_id"));
    let itself = bench.answers(&id, &agent, ("q1", "x")).await.unwrap_err();
    assert_eq!(itself.reason, Reason::PermissionDenied);
    let stranger = "spiffe://attache.local/ns/other/agent/x".parse().unwrap();
    let unseen = bench.answers(&id, &stranger, ("q1", "x")).await;
    assert_eq!(unseen.unwrap_err().reason, Reason::TaskNotFound);
    let (_, replayed) = bench.answers(&id, &me, ("q1", "this")).await.unwrap();
    assert!(!replayed);
    bench.stop().await;

    let mut bench = Bench::archived(dir.path(), &["i1"]);
    let mut opened = bench.next().await;
    let Step::Start(start) = opened.step().await else {
        panic!("it was not sent before")
    };
    let told = start.handle.unwrap();
    assert_eq!(
        (told.inputs.len(), told.inputs[2].message_id.as_str()),
        (3, "q1")
    );
    opened.accept().await;
    opened.update(1, result()).await;
    opened.acked(1).await;
    for moved in [false, true] {
        if moved {
            bench.stop().await;
            bench = Bench::archived(dir.path(), &[]);
            bench.moved(1).await;
        }
        bench.knows(&id, &agent).await;
    }
    bench.stop().await;
}
