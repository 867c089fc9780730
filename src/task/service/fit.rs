//! Whether the input of a task fits what the skill takes, as far as this home knows: a caller is told
//! at once, and not by a task that failed.

use crate::contract::Side;
use crate::domain::Fault;
use crate::task::home::Submission;
use crate::task::spec::check_payload;

use super::AgentService;

impl AgentService {
    /// Holds the input against the schemas of all who could run it now; one that takes it is enough.
    /// Where nobody promises anything, that is all that is found out.
    ///
    /// # Errors
    /// INPUT_INVALID, with what the caller needs to repair it.
    pub(super) async fn fits(&self, asked: &Submission) -> Result<(), Fault> {
        let spec = &asked.spec;
        let Some(selector) = &spec.selector else {
            return Ok(());
        };
        let own = || self.own().member.namespace();
        let Some(namespace) = asked.caller.member.namespace().or_else(own) else {
            return Ok(());
        };
        let promises = self.around.promises(namespace, selector);
        if promises.is_empty() {
            return Ok(());
        }
        // What breaks the bounds of all tasks is told as that.
        check_payload(spec)?;
        let mut refused = None;
        for promise in &promises {
            // Not to be had: the executor has it.
            let Some(contract) = self.around.contract(promise).await else {
                return Ok(());
            };
            match contract.check(Side::Input, &spec.input, &promise.input_modes) {
                Ok(()) => return Ok(()),
                Err(broken) => refused = refused.or(Some(broken)),
            }
        }
        refused.map_or(Ok(()), |broken| Err(broken.fault(&selector.skill)))
    }
}
