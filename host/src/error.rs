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
