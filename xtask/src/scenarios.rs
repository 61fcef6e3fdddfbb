//! The table of the reference's scenarios (`cni/tests/reference.md`) against what the tests have played.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context, Result, ensure};
use keelson_testkit::workspace_root;

/// Where the table is, from the workspace's root.
const TABLE: &str = "cni/tests/reference.md";

/// Where the tests are that it names.
const SOURCES: [&str; 2] = ["cni/src", "cni/tests"];

/// Every version of the spec.
const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// One line of the table.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    number: u16,
    /// The versions that it must be played in; `-` where no version plays a part.
    versions: Vec<&'static str>,
    /// The tests that play it; without one there is a reason in their place.
    tests: Vec<String>,
    /// Whether only the virtual machine can play it.
    needs_vm: bool,
}

/// One line of the log: scenario, version, test.
type Played = (u16, String, String);

/// Compares the table with the log of a run; every difference is a line.
///
/// # Errors
///
/// When the table or the log can't be read or understood.
pub(crate) fn check(log: &Path, with_vm: bool) -> Result<Vec<String>> {
    let path = workspace_root().join(TABLE);
    let table = fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))?;
    let log = fs::read_to_string(log).context("failed to read the log of scenarios")?;
    let rows = parse_table(&table)?;
    let played = parse_log(&log)?;
    let mut differences = differences(&rows, &played, with_vm);
    differences.extend(unknown_tests(&table)?);
    Ok(differences)
}

/// The names in the last cells of both tables that no function has.
fn unknown_tests(table: &str) -> Result<Vec<String>> {
    let mut sources = String::new();
    for directory in SOURCES {
        read_sources(&workspace_root().join(directory), &mut sources)?;
    }
    let is_unknown = |test: &&str| {
        let function = test.rsplit("::").next().unwrap_or(test);
        !sources.contains(&format!("fn {function}("))
    };
    let last_cells = table.lines().filter_map(|line| line.strip_suffix('|')?.rsplit('|').next());
    let unknown = last_cells.flat_map(tests_of).filter(is_unknown);
    Ok(unknown.map(|test| format!("{TABLE} names {test}, and there is no such test")).collect())
}

fn read_sources(directory: &Path, sources: &mut String) -> Result<()> {
    let failed = || format!("failed to read {}", directory.display());
    for entry in fs::read_dir(directory).with_context(failed)? {
        let path = entry.with_context(failed)?.path();
        if path.is_dir() {
            read_sources(&path, sources)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            *sources += &fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))?;
        }
    }
    Ok(())
}

/// The names in backquotes that a cell starts with; behind a semicolon is text.
fn tests_of(cell: &str) -> impl Iterator<Item = &str> {
    let names = cell.split(';').next().unwrap_or_default();
    names.split(',').map(str::trim).filter_map(|name| name.strip_prefix('`')?.strip_suffix('`'))
}

fn differences(rows: &[Row], played: &BTreeSet<Played>, with_vm: bool) -> Vec<String> {
    let mut differences = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        if usize::from(row.number) != index + 1 {
            differences.push(format!("{TABLE}: scenario {} is not in its place", row.number));
        }
    }
    for row in rows.iter().filter(|row| !row.tests.is_empty() && (with_vm || !row.needs_vm)) {
        let of_row = || played.iter().filter(|(number, _, _)| *number == row.number);
        for version in &row.versions {
            if !of_row().any(|(_, played, test)| played == version && row.tests.contains(test)) {
                differences.push(format!("scenario {} was not played in version {version}", row.number));
            }
        }
        for test in row.tests.iter().filter(|test| !of_row().any(|(_, _, played)| played == *test)) {
            differences.push(format!("scenario {} was not played by {test}", row.number));
        }
    }
    for (number, _, test) in played {
        if !rows.iter().any(|row| row.number == *number && row.tests.contains(test)) {
            differences.push(format!("{test} plays scenario {number}, and {TABLE} doesn't say so"));
        }
    }
    differences.dedup();
    differences
}

