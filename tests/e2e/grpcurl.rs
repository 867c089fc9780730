//! The real grpcurl, as an operator has it: looking around, discovering, running a task; and
//! everybody who has no business here, refused in the handshake.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use attache::identity::{Authority, Draft, authority::Validity};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::support::{
    mesh::{Site, agent},
    tools::{self, Ran, fetched},
};

/// Seconds that grpcurl tries to connect, which a refused one does to the end.
const CONNECT: &str = "5";

/// grpcurl with a certificate in a directory, or without one.
struct Grpcurl {
    program: PathBuf,
    options: Vec<String>,
}

impl Grpcurl {
    fn with(program: &Path, ca: &Path, identity: Option<&Path>) -> Self {
        let mut options = vec!["-cacert".to_owned(), ca.display().to_string()];
        if let Some(dir) = identity {
            let file = |name: &str| dir.join(name).display().to_string();
            options.extend([
                "-cert".to_owned(),
                file("cert.pem"),
                "-key".to_owned(),
                file("key.pem"),
            ]);
        }
        Self {
            program: program.to_owned(),
            options,
        }
    }

    async fn run(&self, server: (&str, &str), data: Option<Value>, rest: &[&str]) -> Ran {
        let (address, name) = server;
        let mut command = Command::new(&self.program);
        // Its own account of a connection that fails, which its message leaves out.
        command.env("GRPC_GO_LOG_SEVERITY_LEVEL", "warning");
        command
            .args(["-max-time", "40", "-connect-timeout", CONNECT])
            .args(&self.options);
        if !name.is_empty() {
            command.args(["-authority", name]);
        }
        if let Some(data) = data {
            command.args(["-d", &data.to_string()]);
        }
        tools::run(command.arg(address).args(rest)).await
    }
}

/// The JSON values that grpcurl printed one after the other.
fn values(text: &str) -> Vec<Value> {
    let values = serde_json::Deserializer::from_str(text).into_iter();
    values.collect::<Result<_, _>>().unwrap()
}

fn task(skill: &str, text: &str) -> Value {
    json!({ "spec": { "selector": { "skill": skill }, "input": [{ "text": text }] } })
}

#[tokio::test]
async fn an_operator_looks_around_and_runs_a_task() {
    let test = "grpcurl::an_operator_looks_around_and_runs_a_task";
    let Some(program) = fetched("bin/grpcurl", test) else {
        return;
    };
    let site = Site::new(&agent("worker", &["test.echo"], ""));
    let up = site.up(&[]).await;
    let operator = site.state().join("operator");
    let grpcurl = Grpcurl::with(&program, &operator.join("ca.pem"), Some(&operator));

    let at = &up.endpoints.registry;
    let registry = (at.mtls.as_str(), at.server_name.as_str());
    let services = grpcurl.run(registry, None, &["list"]).await.ok();
    for service in [
        "attache.v1.Registry",
        "attache.v1.Identity",
        "grpc.health.v1.Health",
    ] {
        assert!(services.lines().any(|line| line == service), "{services}");
    }
    let described = grpcurl
        .run(registry, None, &["describe", "attache.v1.Registry"])
        .await
        .ok();
    assert!(described.contains("rpc Discover"), "{described}");
    assert!(
        described.contains("Live instances that fit"),
        "comments are missing: {described}"
    );
    let health = grpcurl
        .run(registry, None, &["grpc.health.v1.Health/Check"])
        .await
        .ok();
    assert_eq!(values(&health), [json!({ "status": "SERVING" })]);

    let query = json!({ "selector": { "skill": "test.echo" } });
    let found = grpcurl
        .run(registry, Some(query), &["attache.v1.Registry/Discover"])
        .await
        .ok();
    let found = &values(&found)[0];
    let instance = &found["instances"][0];
    assert_eq!(found["cards"][0]["name"], "worker", "{found}");
    // Where the catalog says, and under the name it says: nothing is guessed.
    let sidecar = (
        instance["endpoints"][0].as_str().unwrap(),
        instance["tlsServerName"].as_str().unwrap(),
    );

    let services = grpcurl.run(sidecar, None, &["list"]).await.ok();
    for service in [
        "attache.v1.Agent",
        "attache.v1.Executor",
        "grpc.health.v1.Health",
    ] {
        assert!(services.lines().any(|line| line == service), "{services}");
    }
    let ran = grpcurl
        .run(
            sidecar,
            Some(task("test.echo", "hello")),
            &["attache.v1.Agent/RunTask"],
        )
        .await
        .ok();
    let updates = values(&ran);
    assert!(updates[0]["update"]["task"]["id"].is_string(), "{ran}");
    let events: Vec<&Value> = updates
        .iter()
        .map(|one| &one["update"]["event"])
        .filter(|event| event.is_object())
        .collect();
    let numbers: Vec<&str> = events
        .iter()
        .map(|event| event["seq"].as_str().unwrap())
        .collect();
    let wanted: Vec<String> = (1..=events.len()).map(|seq| seq.to_string()).collect();
    assert_eq!(numbers, wanted);
    assert!(
        events
            .iter()
            .filter(|event| event["progress"].is_object())
            .count()
            == 3,
        "{ran}"
    );
    let last = events.last().unwrap();
    assert_eq!(last["state"], "TASK_STATE_COMPLETED");
    assert_eq!(last["result"]["parts"][0]["text"], "hello");
}

