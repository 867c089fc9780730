//! Skills that make a tree of tasks, and leaves that are asked to stop.
//!
//! - `test.fan*`: `COUNT SKILL REST` runs COUNT children of SKILL with REST at once, and waits.
//! - `test.pass*`: `TO REST` hands its task over, with REST as the input; without REST, with its own.
//! - `test.bomb.N`: makes children for `test.bomb.N+1` until it is refused one, and waits.
//! - `test.leaf`: `obeys` ends as canceled when it is asked to stop; `deaf` goes on until it is cut.
//!
//! When the call of one of them is over, TEST_RUNS gets a line that begins with `over`.

use std::{
    collections::HashMap,
    env,
    sync::{Arc, LazyLock, Mutex},
};

use attache::pb::{self, HandleResponse, agent_client::AgentClient, handle_response::Update};
use futures_util::future::join_all;
use tokio::sync::Notify;
use tonic::{Status, transport::Endpoint};

use crate::{Updates, note, result, text_part};

/// Leaves that run, by their tasks.
static LEAVES: LazyLock<Mutex<HashMap<String, Arc<Notify>>>> = LazyLock::new(Mutex::default);

pub(crate) async fn fan(task: &str, text: &str, token: &str, updates: &Updates) {
    let words: Vec<&str> = text.splitn(3, ' ').collect();
    let [count, skill, rest] = words[..] else {
        panic!("{text}")
    };
    let sidecar = Endpoint::from_shared(env::var("ATTACHE_SIDECAR").unwrap()).unwrap();
    let sidecar = AgentClient::new(sidecar.connect_lazy());
    let child = async || {
        let spec = pb::TaskSpec {
            selector: Some(pb::Selector {
                skill: skill.into(),
                ..Default::default()
            }),
            input: vec![text_part(rest)],
            parent_token: token.into(),
            ..Default::default()
        };
        let request = pb::RunTaskRequest { spec: Some(spec) };
        let mut stream = sidecar.clone().run_task(request).await?.into_inner();
        while stream.message().await?.is_some() {}
        Ok::<_, Status>(())
    };
    let children = join_all((0..count.parse().unwrap()).map(|_| child()));
    tokio::select! {
        // It hears of its own end from its sidecar; that of its children is not its business.
        () = updates.closed() => {}
        _ = children => {
            drop(updates.send(Ok(HandleResponse { update: result("all done") })).await);
            updates.closed().await;
        }
    }
    note(&format!("over {task} 1"));
}

/// Makes children without end, each of which does the same, until it is refused one.
pub(crate) async fn bomb(task: &str, skill: &str, token: &str, updates: &Updates) {
    let (_, depth) = skill.rsplit_once('.').unwrap();
    let depth: u32 = depth.parse().unwrap();
    let sidecar = Endpoint::from_shared(env::var("ATTACHE_SIDECAR").unwrap()).unwrap();
    let mut sidecar = AgentClient::new(sidecar.connect_lazy());
    let refused = async {
        loop {
            let spec = pb::TaskSpec {
                selector: Some(pb::Selector {
                    skill: format!("test.bomb.{}", depth + 1),
                    ..Default::default()
                }),
                parent_token: token.into(),
                ..Default::default()
            };
            let request = pb::SubmitTaskRequest { spec: Some(spec) };
            if let Err(status) = sidecar.submit_task(request).await {
                return status;
            }
        }
    };
    tokio::select! {
        () = updates.closed() => {}
        status = refused => {
            let reason = attache::wire::status::reason_of(&status).unwrap_or_default();
            note(&format!("{:?}:{reason} {task} 1", status.code()));
            updates.closed().await;
        }
    }
    note(&format!("over {task} 1"));
}

pub(crate) async fn leaf(task: &str, text: &str, updates: &Updates) {
    let asked = Arc::new(Notify::new());
    let known = LEAVES
        .lock()
        .unwrap()
        .insert(task.to_owned(), asked.clone());
    assert!(known.is_none(), "{task} is here twice");
    tokio::select! {
        () = updates.closed() => {}
        () = asked.notified(), if text == "obeys" => {
            let update = Some(Update::Canceled(pb::Canceled::default()));
            drop(updates.send(Ok(HandleResponse { update })).await);
        }
    }
    LEAVES.lock().unwrap().remove(task);
    note(&format!("over {task} 1"));
}

/// Whom `SKILL@AGENT?AGENT/SKILL,..` means, and the scope of what it gets; all but the skill may be
/// left out.
pub(crate) fn meant(to: &str) -> (pb::Selector, Vec<pb::AgentSkill>) {
    let (to, scope) = to.split_once('?').unwrap_or((to, ""));
    let (skill, agent) = to.split_once('@').unwrap_or((to, ""));
    let selector = pb::Selector {
        skill: skill.into(),
        agent: agent.into(),
        ..Default::default()
    };
    let scope = scope.split(',').filter_map(|one| {
        let (agent, skill) = one.rsplit_once('/')?;
        Some(pb::AgentSkill {
            agent: agent.into(),
            skill: skill.into(),
        })
    });
    (selector, scope.collect())
}

pub(crate) async fn pass(text: &str, updates: &Updates) {
    let (to, rest) = text.split_once(' ').unwrap_or((text, ""));
    let (selector, _) = meant(to);
    let rest = (!rest.is_empty()).then(|| text_part(rest));
    let said = [
        Update::Message(pb::Message {
            parts: vec![text_part("somebody else can do this better")],
            ..Default::default()
        }),
        Update::Delegation(pb::Delegation {
            to: Some(pb::AgentSkill {
                agent: selector.agent,
                skill: selector.skill,
            }),
            input: rest.into_iter().collect(),
        }),
    ];
    for update in said {
        let update = Some(update);
        drop(updates.send(Ok(HandleResponse { update })).await);
    }
}

/// Asks a leaf to stop; whether there is one.
pub(crate) fn stop(task: &str) -> bool {
    let leaves = LEAVES.lock().unwrap();
    leaves.get(task).inspect(|leaf| leaf.notify_one()).is_some()
}
