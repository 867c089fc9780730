//! Whether the input of a task fits what the skill takes, as far as this home knows: a caller is told
//! at once, and not by a task that failed.

use crate::contract::{Side, Violation};
use crate::task::home::{Held, Submission};

use super::AgentService;

impl AgentService {
    /// Holds a submission against the schemas of all who could run it now, and notes why none takes
    /// it. Where nobody promises anything, that is all that is found out.
    pub(super) async fn held(&self, asked: Submission) -> Held {
        let broken = self.unfit(&asked).await;
        let selector = asked.spec.selector.as_ref();
        let unfit = broken
            .zip(selector)
            .map(|(broken, selector)| Box::new(broken.fault(&selector.skill)));
        Held { asked, unfit }
    }

    /// How the input breaks the first contract, where it breaks all of them.
    async fn unfit(&self, asked: &Submission) -> Option<Box<Violation>> {
        let spec = &asked.spec;
        let own = || self.own().member.namespace();
        let namespace = asked.caller.member.namespace().or_else(own)?;
        let promises = self.around.promises(namespace, spec.selector.as_ref()?);
        let mut broken = None;
        for promise in &promises {
            // Not to be had: the executor has it.
            let contract = self.around.contract(promise).await?;
            let checked = contract.check(Side::Input, &spec.input, &promise.input_modes);
            broken = broken.or(Some(checked.err()?));
        }
        broken
    }
}
