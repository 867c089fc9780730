//! Who may do what by which listener.

use std::sync::Arc;

use tonic::{Code, Request};

use crate::domain::{InstanceId, SpiffeId};
use crate::identity::{Caller, Connection, Peer};
use crate::pb;
use crate::pb::agent_server::Agent;
use crate::runtime::{Nursery, clock};
use crate::task::doors::{Call, Connect, Parent, Parents, Pick, Route, Steps, Updates, Want};
use crate::task::home::{Home, HomeConfig, Replay};
use crate::task::journal::Journal;
use crate::telemetry::TraceContext;
use crate::wire::status::reason_of;

use super::{AgentService, HomeService, Surroundings};

struct Nothing;

impl Route for Nothing {
    fn pick(&self, _: &Want<'_>, _: tokio::time::Instant) -> Pick {
        Pick::Nobody
    }
    fn changes(&self) -> tokio::sync::watch::Receiver<u64> {
        tokio::sync::watch::Sender::new(0).subscribe()
    }
}

#[tonic::async_trait]
impl Connect for Nothing {
    async fn execute(
        &self,
        _: &InstanceId,
        _: Steps,
        _: Option<Box<Call>>,
        _: Option<&TraceContext>,
    ) -> Result<Updates, tonic::Status> {
        Err(tonic::Status::unavailable("nobody"))
    }
}

impl Parents for Nothing {
    fn parent(&self, _: &str) -> Option<Parent> {
        None
    }

    fn lives(&self, _: &str) -> bool {
        false
    }

    fn over(&self) -> tokio::sync::broadcast::Receiver<Arc<str>> {
        tokio::sync::broadcast::Sender::new(1).subscribe()
    }
}

impl Surroundings for Nothing {
    fn card(&self) -> Option<Arc<pb::AgentCard>> {
        let skills = vec![pb::Skill {
            name: "work.do".into(),
            ..Default::default()
        }];
        Some(Arc::new(pb::AgentCard {
            skills,
            ..Default::default()
        }))
    }
    fn instance(&self) -> pb::Instance {
        pb::Instance::default()
    }
    fn endpoint(&self, _: &InstanceId) -> Option<String> {
        Some("10.0.0.1:7643".into())
    }
    fn reach(&self, _: &InstanceId) -> Option<HomeService> {
        None
    }
}

fn service() -> AgentService {
    let config = HomeConfig {
        instance: "home".parse().unwrap(),
        own: "spiffe://attache.local/ns/default/agent/worker"
            .parse()
            .unwrap(),
        lost_after: crate::task::home::LOST_AFTER,
    };
    let replay = Replay::new(&config.instance, 1);
    let (route, connect): (Arc<dyn Route>, Arc<dyn Connect>) =
        (Arc::new(Nothing), Arc::new(Nothing));
    let home = (Journal::memory(), replay);
    let home = Home::on(
        config,
        home,
        &route,
        &connect,
        Arc::new(Nothing),
        vec![Nursery::here()],
    );
    AgentService::new(home.unwrap(), Arc::new(Nothing), 0)
}

fn by<T>(caller: Caller, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let connection = Connection {
        caller,
        remote: None,
        local: None,
        exporter: None,
    };
    request.extensions_mut().insert(Arc::new(connection));
    request
}

fn member(path: &str) -> Caller {
    let id: SpiffeId = format!("spiffe://attache.local/{path}").parse().unwrap();
    let (not_before, not_after) = (clock::wall(), clock::wall());
    let peer = Peer {
        id,
        instance: None,
        not_before,
        not_after,
        serial: String::new(),
        key: [0; 32],
    };
    Caller::Member(Arc::new(peer))
}

fn submit(skill: &str, agent: &str) -> pb::SubmitTaskRequest {
    let selector = Some(pb::Selector {
        skill: skill.into(),
        agent: agent.into(),
        ..Default::default()
    });
    pb::SubmitTaskRequest {
        spec: Some(pb::TaskSpec {
            selector,
            ..Default::default()
        }),
    }
}

