//! How much work a check can be at most, known before it begins.
//!
//! A schema may apply itself to every value many times, and a value may have many thousand parts;
//! neither is the caller's or the agent's to multiply without end. For each depth of a value the
//! table has the most work that the schema can make of one value there; a walk over the value then
//! gives the bound of the whole check.

use serde_json::Value;

use super::graph::Graph;

/// Most steps of a check, each some 10 to 50 ns: a check runs where tasks are served, and so holds
/// them up for some tens of milliseconds at the very most.
pub const COST_MAX: u64 = 1_000_000;
/// Most steps that one value may cost wherever it stands at the top: what is beyond it multiplies.
const VALUE_MAX: u64 = 10_000;
/// Deepest value that is checked; deeper ones are refused by the task API as well.
pub(super) const DEPTH_MAX: usize = 32;
/// Bytes of a string that cost as much as one more value.
const STRING_BYTES: usize = 16;

/// Most steps for one value of each depth, the root's first; none beyond the last.
#[derive(Debug)]
pub(super) struct Cost(Vec<u64>);

impl Cost {
    /// `None`: one value alone costs too much.
    pub(super) fn of(graph: &Graph) -> Option<Self> {
        let mut table = Vec::new();
        let mut above = vec![0_u64; graph.nodes.len()];
        for depth in 0..=DEPTH_MAX {
            let mut here = vec![0_u64; graph.nodes.len()];
            for node in &graph.order {
                let node_at = &graph.nodes[*node];
                let same = node_at.same.iter().map(|below| here[*below]);
                let same = sum(same).saturating_mul(node_at.times);
                let own = if depth == 0 {
                    node_at.own
                } else {
                    let at = |below: &usize| above[*below];
                    let named = node_at.named.iter().map(at).max().unwrap_or(0);
                    let placed = node_at.placed.iter().map(at).max().unwrap_or(0);
                    let members = node_at.members.iter().map(|(below, more)| {
                        at(below).saturating_add(if depth == 1 { *more } else { 0 })
                    });
                    let members = sum(members).saturating_add(named);
                    let items = sum(node_at.items.iter().map(at)).saturating_add(placed);
                    members.max(items)
                };
                here[*node] = same.saturating_add(own);
            }
            if depth == 0 && here.iter().any(|steps| *steps > VALUE_MAX) {
                return None;
            }
            table.push(here.first().copied().unwrap_or(0));
            above = here;
            if above.iter().all(|steps| *steps == 0) {
                break;
            }
        }
        Some(Self(table))
    }

    /// Most steps of a check of `value`; `None`: it is deeper than any that is checked.
    pub(super) fn steps(&self, value: &Value) -> Option<u64> {
        let mut steps = 0;
        self.add(value, 0, &mut steps).then_some(steps)
    }

    fn add(&self, value: &Value, depth: usize, steps: &mut u64) -> bool {
        if depth > DEPTH_MAX {
            return false;
        }
        match value {
            Value::String(text) => self.count(weight(text), depth, steps),
            Value::Array(items) => {
                self.count(1, depth, steps);
                return items.iter().all(|item| self.add(item, depth + 1, steps));
            }
            Value::Object(members) => {
                // A name may be looked up, and be checked as if it were a member.
                let names = sum(members.keys().map(|name| weight(name)));
                self.count(1 + names, depth, steps);
                self.count(names, depth + 1, steps);
                return members
                    .values()
                    .all(|member| self.add(member, depth + 1, steps));
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => self.count(1, depth, steps),
        }
        true
    }

    fn count(&self, size: u64, depth: usize, steps: &mut u64) {
        let one = self.0.get(depth).copied().unwrap_or(0);
        *steps = steps.saturating_add(size.saturating_mul(one));
    }
}

fn weight(text: &str) -> u64 {
    1 + (text.len() / STRING_BYTES) as u64
}

fn sum(steps: impl Iterator<Item = u64>) -> u64 {
    steps.fold(0, u64::saturating_add)
}
