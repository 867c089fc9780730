//! `attache rules`: how traffic is treated, written by operators and pushed to all sidecars.

pub(super) mod args;
mod explain;
pub(super) mod file;

use std::{
    fs,
    io::{self, Read},
    path::Path,
};

use self::{args::RulesVerb, file::Written};
use crate::{
    cli::{
        exit::{Exit, Failed},
        mesh::Mesh,
        output::Output,
        show,
    },
    config::CONFIG_MAX,
    pb,
    registry::rules::{Rule, RuleName},
    runtime::Nursery,
    wire::json as wire_json,
};

/// Carries out one verb.
///
/// # Errors
/// What cannot be read, and what the registry answers, in words.
pub(super) async fn run(
    verb: RulesVerb,
    output: &Output,
    nursery: &Nursery,
) -> Result<Exit, Failed> {
    match verb {
        RulesVerb::Put { mesh, file } => {
            let written = read(&file)?;
            put(&Mesh::find(&mesh, nursery)?, written, output).await
        }
        RulesVerb::List { mesh, namespace } => {
            list(&Mesh::find(&mesh, nursery)?, namespace, output).await
        }
        RulesVerb::Show { mesh, rule } => {
            show_one(&Mesh::find(&mesh, nursery)?, &rule, output).await
        }
        RulesVerb::Explain(args) => explain::run(&args, output).await,
        RulesVerb::Delete {
            mesh,
            rule,
            revision,
        } => delete(&Mesh::find(&mesh, nursery)?, &rule, revision, output).await,
    }
}

/// The rules of a file, all of them checked before the first one is put.
fn read(path: &Path) -> Result<Vec<Written>, Failed> {
    let (shown, text) = if path == Path::new("-") {
        let mut text = String::new();
        let mut stdin = io::stdin().lock().take(CONFIG_MAX);
        stdin.read_to_string(&mut text).map_err(Failed::usage)?;
        (Path::new("standard input"), text)
    } else {
        let text = fs::read_to_string(path);
        let text = text.map_err(|error| Failed::usage(format!("{}: {error}", path.display())))?;
        (path, text)
    };
    let written = file::parse(shown, &text).map_err(Failed::usage)?;
    for (place, rule) in written.iter().enumerate() {
        Rule::read(rule.clone().into_message()).map_err(|fault| {
            let field = fault.field.unwrap_or_default();
            let field = field.strip_prefix("rule.").unwrap_or(&field);
            let rules = if written.len() > 1 {
                format!("rules[{place}].")
            } else {
                String::new()
            };
            Failed::usage(format!(
                "{}: {rules}{field}: {}",
                shown.display(),
                fault.text
            ))
        })?;
    }
    Ok(written)
}

async fn put(mesh: &Mesh, written: Vec<Written>, output: &Output) -> Result<Exit, Failed> {
    for rule in written {
        let request = pb::PutRuleRequest {
            expected_revision: rule.revision(),
            rule: Some(rule.into_message()),
        };
        let answer = mesh.registry().put_rule(request).await?.into_inner();
        if output.is_json() {
            output.json(&wire_json::message("PutRuleResponse", &answer));
        } else {
            for line in change(&answer) {
                output.line(&line);
            }
        }
    }
    Ok(Exit::Done)
}

/// What a put did, in lines.
fn change(answer: &pb::PutRuleResponse) -> Vec<String> {
    let rule = answer.rule.clone().unwrap_or_default();
    let name = format!("{}/{}", rule.namespace, rule.name);
    let before = answer.replaced.as_ref();
    let mut lines = vec![match before.map(|before| before.revision) {
        None => format!("{name} is new (revision {})", rule.revision),
        Some(before) if before == rule.revision => {
            format!("{name} is as it was (revision {before})")
        }
        Some(before) => format!("{name} changed (revision {before} to {})", rule.revision),
    }];
    let before = before.cloned().and_then(|before| Rule::read(before).ok());
    if let Ok(rule) = Rule::read(rule) {
        for (path, old, new) in rule.changes_from(before.as_ref()) {
            lines.push(match (old, new) {
                (None, Some(new)) => format!("  + {path}: {new}"),
                (Some(old), None) => format!("  - {path}: {old}"),
                (old, new) => {
                    let [old, new] = [old, new].map(Option::unwrap_or_default);
                    format!("  ~ {path}: {old} -> {new}")
                }
            });
        }
    }
    lines
}

