//! The command line: verbs, flags, environment, and the help that teaches them.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use super::bench::args::BenchArgs;
pub use super::breakers::BreakersArgs;
pub use super::ca::args::{CaVerb, IssueKind};
pub use super::log::LogLevelArgs;
use super::pairs;
pub use super::respond::RespondArgs;
pub use super::rules::args::RulesVerb;
use crate::config::{Size, Span};
use crate::sidecar::Journaling;
use crate::telemetry::LogFormat;

/// Shown under `attache --help`.
const EXAMPLES: &str = "\
The first minute:
  attache up examples/research-desk          a whole mesh with mutual TLS from one file
  attache agents list                        who is here, and what they can do
  attache task run research.answer --text \"What survives a crash?\"

By hand:
  attache ca init --dir attache/ca           root and issuing CA
  attache registry                           catalog, CA and enrolment
  attache ca token default/billing           a join string for one member
  attache sidecar --config billing.toml      carries one agent

Exit codes: 0 done · 1 fault · 2 wrong arguments or configuration · 3 task failed or rejected ·
4 task canceled · 5 not found · 6 refused · 7 mesh not reachable · 8 deadline passed · 130 Ctrl-C";

/// A gRPC mesh for AI agents with mutual TLS.
#[derive(Debug, Parser)]
#[command(name = "attache", version, after_help = EXAMPLES, max_term_width = 100)]
pub struct Cli {
    /// What is logged.
    #[command(flatten)]
    pub logs: LogArgs,
    /// Tables for people, or JSON for programs
    #[arg(long, short, global = true, value_enum, default_value_t)]
    pub output: Format,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// How results are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Tables and sentences
    #[default]
    Human,
    /// One JSON value, or one per line where results stream
    Json,
}

/// What is logged, and how.
#[derive(Clone, Debug, Default, Args)]
pub struct LogArgs {
    /// What is logged, to standard error: a level, or `target=level` pairs
    #[arg(long, global = true, env = "ATTACHE_LOG", value_name = "FILTER")]
    pub log: Option<String>,
    /// How logs are written
    #[arg(
        long,
        global = true,
        env = "ATTACHE_LOG_FORMAT",
        value_enum,
        default_value_t
    )]
    pub log_format: LogFormat,
}

/// Where a process' traces go.
#[derive(Clone, Debug, Default, Args)]
pub struct TraceArgs {
    /// Collector that traces are sent to, by OTLP over gRPC: http://host:port
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp: Option<String>,
    /// Name of the service in traces [default: attache-NAME]
    #[arg(long, env = "OTEL_SERVICE_NAME", value_name = "NAME")]
    pub service_name: Option<String>,
}

/// What `attache` can do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Start a whole mesh on this machine from DIR/mesh.toml
    Up(UpArgs),
    /// Stop the mesh that `attache up` runs in DIR
    Down(DownArgs),
    /// Check DIR/mesh.toml and say what `up` would start
    Check(CheckArgs),
    /// Run a registry: catalog, certificate authority and enrolment
    Registry(RegistryArgs),
    /// Run a sidecar: carries one agent, or a service that only calls
    Sidecar(SidecarArgs),
    /// The certificate authority: make it, invite members, issue certificates
    #[command(subcommand)]
    Ca(CaVerb),
    /// Who is in the mesh, and what they can do
    #[command(subcommand)]
    Agents(AgentsVerb),
    /// Traffic rules: canaries, timeouts, retries, breakers, faults to rehearse
    #[command(subcommand, after_help = super::rules::args::EXAMPLES)]
    Rules(RulesVerb),
    /// Tasks: submit, follow, read and cancel them
    #[command(subcommand)]
    Task(TaskVerb),
    /// A sidecar's journal of tasks: check it, save what is whole of a damaged one
    #[command(subcommand)]
    Journal(JournalVerb),
    /// Whom sidecars call, whom they leave out after failures, and why
    #[command(after_help = super::breakers::EXAMPLES)]
    Breakers(BreakersArgs),
    /// Measure a path of gRPC: rate and latency of calls through whatever stands between
    #[command(after_help = super::bench::args::EXAMPLES)]
    Bench(BenchArgs),
    /// Show or change what running registries and sidecars log
    #[command(after_help = super::log::EXAMPLES)]
    Log(LogLevelArgs),
}

