//! The data path's threads: one current-thread runtime per core.
//!
//! Two workers of a multi-thread runtime cost twice the CPU per call and double the latency of a
//! lone caller, since every wake-up may cross cores.

use std::{io, thread};

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

use super::Nursery;

/// One runtime per thread; stopped and joined when dropped.
#[derive(Debug)]
pub struct DataThreads {
    threads: Vec<(Handle, Option<thread::JoinHandle<()>>)>,
    stop: CancellationToken,
}

impl DataThreads {
    /// Starts `count` threads, at least one.
    ///
    /// # Errors
    /// When the system gives no thread or no event queue.
    pub fn start(count: usize) -> io::Result<Self> {
        let stop = CancellationToken::new();
        let mut threads = Vec::new();
        for place in 0..count.max(1) {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let handle = runtime.handle().clone();
            let stopped = stop.clone();
            let thread = thread::Builder::new()
                .name(format!("data-{place}"))
                .spawn(move || runtime.block_on(stopped.cancelled_owned()))?;
            threads.push((handle, Some(thread)));
        }
        Ok(Self { threads, stop })
    }

    /// How many threads suit this machine: one per core.
    pub fn per_core() -> usize {
        thread::available_parallelism().map_or(1, usize::from)
    }

    /// The runtimes, one per thread, in a stable order.
    pub fn handles(&self) -> impl Iterator<Item = &Handle> {
        self.threads.iter().map(|(handle, _)| handle)
    }

    /// One empty nursery on each thread, in that order.
    pub fn nurseries(&self) -> Vec<Nursery> {
        self.handles()
            .map(|handle| Nursery::on(handle.clone()))
            .collect()
    }

    /// How many there are, at least one.
    pub fn count(&self) -> usize {
        self.threads.len()
    }
}

impl Drop for DataThreads {
    fn drop(&mut self) {
        self.stop.cancel();
        for (_, thread) in &mut self.threads {
            if let Some(thread) = thread.take()
                && thread.join().is_err()
            {
                tracing::error!("a data thread ended in a panic");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_handle_is_a_thread_of_its_own() {
        let threads = DataThreads::start(2).unwrap();
        let names: Vec<_> = threads
            .handles()
            .map(|handle| {
                let (tell, told) = std::sync::mpsc::channel();
                handle.spawn(async move { tell.send(thread::current().name().map(String::from)) });
                told.recv().unwrap().unwrap()
            })
            .collect();
        assert_eq!(names, ["data-0", "data-1"]);
    }
}
