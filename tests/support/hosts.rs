//! A mesh by hand, without `up`: registry and sidecars on hosts of their own, from files.

use std::{ffi::OsStr, fs, path::PathBuf, process::Stdio};

use tokio::{
    net::UnixStream,
    process::{Child, Command},
};

use super::{
    mesh::Site,
    netns::{Net, address},
    tools::{self, attache, test_agent},
    wait::eventually,
};

/// The switch between the hosts: where the operator sits.
const SWITCH: u8 = 0;

/// The files and processes of the hosts.
pub struct Hosts {
    // Fields are dropped in this order: the network goes last, when nobody is in it any more.
    running: Vec<Child>,
    pub site: Site,
    pub net: Net,
    registry: u8,
}

impl Hosts {
    /// So many hosts, with a registry on one of them.
    ///
    /// # Errors
    /// Where this machine allows no network namespaces.
    pub async fn new(hosts: u8, registry: u8) -> Result<Self, String> {
        let mut hosts = Self {
            net: Net::new(hosts)?,
            site: Site::new(""),
            running: Vec::new(),
            registry,
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
            registry,
            "registry",
            attache(),
            &["registry", "--config", &config],
        );
        Ok(hosts)
    }

    /// Asks for a join string, as an operator on the switch, and starts agent and sidecar. Gives the
    /// sidecar's local listener, which is there when this returns. `more` is TOML of the card.
    pub async fn join(&mut self, host: u8, name: &str, skills: &[&str], more: &str) -> String {
        let join = self.shown(&format!("{name}.join"));
        let registry = format!("{}:7443", address(self.registry));
        self.invite(name, &registry, &join).await;
        let (local, handler) = [".sock", "-agent.sock"]
            .map(|end| format!("unix:{}", self.shown(&format!("{name}{end}"))))
            .into();
        let mut config = format!(
            "state = {:?}\nregistry = [{registry:?}]\nenrollment = [\"{}:7444\"]\n\
             join_file = {join:?}\nlocal = {local:?}\nagent = {handler:?}\n[card]\n{more}\n",
            self.shown(name),
            address(self.registry),
        );
        for skill in skills {
            config.push_str(&format!(
                "[[card.skills]]\nname = {skill:?}\nidempotent = {}\n",
                skill.starts_with("test.echo")
            ));
        }
        let config = self.write(&format!("{name}.toml"), &config);
        let mut agent = self.on(host, test_agent());
        let child = agent
            .env("ATTACHE_LISTEN", &handler)
            .env("ATTACHE_SIDECAR", &local);
        let child = child.stdin(Stdio::null()).spawn().unwrap();
        self.running.push(child);
        self.start(host, name, attache(), &["sidecar", "--config", &config]);
        self.listens(&local).await;
        local
    }

    async fn invite(&self, name: &str, registry: &str, join: &str) {
        let operator = self.shown("operator");
        let member = format!("default/{name}");
        let token = [
            "ca",
            "token",
            &member,
            "--registry",
            registry,
            "--identity",
            &operator,
        ];
        eventually("the registry gives a join string", || async {
            let mut command = self.on(SWITCH, attache());
            let ran = tools::run(command.args(token).args(["--out", join])).await;
            if ran.code == Some(0) {
                Ok(())
            } else {
                Err(ran.err)
            }
        })
        .await;
    }

    async fn listens(&self, local: &str) {
        let path = local.strip_prefix("unix:").unwrap();
        eventually("the sidecar listens", || async {
            let there = UnixStream::connect(path).await;
            there
                .map(drop)
                .map_err(|error| format!("{error}{}", self.site.logs()))
        })
        .await;
    }

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

    fn on(&self, host: u8, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.net.on(host, program);
        let (key, value) = self.site.mark.env();
        command
            .env(key, value)
            .env("TEST_RUNS", self.site.path("runs"));
        command.current_dir(self.dir("work")).kill_on_drop(true);
        command
    }

    /// Starts a process on a host, with a log in the same place as those of `up`.
    fn start(&mut self, host: u8, name: &str, program: impl AsRef<OsStr>, more: &[&str]) {
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
}
