//! Whether whoever submits a task may have somebody called back: nobody is told in the home's name
//! what the caller could not have told them.

use crate::domain::{Fault, Label, SpiffeId};
use crate::identity::{Action, authorize};
use crate::pb;
use crate::task::callback::Target;

use super::AgentService;

impl AgentService {
    /// Refuses a callback that `who` or this home may not make, or that its configuration does not
    /// name. One that cannot be read is refused later, with the rest of the spec.
    pub(super) fn may_call_back(
        &self,
        who: &SpiffeId,
        namespace: Option<&Label>,
        callback: &pb::Callback,
    ) -> Result<(), Fault> {
        let Some(Ok(target)) = namespace.map(|namespace| Target::read(callback, namespace)) else {
            return Ok(());
        };
        match target {
            Target::Agent { agent, .. } => {
                authorize(who, Action::SubmitTask, Some(&agent.namespace))?;
                authorize(self.own(), Action::SubmitTask, Some(&agent.namespace))
            }
            Target::Url(url) => self.around.callbacks().check(&url),
        }
    }
}
