//! The spans on the way of a task: submit, attempt, execute, handle, and then the child's submit.
//! And those of a call that passes: call at the caller's sidecar, serve at the called agent's.
//!
//! They have a target of their own that only an exporter listens to: without one each costs a look
//! at a flag, and none ever stands in a log line. A span is never entered, since the work of a task
//! hops between threads and waits most of its life: it is a value that ends when it is dropped.
//! Names, ids and reasons go into it, never a payload.

use std::{
    fmt,
    sync::atomic::{AtomicBool, Ordering},
};

use opentelemetry::{Context, trace::TraceContextExt};
use tonic::Code;
use tracing::{Span, field::Empty};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::{metrics::calls::code_name, trace::TraceContext};

/// Target of every span that is exported, and of nothing else.
pub const TARGET: &str = "attache::trace";

/// Most bytes of a reason: agents choose theirs.
const REASON_MAX: usize = 64;

/// What a span is about.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The task.
    pub task_id: &'a str,
    /// What is to be done.
    pub skill: &'a str,
    /// The try, from 1; 0: none was made yet.
    pub attempt: u32,
    /// What the caller knows it by.
    pub correlation_id: &'a str,
}

/// A call that passes a sidecar.
#[derive(Clone, Copy, Debug)]
pub struct Passing<'a> {
    /// With its package; as the caller wrote it.
    pub service: &'a str,
    /// Without the service; as the caller wrote it.
    pub method: &'a str,
    /// The agent that it is for; empty: none.
    pub agent: &'a str,
    /// Who calls.
    pub caller: &'a str,
    /// What the caller knows the work by.
    pub correlation_id: &'a str,
}

/// Whether anybody records spans now: where not, nothing needs to be found out for one.
#[inline]
pub fn recorded() -> bool {
    tracing::enabled!(target: TARGET, tracing::Level::INFO)
}

/// A piece of work under way: its span, and the context for what goes below it.
#[derive(Debug)]
pub struct Work {
    span: Span,
    context: Option<TraceContext>,
    /// How it ended is known.
    told: AtomicBool,
}

/// A span of gRPC work.
macro_rules! rpc_span {
    ($name:literal, $kind:literal, $service:expr, $method:expr, $($more:tt)*) => {
        tracing::info_span!(
            target: TARGET,
            parent: None,
            $name,
            otel.kind = $kind,
            otel.status_description = Empty,
            error.type = Empty,
            rpc.system = "grpc",
            rpc.service = $service,
            rpc.method = $method,
            $($more)*
        )
    };
}

macro_rules! span {
    ($name:literal, $kind:literal, $service:literal, $method:expr, $subject:expr, $($more:tt)*) => {
        rpc_span!(
            $name,
            $kind,
            $service,
            $method,
            attache.task_id = $subject.task_id,
            attache.skill = $subject.skill,
            attache.attempt = $subject.attempt,
            attache.correlation_id = $subject.correlation_id,
            $($more)*
        )
    };
}

macro_rules! passing_span {
    ($name:literal, $kind:literal, $passing:expr) => {
        rpc_span!(
            $name,
            $kind,
            $passing.service,
            $passing.method,
            rpc.grpc.status_code = Empty,
            attache.agent = $passing.agent,
            attache.caller = $passing.caller,
            attache.correlation_id = $passing.correlation_id,
        )
    };
}

impl Work {
    /// The own agent calls another one, until the answer has passed.
    pub fn call(parent: Option<&TraceContext>, passing: &Passing<'_>) -> Self {
        Self::begun(passing_span!("call", "client", passing), parent)
    }

    /// The own agent is called by a member, until its answer has passed.
    pub fn serve(parent: Option<&TraceContext>, passing: &Passing<'_>) -> Self {
        Self::begun(passing_span!("serve", "server", passing), parent)
    }

    /// A passing call ended with this status.
    pub fn answered(&self, code: Code) {
        self.span.record("rpc.grpc.status_code", i32::from(code));
        if code == Code::Ok {
            self.done();
        } else {
            self.fail(code_name(code));
        }
    }

