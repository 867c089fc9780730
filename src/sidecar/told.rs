//! Says in the log that breakers closed where no call was there to say it.

use crate::domain::{AgentName, InstanceId};

/// Lines at a time: a mesh that starts anew is not worth one for each of its instances.
const LINES_MAX: usize = 16;

/// Whose breaker closed; `None`: it has left the catalog.
pub(super) type Whose<'a> = (&'a InstanceId, Option<&'a AgentName>);

/// Breakers closed, all for the same reason.
pub(super) fn closed(all: &[Whose<'_>], why: &str) {
    for (instance, agent) in all.iter().take(LINES_MAX) {
        let (instance, agent) = (instance.as_str(), agent.map(ToString::to_string));
        tracing::info!(
            instance,
            agent,
            why,
            "breaker closed: work goes there again"
        );
    }
    let more = all.len().saturating_sub(LINES_MAX);
    if more > 0 {
        tracing::info!(more, why, "more breakers closed: work goes there again");
    }
}
