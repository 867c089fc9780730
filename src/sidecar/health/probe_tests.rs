//! Looks at agents whose connections lead nowhere, that take one call at a time, or that start again.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    io::copy_bidirectional,
    net::{UnixListener, UnixStream},
    sync::{Mutex, watch},
    time::timeout,
};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::service::Routes;

use super::{Probe, choice::Kind, verdict::Look};
use crate::{
    admin::health::Health,
    runtime::{Nursery, Stop},
    sidecar::Probing,
};

/// What an agent takes at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Takes {
    Everything,
    /// More wait at the client (HTTP/2's limit).
    OneStream,
    /// More are refused.
    OneCall,
}

/// An agent in a directory, and a probe of it.
struct Bench {
    dir: tempfile::TempDir,
    nursery: Nursery,
    health: Health,
    probe: Probe,
}

impl Bench {
    fn new(asked: Probing, file: &str) -> Self {
        let (dir, nursery) = (tempfile::tempdir().unwrap(), Nursery::here());
        let address = format!("unix:{}", dir.path().join(file).display());
        Self {
            probe: Probe::new(address, (asked, String::new()), nursery.clone()),
            health: Health::new(&[]),
            dir,
            nursery,
        }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    /// Serves on `agent`; dropping what it returns ends the process, so to say.
    fn serve(&self, takes: Takes) -> Nursery {
        let path = self.path("agent");
        drop(std::fs::remove_file(&path));
        let socket = UnixListener::bind(path).unwrap();
        let routes = Routes::new(self.health.service(Stop::new())).into_axum_router();
        let one = Arc::new(Mutex::new(()));
        let limited = axum::middleware::from_fn(
            move |request: axum::extract::Request, next: axum::middleware::Next| {
                let one = Arc::clone(&one);
                async move {
                    if takes != Takes::OneCall {
                        return next.run(request).await;
                    }
                    let Ok(held) = one.try_lock_owned() else {
                        return tonic::Status::resource_exhausted("one at a time").into_http();
                    };
                    let (parts, body) = next.run(request).await.into_parts();
                    let body = http_body_util::BodyExt::map_frame(body, move |frame| {
                        let _held = &held;
                        frame
                    });
                    http::Response::from_parts(parts, axum::body::Body::new(body))
                }
            },
        );
        let mut server = tonic::transport::Server::builder();
        if takes == Takes::OneStream {
            server = server.max_concurrent_streams(1);
        }
        let served = server
            .add_routes(Routes::from(routes.layer(limited)))
            .serve_with_incoming(UnixListenerStream::new(socket));
        let process = Nursery::here();
        process.adopt("agent", async move { served.await.unwrap() });
        process
    }

    async fn looks(&mut self) -> (Kind, Look) {
        let found = self.probe.look().await;
        (self.probe.kind(), found.look)
    }

    async fn end(self) {
        self.nursery.abort().await;
    }
}

/// What becomes of the connections that are open.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// They end, as with their process.
    Ended,
    /// They lead nowhere, and do not end.
    Nowhere,
}

/// Passes connections on to the agent, until their fate is told.
fn passage(bench: &Bench) -> watch::Sender<Fate> {
    let (outer, inner) = (
        UnixListener::bind(bench.path("way")).unwrap(),
        bench.path("agent"),
    );
    let cuts = watch::Sender::new(Fate::Ended);
    let (cut, nursery) = (cuts.subscribe(), bench.nursery.clone());
    bench.nursery.adopt("ways", async move {
        loop {
            let (mut near, _) = outer.accept().await.unwrap();
            let mut far = UnixStream::connect(&inner).await.unwrap();
            let mut cut = cut.clone();
            cut.mark_unchanged();
            nursery.adopt("way", async move {
                let fate = tokio::select! {
                    _ = copy_bidirectional(&mut near, &mut far) => Fate::Ended,
                    _ = cut.changed() => *cut.borrow(),
                };
                if let Fate::Nowhere = fate {
                    std::future::pending::<()>().await;
                }
            });
        }
    });
    cuts
}

#[tokio::test]
async fn a_connection_that_leads_nowhere_is_left_for_another_one() {
    for asked in [Probing::Auto, Probing::Check, Probing::Watch] {
        for well in [true, false] {
            let mut bench = Bench::new(asked, "way");
            let (process, cuts) = (bench.serve(Takes::Everything), passage(&bench));
            bench.health.set([("", well)]);
            let first = bench.looks().await.1;
            assert_eq!(first == Look::Serving, well, "{asked:?}");
            cuts.send_replace(Fate::Nowhere);
            assert_eq!(bench.looks().await.1, Look::Missed, "{asked:?} {well}");
            bench.health.set([("", true)]);
            assert_eq!(bench.looks().await.1, Look::Serving, "{asked:?} {well}");
            process.abort().await;
            bench.end().await;
        }
    }
}

/// As of an agent that is started again in the place of one that hangs.
#[tokio::test]
async fn a_connection_over_which_no_watch_is_ever_answered_is_left_for_another_one() {
    for asked in [Probing::Auto, Probing::Watch] {
        let mut bench = Bench::new(asked, "agent");
        let hangs = UnixListener::bind(bench.path("agent")).unwrap();
        assert_eq!(bench.looks().await.1, Look::Missed, "{asked:?}");
        let process = bench.serve(Takes::Everything);
        assert_eq!(bench.looks().await.1, Look::Serving, "{asked:?}");
        process.abort().await;
        bench.end().await;
        drop(hangs);
    }
}

#[tokio::test]
async fn a_watch_that_is_all_an_agent_takes_at_once_is_left_for_checks() {
    for takes in [Takes::OneStream, Takes::OneCall] {
        let mut bench = Bench::new(Probing::Auto, "agent");
        let process = bench.serve(takes);
        assert_eq!(bench.looks().await, (Kind::Watch, Look::Serving));
        assert_eq!(bench.looks().await.1, Look::Missed, "{takes:?}");
        for _ in 0..3 {
            let found = bench.looks().await;
            assert_eq!(found, (Kind::Check, Look::Serving), "{takes:?}");
        }
        process.abort().await;
        bench.end().await;
    }
}

/// Between two looks, and before the prober hears of the end.
#[tokio::test]
async fn a_restart_between_two_looks_is_seen_by_the_next_one() {
    for asked in [Probing::Watch, Probing::Check, Probing::Connect] {
        let mut bench = Bench::new(asked, "way");
        let (process, cuts) = (bench.serve(Takes::Everything), passage(&bench));
        assert_eq!(bench.looks().await.1, Look::Serving, "{asked:?}");
        // A way that is open waits for its fate too.
        while cuts.receiver_count() < 2 {
            tokio::task::yield_now().await;
        }
        cuts.send_replace(Fate::Ended);
        // Long enough for the connection to hear of its end, and nobody asks it.
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        let seen = async {
            while bench.looks().await.1 == Look::Serving {
                tokio::task::yield_now().await;
            }
        };
        let seen = timeout(Duration::from_secs(10), seen).await;
        assert!(seen.is_ok(), "{asked:?}: the restart is not seen");
        assert_eq!(bench.looks().await.1, Look::Serving, "{asked:?}");
        process.abort().await;
        bench.end().await;
    }
}
