//! Large parts: taken out of what is recorded, told from others, and put back. Pure.
//!
//! In memory and on disk a large part is a reference: hash, size and what it is, beside its media type
//! and its names. Sizes that bound a task count what is referred to.

use bytes::Bytes;
use prost::Message;

use crate::pb;
use crate::pb::BlobKind;
use crate::pb::journal::record::Kind as Recorded;
use crate::pb::part::Content;
use crate::pb::task_event::Kind;

use super::journal::blobs::{Blob, Hash};

/// The parts of an event.
pub fn of_event(event: &pb::TaskEvent) -> &[pb::Part] {
    match &event.kind {
        Some(Kind::Message(message) | Kind::Answer(message)) => &message.parts,
        Some(Kind::Artifact(chunk)) => chunk.part.as_slice(),
        Some(Kind::Result(result)) => &result.parts,
        Some(Kind::Delegation(delegation)) => &delegation.input,
        Some(Kind::Question(question)) => {
            let message = question.message.as_ref();
            message.map_or(&[], |message| &message.parts)
        }
        Some(
            Kind::StateChanged(_)
            | Kind::Progress(_)
            | Kind::Usage(_)
            | Kind::Failure(_)
            | Kind::CancelRequested(_),
        )
        | None => &[],
    }
}

/// The same, to be changed.
pub fn of_event_mut(event: &mut pb::TaskEvent) -> &mut [pb::Part] {
    match &mut event.kind {
        Some(Kind::Message(message) | Kind::Answer(message)) => &mut message.parts,
        Some(Kind::Artifact(chunk)) => chunk.part.as_mut_slice(),
        Some(Kind::Result(result)) => &mut result.parts,
        Some(Kind::Delegation(delegation)) => &mut delegation.input,
        Some(Kind::Question(question)) => match &mut question.message {
            Some(message) => &mut message.parts,
            None => &mut [],
        },
        Some(
            Kind::StateChanged(_)
            | Kind::Progress(_)
            | Kind::Usage(_)
            | Kind::Failure(_)
            | Kind::CancelRequested(_),
        )
        | None => &mut [],
    }
}

/// Takes contents of more than `large` bytes out of a record that is to be written, and leaves
/// references. What is written anew is as it was: it names what it names already.
pub fn cut(kind: &mut Recorded, large: usize) -> Vec<Blob> {
    let parts = match kind {
        Recorded::Submitted(submitted) => match &mut submitted.spec {
            Some(spec) => &mut spec.input[..],
            None => &mut [],
        },
        Recorded::Event(pb::TaskEvent {
            // All of it is small, and is shown in lists.
            kind: Some(Kind::Question(_)),
            ..
        }) => &mut [],
        Recorded::Event(event) => of_event_mut(event),
        Recorded::Dispatched(_)
        | Recorded::Checkpoint(_)
        | Recorded::NotStarted(_)
        | Recorded::Returned(_)
        | Recorded::Forgotten(_)
        | Recorded::Copied(_)
        | Recorded::Snapshot(_)
        | Recorded::Granted(_)
        | Recorded::Promised(_)
        | Recorded::Anew(_)
        | Recorded::Told(_)
        | Recorded::GaveUp(_) => &mut [],
    };
    parts
        .iter_mut()
        .filter_map(|part| cut_part(part, large))
        .collect()
}

/// The same for one part.
pub fn cut_part(part: &mut pb::Part, large: usize) -> Option<Blob> {
    let (kind, bytes): (BlobKind, Bytes) = match &mut part.content {
        Some(Content::Text(text)) if text.len() > large => {
            (BlobKind::Text, std::mem::take(text).into())
        }
        // A copy: it may be a piece of a larger message, which would stay in memory with it.
        Some(Content::Raw(raw)) if raw.len() > large => {
            (BlobKind::Raw, Bytes::copy_from_slice(raw))
        }
        Some(Content::Data(value)) if value.encoded_len() > large => {
            (BlobKind::Data, value.encode_to_vec().into())
        }
        Some(
            Content::Text(_)
            | Content::Raw(_)
            | Content::Data(_)
            | Content::Url(_)
            | Content::Blob(_),
        )
        | None => return None,
    };
    let blob = Blob::new(bytes);
    part.content = Some(Content::Blob(pb::BlobRef {
        sha256: blob.hash.as_bytes().to_vec(),
        size: blob.bytes.len() as u64,
        kind: kind.into(),
    }));
    Some(blob)
}

/// What a part refers to; `None`: it holds its content itself.
pub fn reference(part: &pb::Part) -> Option<&pb::BlobRef> {
    match &part.content {
        Some(Content::Blob(blob)) => Some(blob),
        _ => None,
    }
}

/// The content that a reference names.
pub fn hash_of(blob: &pb::BlobRef) -> Option<Hash> {
    Hash::parse(&blob.sha256)
}

/// All that these parts name.
pub fn named(parts: &[pb::Part]) -> impl Iterator<Item = Hash> {
    parts.iter().filter_map(reference).filter_map(hash_of)
}

