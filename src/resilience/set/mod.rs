//! Who fits one kind of request, and which of them gets the next call.
//!
//! Two random ones are compared and the cheaper one is taken: nearly as good as knowing the cheapest,
//! and a herd that sees the same figures does not run to the same place (Mitzenmacher 2001). A pick
//! looks at a handful of members however many there are, and allocates nothing.

use std::sync::Arc;

use parking_lot::Mutex;
use rand::Rng;
use tokio::time::Instant;

use crate::resilience::cost::Cost;
use crate::resilience::endpoint::{Endpoint, Phase};
use crate::resilience::epoch::Epoch;
use crate::resilience::pace::Kind;
use crate::resilience::permit::Permit;
use crate::resilience::settings::Settings;
use crate::resilience::view::{Group, Standing, View, bound};

/// Random tries to find one that may be called, before all are looked at in turn.
const DRAWS: usize = 4;

/// Random ones that are compared, and as many more as this while the best of them failed lately.
const CHOICES: usize = 2;
const MORE: usize = 4;

/// One instance that fits.
#[derive(Debug)]
pub struct Member<T> {
    /// What is known of it; shared with the other sets that it is in.
    pub endpoint: Arc<Endpoint>,
    /// Whatever the caller needs to call it.
    pub value: T,
    /// Names it for contexts that stay with an instance; the same in every process.
    pub key: u64,
    /// Whether it is in the own zone.
    pub local: bool,
    /// Which of the set's weights it has; beyond them: none.
    pub group: usize,
}

/// Instances that fit, and how traffic to them is treated. Built anew when the catalog changes.
#[derive(Debug)]
pub struct Set<T> {
    members: Vec<Member<T>>,
    /// What calls to it are, where that is known.
    kind: Option<Kind>,
    settings: Arc<Settings>,
    epoch: Epoch,
    view: Mutex<View>,
}

/// What one call asks for beyond what the set is for.
pub struct Ask<'a, T> {
    /// Names the context that the call belongs to.
    pub sticky: Option<u64>,
    /// Whether a member may get this call: not the one that just failed it, say.
    pub allows: &'a dyn Fn(&T) -> bool,
}

/// Who gets the call.
#[derive(Debug)]
pub enum Pick<'a, T> {
    /// This one, counted from now on.
    Taken(&'a T, Permit),
    /// Nobody has room now, or nobody whom the call may go to.
    Busy,
    /// Every one has failed too much: ask again at that time; `None`: when a probe has ended.
    Ejected(Option<Instant>),
    /// Nobody fits.
    Empty,
}

impl<T> Set<T> {
    /// A set of those who fit. `weights`: how calls are shared between groups; empty: all are one.
    /// Who has a weight of 0, or none, is no member.
    pub fn new(
        members: Vec<Member<T>>,
        weights: &[u32],
        settings: Arc<Settings>,
        epoch: Epoch,
    ) -> Self {
        let share = |member: &Member<T>| weights.get(member.group).copied().unwrap_or(0);
        let mut members = members;
        if !weights.is_empty() {
            members.retain(|member| share(member) > 0);
        }
        let group = |weight: &u32| Group {
            weight: *weight,
            ..Group::default()
        };
        let mut groups: Vec<Group> = weights.iter().map(group).collect();
        if groups.is_empty() {
            groups.push(group(&1));
        }
        let view = View {
            groups,
            ..View::default()
        };
        Self {
            members,
            kind: None,
            settings,
            epoch,
            view: Mutex::new(view),
        }
    }

    /// The same for calls that are all of this kind: members are judged by how fast they are for it.
    #[must_use]
    pub fn of_kind(mut self, kind: Kind) -> Self {
        self.kind = Some(kind);
        for member in &self.members {
            member.endpoint.expect(kind);
        }
        self
    }

    /// Everybody in it.
    pub fn members(&self) -> &[Member<T>] {
        &self.members
    }

    /// How traffic to it is treated.
    pub fn settings(&self) -> &Arc<Settings> {
        &self.settings
    }

    /// How many are left out by their breakers now.
    #[cfg(test)]
    fn ejected(&self, now: Instant) -> usize {
        let mut view = self.view.lock();
        self.refresh(&mut view, now);
        view.ejected
    }

