//! The same calls twice, directly and through whatever stands at an address, and everything that
//! both ends see compared: headers in their order by key, bytes of messages, trailers, status,
//! resets.
//!
//! A call is drawn from its number alone ([`plan`]); it carries that number, so the far end
//! ([`server`]) draws the same plan and keeps to it. What a proxy may add is named by the caller,
//! key by key; nothing else is forgiven.

pub mod client;
pub mod plan;
pub mod server;

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use futures_util::{StreamExt, stream};

use self::{plan::Plan, server::Server};

/// Calls at once.
const TOGETHER: usize = 16;

/// `grpc-timeout` of all calls: far above what any takes.
pub const TIMEOUT: &str = "100S";
/// What is left of it at the far end, at least.
const LEFT: Duration = Duration::from_secs(60);

/// How long what a client has seen may take to be seen by the server, too.
const LATE: Duration = Duration::from_secs(5);
/// The same, where it may not be seen at all.
const SOON: Duration = Duration::from_millis(200);

/// Values by key, those of a key in their order.
pub type Fields = BTreeMap<String, Vec<Vec<u8>>>;

/// What one end saw of a call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    pub headers: Fields,
    pub body: Vec<u8>,
    pub trailers: Fields,
    /// `end`, or the code of a reset, or why the connection ended.
    pub end: String,
}

/// What both ends saw of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Both {
    pub client: Seen,
    pub server: Option<Seen>,
}

/// A call that was not the same.
#[derive(Debug)]
pub struct Difference {
    pub seed: u64,
    pub what: Vec<String>,
}

/// What a pair may change.
#[derive(Clone, Debug, Default)]
pub struct Forgiven {
    /// Keys that may be there, or be other, whatever they say.
    pub keys: &'static [&'static str],
    /// Keys whose values may be joined by commas, empty ones left out.
    pub joined: &'static [&'static str],
    /// Codes of resets that may become any other.
    pub reset_codes: bool,
    /// Whether `grpc-timeout` may have become less, by the time that a call has taken.
    pub shortened: bool,
    /// Whether a call that the server resets may have any other end that is no OK.
    pub server_resets: bool,
}

/// Makes the calls of these numbers directly and through `pair`; those that were not the same.
///
/// `direct` and `pair` are where the client connects; both lead to `server`.
pub async fn differences(
    seeds: std::ops::Range<u64>,
    direct: SocketAddr,
    pair: SocketAddr,
    server: &Server,
    forgiven: &Forgiven,
) -> Vec<Difference> {
    let straight = observe(seeds.clone(), direct, server, forgiven).await;
    let through = observe(seeds, pair, server, forgiven).await;
    let both = straight.into_iter().zip(through);
    let differences = both.filter_map(|((seed, one), (_, two))| {
        let what = compare(&one, &two);
        (!what.is_empty()).then_some(Difference { seed, what })
    });
    differences.collect()
}

/// Makes the calls of these numbers, in their order of numbers.
async fn observe(
    seeds: std::ops::Range<u64>,
    at: SocketAddr,
    server: &Server,
    forgiven: &Forgiven,
) -> Vec<(u64, Both)> {
    let line = client::Line::connect(at).await;
    let calls = seeds.map(|seed| {
        let line = line.clone();
        async move {
            let plan = Plan::drawn(seed);
            let client = line.call(&plan).await;
            // One that the client saw no end of may never have come.
            let ended = client.end == "end" || client.end.starts_with("reset");
            let patience = if ended { LATE } else { SOON };
            let server = server.saw(seed, patience).await;
            let both = Both { client, server };
            (seed, both.without(&plan, forgiven))
        }
    });
    stream::iter(calls).buffered(TOGETHER).collect().await
}

