//! Whom a request is for, by what it says: its path, its metadata, its authority. Pure.

use std::sync::Arc;

use super::aims::{Aim, Aims};
use crate::{
    domain::{AgentName, Label},
    h2::hpack::{Fields, Name},
};

/// What follows an agent's name and namespace in the name of its certificate.
const SUFFIX: &str = ".agent.attache";
/// Services of the mesh itself: they always end at the sidecar that they reach.
const MESH: &str = "attache.v1.";
/// Services that a sidecar has and agents may have too: the sidecar's unless an agent is named.
const BOTH: &[&str] = &["/grpc.health.v1.Health/", "/grpc.reflection."];

/// Whom a request names.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Named {
    /// The sidecar that it has reached.
    Sidecar,
    /// This agent.
    Agent(Arc<Aim>),
    /// Nobody: neither the sidecar's service nor an agent.
    Nobody,
    /// Something that is no agent's name.
    Unreadable,
    /// No method: servers differ in what they make of such a path.
    Misspelt,
}

/// Reads a request; a bare name is one of `namespace`.
pub(super) fn named(fields: &Fields, namespace: &Label, aims: &mut Aims) -> Named {
    let path = text(fields.get(Name::Path)).unwrap_or_default();
    let method = path.strip_prefix('/');
    if method.is_some_and(|method| method.starts_with(MESH)) {
        return Named::Sidecar;
    }
    if !is_plain(path) {
        return Named::Misspelt;
    }
    if let Some(said) = fields.get(Name::AttacheAgent) {
        let aim = aims.of(said, namespace);
        return aim.map_or(Named::Unreadable, Named::Agent);
    }
    // Whoever calls the sidecar by TLS verifies this name, and so has it as authority.
    if BOTH.iter().any(|service| path.starts_with(service)) {
        return Named::Sidecar;
    }
    if let Some(agent) = text(fields.get(Name::Authority)).and_then(by_authority) {
        return Named::Agent(Arc::new(agent.into()));
    }
    Named::Nobody
}

/// Whether every server reads this path as we do. Some decode `%61`, drop what follows `?`, and
/// merge `//` and `/../`: to them another path may be one that ends here.
fn is_plain(path: &str) -> bool {
    let segments = match path.strip_prefix('/') {
        // Nothing in it to be read differently.
        Some("") => return true,
        Some(segments) => segments,
        None => return false,
    };
    let dubious = |octet: u8| !octet.is_ascii_graphic() || b"%?#\\;".contains(&octet);
    // Further behind, a service of the mesh's is one of those that may be merged to the front.
    let moves = |segment: &str| matches!(segment, "" | "." | "..") || segment.starts_with(MESH);
    !path.bytes().any(dubious) && !segments.split('/').any(moves)
}

/// `<name>.<namespace>.agent.attache`, with or without a port.
fn by_authority(authority: &str) -> Option<AgentName> {
    let host = authority
        .split_once(':')
        .map_or(authority, |(host, _)| host);
    let (name, namespace) = host.strip_suffix(SUFFIX)?.split_once('.')?;
    Some(AgentName {
        namespace: namespace.parse().ok()?,
        name: name.parse().ok()?,
    })
}

fn text(octets: Option<&[u8]>) -> Option<&str> {
    std::str::from_utf8(octets?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whom_a_request_names() {
        let agent = |name: &str| {
            let name: AgentName = name.parse().unwrap();
            Named::Agent(Arc::new(name.into()))
        };
        for (path, said, authority, expected) in [
            ("/attache.v1.Agent/RunTask", Some("x"), "", Named::Sidecar),
            ("/grpc.health.v1.Health/Check", None, "a", Named::Sidecar),
            (
                "/grpc.health.v1.Health/Check",
                Some("x"),
                "",
                agent("home/x"),
            ),
            (
                "/grpc.reflection.v1.ServerReflection/X",
                None,
                "x.y.agent.attache",
                Named::Sidecar,
            ),
            ("/a.B/C", None, "localhost:80", Named::Nobody),
            ("/a.B/C", Some("other/x"), "", agent("other/x")),
            ("/a.B/C", Some("X!"), "", Named::Unreadable),
            ("/a.B/C", Some(""), "x.y.agent.attache", Named::Unreadable),
            ("/a.B/C", None, "x.y.agent.attache", agent("y/x")),
            ("/a.B/C", None, "x.y.agent.attache:443", agent("y/x")),
            ("/a.B/C", None, "i1.x.y.agent.attache", Named::Nobody),
            ("/a.B/C", None, "x.y.service.attache", Named::Nobody),
            ("/a/b-c.D/E_f", Some("x"), "", agent("home/x")),
            ("/", Some("x"), "", agent("home/x")),
        ] {
            let mut fields = Fields::new();
            fields.push(b":path", path.as_bytes());
            fields.push(b":authority", authority.as_bytes());
            if let Some(said) = said {
                fields.push_known(Name::AttacheAgent, said.as_bytes());
            }
            let namespace = "home".parse().unwrap();
            let found = named(&fields, &namespace, &mut Aims::default());
            assert_eq!(found, expected, "{path} {said:?} {authority}");
        }
    }

    #[test]
    fn a_path_that_servers_read_differently_is_no_method() {
        for path in [
            "",
            "a.B/C",
            "/%61ttache.v1.Handler/Handle",
            "//attache.v1.Handler/Handle",
            "/a/../attache.v1.Handler/Handle",
            "/a/./B/C",
            "/a.B/C?x",
            "/a.B;v=1/C",
            "/a.B\\C",
            "/a/b/attache.v1.Handler/Handle",
        ] {
            let mut fields = Fields::new();
            fields.push(b":path", path.as_bytes());
            fields.push_known(Name::AttacheAgent, b"x");
            let found = named(&fields, &"home".parse().unwrap(), &mut Aims::default());
            assert_eq!(found, Named::Misspelt, "{path}");
        }
    }
}
