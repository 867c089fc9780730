//! Proxies of others in pairs: `app - proxy = mutual TLS 1.3 = proxy - app`, to compare ours with.
//!
//! `benches/peers/tools` fetches them; a pair whose program is not there is `None`. Every process
//! is a child of this one and ends with its pair. Everything is on loopback.

pub mod certs;
mod envoy;
mod haproxy;

use std::{
    fs,
    io::{self, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use tokio::time::Instant;

/// How long a proxy may take to listen; the machine may be busy.
const START: Duration = Duration::from_secs(30);
/// Between two looks at whether it does.
const LOOK: Duration = Duration::from_millis(20);

/// Two proxies that run, one behind the other.
pub struct Pair {
    pub name: &'static str,
    /// Where the caller's side takes plaintext HTTP/2.
    pub entry: SocketAddr,
    children: Vec<Child>,
}

/// Which proxies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Envoy,
    HaProxy,
}

/// What one side of a pair is configured with.
struct Side<'a> {
    certs: &'a Path,
    listen: SocketAddr,
    upstream: SocketAddr,
    /// Whether it is the caller's: plaintext in, TLS out.
    first: bool,
}

impl Pair {
    /// Starts a pair in front of `upstream`, with its files in `dir`; `None`: it is not fetched.
    pub fn start(kind: Kind, dir: &Path, upstream: SocketAddr) -> io::Result<Option<Self>> {
        let Some(program) = program(kind) else {
            return Ok(None);
        };
        let certs = certs::make(&dir.join("certs"))?;
        let name = kind.name();
        let (entry, middle) = (free(), free());
        let mut pair = Self {
            name,
            entry,
            children: Vec::new(),
        };
        for (side, listen, upstream) in [("b", middle, upstream), ("a", entry, middle)] {
            let config = dir.join(format!("{name}-{side}.{}", kind.extension()));
            let side = Side {
                certs: &certs,
                listen,
                upstream,
                first: side == "a",
            };
            fs::write(&config, kind.configuration(&side))?;
            let mut command = kind.command(&program, &config);
            pair.add(command.stdin(Stdio::null()).stdout(Stdio::null()), listen)?;
        }
        Ok(Some(pair))
    }

    /// A pair of any two programs: the far one first, then the one that takes calls.
    pub fn of(
        name: &'static str,
        far: (Command, SocketAddr),
        near: (Command, SocketAddr),
    ) -> io::Result<Self> {
        let mut pair = Self {
            name,
            entry: near.1,
            children: Vec::new(),
        };
        for (mut command, listens) in [far, near] {
            pair.add(command.stdin(Stdio::null()), listens)?;
        }
        Ok(pair)
    }

    /// The processes, in the order of their start.
    pub fn pids(&self) -> Vec<u32> {
        self.children.iter().map(Child::id).collect()
    }

    fn add(&mut self, command: &mut Command, listens: SocketAddr) -> io::Result<()> {
        self.children.push(command.spawn()?);
        let until = Instant::now() + START;
        while TcpStream::connect(listens).is_err() {
            let child = self.children.last_mut().expect("pushed above");
            if let Some(status) = child.try_wait()? {
                return Err(io::Error::other(format!("{} ended: {status}", self.name)));
            }
            if Instant::now() > until {
                return Err(io::Error::other(format!("{} does not listen", self.name)));
            }
            pause(LOOK);
        }
        Ok(())
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for child in &mut self.children {
            // One that has ended already is as good.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Envoy => "Envoy",
            Self::HaProxy => "HAProxy",
        }
    }

    fn extension(self) -> &'static str {
        match self {
            Self::Envoy => "yaml",
            Self::HaProxy => "cfg",
        }
    }

    fn configuration(self, side: &Side<'_>) -> String {
        match self {
            Self::Envoy => envoy::configuration(side),
            Self::HaProxy => haproxy::configuration(side),
        }
    }

    fn command(self, program: &Path, config: &Path) -> Command {
        let mut command = Command::new(program);
        match self {
            Self::Envoy => {
                command.args(["--concurrency", "2", "--disable-hot-restart"]);
                command.args(["--log-level", "error", "-c"]).arg(config);
            }
            Self::HaProxy => {
                command.args(["-q", "-db", "-f"]).arg(config);
                // Its libraries were unpacked beside it.
                let root = program.ancestors().nth(3).unwrap_or(program);
                let libraries = fs::read_dir(root.join("usr/lib")).into_iter().flatten();
                let libraries = libraries.flatten().map(|entry| entry.path());
                let libraries: Vec<_> = libraries.filter(|path| path.is_dir()).collect();
                if let Ok(path) = std::env::join_paths(libraries) {
                    command.env("LD_LIBRARY_PATH", path);
                }
            }
        }
        command
    }
}

/// A proxy that was fetched.
pub fn program(kind: Kind) -> Option<PathBuf> {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/peers");
    let program = match kind {
        Kind::Envoy => tools.join("envoy"),
        Kind::HaProxy => tools.join("haproxy/usr/sbin/haproxy"),
    };
    program.exists().then_some(program)
}

/// An address that nobody listens on now: proxies of others cannot be asked which port they took.
pub fn free() -> SocketAddr {
    let taken = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
    taken.expect("loopback has a free port")
}

/// Waits without a runtime: this is used before there is one.
fn pause(time: Duration) {
    std::thread::park_timeout(time);
}

/// Writes a file that holds a key.
fn write_key(path: &Path, text: &str) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = fs::OpenOptions::new();
    let options = options.create(true).truncate(true).write(true).mode(0o600);
    options.open(path)?.write_all(text.as_bytes())
}