impl Both {
    /// Leaves out what may be any, or is by chance.
    fn without(mut self, plan: &Plan, forgiven: &Forgiven) -> Self {
        let server = self.server.as_mut();
        for seen in [Some(&mut self.client), server].into_iter().flatten() {
            for key in forgiven.keys {
                seen.headers.remove(*key);
                seen.trailers.remove(*key);
            }
            for key in forgiven.joined {
                if let Some(values) = seen.headers.get_mut(*key) {
                    values.retain(|value| !value.is_empty());
                    *values = vec![values.join(&b","[..])];
                }
            }
            if forgiven.shortened
                && let Some(left) = seen.headers.get_mut("grpc-timeout")
                && let [left] = &mut left[..]
                && is_shorter(left)
            {
                *left = TIMEOUT.into();
            }
            if forgiven.reset_codes && seen.end.starts_with("reset") {
                seen.end = "reset".to_owned();
            }
        }
        if forgiven.server_resets && matches!(plan.cut, Some(plan::Cut::Server(_))) {
            let status = self.client.headers.get("grpc-status");
            let well = status.is_some_and(|status| status == &[b"0".to_vec()]);
            self.client = Seen::default();
            self.client.end = if well { "OK" } else { "not OK" }.to_owned();
        }
        // How much was on its way when a call ended early is by chance.
        if plan.cuts() {
            self.client.body.clear();
            if let Some(server) = &mut self.server {
                server.body.clear();
            }
        }
        self
    }
}

/// Whether it is what may be left of [`TIMEOUT`].
fn is_shorter(left: &[u8]) -> bool {
    let text = std::str::from_utf8(left).unwrap_or_default();
    let Some((digits, unit)) = text.split_at_checked(text.len().saturating_sub(1)) else {
        return false;
    };
    let micros: u64 = match unit {
        "S" => 1_000_000,
        "m" => 1000,
        "u" => 1,
        _ => return false,
    };
    let most = Duration::from_secs(100);
    let left = digits.parse::<u64>().unwrap_or(0).checked_mul(micros);
    let left = left.map_or(Duration::ZERO, Duration::from_micros);
    digits.len() <= 8 && (LEFT..=most).contains(&left)
}

/// What is not the same, in words.
pub fn compare(one: &Both, two: &Both) -> Vec<String> {
    let mut what = Vec::new();
    // Waits that ended in nothing are no agreement.
    for both in [one, two] {
        let server = both.server.as_ref().map_or("not seen", |seen| &seen.end);
        for end in [both.client.end.as_str(), server] {
            let known = ["end", "reset", "OK", "not OK"];
            if !known.iter().any(|known| end.starts_with(known)) {
                what.push(format!("no proper end: {end:?}"));
            }
        }
    }
    seen("the client", &one.client, &two.client, &mut what);
    match (&one.server, &two.server) {
        (Some(one), Some(two)) => seen("the server", one, two, &mut what),
        (None, None) => {}
        (one, _) => {
            let which = if one.is_some() {
                "directly"
            } else {
                "through the pair"
            };
            what.push(format!("only {which} the server saw the call at all"));
        }
    }
    what
}

fn seen(who: &str, one: &Seen, two: &Seen, what: &mut Vec<String>) {
    fields(&format!("{who}, headers"), &one.headers, &two.headers, what);
    fields(
        &format!("{who}, trailers"),
        &one.trailers,
        &two.trailers,
        what,
    );
    if one.body != two.body {
        let place = one
            .body
            .iter()
            .zip(&two.body)
            .position(|(one, two)| one != two);
        let (one, two) = (one.body.len(), two.body.len());
        what.push(format!(
            "{who}, body: {one} and {two} bytes, other from {place:?} on"
        ));
    }
    if one.end != two.end {
        what.push(format!("{who}, end: {:?}, {:?}", one.end, two.end));
    }
}

fn fields(who: &str, one: &Fields, two: &Fields, what: &mut Vec<String>) {
    let keys: std::collections::BTreeSet<_> = one.keys().chain(two.keys()).collect();
    for key in keys {
        let (one, two) = (one.get(key), two.get(key));
        if one != two {
            let shown = |values: Option<&Vec<Vec<u8>>>| {
                let values = values.into_iter().flatten();
                let values = values.map(|value| String::from_utf8_lossy(value).into_owned());
                let mut text = format!("{:?}", values.collect::<Vec<_>>());
                text.truncate(text.floor_char_boundary(120));
                text
            };
            what.push(format!("{who}, {key}: {}, {}", shown(one), shown(two)));
        }
    }
}
