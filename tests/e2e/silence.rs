//! Peers that are gone without a word, a call of theirs still open: found out within 30 s.

use std::time::Duration;

use attache::pb::TaskState;
use tokio::time::Instant;

use crate::support::{
    client,
    hosts::Hosts,
    skip::skip,
    tools,
    wait::{eventually, within},
};

const REGISTRY: u8 = 1;
const HOME: u8 = 2;
const WORKER: u8 = 3;
/// What is promised, and what a busy machine may add.
const FOUND_OUT: Duration = Duration::from_secs(30 + 3);
/// Asks the admin listener of the sidecar on a host; nothing outside of it gets there.
const SCRAPE: &str = "exec 3<>/dev/tcp/127.0.0.1/7680; \
    printf 'GET /metrics HTTP/1.1\\r\\nhost: 127.0.0.1:7680\\r\\nconnection: close\\r\\n\\r\\n' >&3; cat <&3";

/// How often an executor says that it is there.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// A home whose worker is at work, when something happens to the network between them.
async fn found_out(test: &str, bound: Duration, cut: impl FnOnce(&Hosts) -> Result<(), String>) {
    let mut hosts = match Hosts::new(3, REGISTRY).await {
        Ok(hosts) => hosts,
        Err(why) => return skip(test, &format!("no network namespaces here: {why}")),
    };
    let home = hosts.join(HOME, "home", &["test.home"], "").await;
    hosts.join(WORKER, "worker", &["test.hang"], "").await;
    let mut home = client::local(&home);
    let task = client::submit(&mut home, client::spec("test.hang", "x")).await;
    let id = task.unwrap().id;
    eventually("the task works", || {
        let (mut home, id) = (home.clone(), id.clone());
        async move {
            let task = client::full(&mut home, &id).await.unwrap();
            let works = task.state() == TaskState::Working;
            works.then_some(()).ok_or_else(|| format!("{task:?}"))
        }
    })
    .await;
    assert_eq!(members(&hosts, "connections", "").await, 1.0);

    if let Err(why) = cut(&hosts) {
        return skip(test, &format!("the network cannot be cut here: {why}"));
    }
    let began = Instant::now();
    eventually("the home finds out", || async {
        let silent = members(&hosts, "closes_total", ",reason=\"silent\"").await;
        (silent > 0.0)
            .then_some(())
            .ok_or_else(|| silent.to_string())
    })
    .await;
    let took = began.elapsed();
    assert!(took < bound, "{took:?}");
    // Nothing but silence told it: no end of a lease, and no reset.
    assert_eq!(
        members(&hosts, "closes_total", ",reason=\"broken\"").await,
        0.0
    );
}

/// A row about the home's connections to members.
async fn members(hosts: &Hosts, family: &str, more: &str) -> f64 {
    let mut scrape = hosts.net.on(HOME, "bash");
    let page = within("a scrape", tools::run(scrape.args(["-c", SCRAPE]))).await;
    let row = format!("attache_pool_{family}{{pool=\"members\"{more}}} ");
    let value = page.out.lines().find_map(|line| line.strip_prefix(&row));
    let value = value.unwrap_or_else(|| panic!("no {row}in {}{}", page.out, page.err));
    value.trim().parse().unwrap()
}

#[tokio::test]
async fn a_host_that_is_cut_off_is_found_out_in_time() {
    let test = "silence::a_host_that_is_cut_off_is_found_out_in_time";
    found_out(test, FOUND_OUT, |hosts| {
        hosts.net.plug(WORKER, false);
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_host_that_hears_nothing_any_more_is_found_out_in_time() {
    let test = "silence::a_host_that_hears_nothing_any_more_is_found_out_in_time";
    // What it says itself still arrives, once more at least: silence begins after that.
    let bound = FOUND_OUT + KEEPALIVE;
    found_out(test, bound, |hosts| hosts.net.lose(WORKER, 100)).await;
}
