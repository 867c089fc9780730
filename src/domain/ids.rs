//! Names of agents, instances, tasks and skills. Every value of these types is well formed.

use std::{fmt, str::FromStr};

use uuid::Uuid;

/// Longest DNS label, in bytes (RFC 1035 section 2.3.4).
pub const LABEL_MAX: usize = 63;
/// Longest skill name, in bytes.
pub const SKILL_MAX: usize = 128;
/// Namespace of a bare agent name.
pub const DEFAULT_NAMESPACE: &str = "default";

/// Why a text is not a name. Its text says what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not a DNS label.
    #[error("{0:?} is not a name: 1 to 63 of a-z, 0-9 and '-', not first or last")]
    Label(String),
    /// Not a dotted skill name.
    #[error("{0:?} is not a skill: 1 to 128 of a-z, 0-9, '_', '-' and '.', such as billing.check")]
    Skill(String),
    /// Not an instance id.
    #[error("{0:?} is not an instance id: a DNS label of the registry's making")]
    Instance(String),
    /// Not a task id.
    #[error("{0:?} is not a task id: <home instance>.<uuid>, as SubmitTask answered")]
    Task(String),
}

/// A DNS label: what namespaces, agents and services are named by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Label(Box<str>);

impl Label {
    /// The label as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Label {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let fits = (1..=LABEL_MAX).contains(&text.len())
            && text.bytes().all(inner)
            && !text.starts_with('-')
            && !text.ends_with('-');
        if fits {
            Ok(Self(text.into()))
        } else {
            Err(NameError::Label(shown(text)))
        }
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `namespace/name` of an agent or service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AgentName {
    /// Whose calls it may get by default.
    pub namespace: Label,
    /// Name within the namespace.
    pub name: Label,
}

impl AgentName {
    /// Reads `namespace/name`, or a bare `name` within `namespace`.
    ///
    /// # Errors
    /// When a part is not a DNS label.
    pub fn parse_in(text: &str, namespace: &Label) -> Result<Self, NameError> {
        match text.split_once('/') {
            Some((space, name)) => Ok(Self {
                namespace: space.parse()?,
                name: name.parse()?,
            }),
            None => Ok(Self {
                namespace: namespace.clone(),
                name: text.parse()?,
            }),
        }
    }
}

impl FromStr for AgentName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::parse_in(text, &Label(DEFAULT_NAMESPACE.into()))
    }
}

impl fmt::Display for AgentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// One running copy of a member with a sidecar. Survives a restart; assigned at enrolment.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InstanceId(Label);

impl InstanceId {
    /// A new id from 80 random bits: unguessable is not needed, unique is.
    pub fn from_random(bits: [u8; 10]) -> Self {
        const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
        let wide = bits
            .iter()
            .fold(0_u128, |sum, b| (sum << 8) | u128::from(*b));
        let text: String = (0..16)
            .map(|place| char::from(ALPHABET[((wide >> (place * 5)) & 31) as usize]))
            .collect();
        // A leading letter keeps it apart from numbers in every tool that reads it.
        Self(Label(format!("i{text}").into()))
    }

    /// The id as text: a DNS label.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl FromStr for InstanceId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        text.parse()
            .map(Self)
            .map_err(|_| NameError::Instance(shown(text)))
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// `<home instance>.<UUID v7>`: the id says who owns the task.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId {
    /// The sidecar that acknowledged the task.
    pub home: InstanceId,
    /// Time-ordered, so that a home's tasks sort by age.
    pub uuid: Uuid,
}

impl FromStr for TaskId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let wrong = || NameError::Task(shown(text));
        let (home, uuid) = text.split_once('.').ok_or_else(wrong)?;
        // Only the hyphenated lower-case form: one task has one spelling.
        let parsed = Uuid::try_parse(uuid).map_err(|_| wrong())?;
        if parsed.hyphenated().to_string() != uuid {
            return Err(wrong());
        }
        Ok(Self {
            home: home.parse().map_err(|_| wrong())?,
            uuid: parsed,
        })
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.home, self.uuid.hyphenated())
    }
}

/// What an agent can do, and what tasks are routed by: `billing.check_balance`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SkillName(Box<str>);

impl SkillName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SkillName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let fits = (1..=SKILL_MAX).contains(&text.len())
            && text.bytes().all(|b| {
                b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-' | b'.')
            });
        if fits {
            Ok(Self(text.into()))
        } else {
            Err(NameError::Skill(shown(text)))
        }
    }
}

impl fmt::Display for SkillName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The first part of an untrusted text: long enough to recognise, short enough for a log line.
fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn labels_take_dns_labels_only() {
        for good in ["a", "billing", "a-1", &"x".repeat(63)] {
            assert_eq!(good.parse::<Label>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            "-a",
            "a-",
            "A",
            "a.b",
            "a_b",
            "é",
            "a/b",
            "a\0",
            &"x".repeat(64),
        ] {
            assert!(bad.parse::<Label>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_bare_agent_is_in_the_given_namespace() {
        assert_eq!(
            "billing".parse::<AgentName>().unwrap().to_string(),
            "default/billing"
        );
        let prod = "prod".parse().unwrap();
        assert_eq!(
            AgentName::parse_in("x", &prod).unwrap().to_string(),
            "prod/x"
        );
        assert_eq!(
            AgentName::parse_in("y/x", &prod).unwrap().to_string(),
            "y/x"
        );
        assert!("a/b/c".parse::<AgentName>().is_err());
    }

    #[test]
    fn a_task_has_one_spelling() {
        let id = format!("i1.{}", Uuid::nil());
        assert_eq!(id.parse::<TaskId>().unwrap().to_string(), id);
        assert!(
            "i1.00000000000000000000000000000000"
                .parse::<TaskId>()
                .is_err()
        );
        assert!("i1".parse::<TaskId>().is_err());
        assert!(format!(".{}", Uuid::nil()).parse::<TaskId>().is_err());
    }

    proptest! {
        #[test]
        fn random_instances_are_labels(bits: [u8; 10]) {
            let id = InstanceId::from_random(bits);
            prop_assert_eq!(id.as_str().parse::<InstanceId>().unwrap(), id);
        }

        #[test]
        fn no_text_makes_the_parsers_panic(text in ".{0,200}") {
            let _ = (text.parse::<AgentName>().is_ok(), text.parse::<TaskId>().is_ok());
            let _ = (text.parse::<SkillName>().is_ok(), text.parse::<InstanceId>().is_ok());
        }
    }
}
