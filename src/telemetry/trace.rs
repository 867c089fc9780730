//! Where a piece of work belongs: the trace, and the span above it, as W3C Trace Context has them.
//!
//! Parsed at the door and bounded there. What does not parse is a fresh start, never an error: a
//! trace is not worth a task. Nothing is made up here either: without a context of the caller and
//! without an exporter there is none, so that agents which trace by themselves decide on their own.

use std::{fmt, str};

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};
use tonic::Request;

/// Name of the header, and of the gRPC metadata, with trace and span.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// Name of the one with what tracing systems tell themselves.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// Most bytes of a tracestate that travel on: what the specification asks of everybody. It is kept
/// with every task, so it is no more than that.
pub const TRACESTATE_MAX: usize = 512;
/// Members of a tracestate above this go first where it is too long.
const MEMBER_LONG: usize = 128;
/// Most members of a tracestate.
const MEMBERS_MAX: usize = 32;
/// Bytes of a traceparent of version 00.
const PARENT_BYTES: usize = 55;
/// Flags that have a meaning: sampled, and random trace id.
const FLAGS_KNOWN: u8 = 0b11;
const FLAG_SAMPLED: u8 = 0b01;

/// A trace and the span in it under which the next piece of work goes.
#[derive(Clone, PartialEq, Eq)]
pub struct TraceContext {
    trace: [u8; 16],
    span: [u8; 8],
    flags: u8,
    state: Box<str>,
}

impl TraceContext {
    /// Reads both headers; `None` where `traceparent` is not one. A `tracestate` that is not one
    /// is left out.
    pub fn parse(traceparent: &str, tracestate: &str) -> Option<Self> {
        let text = traceparent.as_bytes();
        let (fixed, rest) = text.split_at_checked(PARENT_BYTES)?;
        let [version] = bytes(fixed.get(..2)?)?;
        let longer = version > 0 && rest.first() == Some(&b'-');
        let dashed = [2, 35, 52].iter().all(|place| fixed[*place] == b'-');
        if version == 0xff || !dashed || !(rest.is_empty() || longer) {
            return None;
        }
        let trace = bytes(&fixed[3..35])?;
        let span = bytes(&fixed[36..52])?;
        let [flags] = bytes(&fixed[53..])?;
        if trace == [0; 16] || span == [0; 8] {
            return None;
        }
        Some(Self {
            trace,
            span,
            flags: flags & FLAGS_KNOWN,
            state: bounded(tracestate).into(),
        })
    }

    /// The context in a call's headers or metadata, if there is one.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut parents = headers.get_all(TRACEPARENT).iter();
        let parent = parents.next()?.to_str().ok()?;
        if parents.next().is_some() {
            return None;
        }
        // Several headers are one list; one that is no text spoils all of it.
        let states = headers.get_all(TRACESTATE).iter().map(HeaderValue::to_str);
        let states = states.collect::<Result<Vec<_>, _>>().unwrap_or_default();
        Self::parse(parent, &states.join(","))
    }

    /// The context of a gRPC request, if there is one.
    pub fn of_request<T>(request: &Request<T>) -> Option<Self> {
        Self::of(request.metadata().as_ref())
    }

    /// Puts it into a call's headers, in the place of what is there.
    pub fn write(&self, headers: &mut HeaderMap) {
        let value =
            |text: &str| HeaderValue::from_str(text).expect("only visible ASCII was let in");
        headers.insert(TRACEPARENT, value(&self.traceparent()));
        if self.state.is_empty() {
            headers.remove(TRACESTATE);
        } else {
            headers.insert(TRACESTATE, value(&self.state));
        }
    }

    /// A request that carries `trace`, where there is one.
    pub fn on<T>(trace: Option<&Self>, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(trace) = trace {
            trace.write(request.metadata_mut().as_mut());
        }
        request
    }

    /// `00-<trace>-<span>-<flags>`, 55 bytes.
    pub fn traceparent(&self) -> String {
        format!(
            "00-{}-{}-{:02x}",
            self.trace_id(),
            self.span_id(),
            self.flags
        )
    }

    /// What tracing systems tell themselves; at most [`TRACESTATE_MAX`] bytes.
    pub fn tracestate(&self) -> &str {
        &self.state
    }

    /// The trace, 32 hexadecimal digits.
    pub fn trace_id(&self) -> String {
        format!("{:032x}", u128::from_be_bytes(self.trace))
    }

    /// The span above, 16 hexadecimal digits.
    pub fn span_id(&self) -> String {
        format!("{:016x}", u64::from_be_bytes(self.span))
    }

    /// Whether those above record it.
    pub fn is_sampled(&self) -> bool {
        self.flags & FLAG_SAMPLED != 0
    }

    /// As the exporter's library has it.
    pub(super) fn to_span(&self) -> SpanContext {
        SpanContext::new(
            TraceId::from_bytes(self.trace),
            SpanId::from_bytes(self.span),
            TraceFlags::new(self.flags),
            true,
            self.state.parse().unwrap_or(TraceState::NONE),
        )
    }

    /// The context under a span of the exporter's library.
    pub(super) fn of_span(span: &SpanContext) -> Option<Self> {
        span.is_valid().then(|| Self {
            trace: span.trace_id().to_bytes(),
            span: span.span_id().to_bytes(),
            flags: span.trace_flags().to_u8() & FLAGS_KNOWN,
            state: bounded(&span.trace_state().header()).into(),
        })
    }
}

