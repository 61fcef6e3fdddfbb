//! How facts are written for programs where serde's own way won't do.
//!
//! serde refuses a path that isn't UTF-8; one such mount must not hide everything else, so bytes that aren't are
//! replaced by U+FFFD, as people see them too.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::{Serializer, ser::SerializeMap};

pub(crate) fn path<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

pub(crate) fn optional_path<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    match path {
        Some(path) => serializer.collect_str(&path.display()),
        None => serializer.serialize_none(),
    }
}

pub(crate) fn paths_by_name<S: Serializer>(
    paths: &BTreeMap<String, PathBuf>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(paths.len()))?;
    for (name, path) in paths {
        map.serialize_entry(name, &path.to_string_lossy())?;
    }
    map.end()
}

/// Four digits, as lspci prints a vendor or device.
pub(crate) fn pci_id<S: Serializer>(id: &u16, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{id:04x}"))
}

/// Six digits: base class, subclass, programming interface.
pub(crate) fn pci_class<S: Serializer>(class: &u32, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{class:06x}"))
}
