//! The skills that the agent offers, and what they promise: checked here whatever the home says it
//! has checked.
//!
//! Pure. Input that does not fit never reaches the agent, and a result that does not fit never leaves.

use std::{collections::HashMap, sync::Arc};

use crate::contract::{Contract, Side};
use crate::domain::Fault;
use crate::pb;
use crate::pb::handle_response::Update;

use super::course::Said;
use super::update::failed;

/// What an agent offers, by the names of its skills.
#[derive(Clone, Debug, Default)]
pub struct Offers {
    skills: Arc<HashMap<String, Arc<Offer>>>,
}

/// A skill, as its card has it.
#[derive(Debug)]
pub(super) struct Offer {
    skill: String,
    contract: Contract,
    input_modes: Vec<String>,
    output_modes: Vec<String>,
}

impl Offers {
    /// The skills of a card.
    ///
    /// # Errors
    /// INVALID_FIELD for a schema that does not compile, with its path in the card.
    pub fn of(card: &pb::AgentCard) -> Result<Self, Fault> {
        let mut skills = HashMap::new();
        for (place, skill) in card.skills.iter().enumerate() {
            let contract = Contract::of(skill).map_err(|(side, wrong)| {
                let path = format!("card.skills[{place}].{}", side.field());
                Fault::field(path, wrong.to_string())
            })?;
            let offer = Offer {
                skill: skill.name.clone(),
                contract,
                input_modes: skill.input_modes.clone(),
                output_modes: skill.output_modes.clone(),
            };
            skills.insert(skill.name.clone(), Arc::new(offer));
        }
        Ok(Self {
            skills: Arc::new(skills),
        })
    }

    pub(super) fn get(&self, skill: &str) -> Option<&Arc<Offer>> {
        self.skills.get(skill)
    }
}

/// Skills that promise nothing.
impl FromIterator<String> for Offers {
    fn from_iter<T: IntoIterator<Item = String>>(skills: T) -> Self {
        let skills = skills.into_iter().map(|skill| {
            let offer = Offer {
                skill: skill.clone(),
                contract: Contract::default(),
                input_modes: Vec::new(),
                output_modes: Vec::new(),
            };
            (skill, Arc::new(offer))
        });
        Self {
            skills: Arc::new(skills.collect()),
        }
    }
}

impl Offer {
    /// Whether the agent can be given this.
    ///
    /// # Errors
    /// INPUT_INVALID, with what a caller needs to repair it.
    pub(super) fn admit(&self, request: &pb::HandleRequest) -> Result<(), Fault> {
        // The answers to questions have schemas of their own.
        let Some(input) = request.inputs.first() else {
            return Ok(());
        };
        self.contract
            .check(Side::Input, &input.parts, &self.input_modes)
            .map_err(|broken| broken.fault(&self.skill))
    }

    /// What the agent said, or in its place that its result does not fit.
    pub(super) fn judge(&self, said: Said) -> Said {
        let Said::Update(pb::HandleResponse {
            update: Some(Update::Result(result)),
        }) = &said
        else {
            return said;
        };
        let checked = self
            .contract
            .check(Side::Output, &result.parts, &self.output_modes);
        let Err(broken) = checked else {
            return said;
        };
        let reason = broken.reason();
        Said::Update(failed(pb::Failure {
            reason: reason.label().into(),
            message: broken.sentence(&self.skill),
            code: crate::wire::status::code(reason).into(),
            retryable: false,
            details: Some(broken.details(&self.skill)),
        }))
    }
}
