//! Hosts on one machine: network namespaces joined by a bridge, which lives in one of its own, so
//! that nothing of this machine's own network is touched.

use std::{
    ffi::OsStr,
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
};

/// Network of the hosts; host `n` has the address `n` in it.
const NET: &str = "10.77.0";

/// A network of hosts, removed when dropped.
pub struct Net {
    prefix: String,
    made: Vec<String>,
}

impl Net {
    /// Makes so many hosts, numbered from 1, and the switch between them, host 0.
    ///
    /// # Errors
    /// With what `ip` says, where this machine does not allow it.
    pub fn new(hosts: u8) -> Result<Self, String> {
        let id = uuid::Uuid::new_v4().simple().to_string();
        let mut net = Self {
            prefix: format!("at{}", &id[..8]),
            made: Vec::new(),
        };
        let switch = net.make(0)?;
        ip(&["-n", &switch, "link", "add", "br0", "type", "bridge"])?;
        ip(&[
            "-n",
            &switch,
            "addr",
            "add",
            &format!("{NET}.254/24"),
            "dev",
            "br0",
        ])?;
        ip(&["-n", &switch, "link", "set", "br0", "up"])?;
        for host in 1..=hosts {
            let name = net.make(host)?;
            let port = format!("v{host}");
            let peer = ["type", "veth", "peer", "name", &port, "netns", &switch];
            ip(&[&["-n", &name, "link", "add", "eth0"], &peer[..]].concat())?;
            ip(&["-n", &switch, "link", "set", &port, "master", "br0", "up"])?;
            ip(&[
                "-n",
                &name,
                "addr",
                "add",
                &format!("{}/24", address(host)),
                "dev",
                "eth0",
            ])?;
            ip(&["-n", &name, "link", "set", "eth0", "up"])?;
        }
        Ok(net)
    }

    /// Takes a host's cable out, or puts it back.
    pub fn plug(&self, host: u8, up: bool) {
        let state = if up { "up" } else { "down" };
        ip(&[
            "-n",
            &self.name(0),
            "link",
            "set",
            &format!("v{host}"),
            state,
        ])
        .unwrap();
    }

    /// Loses so many of 100 packets that arrive at a host, all or none of them included. Lost where
    /// they arrive, so that the sender hears nothing of it. What is counted begins again.
    ///
    /// # Errors
    /// With what `nft` says, where this machine does not have it.
    pub fn lose(&self, host: u8, share: u8) -> Result<(), String> {
        let which = match share {
            0 => return self.nft(host, "flush ruleset\n").map(drop),
            100 => String::new(),
            share => format!("numgen random mod 100 < {share} "),
        };
        let rules = format!(
            "flush ruleset\ntable inet fault {{\n chain heard {{\n  \
             type filter hook input priority 0\n  iifname \"eth0\" {which}counter drop\n }}\n}}\n"
        );
        self.nft(host, &rules).map(drop)
    }

    /// Packets that a host has lost since it was told to.
    pub fn lost(&self, host: u8) -> u64 {
        let rules = self.nft(host, "list ruleset\n").unwrap();
        let count = rules.split("counter packets ").nth(1).unwrap_or_default();
        let count = count.split(' ').next().unwrap_or_default();
        count.parse().unwrap_or(0)
    }

    fn nft(&self, host: u8, rules: &str) -> Result<String, String> {
        let mut command = Command::new(sbin("ip"));
        command
            .args(["netns", "exec", &self.name(host), sbin("nft")])
            .args(["-f", "-"]);
        let said = |error| format!("nft: {error}");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(said)?;
        let mut input = child.stdin.take().expect("it was piped");
        input.write_all(rules.as_bytes()).map_err(said)?;
        drop(input);
        let ran = child.wait_with_output().map_err(said)?;
        if ran.status.success() {
            return Ok(String::from_utf8_lossy(&ran.stdout).into_owned());
        }
        Err(format!(
            "nft: {}",
            String::from_utf8_lossy(&ran.stderr).trim()
        ))
    }

    /// A program that runs on a host.
    pub fn on(&self, host: u8, program: impl AsRef<OsStr>) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(sbin("ip"));
        command
            .args(["netns", "exec", &self.name(host)])
            .arg(program);
        command
    }

    fn make(&mut self, host: u8) -> Result<String, String> {
        let name = self.name(host);
        ip(&["netns", "add", &name])?;
        self.made.push(name.clone());
        ip(&["-n", &name, "link", "set", "lo", "up"])?;
        Ok(name)
    }

    fn name(&self, host: u8) -> String {
        format!("{}-{host}", self.prefix)
    }
}

/// Address of a host.
pub fn address(host: u8) -> String {
    format!("{NET}.{host}")
}

impl Drop for Net {
    fn drop(&mut self) {
        for name in &self.made {
            // What is left is told by the next one: `ip netns` shows it.
            drop(ip(&["netns", "del", name]));
        }
    }
}

/// Where Debian puts these is not on every PATH.
fn sbin(name: &'static str) -> &'static str {
    match name {
        "ip" if Path::new("/usr/sbin/ip").exists() => "/usr/sbin/ip",
        "nft" if Path::new("/usr/sbin/nft").exists() => "/usr/sbin/nft",
        name => name,
    }
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    let shown = format!("ip {}", arguments.join(" "));
    let ran: Output = Command::new(sbin("ip"))
        .args(arguments)
        .output()
        .map_err(|error| format!("{shown}: {error}"))?;
    if ran.status.success() {
        return Ok(());
    }
    Err(format!(
        "{shown}: {}",
        String::from_utf8_lossy(&ran.stderr).trim()
    ))
}
