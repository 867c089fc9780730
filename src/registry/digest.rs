//! Digests of cards and contracts: SHA-256 over a form that does not depend on who encoded it.
//!
//! Pure. Maps are sorted and every field carries its length, so that two cards have one digest
//! only when they say the same.

use std::sync::LazyLock;

use aws_lc_rs::digest::{Context, SHA256};
use serde_json::Value;

use crate::domain::Fault;
use crate::pb;
use crate::registry::card::read_schema;

/// Sets the contract hash of every skill, then the digest of the card.
pub(super) fn seal(card: &mut pb::AgentCard) -> Result<(), Fault> {
    for (place, skill) in card.skills.iter_mut().enumerate() {
        let mut hash = Canonical::new("attache.contract.v1");
        for schema in [&skill.input_schema, &skill.output_schema] {
            let read = read_schema(schema)
                .map_err(|wrong| Fault::field(format!("card.skills[{place}]"), wrong))?;
            hash.text(&read.map(|value| canonical_json(&value)).unwrap_or_default());
        }
        skill.contract_hash = hash.finish();
    }
    card.digest = digest(card);
    Ok(())
}

/// The contract hash of a sealed skill; empty where it has no schemas, though the hash of nothing is
/// a hash as well.
pub(super) fn schemas_of(skill: &pb::Skill) -> &[u8] {
    if skill.contract_hash == *NO_SCHEMAS {
        &[]
    } else {
        &skill.contract_hash
    }
}

static NO_SCHEMAS: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut hash = Canonical::new("attache.contract.v1");
    hash.text("");
    hash.text("");
    hash.finish()
});

/// SHA-256 over all fields in their order, each with its length; maps sorted by key.
fn digest(card: &pb::AgentCard) -> Vec<u8> {
    let mut hash = Canonical::new("attache.card.v1");
    for text in [
        &card.namespace,
        &card.name,
        &card.version,
        &card.description,
    ] {
        hash.text(text);
    }
    let mut labels: Vec<_> = card.labels.iter().collect();
    labels.sort();
    hash.number(labels.len());
    for (key, value) in labels {
        hash.text(key);
        hash.text(value);
    }
    hash.number(card.max_concurrent_tasks as usize);
    hash.number(card.skills.len());
    for skill in &card.skills {
        for text in [&skill.name, &skill.version, &skill.description] {
            hash.text(text);
        }
        hash.bytes(&skill.contract_hash);
        // The hash of the contract does not tell two spellings of a schema apart; readers get the
        // text, so the digest does.
        hash.text(&skill.input_schema);
        hash.text(&skill.output_schema);
        for list in [
            &skill.tags,
            &skill.input_modes,
            &skill.output_modes,
            &skill.examples,
        ] {
            hash.number(list.len());
            list.iter().for_each(|text| hash.text(text));
        }
        hash.number(usize::from(skill.idempotent));
    }
    hash.finish()
}

/// Feeds a digest so that no two different values feed the same bytes.
struct Canonical(Context);

impl Canonical {
    fn new(kind: &str) -> Self {
        let mut made = Self(Context::new(&SHA256));
        made.text(kind);
        made
    }

    fn number(&mut self, number: usize) {
        self.0.update(&(number as u64).to_be_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len());
        self.0.update(bytes);
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    fn finish(self) -> Vec<u8> {
        self.0.finish().as_ref().to_vec()
    }
}

/// JSON without white space and with sorted keys, so that spelling does not change the hash.
fn canonical_json(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let mut sorted: Vec<_> = fields.iter().collect();
            sorted.sort_by_key(|(key, _)| key.as_str());
            let inner: Vec<String> = sorted
                .into_iter()
                .map(|(key, value)| {
                    format!("{}:{}", Value::from(key.as_str()), canonical_json(value))
                })
                .collect();
            format!("{{{}}}", inner.join(","))
        }
        Value::Array(items) => {
            let inner: Vec<String> = items.iter().map(canonical_json).collect();
            format!("[{}]", inner.join(","))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.to_string(),
    }
}
