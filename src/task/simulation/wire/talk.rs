//! One call at an [`End`]: gRPC's messages on a stream, each way at the pace of whoever reads.
//!
//! A window is given back as a reader takes bytes, so one that does not read holds its stream up.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use prost::Message;
use tokio::time::{Instant, timeout};

use crate::h2::connection::Role;
use crate::h2::frame::ErrorCode;
use crate::h2::hpack::{Fields, Name};
use crate::h2::slab::Key;

use super::end::{End, State};
use super::said::Said;

/// A message's prefix: whether it is compressed, and its length.
const PREFIX: usize = 5;
/// No stream stands still for so long whose connection lives and whose other end reads: a connection
/// that nothing passes on is given up in half of that.
const STARVED: Duration = Duration::from_secs(60);
/// Of messages, those with ballast: they go beyond windows, of streams and in the end of connections.
const LADEN: f64 = 0.1;
/// Most bytes of it: several windows.
const BALLAST: usize = 16 << 10;
/// In a field that no message of ours has: its number 2047, and that bytes follow.
const BALLAST_FIELD: [u8; 2] = [0xfa, 0x7f];

/// What has come on a stream, and who waits for it.
#[derive(Default)]
pub(super) struct Talk {
    /// While it may be open.
    pub(super) stream: Option<Key>,
    head: Option<Fields>,
    trailers: Option<Fields>,
    bytes: Vec<u8>,
    /// What of it the window has not got back.
    owed: u32,
    /// Nothing more comes.
    ended: bool,
    over: Option<Over>,
    reader: Option<Waker>,
    sender: Option<Waker>,
    /// Nobody reads it any more: what comes is dropped.
    unread: bool,
    /// Of its halves, those that are dropped.
    dropped: u8,
}

/// How a call ended before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::task::simulation) enum Over {
    /// The peer has reset it; or we have, because the peer broke a rule.
    Reset(ErrorCode, bool),
    /// The connection is gone.
    Lost,
}

impl Talk {
    pub(super) fn hear(&mut self, fields: &Fields, trailers: bool, end: bool) {
        let place = if trailers {
            &mut self.trailers
        } else {
            &mut self.head
        };
        *place = Some(fields.clone());
        self.ended |= end;
        self.rouse_reader();
    }

    /// What has come; answers what of it goes back to the window at once.
    pub(super) fn take(&mut self, data: &[u8], flow: u32, end: bool) -> u32 {
        self.ended |= end;
        if self.unread {
            return flow;
        }
        self.bytes.extend_from_slice(data);
        self.owed += flow;
        self.rouse_reader();
        0
    }

    pub(super) fn reset(&mut self, code: ErrorCode, ours: bool) {
        self.over.get_or_insert(Over::Reset(code, ours));
        self.rouse_reader();
        self.rouse_sender();
    }

    pub(super) fn lose(&mut self) {
        self.over.get_or_insert(Over::Lost);
        self.rouse_reader();
        self.rouse_sender();
    }

    fn rouse_reader(&mut self) {
        self.reader.take().into_iter().for_each(Waker::wake);
    }

    pub(super) fn rouse_sender(&mut self) {
        self.sender.take().into_iter().for_each(Waker::wake);
    }
}

impl State {
    fn talk(&mut self, call: Key) -> &mut Talk {
        let talk = self.talks.get_mut(call);
        talk.expect("a call stays while one of its halves does")
    }

    /// Ends a stream that is still open.
    fn hang_up(&mut self, call: Key, code: ErrorCode) {
        let talk = self.talk(call);
        if talk.over.is_some() {
            return;
        }
        talk.over = Some(Over::Reset(code, false));
        talk.rouse_reader();
        talk.rouse_sender();
        let Some(stream) = talk.stream else { return };
        match self.connection.role() {
            Role::Client => self.connection.give_up(stream, code, Instant::now()),
            Role::Server => self.connection.reset(stream, code),
        }
    }

    fn drop_half(&mut self, call: Key) {
        let talk = self.talk(call);
        talk.dropped += 1;
        if talk.dropped == 2 {
            self.talks.remove(call);
        }
    }
}

