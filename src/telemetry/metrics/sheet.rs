//! One scrape: every source writes its rows into it, family by family.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet},
    metrics::MetricType,
    registry::Unit,
};

use super::family::{Family, Kind};
use super::histogram::Histogram;

/// Something that can be read at a scrape. It must not block.
pub trait Source: Send + Sync + 'static {
    /// Writes its families, each with all its rows at once.
    fn write(&self, sheet: &mut Sheet<'_>);
}

impl<F: Fn(&mut Sheet<'_>) + Send + Sync + 'static> Source for F {
    fn write(&self, sheet: &mut Sheet<'_>) {
        self(sheet);
    }
}

/// What a scrape has so far.
pub struct Sheet<'a> {
    encoder: DescriptorEncoder<'a>,
    /// The writer is a string: it fails never, but the encoder's types say that it may.
    outcome: fmt::Result,
}

impl Sheet<'_> {
    /// A gauge with its rows: values of the labels, in their order, and a number.
    pub fn gauge<'l, const N: usize>(
        &mut self,
        family: &Family<N>,
        rows: impl IntoIterator<Item = ([&'l str; N], f64)>,
    ) {
        debug_assert_eq!(family.kind, Kind::Gauge, "{}", family.name);
        self.rows(family, rows, |value: f64, encoder| match whole(value) {
            Some(whole) => encoder.encode_gauge(&whole),
            None => encoder.encode_gauge(&value),
        });
    }

    /// A counter with its rows. It must never go back while the process lives.
    pub fn counter<'l, const N: usize>(
        &mut self,
        family: &Family<N>,
        rows: impl IntoIterator<Item = ([&'l str; N], f64)>,
    ) {
        debug_assert_eq!(family.kind, Kind::Counter, "{}", family.name);
        self.rows(family, rows, |value: f64, encoder| match whole(value) {
            Some(whole) => {
                let whole = whole.unsigned_abs();
                encoder.encode_counter::<NoLabelSet, u64, f64>(&whole, None)
            }
            None => encoder.encode_counter::<NoLabelSet, f64, f64>(&value, None),
        });
    }

    /// Histograms by labels.
    pub fn histogram<'l, const N: usize>(
        &mut self,
        family: &Family<N>,
        rows: impl IntoIterator<Item = ([&'l str; N], &'l Histogram)>,
    ) {
        debug_assert_eq!(family.kind, Kind::Histogram, "{}", family.name);
        self.rows(family, rows, |histogram: &Histogram, encoder| {
            let (sum, buckets) = histogram.read();
            let count = buckets.iter().map(|(_, count)| count).sum();
            encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
        });
    }

    fn rows<'l, const N: usize, V>(
        &mut self,
        family: &Family<N>,
        rows: impl IntoIterator<Item = ([&'l str; N], V)>,
        encode: impl Fn(V, &mut MetricEncoder<'_>) -> fmt::Result,
    ) {
        self.outcome = self.outcome.and_then(|()| {
            let unit = family.unit.map(|unit| Unit::Other(unit.to_owned()));
            let kind = match family.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
                Kind::Histogram => MetricType::Histogram,
            };
            let stem = family.stem();
            let mut encoder =
                self.encoder
                    .encode_descriptor(stem, family.help, unit.as_ref(), kind)?;
            for (values, value) in rows {
                if N == 0 {
                    encode(value, &mut encoder)?;
                    continue;
                }
                let labels: Vec<(&str, &str)> = family.labels.into_iter().zip(values).collect();
                encode(value, &mut encoder.encode_family(&labels)?)?;
            }
            Ok(())
        });
    }
}

impl fmt::Debug for Sheet<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sheet")
    }
}

/// A whole number as one: easier to read, and as exact.
fn whole(value: f64) -> Option<i64> {
    /// Beyond it not every whole number is one of floating point.
    const EXACT: f64 = (1_u64 << 53) as f64;
    #[allow(
        clippy::cast_possible_truncation,
        reason = "whole, and within its bounds"
    )]
    (value.fract() == 0.0 && value.abs() <= EXACT).then_some(value as i64)
}

/// A source as the registry takes it.
pub(super) struct Collected<S>(pub(super) S);

impl<S> fmt::Debug for Collected<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Source")
    }
}

impl<S: Source> Collector for Collected<S> {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut sheet = Sheet {
            encoder,
            outcome: Ok(()),
        };
        self.0.write(&mut sheet);
        sheet.outcome
    }
}
