//! Counts of what is logged, made where a line is written: a line that a filter keeps out is none.

use std::{
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// Levels and their labels.
const LEVELS: [(Level, &str); 5] = [
    (Level::ERROR, "error"),
    (Level::WARN, "warn"),
    (Level::INFO, "info"),
    (Level::DEBUG, "debug"),
    (Level::TRACE, "trace"),
];

/// Lines by level. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Lines {
    counts: Arc<[AtomicU64; LEVELS.len()]>,
}

impl Lines {
    /// The same writer, its lines counted.
    pub fn counting<W>(&self, writer: W) -> Counting<W> {
        Counting {
            lines: self.clone(),
            writer,
        }
    }

    /// Labels and counts.
    pub fn rows(&self) -> impl Iterator<Item = ([&'static str; 1], f64)> {
        let counts = LEVELS.iter().zip(self.counts.iter());
        counts.map(|((_, label), count)| ([*label], count.load(Relaxed) as f64))
    }

    fn count(&self, level: Level) {
        if let Some(place) = LEVELS.iter().position(|(known, _)| *known == level) {
            self.counts[place].fetch_add(1, Relaxed);
        }
    }
}

/// A maker of writers that is asked once for each line.
pub struct Counting<W> {
    lines: Lines,
    writer: W,
}

impl<W> fmt::Debug for Counting<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.fmt(f)
    }
}

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for Counting<W>
where
    W::Writer: io::Write,
{
    type Writer = W::Writer;

    fn make_writer(&'a self) -> Self::Writer {
        self.writer.make_writer()
    }

    fn make_writer_for(&'a self, line: &Metadata<'_>) -> Self::Writer {
        self.lines.count(*line.level());
        self.writer.make_writer_for(line)
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::{Layer, filter::LevelFilter, layer::SubscriberExt};

    use super::*;

    #[test]
    fn lines_are_counted_and_not_what_a_filter_keeps_out() {
        let lines = Lines::default();
        let layer = tracing_subscriber::fmt::layer()
            .with_writer(lines.counting(io::sink))
            .with_filter(LevelFilter::INFO);
        let all = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(all, || {
            tracing::info!("one");
            tracing::warn!("two");
            tracing::warn!("three");
            tracing::debug!("none");
        });
        let counted: Vec<_> = lines
            .rows()
            .map(|([level], count)| (level, count))
            .collect();
        let expected = [
            ("error", 0.0),
            ("warn", 2.0),
            ("info", 1.0),
            ("debug", 0.0),
            ("trace", 0.0),
        ];
        assert_eq!(counted, expected);
    }
}
