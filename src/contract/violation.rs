//! Where a value breaks its schema, told so that a model can repair its call.

use std::fmt::Write;

use prost_types::{Struct, Value as ProstValue, value::Kind};
use serde_json::Value;

use crate::domain::{Fault, Reason};

use super::compiled::Side;

/// Rule of a value that is too large or too deep to be checked.
pub const RULE_COST: &str = "size";
/// Rule of a part that is to be JSON and is not.
pub const RULE_JSON: &str = "json";
/// Rule of a payload without any JSON, where the skill takes only that.
pub const RULE_PART: &str = "part";

/// Rule of a value that does not fit, and is too large to say where.
pub const RULE_SCHEMA: &str = "schema";

/// Most bytes of the expected schema. It goes into headers, beside its sentence, and clients take
/// some 8 KiB of those.
const EXPECTED_MAX: usize = 512;
/// Most bytes of a pointer.
const POINTER_MAX: usize = 256;
/// Most bytes of a sentence about one breach.
const TEXT_MAX: usize = 256;
/// Most bytes of a rule's name.
const RULE_MAX: usize = 64;

/// One breach of a schema.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Breach {
    pub(super) pointer: String,
    pub(super) rule: String,
    pub(super) text: String,
    pub(super) expected: String,
}

impl Breach {
    /// `expected`: the sub-schema, and its rule that is broken.
    pub(super) fn new(
        pointer: &str,
        rule: &str,
        text: String,
        expected: Option<(&Value, Option<&Value>)>,
    ) -> Self {
        let expected = expected.map(|(whole, part)| {
            let whole = whole.to_string();
            match part {
                Some(part) if whole.len() > EXPECTED_MAX => {
                    format!("{{{}:{part}}}", Value::from(rule))
                }
                Some(_) | None => whole,
            }
        });
        Self {
            pointer: cut(pointer.to_owned(), POINTER_MAX),
            rule: cut(rule.to_owned(), RULE_MAX),
            text: cut(text, TEXT_MAX),
            expected: cut(expected.unwrap_or_default(), EXPECTED_MAX),
        }
    }
}

/// What of a payload breaks a skill's contract: where, which rule, and what was expected there.
/// Holds nothing of the payload but names and places. At most some 2 KiB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    side: Side,
    /// Place among the parts, and which content; `None`: no single one.
    part: Option<(usize, &'static str)>,
    first: Breach,
    /// JSON pointers and rules of the others.
    more: Vec<(String, String)>,
}

impl Violation {
    pub(super) fn new(
        side: Side,
        part: Option<(usize, &'static str)>,
        breaches: Vec<Breach>,
    ) -> Option<Self> {
        let mut breaches = breaches.into_iter();
        let first = breaches.next()?;
        Some(Self {
            side,
            part,
            first,
            more: breaches.map(|more| (more.pointer, more.rule)).collect(),
        })
    }

    /// JSON pointer to what breaks the rule, within the part; empty: the whole of it.
    pub fn pointer(&self) -> &str {
        &self.first.pointer
    }

    /// The keyword of the schema that is broken, or [`RULE_JSON`], [`RULE_PART`], [`RULE_COST`],
    /// [`RULE_SCHEMA`].
    pub fn rule(&self) -> &str {
        &self.first.rule
    }

    /// The sub-schema that was expected there, as JSON; cut where it is long.
    pub fn expected(&self) -> &str {
        &self.first.expected
    }

    /// INPUT_INVALID or OUTPUT_INVALID.
    pub fn reason(&self) -> Reason {
        match self.side {
            Side::Input | Side::Answer => Reason::InputInvalid,
            Side::Output => Reason::OutputInvalid,
        }
    }

    /// What happened and what to do, for people and models. `whose`: the skill, or the question's id.
    pub fn sentence(&self, whose: &str) -> String {
        let Self { side, first, .. } = self;
        let kind = match side {
            Side::Input | Side::Output => "",
            Side::Answer => "question ",
        };
        let mut text = format!(
            "the {} does not fit the schema of {kind}{whose}: ",
            side.label()
        );
        let place = match first.pointer.as_str() {
            "" => String::new(),
            pointer => format!("at {pointer}, "),
        };
        // A String takes whatever it is given.
        let written = write!(text, "{place}{} (rule {:?}", first.text, first.rule);
        debug_assert!(written.is_ok());
        if !first.expected.is_empty() {
            text.push_str(", expected ");
            text.push_str(&first.expected);
        }
        text.push(')');
        if !self.more.is_empty() {
            text.push_str("; also ");
            text.push_str(&self.others());
        }
        text.push_str(match side {
            Side::Input => "; correct the input and submit it again",
            Side::Answer => "; correct the answer and send it again",
            Side::Output => "; the agent has to send a result that fits, or publish another version of the skill",
        });
        text
    }

    /// As a refusal, with its facts for programs: `skill` or `question_id`, `pointer`, `rule`,
    /// `expected`, `more`.
    pub fn fault(&self, whose: &str) -> Fault {
        let path = match self.side {
            Side::Input => "spec.input",
            Side::Output => "result.parts",
            Side::Answer => "parts",
        };
        let field = match self.part {
            Some((place, content)) => format!("{path}[{place}].{content}"),
            None => path.to_owned(),
        };
        let mut fault = Fault::new(self.reason(), self.sentence(whose));
        fault.field = Some(field);
        for (name, value) in self.facts(whose) {
            fault = fault.with(name, value);
        }
        fault
    }

    /// The same facts as the details of a failure.
    pub fn details(&self, skill: &str) -> Struct {
        let facts = self.facts(skill).into_iter();
        let text = |value| ProstValue {
            kind: Some(Kind::StringValue(value)),
        };
        Struct {
            fields: facts
                .map(|(name, value)| (name.to_owned(), text(value)))
                .collect(),
        }
    }

    fn facts(&self, whose: &str) -> Vec<(&'static str, String)> {
        let named = match self.side {
            Side::Input | Side::Output => "skill",
            Side::Answer => "question_id",
        };
        let mut facts = vec![
            (named, whose.to_owned()),
            ("pointer", self.first.pointer.clone()),
            ("rule", self.first.rule.clone()),
            ("expected", self.first.expected.clone()),
        ];
        if !self.more.is_empty() {
            facts.push(("more", self.others()));
        }
        facts
    }

    fn others(&self) -> String {
        let one = |(pointer, rule): &(String, String)| format!("{pointer:?} ({rule})");
        let all: Vec<String> = self.more.iter().map(one).collect();
        all.join(", ")
    }
}

/// At most so many bytes of it; where something is missing, it ends in an ellipsis.
fn cut(mut text: String, most: usize) -> String {
    if text.len() > most {
        let mut end = most - "…".len();
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
    text
}
