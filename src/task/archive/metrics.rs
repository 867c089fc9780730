//! The archive's counters, as they are shown.

use crate::telemetry::metrics::{Sheet, Source, family};

use super::handle::Archive;

impl Source for Archive {
    fn write(&self, sheet: &mut Sheet<'_>) {
        let stats = self.stats();
        sheet.gauge(&family::ARCHIVE_TASKS, [([], stats.tasks as f64)]);
        sheet.gauge(&family::ARCHIVE_BYTES, [([], stats.bytes as f64)]);
        sheet.counter(&family::ARCHIVE_MOVED, [([], stats.moved as f64)]);
        sheet.counter(&family::ARCHIVE_RETIRED, [([], stats.retired as f64)]);
        sheet.counter(&family::ARCHIVE_FAILURES, [([], stats.failures as f64)]);
    }
}