/// What is sent on a call.
pub(in crate::task::simulation) struct Writing {
    end: Arc<End>,
    call: Key,
    said: Option<Arc<Said>>,
    sent_end: bool,
}

impl Writing {
    pub(super) fn new(end: Arc<End>, call: Key) -> Self {
        Self {
            end,
            call,
            said: None,
            sent_end: false,
        }
    }

    /// What is sent is written down there.
    pub(super) fn noted(&mut self, said: Option<Arc<Said>>) {
        self.said = said;
    }

    /// Sends a message; whether the call still is.
    pub(super) async fn message(&mut self, message: &impl Message) -> bool {
        let mut bytes = vec![0; PREFIX];
        message
            .encode(&mut bytes)
            .expect("a vector takes everything");
        let ballast = self.end.ballast(LADEN, BALLAST);
        if ballast > 0 {
            bytes.extend(BALLAST_FIELD);
            prost::encoding::encode_varint(ballast as u64, &mut bytes);
            bytes.resize(bytes.len() + ballast, 0);
        }
        let length = u32::try_from(bytes.len() - PREFIX).expect("messages here are small");
        bytes[1..PREFIX].copy_from_slice(&length.to_be_bytes());
        if let Some(said) = &self.said {
            said.says(self.end.role, &bytes);
        }
        self.send(&bytes, false).await
    }

    /// Ends a request.
    pub(super) async fn end(&mut self) {
        self.sent_end = true;
        self.send(&[], true).await;
    }

    async fn send(&mut self, bytes: &[u8], last: bool) -> bool {
        let mut at = 0;
        loop {
            match timeout(STARVED, self.some(&bytes[at..], last)).await {
                Ok(Some(sent)) => at += sent,
                Ok(None) => return false,
                Err(_) => {
                    let slow = self.said.as_ref().is_none_or(|said| said.is_slow());
                    if !slow {
                        let how = "E3: a stream moves no more, and nobody has ended it";
                        self.end.breach(how.into());
                    }
                }
            }
            if at == bytes.len() {
                return true;
            }
        }
    }

