//! The gRPC door of `search`: a task in, passages out. Not `Describe`: the card stands in
//! `mesh.toml`. Not `Cancel`: a search is over before anyone can cancel it.

use std::sync::Arc;

use tokio::task::spawn_blocking;
use tonic::{Code, Request, Response, Status};

use crate::attempt::{self, Updates};
use crate::found::Query;
use crate::part;
use crate::pb::handle_response::Update;
use crate::pb::handler_server::Handler;
use crate::pb::{HandleRequest, Message};
use crate::search::index::Index;

/// Longest query in bytes; more is a document, not a question about one.
const MAX_QUERY_BYTES: usize = 4_096;

/// The agent that does `search.passages`.
#[derive(Debug, Clone)]
pub struct Search {
    index: Arc<Index>,
}

impl Search {
    /// An agent that searches `index`.
    #[must_use]
    pub fn new(index: Index) -> Self {
        Self {
            index: Arc::new(index),
        }
    }
}

#[tonic::async_trait]
impl Handler for Search {
    async fn handle(&self, request: Request<HandleRequest>) -> Result<Response<Updates>, Status> {
        let index = Arc::clone(&self.index);
        let request = request.into_inner();
        Ok(attempt::run(|_| search(index, request)))
    }
}

async fn search(index: Arc<Index>, request: HandleRequest) -> Update {
    let query = match query_of(&request.inputs) {
        Ok(query) => query,
        Err(complaint) => return attempt::rejection("INVALID_QUERY", complaint),
    };
    // Milliseconds of computation: enough to keep other tasks from being heard.
    let found = spawn_blocking(move || index.find(&query)).await;
    let found = found.expect("the search neither panics nor is aborted");
    match found {
        Ok(found) => {
            let json = serde_json::to_value(found).expect("strings and finite numbers are JSON");
            attempt::result(vec![part::data(&json)])
        }
        Err(error) => attempt::failure("INDEX_FAILED", Code::Internal, error.to_string()),
    }
}

/// A JSON part `{"query": ..., "limit": ...}`, or else the text of all parts.
fn query_of(inputs: &[Message]) -> Result<Query, String> {
    let query = match part::first_data(part::of(inputs)) {
        Some(json) => serde_json::from_value(json).map_err(|error| {
            format!("the input is not {{\"query\": \"...\", \"limit\": 5}}: {error}")
        })?,
        None => Query {
            query: part::all_text(part::of(inputs)),
            limit: None,
        },
    };
    if query.query.trim().is_empty() {
        return Err("there is no query: send text, or JSON {\"query\": \"...\"}".to_owned());
    }
    if query.query.len() > MAX_QUERY_BYTES {
        return Err(format!(
            "the query is longer than {MAX_QUERY_BYTES} bytes: shorten it"
        ));
    }
    Ok(query)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn input(parts: Vec<crate::pb::Part>) -> Vec<Message> {
        vec![Message {
            parts,
            ..Message::default()
        }]
    }

    #[test]
    fn a_query_comes_as_json_or_as_text() {
        let table = [
            (
                input(vec![part::data(&json!({"query": "crash", "limit": 3}))]),
                "crash",
                Some(3),
            ),
            (
                input(vec![part::data(&json!({"query": "crash"}))]),
                "crash",
                None,
            ),
            (
                input(vec![part::text("a crash".into(), "text/plain")]),
                "a crash",
                None,
            ),
        ];
        for (inputs, query, limit) in table {
            assert_eq!(
                query_of(&inputs),
                Ok(Query {
                    query: query.into(),
                    limit
                })
            );
        }
    }

    #[test]
    fn what_is_no_query_is_refused_with_a_sentence() {
        let table = [
            (vec![], "no query"),
            (
                input(vec![part::text("  ".into(), "text/plain")]),
                "no query",
            ),
            (
                input(vec![part::data(&json!({"question": "?"}))]),
                "missing field `query`",
            ),
            (
                input(vec![part::data(&json!({"query": "x", "limit": -1}))]),
                "-1",
            ),
            (
                input(vec![part::text("x".repeat(5_000), "text/plain")]),
                "shorten",
            ),
        ];
        for (inputs, complaint) in table {
            let refused = query_of(&inputs).unwrap_err();
            assert!(refused.contains(complaint), "{refused}");
        }
    }
}
