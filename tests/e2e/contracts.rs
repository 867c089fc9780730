//! What skills promise about their input and their results: held to by both sides, and told so that a
//! model can repair its call.

use attache::{
    pb::{self, TaskState, part::Content},
    wire::{
        json::{from_value, to_value},
        status::reason_of,
    },
};
use rustix::process::Signal;
use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::support::{
    client,
    hand::{ByHand, REGISTRY, page},
    mesh::{Site, agent},
    tools,
    wait::eventually,
};

const INPUT: &str = r#"{"type":"object","properties":{"numbers":{"type":"array","items":{"type":"number"},"minItems":1}},"required":["numbers"]}"#;
const OUTPUT: &str =
    r#"{"type":"object","properties":{"sum":{"type":"number"}},"required":["sum"]}"#;

/// Somebody who adds up, and a home elsewhere.
fn mesh() -> String {
    let skill = format!(
        "[[agents.skills]]\nname = \"test.sum\"\nversion = \"1.0.0\"\nidempotent = true\n\
         input_schema = '{INPUT}'\noutput_schema = '{OUTPUT}'\n"
    );
    let (adder, home) = (agent("adder", &[], ""), agent("home", &["test.echo"], ""));
    format!("{adder}{skill}{home}")
}

fn spec(input: Value) -> pb::TaskSpec {
    pb::TaskSpec {
        input: vec![pb::Part {
            content: Some(Content::Data(to_value(input))),
            ..Default::default()
        }],
        ..client::bounded("test.sum", "", 60)
    }
}

fn sum_of(parts: &[pb::Part]) -> Value {
    match &parts[0].content {
        Some(Content::Data(value)) => from_value(value)["sum"].clone(),
        other => panic!("{other:?}"),
    }
}

/// What a home says of it, once it has the schema: before the catalog is there, the task waits.
async fn refused_by(home: &client::Local, wrong: &pb::TaskSpec) -> Status {
    eventually("the home has the schema", || async {
        let mut home = home.clone();
        let refused = client::submit(&mut home, wrong.clone()).await;
        refused.err().ok_or_else(|| "it is accepted".to_owned())
    })
    .await
}

