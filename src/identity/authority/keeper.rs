//! Follows the CA's directory: rotations are asked for there, by whoever may write to it.

use std::{sync::Arc, time::Duration};

use super::Authority;
use crate::identity::credentials::Credentials;
use crate::runtime::{Stop, clock};

/// How often the directory is looked at: a prepared root begins to sign that late at most.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Takes in what the directory says, and has `credentials` trust the same roots as the members,
/// until `stop`.
pub async fn keep(authority: Arc<Authority>, credentials: Credentials, stop: Stop) {
    let mut said = String::new();
    loop {
        let refreshed = authority.refresh(clock::wall());
        let trusted = credentials.trust(authority.bundle(), authority.former());
        let wrong = [
            refreshed.err().map(|error| error.to_string()),
            trusted.err().map(|error| error.to_string()),
        ];
        let wrong: Vec<_> = wrong.into_iter().flatten().collect();
        let wrong = wrong.join("; ");
        // Said when it changes: it is looked at every second.
        if wrong != said && !wrong.is_empty() {
            tracing::error!(
                wrong,
                "the CA's directory cannot be followed; what was known stays"
            );
        }
        said = wrong;
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}
