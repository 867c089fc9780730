//! Calls of members to the own agent: who may, and who is told what.

use super::{Passage, named::Named, reply, stamp, targets::OWN_AGENT};
use crate::{
    domain::SpiffeId,
    h2::{
        exchange::{Request, Verdict},
        grpc::Code,
    },
    identity::authorize::{Action, authorize},
};

impl Passage {
    /// Lets a member's call through to the own agent.
    pub(super) fn inward(
        &self,
        request: &mut Request<'_>,
        caller: &SpiffeId,
        named: &Named,
    ) -> Verdict {
        // Before anything is said about who is there.
        if let Err(fault) = authorize(caller, Action::Call, Some(&self.namespace)) {
            return reply(Code::PERMISSION_DENIED, fault.text);
        }
        let Some((agent, _)) = &self.agent else {
            let text =
                "there is no agent here that can be called: it has none, or one without a port";
            return reply(Code::UNIMPLEMENTED, text);
        };
        if let Named::Agent(named) = named
            && named.agent != *agent
        {
            let named = &named.full;
            let text = format!("{named} is not here, {agent} is; look it up again");
            return reply(Code::UNAVAILABLE, text);
        }
        stamp::inward(request.fields, caller);
        Verdict::Forward(OWN_AGENT)
    }
}
