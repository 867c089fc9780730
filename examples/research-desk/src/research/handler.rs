//! The gRPC door of `research`: a question in, an answer with citations out. Not `Describe`: the
//! card stands in `mesh.toml`. Not `Cancel`: the sidecar resets the stream, which drops the work.

use std::collections::HashSet;

use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use crate::attempt::{self, Outbox, Updates};
use crate::found::{Passage, Query};
use crate::part;
use crate::pb::handle_response::Update;
use crate::pb::handler_server::Handler;
use crate::pb::{HandleRequest, Message};
use crate::research::answer::Answer;
use crate::research::ask;
use crate::terms::terms;

/// Longest question in bytes.
const MAX_QUESTION_BYTES: usize = 2_048;

/// Passages to choose from: enough that the answer is among them, few enough to stay on the subject.
const PASSAGES: usize = 10;

/// The agent that does `research.answer`.
#[derive(Debug, Clone)]
pub struct Research {
    sidecar: Channel,
}

impl Research {
    /// An agent that asks the mesh behind `sidecar` for passages.
    #[must_use]
    pub fn new(sidecar: Channel) -> Self {
        Self { sidecar }
    }
}

#[tonic::async_trait]
impl Handler for Research {
    async fn handle(&self, request: Request<HandleRequest>) -> Result<Response<Updates>, Status> {
        let sidecar = self.sidecar.clone();
        let request = request.into_inner();
        Ok(attempt::run(|outbox| answer(sidecar, request, outbox)))
    }
}

async fn answer(sidecar: Channel, request: HandleRequest, outbox: Outbox) -> Update {
    let question = match question_of(&request.inputs) {
        Ok(question) => question,
        Err(complaint) => return attempt::rejection("INVALID_QUESTION", complaint),
    };
    outbox
        .progress(
            ask::SEARCHED,
            "searching",
            "asking the mesh for search.passages",
        )
        .await;
    let query = Query {
        query: question.clone(),
        limit: Some(PASSAGES),
    };
    let asked = ask::passages(sidecar, &query, request.parent_token, &outbox).await;
    let passages = match asked {
        Ok(found) => found.passages,
        Err(error) => return Update::Failure(error.into_failure()),
    };
    outbox.progress(0.6, "reading", read(&passages)).await;
    let Some(answer) = Answer::compose(&question, &passages) else {
        let sentence =
            format!("the documents say nothing about \"{question}\": ask in their words");
        return attempt::failure("NOTHING_FOUND", Code::NotFound, sentence);
    };
    let quotes = answer.citations.len();
    outbox
        .progress(0.9, "composing", format!("quoting {quotes} places"))
        .await;
    let json = serde_json::to_value(&answer).expect("strings and numbers are JSON");
    attempt::result(vec![
        part::text(answer.markdown(), "text/markdown"),
        part::data(&json),
    ])
}

fn read(passages: &[Passage]) -> String {
    let files: HashSet<_> = passages
        .iter()
        .map(|passage| passage.file.as_str())
        .collect();
    format!("{} passages of {} files", passages.len(), files.len())
}

/// A JSON part `{"question": ...}`, or else the text of all parts.
fn question_of(inputs: &[Message]) -> Result<String, String> {
    let question = match part::first_data(part::of(inputs)) {
        Some(json) => json["question"].as_str().unwrap_or_default().to_owned(),
        None => part::all_text(part::of(inputs)),
    };
    let question = question.trim();
    if terms(question).is_empty() {
        return Err("there is no question: send text, or JSON {\"question\": \"...\"}".to_owned());
    }
    if question.len() > MAX_QUESTION_BYTES {
        return Err(format!(
            "the question is longer than {MAX_QUESTION_BYTES} bytes: shorten it"
        ));
    }
    Ok(question.to_owned())
}
