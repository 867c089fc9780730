//! What keeps the log's promises, to be taken away by a test that shows that the others notice.
//! Only in tests: the program has no such switch.

use std::cell::Cell;

/// A control that can be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Control {
    /// Nothing is acknowledged before its sync.
    Sync,
    /// A record's CRC.
    Record,
    /// A record's number.
    Number,
}

thread_local! {
    static REMOVED: Cell<Option<Control>> = const { Cell::new(None) };
}

/// Whether this thread goes without it.
pub(super) fn removed(control: Control) -> bool {
    REMOVED.get() == Some(control)
}

/// Carries on without a control, on this thread.
pub(super) fn without<T>(control: Control, act: impl FnOnce() -> T) -> T {
    REMOVED.set(Some(control));
    let answer = act();
    REMOVED.set(None);
    answer
}
