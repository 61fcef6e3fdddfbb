//! What a command prints on stdout.

use std::io::{self, Write};

use serde::Serialize;

use crate::error::Failure;

/// Prints `text`. A reader that has seen enough, such as `head`, is no failure.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::System { action: "write to standard output", source: error })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Prints `value` as indented JSON.
pub(super) fn print_json<T: Serialize + ?Sized>(value: &T) -> Result<(), Failure> {
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::System { action: "turn the answer into JSON", source: error.into() })?;
    text.push('\n');
    print(&text)
}

/// Lines `rows` up in columns.
pub(super) fn table<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> String {
    let widths: [usize; COLUMNS] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default());
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// How long ago `then` was, in the unit that fits: 90s, 5m, 3h, 12d.
pub(super) fn age(now: u64, then: u64) -> String {
    let seconds = now.saturating_sub(then);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_without_trailing_spaces() {
        let rows = [["KEY", "VALUE"], ["a.longer.key", ""], ["b", "é"]].map(|row| row.map(str::to_owned));
        assert_eq!(table(&rows), "KEY           VALUE\na.longer.key\nb             é\n");
    }

    #[test]
    fn an_age_has_the_unit_that_fits() {
        for (seconds, expected) in
            [(0, "0s"), (119, "119s"), (300, "5m"), (7_199, "119m"), (7_200, "2h"), (200_000, "2d")]
        {
            assert_eq!(age(1_000_000, 1_000_000 - seconds), expected);
        }
        // A clock that was set back.
        assert_eq!(age(5, 10), "0s");
    }
}
