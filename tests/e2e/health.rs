//! Agents that are not well get nothing new, by whatever way they say so, and come back.

use std::{fs, time::Duration};

use attache::pb::{self, TaskState, registry_client::RegistryClient, task_event::Kind};
use rustix::process::Signal;
use tokio::time::Instant;
use tonic::{Code, Streaming, transport::Endpoint};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_client::HealthClient,
};

use crate::support::{
    client::{self, Local, spec},
    hand::page,
    mesh::{Site, Up, agent},
    process::signal,
    scrape::{OPEN_METRICS, Page},
    wait::{eventually, within},
};

/// Within this an agent that hangs is out: 5 s to the next look, three misses of 1 s with a second
/// between, and the way through the catalog.
const HUNG: Duration = Duration::from_secs(11);
/// For a machine that is busy with other tests.
const SLACK: Duration = Duration::from_secs(10);

/// An agent "one" and an agent "two" that do the same, with these arguments, and a home.
fn site(one: &str, two: &str) -> Site {
    let with = |name, arguments: &str| {
        let arguments: Vec<&str> = arguments.split_whitespace().collect();
        agent(name, &["test.echo"], &format!("args = {arguments:?}"))
    };
    Site::new(&(agent("home", &["test.home"], "") + &with("one", one) + &with("two", two)))
}

fn home(up: &Up) -> Local {
    client::local(&up.instance("default/home", 0).local)
}

/// Names of the agents that the home finds for the skill.
async fn serving(up: &Up) -> Result<Vec<String>, String> {
    let address = up.instance("default/home", 0).local.clone();
    let channel = Endpoint::from_shared(address).unwrap().connect_lazy();
    let selector = Some(pb::Selector {
        skill: "test.echo".into(),
        ..Default::default()
    });
    let request = pb::DiscoverRequest { selector, limit: 0 };
    let answer = RegistryClient::new(channel).discover(request).await;
    let answer = answer.map_err(|status| status.to_string())?.into_inner();
    let found = answer.instances.iter();
    let mut found: Vec<_> = found.map(|one| name(up, &one.id)).collect();
    found.sort_unstable();
    Ok(found)
}

fn name(up: &Up, instance: &str) -> String {
    let all = &up.endpoints.instances;
    let found = all.iter().find(|one| one.instance == instance).unwrap();
    found.agent.trim_start_matches("default/").to_owned()
}

/// Waits until the home finds these; says how long that took.
async fn finds(up: &Up, wanted: &[&str]) -> Duration {
    let began = Instant::now();
    eventually(&format!("{wanted:?} are found"), || async {
        let found = serving(up).await?;
        (found == wanted)
            .then_some(())
            .ok_or_else(|| format!("{found:?}"))
    })
    .await;
    began.elapsed()
}

/// Runs tasks at the home; all have to complete, on these agents.
async fn works(up: &Up, agents: &[&str]) {
    let mut home = home(up);
    for number in 0..10 {
        let text = format!("hello {number}");
        let ran = client::run(&mut home, client::bounded("test.echo", &text, 50)).await;
        let ran = ran.unwrap();
        assert_eq!(
            ran.result().as_deref(),
            Some(text.as_str()),
            "{:?}",
            ran.failure()
        );
        let task = client::full(&mut home, &ran.id).await.unwrap();
        let by = name(up, &task.executor_instance);
        assert!(agents.contains(&by.as_str()), "{by}");
    }
}

/// What `/readyz` of an agent's sidecar says.
async fn readyz(up: &Up, agent: &str) -> String {
    let at = up.instance(&format!("default/{agent}"), 0);
    page(&at.admin, "/readyz").await.unwrap()
}

/// Looks at an agent of this kind and outcome so far.
async fn looks(up: &Up, agent: &str, labels: &[&str]) -> f64 {
    let at = up.instance(&format!("default/{agent}"), 0);
    let page = Page::of(&at.admin, OPEN_METRICS).await;
    page.sum("attache_agent_looks_total", labels)
}

async fn healthy(up: &Up, agent: &str) -> f64 {
    let at = up.instance(&format!("default/{agent}"), 0);
    Page::of(&at.admin, OPEN_METRICS)
        .await
        .sum("attache_agent_healthy", &[])
}

