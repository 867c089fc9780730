//! Asking the admin listener of a process on this machine.

use std::time::Duration;

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// How long an answer may take, and how long it may be.
const PATIENCE: Duration = Duration::from_secs(2);
const ANSWER_MAX: u64 = 4 << 20;

/// What a process says.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The HTTP status; 0: that was no HTTP.
    pub status: u16,
    /// The body; null where it is no JSON.
    pub body: Value,
}

/// Asks `path` of the process behind the admin address `host:port`; with `put`, that is its body.
///
/// # Errors
/// When nobody listens there, or nobody answers within 2 s.
pub async fn ask(admin: &str, path: &str, put: Option<&str>) -> std::io::Result<Answer> {
    let asked = async {
        let mut stream = TcpStream::connect(admin).await?;
        let (method, body) = put.map_or(("GET", ""), |body| ("PUT", body));
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(ANSWER_MAX).read_to_end(&mut answer).await?;
        Ok(read(&String::from_utf8_lossy(&answer)))
    };
    let late = || std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer within 2 s");
    timeout(PATIENCE, asked).await.map_err(|_| late())?
}

fn read(answer: &str) -> Answer {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Answer {
        status: status.unwrap_or(0),
        body: serde_json::from_str(body.trim()).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn answers_are_read() {
        let answer = |status, body| Answer { status, body };
        for (text, read_as) in [
            ("HTTP/1.1 200 OK\r\n\r\n{}", answer(200, json!({}))),
            (
                "HTTP/1.1 503 x\r\na: b\r\n\r\n{\"ready\":false}\n",
                answer(503, json!({"ready": false})),
            ),
            ("HTTP/1.1 404 x\r\n\r\nnonsense", answer(404, Value::Null)),
            ("SSH-2.0-OpenSSH", answer(0, Value::Null)),
        ] {
            assert_eq!(read(text), read_as, "{text}");
        }
    }
}
