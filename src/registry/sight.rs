//! What a caller may see of the catalog.
//!
//! Visibility is the identity door's rule; here it is only asked. Who may not see an agent is told
//! that it does not exist.

use crate::domain::Fault;
use crate::domain::Label;
use crate::domain::SpiffeId;
use crate::identity::Action;
use crate::identity::authorize;

/// The view of one caller.
#[derive(Clone, Debug)]
pub struct Sight {
    id: SpiffeId,
}

impl Sight {
    /// What this member sees.
    pub fn of(id: SpiffeId) -> Self {
        Self { id }
    }

    /// Who looks.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The caller's id as text: page tokens are bound to it.
    pub fn caller(&self) -> String {
        self.id.to_string()
    }

    /// Where its bare names are looked up; `None` for operators and registries.
    pub fn namespace(&self) -> Option<&Label> {
        self.id.member.namespace()
    }

    /// Whether it may see what is in a namespace.
    pub fn sees(&self, namespace: &Label) -> bool {
        self.demand(namespace).is_ok()
    }

    /// Refuses a namespace that the caller named and may not see.
    ///
    /// # Errors
    /// `PERMISSION_DENIED`.
    pub fn demand(&self, namespace: &Label) -> Result<(), Fault> {
        authorize(&self.id, Action::Discover, Some(namespace))
    }
}
