//! Messages as JSON, in protobuf's canonical form, and JSON values as message parts.

use std::sync::LazyLock;

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use prost_types::{ListValue, Struct, Value, value::Kind};

use crate::pb;

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(pb::DESCRIPTORS).expect("the build embeds a valid descriptor set")
});

/// A message of `attache.v1` as canonical JSON with proto field names; `name` as in `Task`.
///
/// # Panics
/// When `name` is not a message of the contract: a fault in our own source.
pub fn message<M: Message>(name: &str, message: &M) -> serde_json::Value {
    let descriptor = POOL
        .get_message_by_name(&format!("attache.v1.{name}"))
        .expect("only messages of the contract are shown");
    let dynamic = DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice())
        .expect("a message decodes as itself");
    let options = SerializeOptions::new().use_proto_field_name(true);
    dynamic
        .serialize_with_options(serde_json::value::Serializer, &options)
        .map_or_else(
            |error| serde_json::Value::String(format!("not JSON: {error}")),
            whole,
        )
}

/// Doubles that are whole numbers without a fraction, everywhere in it: `Value` has only doubles,
/// and a line number should not be 12.0.
fn whole(json: serde_json::Value) -> serde_json::Value {
    match json {
        serde_json::Value::Number(number) if number.is_f64() => {
            from_number(number.as_f64().unwrap_or(f64::NAN))
        }
        serde_json::Value::Array(items) => items.into_iter().map(whole).collect(),
        serde_json::Value::Object(fields) => fields
            .into_iter()
            .map(|(key, value)| (key, whole(value)))
            .collect(),
        other @ (serde_json::Value::Null
        | serde_json::Value::Bool(_)
        | serde_json::Value::Number(_)
        | serde_json::Value::String(_)) => other,
    }
}

/// A JSON value as protobuf's `Value`. Numbers become doubles, as the format has no others.
pub fn to_value(json: serde_json::Value) -> Value {
    let kind = match json {
        serde_json::Value::Null => Kind::NullValue(0),
        serde_json::Value::Bool(yes) => Kind::BoolValue(yes),
        serde_json::Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or(f64::NAN)),
        serde_json::Value::String(text) => Kind::StringValue(text),
        serde_json::Value::Array(items) => Kind::ListValue(ListValue {
            values: items.into_iter().map(to_value).collect(),
        }),
        serde_json::Value::Object(fields) => Kind::StructValue(Struct {
            fields: fields
                .into_iter()
                .map(|(key, value)| (key, to_value(value)))
                .collect(),
        }),
    };
    Value { kind: Some(kind) }
}

/// Protobuf's `Value` as JSON. Whole numbers within 2^53 are written without a fraction.
pub fn from_value(value: &Value) -> serde_json::Value {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => serde_json::Value::Null,
        Some(Kind::BoolValue(yes)) => (*yes).into(),
        Some(Kind::NumberValue(number)) => from_number(*number),
        Some(Kind::StringValue(text)) => text.clone().into(),
        Some(Kind::ListValue(list)) => list.values.iter().map(from_value).collect(),
        Some(Kind::StructValue(object)) => from_struct(object),
    }
}

/// Protobuf's `Struct` as a JSON object.
pub fn from_struct(object: &Struct) -> serde_json::Value {
    object
        .fields
        .iter()
        .map(|(key, value)| (key.clone(), from_value(value)))
        .collect()
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "checked to be whole and within 2^53"
)]
fn from_number(number: f64) -> serde_json::Value {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if number.fract() == 0.0 && number.abs() < EXACT {
        return (number as i64).into();
    }
    serde_json::Number::from_f64(number).map_or(serde_json::Value::Null, Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_canonical_json() {
        let task = pb::Task {
            id: "i1.x".into(),
            state: pb::TaskState::Working.into(),
            last_seq: 7,
            created_at: Some(prost_types::Timestamp {
                seconds: 0,
                nanos: 0,
            }),
            ..Default::default()
        };
        let json = message("Task", &task);
        assert_eq!(json["state"], "TASK_STATE_WORKING");
        assert_eq!(json["last_seq"], "7");
        assert_eq!(json["created_at"], "1970-01-01T00:00:00Z");
    }

    #[test]
    fn whole_numbers_in_a_message_have_no_fraction() {
        let value = to_value(serde_json::json!({"line": [12, 0.5]}));
        let part = pb::Part {
            content: Some(pb::part::Content::Data(value)),
            ..Default::default()
        };
        let text = message("Part", &part).to_string();
        assert_eq!(text, r#"{"data":{"line":[12,0.5]}}"#);
    }

    #[test]
    fn json_values_come_back_the_same() {
        let json = serde_json::json!({"a": [1, 2.5, null, true, "x"], "b": {}, "c": -9});
        assert_eq!(from_value(&to_value(json.clone())), json);
    }
}
