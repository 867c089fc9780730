//! The mirror's copy on disk: discovery goes on, and traffic rules hold, across a restart while the
//! registry is away.
//!
//! ```text
//!   "ATTCAT1\n" | CRC-32 of the rest, 4 bytes, big endian | prost message
//! ```
//! A copy that does not check is dropped, never trusted in part: the registry has the truth.

use std::{io, path::Path, sync::Arc};

use prost::Message;

use crate::pb;
use crate::registry::catalog::Catalog;
use crate::registry::catalog::Entry;
use crate::registry::catalog::Revision;
use crate::registry::rules::Rules;

const MAGIC: &[u8; 8] = b"ATTCAT1\n";
const HEADER: usize = MAGIC.len() + 4;

#[derive(Clone, PartialEq, Message)]
struct Stored {
    #[prost(string, tag = "1")]
    generation: String,
    #[prost(uint64, tag = "2")]
    number: u64,
    #[prost(message, repeated, tag = "3")]
    cards: Vec<pb::AgentCard>,
    #[prost(message, repeated, tag = "4")]
    instances: Vec<pb::Instance>,
    #[prost(message, optional, tag = "5")]
    rules: Option<pb::TrafficRules>,
}

/// What a copy holds.
#[derive(Debug)]
pub(super) struct Copied {
    pub(super) revision: Revision,
    pub(super) entries: Vec<Arc<Entry>>,
    pub(super) rules: Rules,
}

/// Writes a copy, whole or not at all.
pub(super) async fn write(
    path: &Path,
    revision: &Revision,
    catalog: &Catalog,
    rules: &Rules,
) -> io::Result<()> {
    let bytes = encode(revision, catalog, rules);
    let aside = path.with_extension("new");
    tokio::fs::write(&aside, bytes).await?;
    tokio::fs::File::open(&aside).await?.sync_all().await?;
    tokio::fs::rename(&aside, path).await
}

/// Reads a copy; `None` when there is none that can be used.
pub(super) async fn read(path: &Path) -> Option<Copied> {
    let bytes = match tokio::fs::read(path).await {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "the catalog's copy cannot be read");
            return None;
        }
    };
    let read = decode(&bytes);
    if read.is_none() {
        tracing::warn!(path = %path.display(), "the catalog's copy is damaged; it is not used");
    }
    read
}

fn encode(revision: &Revision, catalog: &Catalog, rules: &Rules) -> Vec<u8> {
    let mut stored = Stored {
        generation: revision.generation.to_string(),
        number: revision.number,
        rules: Some(rules.message(|_| true)),
        ..Stored::default()
    };
    let mut seen = std::collections::HashSet::new();
    for entry in catalog.entries_after(None) {
        if seen.insert(entry.card.digest.clone()) {
            stored.cards.push((*entry.card).clone());
        }
        stored.instances.push(entry.published());
    }
    let body = stored.encode_to_vec();
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&crc32fast::hash(&body).to_be_bytes());
    bytes.extend_from_slice(&body);
    bytes
}

fn decode(bytes: &[u8]) -> Option<Copied> {
    let (header, body) = bytes.split_at_checked(HEADER)?;
    let sum = header.strip_prefix(MAGIC)?;
    if sum != crc32fast::hash(body).to_be_bytes() {
        return None;
    }
    let stored = Stored::decode(body).ok()?;
    let cards: std::collections::HashMap<_, _> = stored
        .cards
        .into_iter()
        .map(|card| (card.digest.clone(), Arc::new(card)))
        .collect();
    let entries = stored
        .instances
        .into_iter()
        .map(|instance| {
            let card = Arc::clone(cards.get(&instance.card_digest)?);
            Entry::new(instance, card).ok().map(Arc::new)
        })
        .collect::<Option<_>>()?;
    let revision = Revision {
        generation: stored.generation.into(),
        number: stored.number,
    };
    Some(Copied {
        revision,
        entries,
        rules: Rules::read(stored.rules.unwrap_or_default()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::fixture::entry;
    use crate::registry::fixture::rule;

    #[tokio::test]
    async fn a_copy_reads_as_it_was_written_and_no_damage_passes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("catalog");
        assert!(read(&path).await.is_none());
        let mut catalog = Catalog::default();
        catalog.put(Arc::new(entry("a", "default/x", &["s"])));
        catalog.put(Arc::new(entry("b", "default/x", &["s"])));
        let revision = Revision {
            generation: "g".into(),
            number: 7,
        };
        let rules = Rules::new([rule("default", "slow")], 3);
        write(&path, &revision, &catalog, &rules).await.unwrap();
        let copied = read(&path).await.unwrap();
        assert_eq!((copied.revision, copied.rules), (revision, rules));
        let ids: Vec<_> = copied
            .entries
            .iter()
            .map(|e| e.instance_id.as_str())
            .collect();
        assert_eq!(ids, ["a", "b"]);
        let whole = tokio::fs::read(&path).await.unwrap();
        for place in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[place] ^= 1;
            assert!(decode(&damaged).is_none(), "byte {place}");
            assert!(decode(&whole[..place]).is_none(), "cut at {place}");
        }
    }
}
