//! Trouble on purpose: faults that a traffic rule makes act on the dispatches of the callers that it
//! names, and end with it; and a rule without a breaker.

use std::{fs, path::PathBuf, time::Duration};

use attache::pb::{self, TaskState, registry_client::RegistryClient};
use serde_json::Value;
use tokio::time::Instant;
use tonic::transport::Endpoint;

use crate::support::{
    client::{self, run, spec, submit, watch_whole},
    hand::{ByHand, page},
    mesh::agent,
    scrape::{OPEN_METRICS, Page},
    wait::{eventually, within},
};

const WEB: &str = "web-1";
const BATCH: &str = "batch-1";
const WORKER: &str = "worker-1";
/// Tasks of a caller of whose calls a share fails.
const TOSSES: u32 = 24;
/// What a rule makes calls wait.
const DELAY: Duration = Duration::from_millis(1500);

struct Stage {
    mesh: ByHand,
    ill: PathBuf,
}

impl Stage {
    /// Two callers, and an agent that is ill as a file says.
    async fn set() -> Self {
        let callers = agent("web", &["test.web"], "") + &agent("batch", &["test.batch"], "");
        let worker = agent("worker", &["test.echo", "test.brief"], "");
        let mut mesh = ByHand::made(&(callers + &worker)).await;
        let ill = mesh.site.path("ill");
        let file = format!("ill={}", ill.display());
        mesh.start_with(&format!("{WORKER}-agent"), |mut command| {
            command.arg(file);
            command
        });
        mesh.start_all().await;
        for caller in [WEB, BATCH] {
            mesh.finds(caller, "test.echo", &[WORKER]).await;
        }
        Self { mesh, ill }
    }

    /// The agent fails like this from now on; `None`: not at all.
    fn infect(&self, how: Option<&str>) {
        let Some(how) = how else {
            return fs::remove_file(&self.ill).unwrap();
        };
        let new = self.mesh.site.path("new");
        fs::write(&new, how).unwrap();
        fs::rename(new, &self.ill).unwrap();
    }

    fn registry(&self) -> RegistryClient<attache::transport::Channel> {
        let pool = client::pool(&self.mesh.site.state().join("operator"));
        client::registry(&pool, &self.mesh.endpoints.registry.mtls)
    }

    /// Puts a rule on calls to the worker, and waits until both callers have it.
    async fn put(&self, rule: pb::TrafficRule) {
        let rule = pb::TrafficRule {
            name: "rehearsal".into(),
            agent: "worker".into(),
            ..rule
        };
        let request = pb::PutRuleRequest {
            rule: Some(rule),
            expected_revision: None,
        };
        let put = within("a rule is taken", self.registry().put_rule(request)).await;
        let revision = put.unwrap().into_inner().rule.unwrap().revision;
        self.heard(Some(revision)).await;
    }

    /// Deletes it, and waits until neither has it.
    async fn delete(&self) {
        let request = pb::DeleteRuleRequest {
            name: "rehearsal".into(),
            ..Default::default()
        };
        let deleted = within("a rule is deleted", self.registry().delete_rule(request)).await;
        deleted.unwrap();
        self.heard(None).await;
    }

    async fn heard(&self, revision: Option<u64>) {
        for caller in [WEB, BATCH] {
            let channel = Endpoint::from_shared(self.mesh.local_address(caller)).unwrap();
            let sidecar = RegistryClient::new(channel.connect_lazy());
            eventually("a sidecar has the rules", || async {
                let request = pb::ListRulesRequest::default();
                let listed = sidecar.clone().list_rules(request).await;
                let listed = listed.map_err(|status| status.to_string())?;
                let rules = listed.into_inner().rules;
                let has = rules.first().map(|rule| rule.revision);
                (has == revision)
                    .then_some(())
                    .ok_or_else(|| format!("{rules:?}"))
            })
            .await;
        }
    }

    /// Runs a task to its end, and says how long it took.
    async fn echo(&self, caller: &str) -> Duration {
        let begun = Instant::now();
        let seen = run(&mut self.mesh.local(caller), spec("test.echo", "x")).await;
        assert_eq!(seen.unwrap().state(), TaskState::Completed);
        begun.elapsed()
    }

    async fn count(&self, caller: &str, family: &str, label: &str) -> f64 {
        let page = Page::of(&self.mesh.admin(caller), OPEN_METRICS).await;
        page.sum(family, &[label])
    }

    /// Calls that the caller's sidecar delayed, and such that it made fail.
    async fn injected(&self, caller: &str) -> (f64, f64) {
        let family = "attache_faults_injected_total";
        let delay = self.count(caller, family, "kind=\"delay\"").await;
        (delay, self.count(caller, family, "kind=\"abort\"").await)
    }

    /// What a caller's sidecar knows of the worker.
    async fn worker(&self, caller: &str) -> Value {
        let path = "/breakers?skill=test.brief&limit=1";
        let page = page(&self.mesh.admin(caller), path).await.unwrap();
        let (_, body) = page.split_once("\r\n\r\n").unwrap();
        let page: Value = serde_json::from_str(body).unwrap();
        page["instances"][0].clone()
    }
}

fn delay(percent: f64) -> Option<pb::RuleDelay> {
    Some(pb::RuleDelay {
        percent,
        duration: DELAY.try_into().ok(),
    })
}

fn abort(percent: f64) -> Option<pb::RuleAbort> {
    Some(pb::RuleAbort {
        percent,
        code: "UNAVAILABLE".into(),
    })
}