/// `attache up`.
#[derive(Debug, Args)]
pub struct UpArgs {
    /// Directory with mesh.toml
    #[arg(default_value = ".")]
    pub dir: PathBuf,
    /// Where state is kept [default: DIR/.attache]
    #[arg(long, value_name = "PATH")]
    pub state: Option<PathBuf>,
    /// Replace a value of mesh.toml's [set] table
    #[arg(long, value_name = "KEY=VALUE", value_parser = pairs::key_value)]
    pub set: Vec<(String, String)>,
    /// End after the listed tasks, with their outcome as exit code
    #[arg(long, conflicts_with = "detach")]
    pub once: bool,
    /// Go on in the background once all is healthy
    #[arg(long)]
    pub detach: bool,
    /// Forget certificates, tasks and ports of earlier runs first
    #[arg(long)]
    pub clean: bool,
    /// Run this command against the mesh (with ATTACHE_MESH set), then end with its exit code
    #[arg(last = true, value_name = "COMMAND", conflicts_with_all = ["once", "detach"])]
    pub command: Vec<String>,
}

/// `attache down`.
#[derive(Debug, Args)]
pub struct DownArgs {
    /// Directory with mesh.toml
    #[arg(default_value = ".")]
    pub dir: PathBuf,
    /// Where state is kept [default: DIR/.attache]
    #[arg(long, value_name = "PATH")]
    pub state: Option<PathBuf>,
}

/// `attache check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Directory with mesh.toml
    #[arg(default_value = ".")]
    pub dir: PathBuf,
    /// Replace a value of mesh.toml's [set] table
    #[arg(long, value_name = "KEY=VALUE", value_parser = pairs::key_value)]
    pub set: Vec<(String, String)>,
}

/// `attache registry`. Flags win over environment, environment over the file.
#[derive(Debug, Default, Args)]
pub struct RegistryArgs {
    /// TOML file
    #[arg(long, env = "ATTACHE_REGISTRY_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Directory of the CA, as `attache ca init` made it
    #[arg(long, env = "ATTACHE_CA", value_name = "DIR")]
    pub ca: Option<PathBuf>,
    /// Directory of the catalog's database
    #[arg(long, env = "ATTACHE_REGISTRY_STATE", value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Mutual TLS listener
    #[arg(long, env = "ATTACHE_REGISTRY_LISTEN", value_name = "ADDR")]
    pub listen: Option<String>,
    /// Enrolment listener
    #[arg(long, env = "ATTACHE_REGISTRY_ENROLLMENT", value_name = "ADDR")]
    pub enrollment: Option<String>,
    /// HTTP admin listener, loopback only
    #[arg(long, env = "ATTACHE_REGISTRY_ADMIN", value_name = "ADDR")]
    pub admin: Option<String>,
    /// Where its traces go.
    #[command(flatten)]
    pub traces: TraceArgs,
    /// Print the configuration in force and end
    #[arg(long)]
    pub print_config: bool,
    /// Drain when standard input closes: for a parent that may die
    #[arg(long, hide = true)]
    pub until_stdin_closes: bool,
}

