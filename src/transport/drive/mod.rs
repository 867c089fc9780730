//! Connections driven: IO, wake-ups and one clock around an [`Exchange`], on one thread.
//!
//! Owns when bytes are read and written: a connection's driver reads all there is, lets the exchange
//! take all whole frames, writes all there is to write in one go, and wakes each other driver that
//! got something to send at most once. Refuses to accept, to dial, to spawn and to decide: whoever
//! runs a [`Core`] gives it byte streams, makes the connections that [`Core::next_dial`] asks for,
//! and lets [`Core::keep_time`] run beside them. `hub` does, and the task engine's simulation.

mod driver;

#[cfg(test)]
mod tests;

use std::{fmt, sync::Arc, task::Waker};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

pub(crate) use self::driver::Driver;
use crate::h2::{
    connection::Config,
    exchange::{Dial, Exchange, Policy},
    slab::Key,
};

/// What is read at once: TLS hands out 16 KiB records, and a batch of them is one wake-up.
const READ: usize = 256 << 10;

/// An exchange and the drivers of its lines. There is one per core of the machine, and all its drivers
/// run on one thread: its locks are for the compiler, and never waited for.
pub struct Core<P: Policy> {
    exchange: Mutex<Exchange<P>>,
    /// The driver of each line, by the line's place.
    drivers: Mutex<Vec<Option<Waker>>>,
    dirty: Mutex<Vec<Key>>,
    scratch: Mutex<Vec<u8>>,
    dials: Mutex<Vec<Dial>>,
    dialing: Notify,
    /// When the clock will look again.
    alarm: Mutex<Option<Instant>>,
    sooner: Notify,
}

impl<P: Policy> fmt::Debug for Core<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core").finish_non_exhaustive()
    }
}

impl<P: Policy> Core<P> {
    /// Without connections.
    pub fn new(policy: P) -> Arc<Self> {
        Arc::new(Self {
            exchange: Mutex::new(Exchange::new(policy, Instant::now())),
            drivers: Mutex::default(),
            dirty: Mutex::default(),
            scratch: Mutex::new(vec![0; READ]),
            dials: Mutex::default(),
            dialing: Notify::new(),
            alarm: Mutex::default(),
            sooner: Notify::new(),
        })
    }

    /// Looks at the exchange, or tells it something; drivers that got something to do are woken.
    pub fn with<T>(&self, look: impl FnOnce(&mut Exchange<P>) -> T) -> T {
        let answer = look(&mut self.exchange.lock());
        self.spread();
        answer
    }

    /// A connection that somebody has made.
    pub(crate) fn accept<IO>(
        self: &Arc<Self>,
        io: IO,
        peer: P::Peer,
        config: Config,
    ) -> Driver<IO, P> {
        let line = self.with(|exchange| exchange.accept(peer, config, Instant::now()));
        Driver::new(Arc::clone(self), line, io)
    }

    /// A connection that was dialed. Where none could be made, say [`Exchange::closed`] for its line
    /// instead.
    pub(crate) fn dialed<IO>(self: &Arc<Self>, io: IO, line: Key) -> Driver<IO, P> {
        self.with(|exchange| exchange.connected(line, Instant::now()));
        Driver::new(Arc::clone(self), line, io)
    }

    /// A connection that was to be dialed and cannot be made.
    pub(crate) fn gone(&self, line: Key) {
        self.with(|exchange| exchange.closed(line, Instant::now()));
    }

    /// The next connection to be made.
    pub async fn next_dial(&self) -> Dial {
        loop {
            let dial = self.dials.lock().pop();
            if let Some(dial) = dial {
                return dial;
            }
            self.dialing.notified().await;
        }
    }

    /// Keeps the deadlines of all calls and connections. Never ends.
    pub async fn keep_time(&self) {
        loop {
            let next = self.exchange.lock().next_deadline();
            *self.alarm.lock() = next;
            match next {
                None => self.sooner.notified().await,
                Some(at) => {
                    tokio::select! {
                        biased;
                        () = self.sooner.notified() => continue,
                        () = tokio::time::sleep_until(at) => {}
                    }
                }
            }
            self.with(|exchange| exchange.on_time(Instant::now()));
        }
    }

    /// After the exchange was told something: whoever has something to do is told, once.
    fn spread(&self) {
        let mut exchange = self.exchange.lock();
        let mut dirty = self.dirty.lock();
        exchange.take_dirty(&mut dirty);
        let drivers = self.drivers.lock();
        for line in dirty.drain(..) {
            if let Some(Some(driver)) = drivers.get(line.index()) {
                driver.wake_by_ref();
            }
        }
        while let Some(dial) = exchange.next_dial() {
            self.dials.lock().push(dial);
            self.dialing.notify_one();
        }
        let next = exchange.next_deadline();
        let earlier = match (next, *self.alarm.lock()) {
            (Some(next), Some(alarm)) => next < alarm,
            (Some(_), None) => true,
            (None, _) => false,
        };
        if earlier {
            *self.alarm.lock() = next;
            self.sooner.notify_one();
        }
    }

    fn register(&self, line: Key, waker: &Waker) {
        let mut drivers = self.drivers.lock();
        if drivers.len() <= line.index() {
            drivers.resize(line.index() + 1, None);
        }
        match &mut drivers[line.index()] {
            Some(known) if known.will_wake(waker) => {}
            known => *known = Some(waker.clone()),
        }
    }
}
