//! The official interop client and server of gRPC, and h2spec: programs that judge from outside.
//!
//! `tests/run` builds them with Go into `.tools/interop`; where they are not there, a test says that
//! it is skipped.

use std::{
    env,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command as StdCommand, Stdio},
};

use tokio::{net::TcpStream, process::Command};

use super::{
    peers::free,
    tools::{self, fetched},
    wait::eventually,
};

/// What a proxy must pass on of the official cases; the others are about credentials and clients.
pub const CASES: [&str; 14] = [
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "timeout_on_sleeping_server",
    "cancel_after_begin",
    "cancel_after_first_response",
    "status_code_and_message",
    "special_status_message",
    "custom_metadata",
    "unimplemented_method",
    "unimplemented_service",
];

/// Those that say the same thing many times.
pub const LONG: [(&str, &[&str]); 2] = [
    (
        "rpc_soak",
        &["-soak_iterations=1000", "-soak_overall_timeout_seconds=50"],
    ),
    (
        "channel_soak",
        &["-soak_iterations=200", "-soak_overall_timeout_seconds=50"],
    ),
];

/// The official client and server; ended when dropped.
pub struct Interop {
    client: PathBuf,
    server: Child,
    /// Where the server listens.
    pub address: SocketAddr,
}

impl Interop {
    /// Starts the server; `None`, with a word, where the programs are not there.
    pub async fn start(test: &str) -> Option<Self> {
        let client = fetched("interop/client", test)?;
        let server = fetched("interop/server", test)?;
        let port = env::var("ATTACHE_INTEROP_PORT").ok();
        let port = port.map(|port| port.parse().expect("a port"));
        let address = port.map_or_else(free, |port: u16| ([127, 0, 0, 1], port).into());
        let server = StdCommand::new(server)
            .args(["-port", &address.port().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        eventually("the interop server listens", || async {
            let connected = TcpStream::connect(address).await;
            connected.map(drop).map_err(|error| error.to_string())
        })
        .await;
        Some(Self {
            client,
            server,
            address,
        })
    }

    /// Runs one case against whatever listens at `at`; what it said when it failed. `metadata` is
    /// sent with each call, as `key:value;key:value`.
    pub async fn run(
        &self,
        case: &str,
        at: SocketAddr,
        metadata: &str,
        more: &[&str],
    ) -> Result<(), String> {
        let mut command = Command::new(&self.client);
        command
            .arg(format!("-server_host={}", at.ip()))
            .arg(format!("-server_port={}", at.port()))
            .arg(format!("-test_case={case}"))
            .args(more);
        if !metadata.is_empty() {
            command.arg(format!("-additional_metadata={metadata}"));
        }
        let ran = tools::run(&mut command).await;
        match ran.code {
            Some(0) => Ok(()),
            code => Err(format!("{case}: {code:?} {}{}", ran.out, ran.err)),
        }
    }

    /// Runs all of [`CASES`]; what those said that failed.
    pub async fn all(&self, at: SocketAddr, metadata: &str) -> Vec<String> {
        let mut failed = Vec::new();
        for case in CASES {
            failed.extend(self.run(case, at, metadata, &[]).await.err());
        }
        failed
    }
}

impl Drop for Interop {
    fn drop(&mut self) {
        drop(self.server.kill());
        drop(self.server.wait());
    }
}

/// What h2spec found.
#[derive(Debug)]
pub struct Verdict {
    pub passed: usize,
    /// Section and sentence of each case that failed.
    pub failed: Vec<String>,
}

/// Runs h2spec against a plaintext listener; `None`, with a word, where it is not there.
pub async fn h2spec(at: SocketAddr, path: &str, dir: &Path, test: &str) -> Option<Verdict> {
    let program = fetched("interop/h2spec", test)?;
    let report = dir.join("h2spec.xml");
    let mut command = Command::new(program);
    command
        .args(["-h", &at.ip().to_string(), "-p", &at.port().to_string()])
        .args(["-P", path, "-o", "2", "-j"])
        .arg(&report);
    // It ends with 1 when anything fails: the report says what.
    let ran = tools::run(&mut command).await;
    let report = std::fs::read_to_string(&report);
    let report = report.unwrap_or_else(|error| panic!("{error}: {}{}", ran.out, ran.err));
    Some(read(&report))
}

/// Takes a report of JUnit's form apart.
fn read(report: &str) -> Verdict {
    let mut verdict = Verdict {
        passed: 0,
        failed: Vec::new(),
    };
    for case in report.split("<testcase ").skip(1) {
        let attribute = |name: &str| {
            let rest = case.split_once(&format!("{name}=\""));
            let value = rest.and_then(|(_, rest)| rest.split_once('"'));
            value.map_or("", |(value, _)| value)
        };
        let body = case.split("</testcase>").next().unwrap_or_default();
        if body.contains("<failure") || body.contains("<error") {
            let (section, what) = (attribute("package"), attribute("classname"));
            verdict.failed.push(format!("{section}: {what}"));
        } else if !body.contains("<skipped") {
            verdict.passed += 1;
        }
    }
    verdict
}
