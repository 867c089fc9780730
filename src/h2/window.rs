//! Flow control (RFC 9113 sections 5.2 and 6.9): what may be sent, and what the peer may send.
//!
//! Owns the arithmetic alone: signed, since a SETTINGS frame may take back what was given, and
//! checked, since no window may pass 2^31-1. Which bytes wait for which window is not known here.

/// The largest window there is.
pub const WINDOW_MAX: u32 = 0x7fff_ffff;
/// What every window holds before anything was said.
pub const WINDOW_DEFAULT: u32 = 65_535;
/// The part of its size that a window has given back at the least before it says so: a frame
/// of 13 bytes is not worth less.
const SAY_AT_LEAST: u32 = 8;

/// A window rule was broken: FLOW_CONTROL_ERROR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The peer sent more than it was given.
    #[error("more data than the flow control window had left")]
    Exceeded,
    /// The peer gave more than a window can hold.
    #[error("a flow control window above 2^31-1")]
    Overflow,
}

/// What we may send: given by the peer, possibly below zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SendWindow(i64);

impl SendWindow {
    /// As large as the peer says windows begin.
    pub fn new(size: u32) -> Self {
        Self(i64::from(size))
    }

    /// How many bytes may be sent now.
    #[inline]
    pub fn available(self) -> usize {
        usize::try_from(self.0).unwrap_or(0)
    }

    /// `bytes` are sent; they were available.
    #[inline]
    pub fn take(&mut self, bytes: usize) {
        debug_assert!(bytes <= self.available());
        self.0 -= i64::try_from(bytes).unwrap_or(i64::MAX);
    }

    /// WINDOW_UPDATE.
    ///
    /// # Errors
    /// [`Violation::Overflow`] above 2^31-1.
    #[inline]
    pub fn widen(&mut self, increment: u32) -> Result<(), Violation> {
        self.shift(i64::from(increment))
    }

    /// SETTINGS_INITIAL_WINDOW_SIZE changed by so much, perhaps to below zero.
    ///
    /// # Errors
    /// [`Violation::Overflow`] above 2^31-1.
    pub fn shift(&mut self, change: i64) -> Result<(), Violation> {
        let size = self.0 + change;
        if size > i64::from(WINDOW_MAX) {
            return Err(Violation::Overflow);
        }
        self.0 = size;
        Ok(())
    }
}

/// What the peer may send: given by us, and given again as bytes leave us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReceiveWindow {
    /// How much it is meant to hold.
    size: u32,
    /// What the peer may still send.
    left: u32,
    /// What has left us and was not given back yet.
    owed: u32,
}

impl ReceiveWindow {
    /// A window of `size`, at most 2^31-1.
    pub fn new(size: u32) -> Self {
        let size = size.min(WINDOW_MAX);
        Self {
            size,
            left: size,
            owed: 0,
        }
    }

    /// DATA came, its padding counted.
    ///
    /// # Errors
    /// [`Violation::Exceeded`] above what is left.
    #[inline]
    pub fn receive(&mut self, bytes: u32) -> Result<(), Violation> {
        self.left = self.left.checked_sub(bytes).ok_or(Violation::Exceeded)?;
        Ok(())
    }

    /// `bytes` that came have left. Answers the increment to give back, once it is worth a frame:
    /// an eighth of the window and half of what the peer has left.
    #[inline]
    pub fn release(&mut self, bytes: u32) -> Option<u32> {
        self.owed += bytes;
        debug_assert!(u64::from(self.left) + u64::from(self.owed) <= u64::from(self.size));
        if self.owed < self.size / SAY_AT_LEAST || self.owed < self.left / 2 || self.owed == 0 {
            return None;
        }
        self.left += self.owed;
        Some(std::mem::take(&mut self.owed))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_send_window_goes_below_zero_and_never_above_the_largest() {
        let mut window = SendWindow::new(WINDOW_DEFAULT);
        window.take(60_000);
        window.shift(-65_535).unwrap();
        assert_eq!(window.available(), 0);
        window.widen(60_000).unwrap();
        assert_eq!(window.available(), 0, "60,000 were sent of 0");
        window.widen(1).unwrap();
        assert_eq!(window.available(), 1);
        assert_eq!(window.widen(WINDOW_MAX), Err(Violation::Overflow));
        assert_eq!(window.available(), 1, "a refused increment changes nothing");
        window.widen(WINDOW_MAX - 1).unwrap();
    }

    #[test]
    fn a_receive_window_is_given_back_in_pieces_worth_a_frame() {
        let mut window = ReceiveWindow::new(1000);
        window.receive(400).unwrap();
        assert_eq!(window.release(124), None, "less than an eighth");
        assert_eq!(window.release(100), None, "less than half of what is left");
        assert_eq!(window.release(76), Some(300));
        assert_eq!(window.receive(901), Err(Violation::Exceeded));
        window.receive(900).unwrap();
        assert_eq!(window.release(1000), Some(1000));
        assert_eq!(ReceiveWindow::new(0).release(0), None);
    }

    proptest! {
        /// A sender that obeys never exceeds, and one whose bytes all leave never stands still.
        #[test]
        fn an_obedient_sender_is_served(
            size in 1u32..100_000,
            pieces in prop::collection::vec(1u32..20_000, 1..200),
        ) {
            let mut theirs = SendWindow::new(size);
            let mut ours = ReceiveWindow::new(size);
            for piece in pieces {
                let mut left = piece;
                while left > 0 {
                    let sent = left.min(u32::try_from(theirs.available()).unwrap());
                    prop_assert!(sent > 0, "stuck");
                    theirs.take(sent as usize);
                    ours.receive(sent).unwrap();
                    left -= sent;
                    if let Some(increment) = ours.release(sent) {
                        theirs.widen(increment).unwrap();
                    }
                }
            }
        }
    }
}
