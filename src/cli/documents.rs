//! Holds the documents to the program: every configuration and command in them is parsed.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use clap::{CommandFactory, Parser};

use super::args::Cli;
use super::rules;
use crate::{
    app::{
        settings::{RegistrySettings, SidecarSettings},
        up::mesh::Mesh,
    },
    config,
    h2::{call::ATTEMPTS, connection::Config, exchange::STALL},
    registry::rules::{Overrides, Rule, Rules},
    resilience::Settings,
};

/// A fenced block of a document.
struct Block {
    document: PathBuf,
    language: String,
    text: String,
}

fn documents() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = vec![root.join("README.md"), root.join("certs/README.md")];
    for dir in ["docs", "examples/research-desk", "examples/support-desk"] {
        for entry in fs::read_dir(root.join(dir)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|ext| ext == "md") {
                found.push(path);
            }
        }
    }
    found
}

fn blocks(language: &str) -> Vec<Block> {
    let mut found = Vec::new();
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        let mut open: Option<Block> = None;
        for line in text.lines() {
            match (line.strip_prefix("```"), &mut open) {
                (Some(language), None) => {
                    open = Some(Block {
                        document: document.clone(),
                        language: language.trim().to_owned(),
                        text: String::new(),
                    });
                }
                (Some(_), Some(_)) => found.extend(open.take()),
                (None, Some(block)) => {
                    block.text.push_str(line);
                    block.text.push('\n');
                }
                (None, None) => {}
            }
        }
        assert!(open.is_none(), "{}: a block has no end", document.display());
    }
    found.retain(|block| block.language == language);
    found
}

fn toml_named(name: &str) -> Vec<Block> {
    let mut found = blocks("toml");
    found.retain(|block| file_name(block) == name);
    found
}

/// The file that a block stands for: the first word of the comment that it begins with.
fn file_name(block: &Block) -> &str {
    let first = block.text.lines().next().unwrap_or_default();
    let name = first.strip_prefix("# ").and_then(|rest| {
        let word = rest.split_whitespace().next()?;
        Some(word.trim_end_matches(':'))
    });
    name.filter(|name| name.ends_with(".toml"))
        .unwrap_or_else(|| {
            panic!(
                "{}: begin with `# NAME.toml`: {first}",
                block.document.display()
            )
        })
}

