//! What an agent has promised: the schemas under each version of its skills, for as long as the
//! registry's store lives.
//!
//! Pure. Who calls a skill by its version counts on the schemas that stood there before, so another
//! pair of schemas needs another version. A skill without a version promises nothing, and one that had
//! no schemas may get some.

use prost::Message;

use crate::domain::{Fault, Reason};
use crate::pb;
use crate::registry::digest::schemas_of;

/// Most promises remembered of one agent, 16 versions of each of its skills; beyond it those go that
/// have not been made for the longest time.
const PROMISES_MAX: usize = 1024;

/// All promises of one agent, those made last at the end.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Promises {
    #[prost(message, repeated, tag = "1")]
    made: Vec<Promise>,
}

#[derive(Clone, PartialEq, Message)]
struct Promise {
    #[prost(string, tag = "1")]
    skill: String,
    #[prost(string, tag = "2")]
    version: String,
    /// SHA-256 over both schemas.
    #[prost(bytes = "vec", tag = "3")]
    schemas: Vec<u8>,
}

/// A version of a skill that had other schemas before.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "skill {skill} {version} was registered with other schemas before, and callers count on them: raise the skill's version"
)]
pub struct Broken {
    /// Place of the skill in the card.
    pub place: usize,
    /// Its name.
    pub skill: String,
    /// Its version.
    pub version: String,
}

impl From<Broken> for Fault {
    fn from(broken: Broken) -> Self {
        Self {
            field: Some(format!("card.skills[{}].version", broken.place)),
            ..Self::new(Reason::ContractChanged, broken.to_string())
        }
    }
}

impl Promises {
    /// Takes what a sealed card promises; whether that is anything new.
    ///
    /// # Errors
    /// The first skill that breaks an earlier promise; nothing is taken then.
    pub(super) fn take(&mut self, card: &pb::AgentCard) -> Result<bool, Broken> {
        let mut new = Vec::new();
        for (place, skill) in card.skills.iter().enumerate() {
            let schemas = schemas_of(skill);
            if skill.version.is_empty() || schemas.is_empty() {
                continue;
            }
            let of_it = |made: &&Promise| made.skill == skill.name && made.version == skill.version;
            match self.made.iter().find(of_it) {
                None => new.push(Promise {
                    skill: skill.name.clone(),
                    version: skill.version.clone(),
                    schemas: schemas.to_vec(),
                }),
                Some(made) if made.schemas == schemas => {}
                Some(_) => {
                    return Err(Broken {
                        place,
                        skill: skill.name.clone(),
                        version: skill.version.clone(),
                    });
                }
            }
        }
        let changed = !new.is_empty();
        self.made.append(&mut new);
        let surplus = self.made.len().saturating_sub(PROMISES_MAX);
        self.made.drain(..surplus);
        Ok(changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::digest::seal;

    fn card(skills: &[(&str, &str, &str)]) -> pb::AgentCard {
        let skill = |(name, version, schema): &(&str, &str, &str)| pb::Skill {
            name: (*name).into(),
            version: (*version).into(),
            output_schema: (*schema).into(),
            ..Default::default()
        };
        let mut card = pb::AgentCard {
            skills: skills.iter().map(skill).collect(),
            ..Default::default()
        };
        seal(&mut card).unwrap();
        card
    }

    #[test]
    fn other_schemas_need_another_version() {
        let mut promises = Promises::default();
        let (one, other) = (r#"{"type":"object"}"#, r#"{"type":"array"}"#);
        for (skills, taken) in [
            (&[("a", "1.0.0", "")][..], Some(false)),
            (&[("a", "1.0.0", one)], Some(true)),
            (&[("a", "1.0.0", r#"{ "type": "object" }"#)], Some(false)),
            (&[("a", "1.0.0", "")], Some(false)),
            (&[("a", "1.0.0", other)], None),
            (&[("b", "1.0.0", other), ("a", "1.0.0", other)], None),
            (&[("b", "1.0.0", one)], Some(true)),
            (&[("a", "1.1.0", other)], Some(true)),
            (&[("a", "1.0.0", one), ("b", "1.0.0", one)], Some(false)),
            (&[("c", "", one)], Some(false)),
            (&[("c", "", other)], Some(false)),
        ] {
            let took = promises.take(&card(skills));
            assert_eq!(took.clone().ok(), taken, "{skills:?}");
            if let Err(broken) = took {
                assert_eq!(broken.place, skills.len() - 1);
                let fault = Fault::from(broken);
                assert!(fault.text.contains("raise the skill's version"), "{fault}");
            }
        }
    }

    #[test]
    fn no_agent_is_remembered_without_a_bound() {
        let mut promises = Promises::default();
        for version in 0..=PROMISES_MAX {
            let version = format!("1.0.{version}");
            assert_eq!(promises.take(&card(&[("a", &version, "true")])), Ok(true));
        }
        assert_eq!(promises.made.len(), PROMISES_MAX);
        assert_eq!(promises.made[0].version, "1.0.1");
    }
}
