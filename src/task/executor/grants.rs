//! Slots that are promised to homes whose tasks wait: who gets the next one, which are not used yet,
//! and which are void. Pure; how many slots are free is for the book to say.
//!
//! ```text
//!   claimed --give--> granted --Start--> used
//!      ^                 |--returned--> the claim does not count for a moment
//!      |                 `--void-----> nor for a while; see `pauses`
//!      `--- the home says who waits, and which grants that knows of
//! ```

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

use super::guests::{GUESTS_MAX, Guests};
use super::pauses::Pauses;
use super::shares::{Claimant, Key, Shares};
use crate::domain::{Fault, InstanceId, Reason, SpiffeId};
use crate::pb;

/// How long a grant is good for: two ways through a network, and a sync of the home's disk, which on
/// a slow one takes some hundred milliseconds. So long a slot is idle whose home has died.
pub(super) const GRANT_LIFE: Duration = Duration::from_secs(1);
/// Grants that are not used yet. At a few milliseconds from grant to Start, that is some ten thousand
/// starts in a second.
pub(super) const GRANTS_MAX: usize = 256;
/// Homes that wait for one executor. Those beyond it are served from what is left.
const STREAMS_MAX: usize = 256;
/// Entries of one message: some dozens of origins with all their priorities.
const ENTRIES_MAX: usize = 256;
/// Of the grants that are not used yet, what one home, may have: others find room beside it.
const HOME_MAX: usize = GRANTS_MAX / 4 * 3;
/// Grants of a stream that its home need not know of: more than are ever on their way.
const UNSEEN_MAX: usize = 4 * GRANTS_MAX;

/// All that is claimed and granted.
#[derive(Debug, Default)]
pub(super) struct Grants {
    shares: Shares,
    streams: BTreeMap<Claimant, Stream>,
    by_home: HashMap<InstanceId, Claimant>,
    /// By their numbers, and so by their ends.
    open: BTreeMap<u64, Open>,
    streams_made: Claimant,
    made: u64,
    counts: Counts,
    pauses: Pauses,
    guests: Guests,
}

/// What became of grants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) given: u64,
    pub(super) used: u64,
    pub(super) returned: u64,
    pub(super) expired: u64,
}

/// A home that says who waits, or one Start of a home that does not.
#[derive(Debug)]
struct Stream {
    home: InstanceId,
    /// It is such a Start.
    is_guest: bool,
    /// Grants to it that are not used yet.
    open: usize,
    /// Of the grants made to it: how many it knew of when it last said who waits.
    seen: u64,
    /// Those that it did not know of.
    unseen: VecDeque<Key>,
    /// What it said last of claims that rest.
    resting: BTreeMap<Key, u32>,
}

/// A grant that is not used yet.
#[derive(Debug)]
struct Open {
    to: Claimant,
    key: Key,
    until: Instant,
}

/// A grant, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) to: Claimant,
    pub(super) number: u64,
    pub(super) key: Key,
}

/// Who waits, as it was said.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) waiting: BTreeMap<Key, u32>,
    pub(super) seen: u64,
    pub(super) returned: Vec<u64>,
}

impl Said {
    /// Reads what a home says; `offers`: whether the agent has the skill.
    pub(super) fn read(
        request: pb::SlotsRequest,
        offers: impl Fn(&str) -> bool,
    ) -> Result<Self, Fault> {
        let (entries, returned) = (request.waiting.len(), request.returned.len());
        if entries > ENTRIES_MAX || returned > GRANTS_MAX {
            let text = format!("at most {ENTRIES_MAX} entries and {GRANTS_MAX} grants at once");
            return Err(Fault::field("waiting", text));
        }
        let mut waiting = BTreeMap::new();
        for (place, entry) in request.waiting.into_iter().enumerate() {
            let wrong = |name, text| Fault::field(format!("waiting[{place}].{name}"), text);
            let origin: SpiffeId = entry
                .origin
                .parse()
                .map_err(|error| wrong("origin", format!("{error}")))?;
            if !(1..=10).contains(&entry.priority) {
                return Err(wrong("priority", "priorities are 1 to 10".into()));
            }
            if offers(&entry.skill) {
                let key = (origin.to_string().into(), entry.priority);
                let count: &mut u32 = waiting.entry(key).or_default();
                *count = count.saturating_add(entry.count);
            }
        }
        let returned = request.returned.iter();
        Ok(Self {
            waiting,
            seen: request.seen,
            returned: returned.filter_map(|id| number(id)).collect(),
        })
    }
}

