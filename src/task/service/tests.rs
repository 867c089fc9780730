//! Who may do what by which listener.

use std::sync::Arc;

use tonic::{Code, Request};
use tonic_types::StatusExt;

use crate::contract::Contract;
use crate::domain::{InstanceId, Label, SpiffeId};
use crate::identity::{Caller, Connection, Peer};
use crate::pb;
use crate::pb::agent_server::Agent;
use crate::runtime::{Nursery, clock};
use crate::task::doors::{
    Call, Connect, Parent, Parents, Pick, Promise, Route, Steps, Updates, Want,
};
use crate::task::home::{Home, HomeConfig, Replay};
use crate::task::journal::Journal;
use crate::telemetry::TraceContext;
use crate::wire::status::reason_of;

use super::{AgentService, HomeService, Surroundings};

struct Nothing;

/// A sidecar that sees agents with these input schemas; an empty one is not at hand.
struct Promising(Vec<&'static str>);

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

#[tonic::async_trait]
impl Surroundings for Promising {
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
    fn promises(&self, _: &Label, _: &pb::Selector) -> Vec<Promise> {
        let promise = |place: usize| Promise {
            agent: "default/worker".into(),
            schemas: vec![u8::try_from(place).unwrap()],
            input_modes: Vec::new(),
        };
        (0..self.0.len()).map(promise).collect()
    }
    async fn contract(&self, promise: &Promise) -> Option<Arc<Contract>> {
        let schema = self.0[usize::from(promise.schemas[0])];
        let skill = pb::Skill {
            input_schema: schema.into(),
            ..Default::default()
        };
        (!schema.is_empty()).then(|| Arc::new(Contract::of(&skill).unwrap()))
    }
    fn reach(&self, _: &InstanceId) -> Option<HomeService> {
        None
    }
}

fn service() -> AgentService {
    service_seeing(Vec::new())
}

fn service_seeing(schemas: Vec<&'static str>) -> AgentService {
    let config = HomeConfig {
        instance: "home".parse().unwrap(),
        own: "spiffe://attache.local/ns/default/agent/worker"
            .parse()
            .unwrap(),
        lost_after: crate::task::home::LOST_AFTER,
        descendants: crate::task::descendants::DESCENDANTS_MAX,
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
    AgentService::new(home.unwrap(), Arc::new(Promising(schemas)), 0)
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
    let answer = pb::RespondTaskRequest {
        task_id: elsewhere.clone(),
        question_id: "q1".into(),
        parts: vec![pb::Part::default()],
    };
    let status = service.respond_task(by(peer(), answer)).await.unwrap_err();
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
    // A bare name is one of the caller's namespace.
    for (agent, found) in [
        ("worker", 5),
        ("default/worker", 5),
        ("peer", 0),
        ("other/worker", 0),
    ] {
        let named = pb::ListTasksRequest {
            agent: agent.into(),
            ..Default::default()
        };
        let page = service.list_tasks(by(peer(), named)).await.unwrap();
        assert_eq!(page.into_inner().tasks.len(), found, "{agent}");
    }
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

#[tokio::test(start_paused = true)]
async fn input_that_nobody_takes_is_refused_before_it_is_accepted() {
    let (number, list) = (r#"{"type":"number"}"#, r#"{"type":"array","maxItems":1}"#);
    for (schemas, taken) in [
        (vec![], true),
        (vec![number], false),
        (vec![list], true),
        (vec![number, list], true),
        (vec![number, ""], true),
        (vec![number, number], false),
    ] {
        let service = service_seeing(schemas.clone());
        let mut asked = submit("work.do", "");
        let spec = asked.spec.as_mut().unwrap();
        spec.input = vec![pb::Part {
            content: Some(pb::part::Content::Text("[1]".into())),
            media_type: "application/json".into(),
            ..Default::default()
        }];
        let run = pb::RunTaskRequest {
            spec: asked.spec.clone(),
        };
        let ran = service.run_task(by(Caller::Local, run)).await.map(drop);
        let submitted = service.submit_task(by(Caller::Local, asked)).await;
        for answer in [ran, submitted.map(drop)] {
            assert_eq!(answer.is_ok(), taken, "{schemas:?}");
            let Err(status) = answer else { continue };
            assert_eq!(status.code(), Code::InvalidArgument);
            assert_eq!(reason_of(&status).as_deref(), Some("INPUT_INVALID"));
            let facts = status.get_details_error_info().unwrap().metadata;
            assert_eq!((&*facts["pointer"], &*facts["rule"]), ("", "type"));
            assert_eq!(facts["expected"], number);
            let fields = status.get_details_bad_request().unwrap().field_violations;
            assert_eq!(fields[0].field, "spec.input[0].text");
        }
        let asked = pb::ListTasksRequest::default();
        let kept = service.list_tasks(by(Caller::Local, asked)).await.unwrap();
        assert_eq!(kept.into_inner().tasks.len(), if taken { 2 } else { 0 });
    }
}

#[tokio::test(start_paused = true)]
async fn what_breaks_a_bound_of_all_tasks_is_told_as_that() {
    let service = service_seeing(vec!["false"]);
    let mut asked = submit("work.do", "");
    asked.spec.as_mut().unwrap().input = vec![pb::Part::default()];
    let refused = service.submit_task(by(Caller::Local, asked)).await;
    assert_eq!(
        reason_of(&refused.unwrap_err()).as_deref(),
        Some("INVALID_FIELD")
    );
}

#[tokio::test(start_paused = true)]
async fn another_agent_has_nobody_told_but_itself() {
    let service = service();
    let told = |agent: &str| {
        let mut request = submit("work.do", "");
        let skill = pb::AgentSkill {
            agent: agent.into(),
            skill: "work.told".into(),
        };
        let spec = request.spec.get_or_insert_default();
        spec.options.get_or_insert_default().callback = Some(pb::Callback {
            target: Some(pb::callback::Target::Agent(skill)),
            ..Default::default()
        });
        request
    };
    let peer = || member("ns/default/agent/peer");
    service.submit_task(by(peer(), told("peer"))).await.unwrap();
    for other in ["default/other", "worker"] {
        let status = service.submit_task(by(peer(), told(other))).await;
        let status = status.unwrap_err();
        assert_eq!(
            reason_of(&status).as_deref(),
            Some("PERMISSION_DENIED"),
            "{other}"
        );
    }
    // Operators may submit to anybody themselves.
    let operator = by(member("operator/ops"), told("default/other"));
    service.submit_task(operator).await.unwrap();
}