fn words(command: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for letter in command.chars() {
        match (letter, quote) {
            ('"' | '\'', None) => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (letter, Some(open)) if letter == open => quote = None,
            ('#', None) if word.is_none() => break,
            (' ', None) => words.extend(word.take()),
            (letter, _) => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    words
}

#[test]
fn every_configuration_in_the_documents_is_parsed() {
    let (mut meshes, mut registries, mut sidecars, mut rules) = (0, 0, 0, 0);
    for block in blocks("toml") {
        match file_name(&block) {
            "mesh.toml" => {
                let dir = tempfile::tempdir().unwrap();
                fs::write(dir.path().join("mesh.toml"), &block.text).unwrap();
                Mesh::read(dir.path(), &[]).unwrap();
                meshes += 1;
            }
            "registry.toml" => {
                config::parse::<RegistrySettings>(&block.document, &block.text).unwrap();
                registries += 1;
            }
            name if name.ends_with(".rule.toml") => {
                rules += parsed(&block.document, &block.text).len();
            }
            _ => {
                config::parse::<SidecarSettings>(&block.document, &block.text).unwrap();
                sidecars += 1;
            }
        }
    }
    assert!(
        meshes >= 2 && registries >= 1 && sidecars >= 3 && rules >= 3,
        "{meshes} {registries} {sidecars} {rules}"
    );
}

/// The rules of a text, as the registry would take them.
fn parsed(document: &Path, text: &str) -> Vec<Rule> {
    let written = rules::file::parse(document, text).unwrap();
    let rules = written.into_iter().map(|rule| {
        let read = Rule::read(rule.into_message());
        read.unwrap_or_else(|fault| panic!("{}: {fault}: {text}", document.display()))
    });
    rules.collect()
}

#[test]
fn every_rule_in_json_and_in_the_help_is_one() {
    let mut json = blocks("json");
    json.retain(|block| block.document.ends_with("docs/traffic.md"));
    assert!(!json.is_empty());
    for block in json {
        parsed(&block.document, &block.text);
    }
    let mut files = 0;
    for example in rules::args::PUT_EXAMPLES.split("\n\n") {
        let file = example.lines().next().unwrap_or_default();
        if file.ends_with(".rule.toml") {
            parsed(Path::new(file), example);
            files += 1;
        }
    }
    assert_eq!(files, 3);
}

#[test]
fn the_annotated_rule_shows_every_key_and_the_defaults() {
    let block = &toml_named("all.rule.toml")[0];
    let rule = parsed(&block.document, &block.text).remove(0);
    let shown: Vec<_> = rule.shown().into_iter().map(|(path, _)| path).collect();
    let every = ["skill", "agent"].iter().chain(Overrides::PATHS).copied();
    assert_eq!(shown, every.collect::<Vec<_>>());
    let (target, namespace) = (rule.target.clone(), rule.name.namespace.clone());
    let rules = Rules::new([rule], 1);
    let effective = rules.effective(&namespace, target.skill.as_ref(), target.agent.as_ref());
    assert_eq!(effective.settings(), Settings::default());
}

/// Names of all keys, tables within tables taken apart; of arrays, those of the first element.
fn keys(value: &toml::Value, path: &str, into: &mut BTreeSet<String>) {
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                let path = format!("{path}.{key}");
                // Labels are the reader's own.
                if key != "labels" {
                    keys(value, &path, into);
                }
                into.insert(path);
            }
        }
        toml::Value::Array(items) => {
            if let Some(first) = items.first() {
                keys(first, path, into);
            }
        }
        toml::Value::String(_)
        | toml::Value::Integer(_)
        | toml::Value::Float(_)
        | toml::Value::Boolean(_)
        | toml::Value::Datetime(_) => {}
    }
}

#[test]
fn the_annotated_files_show_every_key_and_the_registrys_defaults() {
    let registry = &toml_named("registry.toml")[0];
    let written: RegistrySettings = config::parse(&registry.document, &registry.text).unwrap();
    let (written, defaults) = (
        toml::Value::try_from(&written).unwrap(),
        toml::Value::try_from(RegistrySettings::default()).unwrap(),
    );
    assert_eq!(written, defaults);
    let text: toml::Value = toml::from_str(&registry.text).unwrap();
    assert_eq!(text, defaults, "a key is left out");

    let sidecar = &toml_named("sidecar.toml")[0];
    let settings: SidecarSettings = config::parse(&sidecar.document, &sidecar.text).unwrap();
    let (mut known, mut shown) = (BTreeSet::new(), BTreeSet::new());
    keys(&toml::Value::try_from(&settings).unwrap(), "", &mut known);
    keys(&toml::from_str(&sidecar.text).unwrap(), "", &mut shown);
    assert_eq!(shown, known);
}

#[test]
fn every_command_in_the_documents_is_one() {
    let mut seen = 0;
    for block in blocks("sh").iter().chain(&blocks("text")) {
        let joined = block.text.replace("\\\n", " ");
        for line in joined.lines() {
            let words = words(line);
            let after_cargo = words.iter().position(|word| word == "--");
            let arguments = match words.first().map(String::as_str) {
                Some("attache") => &words[1..],
                Some("cargo") if words.get(1).is_some_and(|word| word == "run") => {
                    &words[after_cargo.expect("cargo run has --") + 1..]
                }
                _ => continue,
            };
            // What a shell does with the output is not the command's.
            let mut parts = arguments.split(|word| word == ">" || word == "|");
            let arguments = parts.next().unwrap_or_default();
            let whole = ["attache".to_owned()];
            if let Err(error) = Cli::try_parse_from(whole.iter().chain(arguments)) {
                panic!("{}: {line}\n{error}", block.document.display());
            }
            seen += 1;
        }
    }
    assert!(seen > 20, "{seen}");
}