impl Grants {
    /// Nothing is claimed; grants are counted from `first` on, so that those of an earlier run of
    /// the process are not taken for others.
    pub(super) fn from(first: u64) -> Self {
        Self {
            made: first,
            ..Self::default()
        }
    }

    /// A home opens its stream; an older one of it ends.
    pub(super) fn open(&mut self, home: &InstanceId) -> Result<Claimant, Fault> {
        if let Some(older) = self.by_home.get(home).copied() {
            self.close(older);
        }
        if self.by_home.len() >= STREAMS_MAX {
            let text = "too many homes wait here already: try without grants";
            return Err(Fault::new(Reason::QueueFull, text));
        }
        let who = self.enter(home, false);
        self.by_home.insert(home.clone(), who);
        self.guests.forget(home);
        Ok(who)
    }

    /// A Start came without a grant, from a home that has said nothing of it, and there was no room.
    /// Where others wait for their turns, it may wait for its own; see `guests`.
    pub(super) fn wait(&mut self, home: &InstanceId, key: Key, now: Instant) -> Option<Claimant> {
        if self.by_home.contains_key(home) || !self.guests.refused(home, now) {
            return None;
        }
        let others = self.shares.waiting() > 0 || !self.open.is_empty();
        let here = |stream: &&Stream| stream.is_guest;
        let guests = self.streams.values().filter(here);
        let (mut all, mut own) = (0, false);
        for guest in guests {
            all += 1;
            own |= guest.home == *home;
        }
        if !others || own || all >= GUESTS_MAX {
            return None;
        }
        let who = self.enter(home, true);
        self.shares.claim_one(who, &key, 1);
        Some(who)
    }

    fn enter(&mut self, home: &InstanceId, is_guest: bool) -> Claimant {
        self.streams_made += 1;
        let stream = Stream {
            home: home.clone(),
            is_guest,
            open: 0,
            seen: 0,
            unseen: VecDeque::new(),
            resting: BTreeMap::new(),
        };
        self.streams.insert(self.streams_made, stream);
        self.streams_made
    }

    /// The stream is over: its claims and unused grants are others'.
    pub(super) fn close(&mut self, who: Claimant) {
        let Some(stream) = self.streams.remove(&who) else {
            return;
        };
        if !stream.is_guest {
            self.by_home.remove(&stream.home);
        }
        self.shares.claim(who, BTreeMap::new());
        self.open.retain(|_, grant| grant.to != who);
    }

    /// A home says who waits. What it did not know of is granted already, and does not wait.
    pub(super) fn say(&mut self, who: Claimant, said: Said, now: Instant) {
        for number in said.returned {
            if self.open.get(&number).is_some_and(|grant| grant.to == who) {
                self.take_back(number, now);
            }
        }
        let Some(stream) = self.streams.get_mut(&who) else {
            return;
        };
        while stream.seen < said.seen && stream.unseen.pop_front().is_some() {
            stream.seen += 1;
        }
        let mut waiting = said.waiting;
        for key in &stream.unseen {
            if let Some(count) = waiting.get_mut(key) {
                *count = count.saturating_sub(1);
            }
        }
        let rests = |key: &Key| self.pauses.rests(&stream.home, key, now);
        let counts: BTreeMap<Key, u32>;
        (stream.resting, counts) = waiting.into_iter().partition(|(key, _)| rests(key));
        self.shares.claim(who, counts);
    }

