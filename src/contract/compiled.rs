//! Both schemas of a skill, and how they are applied to what is sent and what comes back.

use serde_json::Value;

use crate::pb;
use crate::pb::part::Content;

use super::json;
use super::schema::{Schema, SchemaError};
use super::violation::{Breach, RULE_JSON, RULE_PART, Violation};

/// Which of both is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// What a task is given.
    Input,
    /// What it answers with.
    Output,
    /// What its agent's question is answered with.
    Answer,
}

impl Side {
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Output => "result",
            Self::Answer => "answer",
        }
    }

    /// The field that has the schema, of a card or a question.
    pub fn field(self) -> &'static str {
        match self {
            Self::Input => "input_schema",
            Self::Output => "output_schema",
            Self::Answer => "answer_schema",
        }
    }
}

/// What a skill promises, ready to be applied.
#[derive(Debug, Default)]
pub struct Contract {
    input: Option<Schema>,
    output: Option<Schema>,
    answer: Option<Schema>,
}

impl Contract {
    /// Compiles both schemas of a skill.
    ///
    /// # Errors
    /// Which of them is wrong, and how; see [`Schema::compile`].
    pub fn of(skill: &pb::Skill) -> Result<Self, (Side, SchemaError)> {
        let compile = |side, text: &str| Schema::compile(text).map_err(|wrong| (side, wrong));
        Ok(Self {
            input: compile(Side::Input, &skill.input_schema)?,
            output: compile(Side::Output, &skill.output_schema)?,
            answer: None,
        })
    }

    /// Compiles the schema of a question's answer.
    ///
    /// # Errors
    /// See [`Schema::compile`].
    pub fn of_question(question: &pb::Question) -> Result<Self, SchemaError> {
        Ok(Self {
            answer: Schema::compile(&question.answer_schema)?,
            ..Self::default()
        })
    }

    /// The schema of a result, as JSON; `None`: there is none.
    pub fn output_schema(&self) -> Option<String> {
        let schema = self.output.as_ref()?;
        Some(schema.source().to_string())
    }

    /// Compiles the schema of a result alone.
    ///
    /// # Errors
    /// See [`Schema::compile`].
    pub fn of_output(schema: &str) -> Result<Self, SchemaError> {
        Ok(Self {
            output: Schema::compile(schema)?,
            ..Self::default()
        })
    }

    /// Whether there is nothing to check.
    pub fn is_empty(&self) -> bool {
        self.input.is_none() && self.output.is_none() && self.answer.is_none()
    }

    /// Whether parts fit: each of them that is JSON fits the schema, and where `modes` has nothing but
    /// JSON, at least one of them is. Costs nothing where there is no schema.
    ///
    /// # Errors
    /// The first part that does not fit. Boxed: it is large and rare.
    pub fn check(
        &self,
        side: Side,
        parts: &[pb::Part],
        modes: &[String],
    ) -> Result<(), Box<Violation>> {
        let schema = match side {
            Side::Input => &self.input,
            Side::Output => &self.output,
            Side::Answer => &self.answer,
        };
        let Some(schema) = schema else {
            return Ok(());
        };
        let mut found = false;
        for (place, part) in parts.iter().enumerate() {
            let Some(read) = json::of_part(part) else {
                continue;
            };
            found = true;
            let breaches = match read {
                Ok(value) => schema.breaches(&value),
                Err(text) => vec![Breach::new("", RULE_JSON, text, None)],
            };
            let content = match &part.content {
                Some(Content::Text(_)) => "text",
                _ => "data",
            };
            if let Some(broken) = Violation::new(side, Some((place, content)), breaches) {
                return Err(Box::new(broken));
            }
        }
        let only_json = !modes.is_empty() && modes.iter().all(|mode| json::is_json(mode));
        if only_json && !found {
            let text = "there is no JSON in it: send one `data` part".to_owned();
            let expected: Option<(&Value, Option<&Value>)> = Some((schema.source(), None));
            let breach = Breach::new("", RULE_PART, text, expected);
            return Violation::new(side, None, vec![breach])
                .map_or(Ok(()), |broken| Err(Box::new(broken)));
        }
        Ok(())
    }
}
