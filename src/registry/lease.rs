//! Leases: who must be heard from, and by when.
//!
//! Pure: monotonic time is passed in, wall time never matters. Nothing expires while the registry
//! itself was away or stood still: its members could not have been heard.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use tokio::time::Instant;

use crate::domain::InstanceId;

/// Above this many instances the terms are twice as long: 10,000 beats in 10 s are 1,000 a second.
pub const MANY: usize = 2_000;

/// A pause between two looks that is no standstill, however short the terms: the looks come once a
/// second, and a busy machine is late at times.
const STANDSTILL: Duration = Duration::from_secs(3);

/// What the registry dictates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// How long a beat keeps the lease; three beats fit.
    pub ttl: Duration,
    /// How often to beat.
    pub heartbeat: Duration,
    /// How much later the entry is taken out: a beat may be on its way.
    pub grace: Duration,
}

impl Terms {
    /// 15 s, 5 s, 5 s.
    pub const DEFAULT: Self = Self::of_lease(Duration::from_secs(15));

    /// The terms that follow from how long a beat keeps a lease.
    pub const fn of_lease(ttl: Duration) -> Self {
        let beat = match ttl.checked_div(3) {
            Some(third) => third,
            None => ttl,
        };
        Self {
            ttl,
            heartbeat: beat,
            grace: beat,
        }
    }

    /// These terms in a mesh with this many instances.
    fn with_instances(self, count: usize) -> Self {
        if count > MANY {
            Self::of_lease(self.ttl.saturating_mul(2))
        } else {
            self
        }
    }
}

/// Opaque and unguessable: whoever knows it may keep the lease, if it is the owner.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LeaseId(String);

impl LeaseId {
    /// A new id from 128 random bits.
    pub fn from_random(bits: u128) -> Self {
        Self(format!("{bits:032x}"))
    }