#[test]
fn every_variable_of_the_environment_is_documented() {
    let text: String = documents()
        .iter()
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    let mut commands = vec![Cli::command()];
    let mut seen = 0;
    while let Some(command) = commands.pop() {
        for name in command.get_arguments().filter_map(clap::Arg::get_env) {
            let name = name.to_string_lossy();
            assert!(text.contains(&format!("`{name}`")), "{name} is nowhere");
            seen += 1;
        }
        commands.extend(command.get_subcommands().cloned());
    }
    assert!(seen > 15, "{seen}");
}

#[test]
fn links_between_the_documents_lead_somewhere() {
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        for link in text.split("](").skip(1) {
            let target = link.split([')', '#']).next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            let path = document.with_file_name("").join(target);
            assert!(path.exists(), "{}: {target}", document.display());
        }
    }
}

#[test]
fn every_metric_is_in_the_table_of_operating() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("docs/operating.md")).unwrap();
    let rows = text.lines().filter_map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let name = cells.get(1)?.strip_prefix('`')?.strip_suffix('`')?;
        let name = name.split('{').next()?;
        let known = name.starts_with("attache_") || name.starts_with("process_");
        known.then(|| (name.to_owned(), cells.len(), cells[2..4].concat()))
    });
    let rows: Vec<_> = rows.collect();
    for (name, cells, said) in &rows {
        // The line begins and ends with a bar.
        assert_eq!(*cells, 5, "{name}: metric, meaning, what to do");
        assert!(said.len() > 20, "{name}: {said}");
    }
    let documented: Vec<_> = rows.into_iter().map(|(name, ..)| name).collect();
    let table = crate::telemetry::metrics::family::table();
    let names = table.iter().filter_map(|line| line.split(' ').next());
    let names: BTreeSet<_> = names.map(str::to_owned).collect();
    let unique: BTreeSet<_> = documented.iter().cloned().collect();
    assert_eq!(
        documented.len(),
        unique.len(),
        "a metric stands there twice"
    );
    assert_eq!(unique, names);
}

/// All Rust of a directory, together.
fn source(dir: &Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            text += &source(&path);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            text += &fs::read_to_string(&path).unwrap();
        }
    }
    text
}

#[test]
fn every_promise_names_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let code = source(&root.join("src")) + &source(&root.join("tests"));
    for document in ["docs/tasks.md", "docs/passing.md"] {
        promises(&fs::read_to_string(root.join(document)).unwrap(), &code);
    }
}

fn promises(text: &str, code: &str) {
    let is_name = |word: &&str| {
        let snake = word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        snake && word.matches('_').count() > 2
    };
    let names: Vec<_> = text.split('`').filter(is_name).collect();
    assert!(names.len() > 20, "{names:?}");
    for name in names {
        assert!(code.contains(&format!("fn {name}()")), "{name}");
    }
}

#[test]
fn the_limits_of_passing_calls_are_those_that_are_said() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("docs/passing.md")).unwrap();
    let (caller, mesh) = (Config::caller(), Config::mesh());
    let kib = |bytes: u32| format!("{} KiB", bytes / 1024);
    for (what, much) in [
        (
            "calls at once on one connection of a local program",
            caller.max_streams.to_string(),
        ),
        (
            "calls at once on one connection of a sidecar",
            mesh.max_streams.to_string(),
        ),
        (
            "of a program that has not read that limit yet",
            caller.early_streams.to_string(),
        ),
        ("metadata of a request", kib(caller.header_list)),
        (
            "bytes under way in one direction of a call",
            format!("{} MiB", mesh.stream_window >> 20),
        ),
        (
            "bytes that wait without one of them moving",
            format!("{} s", STALL.as_secs()),
        ),
        ("tries of one call", ATTEMPTS.to_string()),
    ] {
        let row = text.lines().find(|line| line.contains(what));
        let cell = row.and_then(|row| row.split(" | ").nth(1));
        assert_eq!(cell, Some(&*much), "{what}");
    }
}
