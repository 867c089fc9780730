//! How many calls may be second tries, so that those who try again cannot bury who is in trouble.

use tokio::time::Instant;

use super::settings::RetrySettings;
use super::window::Window;

/// Tokens to begin with, and at most; half of them must be there for the share to be used (gRFC A6).
const TOKENS: f64 = 10.0;
/// The same per first try within the window, where that is more: what breaks off at one instance of a
/// busy target are a few calls at once, and no sign that most calls fail.
const TOKENS_EACH: f64 = 0.01;
/// What a success gives back.
const TOKEN_RATIO: f64 = 0.1;

/// The budget of one target.
///
/// Two brakes: second tries stay below a share of first ones, over and above a floor that keeps a
/// quiet target usable; and while most calls fail the share is nothing, and only the floor is left.
#[derive(Clone, Debug)]
pub struct Budget {
    /// First tries count as good, second ones as bad.
    tries: Window,
    tokens: f64,
    /// Most tokens, for the traffic that there is.
    most: f64,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            tries: Window::default(),
            tokens: TOKENS,
            most: TOKENS,
        }
    }
}

impl Budget {
    /// A first try goes out.
    pub fn first(&mut self, now: Instant) {
        self.tries.count(true, RetrySettings::WINDOW, now);
        let (first, _) = self.tries.sums(now);
        self.most = TOKENS.max(TOKENS_EACH * f64::from(first));
    }

    /// A try ended; failures that say nothing of the target do not belong here.
    pub fn ended(&mut self, failed: bool) {
        let change = if failed { -1.0 } else { TOKEN_RATIO };
        self.tokens = (self.tokens + change).clamp(0.0, self.most);
    }

    /// Takes a second try out of the budget; false: there is none, and the call waits or fails.
    pub fn again(&mut self, settings: &RetrySettings, now: Instant) -> bool {
        let allowed = self.left(settings, now) >= 1.0;
        if allowed {
            self.tries.count(false, RetrySettings::WINDOW, now);
        }
        allowed
    }

    /// Second tries that are left now.
    pub fn left(&self, settings: &RetrySettings, now: Instant) -> f64 {
        let (first, second) = self.tries.sums(now);
        let floor = settings.floor.max(0.0) * RetrySettings::WINDOW.as_secs_f64();
        let share = if self.tokens > self.most / 2.0 {
            settings.budget.max(0.0) * f64::from(first)
        } else {
            0.0
        };
        floor + share - f64::from(second)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn while_all_fails_only_the_floor_is_left() {
        let (settings, start) = (RetrySettings::default(), Instant::now());
        let (mut budget, mut first, mut again) = (Budget::default(), 0_u32, 0_u32);
        for tick in 0..3000 {
            let now = start + Duration::from_millis(10) * tick;
            budget.first(now);
            budget.ended(true);
            first += 1;
            while budget.again(&settings, now) {
                budget.ended(true);
                again += 1;
            }
        }
        // 30 s: three full windows of thirty, and the first few that the tokens allowed.
        assert!((90..=130).contains(&again), "{again} of {first}");
    }

    #[test]
    fn a_target_that_recovers_gets_its_share_back() {
        let (settings, now) = (RetrySettings::default(), Instant::now());
        let mut budget = Budget::default();
        for _ in 0..1000 {
            budget.first(now);
        }
        for _ in 0..10 {
            budget.ended(true);
        }
        assert!((budget.left(&settings, now) - 30.0).abs() < 1e-6);
        for _ in 0..51 {
            budget.ended(false);
        }
        assert!((budget.left(&settings, now) - 230.0).abs() < 1e-6);
    }

    #[test]
    fn a_few_at_once_that_break_off_leave_a_busy_target_its_share() {
        let (settings, start) = (RetrySettings::default(), Instant::now());
        for (calls, left) in [(1_000_u32, 30.0), (50_000, 30.0 + 0.2 * 50_000.0)] {
            let mut budget = Budget::default();
            for call in 0..calls {
                budget.first(start + RetrySettings::WINDOW * call / calls / 2);
                budget.ended(false);
            }
            let now = start + RetrySettings::WINDOW / 2;
            (0..20).for_each(|_| budget.ended(true));
            assert!((budget.left(&settings, now) - left).abs() < 1e-6, "{calls}");
            // Not when it goes on.
            (0..1000).for_each(|_| budget.ended(true));
            assert!((budget.left(&settings, now) - 30.0).abs() < 1e-6, "{calls}");
        }
    }

    #[test]
    fn threads_share_one_budget_to_the_last_try() {
        let (settings, now) = (RetrySettings::default(), Instant::now());
        let budget = parking_lot::Mutex::new(Budget::default());
        (0..1000).for_each(|_| budget.lock().first(now));
        let take = || (0..1000).filter(|_| budget.lock().again(&settings, now));
        let taken = std::thread::scope(|scope| {
            let threads = [(); 8].map(|()| scope.spawn(|| take().count()));
            threads.map(|thread| thread.join().unwrap())
        });
        assert_eq!(taken.iter().sum::<usize>(), 30 + 200, "{taken:?}");
    }

    proptest! {
        /// However calls come: second tries within any window stay below floor and share of it.
        #[test]
        fn never_more_than_the_share_and_the_floor(steps in prop::collection::vec((0_u64..500, 0_u8..4, any::<bool>()), 1..300)) {
            let (settings, start) = (RetrySettings::default(), Instant::now());
            let (mut budget, mut at) = (Budget::default(), 0);
            let (mut first, mut again) = (Vec::new(), Vec::new());
            for (wait, calls, failed) in steps {
                at += wait;
                let now = start + Duration::from_millis(at);
                for _ in 0..calls {
                    budget.first(now);
                    budget.ended(failed);
                    first.push(at);
                }
                if budget.again(&settings, now) {
                    again.push(at);
                }
                let lately = |all: &[u64], span: u64| all.iter().filter(|then| at - **then < span).count() as f64;
                let most = 30.0 + 0.2 * lately(&first, 10_001);
                prop_assert!(lately(&again, 9_000) <= most + 1e-9);
            }
        }
    }
}
