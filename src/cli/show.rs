//! Tasks, events and agents in words. Pure: messages in, text out.

use crate::{
    cli::output::clean,
    pb::{self, TaskState, callback::Target, part::Content, task_event::Kind},
    wire::json,
};

/// A state in a word.
pub fn state(state: TaskState) -> &'static str {
    match state {
        TaskState::Unspecified => "unknown",
        TaskState::Submitted => "submitted",
        TaskState::Working => "working",
        TaskState::Completed => "completed",
        TaskState::Failed => "failed",
        TaskState::Canceled => "canceled",
        TaskState::InputRequired => "input required",
        TaskState::Rejected => "rejected",
        TaskState::AuthRequired => "auth required",
    }
}

/// A health in a word.
pub fn health(health: pb::Health) -> &'static str {
    match health {
        pb::Health::Unspecified => "unknown",
        pb::Health::Serving => "serving",
        pb::Health::NotServing => "not serving",
        pb::Health::Draining => "draining",
    }
}

/// What a person sees of an event.
#[derive(Clone, Debug, PartialEq)]
pub enum Shown {
    /// How far it is.
    Progress(Option<f64>, String),
    /// Something that stays.
    Line(String),
    /// Nothing.
    Nothing,
}

/// One event, for people.
pub fn event(event: &pb::TaskEvent) -> Shown {
    match &event.kind {
        Some(Kind::StateChanged(change)) => {
            let place = match change.executor_instance.as_str() {
                "" => String::new(),
                instance => format!(" on {instance}"),
            };
            let why = match change.reason.as_str() {
                "" => String::new(),
                reason => format!(": {reason}"),
            };
            Shown::Line(format!("{}{place}{why}", state(event.state())))
        }
        Some(Kind::Progress(progress)) => {
            let text = [progress.stage.as_str(), progress.message.as_str()];
            let text: Vec<&str> = text.into_iter().filter(|text| !text.is_empty()).collect();
            Shown::Progress(progress.fraction, text.join(": "))
        }
        Some(Kind::Message(message)) => Shown::Line(parts(&message.parts)),
        Some(Kind::Answer(answer)) => Shown::Line(format!("answered: {}", parts(&answer.parts))),
        Some(Kind::Artifact(chunk)) if chunk.last_chunk => {
            let name = if chunk.name.is_empty() {
                &chunk.artifact_id
            } else {
                &chunk.name
            };
            Shown::Line(format!("artifact {} is complete", clean(name)))
        }
        Some(Kind::Failure(failure)) => Shown::Line(self::failure(failure)),
        Some(Kind::CancelRequested(asked)) => {
            Shown::Line(format!("cancel asked by {}", clean(&asked.by)))
        }
        Some(Kind::Question(question)) => Shown::Line(format!("asks: {}", asked(question))),
        Some(Kind::Delegation(delegation)) => {
            let to = delegation.to.as_ref().map_or("", |to| to.agent.as_str());
            Shown::Line(format!("handed over to {}", clean(to)))
        }
        Some(Kind::Artifact(_) | Kind::Usage(_) | Kind::Result(_)) | None => Shown::Nothing,
    }
}

/// What is asked.
pub fn asked(question: &pb::Question) -> String {
    let message = question.message.as_ref();
    message.map_or(String::new(), |message| parts(&message.parts))
}

/// What is asked, as far as it fits into a cell of a table.
pub fn asked_briefly(question: &pb::Question) -> String {
    const MOST: usize = 40;
    let asked = asked(question);
    let line = asked.lines().next().unwrap_or_default();
    let cut: String = line.chars().take(MOST).collect();
    if cut.len() < asked.len() {
        format!("{cut}…")
    } else {
        cut
    }
}

/// Why it failed, with the reason for programs.
pub fn failure(failure: &pb::Failure) -> String {
    format!("{} ({})", clean(&failure.message), clean(&failure.reason))
}

/// How far whoever is to be called back has been told.
pub fn callback(task: &pb::Task) -> Option<String> {
    let progress = task.callback.as_ref()?;
    let to = task.options.as_ref()?.callback.as_ref()?.target.as_ref()?;
    let to = match to {
        Target::Agent(to) => format!("{}/{}", to.agent, to.skill),
        Target::Url(url) => url.clone(),
    };
    let mut said = vec![to];
    if progress.delivered_seq > 0 {
        said.push(format!("delivered up to event {}", progress.delivered_seq));
    }
    if progress.given_up_seq > 0 {
        let (seq, why) = (progress.given_up_seq, &progress.given_up);
        said.push(format!("event {seq} given up: {why}"));
    }
    if progress.waiting > 0 {
        let since = time(progress.waiting_since.as_ref());
        let tries = match progress.tries {
            0 => String::new(),
            tries => format!(", {tries} failed tries, the last: {}", progress.trouble),
        };
        said.push(format!(
            "{} to be told since {since}{tries}",
            progress.waiting
        ));
    } else if said.len() == 1 {
        said.push("nothing to tell yet".to_owned());
    }
    Some(said.join("; "))
}

/// A schema in one line.
pub fn schema(schema: &str) -> String {
    let read = serde_json::from_str::<serde_json::Value>(schema);
    clean(&read.map_or_else(|_| schema.to_owned(), |read| read.to_string()))
}