#[tokio::test]
async fn a_call_that_breaks_its_schema_is_refused_with_what_repairs_it() {
    let site = Site::new(&mesh());
    let mut up = site.up(&[]).await;
    let mut home = client::local(&up.instance("default/home", 0).local);

    let wrong = spec(json!({ "numbers": [1, "2", 3] }));
    let refused = refused_by(&home, &wrong).await;
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(reason_of(&refused).as_deref(), Some("INPUT_INVALID"));
    let facts = refused.get_details_error_info().unwrap().metadata;
    assert_eq!(facts["pointer"], "/numbers/1");
    assert_eq!(facts["rule"], "type");
    let fields = refused.get_details_bad_request().unwrap().field_violations;
    assert_eq!(fields[0].field, "spec.input[0].data");

    // As a model would: what was expected, at the place that is named.
    let expected: Value = serde_json::from_str(&facts["expected"]).unwrap();
    assert_eq!(expected, json!({"type": "number"}));
    let mut repaired = json!({ "numbers": [1, "2", 3] });
    *repaired.pointer_mut(&facts["pointer"]).unwrap() = json!(2);
    let seen = client::run(&mut home, spec(repaired)).await.unwrap();
    let task = client::full(&mut home, &seen.id).await.unwrap();
    assert_eq!(sum_of(&task.result.unwrap().parts), 6);
    let ran: Vec<_> = site.runs().into_iter().map(|(_, task, _)| task).collect();
    assert_eq!(ran, [seen.id], "the agent saw only what fits");

    // The same for a person, whose tasks go to the adder's own sidecar.
    let adder = client::local(&up.instance("default/adder", 0).local);
    refused_by(&adder, &wrong).await;
    let run = ["task", "run", "test.sum", "--data", r#"{"numbers":[]}"#];
    let mut command = site.attache(&run);
    command.env("ATTACHE_MESH", site.state());
    let told = tools::run(&mut command).await;
    assert_eq!(told.code, Some(2), "{}", told.err);
    for word in [
        "/numbers",
        "minItems",
        r#""items":{"type":"number"}"#,
        "INPUT_INVALID",
    ] {
        assert!(told.err.contains(word), "no {word} in: {}", told.err);
    }
    let mut command = site.attache(&["agents", "show", "adder"]);
    command.env("ATTACHE_MESH", site.state());
    let shown = tools::run(&mut command).await.ok();
    assert!(
        shown.contains(r#"takes {"properties":{"numbers""#),
        "{shown}"
    );
    up.signal(Signal::INT);
    up.ended().await;
}

#[tokio::test]
async fn a_result_that_breaks_its_schema_fails_the_task() {
    let site = Site::new(&mesh());
    let mut up = site.up(&[]).await;
    let mut home = client::local(&up.instance("default/home", 0).local);
    let seen = client::run(&mut home, spec(json!({"numbers": [13]})))
        .await
        .unwrap();
    assert_eq!(seen.state(), TaskState::Failed);
    let failure = seen.failure();
    assert_eq!(failure.reason, "OUTPUT_INVALID");
    assert!(!failure.retryable);
    let details = &failure.details.as_ref().unwrap().fields;
    let fact = |name: &str| from_value(&details[name]);
    assert_eq!(fact("pointer"), "/sum");
    assert_eq!(fact("rule"), "type");
    assert_eq!(fact("expected"), r#"{"type":"number"}"#);
    assert_eq!(site.runs().len(), 1, "it is not tried again");
    up.signal(Signal::INT);
    up.ended().await;
}

/// A home that has never had the schema, and cannot ask for it: the executor trusts nobody.
#[tokio::test]
async fn an_executor_checks_what_its_home_could_not() {
    let mut mesh = ByHand::started(&mesh()).await;
    mesh.finds("home-1", "test.sum", &["adder-1"]).await;
    mesh.kill(REGISTRY).await;
    let mut home = mesh.local("home-1");
    let seen = client::run(&mut home, spec(json!({"numbers": "all"})))
        .await
        .unwrap();
    assert_eq!(seen.state(), TaskState::Failed);
    let failure = seen.failure();
    assert_eq!(
        (failure.reason.as_str(), failure.code),
        ("INPUT_INVALID", 3)
    );
    let details = &failure.details.as_ref().unwrap().fields;
    assert_eq!(from_value(&details["pointer"]), "/numbers");
    assert!(failure.message.contains("/numbers"), "{}", failure.message);
    assert!(mesh.site.runs().is_empty(), "the agent saw nothing of it");

    // It counts as nobody's failure: the next one goes there at once.
    for number in 0..10 {
        let seen = client::run(&mut home, spec(json!({ "numbers": number }))).await;
        assert_eq!(seen.unwrap().failure().reason, "INPUT_INVALID");
    }
    let seen = client::run(&mut home, spec(json!({"numbers": [1, 2]}))).await;
    assert_eq!(seen.unwrap().state(), TaskState::Completed);
}

#[tokio::test]
async fn other_schemas_need_another_version() {
    let mut mesh = ByHand::started(&mesh()).await;
    let card = |version: &str| {
        let text = format!(
            "[[skills]]\nname = 'test.sum'\nversion = '{version}'\ninput_schema = 'false'\n"
        );
        text.parse::<toml::Table>().unwrap()
    };
    mesh.set("adder-1", "card", card("1.0.0"));
    mesh.kill("adder-1").await;
    mesh.start("adder-1");
    let admin = mesh.admin("adder-1");
    eventually("the registry refuses the card", || async {
        let shown = page(&admin, "/readyz").await?;
        let told = shown.contains("1.0.0") && shown.contains("raise the skill's version");
        told.then_some(()).ok_or(shown)
    })
    .await;
    mesh.set("adder-1", "card", card("2.0.0"));
    mesh.kill("adder-1").await;
    mesh.start("adder-1");
    mesh.ready("adder-1").await;
    let mut home = mesh.local("home-1");
    eventually("the new schema is in force", || {
        let mut home = home.clone();
        async move {
            let answer = client::submit(&mut home, spec(json!({"numbers": [1]}))).await;
            answer.err().ok_or_else(|| "it is accepted".to_owned())
        }
    })
    .await;
    let told = client::submit(&mut home, spec(json!({})))
        .await
        .unwrap_err();
    assert_eq!(reason_of(&told).as_deref(), Some("INPUT_INVALID"));
}

#[tokio::test]
async fn a_schema_that_cannot_be_is_told_before_anything_starts() {
    let broken = mesh().replace("\"minItems\":1", "\"minItems\":\"one\"");
    let remote = mesh().replace(OUTPUT, r#"{"$ref":"https://example.com/sum.json"}"#);
    for (mesh, told) in [
        (broken, ["input_schema", "at /properties/numbers/minItems"]),
        (remote, ["output_schema", "never fetched"]),
    ] {
        let site = Site::new(&mesh);
        let started = tools::run(&mut site.up_command(&[])).await;
        assert_eq!(started.code, Some(2), "{}", started.err);
        for word in ["mesh.toml", "agents[0]", "test.sum"].iter().chain(&told) {
            assert!(started.err.contains(word), "no {word} in: {}", started.err);
        }
        let config = site.path("sidecar.toml");
        let skill = mesh.split("[[agents.skills]]").nth(1).unwrap();
        let skill = skill.split("[[agents]]").next().unwrap();
        std::fs::write(&config, format!("[[card.skills]]{skill}")).unwrap();
        let config = config.display().to_string();
        let started = tools::run(&mut site.attache(&["sidecar", "--config", &config])).await;
        assert_eq!(started.code, Some(2), "{}", started.err);
        for word in ["sidecar.toml", "card.skills[0]"].iter().chain(&told) {
            assert!(started.err.contains(word), "no {word} in: {}", started.err);
        }
    }
}
