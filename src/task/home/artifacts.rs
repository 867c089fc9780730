//! The artifacts of a task: what each is called, and which events its content came in. Pure.

use std::sync::Arc;

use prost::Message;

use crate::pb;

use super::kept::{CHUNK_BYTES, Kept};

/// An artifact: what it is called, and the events that its content came in.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct KeptArtifact {
    /// Without parts.
    pub(super) summary: pb::Artifact,
    pub(super) chunks: Vec<Arc<pb::TaskEvent>>,
}

impl Kept {
    /// The artifact that goes by this id now.
    pub(super) fn artifact(&self, id: &str) -> Option<&KeptArtifact> {
        let named = |kept: &&KeptArtifact| kept.summary.artifact_id == id;
        self.artifacts.iter().rev().find(named)
    }

    /// Takes in what an event says of an artifact.
    pub(super) fn chunk(&mut self, chunk: &pb::ArtifactChunk, event: &Arc<pb::TaskEvent>) {
        let size = part_bytes(chunk.part.as_ref());
        self.content += size + CHUNK_BYTES;
        for kept in &mut self.artifacts {
            kept.summary.superseded |= begins_anew(kept, chunk, event.attempt);
        }
        let open = |kept: &KeptArtifact| {
            kept.summary.artifact_id == chunk.artifact_id && !kept.summary.superseded
        };
        let place = self.artifacts.iter().position(open).unwrap_or_else(|| {
            self.artifacts.push(KeptArtifact {
                summary: pb::Artifact {
                    artifact_id: chunk.artifact_id.clone(),
                    name: chunk.name.clone(),
                    description: chunk.description.clone(),
                    attempt: event.attempt,
                    ..pb::Artifact::default()
                },
                chunks: Vec::new(),
            });
            self.artifacts.len() - 1
        });
        let artifact = &mut self.artifacts[place];
        artifact.summary.size += size as u64;
        artifact.summary.complete |= chunk.last_chunk;
        artifact.chunks.push(event.clone());
    }
}

impl KeptArtifact {
    /// The attempt that last wrote to it.
    pub(super) fn last_attempt(&self) -> u32 {
        let last = self.chunks.last();
        last.map_or(self.summary.attempt, |event| event.attempt)
    }
}

/// Whether a chunk of this attempt begins an artifact anew that earlier ones, which asked, had made:
/// work that begins anew makes the same once more. Whoever goes on with it appends.
pub(super) fn begins_anew(before: &KeptArtifact, chunk: &pb::ArtifactChunk, attempt: u32) -> bool {
    let same = before.summary.artifact_id == chunk.artifact_id;
    same && !chunk.append && before.last_attempt() < attempt
}

/// Bytes of a part's content, without its frame.
pub(super) fn part_bytes(part: Option<&pb::Part>) -> usize {
    match part.and_then(|part| part.content.as_ref()) {
        Some(pb::part::Content::Text(text)) => text.len(),
        Some(pb::part::Content::Raw(raw)) => raw.len(),
        Some(pb::part::Content::Url(url)) => url.len(),
        Some(pb::part::Content::Data(value)) => value.encoded_len(),
        Some(pb::part::Content::Blob(blob)) => usize::try_from(blob.size).unwrap_or(usize::MAX),
        None => 0,
    }
}
