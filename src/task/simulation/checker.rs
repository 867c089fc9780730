//! Replays what happened, what is on disk and what was shown against the invariants.
//!
//! - I1 accepted tasks are never lost, and all of them end;
//! - I2 one end for each task, and it stays;
//! - I3 events are numbered 1 to n without a gap or a double, on streams that go on too;
//! - I4 one key, one task;
//! - I5 an attempt that is not in force changes nothing, and begins nowhere after a newer one;
//! - I11 what has ended leaves nothing behind that runs, and no handler outlasts its deadline;
//! - I12 work that may not run twice runs once at most, other work three times;
//! - I13 nothing is acknowledged or shown that a crash takes back;
//! - I14 no tree has more tasks than its root may have, and nobody is refused one that has fewer;
//! - and each run is given all that was asked and answered before it;
//! - whoever is called back is told of each change, in order, in the same words;
//! - what is in memory only keeps all of this while its home's process lives, is gone with it or with
//!   its caller, and nowhere on disk: see `fleeting`.

use std::collections::{BTreeMap, BTreeSet};

use crate::pb;
use crate::pb::journal::{Record, record::Kind as Recorded};
use crate::pb::part::Content;
use crate::pb::task_event::Kind;

use super::World;
use super::agent::{is_idempotent, read};
use super::callbacks;
use super::contents::records;
use super::fleeting::is_fleeting;
use super::history::{History, Request};
use super::told::{Final, Told, ended};
use super::trees;

/// What a crash of everything has changed, though all was on disk.
pub(super) fn compare(history: &mut History, before: &Told, after: &Told) {
    for (id, was) in before {
        match after.get(id) {
            None => history.breach(format!("I1: {id} is gone after a crash")),
            Some(is) if is != was => {
                let how = format!("I2 I13: {id} was {was:?} and is {is:?} after a crash");
                history.breach(how);
            }
            Some(_) => {}
        }
    }
    for id in after.keys().filter(|id| !before.contains_key(*id)) {
        history.breach(format!("I2: {id} is there after a crash only"));
    }
}

/// Checks all that is known at the end.
pub(super) fn check(world: &World, told: &Told) {
    let mut history = world.history.lock();
    let mut broken = Vec::new();
    let mut all = told.clone();
    for (id, task) in &history.fleeting {
        let events = history.shown.get(id).into_iter().flat_map(BTreeMap::values);
        let (events, id) = (events.cloned().collect(), id.clone());
        let seen = task.clone().map(|task| Final { task, events });
        all.extend(seen.map(|seen| (id, seen)));
    }
    for (id, one) in &all {
        broken.extend(check_task(&history, id, one));
        broken.extend(callbacks::check(&history, &one.task, &one.events));
    }
    for (id, shown) in history.shown.iter().filter(|(id, _)| !is_fleeting(id)) {
        let known = told.get(id).map_or(0, |one| one.task.last_seq);
        if let Some(beyond) = shown.keys().find(|seq| **seq > known) {
            broken.push(format!(
                "I13: event {beyond} of {id} was shown, {known} are left"
            ));
        }
    }
    for request in &history.requests {
        broken.extend(check_request(request, told));
    }
    broken.extend(check_runs(world, &history, &all));
    broken.extend(trees::check(world, &history, told));
    broken.extend(callbacks::check_tellers(&history, told));
    for how in broken {
        history.breach(how);
    }
    drop(history);
    for node in &world.nodes {
        let records = records(node.disk.copy(), world.size.segment_bytes);
        let mut broken = Vec::new();
        match records {
            Ok((records, named)) => {
                broken.extend(check_log(&records, told));
                let life = node.life();
                let stats = life.and_then(|life| Some(life.journal.blobs()?.stats()));
                let kept = stats.map_or(0, |stats| stats.blobs);
                if kept != named {
                    broken.push(format!(
                        "I1 I11: {named} contents are named, {kept} are kept"
                    ));
                }
            }
            Err(how) => broken.push(how),
        }
        for how in broken {
            world
                .history
                .lock()
                .breach(format!("{how}, in the log of {}", node.index));
        }
    }
}

