//! What a shard and its carriers do about large content: it goes to the journal with the records that
//! name it, and is read back before an attempt goes out.

use prost::Message;
use tokio::time::sleep;

use crate::domain::Reason;
use crate::pb;
use crate::pb::handle_response::Update;
use crate::pb::journal::Record;
use crate::runtime::chance;
use crate::task::journal::blobs::{Blob, Holder};

use super::attempt::Heard;
use super::dispatch::{Carrier, RESUME};
use super::large::{Waiting, fill_start};
use super::shard::Running;
use super::steps::released;
use super::update::failure;

/// So few records are never too many bytes for one append.
const GROUP: usize = 4;
/// Most bytes of more records in one append; the journal takes 8 MiB at least.
const GROUP_BYTES: usize = 4 << 20;

impl Running {
    /// The contents that the first records name, which are kept from here on.
    pub(super) fn held(&self, records: usize) -> Vec<Blob> {
        let Some(store) = self.shard.journal.blobs() else {
            return Vec::new();
        };
        let of = self.shard.tasks.waiting.of(records);
        let held = of.map(|(task, blob)| {
            store.hold(Holder::in_log(task), [blob.hash]);
            store.keep_recent(task, blob);
            blob.clone()
        });
        held.collect()
    }
}

impl Carrier {
    /// Puts its large contents into what is sent; `false`: they cannot be read, and the task ends, or
    /// it is over.
    pub(super) async fn filled(&self, start: &mut pb::Start) -> bool {
        let mut backoff = RESUME;
        let mut said = self.said.clone();
        loop {
            let fault = tokio::select! {
                biased;
                filled = fill_start(self.blobs.as_ref(), self.to.task, start) => match filled {
                    Ok(()) => return true,
                    Err(fault) => fault,
                },
                () = released(&mut said) => return false,
            };
            tracing::error!(task = self.to.task_id, %fault, "its input cannot be read");
            if fault.reason != Reason::StorageFailed {
                self.work.fail(fault.reason.label());
                let failure = failure(fault.reason, &fault.text, false);
                let refused = Heard::Refused {
                    reason: fault.reason.label().into(),
                    wait: None,
                    failure: Some(Box::new(failure)),
                };
                self.tell(refused).await;
                return false;
            }
            tokio::select! {
                biased;
                () = sleep(backoff.next(chance::fraction())) => {}
                () = released(&mut said) => return false,
            }
        }
    }

    /// An end that the agent tells of is the attempt's.
    pub(super) fn judge(&self, update: &pb::NumberedUpdate) {
        match update.update.as_ref().and_then(|said| said.update.as_ref()) {
            Some(Update::Failure(failure)) => self.work.fail(&failure.reason),
            Some(
                Update::Result(_)
                | Update::Canceled(_)
                | Update::Question(_)
                | Update::Delegation(_),
            ) => self.work.done(),
            _ => {}
        }
    }
}

/// How many of the first records go to the journal in one piece: together they stay far below what
/// it takes at once.
pub(super) fn group(records: &[Record], waiting: &Waiting) -> usize {
    if records.len() <= GROUP {
        return records.len();
    }
    let mut bytes = 0;
    let fitting = records.iter().enumerate().take_while(|(place, record)| {
        bytes += record.encoded_len() + waiting.bytes(*place);
        bytes <= GROUP_BYTES
    });
    fitting.count().max(1)
}