/// Bytes of what these parts refer to.
pub fn beyond(parts: &[pb::Part]) -> usize {
    let sizes = parts.iter().filter_map(reference).map(|blob| blob.size);
    usize::try_from(sizes.sum::<u64>()).unwrap_or(usize::MAX)
}

/// Puts a content back in place of its reference; `false`: it is not what the reference says.
pub fn fill(part: &mut pb::Part, bytes: Bytes) -> bool {
    let Some(blob) = reference(part) else {
        return true;
    };
    let content = match blob.kind() {
        BlobKind::Text => String::from_utf8(bytes.into()).ok().map(Content::Text),
        BlobKind::Raw => Some(Content::Raw(bytes)),
        BlobKind::Data => prost_types::Value::decode(bytes).ok().map(Content::Data),
        BlobKind::Unspecified => None,
    };
    let fits = content.is_some();
    if fits {
        part.content = content;
    }
    fits
}

/// Whether the parts say the same, be their contents in them or referred to.
pub fn same(some: &[pb::Part], others: &[pb::Part]) -> bool {
    let bare = |parts: &[pb::Part]| -> Vec<pb::Part> {
        let mut parts = parts.to_vec();
        for part in &mut parts {
            drop(cut_part(part, 0));
        }
        parts
    };
    some == others || some.len() == others.len() && bare(some) == bare(others)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts() -> Vec<pb::Part> {
        let value = crate::wire::json::to_value(serde_json::json!({"b": [1, "zwei"], "a": null}));
        let contents = [
            Content::Text("grüße".into()),
            Content::Raw(Bytes::from_static(b"\0\xff bytes")),
            Content::Data(value),
            Content::Url("https://example.org/as-long-as-it-may-be".into()),
        ];
        let parts = contents.into_iter().enumerate();
        let parts = parts.map(|(place, content)| pb::Part {
            content: Some(content),
            media_type: format!("x/{place}"),
            filename: "../../etc/passwd".into(),
            ..pb::Part::default()
        });
        parts.collect()
    }

    #[test]
    fn what_was_taken_out_comes_back_and_counts_meanwhile() {
        for part in parts() {
            let mut cut = part.clone();
            let Some(blob) = cut_part(&mut cut, 6) else {
                assert!(matches!(part.content, Some(Content::Url(_))), "{part:?}");
                assert_eq!(cut, part);
                continue;
            };
            assert_eq!(
                (&cut.media_type, &cut.filename),
                (&part.media_type, &part.filename)
            );
            assert_eq!(beyond(std::slice::from_ref(&cut)), blob.bytes.len());
            assert_eq!(
                named(std::slice::from_ref(&cut)).collect::<Vec<_>>(),
                [blob.hash]
            );
            assert!(same(
                std::slice::from_ref(&cut),
                std::slice::from_ref(&part)
            ));
            let again = cut_part(&mut cut.clone(), 0);
            assert_eq!(again, None, "a reference is none any more");
            assert!(fill(&mut cut, blob.bytes.clone()));
            assert_eq!(cut, part);
            let large = blob.bytes.len();
            assert_eq!(cut_part(&mut cut, large), None, "as large as it may be");
        }
    }

    #[test]
    fn a_content_that_is_not_what_its_reference_says_is_not_taken() {
        let mut part = pb::Part {
            content: Some(Content::Blob(pb::BlobRef {
                kind: BlobKind::Text.into(),
                ..pb::BlobRef::default()
            })),
            ..pb::Part::default()
        };
        let before = part.clone();
        assert!(!fill(&mut part, Bytes::from_static(b"\xff")));
        assert_eq!(part, before);
    }

    #[test]
    fn every_kind_of_event_with_large_parts_gives_them_up() {
        let part = || pb::Part {
            content: Some(Content::Text("0123456789".into())),
            ..pb::Part::default()
        };
        let message = || pb::Message {
            parts: vec![part()],
            ..pb::Message::default()
        };
        for kind in [
            Kind::Message(message()),
            Kind::Answer(message()),
            Kind::Artifact(pb::ArtifactChunk {
                part: Some(part()),
                ..pb::ArtifactChunk::default()
            }),
            Kind::Result(pb::TaskResult {
                parts: vec![part()],
                ..pb::TaskResult::default()
            }),
            Kind::Delegation(pb::Delegation {
                input: vec![part()],
                ..pb::Delegation::default()
            }),
        ] {
            let mut event = pb::TaskEvent {
                kind: Some(kind),
                ..pb::TaskEvent::default()
            };
            assert_eq!(of_event_mut(&mut event).len(), 1);
            let mut record = Recorded::Event(event);
            let blobs = cut(&mut record, 9);
            let Recorded::Event(event) = record else {
                panic!()
            };
            assert_eq!(blobs.len(), 1, "{event:?}");
            assert_eq!(named(of_event(&event)).collect::<Vec<_>>(), [blobs[0].hash]);
        }
    }
}
