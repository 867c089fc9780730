//! Digests of cards and contracts: SHA-256 over a form that does not depend on who encoded it.
//!
//! Pure. Maps are sorted and every field carries its length, so that two cards have one digest
//! only when they say the same.

use crate::contract::{Canonical, hash_of, is_nothing};
use crate::domain::Fault;
use crate::pb;

/// Sets the contract hash of every skill, then the digest of the card.
pub(super) fn seal(card: &mut pb::AgentCard) -> Result<(), Fault> {
    for (place, skill) in card.skills.iter_mut().enumerate() {
        skill.contract_hash = hash_of(&skill.input_schema, &skill.output_schema)
            .map_err(|wrong| Fault::field(format!("card.skills[{place}]"), wrong.to_string()))?;
    }
    card.digest = digest(card);
    Ok(())
}

/// The contract hash of a sealed skill; empty where it has no schemas, though the hash of nothing is
/// a hash as well.
pub(super) fn schemas_of(skill: &pb::Skill) -> &[u8] {
    if is_nothing(&skill.contract_hash) {
        &[]
    } else {
        &skill.contract_hash
    }
}

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
    hash.finish().to_vec()
}
