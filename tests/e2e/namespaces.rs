//! By hand, without `up`: a registry and two sidecars on hosts of their own, from files.

use std::{fs, path::PathBuf, process::Stdio};

use attache::pb::TaskState;
use tokio::process::{Child, Command};

use crate::support::{
    client,
    mesh::Site,
    netns::{Net, address},
    skip::skip,
    tools::{self, attache, test_agent},
};

/// Which host is whose.
const SWITCH: u8 = 0;
const REGISTRY: u8 = 1;
const HOME: u8 = 2;
const WORKER: u8 = 3;

/// The files and processes of the hosts.
struct Hosts {
    // Fields are dropped in this order: the network goes last, when nobody is in it any more.
    running: Vec<Child>,
    site: Site,
    net: Net,
}

impl Hosts {
    fn dir(&self, inside: &str) -> PathBuf {
        let dir = self.site.path(inside);
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.site.path(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    fn shown(&self, inside: &str) -> String {
        self.site.path(inside).display().to_string()
    }

    fn on(&self, host: u8, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = self.net.on(host, program);
        let (key, value) = self.site.mark.env();
        command
            .env(key, value)
            .env("TEST_RUNS", self.site.path("runs"));
        command.current_dir(self.dir("work")).kill_on_drop(true);
        command
    }

    /// Starts a process on a host, with a log in the same place as those of `up`.
    fn start(&mut self, host: u8, name: &str, program: impl AsRef<std::ffi::OsStr>, more: &[&str]) {
        let log = fs::File::create(self.dir("state/logs").join(format!("{name}.log"))).unwrap();
        let mut command = self.on(host, program);
        command.args(more).stdin(Stdio::null());
        let child = command
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.running.push(child);
    }

    /// Asks for a join string, as an operator on the switch, and starts agent and sidecar.
    async fn join(&mut self, host: u8, name: &str, skill: &str) -> String {
        let join = self.shown(&format!("{name}.join"));
        let registry = format!("{}:7443", address(REGISTRY));
        let operator = self.shown("operator");
        let member = format!("default/{name}");
        let token = [
            "ca",
            "token",
            &member,
            "--registry",
            &registry,
            "--identity",
            &operator,
        ];
        crate::support::wait::eventually("the registry gives a join string", || async {
            let mut command = self.on(SWITCH, attache());
            let ran = tools::run(command.args(token).args(["--out", &join])).await;
            if ran.code == Some(0) {
                Ok(())
            } else {
                Err(ran.err)
            }
        })
        .await;
        let (local, handler) = [".sock", "-agent.sock"]
            .map(|end| format!("unix:{}", self.shown(&format!("{name}{end}"))))
            .into();
        let config = self.write(
            &format!("{name}.toml"),
            &format!(
                "state = {:?}\nregistry = [{registry:?}]\nenrollment = [\"{}:7444\"]\n\
                 join_file = {join:?}\nlocal = {local:?}\nagent = {handler:?}\n\
                 [[card.skills]]\nname = {skill:?}\nidempotent = true\n",
                self.shown(name),
                address(REGISTRY),
            ),
        );
        let mut agent = self.on(host, test_agent());
        let child = agent
            .env("ATTACHE_LISTEN", &handler)
            .env("ATTACHE_SIDECAR", &local);
        let child = child.stdin(Stdio::null()).spawn().unwrap();
        self.running.push(child);
        self.start(host, name, attache(), &["sidecar", "--config", &config]);
        local
    }
}

#[tokio::test]
async fn three_hosts_by_hand_run_a_streamed_task() {
    let test = "namespaces::three_hosts_by_hand_run_a_streamed_task";
    let net = match Net::new(3) {
        Ok(net) => net,
        Err(why) => return skip(test, &format!("no network namespaces here: {why}")),
    };
    let mut hosts = Hosts {
        net,
        site: Site::new(""),
        running: Vec::new(),
    };

    let ca = hosts.shown("ca");
    tools::run_attache(&["ca", "init", "--dir", &ca]).await.ok();
    let operator = hosts.shown("operator");
    tools::run_attache(&[
        "ca", "issue", "operator", "me", "--dir", &ca, "--out", &operator,
    ])
    .await
    .ok();
    let state = hosts.shown("registry");
    let config = hosts.write(
        "registry.toml",
        &format!("ca = {ca:?}\nstate = {state:?}\n"),
    );
    hosts.start(
        REGISTRY,
        "registry",
        attache(),
        &["registry", "--config", &config],
    );

    let home = hosts.join(HOME, "home", "test.home").await;
    let worker = hosts.join(WORKER, "worker", "test.echo").await;
    wait_for_socket(&hosts, &home).await;
    wait_for_socket(&hosts, &worker).await;

    let mut home = client::local(&home);
    let ran = client::run(&mut home, client::bounded("test.echo", "over the wire", 50)).await;
    let ran = ran.unwrap_or_else(|status| panic!("{status:?}{}", hosts.site.logs()));
    assert_eq!(
        ran.state(),
        TaskState::Completed,
        "{:?}{}",
        ran.failure(),
        hosts.site.logs()
    );
    assert_eq!(ran.result().as_deref(), Some("over the wire"));
    assert_eq!(
        ran.events.iter().filter(|event| is_progress(event)).count(),
        3
    );
    let task = client::full(&mut home, &ran.id).await.unwrap();
    assert_eq!(task.executor.unwrap().agent, "default/worker");

    // It did go over that wire: without it the task waits, and with it the task goes on.
    hosts.net.plug(WORKER, false);
    let waiting = client::submit(&mut home, client::bounded("test.echo", "later", 50)).await;
    let waiting = waiting.unwrap().id;
    let task = client::full(&mut home, &waiting).await.unwrap();
    assert!(!client::is_end(task.state()), "{task:?}");
    hosts.net.plug(WORKER, true);
    let seen = client::watch_whole(&mut home, &waiting).await;
    assert_eq!(
        seen.result().as_deref(),
        Some("later"),
        "{:?}",
        seen.failure()
    );
}

fn is_progress(event: &attache::pb::TaskEvent) -> bool {
    matches!(event.kind, Some(attache::pb::task_event::Kind::Progress(_)))
}

async fn wait_for_socket(hosts: &Hosts, local: &str) {
    let path = local.strip_prefix("unix:").unwrap();
    crate::support::wait::eventually("the sidecar listens", || async {
        let there = tokio::net::UnixStream::connect(path).await;
        there
            .map(drop)
            .map_err(|error| format!("{error}{}", hosts.site.logs()))
    })
    .await;
}
