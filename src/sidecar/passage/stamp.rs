//! Metadata of the mesh's own: whatever comes with a call is taken off, what is known is put on.

use uuid::Uuid;

use super::{aims::Aim, named::AGENT};
use crate::{
    domain::SpiffeId,
    h2::hpack::{Fields, Name},
};

/// Names that begin so are the mesh's.
const RESERVED: &[u8] = b"attache-";
/// Who calls, as its certificate says.
const CALLER: &[u8] = b"attache-caller";
/// One piece of work, through however many calls.
const CORRELATION: &[u8] = b"attache-correlation-id";
/// Longest correlation id: as in tasks.
const CORRELATION_MAX: usize = 128;

/// What leaves this sidecar for another's agent.
pub(super) fn outward(fields: &mut Fields, aim: &Aim) {
    clean(fields);
    fields.push(AGENT, aim.full.as_bytes());
    fields.set(Name::Authority, aim.authority.as_bytes());
}

/// What comes to the own agent from this caller.
pub(super) fn inward(fields: &mut Fields, caller: &SpiffeId) {
    clean(fields);
    fields.push(CALLER, caller.to_string().as_bytes());
    // Servers on Unix sockets refuse what is no host, and the agent does not know its mesh's names.
    fields.set(Name::Authority, b"localhost");
}

/// What comes back to a caller.
pub(super) fn back(fields: &mut Fields) {
    fields.retain(|field| !field.name.starts_with(RESERVED));
}

/// The correlation id that a request has.
pub(super) fn correlation(fields: &Fields) -> Option<&[u8]> {
    let said = fields.iter().find(|field| field.name == CORRELATION);
    said.map(|said| said.value)
}

/// Takes everything off but the correlation id; a new one where there is none that can be used.
fn clean(fields: &mut Fields) {
    let mut correlated = false;
    fields.retain(|field| {
        if !field.name.starts_with(RESERVED) {
            return true;
        }
        let keep = !correlated && field.name == CORRELATION && is_usable(field.value);
        correlated |= keep;
        keep
    });
    if !correlated {
        let mut text = Uuid::encode_buffer();
        let made = Uuid::now_v7().hyphenated().encode_lower(&mut text);
        fields.push(CORRELATION, made.as_bytes());
    }
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
