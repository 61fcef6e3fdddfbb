//! Why the host could not be read.

use std::{fs, io, path::Path, path::PathBuf};

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

/// Reads a file as text, without the final newline that sysfs attributes carry.
///
/// # Errors
///
/// [`InspectError::Read`] when it can't be read or isn't UTF-8.
pub fn read_text(path: &Path) -> Result<String, InspectError> {
    match fs::read_to_string(path) {
        Ok(mut text) => {
            text.truncate(text.trim_end().len());
            Ok(text)
        }
        Err(source) => Err(InspectError::Read { path: path.to_owned(), source }),
    }
}
