//! Homes that offer attempts without saying who waits: of an earlier version, or while their streams
//! are broken. Pure.
//!
//! Where others wait, a slot that comes free is granted to one of those, so whoever only comes by
//! never finds one. From the second time on such a Start is not answered at once but waits for its
//! turn, as if its home had claimed for it: one of a home at a time, for a second at most. The first
//! time it is refused like any other, since its home may have somewhere else to go, or open a stream.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use crate::domain::InstanceId;

/// Starts that wait for their turns here, over all homes.
pub(super) const GUESTS_MAX: usize = 16;
/// How long one waits: longer would look like an executor that does not answer.
pub(super) const GUEST_WAIT: Duration = Duration::from_secs(1);
/// A home that was refused sooner has not come again: that is still the same burst.
const BURST: Duration = Duration::from_millis(40);
/// A home that was refused earlier may have gone elsewhere since.
const FORGOTTEN: Duration = Duration::from_secs(60);
/// Homes that are known to have come in vain.
const HOMES_MAX: usize = 256;

/// Homes without a stream that came in vain.
#[derive(Debug, Default)]
pub(super) struct Guests {
    /// When each came first, and last.
    came: BTreeMap<InstanceId, (Instant, Instant)>,
}

impl Guests {
    /// A Start of the home finds no room. Whether the home had come in vain before, and come again.
    pub(super) fn refused(&mut self, home: &InstanceId, now: Instant) -> bool {
        if let Some((first, last)) = self.came.get_mut(home)
            && *last + FORGOTTEN > now
        {
            *last = now;
            return *first + BURST <= now;
        }
        self.came.remove(home);
        if self.came.len() >= HOMES_MAX {
            self.came.retain(|_, (_, last)| *last + FORGOTTEN > now);
        }
        if self.came.len() < HOMES_MAX {
            self.came.insert(home.clone(), (now, now));
        }
        false
    }

    /// It says who waits.
    pub(super) fn forget(&mut self, home: &InstanceId) {
        self.came.remove(home);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_comes_again_in_vain_is_a_guest_and_a_burst_is_not() {
        let (mut guests, now) = (Guests::default(), Instant::now());
        let old: InstanceId = "old".parse().unwrap();
        for (after, is_guest) in [
            (0, false),
            (1, false),
            (39, false),
            (40, true),
            (50_000, true),
        ] {
            let now = now + Duration::from_millis(after);
            assert_eq!(guests.refused(&old, now), is_guest, "{after}");
        }
        let later = now + Duration::from_secs(50) + FORGOTTEN;
        assert!(!guests.refused(&old, later), "long ago");
        assert!(guests.refused(&old, later + BURST));
        guests.forget(&old);
        assert!(!guests.refused(&old, later + BURST), "it had a stream");
        for number in 0..2 * HOMES_MAX {
            let home = format!("h{number}").parse().unwrap();
            assert!(!guests.refused(&home, later));
        }
        assert_eq!(guests.came.len(), HOMES_MAX);
    }
}
