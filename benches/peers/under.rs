//! The systems under test, and one measurement of one of them.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
};

use serde_json::Value;

use crate::{
    Outcome,
    figures::{Case, Figures},
    machine,
    ours::Ours,
    peers::{Kind, Pair, certs, free},
};

/// The program under test.
pub(crate) const ATTACHE: &str = env!("CARGO_BIN_EXE_attache");

/// Where calls end: `attache bench --serve`.
pub(crate) struct End {
    child: Child,
    pub(crate) address: SocketAddr,
}

/// A way to the end.
pub(crate) struct Under {
    pub(crate) name: &'static str,
    /// Why there is nothing to measure.
    pub(crate) skipped: Option<String>,
    /// What `attache bench` is told to reach it.
    arguments: Vec<String>,
    runs: Runs,
    /// Resident memory of the larger of the proxies before the first call, in MiB.
    pub(crate) idle: Option<f64>,
}

/// What has to stay alive meanwhile.
enum Runs {
    Nothing,
    Pair(Pair),
    Ours(Ours),
}

impl End {
    pub(crate) fn start() -> Outcome<Self> {
        let mut child = Command::new(ATTACHE)
            .args(["bench", "--serve", "127.0.0.1:0", "--output", "json"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let out = child.stdout.take().ok_or("its output is piped")?;
        BufReader::new(out).read_line(&mut line)?;
        let said: Value = serde_json::from_str(&line)?;
        let address = said["serving"].as_str().unwrap_or_default().parse()?;
        Ok(Self { child, address })
    }
}

impl Drop for End {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Starts all systems that were asked for; what cannot be started is there with the reason.
pub(crate) fn systems(only: &[String], dir: &Path, end: &End) -> Outcome<Vec<Under>> {
    let wanted = |name: &str| only.is_empty() || only.iter().any(|one| one == name);
    let mut all = Vec::new();
    if wanted("direct") {
        let target = vec![format!("http://{}", end.address)];
        all.push(Under::new("direct", target, Runs::Nothing));
    }
    if wanted("tunnel") {
        all.push(Under::pair(tunnel(dir, end)?));
    }
    for (name, kind) in [("envoy", Kind::Envoy), ("haproxy", Kind::HaProxy)] {
        if wanted(name) {
            let pair = Pair::start(kind, dir, end.address)?;
            let skipped = || Under::skipped(kind.name(), "benches/peers/tools could not fetch it");
            all.push(pair.map_or_else(skipped, Under::pair));
        }
    }
    if wanted("ours") {
        all.push(match Ours::start(dir)? {
            Ok(ours) => Under::new("ours", ours.arguments(), Runs::Ours(ours)),
            Err(why) => Under::skipped("ours", &why),
        });
    }
    for under in &mut all {
        under.idle = under.resident();
    }
    Ok(all)
}

fn tunnel(dir: &Path, end: &End) -> Outcome<Pair> {
    let certs = certs::make(&dir.join("certs"))?;
    let (entry, middle) = (free(), free());
    let side = |name: &str, listen: SocketAddr, to: SocketAddr| -> Outcome<_> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--tunnel", name, "--listen", &listen.to_string()]);
        command
            .args(["--to", &to.to_string(), "--certs"])
            .arg(&certs);
        Ok((command, listen))
    };
    let far = side("b", middle, end.address)?;
    Ok(Pair::of("tunnel", far, side("a", entry, middle)?)?)
}

impl Under {
    fn new(name: &'static str, arguments: Vec<String>, runs: Runs) -> Self {
        Self {
            name,
            skipped: None,
            arguments,
            runs,
            idle: None,
        }
    }

    fn pair(pair: Pair) -> Self {
        let target = vec![format!("http://{}", pair.entry)];
        Self::new(pair.name, target, Runs::Pair(pair))
    }

    fn skipped(name: &'static str, why: &str) -> Self {
        Self {
            skipped: Some(why.to_owned()),
            ..Self::new(name, Vec::new(), Runs::Nothing)
        }
    }

    /// One measurement, after a short warm-up of its own.
    pub(crate) fn measure(&self, case: &Case, seconds: u32) -> Outcome<Figures> {
        self.bench(case, "500ms")?;
        let before = self.spent();
        let printed = self.bench(case, &format!("{seconds}s"))?;
        let spent = self.spent().zip(before);
        let spent = spent.map(|(after, before)| after - before);
        let figures = Figures::of(case, &printed, spent);
        figures.ok_or_else(|| format!("{}, {}: {printed}", self.name, case.name).into())
    }

    fn bench(&self, case: &Case, time: &str) -> Outcome<Value> {
        let output = Command::new(ATTACHE)
            .arg("bench")
            .args(&self.arguments)
            .args(case.arguments)
            .args(["--warmup", "0ms", "--time", time, "--output", "json"])
            .output()?;
        if !output.status.success() {
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said).into_owned();
            return Err(format!("{}, {}: {said}", self.name, case.name).into());
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    fn pids(&self) -> Vec<u32> {
        match &self.runs {
            Runs::Nothing => Vec::new(),
            Runs::Pair(pair) => pair.pids(),
            Runs::Ours(ours) => ours.pids(),
        }
    }

    /// Processor's time of the proxies so far, in seconds; `None` where there are none.
    fn spent(&self) -> Option<f64> {
        let pids = self.pids();
        (!pids.is_empty()).then(|| pids.into_iter().map(spent).sum())
    }

    /// Resident memory of the larger of the proxies now, in MiB.
    pub(crate) fn resident(&self) -> Option<f64> {
        let all = self.pids().into_iter();
        let all = all.filter_map(|pid| machine::process(&pid.to_string()));
        all.map(|process| process.resident).max_by(f64::total_cmp)
    }
}

/// Processor's time of a process in seconds, to the nanosecond: ticks of 10 ms are too coarse for
/// what a tunnel needs.
fn spent(pid: u32) -> f64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    let tasks = tasks.into_iter().flatten().flatten();
    let nanos = tasks.filter_map(|task| {
        let line = fs::read_to_string(task.path().join("schedstat")).ok()?;
        line.split(' ').next()?.parse::<f64>().ok()
    });
    nanos.sum::<f64>() / 1e9
}