    /// An id as a caller or the disk wrote it; one that was never granted is simply unknown.
    pub fn from_text(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// No such lease, or somebody else's: register again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the lease is unknown or has run out")]
pub struct Unknown;

#[derive(Debug)]
struct Lease {
    instance: InstanceId,
    heard: Instant,
    due: Instant,
}

/// All leases, at most one for each instance.
#[derive(Debug)]
pub struct Leases {
    /// Of a mesh that is not large.
    base: Terms,
    terms: Terms,
    leases: HashMap<LeaseId, Lease>,
    by_instance: BTreeMap<InstanceId, LeaseId>,
    looked: Instant,
    /// Since when members could be heard without a gap.
    hearing: Instant,
}

impl Leases {
    /// No leases; nothing expires for one TTL and one heartbeat, for those who come back after a
    /// restart of the registry. `base` holds until there are more than [`MANY`] instances.
    pub fn new(base: Terms, now: Instant) -> Self {
        Self {
            base,
            terms: base,
            leases: HashMap::new(),
            by_instance: BTreeMap::new(),
            looked: now,
            hearing: now,
        }
    }

    /// The terms that hold now.
    pub fn terms(&self) -> Terms {
        self.terms
    }

    /// How many instances hold one.
    pub fn len(&self) -> usize {
        self.leases.len()
    }

    /// Whether nobody holds one.
    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }

    /// Since when the most silent of them was not heard; `None`: nobody holds one.
    pub fn oldest(&self) -> Option<Instant> {
        self.leases.values().map(|lease| lease.heard).min()
    }

    /// Gives an instance its lease; an older one of the same instance ends.
    pub fn grant(&mut self, id: LeaseId, instance: InstanceId, now: Instant) -> Terms {
        if let Some(old) = self.by_instance.insert(instance.clone(), id.clone()) {
            self.leases.remove(&old);
        }
        self.terms = self.base.with_instances(self.by_instance.len());
        let due = now + self.terms.ttl + self.terms.grace;
        let heard = now;
        self.leases.insert(
            id,
            Lease {
                instance,
                heard,
                due,
            },
        );
        self.terms
    }

    /// Keeps a lease for another TTL.
    ///
    /// # Errors
    /// When it is not `owner`'s.
    pub fn renew(
        &mut self,
        id: &LeaseId,
        owner: &InstanceId,
        now: Instant,
    ) -> Result<Terms, Unknown> {
        let lease = self.leases.get_mut(id).filter(|l| l.instance == *owner);
        let lease = lease.ok_or(Unknown)?;
        lease.heard = now;
        lease.due = now + self.terms.ttl + self.terms.grace;
        Ok(self.terms)
    }

    /// Ends a lease.
    ///
    /// # Errors
    /// When it is not `owner`'s.
    pub fn end(&mut self, id: &LeaseId, owner: &InstanceId) -> Result<(), Unknown> {
        self.leases
            .get(id)
            .filter(|lease| lease.instance == *owner)
            .ok_or(Unknown)?;
        self.forget(owner);
        Ok(())
    }

    /// Whether `owner` holds this lease.
    pub fn holds(&self, id: &LeaseId, owner: &InstanceId) -> bool {
        self.by_instance.get(owner) == Some(id)
    }

    /// The lease that an instance holds.
    pub fn of(&self, owner: &InstanceId) -> Option<&LeaseId> {
        self.by_instance.get(owner)
    }

    /// The instances whose leases have run out, each with its lease; they keep them until
    /// [`Self::end`]. To be asked about once a second: who asks seldom stood still meanwhile, could
    /// hear nobody, and gets the grace of a restart.
    pub fn expired(&mut self, now: Instant) -> Vec<(LeaseId, InstanceId)> {
        if now.duration_since(self.looked) > self.terms.heartbeat.max(STANDSTILL) {
            self.hearing = now;
        }
        self.looked = now;
        if now < self.hearing + self.terms.ttl + self.terms.heartbeat {
            return Vec::new();
        }
        self.leases
            .iter()
            .filter(|(_, lease)| lease.due <= now)
            .map(|(id, lease)| (id.clone(), lease.instance.clone()))
            .collect()
    }

    /// Whether a lease that had run out still has: a beat may have come in meanwhile.
    pub fn is_over(&self, id: &LeaseId, now: Instant) -> bool {
        self.leases.get(id).is_some_and(|lease| lease.due <= now)
    }

    fn forget(&mut self, instance: &InstanceId) {
        if let Some(id) = self.by_instance.remove(instance) {
            self.leases.remove(&id);
        }
        self.terms = self.base.with_instances(self.by_instance.len());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    fn id(bits: u128) -> LeaseId {
        LeaseId::from_random(bits)
    }

    fn instance(text: &str) -> InstanceId {
        text.parse().unwrap()
    }

    /// Looks every second from `from` to `to`, as the sweeper does.
    fn look(leases: &mut Leases, from: Instant, to: Instant) -> Option<Instant> {
        let mut at = from;
        while at <= to {
            if !leases.expired(at).is_empty() {
                return Some(at);
            }
            at += seconds(1);
        }
        None
    }

    #[test]
    fn a_silent_lease_ends_after_ttl_and_grace() {
        let start = Instant::now();
        let mut leases = Leases::new(Terms::DEFAULT, start);
        assert_eq!(look(&mut leases, start, start + seconds(60)), None);
        let granted = start + seconds(60);
        leases.grant(id(1), instance("a"), granted);
        leases
            .renew(&id(1), &instance("a"), granted + seconds(5))
            .unwrap();
        let ended = look(&mut leases, granted, granted + seconds(60));
        assert_eq!(ended, Some(granted + seconds(25)));
    }

    #[test]
    fn nothing_expires_for_a_ttl_and_a_beat_after_a_restart_or_a_standstill() {
        let start = Instant::now();
        let mut leases = Leases::new(Terms::DEFAULT, start);
        leases.grant(id(1), instance("a"), start);
        let first = look(&mut leases, start, start + seconds(60));
        assert_eq!(first, Some(start + seconds(20)));
        // Stood still for a minute: everybody looks silent, nobody is.
        let woke = start + seconds(80);
        assert_eq!(
            look(&mut leases, woke, woke + seconds(60)),
            Some(woke + seconds(20))
        );
    }

    #[test]
    fn a_late_look_is_no_standstill_however_short_the_terms() {
        let start = Instant::now();
        let terms = Terms::of_lease(seconds(3));
        assert_eq!((terms.heartbeat, terms.grace), (seconds(1), seconds(1)));
        let mut leases = Leases::new(terms, start);
        leases.grant(id(1), instance("a"), start);
        let late = Duration::from_millis(2100);
        let mut at = start;
        while leases.expired(at).is_empty() {
            at += late;
            assert!(at < start + seconds(8), "never");
        }
        assert!(at >= start + seconds(4));
    }

    #[test]
    fn only_the_owner_keeps_or_ends_it() {
        let now = Instant::now();
        let mut leases = Leases::new(Terms::DEFAULT, now);
        leases.grant(id(1), instance("a"), now);
        leases.grant(id(2), instance("b"), now);
        assert_eq!(leases.renew(&id(1), &instance("b"), now), Err(Unknown));
        assert_eq!(leases.end(&id(1), &instance("b")), Err(Unknown));
        assert_eq!(leases.renew(&id(9), &instance("a"), now), Err(Unknown));
        assert_eq!(leases.end(&id(1), &instance("a")), Ok(()));
        assert_eq!(leases.len(), 1);
    }

    #[test]
    fn a_new_lease_of_an_instance_ends_the_old() {
        let now = Instant::now();
        let mut leases = Leases::new(Terms::DEFAULT, now);
        leases.grant(id(1), instance("a"), now);
        leases.grant(id(2), instance("a"), now);
        assert_eq!(leases.renew(&id(1), &instance("a"), now), Err(Unknown));
        assert!(leases.holds(&id(2), &instance("a")));
        assert_eq!(leases.len(), 1);
    }

    #[test]
    fn a_large_mesh_beats_less_often() {
        let now = Instant::now();
        let mut leases = Leases::new(Terms::DEFAULT, now);
        for count in 0..=MANY as u128 {
            leases.grant(id(count), instance(&format!("i{count}")), now);
        }
        assert_eq!(leases.terms(), Terms::of_lease(seconds(30)));
        leases.end(&id(0), &instance("i0")).unwrap();
        assert_eq!(leases.terms(), Terms::DEFAULT);
    }

    #[test]
    fn a_large_mesh_gets_its_longer_grace_after_a_restart() {
        let start = Instant::now();
        let mut leases = Leases::new(Terms::DEFAULT, start);
        for count in 0..=MANY as u128 {
            leases.grant(id(count), instance(&format!("i{count}")), start);
        }
        let first = look(&mut leases, start, start + seconds(90));
        assert_eq!(first, Some(start + seconds(40)));
    }

    proptest! {
        /// Whoever beats every heartbeat is never taken out, whatever the others do.
        #[test]
        fn who_beats_stays(silent in 1_u64..200, offset in 0_u64..5) {
            let start = Instant::now();
            let mut leases = Leases::new(Terms::DEFAULT, start);
            leases.grant(id(1), instance("a"), start);
            leases.grant(id(2), instance("b"), start);
            for second in 0..silent {
                let now = start + seconds(second);
                if second % 5 == offset {
                    leases.renew(&id(1), &instance("a"), now).unwrap();
                }
                let expired = leases.expired(now);
                prop_assert!(expired.iter().all(|(lease, _)| *lease == id(2)));
                prop_assert_eq!(expired.is_empty(), second < 20);
            }
        }
    }
}