fn of(callers: &[&str], fault: pb::RuleFault) -> pb::TrafficRule {
    let callers = callers.iter().map(|caller| (*caller).to_owned()).collect();
    pb::TrafficRule {
        faults: vec![pb::RuleFault { callers, ..fault }],
        ..Default::default()
    }
}

#[tokio::test]
async fn faults_act_on_the_callers_that_a_rule_names_and_end_with_it() {
    let stage = Stage::set().await;
    assert_eq!(stage.injected(WEB).await, (0.0, 0.0));

    let late = pb::RuleFault {
        delay: delay(100.0),
        ..Default::default()
    };
    stage.put(of(&["web"], late)).await;
    assert!(stage.echo(WEB).await >= DELAY);
    stage.echo(BATCH).await;
    assert_eq!(stage.injected(WEB).await, (1.0, 0.0));
    assert_eq!(stage.injected(BATCH).await, (0.0, 0.0));

    // All of one caller's calls fail: its tasks wait, and nobody blames the instance.
    let broken = pb::RuleFault {
        abort: abort(100.0),
        ..Default::default()
    };
    stage.put(of(&["web"], broken)).await;
    let mut web = stage.mesh.local(WEB);
    let task = submit(&mut web, spec("test.echo", "x")).await.unwrap();
    eventually("it is tried again and again", || async {
        let (_, aborted) = stage.injected(WEB).await;
        (aborted >= 4.0)
            .then_some(())
            .ok_or_else(|| aborted.to_string())
    })
    .await;
    stage.echo(BATCH).await;
    assert_eq!(stage.injected(BATCH).await, (0.0, 0.0));
    assert_eq!(stage.worker(WEB).await["breaker"], "closed");
    assert_eq!(stage.worker(WEB).await["failures_in_a_row"], 0);
    let now = client::full(&mut web, &task.id).await.unwrap();
    assert!(now.ended_at.is_none(), "{now:?}");
    stage.delete().await;
    let seen = watch_whole(&mut web, &task.id).await;
    assert_eq!(seen.state(), TaskState::Completed);

    let (_, before) = stage.injected(WEB).await;
    for caller in [WEB, BATCH] {
        stage.echo(caller).await;
    }
    assert_eq!(stage.injected(WEB).await, (1.0, before), "it has ended");
}

#[tokio::test]
async fn a_share_of_the_calls_of_all_fails_and_no_task_does() {
    let stage = Stage::set().await;
    let half = pb::RuleFault {
        abort: abort(50.0),
        ..Default::default()
    };
    stage.put(of(&[], half)).await;
    for caller in [WEB, BATCH] {
        for _ in 0..TOSSES {
            stage.echo(caller).await;
        }
        let (_, aborted) = stage.injected(caller).await;
        let taken = "attache_dispatch_picks_total";
        let taken = stage.count(caller, taken, "outcome=\"taken\"").await;
        // A fair coin, tossed for each task at the least: for one of both callers it falls on one
        // side only in one of eight million runs.
        assert!(aborted > 0.0, "{caller}");
        assert_eq!(
            taken,
            f64::from(TOSSES) + aborted,
            "{caller}: what failed went again"
        );
        let said = "attache_dispatches_total";
        let said = stage.count(caller, said, "outcome=\"nothing\"").await;
        assert_eq!(said, aborted, "{caller}: they say nothing of the instance");
    }
    stage.delete().await;
    let (_, before) = stage.injected(WEB).await;
    for _ in 0..12 {
        stage.echo(WEB).await;
    }
    assert_eq!(stage.injected(WEB).await, (0.0, before));
}

#[tokio::test]
async fn without_a_breaker_an_instance_that_fails_is_given_work() {
    let stage = Stage::set().await;
    let off = pb::RuleBreaker {
        enabled: Some(false),
        ..Default::default()
    };
    stage
        .put(pb::TrafficRule {
            breaker: Some(off),
            ..Default::default()
        })
        .await;
    stage.infect(Some("unavailable 1"));
    let fails = async || {
        let seen = run(&mut stage.mesh.local(WEB), spec("test.brief", "1")).await;
        assert_eq!(seen.unwrap().state(), TaskState::Failed);
    };
    for _ in 0..12 {
        fails().await;
    }
    let worker = stage.worker(WEB).await;
    assert_eq!(worker["breaker"], "closed", "{worker}");
    assert_eq!(worker["failures_in_a_row"], 12, "{worker}");
    let opened = "attache_breaker_openings_total";
    assert_eq!(stage.count(WEB, opened, "reason=").await, 0.0);

    stage.delete().await;
    fails().await;
    let worker = stage.worker(WEB).await;
    assert_ne!(worker["breaker"], "closed", "{worker}");
    let row = stage.count(WEB, opened, "reason=\"consecutive\"").await;
    assert_eq!(row, 1.0, "{worker}");
    let closed = stage
        .count(WEB, "attache_breakers", "state=\"closed\"")
        .await;
    assert_eq!(closed, 2.0, "the two callers");

    // Its probe is the next task, which waits for it.
    stage.infect(None);
    let seen = run(&mut stage.mesh.local(WEB), spec("test.brief", "1")).await;
    assert_eq!(seen.unwrap().state(), TaskState::Completed);
    let closings = "attache_breaker_closings_total";
    assert_eq!(stage.count(WEB, closings, "reason=\"probe\"").await, 1.0);
    assert_eq!(stage.worker(WEB).await["breaker"], "closed");
}
