//! Why the host could not be read.

use std::{io, path::PathBuf};

/// Why an attribute of the host could not be read.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// A file or directory could not be read.
    #[error("failed to read {}", path.display())]
    Read {
        /// What was read.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A file was read but doesn't hold what the kernel documents.
    #[error("unexpected content in {}: {content:?} is not {expected}", path.display())]
    Parse {
        /// What was read.
        path: PathBuf,
        /// What it held.
        content: String,
        /// What the kernel's documentation says it holds.
        expected: &'static str,
    },
}

/// How much of an unexpected content an error shows.
const LONGEST_EXCERPT: usize = 200;

impl InspectError {
    /// The error for a file that holds something else than `expected`, showing the start of what it holds.
    pub(crate) fn unexpected(path: PathBuf, content: &str, expected: &'static str) -> Self {
        let content = match content.char_indices().nth(LONGEST_EXCERPT) {
            Some((end, _)) => format!("{}...", &content[..end]),
            None => content.to_owned(),
        };
        Self::Parse { path, content, expected }
    }
}

/// An error and everything that caused it, on one line: `failed to read /x: No such file or directory`.
#[must_use]
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // A transparent error repeats its source's text.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error(transparent)]
    struct Transparent(#[from] InspectError);

    #[test]
    fn a_chain_names_each_cause_once() {
        let read = InspectError::Read { path: "/x".into(), source: io::Error::other("gone") };
        assert_eq!(error_chain(&read), "failed to read /x: gone");
        assert_eq!(error_chain(&Transparent(read)), "failed to read /x: gone");
        assert_eq!(error_chain(&io::Error::other("gone")), "gone");
    }
}
