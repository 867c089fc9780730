//! Which faults a route has, and what they come to for one connection at one moment. Pure: the time
//! and every connection's lot come in as arguments.

use std::time::Duration;

use tokio::time::Instant;

use super::protocol::{Direction, Fault};

/// Longest delay, gap or flapping period that makes sense in a test.
const DELAY_MAX: u64 = 3_600_000;

/// Tells one kind of fault from another, and names it in counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Latency,
    Rate,
    Blackhole,
    Reset,
    Refuse,
    HalfClose,
    Cut,
    Corrupt,
    Slice,
    Flap,
}

impl Kind {
    pub(crate) const ALL: [Self; 10] = [
        Self::Latency,
        Self::Rate,
        Self::Blackhole,
        Self::Reset,
        Self::Refuse,
        Self::HalfClose,
        Self::Cut,
        Self::Corrupt,
        Self::Slice,
        Self::Flap,
    ];

    pub(crate) fn of(fault: &Fault) -> Self {
        match fault {
            Fault::Latency { .. } => Self::Latency,
            Fault::Rate { .. } => Self::Rate,
            Fault::Blackhole => Self::Blackhole,
            Fault::Reset { .. } => Self::Reset,
            Fault::Refuse => Self::Refuse,
            Fault::HalfClose => Self::HalfClose,
            Fault::Cut { .. } => Self::Cut,
            Fault::Corrupt { .. } => Self::Corrupt,
            Fault::Slice { .. } => Self::Slice,
            Fault::Flap { .. } => Self::Flap,
        }
    }

    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Latency => "latency",
            Self::Rate => "rate",
            Self::Blackhole => "blackhole",
            Self::Reset => "reset",
            Self::Refuse => "refuse",
            Self::HalfClose => "half_close",
            Self::Cut => "cut",
            Self::Corrupt => "corrupt",
            Self::Slice => "slice",
            Self::Flap => "flap",
        }
    }

    /// Whether it is done to a connection or a listener as a whole.
    fn is_whole(self) -> bool {
        matches!(self, Self::Reset | Self::Refuse | Self::Flap)
    }
}

/// Tells one time that a fault came into force from the next: which `set` it was, and which turn of
/// the flapping.
pub(crate) type Stamp = (u64, u64);

/// What holds for one direction of one connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) latency: Duration,
    pub(crate) jitter: Duration,
    /// Bytes per second.
    pub(crate) rate: Option<u64>,
    pub(crate) blackhole: bool,
    pub(crate) half_close: bool,
    /// After how many bytes, whether by RST, and since when it holds.
    pub(crate) cut: Option<(u64, bool, Stamp)>,
    /// At which offset, one in how many, and since when it holds.
    pub(crate) corrupt: Option<(Option<u64>, Option<u32>, Stamp)>,
    /// Bytes of each piece and the gap after it.
    pub(crate) slice: Option<(usize, Duration)>,
}

#[derive(Clone, Debug)]
struct Held {
    direction: Direction,
    share: u8,
    fault: Fault,
    stamp: u64,
}

/// The faults of one route: one of each kind and direction at most.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults {
    held: Vec<Held>,
    sets: u64,
    /// Since when it flaps, and its periods of being well and of not being well.
    flap: Option<(Instant, Duration, Duration)>,
}

impl Faults {
    /// Takes a fault in, in the place of one of its kind and direction.
    ///
    /// # Errors
    /// With what is wrong with it, for whoever sent it.
    pub(crate) fn set(
        &mut self,
        direction: Direction,
        share: u8,
        fault: Fault,
        now: Instant,
    ) -> Result<(), String> {
        let kind = Kind::of(&fault);
        check(direction, share, &fault, kind)?;
        self.sets += 1;
        if let Fault::Flap { up_ms, down_ms } = fault {
            let millis = Duration::from_millis;
            self.flap = Some((now, millis(up_ms), millis(down_ms)));
            return Ok(());
        }
        self.held
            .retain(|held| Kind::of(&held.fault) != kind || !direction.covers(held.direction));
        let stamp = self.sets;
        self.held.push(Held {
            direction,
            share,
            fault,
            stamp,
        });
        Ok(())
    }

    /// Takes all faults out.
    pub(crate) fn clear(&mut self) {
        self.held.clear();
        self.flap = None;
    }

