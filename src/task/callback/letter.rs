//! What a receiver is told: one JSON object, the same each time that a change is told.

use serde_json::{Value, json};

use crate::pb;
use crate::task::spec::DEPTH_MAX;
use crate::wire;

/// Most bytes of the object, as JSON: it has to fit into a task's input with room to spare.
const LETTER_MAX: usize = 512 << 10;

/// What is told of one event.
#[derive(Clone, Debug, PartialEq)]
pub struct Letter {
    /// The object.
    pub json: Value,
    /// The same as text.
    pub text: String,
    /// By which a receiver tells a repetition, and the engine the callback's task.
    pub key: String,
}

/// What is told of `event`.
pub fn letter(event: &pb::TaskEvent) -> Letter {
    let key = format!("{}/{}", event.task_id, event.seq);
    let whole = told(event, event.kind.is_none());
    let text = whole.to_string();
    if text.len() <= LETTER_MAX && !deeper_than(&whole, DEPTH_MAX) {
        return Letter {
            json: whole,
            text,
            key,
        };
    }
    let bare = pb::TaskEvent {
        kind: None,
        ..event.clone()
    };
    let json = told(&bare, true);
    let text = json.to_string();
    Letter { json, text, key }
}

fn told(event: &pb::TaskEvent, truncated: bool) -> Value {
    let as_told = wire::json::message("TaskEvent", event);
    let mut object = json!({
        "task_id": event.task_id,
        "seq": event.seq,
        "attempt": event.attempt,
        "state": event.state().as_str_name(),
        "time": as_told["at"],
    });
    object["event"] = as_told;
    if truncated {
        object["truncated"] = true.into();
    }
    object
}

/// Whether a value nests deeper than `most`; a plain value is one deep.
fn deeper_than(value: &Value, most: usize) -> bool {
    if most == 0 {
        return true;
    }
    match value {
        Value::Array(items) => items.iter().any(|item| deeper_than(item, most - 1)),
        Value::Object(fields) => fields.values().any(|item| deeper_than(item, most - 1)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::task_event::Kind;

    fn completed(content: pb::part::Content) -> pb::TaskEvent {
        let result = pb::TaskResult {
            parts: vec![pb::Part {
                content: Some(content),
                ..pb::Part::default()
            }],
            ..pb::TaskResult::default()
        };
        pb::TaskEvent {
            task_id: "i1.x".into(),
            seq: 7,
            attempt: 2,
            at: Some(prost_types::Timestamp::default()),
            state: pb::TaskState::Completed.into(),
            kind: Some(Kind::Result(result)),
        }
    }

    #[test]
    fn it_has_the_event_and_its_names_and_is_the_same_again() {
        let event = completed(pb::part::Content::Text("done".into()));
        let first = letter(&event);
        let expected = json!({
            "task_id": "i1.x", "seq": 7, "attempt": 2, "state": "TASK_STATE_COMPLETED",
            "time": "1970-01-01T00:00:00Z",
            "event": {
                "task_id": "i1.x", "seq": "7", "attempt": 2, "at": "1970-01-01T00:00:00Z",
                "state": "TASK_STATE_COMPLETED", "result": {"parts": [{"text": "done"}]},
            },
        });
        assert_eq!(first.json, expected);
        assert_eq!(first.key, "i1.x/7");
        assert_eq!(letter(&event), first);
    }

    #[test]
    fn what_is_too_large_or_too_deep_is_left_out_and_said_to_be() {
        let mut nested = json!(1);
        for _ in 0..DEPTH_MAX - 3 {
            nested = json!([nested]);
        }
        let nested = pb::part::Content::Data(wire::json::to_value(nested));
        let large = pb::part::Content::Text("x".repeat(LETTER_MAX));
        for content in [large, nested] {
            let told = letter(&completed(content));
            assert_eq!(told.json["truncated"], true);
            assert_eq!(told.json["state"], "TASK_STATE_COMPLETED");
            assert!(told.json["event"].get("result").is_none());
            assert!(told.text.len() < 1024);
        }
    }
}