#[tokio::test(start_paused = true)]
async fn outside_only_the_own_agents_skills_are_taken() {
    let service = service();
    for (who, skill, agent, answer) in [
        (
            member("ns/default/agent/peer"),
            "work.do",
            "",
            Ok("default/worker"),
        ),
        (
            member("ns/default/service/web"),
            "work.do",
            "worker",
            Ok("default/worker"),
        ),
        (member("operator/ops"), "work.do", "", Ok("default/worker")),
        (
            member("ns/default/agent/peer"),
            "other.do",
            "",
            Err("NOT_OWN_AGENT"),
        ),
        (
            member("ns/default/agent/peer"),
            "work.do",
            "other",
            Err("NOT_OWN_AGENT"),
        ),
        (
            member("ns/prod/agent/peer"),
            "work.do",
            "",
            Err("PERMISSION_DENIED"),
        ),
        (Caller::Anonymous, "work.do", "", Err("UNAUTHENTICATED")),
        (Caller::Local, "other.do", "", Ok("")),
        (Caller::Local, "other.do", "someone", Ok("default/someone")),
        (
            Caller::Local,
            "other.do",
            "prod/someone",
            Err("PERMISSION_DENIED"),
        ),
    ] {
        let answered = service.submit_task(by(who, submit(skill, agent))).await;
        let answered = answered.map(|response| response.into_inner().task.unwrap().agent);
        let answered = answered.map_err(|status| reason_of(&status).unwrap());
        assert_eq!(
            answered.as_deref().map_err(String::as_str),
            answer,
            "{skill} of {agent:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn tasks_are_found_by_their_parties_and_at_their_home() {
    let service = service();
    let peer = || member("ns/default/agent/peer");
    let submitted = service
        .submit_task(by(peer(), submit("work.do", "")))
        .await
        .unwrap();
    let task_id = submitted.into_inner().task.unwrap().id;
    let get = |task_id: &str| pb::GetTaskRequest {
        task_id: task_id.into(),
        ..Default::default()
    };
    assert!(service.get_task(by(peer(), get(&task_id))).await.is_ok());
    assert!(
        service
            .get_task(by(member("operator/ops"), get(&task_id)))
            .await
            .is_ok()
    );
    let stranger = member("ns/default/agent/stranger");
    let hidden = service
        .get_task(by(stranger, get(&task_id)))
        .await
        .unwrap_err();
    assert_eq!(hidden.code(), Code::NotFound);
    let elsewhere = task_id.replace("home.", "other.");
    let status = service
        .get_task(by(peer(), get(&elsewhere)))
        .await
        .unwrap_err();
    assert_eq!(reason_of(&status).as_deref(), Some("HOME_ELSEWHERE"));
    let status = service
        .get_task(by(Caller::Local, get(&elsewhere)))
        .await
        .unwrap_err();
    assert_eq!(reason_of(&status).as_deref(), Some("HOME_UNAVAILABLE"));
    let status = service
        .get_task(by(peer(), get("nonsense")))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[tokio::test(start_paused = true)]
async fn pages_follow_each_other_and_tokens_are_bound() {
    let service = service();
    let peer = || member("ns/default/agent/peer");
    for _ in 0..5 {
        service
            .submit_task(by(peer(), submit("work.do", "")))
            .await
            .unwrap();
    }
    let mut list = pb::ListTasksRequest {
        page_size: 2,
        ..Default::default()
    };
    let mut sizes = Vec::new();
    loop {
        let page = service
            .list_tasks(by(peer(), list.clone()))
            .await
            .unwrap()
            .into_inner();
        sizes.push(page.tasks.len());
        if page.next_page_token.is_empty() {
            break;
        }
        list.page_token = page.next_page_token;
    }
    assert_eq!(sizes, [2, 2, 1]);
    let other = member("operator/ops");
    let status = service
        .list_tasks(by(other, list.clone()))
        .await
        .unwrap_err();
    assert_eq!(reason_of(&status).as_deref(), Some("PAGE_TOKEN_INVALID"));
    list.skill = "x".into();
    let status = service.list_tasks(by(peer(), list)).await.unwrap_err();
    assert_eq!(reason_of(&status).as_deref(), Some("PAGE_TOKEN_INVALID"));
}
