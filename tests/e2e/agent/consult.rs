//! Skills that ask their caller: `test.consult`, and `test.echo.consult`, which may run twice.
//!
//! The input is `COUNT KIND GATE`: COUNT questions are asked, one by each run, `q1` first; those of
//! KIND `number` want JSON `{"n": NUMBER}`, those of `right` ask for a right, those of `broken` have a
//! schema that is none. Once it has all answers it goes on until the file GATE is there, then says what
//! it was told and how many runs came before.

use std::path::Path;

use attache::{
    pb::{self, HandleRequest, HandleResponse, Role, handle_response::Update, part::Content},
    wire::json,
};
use tokio::time::sleep;

use crate::{TICK, Updates, progress, result, text_part};

/// What a number has to look like.
const NUMBER: &str = r#"{"type":"object","properties":{"n":{"type":"integer"}},"required":["n"]}"#;

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
