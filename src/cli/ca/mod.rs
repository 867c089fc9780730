//! `attache ca`: make the CA, invite members, issue certificates.

pub(super) mod args;
mod rotation;

use std::{path::Path, time::Duration};

use serde_json::json;

use crate::{
    cli::{
        agents::qualified,
        args::{CaVerb, IssueKind},
        exit::{Exit, Failed},
        mesh::Mesh,
        output::Output,
        show,
    },
    domain::{AgentName, Member, SpiffeId},
    identity::{Authority, Names, Svid, write_secret},
    pb,
    runtime::Nursery,
};

/// Carries out one verb.
///
/// # Errors
/// What the disk or the registry says, in words.
pub(super) async fn run(verb: CaVerb, output: &Output, nursery: &Nursery) -> Result<Exit, Failed> {
    match verb {
        CaVerb::Init {
            dir,
            trust_domain,
            development,
        } => init(&dir, &trust_domain, development, output),
        CaVerb::Token {
            mesh,
            member,
            service,
            ttl,
            instance,
            out,
        } => {
            let mesh = Mesh::find(&mesh, nursery)?;
            let id = id_of(&mesh, &member, service)?;
            let asked = Asked {
                id,
                ttl: ttl.0,
                instance: instance.unwrap_or_default(),
            };
            token(&mesh, asked, out.as_deref(), output).await
        }
        CaVerb::Revoke {
            mesh,
            member,
            service,
            instance,
            reason,
        } => {
            let mesh = Mesh::find(&mesh, nursery)?;
            let request = pb::RevokeRequest {
                spiffe_id: id_of(&mesh, &member, service)?,
                instance_id: instance.unwrap_or_default(),
                reason,
            };
            revoke(&mesh, request, output).await
        }
        CaVerb::Rotate {
            what,
            dir,
            prepare,
            keep,
        } => rotation::rotate(what, &dir, (prepare, keep), output),
        CaVerb::Status { dir } => rotation::status(&dir, output),
        CaVerb::Issue {
            kind,
            name,
            dir,
            out,
            ttl,
        } => issue(kind, &name, &dir, &out, ttl.0, output),
    }
}

fn init(dir: &Path, domain: &str, development: bool, output: &Output) -> Result<Exit, Failed> {
    let domain = domain.parse().map_err(Failed::usage)?;
    if Authority::exists(dir) {
        let text = format!("{} holds a CA already: it is left as it is", dir.display());
        return Err(Failed::new(Exit::Usage, text));
    }
    let names = if development {
        Names::Development
    } else {
        Names::Mesh
    };
    let authority = Authority::create(dir, &domain, names).map_err(Failed::fault)?;
    if output.is_json() {
        let domain = authority.trust_domain().to_string();
        output.json(&json!({ "dir": dir, "trust_domain": domain }));
        return Ok(Exit::Done);
    }
    output.line(&format!(
        "root and issuing CA of {domain} are in {}",
        dir.display()
    ));
    output
        .note("keep root.key.pem offline if you can: only the issuing CA is used from day to day");
    output.note(&format!("next: attache registry --ca {}", dir.display()));
    Ok(Exit::Done)
}

/// The SPIFFE id of whom a command names: a whole one, or `namespace/name`.
fn id_of(mesh: &Mesh, member: &str, service: bool) -> Result<String, Failed> {
    if member.starts_with("spiffe://") {
        return Ok(member.to_owned());
    }
    let kind = if service { "service" } else { "agent" };
    let name: AgentName = qualified(member).parse().map_err(Failed::usage)?;
    let domain = mesh.trust_domain();
    Ok(format!(
        "spiffe://{domain}/ns/{}/{kind}/{}",
        name.namespace, name.name
    ))
}

async fn revoke(mesh: &Mesh, request: pb::RevokeRequest, output: &Output) -> Result<Exit, Failed> {
    let (id, instance) = (request.spiffe_id.clone(), request.instance_id.clone());
    let answer = mesh.identity().revoke(request).await?.into_inner();
    if output.is_json() {
        output.json(&json!({
            "spiffe_id": id,
            "instance_id": instance,
            "revision": answer.revision,
            "instances": answer.instances,
        }));
        return Ok(Exit::Done);
    }
    let whom = match instance.as_str() {
        "" => id,
        instance => format!("instance {instance} of {id}"),
    };
    output.line(&format!("{whom} is shut out"));
    match answer.instances {
        0 => output.note("no instance of that name was known: is it right? `attache agents list`"),
        1 => output.note("1 instance of it was known"),
        more => output.note(&format!("{more} instances of it were known")),
    }
    output.note("connected sidecars refuse it within 5 s, all others when they reach a registry");
    output.note("to let it in again: attache ca token, and join with a new state directory");
    Ok(Exit::Done)
}

struct Asked {
    id: String,
    ttl: Duration,
    instance: String,
}

async fn token(
    mesh: &Mesh,
    asked: Asked,
    out: Option<&Path>,
    output: &Output,
) -> Result<Exit, Failed> {
    let request = pb::CreateJoinTokenRequest {
        spiffe_id: asked.id.clone(),
        ttl: Some(prost_types::Duration::try_from(asked.ttl).map_err(Failed::usage)?),
        instance_id: asked.instance,
    };
    let answer = mesh
        .identity()
        .create_join_token(request)
        .await?
        .into_inner();
    let until = show::time(answer.expires_at.as_ref());
    match out {
        Some(path) => {
            write_secret(path, &answer.join).map_err(Failed::fault)?;
            output.note(&format!(
                "join string for {} in {}",
                asked.id,
                path.display()
            ));
        }
        None if output.is_json() => {
            output.json(&json!({ "join": answer.join, "spiffe_id": asked.id, "expires": until }));
        }
        None => output.line(&answer.join),
    }
    output.note(&format!(
        "good for one use until {until}; hand it over by file or environment"
    ));
    Ok(Exit::Done)
}

fn issue(
    kind: IssueKind,
    name: &str,
    ca: &Path,
    out: &Path,
    ttl: Duration,
    output: &Output,
) -> Result<Exit, Failed> {
    let authority = rotation::open(ca)?;
    let member = match kind {
        IssueKind::Operator => Member::Operator(name.parse().map_err(Failed::usage)?),
        IssueKind::Service => Member::Service(name.parse().map_err(Failed::usage)?),
    };
    let id = SpiffeId {
        trust_domain: authority.trust_domain().clone(),
        member,
    };
    let svid: Svid = authority.svid(&id, None, ttl).map_err(Failed::fault)?;
    svid.save(out).map_err(Failed::fault)?;
    let files = ["ca.pem", "cert.pem", "key.pem"].map(|file| out.join(file));
    if output.is_json() {
        output.json(&json!({
            "spiffe_id": id.to_string(),
            "server_name": id.member.dns_name(),
            "ca": files[0], "cert": files[1], "key": files[2],
        }));
        return Ok(Exit::Done);
    }
    output.line(&format!("certificate of {id} is in {}", out.display()));
    for file in files {
        output.note(&format!("  {}", file.display()));
    }
    output.note(&format!(
        "use it: attache agents list --identity {}",
        out.display()
    ));
    Ok(Exit::Done)
}
