//! How every record lies on disk: JSON with a version first, whole or not at all.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use keelson_host::{Durability, write_atomic};
use serde::{
    Serialize,
    de::{DeserializeOwned, Error as _},
};
use serde_json::{Map, Value};

/// A format on disk. What is written has its newest version; what is read may be as old as its oldest.
pub(crate) trait Format: Serialize + DeserializeOwned {
    const NEWEST: u32;
    const OLDEST: u32 = 1;
}

/// Why a record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("failed to {what} {}", path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("{} does not hold what it should: {source}", path.display())]
    Content { path: PathBuf, source: serde_json::Error },
    #[error("{} has version {found}; this program reads version {oldest} to {newest}", path.display())]
    Version { path: PathBuf, found: u64, oldest: u32, newest: u32 },
}

impl RecordError {
    pub(crate) fn io(what: &'static str, path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { what, path: path.to_owned(), source }
    }
}

/// Reads a record, or none if the file isn't there.
pub(crate) fn read_record<T: Format>(path: &Path) -> Result<Option<T>, RecordError> {
    match fs::read(path) {
        Ok(text) => parse_record(path, &text).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(RecordError::io("read", path)(error)),
    }
}

/// Understands the text of the record at `path`.
pub(crate) fn parse_record<T: Format>(path: &Path, text: &[u8]) -> Result<T, RecordError> {
    let content = |source| RecordError::Content { path: path.to_owned(), source };
    let mut fields: Map<String, Value> = serde_json::from_slice(text).map_err(content)?;
    // The version first: a later one may have other fields, and then the version is the reason to tell.
    let missing = || serde_json::Error::missing_field("version");
    let version = fields.remove("version").ok_or_else(missing).map_err(content)?;
    let found: u64 = serde_json::from_value(version).map_err(content)?;
    let (oldest, newest) = (T::OLDEST, T::NEWEST);
    if !(u64::from(oldest)..=u64::from(newest)).contains(&found) {
        return Err(RecordError::Version { path: path.to_owned(), found, oldest, newest });
    }
    serde_json::from_value(Value::Object(fields)).map_err(content)
}

/// Replaces a record, whole or not at all.
pub(crate) fn write_record<T: Format>(path: &Path, record: &T, durability: Durability) -> Result<(), RecordError> {
    write_atomic(path, &print(path, record)?, 0o600, durability).map_err(RecordError::io("write", path))
}

/// Writes a record into a folder that nobody reads yet, and gives the file: its content is durable once that is synced.
pub(crate) fn create_record<T: Format>(path: &Path, record: &T) -> Result<File, RecordError> {
    let text = print(path, record)?;
    let failed = RecordError::io("write", path);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(&failed)?;
    file.write_all(&text).map_err(&failed)?;
    Ok(file)
}

pub(super) fn print<T: Format>(path: &Path, record: &T) -> Result<Vec<u8>, RecordError> {
    #[derive(Serialize)]
    struct Versioned<'a, T> {
        version: u32,
        #[serde(flatten)]
        record: &'a T,
    }
    let mut text = serde_json::to_vec_pretty(&Versioned { version: T::NEWEST, record })
        .map_err(|source| RecordError::Content { path: path.to_owned(), source })?;
    text.push(b'\n');
    Ok(text)
}
