//! What stands of a task in the tables: one value while it is small, pieces beside it otherwise.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use prost::Message;
use uuid::Uuid;

use crate::pb;
use crate::pb::journal::{Archived, Snapshot};
use crate::runtime::clock;
use crate::task::journal::blobs::Hash;
use crate::task::parts::{hash_of, of_event, reference};

/// Events of a task that stand in its own value, in bytes; a list reads past them. More stand in
/// pieces, so that nobody loads megabytes to see one event.
const INLINE_EVENTS: usize = 8 << 10;
/// A specification that stands in the task's own value, in bytes: only a FULL view needs it.
const INLINE_SPEC: usize = 4 << 10;
/// Number of the piece that holds the specification; events begin at 1.
pub(super) const SPEC: u64 = 0;
/// What a value takes beside its bytes, about: keys and their share of a page.
const OVERHEAD: usize = 64;

/// A finished task on its way into the archive.
#[derive(Clone, Debug)]
pub struct Row {
    /// Which.
    pub task: Uuid,
    /// When it ended.
    pub ended: SystemTime,
    /// All of it but its events.
    pub snapshot: Snapshot,
    /// The events that the snapshot names, the oldest first.
    pub events: Vec<Arc<pb::TaskEvent>>,
}

/// A row as the tables take it.
#[derive(Debug)]
pub(super) struct Encoded {
    pub(super) task: u128,
    /// Seconds since 1970.
    pub(super) ended: u64,
    /// It was submitted with an idempotency key.
    pub(super) keyed: bool,
    pub(super) value: Vec<u8>,
    /// Large contents that it names, and their sizes.
    pub(super) named: BTreeMap<Hash, u64>,
    pub(super) pieces: Vec<(u64, Vec<u8>)>,
}

impl Row {
    /// Large contents that it names, each once, and their sizes.
    pub(super) fn named(&self) -> BTreeMap<Hash, u64> {
        let spec = self.snapshot.submitted.as_ref();
        let spec = spec.and_then(|submitted| submitted.spec.as_ref());
        let events = self.events.iter().flat_map(|event| of_event(event));
        let parts = spec.into_iter().flat_map(|spec| &spec.input).chain(events);
        let named = parts.filter_map(reference);
        named
            .filter_map(|blob| Some((hash_of(blob)?, blob.size)))
            .collect()
    }

    pub(super) fn encode(self) -> Encoded {
        let named = self.named();
        let mut pieces = Vec::new();
        let mut snapshot = self.snapshot;
        let submitted = snapshot.submitted.as_ref();
        let keyed = submitted.is_some_and(|submitted| !submitted.key_scope.is_empty());
        if let Some(submitted) = &mut snapshot.submitted
            && let Some(spec) = submitted
                .spec
                .take_if(|spec| spec.encoded_len() > INLINE_SPEC)
        {
            pieces.push((SPEC, spec.encode_to_vec()));
        }
        let size: usize = self.events.iter().map(|event| event.encoded_len()).sum();
        let mut archived = Archived {
            snapshot: Some(snapshot),
            events: Vec::new(),
        };
        if size <= INLINE_EVENTS {
            archived.events = self.events.into_iter().map(Arc::unwrap_or_clone).collect();
        } else {
            let events = self.events.iter();
            pieces.extend(events.map(|event| (event.seq, event.encode_to_vec())));
        }
        Encoded {
            task: self.task.as_u128(),
            ended: clock::unix_seconds(self.ended),
            keyed,
            value: archived.encode_to_vec(),
            named,
            pieces,
        }
    }
}

impl Encoded {
    /// What it takes on disk, about.
    pub(super) fn bytes(&self) -> u64 {
        let pieces = self.pieces.iter().map(|(_, piece)| piece.len() + OVERHEAD);
        // What several name counts for each: it may stay when the others are gone.
        let named: u64 = self.named.values().sum();
        (self.value.len() + OVERHEAD + pieces.sum::<usize>()) as u64 + named
    }
}
