//! `attache ca`: its verbs.

use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};

use crate::cli::args::MeshArgs;
use crate::config::Span;

/// `attache ca ...`.
#[derive(Debug, Subcommand)]
pub enum CaVerb {
    /// Make a root and an issuing CA in a directory
    Init {
        /// Where
        #[arg(long, default_value = "attache/ca", value_name = "DIR")]
        dir: PathBuf,
        /// Name of the mesh in every SPIFFE id
        #[arg(long, default_value = "attache.local")]
        trust_domain: String,
        /// Put localhost into every certificate, for clients on this machine that verify DNS names
        #[arg(long)]
        development: bool,
    },
    /// Ask the registry for a single-use join string for one member
    Token {
        /// How to find it.
        #[command(flatten)]
        mesh: MeshArgs,
        /// Who may join: namespace/name
        member: String,
        /// A service that only calls, instead of an agent
        #[arg(long)]
        service: bool,
        /// How long it may be used: at most 24h
        #[arg(long, default_value = "10m")]
        ttl: Span,
        /// Existing instance to join as again
        #[arg(long, value_name = "ID")]
        instance: Option<String>,
        /// Write it to this file (mode 0600) instead of standard output
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Shut a member out, or one instance of it, until it is enrolled anew
    ///
    /// Its certificates are refused everywhere within seconds: open connections end, it is taken
    /// out of the catalog, and its join tokens and renewals are refused. To let it in again, make
    /// it a new join token.
    Revoke {
        /// How to find the mesh.
        #[command(flatten)]
        mesh: MeshArgs,
        /// Who: namespace/name, or a whole SPIFFE id
        member: String,
        /// A service that only calls, instead of an agent
        #[arg(long)]
        service: bool,
        /// One instance only
        #[arg(long, value_name = "ID")]
        instance: Option<String>,
        /// Why, for the log
        #[arg(long, default_value = "", value_name = "TEXT")]
        reason: String,
    },
    /// Put another root, or another issuing CA, in the place of the present one, without an outage
    ///
    /// Works on the CA's directory, and a running registry follows it within a second. A root: the
    /// next one is told to every member and trusted at once, signs after --prepare, has every sidecar
    /// renew its certificate then, and the present one is trusted no more after --keep. Certificates
    /// made by `attache ca issue`, and ca.pem of foreign clients, are to be made anew in between.
    Rotate {
        /// What
        #[arg(value_enum)]
        what: Rotated,
        /// The CA's directory
        #[arg(
            long,
            env = "ATTACHE_CA",
            default_value = "attache/ca",
            value_name = "DIR"
        )]
        dir: PathBuf,
        /// How long the next root is trusted before it signs
        #[arg(long, default_value = "2h", value_name = "TIME")]
        prepare: Span,
        /// How long the present root is trusted after that
        #[arg(long, default_value = "25h", value_name = "TIME")]
        keep: Span,
    },
    /// Show the CA's roots, which of them signs, and when what ends
    Status {
        /// The CA's directory
        #[arg(
            long,
            env = "ATTACHE_CA",
            default_value = "attache/ca",
            value_name = "DIR"
        )]
        dir: PathBuf,
    },
    /// Issue a certificate from the CA's directory: for operators and services without a sidecar
    Issue {
        /// For whom
        #[arg(value_enum)]
        kind: IssueKind,
        /// Name; of a service: namespace/name
        name: String,
        /// The CA's directory
        #[arg(
            long,
            env = "ATTACHE_CA",
            default_value = "attache/ca",
            value_name = "DIR"
        )]
        dir: PathBuf,
        /// Where ca.pem, cert.pem and key.pem go
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// How long it lives: at most the issuing CA's life
        #[arg(long, default_value = "24h")]
        ttl: Span,
    },
}

/// Whom `attache ca issue` makes a certificate for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum IssueKind {
    /// May call everybody
    Operator,
    /// Calls within its namespace
    Service,
}

/// What `attache ca rotate` replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Rotated {
    /// What every member trusts: in steps, over a day
    Root,
    /// What signs members' certificates: at once
    Issuing,
}
