//! `attache rules explain`: who would get a call from a sidecar, how it is treated, and which rule
//! says so.

use serde_json::{Value, json};

use super::args::ExplainArgs;
use crate::cli::{
    asked::{Process, processes},
    breakers::{HEADER, explained, row},
    exit::{Exit, Failed},
    output::Output,
};
use crate::domain::{AgentName, SkillName};

/// Explains how sidecars would give out a task.
///
/// # Errors
/// When a name is none, no process is meant, or one does not answer.
pub(super) async fn run(args: &ExplainArgs, output: &Output) -> Result<Exit, Failed> {
    // Names are put into a path below: only what is a name is.
    let skill: SkillName = args.skill.parse().map_err(Failed::usage)?;
    let agent: Option<AgentName> = match args.agent.as_deref() {
        Some(agent) => Some(agent.parse().map_err(Failed::usage)?),
        None => None,
    };
    let agent = agent.map(|agent| agent.to_string()).unwrap_or_default();
    let mut told = false;
    for process in processes(&args.process, args.mesh.as_deref())? {
        let query = format!("?skill={skill}&agent={agent}");
        let Some(page) = explained(&process, &query).await? else {
            continue;
        };
        let targets = page["targets"].as_array().into_iter().flatten();
        let own =
            targets.filter(|one| one["skill"] == args.skill && one["agent"] == agent.as_str());
        for target in own {
            told = true;
            tell(&process, target, &page, output);
        }
    }
    if told {
        return Ok(Exit::Done);
    }
    let text = format!("no sidecar among them can say how a task for {skill} finds its way");
    Err(Failed::new(Exit::NotFound, text))
}

fn tell(process: &Process, target: &Value, page: &Value, output: &Output) {
    let members = target["members"].as_array();
    let is_member = |one: &&Value| members.is_some_and(|all| all.contains(&one["instance"]));
    let instances: Vec<&Value> = page["instances"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(is_member)
        .collect();
    if output.is_json() {
        let name = &process.name;
        output.json(&json!({"process": name, "target": target, "instances": instances}));
        return;
    }
    let left_out = target["members_left_out"].as_u64().unwrap_or_default();
    let count = members.map_or(0, Vec::len) as u64 + left_out;
    for line in lines(&process.name, target, count) {
        output.line(&line);
    }
    let rows: Vec<_> = instances
        .iter()
        .map(|one| row(&process.name, one))
        .collect();
    if !rows.is_empty() {
        output.table(HEADER, rows);
    }
    if left_out > 0 {
        output.line(&format!(
            "and {left_out} more, in no more trouble than these"
        ));
    }
}

/// What holds for calls to a target, in words.
fn lines(process: &str, target: &Value, count: u64) -> Vec<String> {
    let text = |key: &str| target[key].as_str().unwrap_or_default();
    let agent = match text("agent") {
        "" => String::new(),
        agent => format!(" of {agent}"),
    };
    let ejected = target["ejected"].as_u64().unwrap_or_default();
    let left = target["retries_left"].as_f64().unwrap_or_default();
    let skill = text("skill");
    let mut lines = vec![if count == 0 {
        format!("{process}: nobody takes a task for {skill}{agent}: it would wait")
    } else {
        format!(
            "{process}: a task for {skill}{agent} goes to one of {count}; {ejected} left out, {left:.0} retries left"
        )
    }];
    let rules = target["by_rule"].as_array().into_iter().flatten();
    lines.extend(rules.map(|set| {
        let text = |key: &str| set[key].as_str().unwrap_or_default();
        format!(
            "  {} {} by {}",
            text("setting"),
            text("value"),
            text("rule")
        )
    }));
    if lines.len() == 1 {
        lines.push("  no rule says anything: all settings are at their defaults".to_owned());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_behind_each_setting_is_named() {
        let mut target = json!({
            "skill": "s", "agent": "default/a", "ejected": 1, "retries_left": 29.6, "by_rule": [],
        });
        let told = lines("default/home", &target, 3).join("\n");
        assert!(
            told.contains("one of 3; 1 left out, 30 retries left"),
            "{told}"
        );
        assert!(told.contains("no rule"), "{told}");
        target["by_rule"] =
            json!([{"setting": "breaker.enabled", "value": "off", "rule": "default/canary"}]);
        let told = lines("default/home", &target, 3).join("\n");
        assert!(
            told.contains("breaker.enabled off by default/canary"),
            "{told}"
        );
    }
}
