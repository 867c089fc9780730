//! Large content of tasks: by reference in memory, log and archive, and whole for everybody else.

use std::{path::Path, sync::Arc, time::Duration};

use futures_util::StreamExt;

use crate::domain::{Fault, Reason, SpiffeId, TaskId};
use crate::pb;
use crate::pb::execute_request::Step;
use crate::pb::handle_response::Update;
use crate::pb::part::Content;
use crate::pb::task_update::Update as Shown;
use crate::task::journal::blobs::Hash;
use crate::task::parts::beyond;

use super::config::Submission;
use super::drive_tests::{Bench, until};
use super::tests::{own, spec, text};

/// Above what stands in a record, and what fits into a chunk.
const LARGE: usize = 100 << 10;

fn raw(filled: u8, len: usize) -> pb::Part {
    pb::Part {
        content: Some(Content::Raw(vec![filled; len].into())),
        media_type: "application/x-test".into(),
        ..pb::Part::default()
    }
}

fn chunk(filled: u8, append: bool) -> Update {
    Update::Artifact(pb::ArtifactChunk {
        artifact_id: "a".into(),
        part: Some(raw(filled, LARGE)),
        append,
        ..pb::ArtifactChunk::default()
    })
}

fn result(parts: Vec<pb::Part>) -> Update {
    Update::Result(pb::TaskResult {
        parts,
        ..pb::TaskResult::default()
    })
}

async fn submit(bench: &Bench, input: Vec<pb::Part>) -> TaskId {
    let asked = Submission {
        spec: pb::TaskSpec {
            input,
            ..spec(pb::TaskOptions::default())
        },
        caller: own(),
        trace: None,
    };
    let made = bench.home.submit(asked, 0).await.unwrap();
    made.task.id.parse().unwrap()
}

/// Runs a task to its end; gives what its agent was given.
async fn run(
    bench: &mut Bench,
    input: Vec<pb::Part>,
    says: Vec<Update>,
) -> (TaskId, Vec<pb::Part>) {
    let id = submit(bench, input).await;
    let mut opened = bench.next().await;
    let Step::Start(start) = opened.step().await else {
        panic!()
    };
    opened.accept().await;
    for (number, update) in (1..).zip(says) {
        opened.update(number, update).await;
        opened.acked(number).await;
    }
    let inputs = start.handle.unwrap().inputs;
    (id, inputs.into_iter().flat_map(|said| said.parts).collect())
}

async fn events(bench: &Bench, id: &TaskId) -> Vec<pb::TaskEvent> {
    let updates = bench.watch(id, 0).await.unwrap();
    let events = updates.filter_map(|update| async {
        match update.unwrap().update {
            Some(Shown::Event(event)) => Some(event),
            _ => None,
        }
    });
    events.collect().await
}

async fn content(
    bench: &Bench,
    id: &TaskId,
    viewer: &SpiffeId,
    (hash, offset): (Hash, u64),
) -> Result<Vec<u8>, Fault> {
    let viewer = Arc::new(viewer.clone());
    let pieces = bench.home.read_content(id, &viewer, hash, offset).await?;
    let mut whole = Vec::new();
    let mut pieces = std::pin::pin!(pieces);
    while let Some(piece) = pieces.next().await {
        match piece?.content {
            Some(Content::Raw(raw)) => {
                assert!(raw.len() <= 128 << 10);
                whole.extend_from_slice(&raw);
            }
            Some(Content::Text(text)) => whole.extend_from_slice(text.as_bytes()),
            other => panic!("{other:?}"),
        }
    }
    Ok(whole)
}

async fn artifact(bench: &Bench, id: &TaskId, offset: u64) -> Vec<u8> {
    let viewer = Arc::new(own());
    let pieces = bench.home.read_artifact(id, &viewer, "a", offset).await;
    let pieces: Vec<_> = pieces.unwrap().collect().await;
    let pieces = pieces
        .into_iter()
        .map(|piece| match piece.unwrap().content {
            Some(Content::Raw(raw)) => raw.to_vec(),
            other => panic!("{other:?}"),
        });
    pieces.flatten().collect()
}