#[tokio::test]
async fn an_agent_that_says_that_it_does_not_serve_is_left_and_comes_back() {
    for (kind, how) in [
        ("watch", "health=watch sick=sick"),
        ("check", "health=check sick=sick"),
    ] {
        let site = site(how, "");
        let up = site.up(&[]).await;
        finds(&up, &["one", "two"]).await;
        assert!(looks(&up, "one", &[&format!("kind=\"{kind}\"")]).await > 0.0);
        fs::write(site.path("sick"), "").unwrap();
        let took = finds(&up, &["two"]).await;
        if kind == "watch" {
            // It pushes: nobody waits for the next look.
            assert!(took < Duration::from_secs(4), "{took:?}");
        }
        let said = readyz(&up, "one").await;
        assert!(
            said.contains("503") && said.contains("NOT_SERVING"),
            "{said}"
        );
        assert_eq!(
            (healthy(&up, "one").await, healthy(&up, "two").await),
            (0.0, 1.0)
        );
        works(&up, &["two"]).await;
        fs::remove_file(site.path("sick")).unwrap();
        finds(&up, &["one", "two"]).await;
        assert_eq!(healthy(&up, "one").await, 1.0);
    }
}

#[tokio::test]
async fn an_agent_is_asked_as_the_mesh_file_says() {
    let told = "args = [\"health=watch\"]\nagent_health = \"connect\"";
    let told = agent("one", &["test.echo"], told);
    let site = Site::new(&(agent("home", &["test.home"], "") + &told));
    let up = site.up(&[]).await;
    finds(&up, &["one"]).await;
    assert!(looks(&up, "one", &["kind=\"connect\""]).await > 0.0);
    assert_eq!(looks(&up, "one", &["kind=\"watch\""]).await, 0.0);
}

#[tokio::test]
async fn an_agent_without_health_is_well_while_its_port_answers() {
    let site = site("", "health=check");
    let mut up = site.up(&[]).await;
    finds(&up, &["one", "two"]).await;
    assert!(looks(&up, "one", &["kind=\"connect\"", "outcome=\"serving\""]).await > 0.0);
    assert_eq!(looks(&up, "one", &["outcome=\"missed\""]).await, 0.0);
    works(&up, &["one", "two"]).await;
    up.signal(Signal::INT);
    up.ended().await;
}

#[tokio::test]
async fn a_hung_agent_is_out_within_the_thresholds_and_back_when_it_goes_on() {
    for how in ["health=check", "health=watch"] {
        let site = site(how, "");
        let up = site.up(&[]).await;
        finds(&up, &["one", "two"]).await;
        let hung = site.mark.process(&["test-agent", how]);
        signal(hung.pid, Signal::STOP);
        let took = finds(&up, &["two"]).await;
        assert!(took < HUNG + SLACK, "{took:?}");
        let said = readyz(&up, "one").await;
        assert!(said.contains("did not answer"), "{said}");
        works(&up, &["two"]).await;
        signal(hung.pid, Signal::CONT);
        finds(&up, &["one", "two"]).await;
    }
}

#[tokio::test]
async fn work_that_an_agent_has_not_begun_moves_without_an_error() {
    let site = site("full=full", "");
    let up = site.up(&[]).await;
    finds(&up, &["one", "two"]).await;
    fs::write(site.path("full"), "").unwrap();
    works(&up, &["two"]).await;
    // It was offered some of it, and no attempt of another skill or agent was lost.
    let home = up.instance("default/home", 0);
    let page = Page::of(&home.admin, OPEN_METRICS).await;
    let again = page.sum("attache_attempts_total", &["kind=\"again\""]);
    assert!(again > 0.0, "{}", page.text);
    // Alone it keeps its tasks waiting, not failing.
    let mut local = client::local(&home.local);
    let mut wanted = spec("test.echo", "late");
    wanted.selector.as_mut().unwrap().agent = "one".into();
    let task = client::submit(&mut local, wanted).await.unwrap();
    eventually("it was tried more than once", || {
        let (mut local, id) = (local.clone(), task.id.clone());
        async move {
            let task = client::full(&mut local, &id).await.unwrap();
            assert_eq!(task.state(), TaskState::Submitted);
            (task.attempt > 2)
                .then_some(())
                .ok_or_else(|| format!("{}", task.attempt))
        }
    })
    .await;
    fs::remove_file(site.path("full")).unwrap();
    let seen = client::watch_whole(&mut local, &task.id).await;
    assert_eq!(seen.result().as_deref(), Some("late"));
    let failures = seen
        .events
        .iter()
        .filter(|event| matches!(event.kind, Some(Kind::Failure(_))));
    assert_eq!(failures.count(), 0);
}

type Asked = HealthClient<attache::transport::Channel>;

