//! What a measurement found, for people and for programs.

use std::{fmt::Write as _, time::Duration};

use serde::Serialize;

/// The samples of one thing that was measured, in the order in which they were taken.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    times: Vec<Duration>,
    failures: Vec<String>,
}

impl Samples {
    /// Records one try. The time of a call that failed is the time of something else, so it isn't kept.
    pub(crate) fn add(&mut self, outcome: Result<Duration, String>) {
        match outcome {
            Ok(time) => self.times.push(time),
            Err(reason) => self.failures.push(reason),
        }
    }

    /// The spread of what succeeded.
    pub(crate) fn timing(mut self, subject: &str) -> Timing {
        self.times.sort_unstable();
        let quantile = |per_cent: usize| {
            let last = self.times.len().checked_sub(1)?;
            Some(self.times[(last * per_cent + 50) / 100].as_secs_f64() * 1000.0)
        };
        Timing {
            subject: subject.to_owned(),
            median_ms: quantile(50),
            p10_ms: quantile(10),
            p90_ms: quantile(90),
            p99_ms: quantile(99),
            succeeded: self.times.len(),
            failed: self.failures.len(),
            first_failure: self.failures.into_iter().next(),
        }
    }
}

/// How long one subject took, in milliseconds.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Timing {
    subject: String,
    /// This and the percentiles are absent when every try failed.
    median_ms: Option<f64>,
    p10_ms: Option<f64>,
    p90_ms: Option<f64>,
    p99_ms: Option<f64>,
    succeeded: usize,
    failed: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_failure: Option<String>,
}

/// Several subjects doing the same thing; the first one is ours.
#[derive(Debug, Serialize)]
pub(crate) struct Comparison {
    pub(crate) what: String,
    pub(crate) timings: Vec<Timing>,
    /// What the timings come to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) figures: Vec<Figure>,
}

impl Comparison {
    pub(crate) fn new(what: impl Into<String>, timings: Vec<Timing>) -> Self {
        Self { what: what.into(), timings, figures: Vec::new() }
    }

    /// Adds how many times as long as `other` ours took, if both took part.
    pub(crate) fn at_most(self, other: &str, limit: f64) -> Self {
        let value = self.quotient(self.first(), other);
        self.with(Figure::new(format!("ours to {other}"), value, "x", Some(Limit::AtMost(limit))))
    }

    /// Adds how many times as fast as `other` ours was.
    pub(crate) fn times_as_fast(self, other: &str, limit: f64) -> Self {
        let value = self.quotient(self.first(), other).map(f64::recip);
        self.with(Figure::new(format!("ours as fast as {other}"), value, "x", Some(Limit::AtLeast(limit))))
    }

    /// The same of the slowest hundredth of each.
    pub(crate) fn times_as_fast_at_p99(self, other: &str, limit: f64) -> Self {
        let p99 = |subject: &str| self.timing(subject)?.p99_ms;
        let value = p99(other).zip(p99(self.first())).map(|(other, ours)| other / ours);
        self.with(Figure::new(format!("ours as fast as {other}, p99"), value, "x", Some(Limit::AtLeast(limit))))
    }

    /// Adds how many times as fast as `other` one of the subjects was.
    pub(crate) fn speed(self, subject: &str, other: &str, limit: Option<Limit>) -> Self {
        let value = self.quotient(subject, other).map(f64::recip);
        self.with(Figure::new(format!("{subject} as fast as {other}"), value, "x", limit))
    }

    /// Adds how many times as long as `other` one of the subjects took.
    pub(crate) fn ratio(self, subject: &str, other: &str, limit: Option<Limit>) -> Self {
        let value = self.quotient(subject, other);
        self.with(Figure::new(format!("{subject} to {other}"), value, "x", limit))
    }

    pub(crate) fn with(mut self, figure: Figure) -> Self {
        self.figures.push(figure);
        self
    }

    pub(crate) fn median_ms(&self, subject: &str) -> Option<f64> {
        self.timing(subject)?.median_ms
    }

    fn timing(&self, subject: &str) -> Option<&Timing> {
        self.timings.iter().find(|timing| timing.subject == subject)
    }

    fn first(&self) -> &str {
        self.timings.first().map_or("", |timing| &timing.subject)
    }

    fn quotient(&self, subject: &str, other: &str) -> Option<f64> {
        Some(self.median_ms(subject)? / self.median_ms(other)?)
    }
}

/// What a figure has to reach.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Limit {
    AtMost(f64),
    AtLeast(f64),
}

/// One number that was found, and the limit it is held to if it is.
#[derive(Debug, Serialize)]
pub(crate) struct Figure {
    what: String,
    /// Absent when a subject failed every time.
    value: Option<f64>,
    unit: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<Limit>,
    /// What wasn't found isn't met.
    #[serde(skip_serializing_if = "Option::is_none")]
    met: Option<bool>,
}

impl Figure {
    pub(crate) fn new(what: impl Into<String>, value: Option<f64>, unit: &'static str, limit: Option<Limit>) -> Self {
        let met = limit.map(|limit| {
            value.is_some_and(|value| match limit {
                Limit::AtMost(limit) => value <= limit,
                Limit::AtLeast(limit) => value >= limit,
            })
        });
        Self { what: what.into(), value, unit, limit, met }
    }

    fn line(&self) -> String {
        let value = decimals(self.value);
        let mut line = format!("{}: {value} {}", self.what, self.unit);
        if let Some(limit) = self.limit {
            let (word, limit) = match limit {
                Limit::AtMost(limit) => ("at most", limit),
                Limit::AtLeast(limit) => ("at least", limit),
            };
            let verdict = if self.met == Some(true) { "met" } else { "NOT met" };
            line.push_str(&format!(" (limit: {word} {limit:.2}, {verdict})"));
        }
        line
    }
}

