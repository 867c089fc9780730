//! Asking a process on this machine whether it is ready, over its admin listener.

use crate::admin::client::{self, Answer};

/// Whether the process behind an admin address is ready.
///
/// # Errors
/// With what it says is missing, or why it does not answer.
pub(super) async fn ready(admin: &str) -> Result<(), String> {
    let answer = client::ask(admin, "/readyz", None).await;
    read(&answer.map_err(|error| format!("does not answer yet ({error})"))?)
}

fn read(answer: &Answer) -> Result<(), String> {
    if answer.status == 200 {
        return Ok(());
    }
    let reasons: Vec<String> = answer.body["reasons"]
        .as_array()
        .map(|all| {
            all.iter()
                .filter_map(|one| one.as_str().map(str::to_owned))
                .collect()
        })
        .unwrap_or_default();
    Err(if reasons.is_empty() {
        "is not ready".to_owned()
    } else {
        reasons.join("; ")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read() {
        let read = |status, body| read(&Answer { status, body });
        assert_eq!(read(200, serde_json::json!({})), Ok(()));
        let busy = serde_json::json!({"ready": false, "reasons": ["no agent", "y"]});
        assert_eq!(read(503, busy), Err("no agent; y".to_owned()));
        let nonsense = serde_json::Value::Null;
        assert_eq!(read(503, nonsense), Err("is not ready".to_owned()));
    }
}
