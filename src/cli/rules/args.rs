//! `attache rules`: its verbs, and the help that teaches them.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::cli::args::MeshArgs;

/// Shown under `attache rules --help`.
pub(in crate::cli) const EXAMPLES: &str = "\
  attache rules put canary.rule.toml         make it, or change it to what the file says
  attache rules list                         all rules, and what each sets
  attache rules show billing-canary          one rule; `--output json` prints a file for `put`
  attache rules explain billing.pay          who gets such a task, and which rule says what
  attache rules delete billing-canary        back to what it overrode

`attache rules put --help` shows what a file looks like. A rule reaches all sidecars within a second
or two, and holds while the registry is away.";

/// Shown under `attache rules put --help`; a test reads every file in it.
pub(in crate::cli) const PUT_EXAMPLES: &str = "\
A canary: one call in ten goes to version 2 of the agent, whoever has how many instances.

  # canary.rule.toml
  name = \"billing-canary\"
  skill = \"billing.check_balance\"          # only calls for this skill
  [[weights]]
  agent_version = \"^1\"
  weight = 90
  [[weights]]
  agent_version = \"^2\"
  weight = 10

A rehearsal: of what the agent `web` asks of `billing`, a fifth waits for 2 s first, and one in
twenty fails as if nobody were there. `attache rules delete rehearsal` ends it.

  # rehearsal.rule.toml
  name = \"rehearsal\"
  agent = \"billing\"                        # only calls to this agent
  [[faults]]
  callers = [\"web\"]
  delay = { percent = 20, duration = \"2s\" }
  abort = { percent = 5, code = \"UNAVAILABLE\" }

Patience: a first word within 5 s, two attempts at most, and a breaker that opens sooner.

  # patience.rule.toml
  name = \"billing\"
  agent = \"billing\"
  timeout = \"5s\"
  [retry]
  attempts = 2
  [breaker]
  consecutive = 3
  cool_down = \"5s\"

The file is TOML or JSON; `rules = [...]` in it holds several. What a rule leaves out is inherited:
from rules for the skill and the agent, then for the skill, the agent, the namespace, then the
defaults. All keys: docs/traffic.md. A rule with its `revision`, as `show --output json` prints it,
is put only if nobody has changed it since.";

/// `attache rules explain`.
#[derive(Clone, Debug, Args)]
pub struct ExplainArgs {
    /// The skill that the task is for
    pub skill: String,
    /// Only this agent: namespace/name, or a name in `default`
    #[arg(long)]
    pub agent: Option<String>,
    /// Whose sidecars: an agent's name, an instance, `all`, or HOST:PORT of an admin listener
    #[arg(long = "from", default_value = "all", value_name = "NAME|ADDRESS")]
    pub process: String,
    /// State directory of `attache up`, or one that has it [default: the nearest .attache above]
    #[arg(long, env = "ATTACHE_MESH", value_name = "DIR")]
    pub mesh: Option<PathBuf>,
}

/// `attache rules ...`.
#[derive(Debug, Subcommand)]
pub enum RulesVerb {
    /// Make rules, or change them to what a file says; prints what changed
    #[command(after_help = PUT_EXAMPLES)]
    Put {
        /// How to find it.
        #[command(flatten)]
        mesh: MeshArgs,
        /// TOML or JSON file; `-`: standard input
        file: PathBuf,
    },
    /// All rules, and what each sets
    List {
        /// How to find it.
        #[command(flatten)]
        mesh: MeshArgs,
        /// Only this namespace
        #[arg(long)]
        namespace: Option<String>,
    },
    /// One rule, setting by setting
    Show {
        /// How to find it.
        #[command(flatten)]
        mesh: MeshArgs,
        /// namespace/name, or a name in `default`
        rule: String,
    },
    /// Who would get a task from the sidecars here, how it is treated, and which rule says so
    Explain(ExplainArgs),
    /// Take a rule away
    Delete {
        /// How to find it.
        #[command(flatten)]
        mesh: MeshArgs,
        /// namespace/name, or a name in `default`
        rule: String,
        /// Only if it is at this revision now
        #[arg(long, value_name = "NUMBER")]
        revision: Option<u64>,
    },
}
