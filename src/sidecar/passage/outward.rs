//! Calls of the own agent: where they go is chosen as it is for tasks, by the same sets, breakers and
//! budgets.

use super::{Passage, Passing, named::Named, reply, stamp, targets::OWN_AGENT};
use crate::{
    domain::AgentName,
    h2::{
        exchange::{Request, Verdict},
        grpc::Code,
    },
    task::{Pick, Want},
};

impl Passage {
    /// Finds somebody for a call of the own agent's.
    pub(super) fn outward(
        &self,
        passing: &mut Passing,
        request: &mut Request<'_>,
        named: Named,
    ) -> Verdict {
        let Named::Agent(aim) = named else {
            return reply(
                Code::UNIMPLEMENTED,
                "no service of the sidecar's: to call an agent, name it in the metadata \
                 attache-agent, or call NAME.NAMESPACE.agent.attache",
            );
        };
        passing.to = Some(aim);
        self.choose(passing, request, false)
    }

    /// One instance of the agent that the call is for; `again`: a try after one that was given back.
    pub(super) fn choose(
        &self,
        passing: &mut Passing,
        request: &mut Request<'_>,
        again: bool,
    ) -> Verdict {
        let Some(aim) = passing.to.clone() else {
            return reply(Code::INTERNAL, "the call is for nobody");
        };
        let want = Want {
            namespace: &self.namespace,
            selector: &aim.selector,
            caller: &self.own,
            context: "",
            prefer: None,
            exclude: &passing.tried,
            contract: None,
            again,
            admits: &|_| true,
            allows: &|_| true,
        };
        let (to, call) = match self.route.pick(&want, request.now) {
            Pick::Go(to, call) => (to, call),
            Pick::Busy(_) => {
                return unavailable(
                    &aim.agent,
                    "is busy: all its instances have as many calls as they may; ask again soon",
                );
            }
            Pick::Ejected(_) => {
                return unavailable(
                    &aim.agent,
                    "has failed too often of late; ask again later, or see `attache breakers`",
                );
            }
            Pick::OverBudget(_) => {
                return unavailable(
                    &aim.agent,
                    "could not take the call, and there were too many second tries of late; ask again later",
                );
            }
            Pick::Nobody => {
                return unavailable(
                    &aim.agent,
                    "has no instance that serves; see `attache agents`",
                );
            }
        };
        passing.at = Some((to, call.permit));
        passing.abort = call.injected.abort;
        match call.injected.delay {
            Some(delay) => Verdict::Later(delay),
            None => self.depart(passing, request),
        }
    }

    /// A call goes where it was chosen to go, unless a rule wants it to fail.
    pub(super) fn depart(&self, passing: &mut Passing, request: &mut Request<'_>) -> Verdict {
        if let Some(code) = passing.abort.take() {
            let code = u8::try_from(i32::from(code)).map_or(Code::UNKNOWN, Code);
            return reply(
                code,
                "a traffic rule asks for this failure: nothing was sent",
            );
        }
        let (Some((to, permit)), Some(aim)) = (&mut passing.at, &passing.to) else {
            return reply(Code::INTERNAL, "the call is for nobody");
        };
        permit.sent(request.now);
        if to.instance == self.instance {
            stamp::inward(request.fields, &self.own);
            return Verdict::Forward(OWN_AGENT);
        }
        stamp::outward(request.fields, aim);
        Verdict::Forward(self.targets.of(&to.instance))
    }
}

fn unavailable(agent: &AgentName, why: &str) -> Verdict {
    reply(Code::UNAVAILABLE, format!("{agent} {why}"))
}
