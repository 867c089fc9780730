//! Who changed a traffic rule, in the log: one line for each change, none for what changed nothing.

use super::{Placed, Rule};
use crate::domain::SpiffeId;

/// A rule was put.
pub(in crate::registry) fn put(placed: &Placed, by: &SpiffeId) {
    if placed.is_unchanged() {
        return;
    }
    let changed = placed.rule.changes_from(placed.replaced.as_deref());
    let changed: Vec<_> = changed.into_iter().map(|(path, ..)| path).collect();
    tracing::info!(
        caller = %by,
        rule = %placed.rule.name,
        revision = placed.rule.revision(),
        changed = changed.join(","),
        "a traffic rule was put"
    );
}

/// A rule was taken away.
pub(in crate::registry) fn deleted(rule: &Rule, by: &SpiffeId) {
    tracing::info!(
        caller = %by,
        rule = %rule.name,
        revision = rule.revision(),
        "a traffic rule was deleted"
    );
}