/// All that is told of the task, whoever has it now.
async fn check(bench: &Bench, id: &TaskId, whole: &[pb::TaskEvent]) {
    assert!(events(bench, id).await == whole);
    let viewer = Arc::new(own());
    let (task, truncated) = bench.home.get(id, &viewer, true).await.unwrap();
    assert!(!truncated);
    assert!(task.messages[0].parts == [raw(1, 300_000), text("and a word")]);
    assert!(task.result.unwrap().parts == [raw(9, 200_000)]);
    let joined = [vec![2; LARGE], vec![3; LARGE]].concat();
    let [made] = &task.artifacts[..] else {
        panic!()
    };
    assert_eq!(made.size, 2 * LARGE as u64);
    assert_eq!(made.parts.len(), 1);
    assert!(made.parts[0].content == Some(Content::Raw(joined.clone().into())));
    assert!(artifact(bench, id, 0).await == joined);
    for offset in [1, LARGE - 1, LARGE, LARGE + 1, 2 * LARGE - 1] {
        assert!(artifact(bench, id, offset as u64).await == joined[offset..]);
    }
    let input = vec![1; 300_000];
    let hash = Hash::of(&input);
    for offset in [0, 1, 131_072, 299_999, 300_000, 300_001] {
        let read = content(bench, id, &own(), (hash, offset)).await.unwrap();
        assert!(read == input[input.len().min(usize::try_from(offset).unwrap())..]);
    }
}

#[tokio::test]
async fn large_content_is_read_whole_from_memory_after_a_restart_and_from_the_archive() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::on_disk(dir.path(), &["i1"]);
    let input = vec![raw(1, 300_000), text("and a word")];
    let says = vec![
        chunk(2, false),
        chunk(3, true),
        result(vec![raw(9, 200_000)]),
    ];
    let (id, given) = run(&mut bench, input.clone(), says).await;
    assert!(given == input, "the agent is given all of it");
    let whole = events(&bench, &id).await;
    assert_eq!(whole.len(), 4);
    check(&bench, &id, &whole).await;
    let blobs = bench.home.blobs().unwrap();
    let stats = blobs.stats();
    let sum = (300_000 + 2 * LARGE + 200_000) as u64;
    assert_eq!((stats.blobs, stats.bytes, stats.disk_bytes), (4, sum, sum));
    bench.stop().await;

    let bench = Bench::on_disk(dir.path(), &["i1"]);
    check(&bench, &id, &whole).await;
    bench.stop().await;
    let bench = Bench::archived(dir.path(), &["i1"]);
    bench.moved(1).await;
    check(&bench, &id, &whole).await;
    let bytes = bench.home.archive().unwrap().stats().bytes;
    assert!((sum..sum + (16 << 10)).contains(&bytes), "{bytes} of {sum}");
    bench.stop().await;
    let bench = Bench::archived(dir.path(), &["i1"]);
    check(&bench, &id, &whole).await;
    let blobs = bench.home.blobs().unwrap();
    assert_eq!(blobs.stats().blobs, 4);
    // The last that names it.
    let late = crate::runtime::clock::wall() + Duration::from_secs(2 * 3600);
    bench.home.archive().unwrap().retire(late).unwrap();
    until("nothing is left of it", || blobs.stats().disk_bytes == 0).await;
    bench.stop().await;
}

#[tokio::test]
async fn a_hash_is_no_right() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::on_disk(dir.path(), &["i1"]);
    let secret = vec![7; 300_000];
    let hash = Hash::of(&secret);
    let (theirs, _) = run(&mut bench, vec![raw(7, 300_000)], vec![result(vec![])]).await;
    let (other, _) = run(&mut bench, vec![text("no more")], vec![result(vec![])]).await;
    let stranger: SpiffeId = "spiffe://attache.local/ns/elsewhere/agent/nosy"
        .parse()
        .unwrap();
    let reason = |read: Result<Vec<u8>, Fault>| read.unwrap_err();
    // Neither by a task that one may not see, nor by one that does not name it: and the answer is
    // that to a hash that nobody knows.
    let unseen = reason(content(&bench, &theirs, &stranger, (hash, 0)).await);
    assert_eq!(unseen.reason, Reason::TaskNotFound);
    let unnamed = reason(content(&bench, &other, &own(), (hash, 0)).await);
    let unknown = reason(content(&bench, &other, &own(), (Hash::of(b"?"), 0)).await);
    assert_eq!(unnamed.reason, Reason::ArtifactNotFound);
    assert_eq!(unnamed, unknown);
    assert!(content(&bench, &theirs, &own(), (hash, 0)).await.unwrap() == secret);
    // Nor can anybody submit one.
    let named = pb::Part {
        content: Some(Content::Blob(pb::BlobRef {
            sha256: hash.as_bytes().to_vec(),
            size: 300_000,
            kind: pb::BlobKind::Raw.into(),
        })),
        ..pb::Part::default()
    };
    let asked = Submission {
        spec: pb::TaskSpec {
            input: vec![named.clone()],
            ..spec(pb::TaskOptions::default())
        },
        caller: own(),
        trace: None,
    };
    let refused = bench.home.submit(asked, 0).await.unwrap_err();
    assert_eq!(refused.reason, Reason::Unimplemented);
    // Nor answer with one: it ends the attempt.
    let id = submit(&bench, vec![text("?")]).await;
    let opened = bench.next().await;
    opened.accept().await;
    opened.update(1, result(vec![named])).await;
    let last = events(&bench, &id).await.pop().unwrap();
    assert_eq!(last.state(), pb::TaskState::Failed, "{last:?}");
    bench.stop().await;
}

