//! Metadata of the mesh's own: whatever comes with a call is taken off, what is known is put on.

use uuid::Uuid;

use super::named::AGENT;
use crate::{
    domain::{AgentName, SpiffeId},
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
pub(super) fn outward(fields: &mut Fields, agent: &AgentName) {
    let correlation = clean(fields);
    fields.push(AGENT, agent.to_string().as_bytes());
    fields.push(CORRELATION, &correlation);
    let authority = format!("{}.{}.agent.attache", agent.name, agent.namespace);
    fields.set(Name::Authority, authority.as_bytes());
}

/// What comes to the own agent from this caller.
pub(super) fn inward(fields: &mut Fields, caller: &SpiffeId) {
    let correlation = clean(fields);
    fields.push(CALLER, caller.to_string().as_bytes());
    fields.push(CORRELATION, &correlation);
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

/// Takes everything off; the correlation id that was there, or a new one.
fn clean(fields: &mut Fields) -> Vec<u8> {
    let said = correlation(fields).map(<[u8]>::to_vec).filter(|said| {
        (1..=CORRELATION_MAX).contains(&said.len()) && said.iter().all(u8::is_ascii_graphic)
    });
    back(fields);
    said.unwrap_or_else(|| Uuid::now_v7().to_string().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let agent = "b".parse().unwrap();
        for said in ["", "two words", &"x".repeat(CORRELATION_MAX + 1)] {
            let mut fields = fields(&[("attache-correlation-id", said)]);
            outward(&mut fields, &agent);
            let made = value(&fields, "attache-correlation-id");
            assert_eq!(made.len(), 1);
            made[0].parse::<Uuid>().unwrap();
            assert_eq!(value(&fields, "attache-agent"), ["default/b"]);
            assert_eq!(value(&fields, ":authority"), ["b.default.agent.attache"]);
        }
    }
}
