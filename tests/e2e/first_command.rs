//! The first command of the README, word for word, as a newcomer runs it.

use std::{path::Path, time::Duration};

use serde_json::Value;
use tokio::{process::Command, time::timeout};

use crate::{
    lifecycle::expire_all,
    support::{
        mesh::Site,
        tools::{Ran, root},
    },
};

/// Bound of one run. The release build of a fresh clone is in it.
const LIMIT: Duration = Duration::from_secs(30 * 60);

/// `cargo run --release -- up examples/research-desk --once`, with its state where the test says.
async fn first_command(site: &Site, more: &[&str]) -> Ran {
    let mut command = Command::new("cargo");
    let (key, value) = site.mark.env();
    command.args([
        "run",
        "--quiet",
        "--release",
        "--",
        "up",
        "examples/research-desk",
        "--once",
    ]);
    command
        .arg("--state")
        .arg(site.state())
        .args(more)
        .current_dir(root())
        .env(key, value);
    command
        .env("XDG_RUNTIME_DIR", site.temp.path())
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true);
    let output = timeout(LIMIT, command.output())
        .await
        .expect("in time")
        .unwrap();
    Ran {
        code: output.status.code(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// The citations of an answer, from the JSON that the command prints.
fn citations(updates: &[Value]) -> Vec<Value> {
    let results = updates
        .iter()
        .filter_map(|update| update["event"]["result"]["parts"].as_array());
    let parts: Vec<&Value> = results.flatten().collect();
    let data = parts
        .iter()
        .find_map(|part| part["data"]["citations"].as_array());
    data.unwrap_or_else(|| panic!("no citations in {parts:#?}"))
        .clone()
}

/// The quote stands in the cited file at the cited lines.
fn assert_stands(citation: &Value) {
    let number = |key: &str| -> usize {
        let number = citation[key]
            .as_f64()
            .unwrap_or_else(|| panic!("{key} of {citation}"));
        // Numbers of JSON are doubles; lines are small.
        format!("{number}").parse().unwrap()
    };
    let file = citation["file"].as_str().unwrap();
    let text = std::fs::read_to_string(root().join(file)).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let cited = lines[number("line") - 1..number("end_line")].join("\n");
    let quote = citation["quote"].as_str().unwrap();
    assert!(!quote.trim().is_empty(), "{citation}");
    assert!(
        cited.contains(quote),
        "{quote:?} does not stand in {file}:\n{cited}"
    );
}

async fn answers_with_passages_that_stand(site: &Site) {
    let ran = first_command(site, &["--output", "json"]).await;
    assert_eq!(ran.code, Some(0), "{}{}", ran.err, site.logs());
    let citations = citations(&ran.json_lines());
    assert!(!citations.is_empty());
    citations.iter().for_each(assert_stands);
    assert_eq!(site.mark.processes(), vec![]);
}

#[tokio::test]
#[ignore = "builds everything for release, which takes minutes: tests/run runs it"]
async fn a_fresh_clone_answers_with_passages_that_stand_in_the_files() {
    let site = Site::of(&root().join("examples/research-desk"));
    let ran = first_command(&site, &[]).await;
    assert_eq!(ran.code, Some(0), "{}{}", ran.err, site.logs());
    assert_human(&ran.out);

    answers_with_passages_that_stand(&site).await;
    assert_eq!(expire_all(&site.state()), 2);
    answers_with_passages_that_stand(&site).await;
}

/// What a person sees: quotes, and under each its number and its place.
fn assert_human(out: &str) {
    let places: Vec<&str> = out.lines().filter(|line| line.starts_with('[')).collect();
    assert!(!places.is_empty(), "{out}");
    assert!(out.lines().any(|line| line.starts_with("> ")), "{out}");
    for place in places {
        let (_, place) = place.split_once("] ").unwrap();
        let (file, lines) = place.rsplit_once(':').unwrap();
        let last = lines.rsplit('-').next().unwrap().trim();
        let last: usize = last.parse().unwrap();
        let text = std::fs::read_to_string(Path::new(root()).join(file)).unwrap();
        assert!(text.lines().count() >= last, "{place}");
    }
}