    /// Sends as much as goes, once any does; `None`: the call is over.
    async fn some(&mut self, bytes: &[u8], last: bool) -> Option<usize> {
        poll_fn(|cx| {
            let state = &mut *self.end.state.lock();
            let talk = state.talk(self.call);
            let Some(stream) = talk.stream.filter(|_| talk.over.is_none()) else {
                return Poll::Ready(None);
            };
            let sent = state
                .connection
                .send_data(stream, bytes, last, Instant::now());
            if sent.is_some() {
                self.end.wake();
                return Poll::Ready(sent);
            }
            if state.connection.stream(stream).is_none() {
                return Poll::Ready(None);
            }
            state.talk(self.call).sender = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Sends an answer's head, or the end of one.
    pub(super) fn fields(&mut self, fields: &Fields, end: bool) {
        self.sent_end |= end;
        let state = &mut *self.end.state.lock();
        if let Some(stream) = state.talk(self.call).stream {
            state.connection.send_fields(stream, fields, false, end);
        }
        self.end.wake();
    }

    /// Waits until nobody wants it any longer.
    pub(super) async fn unwanted(&self) {
        poll_fn(|cx| {
            let state = &mut *self.end.state.lock();
            let talk = state.talk(self.call);
            if talk.over.is_some() {
                return Poll::Ready(());
            }
            talk.sender = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        let state = &mut *self.end.state.lock();
        if !self.sent_end {
            state.hang_up(self.call, ErrorCode::Cancel);
        }
        state.drop_half(self.call);
        self.end.wake();
    }
}

/// What comes on a call. Dropped by whoever made the call, it is given up.
pub(in crate::task::simulation) struct Reading {
    end: Arc<End>,
    call: Key,
    said: Option<Arc<Said>>,
    bytes: Vec<u8>,
}

/// What was read.
pub(super) enum Read<M> {
    Message(M),
    /// All of it came; trailers where there are any.
    Whole(Option<Fields>),
    Over(Over),
}

impl Reading {
    pub(super) fn new(end: Arc<End>, call: Key) -> Self {
        Self {
            end,
            call,
            said: None,
            bytes: Vec::new(),
        }
    }

    /// What is read is held against what was written down there.
    pub(super) fn noted(&mut self, said: Option<Arc<Said>>) {
        self.said = said;
    }

    /// The head, once it has come.
    pub(super) async fn head(&mut self) -> Result<Fields, Over> {
        poll_fn(|cx| {
            let state = &mut *self.end.state.lock();
            let talk = state.talk(self.call);
            if let Some(head) = talk.head.take() {
                return Poll::Ready(Ok(head));
            }
            if let Some(over) = talk.over {
                self.check_over(over);
                return Poll::Ready(Err(over));
            }
            talk.reader = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Whether nothing more will come.
    pub(super) fn ended(&self) -> bool {
        self.end.state.lock().talk(self.call).ended
    }

    /// The next message.
    pub(super) async fn next<M: Message + Default>(&mut self) -> Read<M> {
        poll_fn(|cx| {
            if let Some(message) = self.whole() {
                return Poll::Ready(Read::Message(message));
            }
            self.fill();
            if let Some(message) = self.whole() {
                return Poll::Ready(Read::Message(message));
            }
            let end = Arc::clone(&self.end);
            let state = &mut *end.state.lock();
            let talk = state.talk(self.call);
            if talk.ended {
                let trailers = talk.trailers.take();
                self.check_end(trailers.as_ref());
                return Poll::Ready(Read::Whole(trailers));
            }
            if let Some(over) = talk.over {
                self.check_over(over);
                return Poll::Ready(Read::Over(over));
            }
            talk.reader = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Takes what has come, and gives it back to the window.
    fn fill(&mut self) {
        let state = &mut *self.end.state.lock();
        let talk = state.talk(self.call);
        self.bytes.append(&mut talk.bytes);
        let (owed, stream) = (std::mem::take(&mut talk.owed), talk.stream);
        if let Some(stream) = stream.filter(|_| owed > 0) {
            state.connection.release_stream(stream, owed);
            self.end.wake();
        }
    }

    /// Nobody has looked at it, says the peer: then nobody may have.
    fn check_over(&self, over: Over) {
        let refused = matches!(over, Over::Reset(ErrorCode::RefusedStream, _));
        if refused && self.said.as_ref().is_some_and(|said| said.is_taken()) {
            let how = "E5: a call was taken, and given back as if it was not";
            self.end.breach(how.into());
        }
    }

    /// All of it came, says the stream: then all of it has to be here.
    fn check_end(&self, trailers: Option<&Fields>) {
        // Whoever passes the call on may have ended it, and says so.
        let good = self.end.role == Role::Server
            || trailers.is_some_and(|fields| fields.get(Name::GrpcStatus) == Some(b"0"));
        let said = self.said.as_ref();
        let missing = said.is_some_and(|said| !said.all_heard(self.end.role));
        if good && (missing || !self.bytes.is_empty()) {
            let how = "E2: a stream ended well, and not all of it has come";
            self.end.breach(how.into());
        }
    }

    /// A message that is whole.
    fn whole<M: Message + Default>(&mut self) -> Option<M> {
        let prefix = self.bytes.get(..PREFIX)?;
        let length = u32::from_be_bytes(prefix[1..].try_into().expect("four of five bytes"));
        let whole = PREFIX + length as usize;
        if prefix[0] != 0 || length > 1 << 20 {
            self.end
                .breach(format!("E2: no message begins like this: {prefix:?}"));
        }
        let message = self.bytes.get(..whole)?;
        let said = self.said.as_ref();
        if said.is_some_and(|said| !said.hears(self.end.role, message)) {
            let how = "E2: a message came that was not sent, or not then";
            self.end.breach(how.into());
        }
        let message = M::decode(&message[PREFIX..]);
        self.bytes.drain(..whole);
        message
            .inspect_err(|wrong| {
                self.end
                    .breach(format!("E2: a message came as none: {wrong}"));
            })
            .ok()
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.fill();
        let state = &mut *self.end.state.lock();
        if self.end.role == Role::Client {
            state.hang_up(self.call, ErrorCode::Cancel);
        }
        state.talk(self.call).unread = true;
        state.drop_half(self.call);
        self.end.wake();
    }
}
