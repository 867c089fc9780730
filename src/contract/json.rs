//! The JSON among a task's parts.

use prost_types::value::Kind;
use serde_json::{Map, Number, Value};

use crate::pb;
use crate::pb::part::Content;

/// Largest whole number that a double holds without a gap.
const WHOLE_MAX: f64 = 9_007_199_254_740_992.0;

/// The JSON of a part, if it is one; an error is what is wrong with it.
pub(super) fn of_part(part: &pb::Part) -> Option<Result<Value, String>> {
    match &part.content {
        Some(Content::Data(value)) => {
            let read = value_of(value);
            Some(read.ok_or_else(|| "has a number that JSON does not have".to_owned()))
        }
        Some(Content::Text(text)) if is_json(&part.media_type) => {
            Some(serde_json::from_str(text).map_err(|wrong| format!("is not JSON: {wrong}")))
        }
        Some(Content::Text(_) | Content::Raw(_) | Content::Url(_) | Content::Blob(_)) | None => {
            None
        }
    }
}

/// Whether a media type is JSON's, whatever its parameters.
pub(super) fn is_json(media_type: &str) -> bool {
    let essence = media_type.split(';').next().unwrap_or_default().trim();
    let suffix = essence.len().checked_sub("+json".len());
    essence.eq_ignore_ascii_case("application/json")
        || suffix
            .and_then(|at| essence.get(at..))
            .is_some_and(|end| end.eq_ignore_ascii_case("+json"))
}

/// `None`: it has an infinite number, or none at all. Recursion ends where decoding did.
fn value_of(value: &prost_types::Value) -> Option<Value> {
    Some(match &value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(yes)) => Value::Bool(*yes),
        Some(Kind::NumberValue(number)) => Value::Number(number_of(*number)?),
        Some(Kind::StringValue(text)) => Value::String(text.clone()),
        Some(Kind::ListValue(list)) => {
            let items: Option<Vec<Value>> = list.values.iter().map(value_of).collect();
            Value::Array(items?)
        }
        Some(Kind::StructValue(object)) => {
            let members = object.fields.iter();
            let members = members.map(|(name, member)| Some((name.clone(), value_of(member)?)));
            Value::Object(members.collect::<Option<Map<String, Value>>>()?)
        }
    })
}

/// Whole numbers as such: a reader of an error expects 3, not 3.0.
fn number_of(number: f64) -> Option<Number> {
    if number.fract() == 0.0 && number.abs() <= WHOLE_MAX {
        #[allow(
            clippy::cast_possible_truncation,
            reason = "a whole number below 2^53 fits"
        )]
        return Some(Number::from(number as i64));
    }
    Number::from_f64(number)
}
