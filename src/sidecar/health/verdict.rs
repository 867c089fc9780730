//! When an agent is fit for work, and when to look at it next.
//!
//! Pure: the time is passed in, and what was seen. It refuses to change its mind for less than
//! [`MISSES`] bad looks in a row or [`HITS`] good ones, but for the first look at a process and for
//! an agent's own word that it does not serve.
//!
//! ```text
//!   fresh ---first look----------------------------------> healthy | unhealthy
//!   healthy --3 misses in a row, or its own NOT_SERVING--> unhealthy
//!   unhealthy --2 hits in a row--------------------------> healthy
//!   any --its process may have ended, nobody is there----> fresh, and as before until a look
//! ```

use std::time::Duration;

use tokio::time::Instant;

/// Looks at an address where nobody listens: somebody waits for the agent to start.
pub(super) const SOON: Duration = Duration::from_millis(100);
/// Looks at an agent that may be about to change.
pub(super) const DOUBT: Duration = Duration::from_secs(1);
/// Looks at an agent that is well.
pub(super) const CALM: Duration = Duration::from_secs(5);
/// Misses in a row that make an agent unhealthy.
const MISSES: u32 = 3;
/// Hits in a row that make it healthy again.
const HITS: u32 = 2;
/// Connections in a row that the agent may end before it is looked at in peace.
pub(super) const CLOSES: u32 = 3;

/// What one look at the agent found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// It answers, and says nothing against it.
    Serving,
    /// It says of itself that it does not serve, as it pushes every change.
    Declined,
    /// No answer in time, or a wrong one.
    Missed,
    /// The connection ended under the look.
    Cut,
    /// Nobody listens there.
    Away,
}

impl Look {
    /// Its name in metrics.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Declined => "not_serving",
            Self::Missed => "missed",
            Self::Cut => "cut",
            Self::Away => "away",
        }
    }
}

/// What is held of one agent.
#[derive(Debug)]
pub(super) struct Verdict {
    healthy: bool,
    /// The next look is the first at its process, as far as is known: it counts at once.
    fresh: bool,
    hits: u32,
    misses: u32,
    closes: u32,
    looked: Option<Instant>,
    next: Instant,
}

