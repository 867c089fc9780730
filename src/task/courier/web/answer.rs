//! What an answer of a receiver means. Pure.

use std::time::{Duration, SystemTime};

use http::{StatusCode, header::RETRY_AFTER};

use crate::task::callback::Outcome;

/// What the head of an answer says.
pub(super) fn outcome(head: &http::response::Parts, now: SystemTime) -> Outcome {
    let status = head.status;
    let why = || format!("it answered {}", status.as_u16());
    if status.is_success() {
        return Outcome::Delivered;
    }
    let again = matches!(
        status,
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS
    );
    if again || status.is_server_error() {
        let asked = head.headers.get(RETRY_AFTER);
        let asked = asked.and_then(|value| value.to_str().ok());
        return Outcome::Later {
            why: why(),
            wait: asked.and_then(|text| retry_after(text, now)),
        };
    }
    if status.is_redirection() {
        return Outcome::Refused(format!(
            "{}: redirects are not followed, name the final URL",
            why()
        ));
    }
    Outcome::Refused(why())
}

/// Seconds, or a date.
fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(text.trim()).ok()?;
    let at = SystemTime::from(date.timestamp());
    Some(at.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(status: u16, retry: Option<&str>) -> Outcome {
        let mut answer = http::Response::builder().status(status);
        if let Some(retry) = retry {
            answer = answer.header(RETRY_AFTER, retry);
        }
        let (head, ()) = answer.body(()).unwrap().into_parts();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777 - 7);
        outcome(&head, now)
    }

    #[test]
    fn an_answer_is_taken_tried_again_or_given_up() {
        for status in [200, 201, 202, 204] {
            assert_eq!(of(status, None), Outcome::Delivered);
        }
        for status in [408, 425, 429, 500, 502, 503, 504] {
            assert!(
                matches!(of(status, None), Outcome::Later { wait: None, .. }),
                "{status}"
            );
        }
        for status in [301, 302, 307, 308, 304, 400, 401, 403, 404, 410, 413, 422] {
            assert!(matches!(of(status, None), Outcome::Refused(_)), "{status}");
        }
    }

    #[test]
    fn a_receiver_may_say_when_to_come_back() {
        for (text, expected) in [
            ("120", Some(120)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(7)),
            ("Sat, 05 Nov 1994 08:49:37 GMT", Some(0)),
            ("soon", None),
            ("-3", None),
        ] {
            let Outcome::Later { wait, .. } = of(503, Some(text)) else {
                panic!("{text}");
            };
            assert_eq!(wait, expected.map(Duration::from_secs), "{text}");
        }
    }
}