    /// A Start with this grant was turned down for other reasons.
    pub(super) fn give_back(&mut self, home: &InstanceId, id: &str, now: Instant) {
        if let Some(number) = number(id)
            && self.is_of(number, home)
        {
            self.take_back(number, now);
        }
    }

    /// Grants a slot that is free to whoever's turn it is.
    pub(super) fn give(&mut self, now: Instant) -> Option<Grant> {
        if self.open.len() >= GRANTS_MAX {
            return None;
        }
        let may = |who| {
            let stream = self.streams.get(&who);
            stream.is_some_and(|stream| {
                let on_trial = self.pauses.on_trial(&stream.home);
                stream.open < if on_trial { 1 } else { HOME_MAX }
            })
        };
        let (to, key) = self.shares.next(&may)?;
        if let Some(stream) = self.streams.get_mut(&to) {
            stream.open += 1;
            stream.unseen.push_back(key.clone());
            // A home that never says what it knows of is counted too high.
            if stream.unseen.len() > UNSEEN_MAX {
                stream.unseen.pop_front();
                stream.seen += 1;
            }
        }
        self.made = self.made.wrapping_add(1);
        let number = self.made;
        let until = now + GRANT_LIFE;
        let open = Open {
            to,
            key: key.clone(),
            until,
        };
        self.open.insert(number, open);
        self.counts.given += 1;
        Some(Grant { to, number, key })
    }

    /// A Start of this home for a task of this origin uses a grant: how long that took; `None`: it may
    /// not.
    pub(super) fn redeem(
        &mut self,
        (home, origin): (&InstanceId, &str),
        id: &str,
        now: Instant,
    ) -> Option<Duration> {
        let number = number(id)?;
        let in_time = |grant: &Open| *grant.key.0 == *origin && now < grant.until;
        let fits = self.is_of(number, home) && self.open.get(&number).is_some_and(in_time);
        let grant = if fits {
            self.remove(number)?
        } else {
            return None;
        };
        self.counts.used += 1;
        self.pauses.used(home, &grant.key);
        let given = grant.until - GRANT_LIFE;
        Some(now.saturating_duration_since(given))
    }

