//! Modules look down, never up or sideways. One crate lets cycles compile; this test does not.
#![allow(clippy::unwrap_used, reason = "a broken tree should fail loudly")]

use std::{fs, path::Path};

/// Level of every top module under `src/`. A module may use lower levels only.
const LEVELS: &[(&str, u8)] = &[
    ("pb", 0),
    ("domain", 0),
    ("wire", 1),
    ("runtime", 1),
    ("config", 1),
    ("telemetry", 1),
    ("resilience", 1),
    ("contract", 1),
    ("h2", 1),
    ("identity", 2),
    ("agent", 2),
    ("transport", 3),
    ("admin", 3),
    ("registry", 4),
    ("task", 4),
    ("sidecar", 5),
    ("app", 6),
    ("cli", 7),
    ("main", 8),
];
/// Where a lower module may be entered through some doors only: user, used, doors.
const DOORS: &[(&str, &str, &[&str])] = &[("sidecar", "registry", &["client", "catalog", "query"])];
/// Roots: they only declare.
const ROOTS: &[&str] = &["lib"];
const MAX_CODE_LINES: usize = 400;

fn level(module: &str) -> Option<u8> {
    LEVELS
        .iter()
        .find(|(name, _)| *name == module)
        .map(|(_, level)| *level)
}

/// Every `crate::a::b` of the text as ("a", "b"), grouped imports taken apart.
fn uses(code: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for path in code.split("crate::").skip(1) {
        if let Some(group) = path.strip_prefix('{') {
            for item in top_items(group) {
                found.push(first_two(item));
            }
        } else {
            found.push(first_two(path));
        }
    }
    found
}

/// The items of a brace group, without descending into nested ones.
fn top_items(group: &str) -> Vec<&str> {
    let (mut depth, mut start, mut items) = (0, 0, Vec::new());
    for (at, letter) in group.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 0 => {
                items.push(&group[start..at]);
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                items.push(&group[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    items
        .into_iter()
        .map(str::trim)
        .filter(|item| !item.is_empty())
        .collect()
}

fn first_two(path: &str) -> (String, String) {
    let name = |text: &str| -> String {
        text.chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect()
    };
    let first = name(path.trim_start());
    let second = path.trim_start()[first.len()..]
        .strip_prefix("::")
        .map(name);
    (first, second.unwrap_or_default())
}

fn faults_of(inside: &str, text: &str) -> Vec<String> {
    let here = inside.split(['/', '.']).next().unwrap();
    if ROOTS.contains(&here) {
        return Vec::new();
    }
    let mut faults = Vec::new();
    if level(here).is_none() {
        faults.push(format!("{inside}: {here} has no level"));
    }
    let code: Vec<&str> = text
        .lines()
        .take_while(|line| !line.starts_with("#[cfg(test)]"))
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect();
    let is_test = inside.ends_with("tests.rs") || inside.contains("/tests/");
    if code.len() > MAX_CODE_LINES && !is_test {
        faults.push(format!("{inside}: {} code lines", code.len()));
    }
    for (there, door) in uses(&code.join("\n")) {
        let Some(other) = level(&there) else { continue };
        let own = level(here).unwrap_or(0);
        if there != here && other >= own {
            faults.push(format!(
                "{inside}: looks up or sideways at `crate::{there}::{door}`"
            ));
        }
        for (user, used, doors) in DOORS {
            if *user == here && *used == there && !doors.contains(&door.as_str()) {
                faults.push(format!("{inside}: enters `{there}` by `{door}`"));
            }
        }
    }
    faults
}

fn visit(dir: &Path, root: &Path, faults: &mut Vec<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            visit(&path, root, faults);
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            let inside = path.strip_prefix(root).unwrap().to_str().unwrap();
            faults.extend(faults_of(inside, &fs::read_to_string(&path).unwrap()));
        }
    }
}

#[test]
fn modules_look_down_and_stay_small() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut faults = Vec::new();
    visit(&root, &root, &mut faults);
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn the_check_itself_bites() {
    for (inside, text, faults) in [
        ("domain/x.rs", "use crate::wire::status;", 1),
        ("domain/x.rs", "use crate::pb::Task;", 1),
        (
            "wire/x.rs",
            "use crate::{domain::Fault, pb::{self, Task}};",
            0,
        ),
        (
            "wire/x.rs",
            "use crate::{domain::Fault, task::{Home, doors}};",
            1,
        ),
        ("sidecar/x.rs", "use crate::registry::client::Mirror;", 0),
        ("sidecar/x.rs", "use crate::registry::engine::Engine;", 1),
        ("sidecar/x.rs", "fn f() { crate::app::run() }", 1),
        ("stranger/x.rs", "", 1),
        ("main.rs", "use crate::cli;", 0),
        ("task/x.rs", "// use crate::app::run;", 0),
        ("task/x.rs", "#[cfg(test)]\nuse crate::app::run;", 0),
    ] {
        assert_eq!(faults_of(inside, text).len(), faults, "{inside}: {text}");
    }
    assert_eq!(faults_of("wire/x.rs", &"let x = 1;\n".repeat(401)).len(), 1);
}
