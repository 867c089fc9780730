//! Whether whoever submits a task may have somebody called back: nobody is told in the home's name
//! what the caller could not have told them.

use crate::domain::{AgentName, Fault, Label, Member, Reason};
use crate::identity::{Action, authorize};
use crate::pb;
use crate::task::callback::Target;

use super::{AgentService, Principal};

impl AgentService {
    /// Refuses a callback that `who` or this home may not make, or that its configuration does not
    /// name. One that cannot be read is refused later, with the rest of the spec.
    pub(super) fn may_call_back(
        &self,
        who: &Principal,
        namespace: &Label,
        callback: &pb::Callback,
    ) -> Result<(), Fault> {
        let Ok(target) = Target::read(callback, namespace) else {
            return Ok(());
        };
        match target {
            Target::Agent { agent, .. } => {
                authorize(&who.id, Action::SubmitTask, Some(&agent.namespace))?;
                lent_to_itself(who, &agent)?;
                authorize(self.own(), Action::SubmitTask, Some(&agent.namespace))
            }
            Target::Url(url) => self.around.callbacks().check(&url),
            // Nobody can ask for that.
            Target::Task(_) => Ok(()),
        }
    }
}

/// The callback is a task of the home's agent: others may have it tell nobody but themselves, or they
/// would speak in a name that is not theirs. Operators speak for everybody.
fn lent_to_itself(who: &Principal, told: &AgentName) -> Result<(), Fault> {
    let may = match &who.id.member {
        Member::Agent(caller) => who.local || caller == told,
        Member::Service(_) | Member::Registry(_) => who.local,
        Member::Operator(_) => true,
    };
    if may {
        return Ok(());
    }
    let text = format!(
        "{} cannot have {told} told in the name of the agent here: submit through a sidecar of your own",
        who.id
    );
    Err(Fault {
        field: Some("spec.options.callback".into()),
        ..Fault::new(Reason::PermissionDenied, text)
    })
}
