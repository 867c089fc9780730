//! The door for cards and instances: bounds, names from the certificate, digests.
//!
//! Pure. Refuses whatever breaks a bound of `card.proto`, an endpoint that nobody should dial, and
//! every word about somebody else than the certificate names. Descriptions are untrusted text:
//! kept as they are, never used for routing.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use prost::Message;

use crate::contract::Contract;
use crate::domain::Fault;
use crate::domain::InstanceId;
use crate::domain::Member;
use crate::domain::Reason;
use crate::domain::SpiffeId;
use crate::pb;
use crate::registry::catalog::Entry;
use crate::registry::digest::seal;
use crate::registry::endpoint;

/// Largest card, encoded, in bytes: a page of 3 MiB still holds dozens.
pub const CARD_MAX: usize = 64 * 1024;
/// Largest card without its schemas, in bytes: what every watcher gets.
pub const BARE_CARD_MAX: usize = 16 * 1024;
/// Most skills of a card.
pub const SKILLS_MAX: usize = 64;
/// Most labels of a card or an instance.
pub const LABELS_MAX: usize = 64;
/// Longest label, key and value together, in bytes.
pub const LABEL_BYTES_MAX: usize = 256;
/// Most tags of a skill, and most media types in each direction.
pub const TAGS_MAX: usize = 16;
/// Longest tag, media type, zone or version, in bytes.
pub const WORD_MAX: usize = 128;
/// Most examples of a skill.
pub const EXAMPLES_MAX: usize = 8;
/// Most endpoints of an instance.
pub const ENDPOINTS_MAX: usize = 4;

/// Who registers, as the certificate says.
#[derive(Clone, Copy, Debug)]
pub struct Who<'a> {
    /// The member.
    pub id: &'a SpiffeId,
    /// The copy of it; `None` for members without one, which cannot register.
    pub instance: Option<&'a InstanceId>,
}

/// What this mesh lets in.
#[derive(Clone, Copy, Debug, Default)]
pub struct Door {
    /// Endpoints on the loopback interface: for meshes on one machine. Elsewhere such an address
    /// would make peers dial themselves.
    pub loopback: bool,
}

impl Door {
    /// Checks a registration and makes the entry of it: namespace, name, ids and server name are
    /// the certificate's, digests are computed here.
    ///
    /// # Errors
    /// `IDENTITY_MISMATCH` when the body names somebody else; `INVALID_FIELD` or
    /// `PAYLOAD_TOO_LARGE` with the path of what breaks a bound.
    pub fn admit(&self, who: Who<'_>, request: pb::RegisterRequest) -> Result<Entry, Fault> {
        let own = who.instance.filter(|_| who.id.member.has_instances());
        let own = own.ok_or_else(|| {
            Fault::new(
                Reason::IdentityMismatch,
                "only agents and services with an instance in their certificate register; enrol with a join token",
            )
        })?;
        let mut card = request.card.unwrap_or_default();
        let mut instance = request
            .instance
            .ok_or_else(|| Fault::field("instance", "must be set"))?;
        claim(who.id, own, &mut card, &mut instance)?;
        check_card(&card)?;
        if !card.skills.is_empty() && matches!(who.id.member, Member::Service(_)) {
            return Err(Fault::field(
                "card.skills",
                "a service only calls; enrol as an agent to offer skills",
            ));
        }
        self.check_instance(&instance)?;
        seal(&mut card)?;
        instance.card_digest = card.digest.clone();
        Entry::new(instance, Arc::new(card))
    }

    fn check_instance(&self, instance: &pb::Instance) -> Result<(), Fault> {
        check_labels("instance.labels", &instance.labels)?;
        check_word("instance.zone", &instance.zone)?;
        check_word("instance.sidecar_version", &instance.sidecar_version)?;
        check_word("instance.boot_id", &instance.boot_id)?;
        if instance.endpoints.len() > ENDPOINTS_MAX {
            return Err(Fault::field("instance.endpoints", "at most 4 endpoints"));
        }
        for (place, endpoint) in instance.endpoints.iter().enumerate() {
            endpoint::check(endpoint, self.loopback)
                .map_err(|wrong| Fault::field(format!("instance.endpoints[{place}]"), wrong))?;
        }
        Ok(())
    }
}

/// The card as watchers and lists get it: schemas left out, found again by their hash.
pub fn without_schemas(card: &pb::AgentCard) -> pb::AgentCard {
    let mut bare = card.clone();
    for skill in &mut bare.skills {
        skill.input_schema.clear();
        skill.output_schema.clear();
    }
    bare
}

