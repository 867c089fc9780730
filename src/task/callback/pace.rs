//! When a change is told again, and for how long.

use std::time::Duration;

/// How long after it happened a change may still be told; what nobody took by then is given up.
pub const RETENTION: Duration = Duration::from_secs(24 * 3600);
/// How long one try may take, from the look at the name to the answer.
pub const TRY: Duration = Duration::from_secs(10);
/// Pause after the first failed try.
const FIRST: Duration = Duration::from_secs(1);
/// Longest pause between tries.
const MOST: Duration = Duration::from_secs(300);
/// Longest pause that a receiver may ask for.
const ASKED_MAX: Duration = Duration::from_secs(3600);
/// Doublings until the longest pause is reached, and a few.
const DOUBLINGS: u32 = 16;

/// What a try came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The receiver has taken it in.
    Delivered,
    /// It may be taken another time.
    Later {
        /// What happened, without secrets.
        why: String,
        /// Not before this, says the receiver.
        wait: Option<Duration>,
    },
    /// An agent has a task that tells it, this one: what comes of it is heard at its end.
    Given(String),
    /// The task that told the agent failed for now: another one may do it another time.
    Anew(String),
    /// The receiver will not take it.
    Refused(String),
    /// Nothing was tried: too much is on its way already.
    Busy,
}

/// The pause after so many failed tries, at least one: doubling, give or take a half as `chance` from
/// 0 to 1 says, and at least what the receiver asks for.
pub fn pause(tries: u32, wait: Option<Duration>, chance: f64) -> Duration {
    let doublings = tries.saturating_sub(1).min(DOUBLINGS);
    let pause = FIRST.saturating_mul(1 << doublings).min(MOST);
    let spread = pause.mul_f64(0.5 + chance.clamp(0.0, 1.0));
    let asked = wait.unwrap_or_default().min(ASKED_MAX);
    spread.max(asked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_five_minutes_and_a_receiver_may_ask_for_an_hour() {
        let seconds = |tries, wait: Option<u64>, chance| {
            let wait = wait.map(Duration::from_secs);
            pause(tries, wait, chance).as_secs_f64()
        };
        for (tries, expected) in [(1, 1.0), (2, 2.0), (3, 4.0), (9, 256.0), (10, 300.0)] {
            assert_eq!(seconds(tries, None, 0.5), expected);
        }
        assert_eq!(seconds(u32::MAX, None, 0.5), 300.0);
        assert_eq!((seconds(1, None, 0.0), seconds(1, None, 1.0)), (0.5, 1.5));
        assert_eq!(seconds(1, Some(30), 0.5), 30.0);
        assert_eq!(seconds(10, Some(30), 0.5), 300.0);
        assert_eq!(seconds(1, Some(1 << 40), 0.5), 3600.0);
    }
}