fn check_task(history: &History, id: &str, one: &Final) -> Vec<String> {
    let mut broken = Vec::new();
    let Final { task, events } = one;
    let numbered = events.iter().zip(1..).all(|(event, seq)| event.seq == seq);
    if !numbered || task.last_seq != events.len() as u64 {
        broken.push(format!("I3: the events of {id} have gaps"));
    }
    let ends = events.iter().filter(|event| ended(event.state())).count();
    let last = events.last();
    if ends != 1 || last.is_none_or(|last| last.state != task.state || !ended(last.state())) {
        broken.push(format!(
            "I2: {id} has {ends} ends, and is {:?}",
            task.state()
        ));
    }
    let mut asked = None;
    let mut words: BTreeMap<usize, usize> = BTreeMap::new();
    for (event, next) in events
        .iter()
        .zip(events.iter().skip(1).map(Some).chain([None]))
    {
        if next.is_some_and(|next| next.attempt < event.attempt) {
            broken.push(format!("I5: the attempts of {id} go back at {}", event.seq));
        }
        if matches!(event.kind, Some(Kind::CancelRequested(_))) {
            asked = Some(event.attempt);
        }
        let Some((run, word)) = event.kind.as_ref().and_then(words_of).and_then(read) else {
            continue;
        };
        let maker = &history.runs[run];
        if maker.task != id || maker.attempt != event.attempt {
            broken.push(format!(
                "I5: event {} of {id} is of attempt {}, run {run} made it, which was attempt {} of {}",
                event.seq, event.attempt, maker.attempt, maker.task
            ));
        }
        let before = words.insert(run, word).unwrap_or_default();
        if word != before + 1 {
            broken.push(format!(
                "I3: event {} of {id} is word {word} of run {run}, after {before}",
                event.seq
            ));
        }
    }
    if asked.is_some_and(|asked| last.is_some_and(|last| last.attempt > asked)) {
        broken.push(format!("{id} was given out after it was cancelled"));
    }
    let cancelled = asked.is_some() || task.state() == pb::TaskState::Canceled;
    let answers: BTreeSet<&str> = answers(events, u32::MAX)
        .map(|answer| answer.message_id.as_str())
        .collect();
    let lost =
        |(task, question): &&(String, String)| task == id && !answers.contains(question.as_str());
    if let Some((_, lost)) = history.answered.iter().find(lost) {
        broken.push(format!("I13: the answer to {lost} of {id} is gone"));
    }
    if history.canceled.contains(id) && !cancelled {
        broken.push(format!("I13: the cancellation of {id} is gone"));
    }
    broken
}

fn check_request(request: &Request, told: &Told) -> Vec<String> {
    let mut broken = Vec::new();
    let Request {
        context,
        ids,
        fresh,
        unknown,
        node,
    } = request;
    for id in ids.iter().filter(|id| !told.contains_key(*id)) {
        broken.push(format!("I1: {id} was acknowledged by {node}, and is gone"));
    }
    let named = |one: &&Final| one.task.context_id == *context && !callbacks::tells(&one.task);
    let made = told.values().filter(named);
    let made: Vec<_> = made.map(|one| &one.task.id).collect();
    if ids.len() > 1 || made.len() > 1 || *fresh > 1 {
        broken.push(format!(
            "I4: {context} is {ids:?} and {made:?}, {fresh} fresh"
        ));
    }
    if ids.is_empty() && *unknown == 0 && !made.is_empty() {
        broken.push(format!("I4: {context} was refused, and is {made:?}"));
    }
    broken
}

fn check_runs(world: &World, history: &History, all: &Told) -> Vec<String> {
    let mut broken = Vec::new();
    let mut runs: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (number, run) in history.runs.iter().enumerate() {
        if !run.over {
            broken.push(format!("I11: run {number} of {} never ended", run.task));
        }
        if !run.void {
            runs.entry(&run.task).or_default().push(number);
        }
    }
    for (id, runs) in runs {
        let Some(one) = all.get(id) else {
            if is_fleeting(id) {
                continue;
            }
            broken.push(format!("I1: {id} ran, and nobody knows it"));
            continue;
        };
        // One agent after the other: each hand-over begins anew.
        let mut by: BTreeMap<usize, usize> = BTreeMap::new();
        for run in &runs {
            let attempt = history.runs[*run].attempt;
            *by.entry(handed(one).filter(|(at, _)| *at < attempt).count())
                .or_default() += 1;
        }
        for (place, count) in by {
            let skill = match place.checked_sub(1) {
                Some(before) => handed(one).nth(before).map_or("", |(_, skill)| skill),
                None => &one.task.skill,
            };
            let most = if may_repeat(&one.task, skill) { 3 } else { 1 };
            // Each answer is worth a run.
            let most = most + answers(&one.events, u32::MAX).count();
            if count > most {
                broken.push(format!("I12: {id}, {skill}, ran {runs:?}"));
            }
        }
        let mut newest: BTreeMap<usize, u32> = BTreeMap::new();
        let mut attempts = BTreeSet::new();
        for run in runs {
            let (attempt, node) = (history.runs[run].attempt, history.runs[run].node);
            let agent = world.nodes[node].agent_name();
            let before = told(&one.events, attempt, &agent);
            if history.runs[run].talk != before {
                broken.push(format!(
                    "run {run} of {id} was given {:?}, and not {before:?}",
                    history.runs[run].talk
                ));
            }
            if !attempts.insert(attempt) {
                broken.push(format!("I12: attempt {attempt} of {id} ran twice"));
            }
            let before = newest.insert(node, attempt).unwrap_or_default();
            if before >= attempt {
                broken.push(format!(
                    "I5: attempt {attempt} of {id} began at {node} after {before}"
                ));
            }
        }
    }
    broken
}

