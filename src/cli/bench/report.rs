//! What a bench has measured, for people and for programs.

use std::time::Duration;

use serde_json::{Value, json};
use tonic::Code;

use super::{args::Kind, load::Plan, tally::Tally};
use crate::cli::output::Output;
use crate::config::{Size, Span};

/// Shares that are shown, in parts of 1000, and their names.
const SHARES: [(u64, &str); 4] = [(500, "p50"), (900, "p90"), (990, "p99"), (999, "p99_9")];

/// A measurement and what was measured.
pub(super) struct Report<'a> {
    pub(super) plan: &'a Plan,
    pub(super) target: &'a str,
    pub(super) size: Size,
    pub(super) answer: Size,
    pub(super) tally: &'a Tally,
}

impl Report<'_> {
    /// Prints it.
    pub(super) fn print(&self, output: &Output) {
        if output.is_json() {
            output.json(&self.json());
            return;
        }
        output.note(&self.heading());
        output.table(&self.header(), vec![self.row()]);
        let rows = self.failures().map(|(name, count, text)| {
            let text = if text.is_empty() { "-" } else { text };
            vec![name, count.to_string(), text.to_owned()]
        });
        let rows: Vec<_> = rows.collect();
        if !rows.is_empty() {
            output.table(&["status", "calls", "the first one said"], rows);
        }
    }

    /// Messages per second of a stream that is read, calls or exchanges per second otherwise.
    fn per_second(&self) -> f64 {
        self.count() as f64 / self.plan.time.as_secs_f64().max(1e-9)
    }

    fn count(&self) -> u64 {
        match self.plan.kind {
            Kind::Unary | Kind::PingPong => self.tally.took.count(),
            Kind::ServerStream => self.tally.messages,
        }
    }

    fn heading(&self) -> String {
        let Plan {
            kind,
            callers,
            connections,
            ..
        } = self.plan;
        let kind = match kind {
            Kind::Unary => "unary calls",
            Kind::ServerStream => "streams of answers",
            Kind::PingPong => "streams, message by message",
        };
        let pace = match self.plan.rate {
            Some(rate) => format!("{rate} a second come due (open loop)"),
            None => "each as soon as it can (closed loop)".to_owned(),
        };
        let s = |count: &usize| if *count == 1 { "" } else { "s" };
        format!(
            "{}: {kind}, {} there and {} back; {callers} caller{} on {connections} connection{}, {pace}; {}",
            self.target,
            self.size,
            self.answer,
            s(callers),
            s(connections),
            Span(self.plan.time),
        )
    }

    fn header(&self) -> [&'static str; 8] {
        let rate = match self.plan.kind {
            Kind::Unary => "calls/s",
            Kind::ServerStream | Kind::PingPong => "messages/s",
        };
        ["p50", "p90", "p99", "p99.9", "max", "mean", rate, "failed"]
    }

    fn row(&self) -> Vec<String> {
        let took = &self.tally.took;
        let shares = SHARES.iter().map(|(share, _)| took.within(*share));
        let times = shares.chain([took.longest(), took.mean()]);
        let shown = times.map(|time| match took.count() {
            0 => "-".to_owned(),
            _ => shown(time),
        });
        let mut row: Vec<_> = shown.collect();
        row.push(thousands(self.per_second()));
        row.push(self.tally.failed_calls().to_string());
        row
    }

    fn failures(&self) -> impl Iterator<Item = (String, u64, &str)> {
        let failures = self.tally.failures.iter();
        failures.map(|(code, (count, text))| (name(*code), *count, text.as_str()))
    }

    fn json(&self) -> Value {
        let took = &self.tally.took;
        let micros = |time: Duration| json!(time.as_secs_f64() * 1e6);
        let mut latency = serde_json::Map::new();
        if took.count() > 0 {
            for (share, name) in SHARES {
                latency.insert(name.to_owned(), micros(took.within(share)));
            }
            latency.insert("max".to_owned(), micros(took.longest()));
            latency.insert("mean".to_owned(), micros(took.mean()));
        }
        let failures = self
            .failures()
            .map(|(name, count, text)| json!({"status": name, "calls": count, "first": text}));
        let kind = match self.plan.kind {
            Kind::Unary => "unary",
            Kind::ServerStream => "server-stream",
            Kind::PingPong => "ping-pong",
        };
        json!({
            "target": self.target,
            "kind": kind,
            "size": self.size.0,
            "answer": self.answer.0,
            "callers": self.plan.callers,
            "connections": self.plan.connections,
            "threads": self.plan.threads,
            "rate": self.plan.rate,
            "seconds": self.plan.time.as_secs_f64(),
            "count": self.count(),
            "per_second": self.per_second(),
            "latency_us": latency,
            "failed": self.tally.failed_calls(),
            "failures": failures.collect::<Vec<_>>(),
        })
    }
}

/// Name of a gRPC status, as the specification writes it.
fn name(code: i32) -> String {
    // The library has them as words of a sentence only.
    let words = format!("{:?}", Code::from_i32(code));
    let mut name = String::new();
    for letter in words.chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

/// Three digits and their unit.
fn shown(time: Duration) -> String {
    let micros = time.as_secs_f64() * 1e6;
    let (value, unit) = match micros {
        ..1e3 => (micros, "µs"),
        ..1e6 => (micros / 1e3, "ms"),
        _ => (micros / 1e6, "s"),
    };
    let digits = match value {
        ..10.0 => 2,
        ..100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {unit}")
}

fn thousands(rate: f64) -> String {
    let digits = if rate < 100.0 { 1 } else { 0 };
    let plain = format!("{rate:.digits$}");
    let (whole, rest) = plain.split_at(plain.find('.').unwrap_or(plain.len()));
    let mut grouped = String::new();
    for (place, digit) in whole.chars().enumerate() {
        if place > 0 && (whole.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits_and_a_unit() {
        for (nanos, text) in [
            (950, "0.95 µs"),
            (99_900, "99.9 µs"),
            (641_000, "641 µs"),
            (2_398_000, "2.40 ms"),
            (24_003_000, "24.0 ms"),
            (1_204_000_000, "1.20 s"),
        ] {
            assert_eq!(shown(Duration::from_nanos(nanos)), text);
        }
        for (rate, text) in [
            (0.0, "0.0"),
            (7.25, "7.2"),
            (110_123.4, "110,123"),
            (6.8e6, "6,800,000"),
        ] {
            assert_eq!(thousands(rate), text);
        }
        assert_eq!(name(4), "DEADLINE_EXCEEDED");
        assert_eq!(name(14), "UNAVAILABLE");
    }
}
