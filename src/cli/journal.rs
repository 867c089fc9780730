//! `attache journal`: whether a home's tasks are whole on disk, and what can be saved if not.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{
    args::JournalVerb,
    exit::{Exit, Failed},
    output::Output,
};
use crate::{
    config::Size,
    task::journal::{Damage, Repaired, Segment, Survey, blobs::Checked},
};

/// Carries out one verb.
///
/// # Errors
/// When the directory cannot be read, a sidecar runs on it, or what was acknowledged is not whole.
pub(super) fn run(verb: JournalVerb, output: &Output) -> Result<Exit, Failed> {
    match verb {
        JournalVerb::Check { dir } => check(&dir, output),
        JournalVerb::Repair {
            dir,
            into,
            keep_doubtful,
        } => repair(&dir, into, keep_doubtful, output),
    }
}

fn check(dir: &Path, output: &Output) -> Result<Exit, Failed> {
    let survey = Survey::of(dir).map_err(Failed::fault)?;
    if output.is_json() {
        output.json(&json!({
            "dir": dir,
            "whole": survey.whole(),
            "segments": survey.segments.iter().map(segment_json).collect::<Vec<_>>(),
            "blobs": blobs_json(&survey.blobs),
        }));
    } else {
        segments(&survey, output);
        blobs(&survey.blobs, output);
    }
    if survey.whole() {
        output.note("all that was acknowledged is there, as far as the files can tell");
        return Ok(Exit::Done);
    }
    let text = format!(
        "{} is damaged: restore it from a copy, or see what can be saved with `attache journal repair {}`",
        dir.display(),
        dir.display()
    );
    Err(Failed::fault(text))
}

fn segments(survey: &Survey, output: &Output) {
    let header = [
        "file", "format", "records", "first", "last", "batches", "used", "state",
    ];
    let rows = survey.segments.iter().map(|segment| {
        vec![
            segment.file.clone(),
            segment.format.to_string(),
            segment.records.to_string(),
            segment.first.to_string(),
            segment.last.to_string(),
            segment.batches.to_string(),
            format!("{} of {}", segment.used, Size(segment.size)),
            state(segment),
        ]
    });
    output.table(&header, rows.collect());
    for (segment, damage) in damages(survey) {
        output.line(&format!(
            "{} at byte {}: {}{}",
            segment.file,
            damage.offset,
            damage.reason,
            named(damage)
        ));
    }
    for (segment, torn) in survey
        .segments
        .iter()
        .filter_map(|segment| Some((segment, segment.torn?)))
    {
        output.line(&format!(
            "{} at byte {}: {} bytes were being written when it stopped and were never acknowledged: the next start cuts them off",
            segment.file, torn.offset, torn.bytes
        ));
    }
}

/// Large content beside the log.
fn blobs(found: &Checked, output: &Output) {
    if found.packs > 0 {
        output.line(&format!(
            "{} large contents in {} *.pack files, {}",
            found.blobs,
            found.packs,
            Size(found.bytes)
        ));
    }
    for (file, offset, reason) in &found.damage {
        output.line(&format!("{file} at byte {offset}: {reason}"));
    }
}

fn blobs_json(found: &Checked) -> Value {
    let damage = found.damage.iter();
    let damage = damage
        .map(|(file, offset, reason)| json!({"file": file, "offset": offset, "reason": reason}));
    json!({
        "packs": found.packs,
        "blobs": found.blobs,
        "bytes": found.bytes,
        "damage": damage.collect::<Vec<_>>(),
    })
}

fn damages(survey: &Survey) -> impl Iterator<Item = (&Segment, &Damage)> {
    let segments = survey.segments.iter();
    segments.flat_map(|segment| segment.damage.iter().map(move |damage| (segment, damage)))
}

fn state(segment: &Segment) -> String {
    match (segment.damage.is_empty(), segment.torn) {
        (false, _) => "damaged".to_owned(),
        (true, Some(_)) => "torn end".to_owned(),
        (true, None) => "whole".to_owned(),
    }
}

fn named(damage: &Damage) -> String {
    let owner = damage.owner.as_ref();
    owner.map_or(String::new(), |task| format!("; it names task {task}"))
}

