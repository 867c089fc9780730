//! Calls to one target. A call that no peer can have processed is sent again; no other is.

use std::{
    error::Error as _,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response, Uri, request::Parts, uri::Scheme};
use hyper::client::conn::TrySendError;
use rustls::ClientConfig;
use tonic::{Status, body::Body};

use crate::domain::Fault;
use crate::domain::Reason;
use crate::runtime::Nursery;
use crate::telemetry::metrics::pool::Dials;
use crate::transport::alive::Alive;
use crate::transport::answer::{Answer, harmless};
use crate::transport::dial::{Owner, Wrap, dial, speak};
use crate::transport::entry::Link;
use crate::transport::error::fault_of;
use crate::transport::lifetime::Sightings;
use crate::transport::pool::{Inner, Target};
use crate::transport::replay::{Recording, Replay};

/// Sendings of one call at most: each needs another connection that goes away under it.
const SENDINGS: usize = 4;

/// A gRPC channel for generated clients: a tower service. Clones share the connection.
///
/// Its errors are [`Status`]es; the reasons `PEER_UNREACHABLE` and `PEER_MISMATCH` say that nothing
/// was sent, so the call may go elsewhere.
#[derive(Clone, Debug)]
pub struct Channel {
    way: Way,
}

#[derive(Clone, Debug)]
enum Way {
    Pooled(Arc<Inner>, Arc<Target>),
    Fixed(Link),
}

impl Channel {
    pub(super) fn pooled(pool: Arc<Inner>, target: Arc<Target>) -> Self {
        Self {
            way: Way::Pooled(pool, target),
        }
    }

    async fn send(self, request: Request<Body>) -> Result<Response<Answer>, Status> {
        let (head, body) = request.into_parts();
        let recording = Recording::new(body);
        let mut last = None;
        for _ in 0..SENDINGS {
            let link = self.way.link().await?;
            let Some(body) = recording.play() else { break };
            let request = Request::from_parts(addressed(head.clone(), &link), body);
            match link.sender.clone().try_send_request(request).await {
                Ok(response) => {
                    recording.settle();
                    return Ok(harmless(response));
                }
                Err(error) => match judge(error, &recording) {
                    Verdict::Unsent { spent, why } => {
                        if spent {
                            link.spend();
                        }
                        last = Some(why);
                    }
                    Verdict::Lost(why) => return Err(lost(&why)),
                },
            }
        }
        let why = last.unwrap_or_default();
        let text = format!("the peer takes no call, nothing was processed: {why}");
        Err(Fault::new(Reason::PeerUnreachable, text).into())
    }
}

impl tower::Service<Request<Body>> for Channel {
    type Response = Response<Answer>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Status>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.clone().send(request))
    }
}

impl Way {
    async fn link(&self) -> Result<Link, Fault> {
        match self {
            Self::Pooled(pool, target) => pool.link(target).await,
            Self::Fixed(link) if link.usable() => Ok(link.clone()),
            Self::Fixed(_) => Err(Fault::new(
                Reason::PeerUnreachable,
                "the connection to the enrolment listener has ended; dial again",
            )),
        }
    }
}

/// One connection to an enrolment listener, with the keying material that both ends share.
///
/// # Errors
/// `PEER_UNREACHABLE` or `PEER_MISMATCH` when no endpoint is the right one.
pub async fn dial_enrollment(
    endpoints: &[String],
    config: Arc<ClientConfig>,
    nursery: &Nursery,
) -> Result<(Channel, [u8; 32]), Fault> {
    let owner = Owner {
        nursery: nursery.clone(),
        sightings: Sightings::default(),
        alive: Arc::new(Alive::new(Dials::new("enrollment"))),
    };
    let dialed = Box::pin(dial(endpoints, &Wrap::Tls(config), &owner, speak)).await;
    let dialed = dialed.map_err(|tried| fault_of(&tried))?;
    let exporter = dialed.exporter.ok_or_else(|| {
        let text = "the TLS connection gives no keying material";
        Fault::new(Reason::PeerUnreachable, text)
    })?;
    let way = Way::Fixed(Link::new(dialed, owner.alive.fate(), true));
    Ok((Channel { way }, exporter))
}

enum Verdict {
    /// No peer can have processed it; `spent`: nor will it on this connection.
    Unsent { spent: bool, why: String },
    /// It may have been processed.
    Lost(String),
}

/// gRFC A6's transparent retries: what never left, what a GOAWAY excludes, what was refused.
fn judge(mut error: TrySendError<Request<Replay>>, recording: &Recording) -> Verdict {
    if error.take_message().is_some() {
        let why = "the connection has ended".to_owned();
        return Verdict::Unsent { spent: true, why };
    }
    let error = error.into_error();
    let h2 = error
        .source()
        .and_then(|source| source.downcast_ref::<h2::Error>());
    let why = h2.map_or_else(|| error.to_string(), ToString::to_string);
    let told_to_go = h2.is_some_and(|h2| {
        h2.is_go_away() && h2.is_remote() && h2.reason() == Some(h2::Reason::NO_ERROR)
    });
    let refused = h2.is_some_and(|h2| h2.reason() == Some(h2::Reason::REFUSED_STREAM));
    let gone = error.is_canceled() || error.is_closed();
    if told_to_go || refused {
        Verdict::Unsent {
            spent: told_to_go,
            why,
        }
    } else if gone && recording.untouched() {
        Verdict::Unsent { spent: true, why }
    } else {
        Verdict::Lost(why)
    }
}

fn lost(why: &str) -> Status {
    let text = format!("the connection broke after the call was sent; it may have run: {why}");
    Fault::new(Reason::ConnectionLost, text).into()
}

/// HTTP/2 needs scheme and authority; generated clients give a path only.
fn addressed(mut head: Parts, link: &Link) -> Parts {
    let mut parts = std::mem::take(&mut head.uri).into_parts();
    parts.scheme = Some(if link.secure {
        Scheme::HTTPS
    } else {
        Scheme::HTTP
    });
    if parts.authority.is_none() {
        parts.authority = Some(link.authority.clone());
    }
    head.uri = Uri::from_parts(parts).unwrap_or_default();
    head
}
