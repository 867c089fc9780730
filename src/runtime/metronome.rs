//! Beats at even distances, on a thread of its own: timers of the runtime are a millisecond coarse.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use tokio::time::Instant;

/// A running beat; ends when dropped.
#[derive(Debug)]
pub struct Metronome {
    thread: Option<thread::JoinHandle<()>>,
    ended: Arc<AtomicBool>,
}

impl Metronome {
    /// Calls `due` with the number of beats that have come due since it was called last: beat `n`
    /// is due `interval * n` seconds after `began`. A thread that wakes late is told of them all.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        began: Instant,
        interval: f64,
        mut due: impl FnMut(u64) + Send + 'static,
    ) -> io::Result<Self> {
        let ended = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&ended);
        let beating = move || {
            let mut next = 0_u64;
            while !told.load(Ordering::Relaxed) {
                let now = Instant::now();
                let first = next;
                while at(began, interval, next) <= now {
                    next += 1;
                }
                if next > first {
                    due(next - first);
                }
                thread::park_timeout(at(began, interval, next).saturating_duration_since(now));
            }
        };
        let thread = thread::Builder::new().name("metronome".to_owned());
        Ok(Self {
            thread: Some(thread.spawn(beating)?),
            ended,
        })
    }
}

/// When beat `number` is due.
pub fn at(began: Instant, interval: f64, number: u64) -> Instant {
    // Exact for the first 2^53 beats.
    let offset = interval * u32::try_from(number).map_or(number as f64, f64::from);
    began + Duration::try_from_secs_f64(offset).unwrap_or(Duration::MAX / 4)
}

impl Drop for Metronome {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            if thread.join().is_err() {
                tracing::error!("a metronome ended in a panic");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beats_come_when_due_and_all_of_them() {
        let (tell, told) = std::sync::mpsc::channel();
        let began = Instant::now();
        let beating = Metronome::start(began, 0.001, move |beats| {
            tell.send(beats).ok();
        });
        let mut beats = 0;
        while beats < 50 {
            beats += told.recv().unwrap();
            assert!(at(began, 0.001, beats - 1) <= Instant::now(), "too early");
        }
        drop(beating.unwrap());
        assert!(told.iter().sum::<u64>() < 100_000, "it has an end");
    }
}