/// The answers that were given before an attempt.
fn answers(events: &[pb::TaskEvent], attempt: u32) -> impl Iterator<Item = &pb::Message> {
    let before = events.iter().filter(move |event| event.attempt < attempt);
    before.filter_map(|event| match &event.kind {
        Some(Kind::Answer(answer)) => Some(answer),
        _ => None,
    })
}

/// Ids of the questions and answers that an attempt of an agent is to be given.
fn told<'a>(events: &'a [pb::TaskEvent], attempt: u32, agent: &str) -> Vec<&'a str> {
    let given = answers(events, attempt);
    let given = given.filter(|answer| answer.to.is_empty() || answer.to == agent);
    given
        .flat_map(|answer| [answer.message_id.as_str(); 2])
        .collect()
}

fn check_log(records: &[Record], told: &Told) -> Vec<String> {
    #[derive(Default)]
    struct Track {
        seq: Option<u64>,
        attempt: u32,
        over: bool,
    }
    let mut broken = Vec::new();
    let mut tracks: BTreeMap<&str, Track> = BTreeMap::new();
    for record in records {
        let id = record.task_id.as_str();
        if is_fleeting(id) {
            broken.push(format!("{id} is in memory only, and on disk"));
        }
        let track = tracks.entry(id).or_default();
        match &record.kind {
            Some(Recorded::Event(event)) => {
                if track.over {
                    broken.push(format!("I2: {id} goes on after its end at {}", event.seq));
                }
                if track.seq.is_some_and(|seq| event.seq != seq + 1) {
                    broken.push(format!("I3: {id} has {} after {:?}", event.seq, track.seq));
                }
                track.seq = Some(event.seq);
                track.over = ended(event.state());
                let place = usize::try_from(event.seq).unwrap() - 1;
                let known = told.get(id).and_then(|one| one.events.get(place));
                if known != Some(event) {
                    broken.push(format!("I2: event {} of {id} is told otherwise", event.seq));
                }
            }
            Some(Recorded::Dispatched(sent)) => {
                if track.over || sent.attempt <= track.attempt {
                    broken.push(format!(
                        "I5: attempt {} of {id} was given out after {}",
                        sent.attempt, track.attempt
                    ));
                }
                track.attempt = sent.attempt;
            }
            _ => {}
        }
    }
    broken
}

/// Whether the work may be done twice: as its submitter says, else as its skill does.
fn may_repeat(task: &pb::Task, skill: &str) -> bool {
    match task.options.as_ref().map(pb::TaskOptions::on_agent_loss) {
        Some(pb::OnAgentLoss::Fail) => false,
        Some(pb::OnAgentLoss::Restart) => true,
        Some(pb::OnAgentLoss::Unspecified) | None => is_idempotent(skill),
    }
}

/// The attempts that handed it over, and for what.
fn handed(one: &Final) -> impl Iterator<Item = (u32, &str)> {
    one.events.iter().filter_map(|event| match &event.kind {
        Some(Kind::Delegation(it)) => Some((event.attempt, it.to.as_ref()?.skill.as_str())),
        _ => None,
    })
}

/// What an agent said in an event.
fn words_of(kind: &Kind) -> Option<&str> {
    if let Kind::Progress(progress) = kind {
        return Some(&progress.message);
    }
    if let Kind::Failure(failure) = kind {
        return Some(&failure.message);
    }
    let part = if let Kind::Message(message) = kind {
        message.parts.first()
    } else if let Kind::Question(question) = kind {
        question.message.as_ref()?.parts.first()
    } else if let Kind::Result(result) = kind {
        result.parts.first()
    } else {
        None
    };
    let Some(Content::Text(text)) = part?.content.as_ref() else {
        return None;
    };
    Some(text)
}
