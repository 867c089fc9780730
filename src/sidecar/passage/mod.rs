//! Calls that pass a sidecar, of whatever service: whom they are for, who answers them, what is
//! stamped on them and what is learned from how they end. The policy of the engine's exchange.
//!
//! | file | what |
//! |---|---|
//! | `named` | whom a request is for |
//! | `aims` | the names that callers write, read once |
//! | `outward` | a call of the own agent's to somebody else's: chosen as for a task |
//! | `inward` | a member's call to the own agent: admitted or refused |
//! | `account` | what is counted, logged and traced of each |
//! | `stamp` | metadata of the mesh's own |
//! | `targets` | numbers for those who answer |
//!
//! Refuses to wait for an instance that is busy or broken: who calls may have another, and is told so.

mod account;
mod aims;
mod inward;
mod named;
mod outward;
mod stamp;
mod targets;
#[cfg(test)]
mod tests;

use std::{fmt, sync::Arc};

use tokio::time::Instant;
use tonic::Code;

use super::{balancer::Balancer, carry, judge};
use crate::{
    domain::{AgentName, InstanceId, Label, SpiffeId},
    h2::{
        connection::Config,
        exchange::{self, End, GivenBack, Onward, Outcome as Ended, Policy, Request, Verdict},
        grpc,
        hpack::Fields,
    },
    identity::{Caller, Connection},
    resilience::{Outcome, Permit},
    runtime::{DataThreads, Nursery},
    task::{Candidate, Route},
    telemetry::metrics::passing::PassingCalls,
    transport::{Arrival, Hubs, Lookup, Ways},
};

use self::{
    account::{Account, To, Went},
    aims::{Aim, Aims},
    named::Named,
    targets::{OWN_AGENT, Targets},
};

/// A member's answer that says that nothing was done: the call may go elsewhere.
const NOT_PROCESSED: &[u8] = b"attache-not-processed";

const INVALID_ARGUMENT: grpc::Code = grpc::Code(3);

/// Whose sidecar this is, and how calls find their way from it. One for all threads.
pub(super) struct Passage {
    /// The sidecar's own id.
    pub(super) own: SpiffeId,
    pub(super) namespace: Label,
    pub(super) instance: InstanceId,
    /// The own agent, and where it listens; `None`: it has none, or one that nobody can call.
    pub(super) agent: Option<(AgentName, String)>,
    pub(super) route: Arc<dyn Route>,
    targets: Targets,
    /// What is counted of them.
    pub(super) calls: PassingCalls,
}

impl fmt::Debug for Passage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Passage")
            .field("instance", &self.instance)
            .finish_non_exhaustive()
    }
}

/// The policy of one thread.
#[derive(Debug)]
pub(super) struct Desk {
    passage: Arc<Passage>,
    aims: Aims,
}

/// What is remembered of a call while it passes.
#[derive(Debug, Default)]
pub(super) struct Passing {
    /// Whom the own agent has called; `None`: the call goes nowhere but where it went.
    to: Option<Arc<Aim>>,
    /// Where it is now, and who hears how it goes there.
    at: Option<(Arc<Candidate>, Permit)>,
    /// What a rule does to it on purpose, once it has rested.
    abort: Option<Code>,
    /// Where it was before; as many as a call has tries.
    tried: Vec<InstanceId>,
    /// Nobody has seen it: a sidecar that sent it may send it to another.
    unseen: bool,
    account: Account,
}

impl Passing {
    /// The instance has shown what it makes of the call.
    fn judged(&mut self, outcome: Outcome, now: Instant) -> Option<Arc<Candidate>> {
        let (to, permit) = self.at.take()?;
        let turn = permit.finish(outcome, now, rand::random());
        judge::tell(turn, (to.instance.as_str(), self.agent()));
        Some(to)
    }

    /// Whom the own agent has called.
    fn agent(&self) -> Option<&AgentName> {
        self.to.as_ref().map(|aim| &aim.agent)
    }
}

impl Policy for Desk {
    type Peer = Arrival;
    type Call = Passing;

    fn on_request(&mut self, peer: &Arrival, request: &mut Request<'_>) -> (Verdict, Passing) {
        self.passage.take(&peer.connection, request, &mut self.aims)
    }

    fn on_again(
        &mut self,
        call: &mut Passing,
        request: &mut Request<'_>,
        why: GivenBack,
    ) -> Verdict {
        let outcome = match why {
            GivenBack::Rested => return self.passage.depart(call, request),
            GivenBack::Unreachable => Outcome::Failure,
            GivenBack::Unprocessed => Outcome::Neutral,
            GivenBack::Wanted => Outcome::Overload(None),
        };
        let to = call.judged(outcome, request.now);
        call.tried.extend(to.map(|to| to.instance.clone()));
        if call.to.is_none() {
            call.unseen = true;
            let text = "the agent could not be reached; ask again later";
            return reply(grpc::Code::UNAVAILABLE, text);
        }
        self.passage.choose(call, request, true)
    }

    fn on_response(&mut self, call: &mut Passing, fields: &mut Fields, end: bool) -> Onward {
        let unprocessed = || fields.iter().any(|field| field.name == NOT_PROCESSED);
        if end && call.to.is_some() && unprocessed() {
            return Onward::Again;
        }
        if end {
            call.account.told(fields);
        }
        stamp::back(fields);
        if let Some((to, permit)) = &mut call.at {
            permit.taken();
            // A head that is all there is may be a failure: the end says so.
            let turn = (!end).then(|| permit.first_message(Instant::now()));
            let agent = call.to.as_ref().map(|aim| &aim.agent);
            judge::tell(turn.flatten(), (to.instance.as_str(), agent));
        }
        Onward::Pass
    }

