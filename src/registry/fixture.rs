//! Entries and queries for the tests of this component.

use std::sync::Arc;

use crate::domain::AgentName;
use crate::domain::InstanceId;
use crate::domain::SpiffeId;
use crate::pb;
use crate::registry::card::Door;
use crate::registry::card::Who;
use crate::registry::catalog::Entry;
use crate::registry::query::Query;
use crate::registry::rules::Rule;

/// The member's id of `namespace/name`.
pub(crate) fn member(agent: &str) -> SpiffeId {
    let agent: AgentName = agent.parse().unwrap();
    format!("spiffe://a/ns/{}/agent/{}", agent.namespace, agent.name)
        .parse()
        .unwrap()
}

/// A registration of an instance that takes work.
pub(crate) fn request(skills: &[&str]) -> pb::RegisterRequest {
    let skills = skills.iter().map(|name| pb::Skill {
        name: (*name).to_owned(),
        input_schema: r#"{"type":"object"}"#.to_owned(),
        ..Default::default()
    });
    pb::RegisterRequest {
        card: Some(pb::AgentCard {
            skills: skills.collect(),
            ..Default::default()
        }),
        instance: Some(pb::Instance {
            endpoints: vec!["10.0.0.7:7643".to_owned()],
            health: pb::Health::Serving.into(),
            ..Default::default()
        }),
    }
}

/// An entry that takes work, as the door lets it in.
pub(crate) fn entry(instance: &str, agent: &str, skills: &[&str]) -> Entry {
    let pb::RegisterRequest { card, instance: i } = request(skills);
    entry_of(instance, agent, card.unwrap(), i.unwrap())
}

/// An entry of this card and instance.
pub(crate) fn entry_of(
    id: &str,
    agent: &str,
    card: pb::AgentCard,
    instance: pb::Instance,
) -> Entry {
    let (member, own): (SpiffeId, InstanceId) = (member(agent), id.parse().unwrap());
    let who = Who {
        id: &member,
        instance: Some(&own),
    };
    let request = pb::RegisterRequest {
        card: Some(card),
        instance: Some(instance),
    };
    Door { loopback: true }.admit(who, request).unwrap()
}

/// All instances with a skill.
pub(crate) fn query(skill: &str) -> Query {
    Query::for_skill(skill.parse().unwrap(), None)
}

/// A shared entry.
pub(crate) fn shared(instance: &str, agent: &str, skills: &[&str]) -> Arc<Entry> {
    Arc::new(entry(instance, agent, skills))
}

/// A rule that sets a timeout of a second for all calls of a namespace.
pub(crate) fn rule(namespace: &str, name: &str) -> Rule {
    Rule::read(rule_message(namespace, name)).unwrap()
}

/// The same, as it is written.
pub(crate) fn rule_message(namespace: &str, name: &str) -> pb::TrafficRule {
    pb::TrafficRule {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        timeout: Some(prost_types::Duration {
            seconds: 1,
            nanos: 0,
        }),
        ..Default::default()
    }
}
