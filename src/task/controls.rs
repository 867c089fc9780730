//! What keeps the promises of the log and of the task engine, to be taken away at run time, so that
//! it can be shown that somebody notices. Only in tests and in a build with the feature `sabotage`:
//! the program has no such switch.

#[cfg(test)]
use std::cell::Cell;
#[cfg(not(test))]
use std::sync::LazyLock;

/// A control that can be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::task) enum Control {
    /// An attempt that is not in force changes nothing, and an older one is not begun any more.
    Fence,
    /// The second half of that alone.
    #[cfg(test)]
    ExecutorFence,
    /// What an executor does not know has only then never begun if it knows that.
    #[cfg(test)]
    NeverBegun,
    /// Nothing is acknowledged before its sync.
    Sync,
    /// A submission with a key that is known makes no second task.
    Idempotency,
    /// No tree gets more tasks than its root may have.
    Descendants,
    /// A record's CRC.
    #[cfg(test)]
    Record,
    /// A record's number.
    #[cfg(test)]
    Number,
}

/// Names, separated by commas, of what the process goes without: `fence`, `sync`, `idempotency`,
/// `descendants`.
#[cfg(not(test))]
const REMOVED_BY: &str = "ATTACHE_SABOTAGE";

#[cfg(not(test))]
static REMOVED: LazyLock<String> = LazyLock::new(|| std::env::var(REMOVED_BY).unwrap_or_default());

#[cfg(test)]
thread_local! {
    static REMOVED: Cell<Option<Control>> = const { Cell::new(None) };
}

/// Whether this process goes without it.
#[cfg(not(test))]
pub(in crate::task) fn removed(control: Control) -> bool {
    let name = match control {
        Control::Fence => "fence",
        Control::Sync => "sync",
        Control::Idempotency => "idempotency",
        Control::Descendants => "descendants",
    };
    REMOVED.split(',').any(|removed| removed == name)
}

/// Whether this thread goes without it.
#[cfg(test)]
pub(in crate::task) fn removed(control: Control) -> bool {
    REMOVED.get() == Some(control)
}

/// Carries on without a control, on this thread.
#[cfg(test)]
pub(in crate::task) fn without<T>(control: Control, act: impl FnOnce() -> T) -> T {
    REMOVED.set(Some(control));
    let answer = act();
    REMOVED.set(None);
    answer
}
