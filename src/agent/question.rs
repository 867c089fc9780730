//! What a handler asks of whoever wants its work, and what it is told.

use super::task::text_part;
use crate::pb;
use crate::pb::part::Content;
use crate::wire::json;

/// A question, for [`Task::ask`](super::Task::ask).
#[derive(Clone, Debug)]
pub struct Question(pub(super) pb::Question);

impl Question {
    /// Asks this. The id is known again when the same work runs once more: at most 128 bytes, and
    /// another one for each question of a task.
    pub fn new(id: impl Into<String>, text: impl Into<String>) -> Self {
        Self(pb::Question {
            question_id: id.into(),
            message: Some(pb::Message {
                parts: vec![text_part(text)],
                ..pb::Message::default()
            }),
            ..pb::Question::default()
        })
    }

    /// The same, and the answer is JSON that fits this JSON Schema: the home lets no other pass.
    #[must_use]
    pub fn schema(mut self, schema: impl Into<String>) -> Self {
        self.0.answer_schema = schema.into();
        self
    }

    /// The same, and it is a right that is missing: the task is AUTH_REQUIRED.
    #[must_use]
    pub fn auth(mut self) -> Self {
        self.0.auth = true;
        self
    }
}

impl From<pb::Question> for Question {
    fn from(question: pb::Question) -> Self {
        Self(question)
    }
}

/// What a question was answered with.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a>(pub(super) &'a pb::Message);

impl Answer<'_> {
    /// Its texts, one per line.
    pub fn text(&self) -> String {
        let texts = self.0.parts.iter().filter_map(|part| match &part.content {
            Some(Content::Text(text)) => Some(text.as_str()),
            _ => None,
        });
        texts.collect::<Vec<_>>().join("\n")
    }

    /// Its first `data` part; where the question has a schema, it fits that.
    pub fn data(&self) -> Option<serde_json::Value> {
        self.0.parts.iter().find_map(|part| match &part.content {
            Some(Content::Data(value)) => Some(json::from_value(value)),
            _ => None,
        })
    }

    /// All of it.
    pub fn parts(&self) -> &[pb::Part] {
        &self.0.parts
    }

    /// SPIFFE id of who gave it, as the home knows it.
    pub fn by(&self) -> &str {
        &self.0.by
    }
}