    fn on_reply(&mut self, call: &mut Passing, fields: &mut Fields) {
        if call.unseen {
            fields.push(NOT_PROCESSED, b"1");
        }
    }

    fn on_trailers(&mut self, call: &mut Passing, fields: &mut Fields) {
        call.account.told(fields);
        stamp::back(fields);
    }

    fn config(&self, target: Option<exchange::Target>) -> Config {
        match target {
            // Servers of agents take PINGs, and resets of what they have not looked at, for abuse.
            Some(OWN_AGENT) => Config::agent(),
            None => Config::pipe(),
            Some(_) => Config::upstream(),
        }
    }

    fn on_end(&mut self, mut call: Passing, ended: &Ended) {
        let mut account = std::mem::take(&mut call.account);
        let last = call.at.as_ref().map(|(to, _)| &to.instance);
        let went = Went {
            named: call.agent(),
            own: self.passage.own_agent(),
            instance: last.or_else(|| call.tried.last()),
        };
        account.close(went, ended);
        let outcome = match ended.end {
            End::Replied | End::GivenUp => Outcome::Neutral,
            End::Answered | End::Failed => ended.code.map_or(Outcome::Success, |code| {
                Outcome::of(Code::from_i32(code.0.into()))
            }),
        };
        call.judged(outcome, Instant::now());
    }
}

impl Passage {
    /// The way of calls from and to the member `own`, whose agent listens at `agent`.
    pub(super) fn new(
        own: &SpiffeId,
        instance: &InstanceId,
        agent: Option<&str>,
        route: Arc<dyn Route>,
    ) -> Option<Self> {
        let agent = own
            .member
            .agent_name()
            .cloned()
            .zip(agent.map(str::to_owned));
        Some(Self {
            own: own.clone(),
            namespace: own.member.namespace()?.clone(),
            instance: instance.clone(),
            agent,
            route,
            targets: Targets::default(),
            calls: PassingCalls::default(),
        })
    }

    /// Takes a call of this caller's: it goes somewhere, and is accounted for.
    fn take(
        &self,
        from: &Arc<Connection>,
        request: &mut Request<'_>,
        aims: &mut Aims,
    ) -> (Verdict, Passing) {
        let (verdict, mut passing) = self.judge(&from.caller, request, aims);
        // Our own services have accounts of their own.
        if verdict != Verdict::Local {
            let to = self.called(&passing, &from.caller);
            passing.account = Account::open(&self.calls, from, to, request.fields);
        }
        (verdict, passing)
    }

    /// Where a new call goes.
    fn judge(
        &self,
        caller: &Caller,
        request: &mut Request<'_>,
        aims: &mut Aims,
    ) -> (Verdict, Passing) {
        let mut passing = Passing::default();
        let named = named::named(request.fields, &self.namespace, aims);
        let verdict = match (caller, named) {
            (_, Named::Sidecar) | (Caller::Anonymous, _) => Arrival::local(request),
            (_, Named::Unreadable) => reply(
                INVALID_ARGUMENT,
                "attache-agent is no agent's name; write `name` or `namespace/name`",
            ),
            (_, Named::Misspelt) => reply(
                grpc::Code::UNIMPLEMENTED,
                "no path of a gRPC method: write `/package.Service/Method`, without `%`, `?`, `#`, \
                 `;`, `\\`, empty or dotted parts",
            ),
            (Caller::Local, named) => self.outward(&mut passing, request, named),
            (Caller::Member(member), named) => self.inward(request, &member.id, &named),
        };
        (verdict, passing)
    }

    /// Whom a call is for: whom the own agent has named, or the own agent.
    fn called<'a>(&'a self, passing: &'a Passing, caller: &Caller) -> To<'a> {
        match caller {
            Caller::Member(_) => To {
                agent: self.own_agent(),
                exists: true,
            },
            Caller::Local | Caller::Anonymous => To {
                agent: passing.agent(),
                exists: passing.at.is_some(),
            },
        }
    }

    fn own_agent(&self) -> Option<&AgentName> {
        self.agent.as_ref().map(|(agent, _)| agent)
    }

    /// The engines of all threads, with this policy. Instances are where the catalog has them.
    pub(super) fn start(
        self,
        threads: &DataThreads,
        ways: &Ways,
        balancer: &Arc<Balancer>,
        nursery: &Nursery,
    ) -> Hubs {
        let passage = Arc::new(self);
        let (named, catalog) = (Arc::clone(&passage), Arc::clone(balancer));
        let lookup: Lookup = Arc::new(move |target| {
            if target == OWN_AGENT {
                let (_, address) = named.agent.as_ref()?;
                return Some(carry::own_agent(address.clone()));
            }
            let instance = named.targets.instance(target)?;
            let entry = catalog.mirror().catalog().entry(&instance).cloned();
            Some(carry::target(&*entry?))
        });
        let (kept, catalog) = (Arc::clone(&passage), Arc::clone(balancer));
        nursery.start("targets", |stop| async move {
            let mut changes = kept.route.changes();
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    changed = changes.changed() => if changed.is_err() { return },
                }
                let catalog = catalog.mirror().catalog();
                kept.targets
                    .retain(|instance| catalog.entry(instance).is_some());
            }
        });
        Hubs::start(threads, ways, &lookup, move || Desk {
            passage: Arc::clone(&passage),
            aims: Aims::default(),
        })
    }
}

fn reply(code: grpc::Code, text: impl Into<std::borrow::Cow<'static, str>>) -> Verdict {
    Verdict::Reply(code, text.into())
}