fn segment_json(segment: &Segment) -> Value {
    json!({
        "file": segment.file,
        "format": segment.format,
        "size": segment.size,
        "used": segment.used,
        "records": segment.records,
        "batches": segment.batches,
        "first": segment.first,
        "last": segment.last,
        "damage": segment.damage.iter().map(damage_json).collect::<Vec<_>>(),
        "torn": segment.torn.map(|torn| json!({"offset": torn.offset, "bytes": torn.bytes})),
    })
}

fn damage_json(damage: &Damage) -> Value {
    json!({
        "offset": damage.offset,
        "reason": damage.reason,
        "first_lost": damage.lost.map(|(first, _)| first),
        "last_lost": damage.lost.map(|(_, last)| last),
        "names_task": damage.owner,
    })
}

fn repair(
    dir: &Path,
    into: Option<PathBuf>,
    keep_doubtful: bool,
    output: &Output,
) -> Result<Exit, Failed> {
    let into = into.unwrap_or_else(|| beside(dir, "repaired"));
    let made = Repaired::make(dir, &into, keep_doubtful).map_err(Failed::fault)?;
    let next = commands(dir, &into);
    if output.is_json() {
        output.json(&json!({
            "dir": dir,
            "into": into,
            "records": made.records,
            "tasks": made.tasks,
            "lost": damages(&made.survey).map(|(segment, damage)| {
                let mut found = damage_json(damage);
                found["file"] = json!(segment.file);
                found
            }).collect::<Vec<_>>(),
            "holed_tasks": made.holed,
            "doubtful_tasks": made.doubtful,
            "kept_doubtful": made.kept_doubtful,
            "next": next,
        }));
        return Ok(Exit::Done);
    }
    segments(&made.survey, output);
    told(&made, output);
    output.line("the old directory is as it was. To go on with the new one:");
    for command in next {
        output.line(&format!("  {command}"));
    }
    Ok(Exit::Done)
}

fn told(made: &Repaired, output: &Output) {
    output.line(&format!(
        "{} holds {} records of {} tasks, whole",
        made.into.display(),
        made.records,
        made.tasks
    ));
    if !made.holed.is_empty() {
        output.line("left out, since a record of it is lost:");
        made.holed
            .iter()
            .for_each(|task| output.line(&format!("  {task}")));
    }
    if !made.doubtful.is_empty() {
        output.line(if made.kept_doubtful {
            "kept, though a lost record may be of it: it may run again, or end a second time:"
        } else {
            "left out, since a lost record may be of it (--keep-doubtful keeps it, and risks that it runs again or ends a second time):"
        });
        made.doubtful
            .iter()
            .for_each(|task| output.line(&format!("  {task}")));
    }
    let lost = damages(&made.survey).any(|(_, damage)| damage.lost.is_some());
    if lost {
        output.line("what cannot be known: tasks of which nothing but lost records was here, and files that are gone before the first one");
    }
}

/// The directory's name with a word behind it.
fn beside(dir: &Path, word: &str) -> PathBuf {
    let shown = dir.components().as_path().display().to_string();
    PathBuf::from(format!("{shown}.{word}"))
}

/// What to type next, to be copied.
fn commands(dir: &Path, into: &Path) -> [String; 2] {
    let quoted = |path: &Path| {
        let text = path.display().to_string();
        let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@%,:".contains(c);
        match text.chars().all(plain) {
            true => text,
            false => format!("'{}'", text.replace('\'', "'\\''")),
        }
    };
    let damaged = beside(dir, "damaged");
    [
        format!("mv {} {}", quoted(dir), quoted(&damaged)),
        format!("mv {} {}", quoted(into), quoted(dir)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_commands_can_be_typed() {
        let [first, second] = commands(Path::new("state/journal/"), Path::new("a b/it's"));
        assert_eq!(first, "mv state/journal/ state/journal.damaged");
        assert_eq!(second, r"mv 'a b/it'\''s' state/journal/");
        assert_eq!(beside(Path::new("x/"), "repaired"), Path::new("x.repaired"));
    }
}
