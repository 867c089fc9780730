//! An agent's card as configuration files write it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{contract::Contract, pb};

/// A skill in a configuration file.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SkillSettings {
    /// Dotted name, such as `billing.check_balance`.
    pub name: String,
    /// SemVer of the skill's contract.
    #[serde(default = "first_version")]
    pub version: String,
    /// For people and models.
    #[serde(default)]
    pub description: String,
    /// At most 16.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Whether running it twice with the same input does no harm.
    #[serde(default)]
    pub idempotent: bool,
    /// JSON Schema of the input.
    #[serde(default)]
    pub input_schema: String,
    /// JSON Schema of the output.
    #[serde(default)]
    pub output_schema: String,
    /// Media types taken.
    #[serde(default)]
    pub input_modes: Vec<String>,
    /// Media types produced.
    #[serde(default)]
    pub output_modes: Vec<String>,
    /// Inputs as a caller would write them.
    #[serde(default)]
    pub examples: Vec<String>,
}

/// What an agent publishes about itself, in a configuration file.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CardSettings {
    /// SemVer of the agent's code.
    #[serde(default = "first_version")]
    pub version: String,
    /// For people and models.
    #[serde(default)]
    pub description: String,
    /// At most 64.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Tasks that one instance runs at once; 0: the sidecar's default.
    #[serde(default)]
    pub max_concurrent_tasks: u32,
    /// What it can do.
    #[serde(default)]
    pub skills: Vec<SkillSettings>,
}

impl CardSettings {
    /// Compiles the schemas of all skills.
    ///
    /// # Errors
    /// The key that is wrong, as in `card.skills[0].input_schema`, and how.
    pub fn check(&self) -> Result<(), (String, String)> {
        for (place, skill) in self.skills.iter().enumerate() {
            skill
                .check()
                .map_err(|(key, text)| (format!("card.skills[{place}].{key}"), text))?;
        }
        Ok(())
    }

    /// The card as it is published; name and namespace come from the certificate.
    pub fn card(&self) -> pb::AgentCard {
        pb::AgentCard {
            version: self.version.clone(),
            description: self.description.clone(),
            labels: self.labels.clone().into_iter().collect(),
            max_concurrent_tasks: self.max_concurrent_tasks,
            skills: self.skills.iter().map(SkillSettings::skill).collect(),
            ..Default::default()
        }
    }
}

impl SkillSettings {
    /// Compiles its schemas.
    ///
    /// # Errors
    /// Which key is wrong, and how: with the JSON pointer to the place in the schema.
    pub(in crate::app) fn check(&self) -> Result<(), (&'static str, String)> {
        let compiled = Contract::of(&self.skill());
        compiled
            .map(drop)
            .map_err(|(side, wrong)| (side.field(), wrong.to_string()))
    }

    fn skill(&self) -> pb::Skill {
        pb::Skill {
            name: self.name.clone(),
            version: self.version.clone(),
            description: self.description.clone(),
            tags: self.tags.clone(),
            input_schema: self.input_schema.clone(),
            output_schema: self.output_schema.clone(),
            input_modes: self.input_modes.clone(),
            output_modes: self.output_modes.clone(),
            idempotent: self.idempotent,
            examples: self.examples.clone(),
            ..Default::default()
        }
    }
}

/// Version of what says none.
pub(in crate::app) fn first_version() -> String {
    "0.1.0".to_owned()
}
