//! Idempotency keys: which submissions are one and the same, and where their task is found again.
//!
//! Pure. A key counts within its home, for one caller and one skill; that of a child that ends with
//! the attempt that made it, within that attempt; and those of tasks in memory only apart. The low
//! half of the task's id is made of the key, so that whoever owns the id's shard owns the key too,
//! with whatever number of shards.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prost::Message;
use uuid::Uuid;

use crate::contract::Canonical;
use crate::domain::{Fault, Reason, SpiffeId};
use crate::pb;
use crate::pb::journal::Submitted;

use super::doors::Parent;

/// Most bytes of an idempotency key.
pub const KEY_MAX: usize = 128;

/// A submission that may come again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// SHA-256 over whose key it is, what for, and the key.
    pub scope: [u8; 32],
    /// SHA-256 over what is asked for.
    pub payload: [u8; 32],
    /// When its caller made it, by the caller's clock, where it says so: a UUID of version 7.
    pub born: Option<SystemTime>,
}

impl IdempotencyKey {
    /// The key of a submission as it came; `None`: it has none. The spec is left as it was.
    ///
    /// # Errors
    /// INVALID_FIELD for a key that breaks its bounds.
    pub fn of(
        spec: &mut pb::TaskSpec,
        caller: &SpiffeId,
        parent: Option<&Parent>,
    ) -> Result<Option<Self>, Fault> {
        let key = &spec.idempotency_key;
        if key.is_empty() {
            return Ok(None);
        }
        if key.len() > KEY_MAX || key.chars().any(char::is_control) {
            let text = format!("at most {KEY_MAX} bytes without control characters");
            return Err(Fault::field("spec.idempotency_key", text));
        }
        let detached = spec
            .options
            .as_ref()
            .is_some_and(|options| options.detached);
        let attempt = parent.filter(|_| !detached).map(|parent| {
            let id = parent.task.id.as_bytes();
            [id, b"#", parent.attempt.to_string().as_bytes()].concat()
        });
        let skill = spec.selector.as_ref().map(|selector| &selector.skill[..]);
        // They are kept apart, and for different times.
        let durability = spec.options.as_ref().map(|options| options.durability());
        let fleeting = durability == Some(pb::Durability::Ephemeral);
        let mut scope = Canonical::new("attache.key.scope.v1");
        scope.number(usize::from(fleeting));
        scope.text(&caller.to_string());
        scope.text(skill.unwrap_or_default());
        scope.bytes(attempt.as_deref().unwrap_or_default());
        scope.text(key);
        let born = Uuid::try_parse(key).ok().and_then(|id| id.get_timestamp());
        let born = born.and_then(|at| {
            let (seconds, nanos) = at.to_unix();
            UNIX_EPOCH.checked_add(Duration::new(seconds, nanos))
        });
        Ok(Some(Self {
            scope: scope.finish(),
            payload: payload(spec),
            born,
        }))
    }

    /// The key as it was written down; `None`: there was none.
    pub fn written(record: &Submitted) -> Option<Self> {
        Some(Self {
            scope: record.key_scope[..].try_into().ok()?,
            payload: record.key_payload[..].try_into().ok()?,
            born: None,
        })
    }

    /// Whether a task of the key `known` is what is asked for; `false`: it is another key's, which
    /// happens to be in the same place.
    ///
    /// # Errors
    /// IDEMPOTENCY_KEY_REUSED where something else was asked for with the key before.
    pub fn same(&self, known: &Self) -> Result<bool, Fault> {
        if self.scope != known.scope {
            return Ok(false);
        }
        if self.payload != known.payload {
            let text = "this idempotency key was used for another request: send that request as it was, or give the new one a key of its own";
            let fault = Fault::new(Reason::IdempotencyKeyReused, text);
            return Err(Fault {
                field: Some("spec.idempotency_key".into()),
                ..fault
            });
        }
        Ok(true)
    }

    /// What the ids of its tasks have in common: their low half, of which 62 bits are the key's.
    pub fn place(&self) -> u64 {
        let first = self.scope.first_chunk().expect("a hash has 32 bytes");
        // RFC 9562: the variant's bits come first.
        1 << 63 | u64::from_be_bytes(*first) >> 2
    }

    /// The id of its task, as old as `fresh`.
    pub fn id(&self, fresh: Uuid) -> Uuid {
        Uuid::from_u64_pair(fresh.as_u64_pair().0, self.place())
    }
}

/// The place that a task's id has among keys, should it have one.
pub fn place_of(task: Uuid) -> u64 {
    task.as_u64_pair().1
}

