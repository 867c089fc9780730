//! The counters of large content, as they are shown.

use crate::telemetry::metrics::{Sheet, Source, family};

use super::handle::Blobs;

impl Source for Blobs {
    fn write(&self, sheet: &mut Sheet<'_>) {
        let stats = self.stats();
        sheet.gauge(&family::BLOBS, [([], stats.blobs as f64)]);
        sheet.gauge(&family::BLOB_BYTES, [([], stats.bytes as f64)]);
        sheet.gauge(&family::BLOB_DISK, [([], stats.disk_bytes as f64)]);
        sheet.counter(&family::BLOBS_COLLECTED, [([], stats.collected as f64)]);
        sheet.counter(&family::BLOBS_DAMAGED, [([], stats.damaged as f64)]);
    }
}
