//! The door that every call passes: who may do what, and who may see which task.
//!
//! Pure. Today's rule is one function; policy will replace the rule, not the door.

use std::fmt;

use crate::domain::Fault;
use crate::domain::Label;
use crate::domain::Member;
use crate::domain::Reason;
use crate::domain::SpiffeId;

/// What a principal wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Give a task to an agent of the namespace.
    SubmitTask,
    /// Have an agent of the namespace run a task.
    Execute,
    /// Read, follow or cancel a task; [`may_see_task`] decides on top which ones exist for it.
    ReadTask,
    /// Call an agent of the namespace: any method of any service.
    Call,
    /// Find agents of the namespace.
    Discover,
    /// Put an instance of the namespace into the catalog.
    Register,
    /// Make, replace or delete traffic rules of the namespace; reading them is [`Self::Discover`].
    ChangeRules,
    /// Make join tokens, revoke, see everything.
    Admin,
}

impl Action {
    /// Every action there is, for tables and tests.
    pub const ALL: &'static [Self] = &[
        Self::SubmitTask,
        Self::Execute,
        Self::ReadTask,
        Self::Call,
        Self::Discover,
        Self::Register,
        Self::ChangeRules,
        Self::Admin,
    ];

    /// Whether members may never do it, not even in their own namespace.
    fn is_for_operators(self) -> bool {
        matches!(self, Self::ChangeRules | Self::Admin)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SubmitTask => "submit tasks",
            Self::Execute => "have tasks run",
            Self::ReadTask => "read tasks",
            Self::Call => "call agents",
            Self::Discover => "discover agents",
            Self::Register => "register",
            Self::ChangeRules => "change traffic rules",
            Self::Admin => "administer the mesh",
        })
    }
}

/// Whether `principal` may do `action` in `namespace` (none: what belongs to no namespace).
///
/// Operators may do everything; members of a namespace everything in it but administer and change
/// traffic rules.
///
/// # Errors
/// `OPERATORS_ONLY` or `PERMISSION_DENIED`, saying what is missing.
pub fn authorize(
    principal: &SpiffeId,
    action: Action,
    namespace: Option<&Label>,
) -> Result<(), Fault> {
    if is_operator(principal) {
        return Ok(());
    }
    if action.is_for_operators() {
        let text = format!("{principal} may not {action}: only operators may");
        return Err(Fault::new(Reason::OperatorsOnly, text));
    }
    match (principal.member.namespace(), namespace) {
        (Some(own), Some(asked)) if own == asked => Ok(()),
        (_, Some(asked)) => Err(Fault::new(
            Reason::PermissionDenied,
            format!(
                "{principal} may not {action} in namespace {asked}: only its members and operators may"
            ),
        )),
        (_, None) => Err(Fault::new(
            Reason::PermissionDenied,
            format!("{principal} may not {action} in all namespaces: name its own one"),
        )),
    }
}

/// Whether a task exists for `principal`: it is the task's caller, its origin, its present
/// executor, or an operator. For others the answer is that there is no such task.
pub fn may_see_task(
    principal: &SpiffeId,
    caller: &SpiffeId,
    origin: &SpiffeId,
    executor: Option<&SpiffeId>,
) -> bool {
    is_operator(principal)
        || principal == caller
        || principal == origin
        || executor == Some(principal)
}

fn is_operator(principal: &SpiffeId) -> bool {
    matches!(principal.member, Member::Operator(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(path: &str) -> SpiffeId {
        format!("spiffe://attache.local/{path}").parse().unwrap()
    }

    #[test]
    fn operators_may_all_and_members_their_namespace() {
        let own: Label = "default".parse().unwrap();
        let other: Label = "prod".parse().unwrap();
        for action in Action::ALL {
            let admin = matches!(action, Action::Admin | Action::ChangeRules);
            for (who, namespace, allowed) in [
                ("operator/ops", Some(&own), true),
                ("operator/ops", None, true),
                ("ns/default/agent/billing", Some(&own), !admin),
                ("ns/default/service/web", Some(&own), !admin),
                ("ns/default/agent/billing", Some(&other), false),
                ("ns/default/agent/billing", None, false),
                ("registry/r", Some(&own), false),
                ("registry/r", None, false),
            ] {
                let verdict = authorize(&id(who), *action, namespace);
                assert_eq!(verdict.is_ok(), allowed, "{who} {action:?} {namespace:?}");
                if let Err(fault) = verdict {
                    let expected = if admin {
                        Reason::OperatorsOnly
                    } else {
                        Reason::PermissionDenied
                    };
                    assert_eq!(fault.reason, expected);
                    assert!(fault.text.contains(who), "{}", fault.text);
                }
            }
        }
    }

    #[test]
    fn a_task_exists_only_for_those_it_concerns() {
        let [a, b, c, d] = ["a", "b", "c", "d"].map(|name| id(&format!("ns/default/agent/{name}")));
        for (who, seen) in [(&a, true), (&b, true), (&c, true), (&d, false)] {
            assert_eq!(may_see_task(who, &a, &b, Some(&c)), seen, "{who}");
        }
        assert!(!may_see_task(&c, &a, &b, None));
        assert!(may_see_task(&id("operator/ops"), &a, &b, None));
        assert!(!may_see_task(&id("registry/r"), &a, &b, Some(&c)));
    }
}