    /// Grants that nobody has used in time are void; what rested long enough counts again.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some((number, grant)) = self.open.first_key_value()
            && grant.until <= now
        {
            let (number, who) = (*number, grant.to);
            let Some(grant) = self.remove(number) else {
                return;
            };
            self.counts.expired += 1;
            if let Some(stream) = self.streams.get(&who)
                && !stream.is_guest
            {
                self.pauses.voided(&stream.home, &grant.key, now);
                self.rest(who, now);
            }
        }
        if self.pauses.ended(now) {
            self.wake(now);
        }
    }

    /// When claims that rest count again, if any do.
    pub(super) fn wakes(&self) -> Option<Instant> {
        self.pauses.due()
    }

    /// Whether the grant is there and the home's.
    fn is_of(&self, number: u64, home: &InstanceId) -> bool {
        let grant = self.open.get(&number);
        let stream = grant.and_then(|grant| self.streams.get(&grant.to));
        stream.is_some_and(|stream| stream.home == *home)
    }

    fn remove(&mut self, number: u64) -> Option<Open> {
        let grant = self.open.remove(&number)?;
        if let Some(stream) = self.streams.get_mut(&grant.to) {
            stream.open -= 1;
        }
        Some(grant)
    }

    /// A grant comes back. Its turn is over all the same, and the claim rests for a moment: were it
    /// had again at once, what cannot run here would keep the slot from all others.
    fn take_back(&mut self, number: u64, now: Instant) {
        let Some(grant) = self.remove(number) else {
            return;
        };
        self.counts.returned += 1;
        if let Some(stream) = self.streams.get(&grant.to) {
            self.pauses.returned(&stream.home, &grant.key, now);
            self.rest(grant.to, now);
        }
    }

    /// Takes the claims out that rest now; they count again after that, unless the home says
    /// something else meanwhile.
    fn rest(&mut self, who: Claimant, now: Instant) {
        let Some(stream) = self.streams.get_mut(&who) else {
            return;
        };
        let claimed = self.shares.claimed(who);
        let resting = claimed.filter(|(key, _)| self.pauses.rests(&stream.home, key, now));
        let resting: Vec<(Key, u32)> = resting.map(|(key, count)| (key.clone(), count)).collect();
        for (key, count) in resting {
            self.shares.claim_one(who, &key, 0);
            stream.resting.insert(key, count);
        }
    }

    /// Puts the claims back that have rested.
    fn wake(&mut self, now: Instant) {
        for (who, stream) in &mut self.streams {
            let home = &stream.home;
            let resting = std::mem::take(&mut stream.resting).into_iter();
            let rested: BTreeMap<Key, u32>;
            (stream.resting, rested) =
                resting.partition(|(key, _)| self.pauses.rests(home, key, now));
            for (key, count) in rested {
                self.shares.claim_one(*who, &key, count);
            }
        }
    }

    /// Takes everything back: nothing is granted any more.
    pub(super) fn clear(&mut self) {
        for who in self.streams.keys().copied().collect::<Vec<_>>() {
            self.close(who);
        }
    }

    /// Whether the stream is open.
    pub(super) fn knows(&self, who: Claimant) -> bool {
        self.streams.contains_key(&who)
    }

    /// Slots that are granted and not used.
    pub(super) fn reserved(&self) -> usize {
        self.open.len()
    }

    /// Tasks that wait for a grant.
    pub(super) fn waiting(&self) -> u64 {
        self.shares.waiting()
    }

    pub(super) fn counts(&self) -> Counts {
        self.counts
    }
}

impl Grant {
    /// As a Start names it.
    pub(super) fn id(&self) -> String {
        format!("{:016x}", self.number)
    }

    /// As a home hears of it.
    pub(super) fn message(&self) -> pb::SlotsResponse {
        pb::SlotsResponse {
            grant_id: self.id(),
            origin: self.key.0.to_string(),
            expires_in: GRANT_LIFE.try_into().ok(),
            priority: self.key.1,
        }
    }
}