/// Parts as text: texts as they are, JSON indented, the rest described.
pub fn parts(parts: &[pb::Part]) -> String {
    let texts: Vec<String> = parts.iter().map(part).collect();
    texts.join("\n")
}

fn part(part: &pb::Part) -> String {
    match &part.content {
        Some(Content::Text(text)) => clean(text),
        Some(Content::Data(value)) => {
            let json = json::from_value(value);
            clean(&serde_json::to_string_pretty(&json).unwrap_or_default())
        }
        Some(Content::Url(url)) => clean(url),
        Some(Content::Raw(bytes)) => {
            format!("<{} bytes of {}>", bytes.len(), clean(&part.media_type))
        }
        Some(Content::Blob(blob)) => format!("<{} bytes stored at the home>", blob.size),
        None => String::new(),
    }
}

/// The result for people: its texts, or all of it where there is none.
pub fn result(result: &pb::TaskResult) -> String {
    let is_text = |part: &&pb::Part| matches!(part.content, Some(Content::Text(_)));
    let texts: Vec<pb::Part> = result.parts.iter().filter(is_text).cloned().collect();
    if texts.is_empty() {
        parts(&result.parts)
    } else {
        parts(&texts)
    }
}

/// A point in time as people in this time zone write it.
pub fn time(at: Option<&prost_types::Timestamp>) -> String {
    let Some(at) = at else { return String::new() };
    let Ok(stamp) = jiff::Timestamp::new(at.seconds, at.nanos) else {
        return String::new();
    };
    stamp
        .to_zoned(jiff::tz::TimeZone::system())
        .strftime("%Y-%m-%d %H:%M:%S")
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(kind: Kind) -> Shown {
        event(&pb::TaskEvent {
            state: TaskState::Working.into(),
            kind: Some(kind),
            ..Default::default()
        })
    }

    #[test]
    fn events_in_words() {
        let progress = pb::Progress {
            fraction: Some(0.5),
            stage: "reading".into(),
            message: "3 files".into(),
        };
        let shown = Shown::Progress(Some(0.5), "reading: 3 files".into());
        assert_eq!(of(Kind::Progress(progress)), shown);
        let change = pb::StateChanged {
            executor_instance: "i1".into(),
            ..Default::default()
        };
        assert_eq!(
            of(Kind::StateChanged(change)),
            Shown::Line("working on i1".into())
        );
        let failure = pb::Failure {
            reason: "AGENT_ERROR".into(),
            message: "no\x1b[0m".into(),
            ..Default::default()
        };
        assert_eq!(
            of(Kind::Failure(failure)),
            Shown::Line("no [0m (AGENT_ERROR)".into())
        );
    }

    #[test]
    fn a_callback_says_how_far_it_got_and_why_not_further() {
        let shown = |progress: pb::CallbackProgress| {
            let target = Target::Url("https://a.example/...".into());
            let options = pb::TaskOptions {
                callback: Some(pb::Callback {
                    target: Some(target),
                    states: vec![],
                }),
                ..Default::default()
            };
            let task = pb::Task {
                options: Some(options),
                callback: Some(Box::new(progress)),
                ..Default::default()
            };
            callback(&task).unwrap()
        };
        let fresh = shown(pb::CallbackProgress::default());
        assert_eq!(fresh, "https://a.example/...; nothing to tell yet");
        let told = shown(pb::CallbackProgress {
            delivered_seq: 3,
            given_up_seq: 5,
            given_up: "it answered 404".into(),
            waiting: 1,
            tries: 2,
            trouble: "it answered 503".into(),
            ..Default::default()
        });
        assert_eq!(
            told,
            "https://a.example/...; delivered up to event 3; event 5 given up: it answered 404; \
             1 to be told since , 2 failed tries, the last: it answered 503"
        );
        assert_eq!(callback(&pb::Task::default()), None);
    }

    #[test]
    fn a_question_fits_into_a_cell() {
        let question = |text: &str| pb::Question {
            message: Some(pb::Message {
                parts: vec![pb::Part {
                    content: Some(Content::Text(text.into())),
                    ..Default::default()
                }],
                ..Default::default()
            }),
            ..Default::default()
        };
        assert_eq!(asked_briefly(&question("how many?")), "how many?");
        assert_eq!(asked_briefly(&question("how many?\nof them")), "how many?…");
        let long = asked_briefly(&question(&"é".repeat(100)));
        assert_eq!(long.chars().count(), 41);
    }

    #[test]
    fn a_result_with_text_is_its_text() {
        let text = pb::Part {
            content: Some(Content::Text("answer".into())),
            ..Default::default()
        };
        let value = json::to_value(serde_json::json!({"n": 1}));
        let data = pb::Part {
            content: Some(Content::Data(value)),
            ..Default::default()
        };
        let both = pb::TaskResult {
            parts: vec![text, data.clone()],
            ..Default::default()
        };
        assert_eq!(result(&both), "answer");
        let alone = pb::TaskResult {
            parts: vec![data],
            ..Default::default()
        };
        assert_eq!(result(&alone), "{\n  \"n\": 1\n}");
    }
}
