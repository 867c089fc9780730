//! Looks names up, on threads that nobody can cut off: whoever asked may have gone long before the
//! answer. So few at once that there are threads left for other work, and fewer for one name.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::task::spawn_blocking;

use super::super::desk::PER_PLACE;

/// Most addresses of a name that are looked at.
const ADDRESSES_MAX: usize = 16;
/// Names that are looked up at once.
const LOOKUPS: usize = 32;
/// Of these, looks at one name: as many as there may be tries at one place.
const PER_NAME: usize = PER_PLACE;

/// What is being looked up. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Lookups {
    names: Arc<Mutex<BTreeMap<String, usize>>>,
}

impl Lookups {
    /// Addresses of a name, as the system has them.
    ///
    /// # Errors
    /// When there is none, or nobody to ask, or too much is being looked up.
    pub(super) async fn look_up(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let name = host.to_owned();
        let ask = move || {
            Ok((name, port)
                .to_socket_addrs()?
                .take(ADDRESSES_MAX)
                .collect())
        };
        self.begin(host, ask).await
    }

    async fn begin<T: Send + 'static>(
        &self,
        host: &str,
        ask: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let begun = self.enter(host)?;
        let asked = spawn_blocking(move || {
            // It is over when the thread is, whoever still waits for it.
            let _begun = begun;
            ask()
        });
        asked.await.map_err(io::Error::other)?
    }

    fn enter(&self, host: &str) -> io::Result<Begun> {
        let mut names = self.names.lock();
        let here = names.get(host).copied().unwrap_or_default();
        if here >= PER_NAME || names.values().sum::<usize>() >= LOOKUPS {
            return Err(io::Error::other("too many names are being looked up"));
        }
        names.insert(host.to_owned(), here + 1);
        Ok(Begun {
            host: host.to_owned(),
            lookups: self.clone(),
        })
    }
}

/// A look that is under way.
struct Begun {
    host: String,
    lookups: Lookups,
}

impl Drop for Begun {
    fn drop(&mut self) {
        let mut names = self.lookups.names.lock();
        if let Some(count) = names.get_mut(&self.host) {
            *count -= 1;
            if *count == 0 {
                names.remove(&self.host);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[test]
    fn all_tries_at_one_place_may_look_its_name_up_at_once() {
        let lookups = Lookups::default();
        let looks: Vec<_> = (0..PER_PLACE)
            .map(|_| lookups.enter("well.example"))
            .collect();
        assert!(looks.iter().all(Result::is_ok));
    }

    #[tokio::test]
    async fn looks_that_nobody_waits_for_any_more_still_count() {
        let lookups = Lookups::default();
        let mut held = Vec::new();
        // A server that does not answer: the try ends, the thread does not.
        let mut hang = async |host: &str| {
            let (let_go, wait) = mpsc::channel::<()>();
            held.push(let_go);
            let asked = lookups.begin(host, move || wait.recv().map_err(io::Error::other));
            timeout(Duration::from_millis(1), asked).await
        };
        for _ in 0..PER_NAME {
            assert!(hang("dead.example").await.is_err(), "it does not answer");
        }
        let refused = hang("dead.example").await.unwrap().unwrap_err();
        assert!(refused.to_string().contains("too many"), "{refused}");
        assert!(lookups.begin("well.example", || Ok(())).await.is_ok());
        for number in 0..LOOKUPS - PER_NAME {
            assert!(hang(&format!("dead{number}.example")).await.is_err());
        }
        let refused = hang("well.example").await.unwrap().unwrap_err();
        assert!(refused.to_string().contains("too many"), "{refused}");
        drop(held);
        while !lookups.names.lock().is_empty() {
            tokio::task::yield_now().await;
        }
        assert!(lookups.begin("dead.example", || Ok(())).await.is_ok());
    }
}
