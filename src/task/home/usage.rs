//! What a task has used, by what its attempts reported. Pure.

use crate::pb;

/// Each report is what was used since the one before; the task shows the sum.
pub(super) fn add(total: &mut pb::Usage, more: &pb::Usage) {
    total.input_tokens = total.input_tokens.saturating_add(more.input_tokens);
    total.output_tokens = total.output_tokens.saturating_add(more.output_tokens);
    total.cost_micros = total.cost_micros.saturating_add(more.cost_micros);
    if !more.currency.is_empty() {
        total.currency.clone_from(&more.currency);
    }
    if !more.model.is_empty() {
        total.model.clone_from(&more.model);
    }
}