/// What is asked for. The token is not part of it: each attempt of a parent has its own.
fn payload(spec: &mut pb::TaskSpec) -> [u8; 32] {
    // Set aside rather than copied with all the input.
    let key = std::mem::take(&mut spec.idempotency_key);
    let token = std::mem::take(&mut spec.parent_token);
    let labels = spec.selector.as_mut();
    let labels = labels.map(|selector| std::mem::take(&mut selector.labels));
    let mut hash = Canonical::new("attache.key.payload.v1");
    hash.bytes(&spec.encode_to_vec());
    // A map is encoded in any order.
    let mut sorted: Vec<_> = labels.iter().flatten().collect();
    sorted.sort_unstable();
    for (name, value) in sorted {
        hash.text(name);
        hash.text(value);
    }
    if let (Some(selector), Some(labels)) = (&mut spec.selector, labels) {
        selector.labels = labels;
    }
    spec.parent_token = token;
    spec.idempotency_key = key;
    hash.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(name: &str) -> SpiffeId {
        format!("spiffe://mesh.test/ns/default/agent/{name}")
            .parse()
            .unwrap()
    }

    fn spec(change: impl FnOnce(&mut pb::TaskSpec)) -> pb::TaskSpec {
        let mut spec = pb::TaskSpec {
            selector: Some(pb::Selector {
                skill: "work.do".into(),
                labels: [("a", "1"), ("b", "2"), ("c", "3")]
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .into(),
                ..Default::default()
            }),
            idempotency_key: "k".into(),
            ..Default::default()
        };
        change(&mut spec);
        spec
    }

    fn key(caller_name: &str, change: impl FnOnce(&mut pb::TaskSpec)) -> IdempotencyKey {
        let mut spec = spec(change);
        let asked = spec.clone();
        let key = IdempotencyKey::of(&mut spec, &caller(caller_name), None);
        assert_eq!(spec, asked, "it is left as it was");
        key.unwrap().unwrap()
    }

    #[test]
    fn a_key_is_its_callers_and_its_skills_and_says_whether_the_same_is_asked_for() {
        let first = key("one", |_| {});
        for _ in 0..20 {
            assert_eq!(key("one", |_| {}), first, "the order of labels is nothing");
        }
        let token = key("one", |s| s.parent_token = "t".into());
        assert_eq!(token, first);
        type Change = fn(&mut pb::TaskSpec);
        let other_scope: [(&str, Change); 3] = [
            ("two", |_| {}),
            ("one", |s| s.idempotency_key = "l".into()),
            ("one", |s| {
                s.selector.as_mut().unwrap().skill = "work.go".into();
            }),
        ];
        for (name, change) in other_scope {
            let other = key(name, change);
            assert_ne!(other.scope, first.scope);
            assert_ne!(other.place(), first.place());
        }
        let other_payload: [Change; 4] = [
            |s| s.context_id = "c".into(),
            |s| s.input.push(pb::Part::default()),
            |s| drop(s.selector.as_mut().unwrap().labels.remove("b")),
            |s| s.options.get_or_insert_default().fail_fast = true,
        ];
        for change in other_payload {
            let other = key("one", change);
            assert_eq!(other.scope, first.scope);
            assert_ne!(other.payload, first.payload);
        }
    }

    #[test]
    fn an_id_tells_its_key_and_stays_a_uuid_of_version_7() {
        let key = key("one", |_| {});
        let fresh = Uuid::now_v7();
        let id = key.id(fresh);
        assert_eq!(id.get_version_num(), 7);
        assert_eq!(id.get_variant(), uuid::Variant::RFC4122);
        assert_eq!(id.get_timestamp(), fresh.get_timestamp());
        assert_eq!(place_of(id), key.place());
    }

    #[test]
    fn keys_are_bounded() {
        let refused = |text: String| {
            let mut spec = spec(|s| s.idempotency_key = text);
            let fault = IdempotencyKey::of(&mut spec, &caller("one"), None).unwrap_err();
            assert_eq!(fault.field.as_deref(), Some("spec.idempotency_key"));
        };
        refused("x".repeat(KEY_MAX + 1));
        refused("a\nb".into());
        assert!(key("one", |s| s.idempotency_key = "x".repeat(KEY_MAX)).place() > 0);
        let mut none = spec(|s| s.idempotency_key.clear());
        assert_eq!(
            IdempotencyKey::of(&mut none, &caller("one"), None),
            Ok(None)
        );
    }
}
