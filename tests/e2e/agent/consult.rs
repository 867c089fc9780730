//! Skills that ask their caller: `test.consult`, and `test.echo.consult`, which may run twice.
//!
//! The input is `COUNT KIND GATE`: COUNT questions are asked, one by each run, `q1` first; those of
//! KIND `number` want JSON `{"n": NUMBER}`, those of `right` ask for a right, those of `broken` have a
//! schema that is none; `parent` begins two children that hold until GATE is there before it asks, the
//! second of them detached. Once it has all answers it goes on until the file GATE is there, then says what
//! it was told and how many runs came before.

use std::{env, path::Path};

use attache::{
    pb::{
        self, HandleRequest, HandleResponse, Role, agent_client::AgentClient,
        handle_response::Update, part::Content,
    },
    wire::json,
};
use tokio::time::sleep;
use tonic::transport::Endpoint;

use crate::{TICK, Updates, progress, result, text_part};

/// What a number has to look like.
const NUMBER: &str = r#"{"type":"object","properties":{"n":{"type":"integer"}},"required":["n"]}"#;

async fn beget(request: &HandleRequest, gate: &str) {
    let sidecar = Endpoint::from_shared(env::var("ATTACHE_SIDECAR").unwrap()).unwrap();
    let mut sidecar = AgentClient::new(sidecar.connect_lazy());
    for detached in [false, true] {
        let spec = pb::TaskSpec {
            selector: Some(pb::Selector {
                skill: "test.hold".into(),
                ..Default::default()
            }),
            input: vec![text_part(gate)],
            parent_token: request.parent_token.clone(),
            options: Some(pb::TaskOptions {
                detached,
                ..Default::default()
            }),
            ..Default::default()
        };
        let spec = Some(spec);
        let submitted = sidecar.submit_task(pb::SubmitTaskRequest { spec }).await;
        submitted.unwrap();
    }
}

pub(crate) async fn consult(request: &HandleRequest, updates: &Updates) {
    let said = |message: &pb::Message| -> String {
        let parts = message.parts.iter().map(|part| match &part.content {
            Some(Content::Text(text)) => text.clone(),
            Some(Content::Data(value)) => json::from_value(value).to_string(),
            other => panic!("{other:?}"),
        });
        parts.collect()
    };
    let input = said(&request.inputs[0]);
    let words: Vec<&str> = input.split(' ').collect();
    let [count, kind, gate] = words[..] else {
        panic!("{input}")
    };
    let talk = &request.inputs[1..];
    let answers: Vec<String> = talk
        .iter()
        .filter(|message| message.role() == Role::User)
        .map(|message| format!("{}={}", message.message_id, said(message)))
        .collect();
    assert_eq!(
        talk.len(),
        2 * answers.len(),
        "each question has its answer"
    );
    let before = String::from_utf8(request.checkpoint.clone()).unwrap();
    let runs = before.parse::<usize>().unwrap_or(0) + 1;
    let send = async |update: Option<Update>| {
        // Nobody listens any more: then nothing is to be done either.
        drop(updates.send(Ok(HandleResponse { update })).await);
    };
    let data = runs.to_string().into_bytes();
    send(Some(Update::Checkpoint(pb::Checkpoint { data }))).await;
    if answers.len() < count.parse().unwrap() {
        if kind == "parent" {
            beget(request, gate).await;
        }
        let number = answers.len() + 1;
        let schema = match kind {
            "number" => NUMBER,
            "broken" => "{",
            _ => "",
        };
        let question = pb::Question {
            question_id: format!("q{number}"),
            message: Some(pb::Message {
                parts: vec![text_part(&format!("what of {number}?"))],
                ..Default::default()
            }),
            answer_schema: schema.into(),
            auth: kind == "right",
        };
        return send(Some(Update::Question(question))).await;
    }
    let mut step = 0;
    while gate != "-" && !Path::new(gate).exists() {
        step += 1;
        send(progress(step)).await;
        if updates.is_closed() {
            return;
        }
        sleep(TICK).await;
    }
    send(result(&format!("{}; run {runs}", answers.join(", ")))).await;
}
