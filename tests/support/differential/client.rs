//! The near end: makes the calls on one connection and keeps what came back.

use std::{future::poll_fn, net::SocketAddr, time::Duration};

use attache::runtime::Nursery;
use bytes::Bytes;
use h2::{
    Reason, RecvStream, SendStream,
    client::{ResponseFuture, SendRequest},
};
use http::{HeaderValue, Method, Request, Version};
use tokio::{net::TcpStream, time::timeout};

use super::super::through;
use super::{
    Seen, TIMEOUT,
    plan::{Cut, Plan},
    server::{ended, fields, read, send},
};

/// Bound of a call: far above what any takes.
const LIMIT: Duration = Duration::from_secs(20);
const WINDOW: u32 = 256 << 10;

/// A connection that calls share.
#[derive(Clone)]
pub struct Line(SendRequest<Bytes>);

impl Line {
    pub async fn connect(at: SocketAddr) -> Self {
        let socket = TcpStream::connect(at).await.unwrap();
        socket.set_nodelay(true).unwrap();
        let mut builder = h2::client::Builder::new();
        builder
            .enable_push(false)
            .initial_window_size(WINDOW)
            .initial_connection_window_size(4 * WINDOW)
            .max_header_list_size(64 << 10);
        let (sender, connection) = builder.handshake(socket).await.unwrap();
        Nursery::here().adopt("differential client", async move {
            // Calls tell how it ended.
            drop(connection.await);
        });
        Self(sender)
    }

    /// Carries out a plan; what came back.
    pub async fn call(&self, plan: &Plan) -> Seen {
        let mut seen = Seen::default();
        let called = timeout(LIMIT, Box::pin(self.carry_out(plan, &mut seen))).await;
        seen.end = match called {
            Ok(Ok(())) => "end".to_owned(),
            Ok(Err(error)) => ended(&error),
            Err(_) => "no end came".to_owned(),
        };
        seen
    }

    async fn carry_out(&self, plan: &Plan, seen: &mut Seen) -> Result<(), h2::Error> {
        let mut sender = self.0.clone();
        poll_fn(|cx| sender.poll_ready(cx)).await?;
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = format!("http://differential.test/attache.test.Any/{:?}", plan.kind)
            .parse()
            .unwrap();
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = plan.request.clone();
        // The last four are the mesh's: whom the call is for, who calls (as it will be told), which
        // work it belongs to, and how long it may take. To others they are metadata like any.
        let fixed = [
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            (through::KEY, through::NAME),
            ("attache-caller", through::CALLER),
            ("attache-correlation-id", "work-1"),
            ("grpc-timeout", TIMEOUT),
        ];
        for (key, value) in fixed {
            request
                .headers_mut()
                .insert(key, HeaderValue::from_static(value));
        }
        let ends = plan.asks.is_empty() && !plan.late_end;
        let (response, mut stream) = sender.send_request(request, ends)?;
        if plan.cut == Some(Cut::Client) {
            return self.cancel(plan, response, stream, ends, seen).await;
        }
        let (sent, received) = tokio::join!(ask(plan, &mut stream, ends), receive(response, seen),);
        // A server that has reset the call says more than that it takes no more of it.
        received.and(sent)
    }

    /// Cancels once all that is to come before it is here.
    async fn cancel(
        &self,
        plan: &Plan,
        response: ResponseFuture,
        mut stream: SendStream<Bytes>,
        ended: bool,
        seen: &mut Seen,
    ) -> Result<(), h2::Error> {
        let wanted: usize = plan.answers.iter().map(Vec::len).sum();
        let asking = async {
            for message in &plan.asks {
                send(&mut stream, message).await?;
            }
            if !plan.late_end && !ended {
                stream.send_data(Bytes::new(), true)?;
            }
            Ok::<_, h2::Error>(())
        };
        let receiving = async {
            let mut body = head(response, seen).await?;
            while seen.body.len() < wanted && read(&mut body, seen).await?.is_some() {}
            Ok::<_, h2::Error>(body)
        };
        let (sent, body) = tokio::join!(asking, receiving);
        sent?;
        let _body = body?;
        stream.send_reset(Reason::CANCEL);
        Ok(())
    }
}

async fn ask(plan: &Plan, stream: &mut SendStream<Bytes>, ended: bool) -> Result<(), h2::Error> {
    for message in &plan.asks {
        send(stream, message).await?;
    }
    if !ended {
        stream.send_data(Bytes::new(), true)?;
    }
    Ok(())
}

async fn head(response: ResponseFuture, seen: &mut Seen) -> Result<RecvStream, h2::Error> {
    let (parts, body) = response.await?.into_parts();
    seen.headers = fields(
        &parts.headers,
        [(":status", parts.status.as_str().to_owned())],
    );
    Ok(body)
}

async fn receive(response: ResponseFuture, seen: &mut Seen) -> Result<(), h2::Error> {
    let mut body = head(response, seen).await?;
    while read(&mut body, seen).await?.is_some() {}
    Ok(())
}
