//! One call of the agent, from dialling to its last word, as one thing to wait for.

use std::{future::pending, pin::Pin};

use tokio_stream::StreamExt as _;
use tonic::Status;

use super::course::Said;
use super::handler::{HandleStream, HandlerError};

type Opening = Pin<Box<dyn Future<Output = Result<HandleStream, HandlerError>> + Send>>;
/// One call of the handler.
pub(super) enum Handler {
    Opening(Opening),
    Open(HandleStream),
    Closed,
}

/// What came of it.
pub(super) enum Heard {
    Opened,
    Said(Said),
}

impl Handler {
    /// What it says next; nothing is lost when this is dropped.
    pub(super) async fn next(&mut self) -> Heard {
        match self {
            Self::Opening(opening) => match opening.await {
                Ok(stream) => {
                    *self = Self::Open(stream);
                    Heard::Opened
                }
                Err(error) => {
                    *self = Self::Closed;
                    Heard::Said(Said::Failed(error))
                }
            },
            Self::Open(stream) => Heard::Said(match stream.next().await {
                Some(Ok(update)) => Said::Update(update),
                Some(Err(error)) => Said::Failed(error),
                None => Said::Ended,
            }),
            Self::Closed => pending().await,
        }
    }
}

/// Asks a handler to stop.
pub(super) type Asking = Pin<Box<dyn Future<Output = Result<(), Status>> + Send>>;

/// What the agent answers; waits for ever where it is not asked.
pub(super) async fn ask(asking: &mut Option<Asking>) -> Result<(), Status> {
    match asking {
        Some(asking) => asking.await,
        None => pending().await,
    }
}