    /// Whether the faults hold at this moment, which turn of the flapping it is, and when that ends.
    pub(crate) fn turn(&self, now: Instant) -> (bool, u64, Option<Instant>) {
        let Some((since, up, down)) = self.flap else {
            return (true, 0, None);
        };
        let whole = (up + down).as_nanos();
        let passed = now.saturating_duration_since(since).as_nanos();
        let (turn, inside) = (passed / whole, passed % whole);
        let holds = inside >= up.as_nanos();
        let left = if holds { whole } else { up.as_nanos() } - inside;
        let left = Duration::from_nanos(u64::try_from(left).unwrap_or(u64::MAX));
        (
            holds,
            u64::try_from(turn).unwrap_or(u64::MAX),
            Some(now + left),
        )
    }

    /// What holds at this moment.
    pub(crate) fn in_force(&self, now: Instant) -> InForce {
        let (holds, turn, _) = self.turn(now);
        let held = if holds { self.held.clone() } else { Vec::new() };
        InForce { held, turn }
    }
}

/// The faults of a route that hold now.
#[derive(Clone, Debug, Default)]
pub(crate) struct InForce {
    held: Vec<Held>,
    turn: u64,
}

impl InForce {
    /// Whether nobody listens.
    pub(crate) fn refuses(&self) -> bool {
        self.held.iter().any(|held| held.fault == Fault::Refuse)
    }

    /// Whether a connection with this lot is reset as it comes.
    pub(crate) fn resets_new(&self, lot: u64) -> bool {
        let new = |fault| matches!(fault, Fault::Reset { new: true, .. });
        self.held
            .iter()
            .any(|held| new(held.fault) && held.hits(lot))
    }

    /// Since when a connection with this lot is to be reset, if it is.
    pub(crate) fn resets_existing(&self, lot: u64) -> Option<Stamp> {
        let existing = |fault| matches!(fault, Fault::Reset { existing: true, .. });
        self.held
            .iter()
            .find(|held| existing(held.fault) && held.hits(lot))
            .map(|held| (held.stamp, self.turn))
    }

    /// What holds for one direction of the connection with this lot.
    pub(crate) fn shape(&self, direction: Direction, lot: u64) -> Shape {
        let mut shape = Shape::default();
        let all = self.held.iter();
        for held in all.filter(|held| held.direction.covers(direction) && held.hits(lot)) {
            let stamp = (held.stamp, self.turn);
            match held.fault {
                Fault::Latency { ms, jitter_ms } => {
                    shape.latency = Duration::from_millis(ms);
                    shape.jitter = Duration::from_millis(jitter_ms);
                }
                Fault::Rate { bytes_per_second } => shape.rate = Some(bytes_per_second),
                Fault::Blackhole => shape.blackhole = true,
                Fault::HalfClose => shape.half_close = true,
                Fault::Cut { after, reset } => shape.cut = Some((after, reset, stamp)),
                Fault::Corrupt { at, one_in } => shape.corrupt = Some((at, one_in, stamp)),
                Fault::Slice { bytes, gap_ms } => {
                    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
                    shape.slice = Some((bytes, Duration::from_millis(gap_ms)));
                }
                Fault::Reset { .. } | Fault::Refuse | Fault::Flap { .. } => {}
            }
        }
        shape
    }
}

impl Held {
    /// Whether a connection with this lot is one of those that the fault is for. The same
    /// connection gives the same answer each time, and another one for another fault.
    fn hits(&self, lot: u64) -> bool {
        mixed(lot ^ mixed(self.stamp)) % 100 < u64::from(self.share)
    }
}

impl Direction {
    fn covers(self, other: Self) -> bool {
        self == Self::Both || self == other
    }
}

fn check(direction: Direction, share: u8, fault: &Fault, kind: Kind) -> Result<(), String> {
    let label = kind.label();
    if share == 0 || share > 100 {
        return Err(format!("share is {share}: of 100 connections, 1 to 100"));
    }
    if kind.is_whole() && direction != Direction::Both {
        return Err(format!("{label} knows no direction"));
    }
    if matches!(kind, Kind::Refuse | Kind::Flap) && share != 100 {
        return Err(format!("{label} is for all connections: no share"));
    }
    let (sensible, rule) = match *fault {
        Fault::Latency { ms, jitter_ms } => {
            (ms <= DELAY_MAX && jitter_ms <= DELAY_MAX, "an hour at most")
        }
        Fault::Rate { bytes_per_second } => (bytes_per_second > 0, "1 byte per second at least"),
        Fault::Corrupt { at, one_in } => (
            one_in != Some(0) && (at.is_some() || one_in.is_some()),
            "`at` an offset or `one_in` so many bytes, 1 at least",
        ),
        Fault::Slice { bytes, gap_ms } => (
            bytes > 0 && gap_ms <= DELAY_MAX,
            "pieces of 1 byte at least, gaps of an hour at most",
        ),
        Fault::Flap { up_ms, down_ms } => (
            (1..=DELAY_MAX).contains(&up_ms) && (1..=DELAY_MAX).contains(&down_ms),
            "periods of 1 ms to an hour",
        ),
        Fault::Reset { existing, new } => (existing || new, "existing, new or both"),
        Fault::Blackhole | Fault::Refuse | Fault::HalfClose | Fault::Cut { .. } => (true, ""),
    };
    sensible
        .then_some(())
        .ok_or_else(|| format!("{label}: {rule}"))
}

