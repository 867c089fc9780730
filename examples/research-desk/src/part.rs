//! Parts as agents use them: text, and JSON by way of `google.protobuf.Value`.

use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};
use serde_json::{Map, Number};

use crate::pb::part::Content;
use crate::pb::{Message, Part};

/// The largest whole number that a protobuf number (an IEEE 754 double) holds exactly, and -1.
const EXACT: f64 = 9_007_199_254_740_991.0;

/// A part of plain text or Markdown, as its media type says.
#[must_use]
pub fn text(text: String, media_type: &str) -> Part {
    Part {
        content: Some(Content::Text(text)),
        media_type: media_type.to_owned(),
        ..Part::default()
    }
}

/// A part that is a JSON value.
#[must_use]
pub fn data(json: &serde_json::Value) -> Part {
    Part {
        content: Some(Content::Data(to_value(json))),
        media_type: "application/json".to_owned(),
        ..Part::default()
    }
}

/// The first JSON value among `parts`.
pub fn first_data<'a>(parts: impl IntoIterator<Item = &'a Part>) -> Option<serde_json::Value> {
    parts.into_iter().find_map(|part| match &part.content {
        Some(Content::Data(value)) => Some(to_json(value)),
        _ => None,
    })
}

/// All text among `parts`, joined by line ends.
pub fn all_text<'a>(parts: impl IntoIterator<Item = &'a Part>) -> String {
    let texts = parts.into_iter().filter_map(|part| match &part.content {
        Some(Content::Text(text)) => Some(text.as_str()),
        _ => None,
    });
    texts.collect::<Vec<_>>().join("\n")
}

/// The parts of all messages, in their order.
pub fn of(messages: &[Message]) -> impl Iterator<Item = &Part> + Clone {
    messages.iter().flat_map(|message| &message.parts)
}

fn to_value(json: &serde_json::Value) -> Value {
    let kind = match json {
        serde_json::Value::Null => Kind::NullValue(0),
        serde_json::Value::Bool(value) => Kind::BoolValue(*value),
        serde_json::Value::Number(value) => Kind::NumberValue(value.as_f64().unwrap_or(f64::NAN)),
        serde_json::Value::String(value) => Kind::StringValue(value.clone()),
        serde_json::Value::Array(values) => Kind::ListValue(ListValue {
            values: values.iter().map(to_value).collect(),
        }),
        serde_json::Value::Object(fields) => Kind::StructValue(Struct {
            fields: fields
                .iter()
                .map(|(name, value)| (name.clone(), to_value(value)))
                .collect(),
        }),
    };
    Value { kind: Some(kind) }
}

fn to_json(value: &Value) -> serde_json::Value {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => serde_json::Value::Null,
        Some(Kind::BoolValue(value)) => (*value).into(),
        Some(Kind::NumberValue(value)) => number(*value),
        Some(Kind::StringValue(value)) => value.clone().into(),
        Some(Kind::ListValue(list)) => list.values.iter().map(to_json).collect(),
        Some(Kind::StructValue(object)) => {
            let fields = object.fields.iter();
            fields
                .map(|(name, value)| (name.clone(), to_json(value)))
                .collect::<Map<_, _>>()
                .into()
        }
    }
}

/// Whole numbers become JSON integers, so that a line number reads `7` and not `7.0`.
fn number(value: f64) -> serde_json::Value {
    if value.fract() == 0.0 && value.abs() <= EXACT {
        #[expect(clippy::cast_possible_truncation, reason = "whole and within 53 bits")]
        let whole = value as i64;
        return whole.into();
    }
    Number::from_f64(value).map_or(serde_json::Value::Null, Into::into)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn json_survives_the_way_through_a_part() {
        let table = [
            json!(null),
            json!(true),
            json!(7),
            json!(-0.25),
            json!("text"),
            json!([1, "two", [3.5], {}]),
            json!({"query": "crash", "limit": 5, "nested": {"list": [null, false]}}),
            json!(9_007_199_254_740_991_i64),
        ];
        for value in table {
            assert_eq!(first_data([&data(&value)]), Some(value));
        }
    }

    #[test]
    fn text_and_data_are_told_apart() {
        let parts = [
            text("one".into(), "text/plain"),
            data(&json!({"n": 2})),
            text("three".into(), "text/plain"),
        ];
        assert_eq!(all_text(&parts), "one\nthree");
        assert_eq!(first_data(&parts), Some(json!({"n": 2})));
        assert_eq!(first_data(&parts[..1]), None);
    }
}