/// Where the time of something goes.
#[derive(Debug, Serialize)]
pub(crate) struct Breakdown {
    pub(crate) what: String,
    pub(crate) parts: Vec<Part>,
}

/// One part of it: a median over the samples.
#[derive(Debug, Serialize)]
pub(crate) struct Part {
    pub(crate) what: String,
    pub(crate) microseconds: f64,
}

fn decimals(value: Option<f64>) -> String {
    value.map_or("-".to_owned(), |value| format!("{value:.2}"))
}

/// The size of something, on disk or in memory.
#[derive(Debug, Serialize)]
pub(crate) struct Amount {
    pub(crate) what: String,
    pub(crate) bytes: u64,
}

/// One run's findings. What a run doesn't measure is empty.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) comparisons: Vec<Comparison>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) amounts: Vec<Amount>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) figures: Vec<Figure>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) breakdowns: Vec<Breakdown>,
    /// What a reader has to know to judge the figures.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) notes: Vec<String>,
}

impl Report {
    /// The findings as tables.
    pub(crate) fn table(&self) -> String {
        let mut text = String::new();
        self.write_table(&mut text).unwrap_or_else(|_| unreachable!("a String takes every write"));
        text
    }

    fn write_table(&self, text: &mut String) -> std::fmt::Result {
        for comparison in &self.comparisons {
            writeln!(text, "{} (milliseconds)", comparison.what)?;
            let [median, p10, p90, p99, ratio] = ["median", "p10", "p90", "p99", "ours/it"];
            writeln!(text, "  {:<44} {median:>8} {p10:>8} {p90:>8} {p99:>8} {ratio:>7}  succeeded", "")?;
            for timing in &comparison.timings {
                let [median, p10, p90, p99] =
                    [timing.median_ms, timing.p10_ms, timing.p90_ms, timing.p99_ms].map(decimals);
                let ratio = decimals(comparison.quotient(comparison.first(), &timing.subject));
                let (succeeded, tries) = (timing.succeeded, timing.succeeded + timing.failed);
                writeln!(
                    text,
                    "  {:<44} {median:>8} {p10:>8} {p90:>8} {p99:>8} {ratio:>7}  {succeeded} of {tries}",
                    timing.subject
                )?;
                if let Some(failure) = &timing.first_failure {
                    writeln!(text, "    failed: {failure}")?;
                }
            }
            for figure in &comparison.figures {
                writeln!(text, "  {}", figure.line())?;
            }
        }
        for Breakdown { what, parts } in &self.breakdowns {
            writeln!(text, "{what} (microseconds)")?;
            for Part { what, microseconds } in parts {
                writeln!(text, "  {what:<90} {microseconds:>9.0}")?;
            }
        }
        for figure in &self.figures {
            writeln!(text, "  {}", figure.line())?;
        }
        for Amount { what, bytes } in &self.amounts {
            // 1 MiB is far below what an f64 holds exactly.
            #[expect(clippy::cast_precision_loss, reason = "two decimals are printed")]
            let mebibytes = *bytes as f64 / f64::from(1 << 20);
            writeln!(text, "  {what:<40} {mebibytes:>9.2} MiB")?;
        }
        for note in &self.notes {
            writeln!(text, "note: {note}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timing(milliseconds: impl IntoIterator<Item = u64>) -> Timing {
        let mut samples = Samples::default();
        milliseconds.into_iter().for_each(|value| samples.add(Ok(Duration::from_millis(value))));
        samples.timing("subject")
    }

    #[test]
    fn quantiles_are_samples_that_were_taken() {
        let timing = timing((0..=100).rev());
        assert_eq!((timing.p10_ms, timing.median_ms, timing.p90_ms), (Some(10.0), Some(50.0), Some(90.0)));
        assert_eq!(self::timing([7]).p90_ms, Some(7.0));
    }

    #[test]
    fn failures_count_but_their_times_dont() {
        let mut samples = Samples::default();
        samples.add(Err("exit 1".to_owned()));
        samples.add(Ok(Duration::from_millis(3)));
        let timing = samples.timing("subject");
        assert_eq!((timing.succeeded, timing.failed, timing.median_ms), (1, 1, Some(3.0)));
        assert_eq!(Samples::default().timing("nothing").median_ms, None);
    }

    #[test]
    fn what_failed_meets_no_limit() {
        let nothing = Samples::default().timing("ours");
        let mut other = timing([9]);
        other.subject = "theirs".to_owned();
        let failed = Comparison::new("ADD", vec![nothing, other]).at_most("theirs", 2.0);
        assert_eq!((failed.figures[0].value, failed.figures[0].met), (None, Some(false)));
    }

    #[test]
    fn ratios_are_of_the_first_subject() {
        let [mut ours, mut theirs] = [timing([2]), timing([8])];
        (ours.subject, theirs.subject) = ("ours".to_owned(), "theirs".to_owned());
        let comparison = Comparison::new("ADD", vec![ours, theirs]).at_most("theirs", 0.2).times_as_fast("theirs", 4.0);
        let met: Vec<_> = comparison.figures.iter().map(|figure| (figure.value, figure.met)).collect();
        assert_eq!(met, [(Some(0.25), Some(false)), (Some(4.0), Some(true))]);
        let report = Report { comparisons: vec![comparison], ..Report::default() };
        assert!(report.table().contains("0.25 x (limit: at most 0.20, NOT met)"), "{}", report.table());
    }
}
