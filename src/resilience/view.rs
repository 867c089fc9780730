//! Who of a set may be called now: looked at again only when a breaker turned or its time came.

use std::time::Duration;

use tokio::time::Instant;

use super::breaker::PROBE_PATIENCE;
use super::endpoint::Opened;
use super::settings::BreakerSettings;

/// Sets smaller than this may lose all their members: half of one or two is no choice.
const SMALL: usize = 3;

/// Those whose breakers opened within so long of each other had the same trouble, as likely as not: a
/// network, a deployment. Once calls to one go well again, the others are asked soon.
const TOGETHER: Duration = Duration::from_secs(5);
/// Time over which they are asked, so that they do not all get a call at once.
const SPREAD: Duration = Duration::from_secs(1);
/// Where everybody is left out a probe costs nobody anything: a call would fail anyhow. Time between
/// two of them at the same instance, if its cool-down is not shorter.
const LAST_RESORT: Duration = Duration::from_secs(2);

/// Members by where they stand; places in the set.
#[derive(Debug, Default)]
pub(super) struct View {
    /// Where the epoch stood; `None`: never looked.
    pub(super) epoch: Option<u64>,
    /// When to look again at the latest.
    pub(super) due: Option<Instant>,
    /// Half-open ones without a probe: whoever calls next may be it.
    pub(super) probes: Vec<u32>,
    /// Members that calls flow to, by weight.
    pub(super) groups: Vec<Group>,
    /// Those whose breakers were open, and since when calls had not flowed.
    pub(super) fallen: Vec<(u32, Instant)>,
    /// Breakers that are open, and honoured.
    pub(super) ejected: usize,
}

/// Members that share a weight.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) weight: u32,
    /// Those of the own zone.
    pub(super) local: Vec<u32>,
    pub(super) all: Vec<u32>,
}

/// A member as the view needs it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    pub(super) group: usize,
    pub(super) local: bool,
    /// Its breaker, if that is open.
    pub(super) opened: Option<Opened>,
}

impl View {
    /// Whether it still holds.
    pub(super) fn is_fresh(&self, epoch: u64, now: Instant) -> bool {
        self.epoch == Some(epoch) && self.due.is_none_or(|due| now < due)
    }

    /// Who is to be asked sooner than its cool-down says, and when. `risen`: when those fell to whom
    /// calls go well again. Changes `members` accordingly.
    pub(super) fn hasten(
        &self,
        members: &mut [Standing],
        risen: &[Instant],
        settings: &BreakerSettings,
        now: Instant,
    ) -> Vec<(u32, Instant)> {
        let most = LAST_RESORT.max(settings.cool_down);
        let all = bound(members.len(), settings.max_ejected) == members.len()
            && members.iter().all(|member| member.opened.is_some());
        let mut hastened = Vec::new();
        for (place, member) in (0_u32..).zip(members) {
            let Some(opened) = &mut member.opened else {
                continue;
            };
            let spread = SPREAD.mul_f64(f64::from(place % 16 + 1) / 16.0);
            let together = |fell: &Instant| apart(*fell, opened.fell) <= TOGETHER;
            let soon = risen.iter().any(together).then_some(now + spread);
            let resort = all.then_some(now.max(opened.since + most) + spread);
            let until = soon.into_iter().chain(resort).min();
            if let Some(until) = until.filter(|until| *until < opened.until) {
                opened.until = until;
                hastened.push((place, until));
            }
        }
        hastened
    }

    /// Looks at everybody. Of three or more at most `max_ejected` are left out, those that opened
    /// first; to the others calls flow on, since everybody else would drown in their share.
    pub(super) fn look(
        &mut self,
        members: &[Standing],
        max_ejected: f64,
        epoch: u64,
        now: Instant,
    ) {
        self.epoch = Some(epoch);
        self.due = None;
        self.probes.clear();
        self.fallen.clear();
        for group in &mut self.groups {
            group.local.clear();
            group.all.clear();
        }
        let mut open: Vec<(Instant, u32)> = Vec::new();
        for (place, member) in (0_u32..).zip(members) {
            match member.opened {
                None => self.flow(place, *member),
                Some(opened) => open.push((opened.since, place)),
            }
        }
        open.sort_unstable();
        let most = bound(members.len(), max_ejected);
        for (turn, (_, place)) in open.into_iter().enumerate() {
            let Some(opened) = members[place as usize].opened else {
                continue;
            };
            self.fallen.push((place, opened.fell));
            let look = match opened.ripe_at {
                None if opened.until <= now => {
                    self.probes.push(place);
                    None
                }
                None => Some(opened.until),
                // A probe that is at work says nothing when it has succeeded by time.
                Some(ripe) if ripe > now => Some(ripe),
                Some(_) => Some(now + PROBE_PATIENCE),
            };
            self.due = self.due.into_iter().chain(look).min();
            if turn >= most {
                self.flow(place, members[place as usize]);
            }
        }
        let flowing: usize = self.groups.iter().map(|group| group.all.len()).sum();
        self.ejected = members.len() - flowing;
    }

    fn flow(&mut self, place: u32, member: Standing) {
        if let Some(group) = self.groups.get_mut(member.group) {
            group.all.push(place);
            if member.local {
                group.local.push(place);
            }
        }
    }
}

fn apart(one: Instant, other: Instant) -> Duration {
    one.max(other).saturating_duration_since(one.min(other))
}

/// How many of a set may be left out at a time.
pub(super) fn bound(members: usize, share: f64) -> usize {
    if members < SMALL {
        return members;
    }
    let share = share.clamp(0.0, 1.0);
    (0..=members)
        .rev()
        .find(|count| {
            f64::from(u32::try_from(*count).unwrap_or(u32::MAX))
                <= share * f64::from(u32::try_from(members).unwrap_or(u32::MAX))
        })
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_most_half_of_three_or_more_and_all_of_one_or_two() {
        for (members, most) in [(0, 0), (1, 1), (2, 2), (3, 1), (4, 2), (5, 2), (1000, 500)] {
            assert_eq!(bound(members, 0.5), most, "{members}");
        }
        assert_eq!(
            (bound(10, 0.0), bound(10, 1.0), bound(10, 9.0)),
            (0, 10, 10)
        );
    }
}
