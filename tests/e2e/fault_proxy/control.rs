//! The control socket: what it answers to what it cannot do.

use super::{Wire, protocol};
use crate::support::{
    fault::FaultProxy,
    mesh::Site,
    tools::{fault_proxy, run},
};
use protocol::{Answer, LINE_MAX, Request};

#[tokio::test]
async fn what_makes_no_sense_is_refused_with_a_reason() {
    let wire = Wire::new().await;
    let set = |rest: &str| format!(r#"{{"do":"set","route":"wire",{rest}}}"#);
    for (line, why) in [
        ("hello".to_owned(), "--help"),
        (r#"{"do":"fly"}"#.to_owned(), "unknown variant"),
        (
            r#"{"do":"clear","route":"other"}"#.to_owned(),
            "no route other",
        ),
        (
            r#"{"do":"add","route":"wire","target":"127.0.0.1:1"}"#.to_owned(),
            "remove it first",
        ),
        (
            r#"{"do":"add","route":"b","target":"x","listen":"192.0.2.1:1"}"#.to_owned(),
            "cannot listen",
        ),
        (set(r#""fault":"nonsense""#), "unknown variant"),
        (
            set(r#""fault":{"latency":{"ms":1,"more":2}}"#),
            "unknown field",
        ),
        (set(r#""fault":"refuse","direction":"up""#), "no direction"),
        (set(r#""fault":"refuse","share":5"#), "no share"),
        (set(r#""fault":"blackhole","share":0"#), "1 to 100"),
        (
            set(r#""fault":{"rate":{"bytes_per_second":0}}"#),
            "1 byte per second",
        ),
        (set(r#""fault":{"corrupt":{}}"#), "one_in"),
        (
            set(r#""fault":{"flap":{"up_ms":0,"down_ms":1}}"#),
            "periods",
        ),
        ("x".repeat(LINE_MAX + 1), "bytes at most"),
    ] {
        let answer: Answer = serde_json::from_str(&wire.proxy.say(&line).await).unwrap();
        let Answer::Error(error) = answer else {
            panic!("{line:.100}: {answer:?}");
        };
        assert!(error.contains(why), "{line:.100}: {error}");
    }
}

#[tokio::test]
async fn every_line_of_the_help_is_understood() {
    let site = Site::new("");
    let proxy = FaultProxy::start(&site).await;
    let mut command = tokio::process::Command::new(fault_proxy());
    let help = run(command.arg("--help")).await.ok();
    let lines = help.lines().map(str::trim_start);
    let (mut requests, mut faults) = (0, 0);
    proxy.route("worker", "127.0.0.1:9").await;
    proxy.remove("worker").await;
    for line in lines {
        let (said, rest) = line.split_once("  ").unwrap_or((line, ""));
        let said = if said.starts_with(r#"{"do""#) {
            requests += 1;
            said.to_owned()
        } else if !rest.is_empty() && (said.starts_with('"') || said.starts_with(r#"{""#)) {
            faults += 1;
            // Nothing is connected: it is only understood.
            format!(r#"{{"do":"set","route":"shown","fault":{said}}}"#)
        } else {
            continue;
        };
        if faults == 1 {
            proxy.route("shown", "127.0.0.1:9").await;
        }
        let answer: Answer = serde_json::from_str(&proxy.say(&said).await).unwrap();
        assert!(!matches!(answer, Answer::Error(_)), "{said}: {answer:?}");
    }
    assert_eq!((requests, faults), (7, 10), "{help}");
    let answer = proxy.ask(&Request::Routes {}).await;
    let Answer::Routes(routes) = answer else {
        panic!("{answer:?}");
    };
    let names: Vec<&String> = routes.keys().collect();
    assert_eq!(names, ["shown"], "the help's own route was removed last");
}