#[tokio::test]
async fn strangers_are_refused_in_the_handshake() {
    let test = "grpcurl::strangers_are_refused_in_the_handshake";
    let Some(program) = fetched("bin/grpcurl", test) else {
        return;
    };
    let site = Site::new(&agent("worker", &["test.echo"], ""));
    let up = site.up(&[]).await;
    let operator = site.state().join("operator");
    let ca = operator.join("ca.pem");

    // A CA of the same name that is not ours, and a certificate of ours that has ended.
    let (foreign, mallory, late) = (
        site.path("foreign"),
        site.path("mallory"),
        site.path("late"),
    );
    let foreign = foreign.display().to_string();
    let out = mallory.display().to_string();
    tools::run_attache(&["ca", "init", "--dir", &foreign, "--development"])
        .await
        .ok();
    tools::run_attache(&[
        "ca", "issue", "operator", "local", "--dir", &foreign, "--out", &out,
    ])
    .await
    .ok();
    expired(&site.state().join("ca"), "operator/local")
        .save(&late)
        .unwrap();

    let mut plaintext = Grpcurl::with(&program, &ca, None);
    plaintext.options = vec!["-plaintext".to_owned()];
    // Who it is, and the alert that the other side sends; in plaintext there is none.
    let strangers = [
        (
            "no certificate",
            Grpcurl::with(&program, &ca, None),
            "certificate required",
        ),
        (
            "another CA",
            Grpcurl::with(&program, &ca, Some(&mallory)),
            "remote error: tls",
        ),
        (
            "an expired one",
            Grpcurl::with(&program, &ca, Some(&late)),
            "expired certificate",
        ),
        ("plaintext", plaintext, ""),
    ];
    let at = &up.endpoints.registry;
    let one = up.instance("default/worker", 0);
    let tries = strangers.iter().map(|(who, grpcurl, alert)| async move {
        let registry = (at.mtls.as_str(), at.server_name.as_str());
        let sidecar = (one.mtls.as_str(), one.server_name.as_str());
        let run = Some(task("test.echo", "let me in"));
        let (at_registry, at_sidecar) = tokio::join!(
            grpcurl.run(registry, Some(json!({})), &["attache.v1.Registry/Discover"]),
            grpcurl.run(sidecar, run, &["attache.v1.Agent/RunTask"]),
        );
        assert_refused(&format!("{who} at the registry"), alert, &at_registry);
        assert_refused(&format!("{who} at the sidecar"), alert, &at_sidecar);
    });
    futures_util::future::join_all(tries).await;

    assert_eq!(site.runs(), vec![], "work of a stranger was done");
    // Not even a task was made of it; and whoever belongs here still gets in.
    let welcome = Grpcurl::with(&program, &ca, Some(&operator));
    let sidecar = (one.mtls.as_str(), one.server_name.as_str());
    let listed = welcome
        .run(sidecar, None, &["attache.v1.Agent/ListTasks"])
        .await
        .ok();
    assert_eq!(values(&listed), [json!({})]);
}

/// Refused by TLS, before gRPC began.
fn assert_refused(who: &str, alert: &str, ran: &Ran) {
    assert_ne!(ran.code, Some(0), "{who}: {}", ran.out);
    assert_eq!(ran.out, "", "{who} has got an answer");
    assert!(
        ran.err.contains("Failed to dial"),
        "{who} has reached gRPC: {}",
        ran.err
    );
    assert!(
        ran.err.contains(alert),
        "{who} is not told why: {}",
        ran.err
    );
}

/// A certificate of the mesh's own CA whose life is over.
fn expired(ca: &Path, who: &str) -> attache::identity::Svid {
    let authority = Authority::open(ca).unwrap();
    let id = format!("spiffe://{}/{who}", authority.trust_domain())
        .parse()
        .unwrap();
    let draft = Draft::new().unwrap();
    let life = Validity {
        not_before: SystemTime::UNIX_EPOCH,
        not_after: attache::runtime::clock::wall() - Duration::from_secs(2),
    };
    let chain = authority
        .issue_within(&draft.public_key().unwrap(), &id, None, life)
        .unwrap();
    draft.certified(chain, authority.bundle(), 0).unwrap()
}