async fn check(health: &mut Asked, service: &str) -> Result<ServingStatus, Code> {
    let request = HealthCheckRequest {
        service: service.into(),
    };
    let answer = within("a check is answered", health.check(request)).await;
    let answer = answer.map_err(|status| status.code())?.into_inner();
    Ok(ServingStatus::try_from(answer.status).unwrap())
}

async fn watch(health: &mut Asked, service: &str) -> Streaming<HealthCheckResponse> {
    let request = HealthCheckRequest {
        service: service.into(),
    };
    within("a watch opens", health.watch(request))
        .await
        .unwrap()
        .into_inner()
}

async fn next(words: &mut Streaming<HealthCheckResponse>) -> Result<ServingStatus, Code> {
    match within("a word", words.message()).await {
        Ok(said) => Ok(ServingStatus::try_from(said.unwrap().status).unwrap()),
        Err(status) => Err(status.code()),
    }
}

#[tokio::test]
async fn sidecar_and_registry_tell_the_truth_service_by_service() {
    use ServingStatus::{NotServing, ServiceUnknown, Serving};
    let site = site("health=watch sick=sick", "");
    let mut up = site.up(&[]).await;
    finds(&up, &["one", "two"]).await;
    let operator = client::pool(&site.state().join("operator"));
    let one = up.instance("default/one", 0);
    let asks = |at: &str, who: &str| HealthClient::new(operator.channel(client::target(at, who)));
    let mut sidecar = asks(&one.mtls, "ns/default/agent/one");
    let mut registry = asks(&up.endpoints.registry.mtls, "registry/main");
    let all = [
        "attache.v1.Executor",
        "attache.v1.Handler",
        "attache.v1.Agent",
        "",
    ];
    let mut words = watch(&mut sidecar, "attache.v1.Executor").await;
    assert_eq!(next(&mut words).await, Ok(Serving));
    for service in all {
        assert_eq!(check(&mut sidecar, service).await, Ok(Serving), "{service}");
    }
    fs::write(site.path("sick"), "").unwrap();
    assert_eq!(next(&mut words).await, Ok(NotServing));
    for (service, serves) in all
        .into_iter()
        .zip([NotServing, NotServing, Serving, Serving])
    {
        assert_eq!(check(&mut sidecar, service).await, Ok(serves), "{service}");
    }
    fs::remove_file(site.path("sick")).unwrap();
    assert_eq!(next(&mut words).await, Ok(Serving));

    let catalog = "attache.v1.Registry";
    assert_eq!(check(&mut registry, catalog).await, Ok(Serving));
    for health in [&mut sidecar, &mut registry] {
        assert_eq!(check(health, "nobody.Knows").await, Err(Code::NotFound));
        let mut unknown = watch(health, "nobody.Knows").await;
        assert_eq!(next(&mut unknown).await, Ok(ServiceUnknown));
    }
    let mut catalogs = watch(&mut registry, catalog).await;
    assert_eq!(next(&mut catalogs).await, Ok(Serving));
    let began = Instant::now();
    up.signal(Signal::TERM);
    for words in [&mut words, &mut catalogs] {
        assert_eq!(next(words).await, Ok(NotServing));
        assert_eq!(next(words).await, Err(Code::Unavailable));
    }
    assert_eq!(up.ended().await.code(), Some(0));
    // Nobody waited for those who watch.
    assert!(began.elapsed() < SLACK, "{:?}", began.elapsed());
}

#[tokio::test]
async fn an_instance_refuses_for_its_sick_agent_while_the_catalog_knows_nothing() {
    let site = site("health=watch sick=sick", "");
    let up = site.up(&[]).await;
    finds(&up, &["one", "two"]).await;
    // From now on nobody hears of anything.
    let registry = site.mark.process(&["registry --config"]);
    signal(registry.pid, Signal::STOP);
    fs::write(site.path("sick"), "").unwrap();
    eventually("the sidecar knows", || async {
        (healthy(&up, "one").await == 0.0)
            .then_some(())
            .ok_or_else(String::new)
    })
    .await;
    assert_eq!(serving(&up).await.unwrap(), ["one", "two"]);
    works(&up, &["two"]).await;
    let runs = site.runs();
    assert_eq!(runs.len(), 10, "{runs:?}");
    signal(registry.pid, Signal::CONT);
    finds(&up, &["two"]).await;
    let mut local = client::local(&up.instance("default/one", 0).local);
    // Its own home gives to the other one as well.
    let ran = client::run(&mut local, client::bounded("test.echo", "own", 50)).await;
    assert_eq!(ran.unwrap().result().as_deref(), Some("own"));
}