impl fmt::Debug for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.traceparent())
    }
}

/// Lower case hexadecimal digits as bytes: upper case is not valid here.
fn bytes<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    if digits.len() != 2 * N {
        return None;
    }
    let mut all = [0; N];
    for (byte, pair) in all.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(all)
}

/// A tracestate within its bound, without what the specification lets go first; empty where it is
/// not one.
fn bounded(state: &str) -> String {
    let members = state
        .split(',')
        .map(|member| member.trim_matches([' ', '\t']));
    let mut kept: Vec<&str> = members.filter(|member| !member.is_empty()).collect();
    let mut keys: Vec<&str> = kept.iter().filter_map(|member| key(member)).collect();
    keys.sort_unstable();
    keys.dedup();
    // Whoever repeats a key or writes what is no member cannot be understood at all.
    if keys.len() != kept.len() || kept.len() > MEMBERS_MAX {
        return String::new();
    }
    let length = |kept: &[&str]| kept.iter().map(|member| member.len() + 1).sum::<usize>();
    while length(&kept) > TRACESTATE_MAX + 1 {
        let long = kept.iter().rposition(|member| member.len() > MEMBER_LONG);
        kept.remove(long.unwrap_or(kept.len() - 1));
    }
    kept.join(",")
}

/// The key of a list member, if it is one.
fn key(member: &str) -> Option<&str> {
    let (key, value) = member.split_once('=')?;
    let is_name = |name: &str, most: usize, digit_first: bool| {
        let first = name.bytes().next();
        (1..=most).contains(&name.len())
            && first.is_some_and(|c| c.is_ascii_lowercase() || digit_first && c.is_ascii_digit())
            && name
                .bytes()
                .all(|c| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'*' | b'/'))
    };
    let known = match key.split_once('@') {
        Some((tenant, system)) => is_name(tenant, 241, true) && is_name(system, 14, false),
        None => is_name(key, 256, false),
    };
    let sound = (1..=256).contains(&value.len())
        && value.bytes().all(|c| matches!(c, b' '..=b'~') && c != b'=')
        && !value.ends_with(' ');
    (known && sound).then_some(key)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn parse(parent: &str) -> Option<String> {
        TraceContext::parse(parent, "").map(|context| context.traceparent())
    }

    #[test]
    fn traceparents_are_read_as_the_specification_has_them() {
        let body = &PARENT[3..52];
        for (text, read) in [
            (PARENT.to_owned(), Some(PARENT.to_owned())),
            (format!("00-{body}-00"), Some(format!("00-{body}-00"))),
            (format!("00-{body}-02"), Some(format!("00-{body}-02"))),
            // Flags without a meaning do not travel on.
            (format!("00-{body}-ff"), Some(format!("00-{body}-03"))),
            // Later versions may have more at their end, and are answered with ours.
            (format!("01-{body}-01"), Some(PARENT.to_owned())),
            (format!("cc-{body}-01-what-comes"), Some(PARENT.to_owned())),
            (format!("cc-{body}-01.what"), None),
            (format!("00-{body}-01-what"), None),
            (format!("ff-{body}-01"), None),
            (format!("00-{}-01", body.to_uppercase()), None),
            (format!("00-{body}-0"), None),
            (format!("00-{body}-0x"), None),
            (format!("00_{body}-01"), None),
            (format!(" {PARENT}"), None),
            (
                PARENT.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
                None,
            ),
            (PARENT.replace("b7ad6b7169203331", &"0".repeat(16)), None),
            (PARENT.replace("b7ad", "bé6"), None),
            (String::new(), None),
            ("00".into(), None),
            ("-".repeat(55), None),
        ] {
            assert_eq!(parse(&text), read, "{text}");
        }
    }

    #[test]
    fn tracestates_are_read_as_the_specification_has_them() {
        let state = |text: &str| {
            TraceContext::parse(PARENT, text)
                .unwrap()
                .state
                .into_string()
        };
        for (text, read) in [
            (
                "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE",
                "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE",
            ),
            (" a=1 ,\t, b=2\t", "a=1,b=2"),
            ("a=1,", "a=1"),
            ("", ""),
            ("fw529a3039@dt=FfAAA/b c", "fw529a3039@dt=FfAAA/b c"),
            ("0tenant@sys=1", "0tenant@sys=1"),
            ("0simple=1", ""),
            ("a@b@c=1", ""),
            ("a@system-is-too-long=1", ""),
            ("A=1", ""),
            ("a=", ""),
            ("a", ""),
            ("a=1=2", ""),
            ("a=1,a=2", ""),
            ("a=\u{7f}", ""),
            ("a=é", ""),
            ("good=1,b ad=2", ""),
        ] {
            assert_eq!(state(text), read, "{text:?}");
        }
        let many: Vec<String> = (0..33).map(|n| format!("k{n}=v")).collect();
        assert_eq!(state(&many.join(",")), "");
        assert_eq!(state(&many[..32].join(",")), many[..32].join(","));
    }

    #[test]
    fn a_long_tracestate_loses_long_members_first_and_then_the_last() {
        let state = |text: &str| {
            TraceContext::parse(PARENT, text)
                .unwrap()
                .state
                .into_string()
        };
        let long = format!("long={}", "x".repeat(200));
        let short: Vec<String> = (0..9).map(|n| format!("k{n}={}", "y".repeat(45))).collect();
        let short = short.join(",");
        assert_eq!(
            state(&format!("a=1,{long},{short},z=1")),
            format!("a=1,{short},z=1")
        );
        let middle: Vec<String> = (0..6).map(|n| format!("k{n}={}", "y".repeat(96))).collect();
        assert_eq!(state(&middle.join(",")), middle[..5].join(","));
        let exact = format!(
            "a={},b={},c={}",
            "x".repeat(200),
            "x".repeat(200),
            "x".repeat(104)
        );
        assert_eq!(exact.len(), TRACESTATE_MAX);
        assert_eq!(state(&exact), exact);
    }

    #[test]
    fn headers_carry_it_and_two_parents_are_none() {
        let context = TraceContext::parse(PARENT, "a=1").unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(TRACEPARENT, HeaderValue::from_static("old"));
        context.write(&mut headers);
        assert_eq!(TraceContext::of(&headers), Some(context.clone()));
        headers.append(TRACESTATE, HeaderValue::from_static("b=2"));
        assert_eq!(TraceContext::of(&headers).unwrap().tracestate(), "a=1,b=2");
        headers.append(TRACESTATE, HeaderValue::from_bytes(b"c=\xff").unwrap());
        assert_eq!(TraceContext::of(&headers).unwrap().tracestate(), "");
        headers.append(TRACEPARENT, HeaderValue::from_static(PARENT));
        assert_eq!(TraceContext::of(&headers), None);

        let request = TraceContext::on(Some(&context), ());
        assert_eq!(TraceContext::of_request(&request), Some(context.clone()));
        assert_eq!(TraceContext::of_request(&TraceContext::on(None, ())), None);
        assert_eq!(context.trace_id(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(context.span_id(), "b7ad6b7169203331");
        assert!(context.is_sampled());
        let there_and_back = TraceContext::of_span(&context.to_span());
        assert_eq!(there_and_back, Some(context));
    }

    proptest! {
        #[test]
        fn any_ids_travel_unchanged(trace in 1..u128::MAX, span in 1..u64::MAX, flags in 0..4_u8) {
            let text = format!("00-{trace:032x}-{span:016x}-{flags:02x}");
            let read = parse(&text);
            prop_assert_eq!(read.as_deref(), Some(text.as_str()));
        }

        #[test]
        fn no_input_is_too_hostile(parent in ".{0,80}", state in ".{0,2000}") {
            let _ = TraceContext::parse(&parent, &state);
            let context = TraceContext::parse(PARENT, &state).unwrap();
            prop_assert!(context.tracestate().len() <= TRACESTATE_MAX);
            // What was let in can be written, and is the same when it is read again.
            let mut headers = HeaderMap::new();
            context.write(&mut headers);
            prop_assert_eq!(TraceContext::of(&headers), Some(context));
        }

        #[test]
        fn sound_members_are_kept_within_the_bound(
            members in prop::collection::btree_map("[a-z][a-z0-9]{0,20}", "[!-+\\--<>-~]{1,250}", 1..40)
        ) {
            let all: Vec<String> = members.iter().map(|(key, value)| format!("{key}={value}")).collect();
            let state = TraceContext::parse(PARENT, &all.join(",")).unwrap().state.into_string();
            prop_assert!(state.len() <= TRACESTATE_MAX);
            prop_assert!(state.split(',').filter(|m| !m.is_empty()).all(|m| all.iter().any(|a| a == m)));
            if all.len() <= MEMBERS_MAX && all.join(",").len() <= TRACESTATE_MAX {
                prop_assert_eq!(state, all.join(","));
            }
        }
    }
}