impl Verdict {
    /// Of an agent that nobody has seen: unhealthy until the first look, which is due at once.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            healthy: false,
            fresh: true,
            hits: 0,
            misses: 0,
            closes: 0,
            looked: None,
            next: now,
        }
    }

    /// Whether the agent gets new work.
    pub(super) fn is_healthy(&self) -> bool {
        self.healthy
    }

    /// Whether nothing is known of the process that is there now.
    pub(super) fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// When to look next.
    pub(super) fn next(&self) -> Instant {
        self.next
    }

    /// A look that was due is over.
    pub(super) fn looked(&mut self, look: Look, now: Instant) {
        self.looked = Some(now);
        match look {
            Look::Serving => self.hit(),
            Look::Declined => self.declined(),
            Look::Cut if self.closes < CLOSES => return self.ended(now),
            Look::Missed | Look::Cut => self.missed(),
            Look::Away => {
                self.missed();
                // Who comes to listen there is somebody else.
                self.fresh = !self.healthy;
            }
        }
        let settled = self.healthy && self.misses == 0;
        self.next = now
            + match look {
                Look::Away => SOON,
                Look::Serving | Look::Declined | Look::Missed | Look::Cut if settled => CALM,
                Look::Serving | Look::Declined | Look::Missed | Look::Cut => DOUBT,
            };
    }

    /// The agent said something by itself, between two looks. However often it does, that puts no
    /// look off.
    pub(super) fn told(&mut self, look: Look, now: Instant) {
        let due = self.next;
        self.looked(look, now);
        self.next = self.next.min(due);
    }

    /// Its process may have ended, and another one may be there already. An agent that ends every
    /// connection is not asked for ever.
    pub(super) fn ended(&mut self, now: Instant) {
        self.fresh = true;
        self.closes += 1;
        self.next = now + if self.closes > CLOSES { CALM } else { SOON };
    }

    /// A connection was held from one look to the next.
    pub(super) fn held(&mut self) {
        self.closes = 0;
    }

    /// Calls got no word out of the agent: that weighs as one miss, and a look is due at once. It
    /// condemns nobody by itself, and moves looks together no further than [`DOUBT`].
    pub(super) fn suspect(&mut self, now: Instant) {
        if !self.healthy {
            return;
        }
        self.hits = 0;
        self.misses = (self.misses + 1).min(MISSES - 1);
        let earliest = self.looked.map_or(now, |looked| now.max(looked + DOUBT));
        self.next = self.next.min(earliest);
    }

    fn hit(&mut self) {
        self.hits = self.hits.saturating_add(1);
        self.misses = 0;
        self.healthy |= self.fresh || self.hits >= HITS;
        self.fresh = false;
    }

    fn missed(&mut self) {
        self.hits = 0;
        self.misses = self.misses.saturating_add(1);
        self.healthy &= !self.fresh && self.misses < MISSES;
        self.fresh = false;
    }

    fn declined(&mut self) {
        self.hits = 0;
        self.healthy = false;
        self.fresh = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes in one letter: `s`erving, `d`eclined, `m`issed, `c`ut, `a`way; `e`: the connection
    /// ended between two looks, `h`: it was held, `?`: suspicion, `S`, `D`: said by itself.
    fn take(verdict: &mut Verdict, letter: char, now: Instant) {
        match letter {
            's' => verdict.looked(Look::Serving, now),
            'd' => verdict.looked(Look::Declined, now),
            'm' => verdict.looked(Look::Missed, now),
            'c' => verdict.looked(Look::Cut, now),
            'a' => verdict.looked(Look::Away, now),
            'S' => verdict.told(Look::Serving, now),
            'D' => verdict.told(Look::Declined, now),
            'e' => verdict.ended(now),
            'h' => verdict.held(),
            '?' => verdict.suspect(now),
            _ => panic!("{letter}"),
        }
    }

    #[test]
    fn what_was_seen_decides_with_its_thresholds() {
        // What was seen, and after each: healthy or not.
        for (seen, healthy) in [
            // The first look counts at once, either way, and nobody there is no first look.
            ("s", "+"),
            ("m", "-"),
            ("d", "-"),
            ("aas", "--+"),
            // Three misses in a row, not two; two hits in a row, not one.
            ("smm", "+++"),
            ("smmm", "+++-"),
            ("smmsmm", "++++++"),
            ("smmms", "+++--"),
            ("smmmss", "+++--+"),
            ("smmmsms", "+++----"),
            ("mss", "--+"),
            // Its own word counts at once, for the bad only.
            ("sd", "+-"),
            ("sD", "+-"),
            ("sDS", "+--"),
            ("sDSs", "+--+"),
            ("sDSDs", "+----"),
            // A process that ends: the first look at the next one counts at once.
            ("sea", "++-"),
            ("sem", "++-"),
            ("ses", "+++"),
            ("seaas", "++--+"),
            ("smmmes", "+++--+"),
            // Nobody there, without an end that was seen.
            ("saas", "++++"),
            ("saaas", "+++-+"),
            // Cut under a look: as an end, unless it is always so.
            ("sca", "++-"),
            ("scs", "+++"),
            ("sccccccm", "++++----"),
            ("shchchchchcs", "++++++++++++"),
            // Suspicion weighs one miss, and does not condemn.
            ("s?", "++"),
            ("s????", "+++++"),
            ("s?m", "+++"),
            ("s?mm", "+++-"),
            ("s??m", "+++-"),
            ("s?smm", "+++++"),
            ("m?s", "---"),
        ] {
            let now = Instant::now();
            let mut verdict = Verdict::new(now);
            let mut found = String::new();
            for letter in seen.chars() {
                take(&mut verdict, letter, now);
                found.push(if verdict.is_healthy() { '+' } else { '-' });
            }
            assert_eq!(found, healthy, "{seen}");
        }
    }

    #[test]
    fn looks_come_closer_together_where_there_is_doubt() {
        let millis = Duration::from_millis;
        for (seen, pause) in [
            ("s", CALM),
            ("sm", DOUBT),
            ("sms", CALM),
            ("smmms", DOUBT),
            ("smmmss", CALM),
            ("d", DOUBT),
            ("a", SOON),
            ("sa", SOON),
            ("se", SOON),
            ("seeee", CALM),
            ("seeehe", SOON),
            ("sc", SOON),
            // At once, but no closer together than in doubt.
            ("s?", DOUBT),
            ("s??", DOUBT),
        ] {
            let now = Instant::now();
            let mut verdict = Verdict::new(now);
            assert_eq!(verdict.next(), now);
            seen.chars()
                .for_each(|letter| take(&mut verdict, letter, now));
            assert_eq!(verdict.next() - now, pause, "{seen}");
        }
        let now = Instant::now();
        let mut verdict = Verdict::new(now);
        verdict.looked(Look::Serving, now);
        verdict.suspect(now + millis(3000));
        assert_eq!(verdict.next(), now + millis(3000), "at once");
        // An agent that talks all the time is still looked at.
        for millisecond in 0..900 {
            verdict.told(Look::Serving, now + millis(millisecond));
        }
        assert!(verdict.next() <= now + CALM, "{:?}", verdict.next() - now);
    }

    #[test]
    fn a_hung_agent_is_unhealthy_within_ten_seconds() {
        let began = Instant::now();
        let mut verdict = Verdict::new(began);
        verdict.looked(Look::Serving, began);
        let mut now = began;
        while verdict.is_healthy() {
            // A look that is not answered takes its whole patience.
            now = verdict.next() + Duration::from_secs(1);
            verdict.looked(Look::Missed, now);
        }
        assert_eq!(now - began, Duration::from_secs(10));
    }
}
