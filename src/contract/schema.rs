//! One JSON Schema: compiled within bounds, and applied within bounds.

use std::fmt;

use jsonschema::{Draft, PatternOptions, ValidationError, Validator};
use serde_json::Value;

use super::cost::{COST_MAX, Cost, DEPTH_MAX};
use super::graph::Graph;
use super::violation::{Breach, RULE_COST, RULE_SCHEMA};

/// Largest schema, in bytes.
pub const SCHEMA_MAX: usize = 16 * 1024;
/// Deepest schema: 16 nested objects cost two levels each (`properties` and the name).
pub const SCHEMA_DEPTH_MAX: usize = 32;
/// Largest regular expression when compiled, and the largest cache of its states, in bytes.
const PATTERN_MAX: usize = 64 * 1024;
/// Breaches of one value that are told, the first one whole.
const BREACHES_MAX: usize = 4;
/// Steps of a check up to which all breaches are looked for, each some microseconds where branches
/// failed; beyond it only the first one is, and none where there may be branches.
const TOLD_MAX: u64 = COST_MAX / 100;

/// What is wrong with a schema.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{text}", at(.pointer))]
pub struct SchemaError {
    /// JSON pointer to the place in the schema; empty: all of it.
    pub pointer: String,
    /// What to do about it.
    pub text: String,
}

impl SchemaError {
    pub(super) fn new(pointer: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            pointer: pointer.into(),
            text: text.into(),
        }
    }
}

fn at(pointer: &str) -> String {
    if pointer.is_empty() {
        String::new()
    } else {
        format!("at {pointer:.256}: ")
    }
}

/// A schema that can be applied.
pub struct Schema {
    source: Value,
    validator: Validator,
    cost: Cost,
    /// Whether a breach may be one of several branches, and of theirs.
    branches: bool,
}

impl Schema {
    /// Reads and compiles a schema; `None` for an empty one, which takes anything.
    ///
    /// # Errors
    /// When it is no JSON Schema of a dialect that is understood (2020-12 where it names none), is
    /// larger than [`SCHEMA_MAX`] or deeper than [`SCHEMA_DEPTH_MAX`], refers to anything outside
    /// itself, has a regular expression that needs backtracking, or may cost too much.
    pub fn compile(text: &str) -> Result<Option<Self>, SchemaError> {
        let Some(source) = read(text)? else {
            return Ok(None);
        };
        let graph = Graph::of(&source)?;
        let cost = Cost::of(&graph).ok_or_else(|| {
            let text = "applies its rules too many times to one value: say each of them once";
            SchemaError::new("", text)
        })?;
        let patterns = PatternOptions::regex()
            .size_limit(PATTERN_MAX)
            .dfa_size_limit(PATTERN_MAX);
        let validator = jsonschema::options()
            .with_draft(draft(&source))
            .with_pattern_options(patterns)
            .should_validate_formats(false)
            .offline()
            .build(&source)
            .map_err(|error| refused(&error))?;
        Ok(Some(Self {
            source,
            validator,
            cost,
            branches: graph.branches,
        }))
    }

    /// The schema as it was written.
    pub(super) fn source(&self) -> &Value {
        &self.source
    }

    /// What of `value` breaks the schema; none: it fits.
    pub(super) fn breaches(&self, value: &Value) -> Vec<Breach> {
        let steps = self.cost.steps(value);
        let Some(steps) = steps.filter(|steps| *steps <= COST_MAX) else {
            let text = if steps.is_none() {
                format!("nests deeper than {DEPTH_MAX} levels")
            } else {
                "is too large to be checked by this schema: send less of it".to_owned()
            };
            return vec![Breach {
                rule: RULE_COST.to_owned(),
                text,
                ..Breach::default()
            }];
        };
        if self.validator.is_valid(value) {
            return Vec::new();
        }
        if steps > TOLD_MAX && self.branches {
            let text = "does not fit, and is too large to say where".to_owned();
            return vec![Breach::new(
                "",
                RULE_SCHEMA,
                text,
                Some((&self.source, None)),
            )];
        }
        if steps > TOLD_MAX {
            let first = self.validator.validate(value).err();
            return first.iter().map(|error| self.breach(error)).collect();
        }
        let errors = self.validator.iter_errors(value).take(BREACHES_MAX);
        errors.map(|error| self.breach(&error)).collect()
    }

    fn breach(&self, error: &ValidationError<'_>) -> Breach {
        let place = error.schema_path().as_str();
        let (parent, _) = place.rsplit_once('/').unwrap_or_default();
        let whole = self.source.pointer(parent);
        let rule = error.kind().keyword();
        Breach::new(
            error.instance_path().as_str(),
            rule,
            error.masked_with("the value").to_string(),
            whole.map(|whole| (whole, self.source.pointer(place))),
        )
    }
}

impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Schema").finish_non_exhaustive()
    }
}

/// A schema as JSON, within its bounds.
pub(super) fn read(schema: &str) -> Result<Option<Value>, SchemaError> {
    let refuse = |text: String| Err(SchemaError::new("", text));
    if schema.is_empty() {
        return Ok(None);
    }
    if schema.len() > SCHEMA_MAX {
        return refuse("a schema is at most 16 KiB".to_owned());
    }
    let read: Value = match serde_json::from_str(schema) {
        Ok(read) => read,
        Err(wrong) => return refuse(format!("not valid JSON: {wrong}")),
    };
    if !read.is_object() && !read.is_boolean() {
        return refuse("a JSON Schema is an object or a boolean".to_owned());
    }
    if depth(&read) > SCHEMA_DEPTH_MAX {
        return refuse("a schema is at most 32 levels deep".to_owned());
    }
    Ok(Some(read))
}

fn depth(value: &Value) -> usize {
    // Recursion ends: serde_json reads at most 128 levels.
    let below = match value {
        Value::Array(items) => items.iter().map(depth).max(),
        Value::Object(fields) => fields.values().map(depth).max(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => return 0,
    };
    1 + below.unwrap_or(0)
}

/// The dialect that it names; the graph has seen that it is one of these.
fn draft(schema: &Value) -> Draft {
    let named = schema.get("$schema").and_then(Value::as_str);
    match named {
        Some(name) if name.contains("draft-07") => Draft::Draft7,
        Some(name) if name.contains("2019-09") => Draft::Draft201909,
        Some(_) | None => Draft::Draft202012,
    }
}

/// Why the schema does not compile. What it says of the schema it says of the card's author's own
/// words, so they may be shown.
fn refused(error: &ValidationError<'_>) -> SchemaError {
    let mut text: String = error.to_string().chars().take(512).collect();
    if error.kind().keyword() == "pattern" || text.contains("regex") {
        text.push_str(
            "; lookarounds and back-references are not taken, nor what is larger than 64 KiB when compiled",
        );
    }
    SchemaError::new(error.instance_path().as_str(), text)
}
