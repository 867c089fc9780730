//! Asking a process on this machine whether it is ready, over its admin listener.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// How long an answer may take, and how long it may be.
const PATIENCE: Duration = Duration::from_secs(2);
const ANSWER_MAX: u64 = 16 << 10;

/// Whether the process behind an admin address is ready.
///
/// # Errors
/// With what it says is missing, or why it does not answer.
pub(super) async fn ready(admin: &str) -> Result<(), String> {
    match timeout(PATIENCE, ask(admin)).await {
        Ok(Ok(answer)) => read(&answer),
        Ok(Err(error)) => Err(format!("does not answer yet ({error})")),
        Err(_) => Err("does not answer within 2 s".to_owned()),
    }
}

async fn ask(admin: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(admin).await?;
    let request = format!("GET /readyz HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn read(answer: &str) -> Result<(), String> {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    if head.split(' ').nth(1) == Some("200") {
        return Ok(());
    }
    let json: Option<serde_json::Value> = serde_json::from_str(body.trim()).ok();
    let reasons: Vec<String> = json
        .as_ref()
        .and_then(|json| json["reasons"].as_array())
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
        assert_eq!(read("HTTP/1.1 200 OK\r\n\r\n{}"), Ok(()));
        let busy =
            "HTTP/1.1 503 x\r\na: b\r\n\r\n{\"ready\":false,\"reasons\":[\"no agent\",\"y\"]}";
        assert_eq!(read(busy), Err("no agent; y".to_owned()));
        assert_eq!(
            read("HTTP/1.1 503 x\r\n\r\nnonsense"),
            Err("is not ready".to_owned())
        );
    }
}