/// The certificate's word over the body's; a body that says otherwise is refused.
fn claim(
    id: &SpiffeId,
    own: &InstanceId,
    card: &mut pb::AgentCard,
    instance: &mut pb::Instance,
) -> Result<(), Fault> {
    let agent = id
        .member
        .agent_name()
        .expect("members with instances have a name");
    let spiffe_id = id.to_string();
    for (said, is, path) in [
        (&card.namespace, agent.namespace.as_str(), "card.namespace"),
        (&card.name, agent.name.as_str(), "card.name"),
        (&instance.id, own.as_str(), "instance.id"),
        (&instance.spiffe_id, &spiffe_id, "instance.spiffe_id"),
    ] {
        if !said.is_empty() && said != is {
            return Err(Fault {
                field: Some(path.to_owned()),
                ..Fault::new(
                    Reason::IdentityMismatch,
                    format!("{path} is not what the certificate says ({is}); leave it empty"),
                )
            });
        }
    }
    card.namespace = agent.namespace.to_string();
    card.name = agent.name.to_string();
    instance.id = own.to_string();
    instance.spiffe_id = spiffe_id;
    instance.tls_server_name = id.member.instance_dns_name(own);
    Ok(())
}

fn check_card(card: &pb::AgentCard) -> Result<(), Fault> {
    if card.encoded_len() > CARD_MAX {
        return Err(too_large("card", "a card is at most 64 KiB encoded"));
    }
    if without_schemas(card).encoded_len() > BARE_CARD_MAX {
        return Err(too_large(
            "card",
            "a card without its schemas is at most 16 KiB encoded",
        ));
    }
    if card.skills.len() > SKILLS_MAX {
        return Err(Fault::field("card.skills", "at most 64 skills"));
    }
    check_word("card.version", &card.version)?;
    check_labels("card.labels", &card.labels)?;
    let mut seen = HashSet::new();
    for (place, skill) in card.skills.iter().enumerate() {
        let path = format!("card.skills[{place}]");
        check_skill(&path, skill)?;
        if !seen.insert(&skill.name) {
            return Err(Fault::field(format!("{path}.name"), "is in the card twice"));
        }
    }
    Ok(())
}

fn check_skill(path: &str, skill: &pb::Skill) -> Result<(), Fault> {
    for (name, words, most) in [
        ("tags", &skill.tags, TAGS_MAX),
        ("input_modes", &skill.input_modes, TAGS_MAX),
        ("output_modes", &skill.output_modes, TAGS_MAX),
    ] {
        if words.len() > most {
            return Err(Fault::field(
                format!("{path}.{name}"),
                format!("at most {most}"),
            ));
        }
        for word in words {
            check_word(&format!("{path}.{name}"), word)?;
        }
    }
    check_word(&format!("{path}.version"), &skill.version)?;
    if skill.examples.len() > EXAMPLES_MAX {
        return Err(Fault::field(format!("{path}.examples"), "at most 8"));
    }
    Contract::of(skill).map(drop).map_err(|(side, wrong)| {
        Fault::field(format!("{path}.{}", side.field()), wrong.to_string())
    })
}

fn check_labels(path: &str, labels: &HashMap<String, String>) -> Result<(), Fault> {
    if labels.len() > LABELS_MAX {
        return Err(Fault::field(path, "at most 64 labels"));
    }
    for (key, value) in labels {
        if key.is_empty() || key.len() + value.len() > LABEL_BYTES_MAX {
            return Err(Fault::field(
                path,
                "a label has a key, and is at most 256 bytes with its value",
            ));
        }
    }
    Ok(())
}

fn check_word(path: &str, word: &str) -> Result<(), Fault> {
    if word.len() > WORD_MAX || word.chars().any(char::is_control) {
        return Err(Fault::field(
            path,
            "at most 128 bytes, no control characters",
        ));
    }
    Ok(())
}

