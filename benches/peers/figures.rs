//! What is measured, and what one measurement gives.

use serde_json::Value;

/// What callers do.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// Arguments of `attache bench`.
    pub(crate) arguments: &'static [&'static str],
}

/// One measurement of one case on one system.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    /// Calls, or messages of streams, per second.
    pub(crate) rate: f64,
    /// Microseconds; `None` for streams.
    pub(crate) p50: Option<f64>,
    pub(crate) p99: Option<f64>,
    /// Seconds of processor's time per 10,000 calls, or per 10 million messages, of both proxies.
    pub(crate) cpu: Option<f64>,
}

macro_rules! case {
    ($name:literal, $size:literal, $callers:literal $(, $more:literal)*) => {
        Case {
            name: $name,
            arguments: &["--size", $size, "--callers", $callers $(, $more)*],
        }
    };
}

impl Case {
    pub(crate) const ALL: &[Self] = &[
        case!("128 B, 1 caller", "128", "1"),
        case!("128 B, 32 callers", "128", "32"),
        case!("128 B, 256 callers", "128", "256"),
        case!("16 KiB, 1 caller", "16KiB", "1"),
        case!("16 KiB, 32 callers", "16KiB", "32"),
        case!("16 KiB, 256 callers", "16KiB", "256"),
        case!("128 B, 8 streams", "128", "8", "--kind", "server-stream"),
    ];

    /// Calls, or messages, that a second of processor's time is counted for.
    pub(crate) fn unit(&self) -> f64 {
        if self.arguments.contains(&"server-stream") {
            1e7
        } else {
            1e4
        }
    }
}

impl Figures {
    /// From what `attache bench` printed; `spent` is the proxies' time meanwhile.
    pub(crate) fn of(case: &Case, printed: &Value, spent: Option<f64>) -> Option<Self> {
        let count = printed["count"].as_f64().filter(|count| *count > 0.0)?;
        Some(Self {
            rate: printed["per_second"].as_f64()?,
            p50: printed["latency_us"]["p50"].as_f64(),
            p99: printed["latency_us"]["p99"].as_f64(),
            cpu: spent.map(|spent| spent * case.unit() / count),
        })
    }
}

/// The median of each of them; `None` where it is of none.
pub(crate) fn medians(all: &[Figures]) -> Option<Figures> {
    let median = |of: &dyn Fn(&Figures) -> Option<f64>| {
        let mut values: Vec<f64> = all.iter().filter_map(of).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    };
    Some(Figures {
        rate: median(&|one| Some(one.rate))?,
        p50: median(&|one| one.p50),
        p99: median(&|one| one.p99),
        cpu: median(&|one| one.cpu),
    })
}