    /// The home takes a task in by `method` of `attache.v1.Agent`; ends when it is acknowledged.
    pub fn submit(
        parent: Option<&TraceContext>,
        method: &str,
        task_id: &impl fmt::Display,
    ) -> Self {
        let span = tracing::info_span!(
            target: TARGET,
            parent: None,
            "submit",
            otel.kind = "server",
            otel.status_description = Empty,
            error.type = Empty,
            rpc.system = "grpc",
            rpc.service = "attache.v1.Agent",
            rpc.method = method,
            attache.task_id = %task_id,
            attache.skill = Empty,
            attache.correlation_id = Empty,
            attache.caller = Empty,
        );
        Self::begun(span, parent)
    }

    /// What is known of a submission once it was checked.
    pub fn checked(&self, skill: &str, correlation_id: &str, caller: &str) {
        self.span.record("attache.skill", skill);
        self.span.record("attache.correlation_id", correlation_id);
        self.span.record("attache.caller", caller);
    }

    /// The home has an attempt run by `agent` on its `instance`, `again` after it was away.
    pub fn attempt(
        parent: Option<&TraceContext>,
        subject: Subject<'_>,
        (agent, instance): (&str, &str),
        again: bool,
    ) -> Self {
        let span = span!(
            "attempt",
            "client",
            "attache.v1.Executor",
            "Execute",
            subject,
            attache.executor = agent,
            attache.executor_instance = instance,
            attache.resumed = again,
        );
        Self::begun(span, parent)
    }

    /// The executor has an attempt of `home`, from its start to its last acknowledged update.
    pub fn execute(parent: Option<&TraceContext>, subject: Subject<'_>, home: &str) -> Self {
        let span = span!(
            "execute",
            "server",
            "attache.v1.Executor",
            "Execute",
            subject,
            attache.home = home,
        );
        Self::begun(span, parent)
    }

    /// The agent's own process works on an attempt.
    pub fn handle(parent: Option<&TraceContext>, subject: Subject<'_>) -> Self {
        let span = span!("handle", "client", "attache.v1.Handler", "Handle", subject,);
        Self::begun(span, parent)
    }

    /// No span and no context: what belongs to no trace.
    pub fn none() -> Self {
        Self {
            span: Span::none(),
            context: None,
            told: AtomicBool::new(true),
        }
    }

    fn begun(span: Span, parent: Option<&TraceContext>) -> Self {
        let above = || parent.cloned();
        if span.is_disabled() {
            let context = above();
            let told = AtomicBool::new(true);
            return Self {
                span,
                context,
                told,
            };
        }
        if let Some(parent) = parent {
            let remote = Context::new().with_remote_span_context(parent.to_span());
            if let Err(error) = span.set_parent(remote) {
                tracing::debug!(%error, "a span lost its parent");
            }
        }
        let own = span.context();
        let context = TraceContext::of_span(own.span().span_context()).or_else(above);
        let told = AtomicBool::new(false);
        Self {
            span,
            context,
            told,
        }
    }

    /// What goes on below this: its own span, or the one above it where none is recorded.
    pub fn context(&self) -> Option<&TraceContext> {
        self.context.as_ref()
    }

    /// It came to its end, whatever is heard of it later.
    pub fn done(&self) {
        self.told.store(true, Ordering::Relaxed);
    }

    /// It failed, unless it came to an end before.
    pub fn give_up(&self, reason: &str) {
        if !self.told.load(Ordering::Relaxed) {
            self.fail(reason);
        }
    }

    /// It failed, for this reason: a word of the contract, never what somebody wrote.
    pub fn fail(&self, reason: &str) {
        let end = reason.floor_char_boundary(REASON_MAX);
        let reason = &reason[..end];
        self.done();
        self.span.record("error.type", reason);
        self.span.record("otel.status_description", reason);
    }
}
