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

#[cfg(test)]
pub(super) mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    };

    use tracing::{Event, Subscriber};
    use tracing_subscriber::{
        layer::{Context, Layer, SubscriberExt},
        registry,
    };

    use super::*;

    /// Counts lines.
    #[derive(Clone, Default)]
    struct Lines(Arc<AtomicUsize>);

    impl<S: Subscriber> Layer<S> for Lines {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            if event.metadata().target().ends_with("told") {
                self.0.fetch_add(1, Relaxed);
            }
        }
    }

    /// How many lines `act` has this module log.
    pub(in crate::sidecar) fn lines(act: impl FnOnce()) -> usize {
        let lines = Lines::default();
        tracing::subscriber::with_default(registry().with(lines.clone()), act);
        lines.0.load(Relaxed)
    }

    #[test]
    fn there_is_one_line_for_each_of_a_few_and_one_for_the_rest() {
        for (closed_now, told) in [(0, 0), (1, 1), (16, 16), (17, 17), (50_000, 17)] {
            let ids = (0..closed_now).map(|number| format!("i{number}").parse().unwrap());
            let ids: Vec<InstanceId> = ids.collect();
            let all: Vec<Whose<'_>> = ids.iter().map(|id| (id, None)).collect();
            assert_eq!(lines(|| closed(&all, "why")), told, "{closed_now}");
        }
    }
}
