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
}

impl Comparison {
    /// How many times as long as the first subject each one took.
    fn ratio(&self, timing: &Timing) -> Option<f64> {
        Some(timing.median_ms? / self.timings.first()?.median_ms?)
    }
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
        let milliseconds = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.2}"));
        for comparison in &self.comparisons {
            writeln!(text, "{} (milliseconds)", comparison.what)?;
            let [median, p10, p90, ratio] = ["median", "p10", "p90", "to ours"];
            writeln!(text, "  {:<40} {median:>9} {p10:>9} {p90:>9} {ratio:>7}  succeeded", "")?;
            for timing in &comparison.timings {
                let [median, p10, p90] = [timing.median_ms, timing.p10_ms, timing.p90_ms].map(milliseconds);
                let ratio = comparison.ratio(timing).map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
                let (succeeded, tries) = (timing.succeeded, timing.succeeded + timing.failed);
                writeln!(
                    text,
                    "  {:<40} {median:>9} {p10:>9} {p90:>9} {ratio:>7}  {succeeded} of {tries}",
                    timing.subject
                )?;
                if let Some(failure) = &timing.first_failure {
                    writeln!(text, "    failed: {failure}")?;
                }
            }
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
    fn ratios_are_to_the_first_subject() {
        let comparison = Comparison { what: "ADD".to_owned(), timings: vec![timing([2]), timing([9])] };
        assert_eq!(comparison.ratio(&comparison.timings[1]), Some(4.5));
        let report = Report { comparisons: vec![comparison], ..Report::default() };
        assert!(report.table().contains("4.50"), "{}", report.table());
    }
}
