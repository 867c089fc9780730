//! Skills that say a lot.
//!
//! - `test.flood`: as many MiB of one artifact as its input says, and a line of TEST_RUNS that begins
//!   with `flooded` and ends with how many chunks it got rid of.
//! - `test.tell`: `GATE COUNT BYTES` waits for the file GATE, then sends COUNT chunks of BYTES.

use std::path::Path;

use attache::pb::{self, HandleResponse, handle_response::Update, part::Content};
use tokio::time::sleep;

use crate::{TICK, Updates, note, result};

/// Most that a chunk may hold, in bytes.
const CHUNK: usize = 128 << 10;

pub(crate) async fn flood(task: &str, text: &str, updates: &Updates) {
    let chunks = text.parse::<usize>().unwrap() * (1 << 20) / CHUNK;
    let sent = chunks_of(CHUNK, chunks, updates).await;
    note(&format!("flooded {task} {sent}"));
}

pub(crate) async fn tell(text: &str, updates: &Updates) {
    let words: Vec<&str> = text.split(' ').collect();
    let [gate, count, bytes] = words[..] else {
        panic!("{text}")
    };
    while !Path::new(gate).exists() {
        sleep(TICK).await;
    }
    let count = count.parse().unwrap();
    if chunks_of(bytes.parse().unwrap(), count, updates).await == count {
        let update = result("told");
        drop(updates.send(Ok(HandleResponse { update })).await);
    }
}

/// What chunk number `number` holds: no two are the same.
fn filled(number: usize, bytes: usize) -> Vec<u8> {
    let mut chunk = vec![7; bytes];
    let number = (number as u64).to_le_bytes();
    let named = bytes.min(number.len());
    chunk[..named].copy_from_slice(&number[..named]);
    chunk
}

/// Sends chunks until the last one, or nobody listens any more; how many went.
async fn chunks_of(bytes: usize, count: usize, updates: &Updates) -> usize {
    for number in 0..count {
        let chunk = pb::ArtifactChunk {
            artifact_id: "plenty".into(),
            part: Some(pb::Part {
                content: Some(Content::Raw(filled(number, bytes).into())),
                ..Default::default()
            }),
            append: number > 0,
            last_chunk: number + 1 == count,
            ..Default::default()
        };
        let update = Some(Update::Artifact(chunk));
        if updates.send(Ok(HandleResponse { update })).await.is_err() {
            return number;
        }
    }
    count
}
