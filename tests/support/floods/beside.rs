//! A client with manners, beside the others: how long its calls take.

use std::{
    future::poll_fn,
    sync::{Arc, Mutex},
    time::Duration,
};

use attache::runtime::{Nursery, Stop};
use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use tokio::time::{Instant, timeout};

use super::connect;

/// Above this a call has failed.
const LIMIT: Duration = Duration::from_secs(10);

/// Calls that go on until it is asked for what they took.
pub struct Beside {
    took: Arc<Mutex<Vec<Duration>>>,
    failed: Arc<Mutex<Vec<String>>>,
    stop: Stop,
    nursery: Nursery,
}

/// What became of its calls.
#[derive(Clone, Debug)]
pub struct Fared {
    pub calls: usize,
    pub p50: Duration,
    pub p99: Duration,
    pub failed: Vec<String>,
}

impl Beside {
    /// Calls `path` with an empty message at `address`, one call after the other, on a connection
    /// of its own.
    pub async fn start(address: &str, authority: &str, path: &str) -> Self {
        let nursery = Nursery::here();
        let io = connect(address).await;
        let (sender, connection) = h2::client::handshake(io).await.unwrap();
        nursery.adopt("well-behaved connection", async move {
            // Its calls tell how it ended.
            drop(connection.await);
        });
        let one = Self {
            took: Arc::default(),
            failed: Arc::default(),
            stop: Stop::new(),
            nursery,
        };
        let (took, failed) = (Arc::clone(&one.took), Arc::clone(&one.failed));
        let stop = one.stop.clone();
        let uri = format!("http://{authority}{path}");
        one.nursery.adopt("well-behaved client", async move {
            while !stop.is_cancelled() {
                let began = Instant::now();
                match timeout(LIMIT, unary(sender.clone(), &uri)).await {
                    Ok(Ok(())) => took.lock().unwrap().push(began.elapsed()),
                    Ok(Err(error)) => {
                        failed.lock().unwrap().push(error.to_string());
                        return;
                    }
                    Err(_) => failed.lock().unwrap().push("no answer".to_owned()),
                }
            }
        });
        one
    }

    /// What its calls take from now on for this long.
    pub async fn fared_for(&self, time: Duration) -> Fared {
        self.fared();
        tokio::time::sleep(time).await;
        self.fared()
    }

    /// What its calls took since it was asked last.
    pub fn fared(&self) -> Fared {
        let mut took = std::mem::take(&mut *self.took.lock().unwrap());
        took.sort_unstable();
        let share = |part: usize| {
            took.get(took.len() * part / 100)
                .copied()
                .unwrap_or_default()
        };
        Fared {
            calls: took.len(),
            p50: share(50),
            p99: share(99),
            failed: std::mem::take(&mut *self.failed.lock().unwrap()),
        }
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// One call whose status has to be OK.
async fn unary(mut sender: SendRequest<Bytes>, uri: &str) -> Result<(), h2::Error> {
    poll_fn(|cx| sender.poll_ready(cx)).await?;
    let request = Request::post(uri)
        .header("te", "trailers")
        .header("content-type", "application/grpc")
        .body(());
    let (response, mut stream) = sender.send_request(request.unwrap(), false)?;
    stream.send_data(Bytes::from_static(&[0; 5]), true)?;
    let (head, mut body) = response.await?.into_parts();
    while let Some(piece) = body.data().await {
        let length = piece?.len();
        body.flow_control().release_capacity(length)?;
    }
    let trailers = body.trailers().await?;
    let status = trailers
        .as_ref()
        .unwrap_or(&head.headers)
        .get("grpc-status");
    match status.is_some_and(|status| status == "0") {
        true => Ok(()),
        false => Err(h2::Reason::INTERNAL_ERROR.into()),
    }
}
