//! Counts of the gRPC calls that this process makes to other members.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_util::Stream;
use tonic::{Code, Status};

use super::calls::{Codes, Method};
use super::{Sheet, Source, family};

/// Calls made so far. Clones are the same.
#[derive(Clone, Debug)]
pub struct PeerCalls {
    codes: Arc<[Codes]>,
}

impl Default for PeerCalls {
    fn default() -> Self {
        Self {
            codes: Method::all().map(|_| Codes::default()).collect(),
        }
    }
}

impl PeerCalls {
    /// A call of ours begins; what is returned counts it when it is dropped.
    pub fn begin(&self, method: Method) -> PeerCall {
        PeerCall {
            calls: self.clone(),
            method,
            code: None,
        }
    }
}

impl Source for PeerCalls {
    fn write(&self, sheet: &mut Sheet<'_>) {
        let made = Method::all().zip(self.codes.iter());
        let made = made.filter(|(_, codes)| !codes.is_empty());
        let rows = made.flat_map(|(method, codes)| {
            let rows = codes.rows();
            rows.map(move |(code, count)| ([method.service, method.name, code], count))
        });
        sheet.counter(&family::PEER_CALLS, rows);
    }
}

/// A call to another member. Dropped without an end it was given up by us.
#[derive(Debug)]
pub struct PeerCall {
    calls: PeerCalls,
    method: Method,
    code: Option<Code>,
}

impl PeerCall {
    /// How it ended; passes it on.
    ///
    /// # Errors
    /// The status that it was given.
    pub fn ended<T>(mut self, outcome: Result<T, Status>) -> Result<T, Status> {
        self.code = Some(outcome.as_ref().map_or_else(Status::code, |_| Code::Ok));
        outcome
    }

    /// It has opened a stream, and ends with it.
    pub fn follows<S>(self, stream: S) -> Followed<S> {
        Followed { stream, call: self }
    }
}

impl Drop for PeerCall {
    fn drop(&mut self) {
        let code = self.code.unwrap_or(Code::Cancelled);
        self.calls.codes[self.method.place()].count(code);
    }
}

/// A stream that another member sends.
#[derive(Debug)]
pub struct Followed<S> {
    stream: S,
    call: PeerCall,
}

impl<T, S: Stream<Item = Result<T, Status>> + Unpin> Stream for Followed<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<S::Item>> {
        let next = ready!(Pin::new(&mut self.stream).poll_next(context));
        match &next {
            Some(Ok(_)) => {}
            Some(Err(status)) => self.call.code = Some(status.code()),
            None => {
                self.call.code.get_or_insert(Code::Ok);
            }
        }
        Poll::Ready(next)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{StreamExt, stream};

    use super::*;
    use crate::telemetry::metrics::{Format, Metrics};

    #[tokio::test]
    async fn calls_are_counted_by_how_they_ended() {
        let calls = PeerCalls::default();
        let begin = || calls.begin(Method::of("/attache.v1.Registry/Watch"));
        begin().ended(Ok(())).unwrap();
        begin()
            .ended::<()>(Err(Status::unavailable("")))
            .unwrap_err();
        drop(begin());
        let whole = begin().follows(stream::iter([Ok(1), Ok(2)]));
        assert_eq!(whole.count().await, 2);
        let broken = begin().follows(stream::iter([Ok(1), Err(Status::unavailable(""))]));
        assert_eq!(broken.count().await, 2);
        let mut left = begin().follows(stream::iter([Ok(1), Ok(2)]));
        left.next().await.unwrap().unwrap();
        drop(left);
        let metrics = Metrics::new("sidecar");
        metrics.add(calls);
        let page = metrics.page(Format::Text);
        for (code, count) in [("OK", 2), ("UNAVAILABLE", 2), ("CANCELLED", 2)] {
            let row = format!(
                "attache_peer_calls_total{{service=\"attache.v1.Registry\",method=\"Watch\",code=\"{code}\"}} {count}"
            );
            assert!(page.contains(&row), "{row}\n{page}");
        }
    }
}
