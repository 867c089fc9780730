//! The newest value, for whoever follows it: tokio's own. Where tests are compiled, those who wait
//! are woken in the order in which they came; tokio's are woken in one that no seed decides.

#[cfg(not(test))]
pub use tokio::sync::watch::{Receiver, Sender, channel};

#[cfg(test)]
pub use ordered::{Receiver, Sender, channel};

/// What the task engine uses of tokio's, over it.
#[cfg(test)]
mod ordered {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use tokio::sync::{Notify, watch};

    /// Whoever sent is gone.
    #[derive(Debug)]
    pub struct Gone;

    #[derive(Debug, Default)]
    struct Shared {
        version: AtomicU64,
        closed: AtomicBool,
        changed: Notify,
    }

    /// Changes the value.
    #[derive(Debug)]
    pub struct Sender<T> {
        inner: watch::Sender<T>,
        shared: Arc<Shared>,
    }

    /// Follows the value.
    #[derive(Clone, Debug)]
    pub struct Receiver<T> {
        inner: watch::Receiver<T>,
        shared: Arc<Shared>,
        seen: u64,
    }

    /// A value and its first follower.
    pub fn channel<T>(value: T) -> (Sender<T>, Receiver<T>) {
        let sender = Sender::new(value);
        let receiver = sender.subscribe();
        (sender, receiver)
    }

    impl<T> Sender<T> {
        /// A value that nobody follows yet.
        pub fn new(value: T) -> Self {
            Self {
                inner: watch::Sender::new(value),
                shared: Arc::default(),
            }
        }

        /// A follower that has seen the value as it is.
        pub fn subscribe(&self) -> Receiver<T> {
            Receiver {
                inner: self.inner.subscribe(),
                shared: Arc::clone(&self.shared),
                seen: self.shared.version.load(Ordering::SeqCst),
            }
        }

        /// Changes it.
        pub fn send_modify(&self, change: impl FnOnce(&mut T)) {
            self.inner.send_modify(change);
            self.shared.version.fetch_add(1, Ordering::SeqCst);
            self.shared.changed.notify_waiters();
        }

        /// Puts another in its place.
        pub fn send_replace(&self, value: T) -> T {
            let mut before = value;
            self.send_modify(|now| std::mem::swap(now, &mut before));
            before
        }

        /// The value as it is.
        pub fn borrow(&self) -> watch::Ref<'_, T> {
            self.inner.borrow()
        }

        /// Whether nobody follows it.
        pub fn is_closed(&self) -> bool {
            self.inner.is_closed()
        }
    }

    impl<T> Drop for Sender<T> {
        fn drop(&mut self) {
            self.shared.closed.store(true, Ordering::SeqCst);
            self.shared.changed.notify_waiters();
        }
    }

    impl<T> Receiver<T> {
        /// The value as it is.
        pub fn borrow(&self) -> watch::Ref<'_, T> {
            self.inner.borrow()
        }

        /// The same, seen.
        pub fn borrow_and_update(&mut self) -> watch::Ref<'_, T> {
            self.seen = self.shared.version.load(Ordering::SeqCst);
            self.inner.borrow_and_update()
        }

        /// Waits for a value that was not seen.
        pub async fn changed(&mut self) -> Result<(), Gone> {
            loop {
                let shared = Arc::clone(&self.shared);
                let changed = shared.changed.notified();
                let version = shared.version.load(Ordering::SeqCst);
                if version != self.seen {
                    self.seen = version;
                    return Ok(());
                }
                if shared.closed.load(Ordering::SeqCst) {
                    return Err(Gone);
                }
                changed.await;
            }
        }

        /// Waits for a value that is wanted.
        pub async fn wait_for(
            &mut self,
            mut wanted: impl FnMut(&T) -> bool,
        ) -> Result<watch::Ref<'_, T>, Gone> {
            while !wanted(&self.borrow_and_update()) {
                self.changed().await?;
            }
            Ok(self.inner.borrow())
        }
    }
}
