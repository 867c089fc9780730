//! Traffic rules: written by operators, seen by sidecars, there after restarts.

use std::{fs, time::Duration};

use attache::pb::{self, registry_client::RegistryClient};
use serde_json::Value;
use tokio::time::timeout;
use tonic::{Code, transport::Endpoint};

use crate::support::{
    client,
    hand::{ByHand, REGISTRY},
    mesh::{Site, agent},
    tools::{Ran, run},
    wait::eventually,
};

const CANARY: &str = r#"
name = "canary"
skill = "test.echo"
[[weights]]
agent_version = "^1"
weight = 90
[[weights]]
agent_version = "^2"
weight = 10
"#;

/// `attache rules` as whoever the certificate in a directory of the site names.
async fn rules_as(site: &Site, who: &str, registry: &str, arguments: &[&str]) -> Ran {
    let identity = site.path(who).display().to_string();
    let mut command = site.attache(&["rules"]);
    let command = command.args(arguments).args(["--identity", &identity]);
    run(command.args(["--registry", registry])).await
}

/// The same as the mesh's own operator.
async fn rules(site: &Site, arguments: &[&str]) -> Ran {
    let state = site.state().display().to_string();
    let mut command = site.attache(&["rules"]);
    run(command.args(arguments).args(["--mesh", &state])).await
}

fn file(site: &Site, name: &str, text: &str) -> String {
    let path = site.path(name);
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// Names and revisions of the rules that a sidecar tells its agent of.
async fn seen(local: &str) -> Result<Vec<(String, u64)>, String> {
    let channel = Endpoint::from_shared(local.to_owned()).unwrap();
    let mut sidecar = RegistryClient::new(channel.connect_lazy());
    let answer = sidecar.list_rules(pb::ListRulesRequest::default()).await;
    let all = answer.map_err(|status| status.to_string())?.into_inner();
    let all = all.rules.into_iter();
    Ok(all.map(|rule| (rule.name, rule.revision)).collect())
}

async fn until_seen(local: &str, expected: &[(&str, u64)]) {
    let expected: Vec<_> = expected
        .iter()
        .map(|(n, r)| ((*n).to_owned(), *r))
        .collect();
    eventually(
        &format!("the sidecar has the rules {expected:?}"),
        || async {
            match seen(local).await {
                Ok(seen) if seen == expected => Ok(()),
                other => Err(format!("{other:?}")),
            }
        },
    )
    .await;
}

#[tokio::test]
async fn operators_write_rules_that_every_sidecar_sees_and_nobody_else_does() {
    let site = Site::new(&agent("worker", &["test.echo"], ""));
    let up = site.up(&[]).await;
    let local = up.instance("default/worker", 0).local.clone();
    let canary = file(&site, "canary.rule.toml", CANARY);

    let put = rules(&site, &["put", &canary]).await.ok();
    let lines: Vec<_> = put.lines().collect();
    assert_eq!(
        lines,
        [
            "default/canary is new (revision 1)",
            "  + skill: test.echo",
            "  + weights: 90 to agent_version ^1; 10 to agent_version ^2"
        ]
    );
    until_seen(&local, &[("canary", 1)]).await;
    let again = rules(&site, &["put", &canary]).await.ok();
    assert_eq!(again, "default/canary is as it was (revision 1)\n");
    let text = CANARY.replace("90", "50").replace("10", "50");
    let other = file(&site, "even.rule.toml", &text);
    let changed = rules(&site, &["put", &other]).await.ok();
    assert!(changed.contains("changed (revision 1 to 2)"), "{changed}");
    assert!(changed.contains("~ weights: 90 to"), "{changed}");
    until_seen(&local, &[("canary", 2)]).await;

    let list = rules(&site, &["list"]).await.ok();
    assert!(
        list.contains("default/canary") && list.contains("test.echo"),
        "{list}"
    );
    let elsewhere = rules(&site, &["list", "--namespace", "prod", "--output", "json"]).await;
    assert_eq!(elsewhere.ok().trim(), "{}");
    // What is printed for programs can be put again, as long as nobody changed it meanwhile.
    let json = rules(&site, &["show", "canary", "--output", "json"])
        .await
        .ok();
    let value: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(value["updated_by"], "spiffe://attache.local/operator/local");
    let printed = file(&site, "printed.json", &json);
    let same = rules(&site, &["put", &printed]).await.ok();
    assert!(same.contains("is as it was (revision 2)"), "{same}");
    rules(&site, &["put", &canary]).await.ok();
    let stale = rules(&site, &["put", &printed]).await;
    assert_eq!(stale.code, Some(1));
    assert!(stale.err.contains("RULE_CHANGED"), "{}", stale.err);

    // A member of the same mesh reads, and writes nothing.
    let (ca, web) = (site.state().join("ca"), site.path("web"));
    let (ca, web) = (ca.display().to_string(), web.display().to_string());
    let issue = [
        "ca",
        "issue",
        "service",
        "default/web",
        "--dir",
        &ca,
        "--out",
        &web,
    ];
    run(&mut site.attache(&issue)).await.ok();
    let registry = up.endpoints.registry.mtls.as_str();
    let member = async |arguments: &[&str]| rules_as(&site, "web", registry, arguments).await;
    assert!(member(&["list"]).await.ok().contains("default/canary"));
    for refused in [
        member(&["put", &canary]).await,
        member(&["delete", "canary"]).await,
    ] {
        assert_eq!(refused.code, Some(6), "{}", refused.err);
        assert!(refused.err.contains("OPERATORS_ONLY"), "{}", refused.err);
    }
    let channel = Endpoint::from_shared(local.clone()).unwrap().connect_lazy();
    let delete = pb::DeleteRuleRequest {
        name: "canary".into(),
        ..Default::default()
    };
    let refused = RegistryClient::new(channel).delete_rule(delete).await;
    assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);

    let deleted = rules(&site, &["delete", "default/canary"]).await.ok();
    assert!(deleted.contains("default/canary is deleted"), "{deleted}");
    until_seen(&local, &[]).await;
    let gone = rules(&site, &["show", "canary"]).await;
    assert_eq!(gone.code, Some(5), "{}", gone.err);
    let gone = rules(&site, &["delete", "canary"]).await;
    assert_eq!(gone.code, Some(5), "{}", gone.err);
    // Each change has one line that says who made it; what changed nothing has none.
    let log = site.log("registry");
    let lines = |what: &str| {
        let lines = log.lines().filter(|line| line.contains(what));
        lines.filter(|line| line.contains("operator/local")).count()
    };
    let counts = (
        lines("a traffic rule was put"),
        lines("a traffic rule was deleted"),
    );
    assert_eq!(counts, (3, 1), "{log}");
}

