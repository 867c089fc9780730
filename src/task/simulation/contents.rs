//! What a disk says in the end, with the large contents that its records name.

use std::collections::BTreeSet;

use futures_util::FutureExt as _;

use crate::pb;
use crate::pb::journal::{Record, record::Kind as Recorded};
use crate::task::journal::faulty::FaultyDisk;
use crate::task::journal::{Journal, JournalConfig};
use crate::task::parts::{fill, hash_of, of_event_mut, reference};

use super::node::LARGE;

/// What the disk says, record by record, with all contents; and how many contents those name.
pub(super) fn records(
    disk: FaultyDisk,
    segment_bytes: u64,
) -> Result<(Vec<Record>, usize), String> {
    let mut records = Vec::new();
    let config = JournalConfig {
        segment_bytes,
        large_bytes: LARGE,
        ..JournalConfig::default()
    };
    let opened = Journal::on_disk(Box::new(disk), config, |_, record| records.push(record));
    let (journal, _) = opened.map_err(|refused| format!("I1: does not open: {refused}"))?;
    let blobs = journal.blobs().unwrap();
    let mut named = BTreeSet::new();
    for record in &mut records {
        let parts: &mut [pb::Part] = match &mut record.kind {
            Some(Recorded::Submitted(made)) => {
                made.spec.as_mut().map_or(&mut [], |it| &mut it.input)
            }
            Some(Recorded::Snapshot(snapshot)) => {
                let spec = snapshot.submitted.as_mut().and_then(|it| it.spec.as_mut());
                spec.map_or(&mut [], |it| &mut it.input)
            }
            Some(Recorded::Event(event) | Recorded::Copied(event)) => of_event_mut(event),
            _ => continue,
        };
        for part in parts {
            let Some(hash) = reference(part).and_then(hash_of) else {
                continue;
            };
            named.insert(hash);
            let read = blobs.load(uuid::Uuid::nil(), hash).now_or_never().unwrap();
            let bytes =
                read.map_err(|error| format!("I1: {} is not whole: {error}", record.task_id))?;
            if !fill(part, bytes) {
                return Err(format!("I1: {} names what it is not", record.task_id));
            }
        }
    }
    Ok((records, named.len()))
}