/// `attache sidecar`. Flags win over environment, environment over the file.
#[derive(Debug, Default, Args)]
pub struct SidecarArgs {
    /// TOML file
    #[arg(long, env = "ATTACHE_SIDECAR_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Directory of certificate, journal and catalog copy
    #[arg(long, env = "ATTACHE_SIDECAR_STATE", value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Registries' mutual TLS listeners, comma separated
    #[arg(
        long,
        env = "ATTACHE_REGISTRY",
        value_name = "HOST:PORT",
        value_delimiter = ','
    )]
    pub registry: Option<Vec<String>>,
    /// Registries' enrolment listeners, comma separated
    #[arg(
        long,
        env = "ATTACHE_ENROLLMENT",
        value_name = "HOST:PORT",
        value_delimiter = ','
    )]
    pub enrollment: Option<Vec<String>>,
    /// File that holds the join string (or set ATTACHE_JOIN to the string itself)
    #[arg(long, env = "ATTACHE_JOIN_FILE", value_name = "FILE")]
    pub join_file: Option<PathBuf>,
    /// Mutual TLS listener
    #[arg(long, env = "ATTACHE_SIDECAR_LISTEN", value_name = "ADDR")]
    pub listen: Option<String>,
    /// Plaintext listener for the own agent: unix:/path, a loopback host:port, or tcp
    #[arg(long, env = "ATTACHE_SIDECAR_LOCAL", value_name = "ADDR")]
    pub local: Option<String>,
    /// HTTP admin listener, loopback only
    #[arg(long, env = "ATTACHE_SIDECAR_ADMIN", value_name = "ADDR")]
    pub admin: Option<String>,
    /// Where peers reach the mutual TLS listener, comma separated
    #[arg(
        long,
        env = "ATTACHE_ADVERTISE",
        value_name = "HOST:PORT",
        value_delimiter = ','
    )]
    pub advertise: Option<Vec<String>>,
    /// Address of the agent's Handler
    #[arg(long, env = "ATTACHE_AGENT", value_name = "ADDR")]
    pub agent: Option<String>,
    /// `memory` loses all tasks at a restart: to measure what the disk costs
    #[arg(long, env = "ATTACHE_JOURNAL", value_name = "disk|memory", hide = true)]
    pub journal: Option<Journaling>,
    /// Where its traces go.
    #[command(flatten)]
    pub traces: TraceArgs,
    /// Free space below which no task is taken, such as 256MiB
    #[arg(long, env = "ATTACHE_DISK_RESERVE", value_name = "SIZE")]
    pub disk_reserve: Option<Size>,
    /// Print the configuration in force and end
    #[arg(long)]
    pub print_config: bool,
    /// Drain when standard input closes: for a parent that may die
    #[arg(long, hide = true)]
    pub until_stdin_closes: bool,
}

/// How a mesh is found: by the state of `attache up`, or by an operator's certificate.
#[derive(Clone, Debug, Default, Args)]
pub struct MeshArgs {
    /// State directory of `attache up`, or one that has it [default: the nearest .attache above]
    #[arg(long, env = "ATTACHE_MESH", value_name = "DIR")]
    pub mesh: Option<PathBuf>,
    /// Of a mesh started by hand: directory with ca.pem, cert.pem and key.pem, as `attache ca
    /// issue` made it; wins over --mesh
    #[arg(long, env = "ATTACHE_IDENTITY", value_name = "DIR")]
    pub identity: Option<PathBuf>,
    /// Registries of a mesh started by hand, with --identity, comma separated [default:
    /// 127.0.0.1:7443]
    #[arg(
        long,
        env = "ATTACHE_REGISTRY",
        value_name = "HOST:PORT",
        value_delimiter = ','
    )]
    pub registry: Option<Vec<String>>,
}

impl MeshArgs {
    /// The flags that find the same mesh again, each with a blank before it.
    pub fn flags(&self) -> String {
        match (&self.identity, &self.mesh) {
            (Some(identity), _) => {
                let registry = self.registry.as_ref().map_or(String::new(), |registry| {
                    format!(" --registry {}", registry.join(","))
                });
                format!(" --identity {}{registry}", identity.display())
            }
            (None, Some(mesh)) => format!(" --mesh {}", mesh.display()),
            (None, None) => String::new(),
        }
    }
}

/// `attache agents ...`.
#[derive(Debug, Subcommand)]
pub enum AgentsVerb {
    /// Everybody in the mesh, with skills and health
    List {
        /// How to find it.
        #[command(flatten)]
        mesh: MeshArgs,
        /// Only this namespace
        #[arg(long)]
        namespace: Option<String>,
        /// Only who offers this skill
        #[arg(long)]
        skill: Option<String>,
    },
    /// One agent: its card and its instances
    Show {
        /// How to find it.
        #[command(flatten)]
        mesh: MeshArgs,
        /// namespace/name, or a name in `default`
        agent: String,
    },
    /// Changes as they happen, until Ctrl-C
    Watch {
        /// How to find it.
        #[command(flatten)]
        mesh: MeshArgs,
    },
}

/// `attache journal ...`, on a directory that no sidecar runs on.
#[derive(Debug, Subcommand)]
pub enum JournalVerb {
    /// Read all of it and say what is there; nothing is changed. Exit code 1: it is damaged
    Check {
        /// Directory with the *.log files: `journal` in a sidecar's state
        dir: PathBuf,
    },
    /// Copy what is whole into a new directory, and list what is not; the old one stays as it is
    Repair {
        /// Directory with the *.log files: `journal` in a sidecar's state
        dir: PathBuf,
        /// New directory [default: DIR.repaired]
        #[arg(long, value_name = "DIR")]
        into: Option<PathBuf>,
        /// Keep tasks of which a lost record may be: they may run again, or end a second time
        #[arg(long)]
        keep_doubtful: bool,
    },
}