#[tokio::test]
async fn a_mistake_is_told_with_its_path_and_nothing_is_put() {
    let site = Site::new(&agent("worker", &["test.echo"], ""));
    let up = site.up(&[]).await;
    let good = "[[rules]]\nname = \"good\"\ntimeout = \"1s\"\n[[rules]]\n";
    for (text, said) in [
        (
            "name = \"bad\"\ntimeout = \"2h\"",
            "timeout: must be 10ms to 1h",
        ),
        (
            "name = \"bad\"\n[retry]\nattempts = 9",
            "retry.attempts: must be 1 to 5",
        ),
        (
            "name = \"bad\"\n[retry]\nattempt = 2",
            "did you mean `attempts`?",
        ),
        ("name = \"Bad\"", "name: "),
    ] {
        let one = file(&site, "bad.rule.toml", text);
        let refused = rules(&site, &["put", &one]).await;
        assert_eq!(refused.code, Some(2), "{}", refused.err);
        assert!(refused.err.contains(said), "{}", refused.err);
    }
    let both = format!("{good}name = \"bad\"\n[rules.limits]\nmax_in_flight = 10001");
    let both = file(&site, "both.rule.toml", &both);
    let refused = rules(&site, &["put", &both]).await;
    assert_eq!(refused.code, Some(2), "{}", refused.err);
    let said = "rules[1].limits.max_in_flight: must be 0 to 10000";
    assert!(refused.err.contains(said), "{}", refused.err);
    // Who writes no files is told the same by the registry itself.
    let pool = client::pool(&site.state().join("operator"));
    let mut registry = client::registry(&pool, &up.endpoints.registry.mtls);
    let request = pb::PutRuleRequest {
        rule: Some(pb::TrafficRule {
            name: "bad".into(),
            weights: vec![pb::RuleWeight::default()],
            ..Default::default()
        }),
        ..Default::default()
    };
    let refused = registry.put_rule(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let details = tonic_types::StatusExt::get_details_bad_request(&refused).unwrap();
    assert_eq!(details.field_violations[0].field, "rule.weights");
    let all = rules(&site, &["list", "--output", "json"]).await.ok();
    assert_eq!(all.trim(), "{}");
}

#[tokio::test]
async fn rules_outlive_the_registry_and_reach_who_starts_without_it() {
    let mut mesh = ByHand::started(&agent("worker", &["test.echo"], "")).await;
    let local = mesh.endpoints.instances[0].local.clone();
    let registry = mesh.endpoints.registry.mtls.clone();
    let operator = async |mesh: &ByHand, arguments: &[&str]| {
        rules_as(&mesh.site, "state/operator", &registry, arguments).await
    };
    let canary = file(&mesh.site, "canary.rule.toml", CANARY);
    operator(&mesh, &["put", &canary]).await.ok();
    until_seen(&local, &[("canary", 1)]).await;

    mesh.kill(REGISTRY).await;
    mesh.term("worker-1");
    mesh.ended("worker-1").await;
    mesh.start("worker-1");
    until_seen(&local, &[("canary", 1)]).await;

    mesh.start(REGISTRY);
    mesh.ready(REGISTRY).await;
    let again = operator(&mesh, &["put", &canary]).await.ok();
    assert_eq!(again, "default/canary is as it was (revision 1)\n");
    operator(&mesh, &["delete", "canary"]).await.ok();
    until_seen(&local, &[]).await;
    // A number is not given twice, not even over a restart.
    mesh.kill(REGISTRY).await;
    mesh.start(REGISTRY);
    mesh.ready(REGISTRY).await;
    operator(&mesh, &["put", &canary]).await.ok();
    until_seen(&local, &[("canary", 3)]).await;
}

#[tokio::test]
async fn a_change_whose_caller_hung_up_is_written_down_all_the_same() {
    let site = Site::new(&agent("worker", &["test.echo"], ""));
    let up = site.up(&[]).await;
    let pool = client::pool(&site.state().join("operator"));
    let mut registry = client::registry(&pool, &up.endpoints.registry.mtls);
    registry
        .list_rules(pb::ListRulesRequest::default())
        .await
        .unwrap();
    // The change is made while its caller goes; some are too early, and some too late.
    let mut left = Vec::new();
    for number in 0..60 {
        let name = format!("left-{number}");
        let rule = pb::TrafficRule {
            name: name.clone(),
            ..Default::default()
        };
        let put = registry.put_rule(pb::PutRuleRequest {
            rule: Some(rule),
            expected_revision: None,
        });
        let patience = Duration::from_micros(200 * (number % 20));
        if timeout(patience, put).await.is_err() {
            left.push(name);
        }
    }
    // What was asked for before this was done is done before this is.
    let last = pb::TrafficRule {
        name: "last".into(),
        ..Default::default()
    };
    let last = pb::PutRuleRequest {
        rule: Some(last),
        expected_revision: None,
    };
    registry.put_rule(last).await.unwrap();
    let listed = registry.list_rules(pb::ListRulesRequest::default()).await;
    let listed = listed.unwrap().into_inner().rules;
    let made: Vec<_> = listed
        .iter()
        .filter(|rule| left.contains(&rule.name))
        .collect();
    assert!(made.len() > 2, "{} of {} who left", made.len(), left.len());
    eventually("each of them has its line", || async {
        let log = site.log("registry");
        let put = log
            .lines()
            .filter(|line| line.contains("a traffic rule was put"));
        let put: Vec<_> = put.collect();
        let missing = made.iter().find(|rule| {
            let name = format!("default/{}", rule.name);
            let named = |line: &&str| line.split([' ', '"', '=', ',']).any(|word| word == name);
            !put.iter().any(named)
        });
        missing.map_or(Ok(()), |rule| Err(rule.name.clone()))
    })
    .await;
}
