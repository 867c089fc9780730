//! What is kept of a request so that it can be sent again: bounded, and given up beyond.

use crate::h2::hpack::Fields;

/// Request bytes that are kept per call: enough for nearly every unary call, and what Linkerd
/// takes. A call that has sent more is not sent again.
const BODY_MAX: usize = 64 << 10;
/// A buffer is used for another call up to this size.
const REUSE: usize = 16 << 10;

/// A request as it came.
#[derive(Debug, Default)]
pub struct Kept {
    /// Its header section, as the policy has left it.
    pub head: Fields,
    body: Vec<u8>,
    spilled: bool,
}

impl Kept {
    /// The body so far, if it is all here.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// Whether everything that came is here.
    pub fn whole(&self) -> bool {
        !self.spilled
    }

    /// More of the body came.
    #[inline]
    pub fn add(&mut self, bytes: &[u8]) {
        if self.spilled {
            return;
        }
        if self.body.len() + bytes.len() > BODY_MAX {
            self.give_up();
        } else {
            self.body.extend_from_slice(bytes);
        }
    }

    /// It will not be sent again: nothing more is kept.
    pub fn give_up(&mut self) {
        self.spilled = true;
        if self.body.capacity() > REUSE {
            self.body = Vec::new();
        }
        self.body.clear();
    }

    /// Whether it may serve another call, empty.
    #[must_use]
    pub fn emptied(mut self) -> Option<Self> {
        if self.body.capacity() > REUSE || self.head.size() > REUSE {
            return None;
        }
        self.head.clear();
        self.body.clear();
        self.spilled = false;
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_kept_up_to_a_bound_and_its_buffers_serve_the_next() {
        let mut kept = Kept::default();
        kept.add(&[1; BODY_MAX]);
        assert!(kept.whole() && kept.body().len() == BODY_MAX);
        kept.add(&[1]);
        assert!(!kept.whole() && kept.body().is_empty());
        let mut kept = kept.emptied().unwrap();
        assert!(kept.whole());
        kept.add(&[1; REUSE * 2]);
        assert!(kept.emptied().is_none(), "too large to be kept for ever");
    }
}