    /// The same, found out without changing anything.
    pub fn would_eject(&self, now: Instant) -> usize {
        let breaker = &self.settings.breaker;
        let open = |member: &&Member<T>| member.endpoint.phase(now) != Phase::Closed;
        let open = self.members.iter().filter(open).count();
        let most = bound(self.members.len(), breaker.max_ejected);
        if breaker.enabled { open.min(most) } else { 0 }
    }

    /// Whether calls flow to any of those, breakers alone asked.
    pub fn flows(&self, to: &dyn Fn(&T) -> bool, now: Instant) -> bool {
        let mut view = self.view.lock();
        self.refresh(&mut view, now);
        let mut flowing = view.groups.iter().flat_map(|group| &group.all);
        flowing.any(|place| to(&self.member(*place).value))
    }

    /// When somebody may be called who may not be now: a breaker's time has come, or the time that
    /// an instance wanted to be left alone is over. `None`: only a call that ends changes anything.
    pub fn opens(&self, now: Instant) -> Option<Instant> {
        let mut view = self.view.lock();
        self.refresh(&mut view, now);
        let pauses = self.members.iter();
        let pauses = pauses.filter_map(|member| member.endpoint.paused(now));
        view.due.into_iter().chain(pauses).min()
    }

    /// Chooses who gets a call, and counts it.
    pub fn pick(
        &self,
        ask: &Ask<'_, T>,
        now: Instant,
        random: &mut (impl Rng + ?Sized),
    ) -> Pick<'_, T> {
        if self.members.is_empty() {
            return Pick::Empty;
        }
        let mut view = self.view.lock();
        self.refresh(&mut view, now);
        if let Some(taken) = self.probe(&view, ask, now) {
            return taken;
        }
        let place = self
            .settled(&view, ask, now)
            .or_else(|| self.choose(&view, ask, now, random));
        if let Some(place) = place {
            return self.take(place, false, now).unwrap_or(Pick::Busy);
        }
        if view.ejected == self.members.len() {
            return Pick::Ejected(view.due);
        }
        Pick::Busy
    }

    fn refresh(&self, view: &mut View, now: Instant) {
        let epoch = self.epoch.now();
        if view.is_fresh(epoch, now) {
            return;
        }
        let last = view.groups.len() - 1;
        // Switched off, it does not keep what it did before.
        let breaks = self.settings.breaker.enabled;
        let standing = |member: &Member<T>| Standing {
            group: member.group.min(last),
            local: member.local,
            opened: breaks.then(|| member.endpoint.opened(now)).flatten(),
        };
        let mut members: Vec<Standing> = self.members.iter().map(standing).collect();
        let risen = view.fallen.iter().filter(|(place, _)| {
            let risen = || self.member(*place).endpoint.has_risen();
            members[*place as usize].opened.is_none() && risen()
        });
        let risen: Vec<Instant> = risen.map(|(_, fell)| *fell).collect();
        for (place, until) in view.hasten(&mut members, &risen, &self.settings.breaker, now) {
            self.member(place).endpoint.hasten(until);
        }
        view.look(&members, self.settings.breaker.max_ejected, epoch, now);
    }

    /// The one call that shows whether an instance is well again.
    fn probe(&self, view: &View, ask: &Ask<'_, T>, now: Instant) -> Option<Pick<'_, T>> {
        view.probes
            .iter()
            .filter(|place| self.may(**place, ask, now))
            .find_map(|place| self.take(*place, true, now))
    }

    /// Where the call's context is at home, if it can go there: the highest of random weights
    /// (rendezvous hashing), so that one instance more or less moves few contexts.
    fn settled(&self, view: &View, ask: &Ask<'_, T>, now: Instant) -> Option<u32> {
        let context = ask.sticky.filter(|_| self.settings.balance.sticky)?;
        let flowing = view.groups.iter().flat_map(|group| &group.all).copied();
        let weight = |place: u32| mixed(context ^ self.member(place).key);
        let may = |place: &u32| self.may(*place, ask, now);
        // Nearly always the first may: the others need not be asked whether they may.
        let first = flowing.clone().max_by_key(|place| weight(*place))?;
        if may(&first) {
            return Some(first);
        }
        flowing.filter(may).max_by_key(|place| weight(*place))
    }

    fn choose(
        &self,
        view: &View,
        ask: &Ask<'_, T>,
        now: Instant,
        random: &mut (impl Rng + ?Sized),
    ) -> Option<u32> {
        let first = weighted(&view.groups, random);
        let groups = &view.groups;
        let begin = first.unwrap_or(0);
        // The drawn group first, then whoever else there is.
        let mut turns = (0..groups.len()).map(|step| (begin + step) % groups.len());
        turns.find_map(|place| {
            let group = &groups[place];
            let near = self.settings.balance.zone && !group.local.is_empty();
            near.then(|| self.cheaper(&group.local, ask, now, random))
                .flatten()
                .or_else(|| self.cheaper(&group.all, ask, now, random))
        })
    }

    /// The cheapest of a few random ones that may be called.
    fn cheaper(
        &self,
        places: &[u32],
        ask: &Ask<'_, T>,
        now: Instant,
        random: &mut (impl Rng + ?Sized),
    ) -> Option<u32> {
        let (mut best, mut cost) = self.draw(places, None, ask, now, random)?;
        for choice in 1..CHOICES + MORE {
            if choice >= CHOICES && !cost.is_doubtful() {
                break;
            }
            let Some((place, other)) = self.draw(places, Some(best), ask, now, random) else {
                break;
            };
            if other.beats(cost) {
                (best, cost) = (place, other);
            }
        }
        Some(best)
    }

    /// One that may be called, other than `but`, and what that would cost.
    fn draw(
        &self,
        places: &[u32],
        but: Option<u32>,
        ask: &Ask<'_, T>,
        now: Instant,
        random: &mut (impl Rng + ?Sized),
    ) -> Option<(u32, Cost)> {
        if places.is_empty() || (but.is_some() && places.len() < 2) {
            return None;
        }
        let cost = |place: u32| {
            let member = self.member(place);
            let may = but != Some(place) && (ask.allows)(&member.value);
            let cost = || member.endpoint.cost(self.kind, &self.settings.balance, now);
            may.then(cost).flatten().map(|cost| (place, cost))
        };
        for _ in 0..DRAWS {
            let drawn = cost(places[random.random_range(0..places.len())]);
            if drawn.is_some() {
                return drawn;
            }
        }
        let (before, after) = places.split_at(random.random_range(0..places.len()));
        after.iter().chain(before).copied().find_map(cost)
    }

    fn may(&self, place: u32, ask: &Ask<'_, T>, now: Instant) -> bool {
        let member = self.member(place);
        (ask.allows)(&member.value) && member.endpoint.has_room(&self.settings.balance, now)
    }

    fn take(&self, place: u32, probe: bool, now: Instant) -> Option<Pick<'_, T>> {
        let member = self.member(place);
        let (endpoint, settings) = (member.endpoint.clone(), self.settings.clone());
        let permit = Permit::begin(endpoint, settings, (self.kind, probe), now)?;
        Some(Pick::Taken(&member.value, permit))
    }

    fn member(&self, place: u32) -> &Member<T> {
        // Places come from counting the members.
        &self.members[place as usize]
    }
}

impl<T> std::fmt::Debug for Ask<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ask")
            .field("sticky", &self.sticky)
            .finish_non_exhaustive()
    }
}

/// A group by weight; `None`: no group that has a weight has anybody.
fn weighted(groups: &[Group], random: &mut (impl Rng + ?Sized)) -> Option<usize> {
    let weight = |group: &Group| {
        if group.all.is_empty() {
            0
        } else {
            u64::from(group.weight)
        }
    };
    let all: u64 = groups.iter().map(weight).sum();
    if all == 0 {
        return None;
    }
    let mut at = random.random_range(0..all);
    groups.iter().position(|group| {
        let own = weight(group);
        let here = at < own;
        at = at.saturating_sub(own);
        here
    })
}

/// Spreads a number over all of its bits (the finalizer of splitmix64).
fn mixed(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests;