#[tokio::test]
async fn what_does_not_fit_into_an_answer_is_referred_to_and_read_by_its_hash() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::on_disk(dir.path(), &["i1"]);
    let say = |filled| {
        Update::Message(pb::Message {
            parts: vec![raw(filled, 250_000)],
            ..pb::Message::default()
        })
    };
    let mut says: Vec<Update> = (1..=20).map(say).collect();
    says.push(result(vec![]));
    let (id, _) = run(&mut bench, vec![text("go")], says).await;
    let viewer = Arc::new(own());
    let (task, truncated) = bench.home.get(&id, &viewer, true).await.unwrap();
    assert!(truncated && prost::Message::encoded_len(&task) < 3 << 20);
    assert_eq!(task.messages.len(), 21);
    let referred: Vec<u8> = (1..=20)
        .filter(|n| beyond(&task.messages[*n].parts) > 0)
        .map(|n| u8::try_from(n).unwrap())
        .collect();
    assert!((5..15).contains(&referred.len()), "{referred:?}");
    for filled in referred {
        let bytes = vec![filled; 250_000];
        let read = content(&bench, &id, &viewer, (Hash::of(&bytes), 0)).await;
        assert!(read.unwrap() == bytes);
    }
    bench.stop().await;
}

fn pack(dir: &Path) -> std::path::PathBuf {
    let files = std::fs::read_dir(dir).unwrap();
    let mut files = files.map(|file| file.unwrap().path());
    files
        .find(|file| file.extension().is_some_and(|ext| ext == "pack"))
        .unwrap()
}

#[tokio::test]
async fn damaged_content_is_told_of_and_never_shown() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::on_disk(dir.path(), &[]);
    let id = submit(&bench, vec![raw(1, 300_000)]).await;
    bench.stop().await;
    let file = pack(dir.path());
    let mut bytes = std::fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&file, bytes).unwrap();

    // Nobody is given what it was not.
    let bench = Bench::on_disk(dir.path(), &["i1"]);
    let last = events(&bench, &id).await.pop().unwrap();
    let Some(pb::task_event::Kind::Failure(failure)) = &last.kind else {
        panic!("{last:?}")
    };
    assert_eq!(failure.reason, "CONTENT_DAMAGED");
    let name = file.file_name().unwrap().to_str().unwrap();
    assert!(failure.message.contains(name), "{}", failure.message);
    let viewer = Arc::new(own());
    let refused = bench.home.get(&id, &viewer, true).await.unwrap_err();
    assert_eq!(refused.reason, Reason::ContentDamaged);
    // The rest of it can be seen.
    assert!(bench.home.get(&id, &viewer, false).await.is_ok());
    bench.stop().await;
}

#[tokio::test]
async fn the_same_content_of_fifty_tasks_takes_the_disk_once() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::on_disk(dir.path(), &[]);
    for _ in 0..50 {
        submit(&bench, vec![raw(5, 200_000)]).await;
    }
    let blobs = bench.home.blobs().unwrap();
    until("older copies are gone", || {
        blobs.stats().disk_bytes == 200_000
    })
    .await;
    assert_eq!(blobs.stats().blobs, 1);
    bench.stop().await;
}
