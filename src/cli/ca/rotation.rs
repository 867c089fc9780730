//! `attache ca rotate` and `attache ca status`: the CA's directory, here.

use std::{path::Path, time::SystemTime};

use serde_json::{Value, json};

use super::args::Rotated;
use crate::{
    app::StartError,
    cli::{
        exit::{Exit, Failed},
        output::Output,
        show,
    },
    config::Span,
    identity::{Authority, AuthorityError, Overlap, authority::Root},
    runtime::clock,
};

/// Hexadecimal digits of a root's pin that are shown to people: enough to tell two apart.
const SHORT_PIN: usize = 16;
/// Seconds of a day.
const DAY: u64 = 24 * 60 * 60;

pub(super) fn open(dir: &Path) -> Result<Authority, Failed> {
    if !Authority::exists(dir) {
        return Err(Failed::usage(StartError::NoAuthority {
            dir: dir.display().to_string(),
        }));
    }
    Authority::open(dir).map_err(Failed::fault)
}

pub(super) fn rotate(
    what: Rotated,
    dir: &Path,
    (prepare, keep): (Span, Span),
    output: &Output,
) -> Result<Exit, Failed> {
    let (prepare, keep) = (prepare.0, keep.0);
    let authority = open(dir)?;
    let now = clock::wall();
    let before = authority.roots();
    let led = authority.has_key(before.last());
    match what {
        Rotated::Root => authority.rotate_root(Overlap { prepare, keep }, now),
        Rotated::Issuing => authority.rotate_issuing(now),
    }
    .map_err(|error| {
        if error.is_askers() {
            Failed::usage(error)
        } else {
            Failed::fault(error)
        }
    })?;
    status(dir, output)?;
    if what == Rotated::Issuing {
        output.note("certificates that are signed from now on are its own; others stay good");
        return Ok(Exit::Done);
    }
    if !led {
        output.note(
            "the present root's key is not here to vouch for the next one: who is not connected \
             before that signs needs a new join token",
        );
    }
    output.note("a running registry follows within a second: nothing is to be restarted");
    output.note("next: keep its key offline, and make certificates of `attache ca issue` anew");
    output.note(
        "between the two times; join strings made before the first are good until the second",
    );
    Ok(Exit::Done)
}

pub(super) fn status(dir: &Path, output: &Output) -> Result<Exit, Failed> {
    let authority = open(dir)?;
    let now = clock::wall();
    let roots = authority.roots();
    let rows: Result<Vec<_>, _> = roots
        .all()
        .iter()
        .map(|root| Row::of(&authority, root, now))
        .collect();
    let rows = rows.map_err(Failed::fault)?;
    let until = authority.issuing_life().not_after;
    if output.is_json() {
        output.json(&json!({
            "dir": dir,
            "trust_domain": authority.trust_domain().to_string(),
            "roots": rows.iter().map(Row::json).collect::<Vec<_>>(),
            "issuing": { "ends": time(until) },
            "concern": authority.concern(),
        }));
        return Ok(Exit::Done);
    }
    let header = &[
        "root",
        "is",
        "signs from",
        "trusted until",
        "ends",
        "key",
        "pin",
    ];
    output.table(header, rows.iter().map(Row::cells).collect());
    let days = until.duration_since(now).unwrap_or_default().as_secs() / DAY;
    output.line(&format!("issuing CA: ends {}, in {days} days", time(until)));
    if let Some(concern) = authority.concern() {
        output.note(&concern);
    }
    Ok(Exit::Done)
}

/// A root as it is shown.
struct Row {
    file: String,
    role: &'static str,
    signs_from: Option<SystemTime>,
    trusted_until: Option<SystemTime>,
    ends: SystemTime,
    key_is_here: bool,
    pin: String,
}

impl Row {
    fn of(authority: &Authority, root: &Root, now: SystemTime) -> Result<Self, AuthorityError> {
        let pin = root.key_pin()?;
        Ok(Self {
            file: authority.root_file(root),
            role: authority.role(root, now),
            signs_from: (root.signs_from > SystemTime::UNIX_EPOCH).then_some(root.signs_from),
            trusted_until: root.trusted_until,
            ends: root.ends()?,
            key_is_here: authority.has_key(root),
            pin: pin.iter().map(|byte| format!("{byte:02x}")).collect(),
        })
    }

    fn cells(&self) -> Vec<String> {
        let when = |at: Option<SystemTime>| at.map_or_else(|| "-".to_owned(), time);
        vec![
            self.file.clone(),
            self.role.to_owned(),
            when(self.signs_from),
            when(self.trusted_until),
            time(self.ends),
            if self.key_is_here { "here" } else { "away" }.to_owned(),
            self.pin[..SHORT_PIN].to_owned(),
        ]
    }

    fn json(&self) -> Value {
        json!({
            "file": self.file,
            "role": self.role,
            "signs_from": self.signs_from.map(time),
            "trusted_until": self.trusted_until.map(time),
            "ends": time(self.ends),
            "key_is_here": self.key_is_here,
            "key_sha256": self.pin,
        })
    }
}

fn time(at: SystemTime) -> String {
    show::time(Some(&at.into()))
}