/// What a task is made of.
#[derive(Debug, Args)]
pub struct TaskArgs {
    /// How to find the mesh.
    #[command(flatten)]
    pub mesh: MeshArgs,
    /// What to do, such as research.answer
    pub skill: String,
    /// Input as text
    #[arg(long, short)]
    pub text: Option<String>,
    /// Input as JSON
    #[arg(long, short, value_name = "JSON")]
    pub data: Option<String>,
    /// Input from a file
    #[arg(long, short, value_name = "FILE")]
    pub file: Vec<PathBuf>,
    /// Only this agent: namespace/name
    #[arg(long)]
    pub agent: Option<String>,
    /// Bound of the whole task
    #[arg(long, value_name = "TIME")]
    pub timeout: Option<Span>,
    /// Fail at once when nobody offers the skill
    #[arg(long)]
    pub fail_fast: bool,
    /// Ties together what belongs together, in logs and lists
    #[arg(long, value_name = "ID")]
    pub correlation: Option<String>,
    /// Weight among your own tasks that wait, 1 to 10; 5 unless it is said
    #[arg(long, value_name = "WEIGHT", value_parser = clap::value_parser!(u32).range(1..=10))]
    pub priority: Option<u32>,
    /// Only these may get work of it, by delegation or by handing it over: AGENT/SKILL, such as
    /// billing/billing.check or teams/billing/billing.check; may be said more than once
    #[arg(long, value_name = "AGENT/SKILL", value_parser = pairs::scoped)]
    pub scope: Vec<(String, String)>,
    /// Makes it safe to say again: with the same key and input it is the same task, as long as the
    /// sidecar that took it is there
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    /// Whom to tell: an https URL, or an agent and its skill as namespace/name/skill
    #[arg(long, value_name = "TARGET")]
    pub callback: Option<String>,
    /// Tell of this state; the four ends unless it is said
    #[arg(long, value_enum, value_name = "STATE", requires = "callback")]
    pub callback_state: Vec<StateArg>,
}

/// `attache task ...`.
#[derive(Debug, Subcommand)]
pub enum TaskVerb {
    /// Hand a task over and print its id
    Submit(TaskArgs),
    /// Hand a task over and follow it to its end; Ctrl-C leaves it running
    Run(TaskArgs),
    /// One task as it stands
    Get {
        /// How to find it.
        #[command(flatten)]
        mesh: MeshArgs,
        /// Id, as submit printed it
        id: String,
    },
    /// Tasks, newest first
    List {
        /// How to find it.
        #[command(flatten)]
        mesh: MeshArgs,
        /// Only this skill
        #[arg(long)]
        skill: Option<String>,
        /// Only this state
        #[arg(long, value_enum)]
        state: Vec<StateArg>,
        /// At most so many
        #[arg(long, default_value_t = 50)]
        limit: usize,
    },
    /// Events of a task, from any number on
    Watch {
        /// How to find it.
        #[command(flatten)]
        mesh: MeshArgs,
        /// Id, as submit printed it
        id: String,
        /// Only events after this number
        #[arg(long, default_value_t = 0, value_name = "SEQ")]
        after: u64,
    },
    /// A task and all that was made for it, as a tree
    Tree {
        /// How to find it.
        #[command(flatten)]
        mesh: MeshArgs,
        /// Id of the root, or of any task in it
        id: String,
    },
    /// Answer what a task asks; it goes on with the answer
    Respond(RespondArgs),
    /// Ask a task to stop
    Cancel {
        /// How to find it.
        #[command(flatten)]
        mesh: MeshArgs,
        /// Id, as submit printed it
        id: String,
        /// Why, for the record
        #[arg(long, default_value = "")]
        reason: String,
    },
}

/// States to list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "the names say it")]
pub enum StateArg {
    Submitted,
    Working,
    Completed,
    Failed,
    Canceled,
    Rejected,
    InputRequired,
    AuthRequired,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_command_follows_two_dashes() {
        let cli = Cli::parse_from(["attache", "up", "x", "--set", "a=b=c", "--", "sh", "-c"]);
        let Verb::Up(up) = cli.verb else {
            panic!("not up")
        };
        assert_eq!(up.set, [("a".to_owned(), "b=c".to_owned())]);
        assert_eq!(up.command, ["sh", "-c"]);
    }
}