async fn list(mesh: &Mesh, namespace: Option<String>, output: &Output) -> Result<Exit, Failed> {
    let request = pb::ListRulesRequest {
        namespace: namespace.unwrap_or_default(),
    };
    let all = mesh.registry().list_rules(request).await?.into_inner();
    if output.is_json() {
        output.json(&wire_json::message("ListRulesResponse", &all));
        return Ok(Exit::Done);
    }
    if all.rules.is_empty() {
        output.note("no rules: everything is at its defaults; `attache rules put --help` shows how to write one");
        return Ok(Exit::Done);
    }
    let rows = all.rules.into_iter().map(|message| {
        let name = format!("{}/{}", message.namespace, message.name);
        let updated = show::time(message.updated_at.as_ref());
        let revision = message.revision.to_string();
        match Rule::read(message) {
            Ok(rule) => {
                let settings = rule.overrides.shown().into_iter();
                let settings: Vec<_> = settings
                    .map(|(path, value)| format!("{path}: {value}"))
                    .collect();
                vec![
                    name,
                    rule.target.to_string(),
                    settings.join(", "),
                    revision,
                    updated,
                ]
            }
            Err(fault) => vec![name, String::new(), fault.to_string(), revision, updated],
        }
    });
    output.table(
        &["rule", "for", "sets", "revision", "updated"],
        rows.collect(),
    );
    Ok(Exit::Done)
}

async fn show_one(mesh: &Mesh, rule: &str, output: &Output) -> Result<Exit, Failed> {
    let name = named(rule)?;
    let request = pb::ListRulesRequest {
        namespace: name.namespace.to_string(),
    };
    let all = mesh.registry().list_rules(request).await?.into_inner();
    let mut all = all.rules.into_iter();
    let Some(message) = all.find(|rule| rule.name == name.name.as_str()) else {
        let text = format!("there is no rule {name}; `attache rules list` shows those there are");
        return Err(Failed::new(Exit::NotFound, text));
    };
    if output.is_json() {
        output.json(&wire_json::message("TrafficRule", &message));
        return Ok(Exit::Done);
    }
    let updated = show::time(message.updated_at.as_ref());
    output.line(&format!(
        "{name}, revision {}, {updated} by {}",
        message.revision, message.updated_by
    ));
    let rule = Rule::read(message).map_err(Failed::fault)?;
    let settings = rule.shown().into_iter();
    let rows = settings.map(|(path, value)| vec![path.to_owned(), value]);
    output.table(&["setting", "value"], rows.collect());
    Ok(Exit::Done)
}

async fn delete(
    mesh: &Mesh,
    rule: &str,
    revision: Option<u64>,
    output: &Output,
) -> Result<Exit, Failed> {
    let name = named(rule)?;
    let request = pb::DeleteRuleRequest {
        namespace: name.namespace.to_string(),
        name: name.name.to_string(),
        expected_revision: revision,
    };
    let answer = mesh.registry().delete_rule(request).await?.into_inner();
    if output.is_json() {
        output.json(&wire_json::message("DeleteRuleResponse", &answer));
        return Ok(Exit::Done);
    }
    output.line(&format!("{name} is deleted"));
    if let Some(Ok(rule)) = answer.deleted.map(Rule::read) {
        for (path, value) in rule.shown() {
            output.line(&format!("  - {path}: {value}"));
        }
    }
    Ok(Exit::Done)
}

/// `namespace/name`, or a name in `default`.
fn named(text: &str) -> Result<RuleName, Failed> {
    let (namespace, name) = text.split_once('/').unwrap_or(("", text));
    RuleName::read(namespace, name).map_err(|fault| Failed::usage(fault.text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_put_says_what_it_changed() {
        let rule = |revision, attempts, agent: &str, timeout: Option<i64>| pb::TrafficRule {
            namespace: "default".into(),
            name: "x".into(),
            agent: agent.into(),
            revision,
            timeout: timeout.map(|seconds| prost_types::Duration { seconds, nanos: 0 }),
            retry: Some(pb::RuleRetry {
                attempts: Some(attempts),
                ..Default::default()
            }),
            ..Default::default()
        };
        let answer = |replaced, rule| pb::PutRuleResponse {
            rule: Some(rule),
            replaced,
        };
        let new = change(&answer(None, rule(4, 2, "", None)));
        assert_eq!(
            new,
            ["default/x is new (revision 4)", "  + retry.attempts: 2"]
        );
        let changed = change(&answer(
            Some(rule(4, 2, "", Some(1))),
            rule(7, 3, "a", None),
        ));
        assert_eq!(
            changed,
            [
                "default/x changed (revision 4 to 7)",
                "  + agent: a",
                "  - timeout: 1s",
                "  ~ retry.attempts: 2 -> 3"
            ]
        );
        let same = change(&answer(Some(rule(4, 2, "", None)), rule(4, 2, "", None)));
        assert_eq!(same, ["default/x is as it was (revision 4)"]);
    }
}
