//! What a trial found, for people and for programs.

use std::fmt::Write;

use serde::Serialize;

/// One stage of a trial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stage {
    /// The stage's name, always the same.
    pub stage: String,
    /// Whether what it verifies was seen to be so.
    pub ok: bool,
    /// What was seen, and how; or what went wrong.
    pub saw: String,
}

/// The stages of a trial in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report(pub Vec<Stage>);

impl Report {
    /// Whether every stage was verified.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        !self.0.is_empty() && self.0.iter().all(|stage| stage.ok)
    }

    /// A list of `{"stage", "ok", "saw"}`.
    ///
    /// # Errors
    ///
    /// None in practice: every field is text or a boolean.
    pub fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(&self.0)
    }

    /// The same as a table; what was seen goes on in further lines where it is long.
    #[must_use]
    pub fn table(&self) -> String {
        const SAW_WIDTH: usize = 100;
        let width = self.0.iter().map(|stage| stage.stage.len()).max().unwrap_or(0).max("STAGE".len());
        let mut table = format!("{:<width$}  OK   SAW\n", "STAGE");
        for stage in &self.0 {
            let ok = if stage.ok { "yes" } else { "NO" };
            let mut lines = stage.saw.lines().flat_map(|line| wrap(line, SAW_WIDTH));
            let first = lines.next().unwrap_or_default();
            // Writing into a string doesn't fail.
            let _ = writeln!(table, "{:<width$}  {ok:<3}  {first}", stage.stage);
            for line in lines {
                let _ = writeln!(table, "{:<width$}       {line}", "");
            }
        }
        table
    }
}

/// Breaks `text` between words into lines of at most `width` characters; a longer word stays whole.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().map_or(0, |line| line.chars().count());
        if line > 0 && line + 1 + word.chars().count() > width {
            lines.push(word.to_owned());
        } else if let Some(last) = lines.last_mut() {
            if line > 0 {
                last.push(' ');
            }
            last.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_good_only_if_every_stage_is() {
        let stage = |ok| Stage { stage: "data".to_owned(), ok, saw: "64 KiB".to_owned() };
        assert!(Report(vec![stage(true), stage(true)]).is_ok());
        assert!(!Report(vec![stage(true), stage(false)]).is_ok());
        assert!(!Report::default().is_ok());
    }

    #[test]
    fn json_has_the_three_keys() {
        let report = Report(vec![Stage { stage: "data".to_owned(), ok: true, saw: "x".to_owned() }]);
        let value: serde_json::Value = serde_json::from_str(&report.json().unwrap()).unwrap();
        assert_eq!(value, serde_json::json!([{"stage": "data", "ok": true, "saw": "x"}]));
    }

    #[test]
    fn long_lines_break_between_words() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("abcdefghij k", 4), ["abcdefghij", "k"]);
    }
}