/// A number that looks like none of its neighbours' (splitmix64).
fn mixed(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        // Any moment: only differences count.
        static BASE: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        *BASE.get_or_init(Instant::now) + Duration::from_millis(millis)
    }

    fn with(all: &[(Direction, u8, Fault)]) -> Faults {
        let mut faults = Faults::default();
        for (direction, share, fault) in all {
            faults.set(*direction, *share, *fault, at(0)).unwrap();
        }
        faults
    }

    #[test]
    fn a_fault_takes_the_place_of_its_kind_and_direction_only() {
        use Direction::{Both, Down, Up};
        let latency = |ms| Fault::Latency { ms, jitter_ms: 0 };
        let mut faults = with(&[
            (Both, 100, latency(1)),
            (Down, 100, latency(2)),
            (Both, 100, Fault::Blackhole),
        ]);
        let shape = |faults: &Faults, direction| faults.in_force(at(0)).shape(direction, 0);
        assert_eq!(shape(&faults, Up).latency, Duration::from_millis(1));
        assert_eq!(shape(&faults, Down).latency, Duration::from_millis(2));
        assert!(shape(&faults, Down).blackhole);
        faults.set(Both, 100, latency(3), at(0)).unwrap();
        assert_eq!(shape(&faults, Down).latency, Duration::from_millis(3));
        assert!(shape(&faults, Up).blackhole);
        faults.clear();
        assert_eq!(shape(&faults, Up), Shape::default());
    }

    #[test]
    fn flapping_is_well_first_and_then_not_and_says_when_it_turns() {
        let flap = Fault::Flap {
            up_ms: 30,
            down_ms: 20,
        };
        let all = Direction::Both;
        let faults = with(&[(all, 100, flap), (all, 100, Fault::Refuse)]);
        for (now, holds, turn, until) in [
            (0, false, 0, 30),
            (29, false, 0, 30),
            (30, true, 0, 50),
            (49, true, 0, 50),
            (50, false, 1, 80),
            (80, true, 1, 100),
            (5_000_030, true, 100_000, 5_000_050),
        ] {
            assert_eq!(
                faults.turn(at(now)),
                (holds, turn, Some(at(until))),
                "{now} ms"
            );
            assert_eq!(faults.in_force(at(now)).refuses(), holds, "{now} ms");
        }
        assert_eq!(with(&[]).turn(at(7)), (true, 0, None));
    }

    #[test]
    fn each_turn_and_each_set_is_another_reset() {
        let reset = Fault::Reset {
            existing: true,
            new: false,
        };
        let flap = Fault::Flap {
            up_ms: 1,
            down_ms: 1,
        };
        let all = Direction::Both;
        let mut faults = with(&[(all, 100, reset), (all, 100, flap)]);
        let stamp = |faults: &Faults, now| faults.in_force(at(now)).resets_existing(5);
        assert_eq!(stamp(&faults, 0), None);
        let first = stamp(&faults, 1);
        assert!(first.is_some() && first != stamp(&faults, 3));
        faults.set(all, 100, reset, at(0)).unwrap();
        assert_ne!(first, stamp(&faults, 1));
        assert!(!faults.in_force(at(1)).resets_new(5));
    }

    #[test]
    fn a_share_hits_about_as_many_and_the_same_ones_each_time() {
        for share in [1, 10, 50, 99, 100] {
            let faults = with(&[(Direction::Up, share, Fault::Blackhole)]);
            let hits = |lot: u64| faults.in_force(at(0)).shape(Direction::Up, lot).blackhole;
            let count = (0..10_000).filter(|lot| hits(*lot)).count();
            let wanted = usize::from(share) * 100;
            assert!(
                count.abs_diff(wanted) <= 150,
                "{share} of 100: {count} of 10,000"
            );
            assert!((0..100).all(|lot| hits(lot) == hits(lot)));
        }
    }
}
