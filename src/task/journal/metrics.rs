//! The journal's counters, as they are shown.

use crate::telemetry::metrics::{Sheet, Source, family};

use super::handle::Journal;

impl Source for Journal {
    fn write(&self, sheet: &mut Sheet<'_>) {
        let stats = self.stats();
        let (syncs, batches) = self.timing();
        let flag = |raised| f64::from(u8::from(raised));
        sheet.counter(&family::JOURNAL_RECORDS, [([], stats.records as f64)]);
        sheet.counter(&family::JOURNAL_BYTES, [([], stats.bytes as f64)]);
        sheet.histogram(&family::JOURNAL_SYNC, [([], syncs)]);
        sheet.histogram(&family::JOURNAL_BATCH, [([], batches)]);
        sheet.gauge(&family::JOURNAL_PENDING, [([], stats.pending_bytes as f64)]);
        sheet.gauge(&family::JOURNAL_SEGMENTS, [([], stats.segments as f64)]);
        sheet.gauge(&family::JOURNAL_LOW_SPACE, [([], flag(stats.low_space))]);
        sheet.gauge(&family::JOURNAL_FAILED, [([], flag(self.failed()))]);
    }
}
