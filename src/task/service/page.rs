//! Page tokens of task lists: the last task shown, bound to who asked and what for.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use prost::Message;
use uuid::Uuid;

use crate::domain::{AgentName, Fault, Label, Reason, SpiffeId};
use crate::pb;
use crate::task::journal::blobs::Hash;

/// The agent that a filter of `namespace` names, in full.
pub(super) fn named_agent(name: &str, namespace: &Label) -> Result<String, Fault> {
    let agent = AgentName::parse_in(name, namespace);
    agent
        .map(|agent| agent.to_string())
        .map_err(|wrong| Fault::field("agent", wrong.to_string()))
}

/// Binds a page token to who asks and what for. Not a secret: what is shown is decided anew.
pub(super) fn page_mark(viewer: &SpiffeId, filter: &pb::ListTasksRequest) -> u32 {
    let bare = pb::ListTasksRequest {
        page_size: 0,
        page_token: String::new(),
        ..filter.clone()
    };
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(viewer.to_string().as_bytes());
    hasher.update(&bare.encode_to_vec());
    hasher.finalize()
}

pub(super) fn page_token(last: Uuid, mark: u32) -> String {
    let mut bytes = last.into_bytes().to_vec();
    bytes.extend(mark.to_be_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

pub(super) fn read_token(token: &str, mark: u32) -> Result<Uuid, Fault> {
    let bytes = URL_SAFE_NO_PAD.decode(token).unwrap_or_default();
    let parts = bytes.split_last_chunk::<4>();
    let uuid = parts.filter(|(_, end)| **end == mark.to_be_bytes());
    uuid.and_then(|(uuid, _)| Uuid::from_slice(uuid).ok())
        .ok_or_else(|| {
            let text = "not a page token of this list: start from the first page";
            Fault {
                field: Some("page_token".into()),
                ..Fault::new(Reason::PageTokenInvalid, text)
            }
        })
}

/// The content that is asked for by its hash, instead of an artifact.
pub(super) fn content_asked(asked: &pb::ReadArtifactRequest) -> Result<Hash, Fault> {
    if !asked.artifact_id.is_empty() {
        let text = "say artifact_id or sha256, not both";
        return Err(Fault::field("sha256", text));
    }
    Hash::parse(&asked.sha256)
        .ok_or_else(|| Fault::field("sha256", "a SHA-256 has 32 bytes: BlobRef.sha256 as it is"))
}
