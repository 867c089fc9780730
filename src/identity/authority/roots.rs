//! Which root signs, which are trusted and which are still known: a function of wall time.
//!
//! A rotation is written down once, and time carries it out, also over restarts and in every
//! process that reads the directory: the next root is trusted at once, signs later, and the one
//! before is trusted until all that it signed has been replaced.

use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;

use crate::identity::enrollment::REJOIN_WINDOW;

/// Most roots that a CA knows at once. Each past one adds a certificate to every chain that is shown.
pub const ROOTS_MAX: usize = 4;
/// How long a root is known after it is trusted no more: who slept over its end finds back by it.
const KNOWN_FOR: Duration = REJOIN_WINDOW;

/// A root and its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// Counts this CA's roots from 1; names its files.
    pub number: u32,
    /// Self-signed.
    pub certificate: CertificateDer<'static>,
    /// The same name and key, signed by the root before: leads those here who know only that one.
    pub cross: Option<CertificateDer<'static>>,
    /// When it begins to sign; trusted before.
    pub signs_from: SystemTime,
    /// When it is trusted no more; none as long as there is no next one.
    pub trusted_until: Option<SystemTime>,
}

impl Root {
    fn is_trusted_at(&self, now: SystemTime) -> bool {
        self.trusted_until.is_none_or(|until| now < until)
    }

    fn is_known_at(&self, now: SystemTime) -> bool {
        self.trusted_until
            .is_none_or(|until| now < until + KNOWN_FOR)
    }
}

/// All roots of a CA, oldest first; at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots(Vec<Root>);

impl Roots {
    /// Sorted by age; `None`: there is none.
    pub(super) fn new(mut all: Vec<Root>) -> Option<Self> {
        all.sort_by_key(|root| root.number);
        (!all.is_empty()).then_some(Self(all))
    }

    /// All of them, oldest first.
    pub fn all(&self) -> &[Root] {
        &self.0
    }

    /// The youngest.
    pub fn last(&self) -> &Root {
        self.0.last().expect("a CA has a root")
    }

    /// The one that signs at `now`.
    pub fn signing(&self, now: SystemTime) -> &Root {
        let begun = self.0.iter().rev().find(|root| root.signs_from <= now);
        begun.unwrap_or(&self.0[0])
    }

    /// Those that members trust at `now`, the signing one first.
    pub fn trusted(&self, now: SystemTime) -> Vec<CertificateDer<'static>> {
        let signing = self.signing(now);
        let others = self.0.iter().filter(|root| root.number != signing.number);
        let others = others.filter(|root| root.is_trusted_at(now));
        let all = std::iter::once(signing).chain(others);
        all.map(|root| root.certificate.clone()).collect()
    }

    /// Those that were trusted and are known still.
    pub fn former(&self, now: SystemTime) -> Vec<CertificateDer<'static>> {
        let signing = self.signing(now).number;
        let former = self
            .known(now)
            .filter(|root| root.number != signing && !root.is_trusted_at(now));
        former.map(|root| root.certificate.clone()).collect()
    }

    /// What leads from the signing root to those before it that are known still.
    pub fn crosses(&self, now: SystemTime) -> Vec<CertificateDer<'static>> {
        let signing = self.signing(now).number;
        let pairs = self.0.windows(2).rev();
        let led = pairs
            .filter(|pair| pair[1].number <= signing)
            .take_while(|pair| pair[0].is_known_at(now));
        led.filter_map(|pair| pair[1].cross.clone()).collect()
    }

    /// Those that are not forgotten at `now`.
    pub(super) fn known(&self, now: SystemTime) -> impl Iterator<Item = &Root> {
        self.0.iter().filter(move |root| root.is_known_at(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 24 * 3600;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn root(number: u32, signs_from: u64, trusted_until: Option<u64>) -> Root {
        let text = |kind: &str| CertificateDer::from(format!("{kind}{number}").into_bytes());
        Root {
            number,
            certificate: text("root"),
            cross: (number > 1).then(|| text("cross")),
            signs_from: at(signs_from),
            trusted_until: trusted_until.map(at),
        }
    }

    fn names(list: &[CertificateDer<'_>]) -> String {
        let names = list.iter().map(|der| String::from_utf8_lossy(der));
        names.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_next_one_is_trusted_then_signs_and_the_one_before_goes() {
        // Three roots: a week between the end of the first and the beginning of the third.
        let roots = Roots::new(vec![
            root(3, 20 * DAY, None),
            root(1, 0, Some(2_000)),
            root(2, 1_000, Some(20 * DAY + 500)),
        ]);
        let roots = roots.unwrap();
        for (now, signing, trusted, former, crosses) in [
            (0, 1, "root1 root2 root3", "", ""),
            (999, 1, "root1 root2 root3", "", ""),
            (1_000, 2, "root2 root1 root3", "", "cross2"),
            (1_999, 2, "root2 root1 root3", "", "cross2"),
            (2_000, 2, "root2 root3", "root1", "cross2"),
            (2_000 + 7 * DAY, 2, "root2 root3", "", ""),
            (20 * DAY, 3, "root3 root2", "", "cross3"),
            (20 * DAY + 500, 3, "root3", "root2", "cross3"),
            (40 * DAY, 3, "root3", "", ""),
        ] {
            let now = at(now);
            assert_eq!(roots.signing(now).number, signing);
            assert_eq!(names(&roots.trusted(now)), trusted, "{now:?}");
            assert_eq!(names(&roots.former(now)), former, "{now:?}");
            assert_eq!(names(&roots.crosses(now)), crosses, "{now:?}");
        }
    }

    #[test]
    fn two_in_a_row_lead_back_over_both() {
        let roots = Roots::new(vec![
            root(1, 0, Some(2_000)),
            root(2, 1_000, Some(4_000)),
            root(3, 3_000, None),
        ]);
        let roots = roots.unwrap();
        assert_eq!(names(&roots.crosses(at(3_500))), "cross3 cross2");
        assert_eq!(names(&roots.trusted(at(3_500))), "root3 root2");
        assert_eq!(names(&roots.former(at(3_500))), "root1");
        assert!(Roots::new(Vec::new()).is_none());
        // A clock that is behind all of them: the oldest signs.
        let late = Roots::new(vec![root(4, 1_000, None)]).unwrap();
        assert_eq!(late.signing(at(0)).number, 4);
    }
}
