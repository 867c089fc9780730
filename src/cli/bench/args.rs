//! Flags of `attache bench`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::cli::pairs;
use crate::config::{Size, Span};

/// Shown under `attache bench --help`.
pub(in crate::cli) const EXAMPLES: &str = "\
A path needs two ends. The far one, which answers:
  attache bench --serve 127.0.0.1:50051
  attache bench --serve unix:/tmp/echo.sock

The near one, which calls, directly or through whatever stands between:
  attache bench http://127.0.0.1:50051                          one caller after the other
  attache bench http://127.0.0.1:50051 --callers 256 --size 16KiB
  attache bench http://127.0.0.1:50051 --rate 5000 --callers 100
  attache bench unix:/run/sidecar.sock --metadata attache-agent=default/echo

With mutual TLS, by files in PEM or by the certificate of a mesh:
  attache bench https://10.0.0.7:7443 --ca ca.pem --cert me.pem --key me.key --server-name echo
  attache bench https://10.0.0.7:7443 --identity op --peer spiffe://attache.local/ns/default/agent/a

Closed loop (without --rate): each caller calls again as soon as it has its answer. A path that
stops for a second then costs each caller one slow call, and its percentiles look better than it is.
Open loop (--rate): calls come due at even distances whatever happens, and each is measured from when
it was due, so a stop shows in all calls that it held up. Use it for latency at a known load; set
--callers to what may be in flight at once.

It speaks grpc.testing.BenchmarkService, so the benchmark servers of gRPC in other languages answer
too; --method and --message call anything else. A call whose gRPC status is not OK has failed: it is
shown with its message, is in no percentile, and makes the exit code 1.";

/// `attache bench`.
#[derive(Clone, Debug, Args)]
pub struct BenchArgs {
    /// What is called: http://HOST:PORT, https://HOST:PORT or unix:/PATH
    #[arg(required_unless_present = "serve")]
    pub target: Option<String>,
    /// Answer instead of calling, at HOST:PORT or unix:/PATH, until Ctrl-C
    #[arg(long, value_name = "ADDR", conflicts_with = "target")]
    pub serve: Option<String>,
    /// What a caller does
    #[arg(long, value_enum, default_value_t)]
    pub kind: Kind,
    /// Bytes that are sent in each message
    #[arg(long, default_value = "128")]
    pub size: Size,
    /// Bytes that are asked for in each answer [default: as --size]
    #[arg(long, value_name = "SIZE")]
    pub answer: Option<Size>,
    /// How many call at once
    #[arg(long, short, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=CALLERS_MAX))]
    pub callers: u32,
    /// Calls per second of all callers together, come what may [default: as fast as answers come]
    #[arg(long, value_parser = rate)]
    pub rate: Option<f64>,
    /// How long is measured
    #[arg(long, default_value = "10s")]
    pub time: Span,
    /// How long is called before that, unmeasured
    #[arg(long, default_value = "1s")]
    pub warmup: Span,
    /// Connections that the callers share
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub connections: u32,
    /// Threads that the connections share; of --serve, too
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub threads: u32,
    /// Metadata of each call; may be said more than once
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = pairs::key_value)]
    pub metadata: Vec<(String, String)>,
    /// Call this unary method instead: package.Service/Method
    #[arg(long, requires = "message")]
    pub method: Option<String>,
    /// File with the message for --method, as protobuf
    #[arg(long, value_name = "FILE", requires = "method")]
    pub message: Option<PathBuf>,
    /// Authority that is sent [default: the target's]
    #[arg(long)]
    pub authority: Option<String>,
    /// How both sides prove who they are.
    #[command(flatten)]
    pub tls: TlsArgs,
}

/// TLS of `attache bench`, both halves.
#[derive(Clone, Debug, Default, Args)]
pub struct TlsArgs {
    /// PEM file with the roots that the other side must lead to [default: this system's]
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// PEM file with the own certificate
    #[arg(long, value_name = "FILE", requires = "key")]
    pub cert: Option<PathBuf>,
    /// PEM file with its key
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub key: Option<PathBuf>,
    /// Name that the server's certificate must have [default: the target's host]
    #[arg(long, value_name = "NAME")]
    pub server_name: Option<String>,
    /// Directory with a certificate of a mesh, as `attache ca issue` made it
    #[arg(long, value_name = "DIR", conflicts_with_all = ["ca", "cert", "server_name"])]
    pub identity: Option<PathBuf>,
    /// With --identity: the SPIFFE id that the server must prove
    #[arg(long, value_name = "SPIFFE_ID", requires = "identity")]
    pub peer: Option<String>,
}

/// What a caller does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// One message, one answer, a new call for each
    #[default]
    Unary,
    /// One call; answer after answer is read as fast as they come
    ServerStream,
    /// One call; the next message goes when the last one is answered
    PingPong,
}

/// Above what a connection's ids and this machine's memory are good for.
const CALLERS_MAX: i64 = 65_536;
/// Calls per second that no machine makes; keeps the arithmetic of beats sane.
const RATE_MAX: f64 = 1e8;

fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text
        .parse()
        .map_err(|_| "write a number of calls per second".to_owned())?;
    if (0.001..=RATE_MAX).contains(&rate) {
        Ok(rate)
    } else {
        Err("write a number between 0.001 and 100000000".to_owned())
    }
}
