//! Slots that are promised to homes whose tasks wait: who gets the next one, which are not used yet,
//! and which are void. Pure; how many slots are free is for the book to say.
//!
//! ```text
//!   claimed --give--> granted --Start--> used
//!      ^                 |--returned--> its origin has another turn
//!      |                 `--void-----> the home is counted anew when it has had time to mend
//!      `--- the home says who waits, and which grants that knows of
//! ```

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

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
}

/// What became of grants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) given: u64,
    pub(super) used: u64,
    pub(super) returned: u64,
    pub(super) expired: u64,
}

/// A home that says who waits.
#[derive(Debug)]
struct Stream {
    home: InstanceId,
    /// Of the grants made to it: how many it knew of when it last said who waits.
    seen: u64,
    /// Those that it did not know of.
    unseen: VecDeque<Key>,
    /// It let one become void: what it says counts again after this.
    mends_until: Option<Instant>,
    /// What it said last, while that does not count.
    said: BTreeMap<Key, u32>,
}

/// A grant that is not used yet.
#[derive(Debug)]
struct Open {
    to: Claimant,
    origin: Arc<str>,
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
        if self.streams.len() >= STREAMS_MAX {
            let text = "too many homes wait here already: try without grants";
            return Err(Fault::new(Reason::QueueFull, text));
        }
        self.streams_made += 1;
        let stream = Stream {
            home: home.clone(),
            seen: 0,
            unseen: VecDeque::new(),
            mends_until: None,
            said: BTreeMap::new(),
        };
        self.streams.insert(self.streams_made, stream);
        self.by_home.insert(home.clone(), self.streams_made);
        Ok(self.streams_made)
    }

    /// The stream is over: its claims and unused grants are others'.
    pub(super) fn close(&mut self, who: Claimant) {
        let Some(stream) = self.streams.remove(&who) else {
            return;
        };
        self.by_home.remove(&stream.home);
        self.shares.claim(who, BTreeMap::new());
        self.open.retain(|_, grant| grant.to != who);
    }

    /// A home says who waits. What it did not know of is granted already, and does not wait.
    pub(super) fn say(&mut self, who: Claimant, said: Said) {
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
        if stream.mends_until.is_some() {
            stream.said = waiting;
        } else {
            self.shares.claim(who, waiting);
        }
        for number in said.returned {
            // Its turn is over all the same: were it had again at once, what cannot run here would
            // keep the slot from all others.
            if self.open.get(&number).is_some_and(|grant| grant.to == who) {
                self.open.remove(&number);
                self.counts.returned += 1;
            }
        }
    }

    /// Grants a slot that is free to whoever's turn it is.
    pub(super) fn give(&mut self, now: Instant) -> Option<Grant> {
        if self.open.len() >= GRANTS_MAX {
            return None;
        }
        let (to, key) = self.shares.next()?;
        if let Some(stream) = self.streams.get_mut(&to) {
            stream.unseen.push_back(key.clone());
            // A home that never says what it knows of is counted too high.
            if stream.unseen.len() > UNSEEN_MAX {
                stream.unseen.pop_front();
                stream.seen += 1;
            }
        }
        self.made = self.made.wrapping_add(1);
        let (number, origin) = (self.made, key.0.clone());
        let until = now + GRANT_LIFE;
        self.open.insert(number, Open { to, origin, until });
        self.counts.given += 1;
        Some(Grant { to, number, key })
    }

    /// A Start of this home for a task of this origin uses a grant. Whether it may.
    pub(super) fn redeem(
        &mut self,
        (home, origin): (&InstanceId, &str),
        id: &str,
        now: Instant,
    ) -> bool {
        let Some(number) = number(id) else {
            return false;
        };
        let fits = self.open.get(&number).is_some_and(|grant| {
            let stream = self.streams.get(&grant.to);
            stream.is_some_and(|stream| stream.home == *home)
                && *grant.origin == *origin
                && now < grant.until
        });
        if fits {
            self.open.remove(&number);
            self.counts.used += 1;
        }
        fits
    }

    /// Grants that nobody has used in time are void, and whoever had them has something to mend.
    pub(super) fn expire(&mut self, now: Instant) {
        let mut mended = Vec::new();
        for (who, stream) in &mut self.streams {
            if stream.mends_until.is_some_and(|until| until <= now) {
                stream.mends_until = None;
                mended.push((*who, std::mem::take(&mut stream.said)));
            }
        }
        for (who, said) in mended {
            self.shares.claim(who, said);
        }
        while let Some(first) = self.open.first_entry()
            && first.get().until <= now
        {
            let grant = first.remove();
            self.counts.expired += 1;
            if let Some(stream) = self.streams.get_mut(&grant.to) {
                stream.mends_until = Some(now + GRANT_LIFE);
                self.shares.claim(grant.to, BTreeMap::new());
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
    /// As a home hears of it.
    pub(super) fn message(&self) -> pb::SlotsResponse {
        pb::SlotsResponse {
            grant_id: format!("{:016x}", self.number),
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
        grants.say(who, said("a", 3, 0));
        for _ in 0..2 {
            grants.give(now).unwrap();
        }
        // The home has not heard of them yet.
        grants.say(who, said("a", 3, 0));
        assert_eq!(grants.waiting(), 1);
        // It knows of the first; the second is in its count.
        grants.say(who, said("a", 2, 1));
        assert_eq!(grants.waiting(), 1);
        grants.say(who, said("a", 1, 2));
        assert_eq!(grants.waiting(), 1);
        grants.give(now).unwrap();
        assert!(grants.give(now).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn who_lets_a_grant_become_void_has_to_say_again_who_waits() {
        let (mut grants, now) = (Grants::default(), Instant::now());
        let who = grants.open(&home(1)).unwrap();
        grants.say(who, said("a", 3, 0));
        let lost = grants.give(now).unwrap();
        let later = now + GRANT_LIFE;
        grants.expire(later);
        assert_eq!((grants.reserved(), grants.counts().expired), (0, 1));
        assert!(grants.give(later).is_none());
        let id = lost.message().grant_id;
        assert!(!grants.redeem((&home(1), "a"), &id, later));
        grants.say(who, said("a", 2, 1));
        assert!(grants.give(later).is_none(), "it is being mended");
        grants.expire(later + GRANT_LIFE);
        assert!(grants.give(later + GRANT_LIFE).is_some());
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
        grants.say(again, said("a", u32::MAX, 0));
        let given = std::iter::from_fn(|| grants.give(now)).count();
        assert_eq!(given, GRANTS_MAX);
        grants.close(again);
        assert_eq!((grants.reserved(), grants.waiting()), (0, 0));
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
                        grants.say(*who, Said { waiting, seen, returned });
                    },
                    Do::Start { home: number, which } => {
                        let mine = held.entry(number).or_default();
                        if which < mine.len() {
                            let grant = mine.remove(which);
                            let id = grant.message().grant_id;
                            let start = (home(number), grant.key.0);
                            let used = grants.redeem((&start.0, &start.1), &id, now);
                            prop_assert!(!grants.redeem((&start.0, &start.1), &id, now));
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
                prop_assert!(running + grants.reserved() == SLOTS || grants.waiting() == 0);
            }
            let (counts, open) = (grants.counts(), grants.reserved() as u64);
            prop_assert!(counts.given >= counts.used + counts.returned + counts.expired + open);
            grants.expire(now + GRANT_LIFE);
            prop_assert_eq!(grants.reserved(), 0, "every slot comes back");
        });
    }
}
