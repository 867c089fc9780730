//! SPIFFE ids of members, and the DNS names that stand beside them in a certificate.
//!
//! The id is the only source of identity. Four shapes exist; anything else is not a member.

use std::{fmt, str::FromStr};

use super::ids::{AgentName, InstanceId, Label, NameError};

/// Longest SPIFFE id, in bytes (SPIFFE-ID section 2.3).
pub const SPIFFE_MAX: usize = 2048;

/// Why a text is not the SPIFFE id of a member.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeError {
    /// Not one of the four shapes.
    #[error(
        "{0:?} is not a member: spiffe://<domain>/ns/<namespace>/agent|service/<name> or spiffe://<domain>/operator|registry/<name>"
    )]
    Shape(String),
    /// Not a trust domain.
    #[error("{0:?} is not a trust domain: 1 to 255 of a-z, 0-9, '-', '_' and '.'")]
    TrustDomain(String),
    /// A part is not a name.
    #[error(transparent)]
    Name(#[from] NameError),
}

/// Whose certificates are trusted together, such as `attache.local`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Box<str>);

impl TrustDomain {
    /// The domain as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = SpiffeError;

    fn from_str(text: &str) -> Result<Self, SpiffeError> {
        let fits = (1..=255).contains(&text.len())
            && text.bytes().all(|b| {
                b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.')
            });
        if fits {
            Ok(Self(text.into()))
        } else {
            Err(SpiffeError::TrustDomain(text.into()))
        }
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who a certificate speaks for within its trust domain.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Member {
    /// Does tasks.
    Agent(AgentName),
    /// Only calls.
    Service(AgentName),
    /// A person or their tool; may call everybody.
    Operator(Label),
    /// A registry.
    Registry(Label),
}

impl Member {
    /// Its namespace; operators and registries have none.
    pub fn namespace(&self) -> Option<&Label> {
        match self {
            Self::Agent(name) | Self::Service(name) => Some(&name.namespace),
            Self::Operator(_) | Self::Registry(_) => None,
        }
    }

    /// Its `namespace/name`; operators and registries have none.
    pub fn agent_name(&self) -> Option<&AgentName> {
        match self {
            Self::Agent(name) | Self::Service(name) => Some(name),
            Self::Operator(_) | Self::Registry(_) => None,
        }
    }

    /// Whether it may have a sidecar, and with it an instance id.
    pub fn has_instances(&self) -> bool {
        matches!(self, Self::Agent(_) | Self::Service(_))
    }

    /// The DNS name that foreign TLS clients verify: `<name>.<namespace>.<kind>.attache`.
    pub fn dns_name(&self) -> String {
        match self {
            Self::Agent(name) => format!("{}.{}.agent.attache", name.name, name.namespace),
            Self::Service(name) => format!("{}.{}.service.attache", name.name, name.namespace),
            Self::Operator(name) => format!("{name}.operator.attache"),
            Self::Registry(name) => format!("{name}.registry.attache"),
        }
    }

    /// The DNS name that signs an instance: `<instance>.` before [`Self::dns_name`].
    pub fn instance_dns_name(&self, instance: &InstanceId) -> String {
        format!("{instance}.{}", self.dns_name())
    }

    /// Reads an instance out of one of the certificate's DNS names, if this member's.
    pub fn instance_of(&self, dns_name: &str) -> Option<InstanceId> {
        let rest = dns_name.strip_suffix(&self.dns_name())?;
        rest.strip_suffix('.')?.parse().ok()
    }
}

/// `spiffe://<trust domain>/...`: the id of a member.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    /// Whose CA vouches for it.
    pub trust_domain: TrustDomain,
    /// Who it is.
    pub member: Member,
}

impl FromStr for SpiffeId {
    type Err = SpiffeError;

    fn from_str(text: &str) -> Result<Self, SpiffeError> {
        let wrong = || SpiffeError::Shape(text.chars().take(200).collect());
        if text.len() > SPIFFE_MAX {
            return Err(wrong());
        }
        let rest = text.strip_prefix("spiffe://").ok_or_else(wrong)?;
        let parts: Vec<&str> = rest.split('/').collect();
        let named = |space: &str, name: &str| -> Result<AgentName, SpiffeError> {
            Ok(AgentName {
                namespace: space.parse()?,
                name: name.parse()?,
            })
        };
        let (domain, member) = match parts[..] {
            [domain, "ns", space, "agent", name] => (domain, Member::Agent(named(space, name)?)),
            [domain, "ns", space, "service", name] => {
                (domain, Member::Service(named(space, name)?))
            }
            [domain, "operator", name] => (domain, Member::Operator(name.parse()?)),
            [domain, "registry", name] => (domain, Member::Registry(name.parse()?)),
            _ => return Err(wrong()),
        };
        Ok(Self {
            trust_domain: domain.parse()?,
            member,
        })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/", self.trust_domain)?;
        match &self.member {
            Member::Agent(name) => write!(f, "ns/{}/agent/{}", name.namespace, name.name),
            Member::Service(name) => write!(f, "ns/{}/service/{}", name.namespace, name.name),
            Member::Operator(name) => write!(f, "operator/{name}"),
            Member::Registry(name) => write!(f, "registry/{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_four_shapes_read_and_print_the_same() {
        for text in [
            "spiffe://attache.local/ns/default/agent/billing",
            "spiffe://attache.local/ns/default/service/web",
            "spiffe://a/operator/ops",
            "spiffe://a/registry/r-1",
        ] {
            assert_eq!(text.parse::<SpiffeId>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn other_shapes_are_nobody() {
        for text in [
            "",
            "spiffe://",
            "spiffe://a",
            "spiffe://a/",
            "spiffe:///ns/d/agent/b",
            "spiffe://a/ns/default/agent/billing/",
            "spiffe://a/ns/default/agent/billing?x",
            "spiffe://a/ns/Default/agent/billing",
            "spiffe://a:1/ns/default/agent/billing",
            "spiffe://u@a/ns/default/agent/billing",
            "spiffe://a/ns/default/agent/../operator/ops",
            "spiffe://a/ns/default/root/billing",
            "SPIFFE://a/ns/default/agent/billing",
            "https://a/ns/default/agent/billing",
        ] {
            assert!(text.parse::<SpiffeId>().is_err(), "{text}");
        }
    }

    #[test]
    fn only_its_own_dns_name_signs_an_instance() {
        let id: SpiffeId = "spiffe://a/ns/default/agent/billing".parse().unwrap();
        let one = "i1".parse().unwrap();
        let dns = id.member.instance_dns_name(&one);
        assert_eq!(dns, "i1.billing.default.agent.attache");
        assert_eq!(id.member.instance_of(&dns), Some(one));
        for other in [
            "billing.default.agent.attache",
            "localhost",
            "i1.x.default.agent.attache",
        ] {
            assert_eq!(id.member.instance_of(other), None, "{other}");
        }
        assert_eq!(
            id.member.instance_of("a.b.billing.default.agent.attache"),
            None
        );
    }

    proptest! {
        #[test]
        fn what_parses_prints_the_same(text in "spiffe://[a-z.]{1,9}/(ns/[a-z-]{1,5}/(agent|service)|operator|registry)/[a-z0-9-]{1,6}") {
            if let Ok(id) = text.parse::<SpiffeId>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }
    }
}