fn number(id: &str) -> Option<u64> {
    u64::from_str_radix(id, 16).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn home(number: u64) -> InstanceId {
        format!("h{number}").parse().unwrap()
    }

    fn said(origin: &str, count: u32, seen: u64) -> Said {
        Said {
            waiting: [((origin.into(), 5), count)].into(),
            seen,
            ..Said::default()
        }
    }

    fn entry(origin: &str, priority: u32, skill: &str) -> pb::Waiting {
        pb::Waiting {
            origin: origin.into(),
            priority,
            count: 3,
            skill: skill.into(),
        }
    }

    const ORIGIN: &str = "spiffe://a/ns/default/agent/c";

    #[test]
    fn what_a_home_says_is_checked_and_bounded() {
        let read = |waiting: Vec<pb::Waiting>, returned: Vec<String>| {
            let request = pb::SlotsRequest {
                waiting,
                seen: 1,
                returned,
            };
            Said::read(request, |skill| skill != "gone")
        };
        let good = vec![
            entry(ORIGIN, 5, "one"),
            entry(ORIGIN, 5, "two"),
            entry(ORIGIN, 5, "gone"),
            entry(ORIGIN, 1, "one"),
        ];
        let said = read(good, vec!["1f".into(), "who?".into()]).unwrap();
        let counts: Vec<_> = said.waiting.iter().map(|((_, p), n)| (*p, *n)).collect();
        assert_eq!(counts, [(1, 3), (5, 6)]);
        assert_eq!((said.seen, said.returned), (1, vec![31]));
        let many = vec![entry(ORIGIN, 5, "one"); ENTRIES_MAX + 1];
        for (waiting, returned) in [
            (vec![entry("root", 5, "one")], vec![]),
            (vec![entry(ORIGIN, 0, "one")], vec![]),
            (vec![entry(ORIGIN, 11, "one")], vec![]),
            (many, vec![]),
            (vec![], vec![String::new(); GRANTS_MAX + 1]),
        ] {
            let refused = read(waiting, returned).unwrap_err();
            assert_eq!(refused.reason, Reason::InvalidField);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_on_its_way_is_not_granted_twice() {
        let (mut grants, now) = (Grants::default(), Instant::now());
        let who = grants.open(&home(1)).unwrap();
        grants.say(who, said("a", 3, 0), now);
        for _ in 0..2 {
            grants.give(now).unwrap();
        }
        // The home has not heard of them yet.
        grants.say(who, said("a", 3, 0), now);
        assert_eq!(grants.waiting(), 1);
        // It knows of the first; the second is in its count.
        grants.say(who, said("a", 2, 1), now);
        assert_eq!(grants.waiting(), 1);
        grants.say(who, said("a", 1, 2), now);
        assert_eq!(grants.waiting(), 1);
        grants.give(now).unwrap();
        assert!(grants.give(now).is_none());
    }

    /// A home that says how many wait of each origin.
    fn says(grants: &mut Grants, who: Claimant, of: &[(&str, u32)], now: Instant) {
        let waiting = of.iter().map(|(of, count)| (((*of).into(), 5), *count));
        let seen = u64::MAX;
        let (waiting, returned) = (waiting.collect(), Vec::new());
        let said = Said {
            waiting,
            seen,
            returned,
        };
        grants.say(who, said, now);
    }

    /// All grants that can be given, by their origins.
    fn all(grants: &mut Grants, now: Instant) -> Vec<String> {
        let next = || grants.give(now).map(|grant| grant.key.0.to_string());
        std::iter::from_fn(next).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_claim_whose_grant_became_void_rests_and_others_of_its_home_do_not() {
        let (mut grants, now) = (Grants::default(), Instant::now());
        let who = grants.open(&home(1)).unwrap();
        says(&mut grants, who, &[("a", 1)], now);
        let lost = grants.give(now).unwrap();
        let later = now + GRANT_LIFE;
        says(&mut grants, who, &[("a", 3), ("b", 1)], now);
        grants.expire(later);
        assert_eq!((grants.reserved(), grants.counts().expired), (0, 1));
        let id = lost.message().grant_id;
        assert_eq!(grants.redeem((&home(1), "a"), &id, later), None);
        says(&mut grants, who, &[("a", 2), ("b", 1)], later);
        assert_eq!(all(&mut grants, later), ["b"], "the other one rests");
        // Another stream is the same home.
        let who = grants.open(&home(1)).unwrap();
        says(&mut grants, who, &[("a", 2), ("b", 1)], later);
        assert_eq!(all(&mut grants, later), ["b"]);
        let rested = later + GRANT_LIFE;
        grants.expire(rested);
        assert_eq!(all(&mut grants, rested)[..2], ["a", "a"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_home_that_uses_none_of_its_grants_soon_has_few_until_it_does() {
        let (mut grants, mut now) = (Grants::default(), Instant::now());
        let mut idle = Duration::ZERO;
        let began = now;
        while now < began + Duration::from_secs(120) {
            // It comes back under another claim each time.
            let who = grants.open(&home(1)).unwrap();
            let name = format!("{:?}", now - began);
            let names = ["a", "b", "c"].map(|one| format!("{one}{name}"));
            says(
                &mut grants,
                who,
                &[(&names[0], 1), (&names[1], 1), (&names[2], 1)],
                now,
            );
            let given = u32::try_from(all(&mut grants, now).len()).unwrap();
            idle += GRANT_LIFE * given;
            now += GRANT_LIFE;
            grants.expire(now);
        }
        assert!(idle < Duration::from_secs(20), "{idle:?} of slots");
        now += Duration::from_secs(30);
        grants.expire(now);
        let who = grants.open(&home(1)).unwrap();
        says(&mut grants, who, &[("d", 5)], now);
        let used = grants.give(now).unwrap();
        assert!(grants.give(now).is_none(), "it has not shown that it can");
        assert!(grants.redeem((&home(1), "d"), &used.id(), now).is_some());
        assert_eq!(all(&mut grants, now).len(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_home_that_cannot_use_its_grants_is_not_granted_the_next_at_once() {
        let (mut grants, began) = (Grants::default(), Instant::now());
        let who = grants.open(&home(1)).unwrap();
        let (mut now, mut given) = (began, 0);
        says(&mut grants, who, &[("a", 1)], now);
        // A way through the network takes a tenth of a millisecond.
        while now < began + Duration::from_secs(10) {
            if let Some(grant) = grants.give(now) {
                given += 1;
                let back = Said {
                    returned: vec![grant.number],
                    seen: given,
                    ..said("a", 1, 0)
                };
                grants.say(who, back, now);
            }
            now += Duration::from_micros(100);
            grants.expire(now);
        }
        assert!((40..=50).contains(&given), "{given}");
        // One that was turned down at the door is one that came back.
        now += Duration::from_secs(1);
        grants.expire(now);
        let grant = grants.give(now).unwrap();
        grants.give_back(&home(2), &grant.id(), now);
        assert_eq!(grants.reserved(), 1, "whose it is not");
        grants.give_back(&home(1), &grant.id(), now);
        assert_eq!(
            (grants.reserved(), grants.counts().returned),
            (0, given + 1)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn streams_and_grants_are_bounded() {
        let (mut grants, now) = (Grants::default(), Instant::now());
        for number in 0..STREAMS_MAX as u64 {
            grants.open(&home(number)).unwrap();
        }
        assert_eq!(
            grants.open(&home(9999)).unwrap_err().reason,
            Reason::QueueFull
        );
        let again = grants.open(&home(3)).unwrap();
        assert!(
            !grants.knows(4) && grants.knows(again),
            "in place of the older one"
        );
        let other = grants.open(&home(4)).unwrap();
        grants.say(again, said("a", u32::MAX, 0), now);
        assert_eq!(all(&mut grants, now).len(), HOME_MAX);
        grants.say(other, said("a", u32::MAX, 0), now);
        assert_eq!(all(&mut grants, now).len(), GRANTS_MAX - HOME_MAX);
        grants.close(again);
        grants.close(other);
        assert_eq!((grants.reserved(), grants.waiting()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_start_of_a_home_that_says_nothing_has_its_turn_where_others_wait() {
        let (mut grants, now) = (Grants::default(), Instant::now());
        let key = || (ORIGIN.into(), 5);
        let later = now + Duration::from_millis(250);
        assert_eq!(grants.wait(&home(1), key(), now), None, "it comes again");
        assert_eq!(grants.wait(&home(1), key(), later), None, "nobody waits");
        let who = grants.open(&home(2)).unwrap();
        says(&mut grants, who, &[("a", 100)], later);
        let guest = grants.wait(&home(1), key(), later).unwrap();
        assert_eq!(grants.wait(&home(1), key(), later), None, "one of a home");
        assert_eq!(grants.wait(&home(2), key(), later), None, "it may say so");
        let two = [grants.give(later).unwrap(), grants.give(later).unwrap()];
        let own = two.iter().find(|grant| grant.to == guest).unwrap();
        assert!(
            grants
                .redeem((&home(1), ORIGIN), &own.id(), later)
                .is_some()
        );
        grants.close(guest);
        for number in 10..50 {
            grants.wait(&home(number), key(), now);
            grants.wait(&home(number), key(), later);
        }
        let guests = grants.streams.values().filter(|one| one.is_guest).count();
        assert_eq!(guests, GUESTS_MAX);
    }

    #[derive(Clone, Debug)]
    enum Do {
        Open(u64),
        Close(u64),
        Say {
            home: u64,
            of: [u32; 2],
            knows: bool,
            returns: bool,
        },
        Start {
            home: u64,
            which: usize,
        },
        End,
        Pass(u64),
    }

    fn doing() -> impl Strategy<Value = Do> {
        let home = 0..3_u64;
        prop_oneof![
            1 => home.clone().prop_map(Do::Open),
            1 => home.clone().prop_map(Do::Close),
            4 => (home.clone(), [0..4_u32, 0..4_u32], any::<bool>(), any::<bool>())
                .prop_map(|(home, of, knows, returns)| Do::Say { home, of, knows, returns }),
            6 => (home, 0..8_usize).prop_map(|(home, which)| Do::Start { home, which }),
            4 => Just(Do::End),
            2 => (0..1500_u64).prop_map(Do::Pass),
        ]
    }

    /// Whatever homes do: never more slots than there are, none granted or used twice, none
    /// lost, and none free while somebody waits.
    #[test]
    fn no_slot_is_lost_or_granted_twice() {
        proptest!(|(steps in prop::collection::vec(doing(), 1..150))| {
            const SLOTS: usize = 4;
            let mut grants = Grants::default();
            let mut now = Instant::now();
            let mut streams: BTreeMap<u64, (Claimant, u64)> = BTreeMap::new();
            let mut held: BTreeMap<u64, Vec<Grant>> = BTreeMap::new();
            let mut all = std::collections::BTreeSet::new();
            let mut running = 0;
            for step in steps {
                match step {
                    Do::Open(number) => {
                        let who = grants.open(&home(number)).unwrap();
                        streams.insert(number, (who, 0));
                    }
                    Do::Close(number) => if let Some((who, _)) = streams.remove(&number) {
                        grants.close(who);
                    },
                    Do::Say { home, of, knows, returns } => if let Some((who, made)) = streams.get(&home) {
                        let waiting = of.iter().zip(["a", "b"]).map(|(n, o)| ((o.into(), 5), *n)).collect();
                        let mine = held.get_mut(&home).filter(|_| returns).map(std::mem::take);
                        let returned = mine.unwrap_or_default().iter().map(|grant| grant.number).collect();
                        let seen = if knows { *made } else { 0 };
                        grants.say(*who, Said { waiting, seen, returned }, now);
                    },
                    Do::Start { home: number, which } => {
                        let mine = held.entry(number).or_default();
                        if which < mine.len() {
                            let grant = mine.remove(which);
                            let id = grant.message().grant_id;
                            let start = (home(number), grant.key.0);
                            let used = grants.redeem((&start.0, &start.1), &id, now).is_some();
                            prop_assert!(grants.redeem((&start.0, &start.1), &id, now).is_none());
                            running += usize::from(used);
                        }
                    }
                    Do::End => running -= usize::from(running > 0),
                    Do::Pass(time) => {
                        now += Duration::from_millis(time);
                        grants.expire(now);
                    }
                }
                while running + grants.reserved() < SLOTS && let Some(grant) = grants.give(now) {
                    prop_assert!(all.insert(grant.number));
                    let (home, stream) = streams.iter_mut().find(|(_, stream)| stream.0 == grant.to).unwrap();
                    stream.1 += 1;
                    held.entry(*home).or_default().push(grant);
                }
                prop_assert!(running + grants.reserved() <= SLOTS);
                let held_back = streams.iter().all(|(number, (who, _))| {
                    let claims = grants.shares.claimed(*who).next();
                    claims.is_none() || grants.pauses.on_trial(&home(*number))
                });
                prop_assert!(running + grants.reserved() == SLOTS || held_back);
            }
            let (counts, open) = (grants.counts(), grants.reserved() as u64);
            prop_assert!(counts.given >= counts.used + counts.returned + counts.expired + open);
            grants.expire(now + GRANT_LIFE);
            prop_assert_eq!(grants.reserved(), 0, "every slot comes back");
        });
    }
}
