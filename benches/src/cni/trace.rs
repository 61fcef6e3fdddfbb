//! What strace saw of a program.

use std::{fs, path::Path};

use anyhow::{Context, Result};

/// A system call, of any of the traced processes.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) name: String,
    /// The line from the call's name on.
    pub(super) text: String,
    /// When it began, in seconds.
    pub(super) start: f64,
    /// How long it took, in seconds; 0 of one that didn't return or returned while another process's call was printed.
    pub(super) took: f64,
}

impl Call {
    pub(super) fn end(&self) -> f64 {
        self.start + self.took
    }
}

/// Reads what `strace -f -ttt -T` wrote.
pub(super) fn read(path: &Path) -> Result<Vec<Call>> {
    let text = fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()))?;
    Ok(text.lines().filter_map(parse).collect())
}

/// One line, such as `4711 1795247075.123456 openat(AT_FDCWD, "/etc", O_RDONLY) = 3 <0.000012>`.
///
/// `None` for what is no call (`+++ exited with 0 +++`), and for the end of one whose beginning was seen
/// (`<... openat resumed>`).
fn parse(line: &str) -> Option<Call> {
    let (_, line) = line.trim_start().split_once(' ')?;
    let (start, text) = line.trim_start().split_once(' ')?;
    let (name, _) = text.split_once('(')?;
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        return None;
    }
    let took = text.rsplit_once('<').and_then(|(_, end)| end.strip_suffix('>')?.parse().ok());
    Some(Call { name: name.to_owned(), text: text.to_owned(), start: start.parse().ok()?, took: took.unwrap_or(0.0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_beginnings_of_calls_count() {
        let lines = [
            "4711 12.500000 openat(AT_FDCWD, \"/etc\", O_RDONLY) = 3 <0.000012>",
            "4711 12.600000 read(0,  <unfinished ...>",
            "4712 12.700000 --- SIGCHLD {si_signo=SIGCHLD} ---",
            "4711 12.800000 <... read resumed>\"\", 16) = 0 <0.200000>",
            "4711 12.900000 +++ exited with 0 +++",
        ];
        let calls: Vec<_> = lines.into_iter().filter_map(parse).collect();
        let found: Vec<_> = calls.iter().map(|call| (call.name.as_str(), call.start, call.took)).collect();
        assert_eq!(found, [("openat", 12.5, 0.000_012), ("read", 12.6, 0.0)]);
    }
}