/// Reads the rows `| number | scenario | versions | tests |`; other lines are text.
fn parse_table(text: &str) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for line in text.lines().filter(|line| line.starts_with('|')) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let Some(number) = cells.first().and_then(|cell| cell.parse().ok()) else { continue };
        ensure!(cells.len() == 4, "{TABLE}: scenario {number} has {} cells instead of 4", cells.len());
        let tests: Vec<String> = tests_of(cells[3]).map(str::to_owned).collect();
        let reason = cells[3].strip_prefix("reason: ").unwrap_or_default();
        ensure!(
            tests.is_empty() != reason.is_empty(),
            "{TABLE}: scenario {number} needs tests in backquotes, or `reason: ` and one"
        );
        let (versions, needs_vm) = match cells[2].strip_suffix(", in the VM") {
            Some(versions) => (versions, true),
            None => (cells[2], false),
        };
        let versions = parse_versions(versions).with_context(|| format!("{TABLE}: scenario {number}"))?;
        rows.push(Row { number, versions, tests, needs_vm });
    }
    Ok(rows)
}

/// `all`, `0.4.0+`, `1.1.0`, or `-`.
fn parse_versions(text: &str) -> Result<Vec<&'static str>> {
    let versions: Vec<&'static str> = match text {
        "-" => vec!["-"],
        "all" => VERSIONS.to_vec(),
        _ => match text.strip_suffix('+') {
            Some(first) => VERSIONS.into_iter().skip_while(|version| *version != first).collect(),
            None => VERSIONS.into_iter().filter(|version| *version == text).collect(),
        },
    };
    ensure!(!versions.is_empty(), "{text:?} is neither `-`, `all`, a version, nor one with a `+`");
    Ok(versions)
}

fn parse_log(text: &str) -> Result<BTreeSet<Played>> {
    text.lines()
        .map(|line| {
            let mut words = line.splitn(3, ' ');
            let mut word =
                || words.next().map(str::to_owned).with_context(|| format!("{line:?} is no line of the log"));
            Ok((word()?.parse()?, word()?, word()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "
| no. | scenario | versions | tests |
|---|---|---|---|
| 1 | one | all | `adds`, `deletes` |
| 2 | two | 1.0.0+ | `adds` |
| 3 | three | - | reason: there is no such thing |
| 4 | four | 0.4.0, in the VM | `tags` |
";

    fn played(lines: &[&str]) -> BTreeSet<Played> {
        parse_log(&lines.join("\n")).unwrap()
    }

    fn whole() -> Vec<String> {
        let mut lines: Vec<String> = VERSIONS.iter().map(|version| format!("1 {version} adds")).collect();
        lines.push("1 1.1.0 deletes".to_owned());
        lines.extend(["1.0.0", "1.1.0"].map(|version| format!("2 {version} adds")));
        lines
    }

    #[test]
    fn a_table_that_was_played_has_no_differences() {
        let rows = parse_table(SAMPLE).unwrap();
        assert_eq!(rows.iter().map(|row| row.versions.len()).collect::<Vec<_>>(), [7, 2, 1, 1]);
        let lines = whole();
        let all: Vec<&str> = lines.iter().map(String::as_str).collect();
        assert_eq!(differences(&rows, &played(&all), false), Vec::<String>::new());
        assert_eq!(differences(&rows, &played(&all), true).len(), 2);
    }

    #[test]
    fn every_lack_and_every_surplus_is_told() {
        let rows = parse_table(SAMPLE).unwrap();
        let mut lines = whole();
        lines.remove(0);
        lines.retain(|line| !line.ends_with("deletes"));
        lines.push("3 - adds".to_owned());
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        assert_eq!(
            differences(&rows, &played(&lines), false),
            [
                "scenario 1 was not played in version 0.1.0",
                "scenario 1 was not played by deletes",
                "adds plays scenario 3, and cni/tests/reference.md doesn't say so",
            ]
        );
    }

    #[test]
    fn a_row_without_test_and_reason_is_an_error() {
        assert!(parse_table("| 1 | one | all | |").is_err());
        assert!(parse_table("| 1 | one | 9.9.9 | `adds` |").is_err());
        assert!(parse_table("| 1 | one | `adds` |").is_err());
    }

    #[test]
    fn a_test_that_is_nowhere_is_told() {
        let table = "| a `word` | `tests::a_test_that_is_nowhere` |\n| b | `the_longest_names_are_attached`; `so` |";
        let told = ["cni/tests/reference.md names tests::a_test_that_is_nowhere, and there is no such test"];
        assert_eq!(unknown_tests(table).unwrap(), told);
    }

    #[test]
    fn the_table_in_the_tree_can_be_read() {
        let table = fs::read_to_string(workspace_root().join(TABLE)).unwrap();
        assert_eq!(parse_table(&table).unwrap().len(), 98);
        assert_eq!(unknown_tests(&table).unwrap(), Vec::<String>::new());
    }
}
