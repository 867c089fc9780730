//! Metadata of the mesh's own: whatever comes with a call is taken off, what is known is put on.

use std::time::SystemTime;

use uuid::{Builder, Uuid};

use super::aims::Aim;
use crate::{
    domain::SpiffeId,
    h2::hpack::{Field, Fields, Name},
    runtime::clock,
};

/// Names that begin so are the mesh's.
const RESERVED: &[u8] = b"attache-";
/// Longest correlation id: as in tasks.
const CORRELATION_MAX: usize = 128;

/// What leaves this sidecar for another's agent.
pub(super) fn outward(fields: &mut Fields, aim: &Aim) {
    clean(fields);
    fields.push_known(Name::AttacheAgent, aim.full.as_bytes());
    fields.set(Name::Authority, aim.authority.as_bytes());
}

/// What comes to the own agent from this caller.
pub(super) fn inward(fields: &mut Fields, caller: &SpiffeId) {
    clean(fields);
    fields.push_shown(Name::AttacheCaller, caller);
    // Servers on Unix sockets refuse what is no host, and the agent does not know its mesh's names.
    fields.set(Name::Authority, b"localhost");
}

/// What comes back to a caller.
pub(super) fn back(fields: &mut Fields) {
    fields.retain(|field| !is_reserved(&field));
}

/// The correlation id that a request has.
pub(super) fn correlation(fields: &Fields) -> Option<&[u8]> {
    fields.get(Name::AttacheCorrelationId)
}

/// Takes everything off but the correlation id; a new one where there is none that can be used.
fn clean(fields: &mut Fields) {
    let mut correlated = false;
    fields.retain(|field| {
        if !is_reserved(&field) {
            return true;
        }
        let usable = field.id == Name::AttacheCorrelationId && is_usable(field.value);
        let keep = usable && !correlated;
        correlated |= keep;
        keep
    });
    if !correlated {
        let mut text = Uuid::encode_buffer();
        let made = new_correlation().hyphenated().encode_lower(&mut text);
        fields.push_known(Name::AttacheCorrelationId, made.as_bytes());
    }
}

/// Whether a field is the mesh's own: that a name is a known one is seen without reading it.
#[inline]
fn is_reserved(field: &Field<'_>) -> bool {
    let known = matches!(
        field.id,
        Name::AttacheAgent | Name::AttacheCaller | Name::AttacheCorrelationId
    );
    known || (field.id == Name::Other && field.name.starts_with(RESERVED))
}

/// A UUID of version 7 by the thread's own random numbers: asking the kernel for each was a
/// twentieth of what a call costs.
fn new_correlation() -> Uuid {
    let since = clock::wall().duration_since(SystemTime::UNIX_EPOCH);
    let millis = since.map_or(0, |since| since.as_millis());
    let millis = u64::try_from(millis).unwrap_or(u64::MAX);
    Builder::from_unix_timestamp_millis(millis, &rand::random()).into_uuid()
}

fn is_usable(correlation: &[u8]) -> bool {
    (1..=CORRELATION_MAX).contains(&correlation.len())
        && correlation.iter().all(u8::is_ascii_graphic)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::AgentName;

    fn fields(all: &[(&str, &str)]) -> Fields {
        let mut fields = Fields::new();
        for (name, value) in all {
            fields.push(name.as_bytes(), value.as_bytes());
        }
        fields
    }

    fn value(fields: &Fields, name: &str) -> Vec<String> {
        let named = fields.iter().filter(|field| field.name == name.as_bytes());
        named
            .map(|field| String::from_utf8(field.value.to_vec()).unwrap())
            .collect()
    }

    #[test]
    fn nobody_says_who_he_is() {
        let caller = "spiffe://a/ns/default/agent/true".parse().unwrap();
        let mut fields = fields(&[
            ("attache-caller", "spiffe://a/ns/default/agent/forged"),
            ("attache-caller", "another"),
            ("attache-correlation-id", "work-1"),
            ("attache-future", "x"),
            ("x-mine", "stays"),
        ]);
        inward(&mut fields, &caller);
        assert_eq!(value(&fields, "attache-caller"), [caller.to_string()]);
        assert_eq!(value(&fields, "attache-correlation-id"), ["work-1"]);
        assert_eq!(value(&fields, "attache-future"), [""; 0]);
        assert_eq!(value(&fields, "x-mine"), ["stays"]);
    }

    #[test]
    fn a_correlation_id_is_made_where_none_can_be_used() {
        let agent: AgentName = "b".parse().unwrap();
        let aim = agent.into();
        for said in ["", "two words", &"x".repeat(CORRELATION_MAX + 1)] {
            let mut fields = fields(&[("attache-correlation-id", said)]);
            outward(&mut fields, &aim);
            let made = value(&fields, "attache-correlation-id");
            assert_eq!(made.len(), 1);
            made[0].parse::<Uuid>().unwrap();
            assert_eq!(value(&fields, "attache-agent"), ["default/b"]);
            assert_eq!(value(&fields, ":authority"), ["b.default.agent.attache"]);
        }
    }
}
