//! What a home says to the executor of an attempt: the first word of a stream, then what is new.

use futures_util::stream;

use crate::pb;
use crate::pb::execute_request::Step as Ask;
use crate::runtime::watch;
use crate::task::descendants::Given;
use crate::task::doors::Steps;

/// What the shard has to say to the executor; only the newest counts.
#[derive(Clone, Debug, Default)]
pub(super) struct Said {
    /// Updates up to this one are on disk.
    pub(super) ack: u64,
    /// Stop, and why.
    pub(super) abort: Option<String>,
    /// What the attempt has been given to be made below it.
    pub(super) given: Given,
    /// The attempt is over for the home.
    pub(super) release: bool,
}

/// Waits until the shard lets go of the attempt.
pub(super) async fn released(said: &mut watch::Receiver<Said>) {
    // An error means that the shard is gone, and the attempt with it.
    drop(said.wait_for(|said| said.release).await);
}

/// The first word, then what the shard says, until it lets go.
pub(super) fn steps(first: Ask, said: watch::Receiver<Said>) -> Steps {
    struct Pen {
        first: Option<Ask>,
        said: watch::Receiver<Said>,
        acked: u64,
        given: Given,
        aborted: bool,
    }
    impl Pen {
        fn next(&mut self) -> Option<Ask> {
            if let Some(first) = self.first.take() {
                return Some(first);
            }
            let said = self.said.borrow_and_update();
            if said.ack > self.acked {
                self.acked = said.ack;
                return Some(Ask::Ack(pb::Ack { update: said.ack }));
            }
            let given = said.given;
            if std::mem::replace(&mut self.given, given) != given {
                return Some(Ask::DescendantsGranted(given.into()));
            }
            let reason = said.abort.clone().filter(|_| !self.aborted)?;
            self.aborted = true;
            Some(Ask::Abort(pb::Abort { reason }))
        }
    }
    let pen = Pen {
        first: Some(first),
        said,
        acked: 0,
        given: Given::default(),
        aborted: false,
    };
    Box::pin(stream::unfold(pen, |mut pen| async move {
        loop {
            if let Some(step) = pen.next() {
                return Some((pb::ExecuteRequest { step: Some(step) }, pen));
            }
            if pen.said.borrow().release || pen.said.changed().await.is_err() {
                return None;
            }
        }
    }))
}
