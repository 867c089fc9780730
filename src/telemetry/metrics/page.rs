//! The text that Prometheus reads: OpenMetrics 1.0 where it asks for it, else text 0.0.4.
//!
//! The library writes OpenMetrics. The older form differs in what is said about a family, not in
//! its rows: a counter's description bears the name of its rows, there are no units and no end.

use prometheus_client::{encoding::text, registry::Registry};

/// A form of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus text 0.0.4, which everything reads.
    Text,
}

impl Format {
    /// What an `Accept` header asks for: OpenMetrics where it is named (Prometheus puts what it
    /// likes best first, and names both), else text.
    pub fn accepted(accept: Option<&str>) -> Self {
        let named = accept.is_some_and(|accept| accept.contains("application/openmetrics-text"));
        if named { Self::OpenMetrics } else { Self::Text }
    }

    /// Its content type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

pub(super) fn page(registry: &Registry, format: Format) -> String {
    let mut page = String::new();
    // A source that failed would leave half a page: better none than one that lies.
    if text::encode(&mut page, registry).is_err() {
        return String::new();
    }
    match format {
        Format::OpenMetrics => page,
        Format::Text => older(&page),
    }
}

fn older(page: &str) -> String {
    let mut older = String::with_capacity(page.len() + 1024);
    let mut lines = page.lines().peekable();
    while let Some(line) = lines.next() {
        let Some(said) = line.strip_prefix("# ") else {
            older.push_str(line);
            older.push('\n');
            continue;
        };
        let mut words = said.splitn(3, ' ');
        let (what, name, rest) = (words.next(), words.next(), words.next());
        let (Some(what @ ("HELP" | "TYPE")), Some(name), Some(rest)) = (what, name, rest) else {
            continue;
        };
        // HELP comes right before TYPE, which says whether it is a counter.
        let counter = match what {
            "HELP" => lines.peek().is_some_and(|next| next.ends_with(" counter")),
            _ => rest == "counter",
        };
        let suffix = if counter { "_total" } else { "" };
        older.push_str(&format!("# {what} {name}{suffix} {rest}\n"));
    }
    older
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::{Histogram, Metrics, Sheet, family};

    fn metrics() -> Metrics {
        let metrics = Metrics::new("sidecar");
        let syncs = Histogram::syncs();
        syncs.took(std::time::Duration::from_micros(300));
        metrics.add(move |sheet: &mut Sheet<'_>| {
            sheet.counter(&family::RENEWALS, [(["new\n\"line\\"], 3.0)]);
            sheet.gauge(&family::TASKS_WAITING, [([], 2.0)]);
            sheet.histogram(&family::JOURNAL_SYNC, [([], &syncs)]);
        });
        metrics
    }

    #[test]
    fn both_forms_are_as_their_readers_want_them() {
        let new = metrics().page(Format::OpenMetrics);
        for line in [
            "# TYPE attache_certificate_renewals counter",
            "attache_certificate_renewals_total{outcome=\"new\\n\\\"line\\\\\"} 3",
            "# UNIT attache_journal_sync_duration_seconds seconds",
            "attache_journal_sync_duration_seconds_bucket{le=\"0.0005\"} 1",
            "attache_journal_sync_duration_seconds_sum 0.0003",
        ] {
            assert!(new.lines().any(|found| found == line), "{line}\n{new}");
        }
        assert!(new.ends_with("# EOF\n"));
        let old = metrics().page(Format::Text);
        for line in [
            "# TYPE attache_certificate_renewals_total counter",
            "# TYPE attache_journal_sync_duration_seconds histogram",
            "attache_journal_sync_duration_seconds_bucket{le=\"+Inf\"} 1",
            "attache_tasks_waiting 2",
        ] {
            assert!(old.lines().any(|found| found == line), "{line}\n{old}");
        }
        assert!(!old.contains("# EOF") && !old.contains("# UNIT"));
        let rows = |page: &str| -> Vec<String> {
            let rows = page.lines().filter(|line| !line.starts_with('#'));
            // What the system says moves between two pages.
            let own = rows.filter(|row| !row.starts_with("process_"));
            own.map(str::to_owned).collect()
        };
        assert_eq!(rows(&old), rows(&new));
    }

    #[test]
    fn who_names_open_metrics_gets_it() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for (accept, format) in [
            (Some(prometheus), Format::OpenMetrics),
            (Some("text/plain"), Format::Text),
            (Some("*/*"), Format::Text),
            (None, Format::Text),
        ] {
            assert_eq!(Format::accepted(accept), format, "{accept:?}");
        }
    }
}
