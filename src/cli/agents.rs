//! `attache agents`: who is here, and what they can do.

use serde_json::json;

use crate::{
    cli::{
        args::AgentsVerb,
        exit::{Exit, Failed},
        mesh::{Found, Mesh},
        output::Output,
        show,
    },
    pb::{self, watch_response::Change},
    runtime::Nursery,
    wire::json as wire_json,
};

/// Carries out one verb.
///
/// # Errors
/// What the registry answers, in words.
pub(super) async fn run(
    verb: AgentsVerb,
    output: &Output,
    nursery: &Nursery,
) -> Result<Exit, Failed> {
    match verb {
        AgentsVerb::List {
            mesh,
            namespace,
            skill,
        } => {
            let mesh = Mesh::find(&mesh, nursery)?;
            list(&mesh, namespace.as_deref(), skill.as_deref(), output).await
        }
        AgentsVerb::Show { mesh, agent } => {
            let mesh = Mesh::find(&mesh, nursery)?;
            show_one(&mesh, &agent, output).await
        }
        AgentsVerb::Watch { mesh } => watch(&Mesh::find(&mesh, nursery)?, output).await,
    }
}

async fn list(
    mesh: &Mesh,
    namespace: Option<&str>,
    skill: Option<&str>,
    output: &Output,
) -> Result<Exit, Failed> {
    let mut found = mesh.everybody().await?;
    found.retain(|found| {
        namespace.is_none_or(|space| found.card.namespace == space)
            && skill.is_none_or(|skill| found.card.skills.iter().any(|has| has.name == skill))
    });
    if output.is_json() {
        output.json(&found.iter().map(as_json).collect());
        return Ok(Exit::Done);
    }
    if found.is_empty() {
        output.note(match (namespace, skill) {
            (None, None) => "nobody is in the mesh yet: start a sidecar with `attache sidecar`",
            _ => "nobody fits; `attache agents list` without filters shows everybody",
        });
        return Ok(Exit::Done);
    }
    let rows = found.iter().map(row).collect();
    output.table(
        &["agent", "version", "instance", "health", "load", "skills"],
        rows,
    );
    Ok(Exit::Done)
}

fn row(found: &Found) -> Vec<String> {
    let load = found.instance.load.unwrap_or_default();
    let skills: Vec<&str> = found
        .card
        .skills
        .iter()
        .map(|skill| skill.name.as_str())
        .collect();
    vec![
        format!("{}/{}", found.card.namespace, found.card.name),
        found.card.version.clone(),
        found.instance.id.clone(),
        show::health(found.instance.health()).to_owned(),
        format!("{}/{}", load.running, load.slots),
        skills.join(" "),
    ]
}

fn as_json(found: &Found) -> serde_json::Value {
    json!({
        "card": wire_json::message("AgentCard", found.card.as_ref()),
        "instance": wire_json::message("Instance", &found.instance),
    })
}

async fn show_one(mesh: &Mesh, agent: &str, output: &Output) -> Result<Exit, Failed> {
    let mut request = pb::GetAgentRequest {
        agent: qualified(agent),
        ..Default::default()
    };
    let mut all = pb::GetAgentResponse::default();
    loop {
        let page = mesh
            .registry()
            .get_agent(request.clone())
            .await?
            .into_inner();
        all.cards.extend(page.cards);
        all.instances.extend(page.instances);
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    if output.is_json() {
        output.json(&wire_json::message("GetAgentResponse", &all));
        return Ok(Exit::Done);
    }
    for card in &all.cards {
        output.line(&format!(
            "{}/{} {}",
            card.namespace, card.name, card.version
        ));
        output.line(&format!("  {}", super::output::clean(&card.description)));
        for skill in &card.skills {
            show_skill(skill, output);
        }
    }
    let rows = all.instances.iter().map(|instance| {
        vec![
            instance.id.clone(),
            show::health(instance.health()).to_owned(),
            instance.endpoints.join(" "),
            instance.tls_server_name.clone(),
            show::time(instance.started_at.as_ref()),
        ]
    });
    output.table(
        &["instance", "health", "endpoints", "server name", "started"],
        rows.collect(),
    );
    Ok(Exit::Done)
}

fn show_skill(skill: &pb::Skill, output: &Output) {
    let again = if skill.idempotent {
        ", may run twice"
    } else {
        ""
    };
    output.line(&format!("  {} {}{again}", skill.name, skill.version));
    output.line(&format!("    {}", super::output::clean(&skill.description)));
    for (word, schema) in [
        ("takes", &skill.input_schema),
        ("gives", &skill.output_schema),
    ] {
        if !schema.is_empty() {
            output.line(&format!("    {word} {}", show::schema(schema)));
        }
    }
}

/// An operator has no namespace of its own: a bare name is one in `default`.
pub(super) fn qualified(agent: &str) -> String {
    if agent.is_empty() || agent.contains('/') {
        return agent.to_owned();
    }
    format!("{}/{agent}", crate::domain::ids::DEFAULT_NAMESPACE)
}

async fn watch(mesh: &Mesh, output: &Output) -> Result<Exit, Failed> {
    let mut changes = mesh
        .registry()
        .watch(pb::WatchRequest::default())
        .await?
        .into_inner();
    output.note("changes as they happen; Ctrl-C ends");
    loop {
        let next = tokio::select! {
            next = changes.message() => next?,
            _ = tokio::signal::ctrl_c() => return Ok(Exit::Interrupted),
        };
        let Some(response) = next else {
            return Ok(Exit::Done);
        };
        if output.is_json() {
            output.json(&wire_json::message("WatchResponse", &response));
            continue;
        }
        if let Some(rules) = response.rules.filter(|told| !told.rules.is_empty()) {
            let names = rules
                .rules
                .iter()
                .map(|rule| format!("{}/{}", rule.namespace, rule.name));
            let names: Vec<_> = names.collect();
            output.line(&format!("traffic rules: {}", names.join(" ")));
        }
        match &response.change {
            Some(Change::Instance(instance)) => {
                let health = show::health(instance.health());
                output.line(&format!("{} {health} {}", instance.id, instance.spiffe_id));
            }
            Some(Change::Gone(gone)) => output.line(&format!("{} gone", gone.id)),
            Some(Change::Card(card)) => {
                let skills: Vec<&str> = card.skills.iter().map(|s| s.name.as_str()).collect();
                let name = format!("{}/{} {}", card.namespace, card.name, card.version);
                output.line(&format!("card {name}: {}", skills.join(" ")));
            }
            Some(Change::SnapshotEnd(_)) => output.line("-- that is everybody now --"),
            Some(Change::SnapshotBegin(_) | Change::Keepalive(_)) | None => {}
        }
    }
}
