//! What is scraped, on its way to its text.

use std::time::Duration;

use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, MetricFamily, MetricType};
use prometheus::{TextEncoder, proto};

use super::catalogue::{Kind, Metric};
use crate::forward::Latency;

/// Metric families in the order in which they were added.
#[derive(Debug, Default)]
pub struct Page {
    families: Vec<MetricFamily>,
}

impl Page {
    /// A metric without labels.
    pub fn one(&mut self, metric: &Metric, value: f64) {
        self.add(metric, [(vec![], value)]);
    }

    /// A metric with a value for each set of labels; none at all, and it is left out.
    pub fn add<'a>(&mut self, metric: &Metric, values: impl IntoIterator<Item = (Vec<&'a str>, f64)>) {
        let samples = values.into_iter().map(|(labels, value)| {
            let mut sample = proto::Metric::from_label(pairs(metric, &labels));
            match metric.kind {
                Kind::Counter => {
                    let mut counter = Counter::default();
                    counter.set_value(value);
                    sample.set_counter(counter);
                }
                Kind::Gauge | Kind::Histogram => {
                    let mut gauge = Gauge::default();
                    gauge.set_value(value);
                    sample.set_gauge(gauge);
                }
            }
            sample
        });
        self.push(metric, samples.collect());
    }

    /// A histogram for each set of labels.
    pub fn histograms<'a>(
        &mut self,
        metric: &Metric,
        values: impl IntoIterator<Item = (Vec<&'a str>, Latency)>,
    ) {
        let samples = values.into_iter().map(|(labels, latency)| {
            let buckets = latency.cumulative().map(|(bound, count)| {
                let mut bucket = Bucket::default();
                bucket.set_upper_bound(bound.as_secs_f64());
                bucket.set_cumulative_count(count);
                bucket
            });
            let mut histogram = Histogram::default();
            histogram.set_bucket(buckets.collect());
            let (count, sum) = latency.total();
            histogram.set_sample_count(count);
            histogram.set_sample_sum(Duration::as_secs_f64(&sum));
            let mut sample = proto::Metric::from_label(pairs(metric, &labels));
            sample.set_histogram(histogram);
            sample
        });
        self.push(metric, samples.collect());
    }

    /// Families that somebody else has made.
    pub fn extend(&mut self, families: Vec<MetricFamily>) {
        self.families.extend(families);
    }

    /// The exposition format of Prometheus, version 0.0.4.
    ///
    /// # Errors
    /// A family that has no sample, of which this lets none in.
    pub fn encode(&self) -> Result<String, prometheus::Error> {
        TextEncoder::new().encode_to_string(&self.families)
    }

    fn push(&mut self, metric: &Metric, samples: Vec<proto::Metric>) {
        if samples.is_empty() {
            return;
        }
        let mut family = MetricFamily::default();
        family.set_name(metric.name.to_owned());
        family.set_help(metric.meaning.to_owned());
        family.set_field_type(match metric.kind {
            Kind::Counter => MetricType::COUNTER,
            Kind::Gauge => MetricType::GAUGE,
            Kind::Histogram => MetricType::HISTOGRAM,
        });
        family.set_metric(samples);
        self.families.push(family);
    }
}

fn pairs(metric: &Metric, values: &[&str]) -> Vec<LabelPair> {
    debug_assert_eq!(metric.labels.len(), values.len(), "{}", metric.name);
    let pairs = metric.labels.iter().zip(values).map(|(name, value)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    });
    pairs.collect()
}