fn too_large(path: &str, text: &str) -> Fault {
    Fault {
        field: Some(path.to_owned()),
        ..Fault::new(Reason::PayloadTooLarge, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::SCHEMA_MAX;

    fn admit(request: pb::RegisterRequest) -> Result<Entry, Fault> {
        let id = "spiffe://a/ns/default/agent/billing".parse().unwrap();
        let instance = "i1".parse().unwrap();
        let who = Who {
            id: &id,
            instance: Some(&instance),
        };
        Door::default().admit(who, request)
    }

    fn skill(change: impl FnOnce(&mut pb::Skill)) -> pb::RegisterRequest {
        let mut skill = pb::Skill {
            name: "pay".into(),
            ..Default::default()
        };
        change(&mut skill);
        card(|card| card.skills.push(skill))
    }

    fn card(change: impl FnOnce(&mut pb::AgentCard)) -> pb::RegisterRequest {
        let mut request = pb::RegisterRequest {
            card: Some(pb::AgentCard::default()),
            instance: Some(pb::Instance::default()),
        };
        change(request.card.as_mut().unwrap());
        request
    }

    fn instance(change: impl FnOnce(&mut pb::Instance)) -> pb::RegisterRequest {
        let mut request = card(|_| ());
        change(request.instance.as_mut().unwrap());
        request
    }

    #[test]
    fn names_come_from_the_certificate() {
        let entry = admit(card(|_| ())).unwrap();
        assert_eq!(entry.card.namespace, "default");
        assert_eq!(entry.instance.id, "i1");
        assert_eq!(
            entry.instance.tls_server_name,
            "i1.billing.default.agent.attache"
        );
        for spoof in [
            card(|c| c.name = "ledger".into()),
            card(|c| c.namespace = "prod".into()),
            instance(|i| i.id = "i2".into()),
            instance(|i| i.spiffe_id = "spiffe://a/ns/default/agent/ledger".into()),
        ] {
            assert_eq!(admit(spoof).unwrap_err().reason, Reason::IdentityMismatch);
        }
    }

    #[test]
    fn those_without_an_instance_do_not_register_and_services_offer_nothing() {
        let operator = "spiffe://a/operator/ops".parse().unwrap();
        let service = "spiffe://a/ns/default/service/web".parse().unwrap();
        let own = "i1".parse().unwrap();
        for (id, own) in [(&operator, Some(&own)), (&service, None)] {
            let who = Who { id, instance: own };
            let refused = Door::default().admit(who, card(|_| ())).unwrap_err();
            assert_eq!(refused.reason, Reason::IdentityMismatch);
        }
        let who = Who {
            id: &service,
            instance: Some(&own),
        };
        assert!(Door::default().admit(who, card(|_| ())).is_ok());
        assert!(Door::default().admit(who, skill(|_| ())).is_err());
    }

    fn refused_at(table: Vec<(pb::RegisterRequest, &str)>) {
        for (request, path) in table {
            assert_eq!(admit(request).unwrap_err().field.as_deref(), Some(path));
        }
    }

    #[test]
    fn every_bound_of_a_skill_names_its_field() {
        let long = "x".repeat(300);
        let deep = format!(
            "{}{}",
            r#"{"a":"#.repeat(33),
            "1".to_owned() + &"}".repeat(33)
        );
        refused_at(vec![
            (skill(|s| s.name = "Pay".into()), "card.skills[0].name"),
            (skill(|s| s.version = "1".into()), "card.skills[0].version"),
            (
                skill(|s| s.tags = vec!["t".into(); 17]),
                "card.skills[0].tags",
            ),
            (
                skill(|s| s.tags = vec![long.clone()]),
                "card.skills[0].tags",
            ),
            (
                skill(|s| s.examples = vec![String::new(); 9]),
                "card.skills[0].examples",
            ),
            (
                skill(|s| s.input_schema = "{".into()),
                "card.skills[0].input_schema",
            ),
            (
                skill(|s| s.input_schema = "3".into()),
                "card.skills[0].input_schema",
            ),
            (
                skill(|s| s.output_schema = deep),
                "card.skills[0].output_schema",
            ),
            (
                skill(|s| s.input_schema = format!("{{{}}}", " ".repeat(SCHEMA_MAX))),
                "card.skills[0].input_schema",
            ),
        ]);
    }

    #[test]
    fn every_bound_of_a_card_or_an_instance_names_its_field() {
        let long = "x".repeat(300);
        refused_at(vec![
            (
                card(|c| c.skills = vec![pb::Skill::default(); 65]),
                "card.skills",
            ),
            (
                card(|c| {
                    let one = pb::Skill {
                        name: "a".into(),
                        ..Default::default()
                    };
                    c.skills = vec![one.clone(), one];
                }),
                "card.skills[1].name",
            ),
            (card(|c| c.version = "new".into()), "card.version"),
            (card(|c| c.description = "x".repeat(BARE_CARD_MAX)), "card"),
            (
                card(|c| drop(c.labels.insert("k".into(), long.clone()))),
                "card.labels",
            ),
            (
                instance(|i| drop(i.labels.insert(String::new(), "v".into()))),
                "instance.labels",
            ),
            (instance(|i| i.zone = "a\nb".into()), "instance.zone"),
            (
                instance(|i| i.endpoints = vec!["a:1".into(); 5]),
                "instance.endpoints",
            ),
        ]);
    }

    #[test]
    fn spelling_changes_the_digest_but_not_the_contract() {
        let hashes = |schema: &str| {
            let entry = admit(skill(|s| s.input_schema = schema.into())).unwrap();
            (
                entry.card.skills[0].contract_hash.clone(),
                entry.card.digest.clone(),
            )
        };
        let (one, other) = (
            hashes(r#"{"a":1,"b":[2]}"#),
            hashes(r#"{ "b":[2], "a":1 }"#),
        );
        assert_eq!(one.0, other.0);
        assert_ne!(one.1, other.1);
        assert_ne!(one.0, hashes(r#"{"a":1,"b":[3]}"#).0);
        assert_eq!(one, hashes(r#"{"a":1,"b":[2]}"#));
    }

    #[test]
    fn the_digest_covers_every_field() {
        let base = admit(skill(|_| ())).unwrap().card.digest.clone();
        for other in [
            skill(|s| s.idempotent = true),
            skill(|s| s.tags = vec!["x".into()]),
            skill(|s| s.input_modes = vec!["x".into()]),
            skill(|s| s.output_modes = vec!["x".into()]),
            skill(|s| s.examples = vec!["x".into()]),
            skill(|s| s.description = "x".into()),
            skill(|s| s.output_schema = "{}".into()),
        ] {
            assert_ne!(admit(other).unwrap().card.digest, base);
        }
    }
}
