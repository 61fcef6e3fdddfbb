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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_without_trailing_spaces() {
        let rows = [["KEY", "VALUE"], ["a.longer.key", ""], ["b", "é"]].map(|row| row.map(str::to_owned));
        assert_eq!(table(&rows), "KEY           VALUE\na.longer.key\nb             é\n");
    }
}
