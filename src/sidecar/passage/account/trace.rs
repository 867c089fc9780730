//! Trace contexts in header fields. What does not parse is none, and stays as it came.

use crate::{
    h2::hpack::{Fields, Name},
    telemetry::TraceContext,
};

/// Most bytes of a name in a span that a caller chose.
const NAME_MAX: usize = 128;

/// The context that a request comes with; with `state` also what tracing systems tell themselves.
pub(super) fn above(fields: &Fields, state: bool) -> Option<TraceContext> {
    let values = |name: Name| {
        let named = fields.iter().filter(move |field| field.id == name);
        named.map(|field| str::from_utf8(field.value))
    };
    let mut parents = values(Name::Traceparent);
    let parent = parents.next()?.ok()?;
    if parents.next().is_some() {
        return None;
    }
    if !state {
        return TraceContext::parse(parent, "");
    }
    // Several fields are one list; one that is no text spoils all of it.
    let states: Result<Vec<&str>, _> = values(Name::Tracestate).collect();
    TraceContext::parse(parent, &states.unwrap_or_default().join(","))
}

/// Puts a context in the place of what came.
pub(super) fn write(context: &TraceContext, fields: &mut Fields) {
    fields.retain(|field| !matches!(field.id, Name::Traceparent | Name::Tracestate));
    fields.push_known(Name::Traceparent, context.traceparent().as_bytes());
    if !context.tracestate().is_empty() {
        fields.push_known(Name::Tracestate, context.tracestate().as_bytes());
    }
}

/// Service and method of a path, cut, as a span has them.
pub(super) fn parts(path: &str) -> (&str, &str) {
    let path = path.strip_prefix('/').unwrap_or(path);
    let (service, method) = path.rsplit_once('/').unwrap_or((path, ""));
    let cut = |name: &str| name.floor_char_boundary(NAME_MAX);
    (&service[..cut(service)], &method[..cut(method)])
}
