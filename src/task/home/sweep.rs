//! What a shard does every few seconds: it looks after who was missed, and lets go of what is old.

use tokio::time::Instant;
use uuid::Uuid;

use crate::runtime::watch;
use crate::task::journal::JournalError;

use super::attempt::Heard;
use super::shard::{Gated, Running};
use super::steps::Said;

impl Running {
    pub(super) fn sweep(&mut self) -> Result<(), JournalError> {
        self.mourn();
        let parents = self.shard.parents.clone();
        self.world(|tasks, world| {
            tasks.cancel_orphans(|token| parents.lives(token), world.at);
            tasks.tick(world);
        });
        self.watchers
            .retain(|_, watchers| !watchers.marks.is_closed());
        self.archive(true);
        if self.shard.place == 0 {
            self.retire();
        }
        // What the sweep itself recorded must not be the reason to let go of nothing.
        self.append()?;
        // Read before the tasks are: what is appended later has a higher number.
        let synced = self.synced.borrow().lsn;
        let needed = self.shard.tasks.first_needed();
        if self.shard.tasks.records.is_empty()
            && let Some(released) = self.shard.released.clone()
        {
            let segments = self.shard.journal.segments();
            self.shard.tasks.compact(&segments, Instant::now());
            let first = needed.unwrap_or(synced + 1);
            // Not before what makes the old records needless is on disk itself: the journal may wait
            // for room to write it.
            let journal = self.shard.journal.clone();
            let place = self.shard.place;
            let release = Box::new(move || journal.release(released.up_to(place, first)));
            self.gated.push_back((self.last, Gated::Answer(release)));
        }
        Ok(())
    }

    /// Carriers that are gone though nobody let them go: their last word found no room.
    fn mourn(&mut self) {
        let gone = |(task, (attempt, said)): (&Uuid, &(u32, watch::Sender<Said>))| {
            said.is_closed().then_some((*task, *attempt))
        };
        let gone: Vec<_> = self.carriers.iter().filter_map(gone).collect();
        for (task, attempt) in gone {
            // One that is over has said so, and that word comes before or after this one alike.
            let broken = Heard::Broken(Instant::now());
            self.world(|tasks, world| tasks.heard(task, attempt, broken, world));
        }
    }
}
