//! The account of a passing call, from its request to its end: it is counted, has an access line
//! where it failed, and a span where it is traced.
//!
//! Most calls go well, with nobody to read of them: for those it finds out nothing, and allocates
//! nothing. What callers wrote stands in lines and spans only, cut and escaped, never in a label.

mod correlation;
#[cfg(test)]
mod tests;
mod trace;

use std::sync::Arc;

use tonic::Code;

use super::stamp;
use crate::{
    domain::{AgentName, InstanceId},
    h2::{
        exchange::{End, Outcome},
        hpack::{Fields, Name},
    },
    identity::{Caller, Connection},
    telemetry::{
        TraceContext, Work,
        call::{Line, Passed, Weight, details},
        metrics::passing::{Called, Direction, Ended, EndedBy, PassingCall, PassingCalls},
        span,
    },
};

use self::correlation::Correlation;

/// What is known of a call until it ends; the default knows of none, and says nothing.
#[derive(Debug, Default)]
pub(super) struct Account(Option<Open>);

#[derive(Debug)]
struct Open {
    count: PassingCall,
    from: Arc<Connection>,
    correlation: Correlation,
    trace: Option<TraceContext>,
    /// The reason in the details of its status.
    reason: Option<String>,
    work: Option<Box<Work>>,
}

/// Whom a call is for.
#[derive(Clone, Copy, Debug)]
pub(super) struct To<'a> {
    /// The agent, if it names one.
    pub(super) agent: Option<&'a AgentName>,
    /// It is known to exist.
    pub(super) exists: bool,
}

/// Where a call went.
#[derive(Clone, Copy, Debug)]
pub(super) struct Went<'a> {
    /// The agent that the own agent has named.
    pub(super) named: Option<&'a AgentName>,
    /// The own agent, which members call.
    pub(super) own: Option<&'a AgentName>,
    /// The instance that had it last, of those that were chosen.
    pub(super) instance: Option<&'a InstanceId>,
}

impl Account {
    /// A call came from there, with these fields as they go on. Where it is recorded, they name our
    /// span from now on.
    pub(super) fn open(
        calls: &PassingCalls,
        from: &Arc<Connection>,
        to: To<'_>,
        fields: &mut Fields,
    ) -> Self {
        let direction = direction(&from.caller);
        let count = calls.begin(&Called {
            direction,
            agent: to.agent,
            exists: to.exists,
            path: text(fields.get(Name::Path)),
        });
        let mut open = Open {
            count,
            from: Arc::clone(from),
            correlation: Correlation::default(),
            trace: None,
            reason: None,
            work: None,
        };
        let recorded = span::recorded();
        if recorded || Weight::Told.is_wanted() {
            open.correlation = Correlation::of(stamp::correlation(fields));
            open.trace = trace::above(fields, recorded);
        }
        // What those above do not record is not recorded here either: it passes as it came.
        if recorded && open.trace.as_ref().is_none_or(TraceContext::is_sampled) {
            open.trace_on(direction, to.agent, fields);
        }
        Self(Some(open))
    }

    /// The answer's last fields, with its status.
    pub(super) fn told(&mut self, fields: &Fields) {
        let Some(open) = &mut self.0 else { return };
        let details = fields.get(Name::GrpcStatusDetails);
        let details = details.filter(|_| fields.get(Name::GrpcStatus) != Some(b"0"));
        let details = details.filter(|_| Weight::Told.is_wanted());
        open.reason = details.and_then(details::reason_in);
    }

    /// The call is over.
    pub(super) fn close(&mut self, went: Went<'_>, outcome: &Outcome) {
        let Some(open) = self.0.take() else { return };
        let ended = Ended {
            by: ended_by(outcome.end),
            // An answer without a status is none that gRPC knows.
            code: outcome
                .code
                .map_or(Code::Unknown, |code| Code::from_i32(code.0.into())),
            attempts: outcome.attempts,
            took: outcome.elapsed,
            received: outcome.sent,
            sent: outcome.received,
        };
        let weight = open.weight(ended.code);
        if weight.is_wanted() {
            open.write(weight, went, &ended);
        }
        if let Some(work) = &open.work {
            work.answered(ended.code);
        }
        // In this order: what is counted has been told.
        open.count.ended(&ended);
    }
}

impl Open {
    #[cold]
    fn trace_on(&mut self, direction: Direction, agent: Option<&AgentName>, fields: &mut Fields) {
        let path = text(fields.get(Name::Path));
        let (service, method) = trace::parts(path);
        let passing = span::Passing {
            service,
            method,
            agent: &agent.map(ToString::to_string).unwrap_or_default(),
            caller: &self.from.caller.to_string(),
            correlation_id: self.correlation.text().unwrap_or_default(),
        };
        let work = match direction {
            Direction::Outward => Work::call(self.trace.as_ref(), &passing),
            Direction::Inward => Work::serve(self.trace.as_ref(), &passing),
        };
        if let Some(context) = work.context() {
            trace::write(context, fields);
            self.trace = Some(context.clone());
        }
        self.work = Some(Box::new(work));
    }

    /// Failures are for everybody; what went well, and what probes and tools ask all the time, for
    /// who looks closely.
    fn weight(&self, code: Code) -> Weight {
        let background = match self.count.path() {
            Some(path) => path.starts_with("/grpc."),
            None => self.count.service().starts_with("grpc."),
        };
        if background || code == Code::Ok {
            Weight::Background
        } else {
            Weight::Told
        }
    }

    #[cold]
    fn write(&self, weight: Weight, went: Went<'_>, ended: &Ended) {
        let (listener, agent) = match direction(&self.from.caller) {
            Direction::Outward => ("local", went.named),
            Direction::Inward => ("mtls", went.own),
        };
        let agent = agent.map(ToString::to_string);
        let remote = self.from.remote.map(|remote| remote.to_string());
        let line = Line {
            listener,
            caller: &self.from.caller.to_string(),
            remote: remote.as_deref().unwrap_or("-"),
            service: self.count.service(),
            method: self.count.method(),
            path: self.count.path(),
            code: ended.code,
            reason: self.reason.as_deref(),
            passed: Some(Passed {
                agent: agent.as_deref(),
                instance: went.instance.map(InstanceId::as_str),
                attempts: ended.attempts,
                ended_by: ended.by.label(),
            }),
            skill: None,
            task: None,
            correlation: self.correlation.text(),
            trace: self.trace.as_ref(),
            took: ended.took,
            received: ended.received,
            sent: ended.sent,
        };
        line.write(weight);
    }
}

fn direction(caller: &Caller) -> Direction {
    match caller {
        Caller::Local | Caller::Anonymous => Direction::Outward,
        Caller::Member(_) => Direction::Inward,
    }
}

fn ended_by(end: End) -> EndedBy {
    match end {
        End::Answered => EndedBy::Answer,
        End::Replied => EndedBy::Sidecar,
        End::GivenUp => EndedBy::Caller,
        End::Failed => EndedBy::Way,
    }
}

/// A value as text; empty where it is none.
fn text(octets: Option<&[u8]>) -> &str {
    let octets = octets.unwrap_or_default();
    std::str::from_utf8(octets).unwrap_or_default()
}
