//! What libcni remembers of an ADD: `<network>-<container id>-<interface>` in its cache, of the kind `cniCacheV1`.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use serde_json::{Map, Value};

use crate::config::{
    fields::Fields,
    invocation::{AttachmentKey, Pod},
    result::CniResult,
    version::SpecVersion,
};

/// No result is longer.
const LONGEST: u64 = 4 * 1024 * 1024;

/// The parts of a remembered ADD that a migration needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct CachedAdd {
    pub(super) netns: String,
    pub(super) pod: Pod,
    pub(super) result: CniResult,
    /// Whether the runtime asked for host ports.
    pub(super) has_ports: bool,
}

/// Reads what is remembered of the ADD of `key`; `None` if nothing is.
pub(super) fn read(directory: &Path, network: &str, key: &AttachmentKey) -> Result<Option<CachedAdd>, String> {
    let path = directory.join(format!("{network}-{}-{}", key.container_id, key.ifname));
    let mut text = Vec::new();
    let opened = File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(&path);
    match opened.and_then(|file| file.take(LONGEST).read_to_end(&mut text)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("failed to read {}: {error}", path.display())),
        Ok(_) => parse(&text, key).map(Some).map_err(|wrong| format!("{} {wrong}", path.display())),
    }
}

/// Takes a remembered ADD apart; an error is a predicate.
pub(super) fn parse(text: &[u8], key: &AttachmentKey) -> Result<CachedAdd, String> {
    let document: Map<String, Value> =
        serde_json::from_slice(text).map_err(|error| format!("is no JSON object: {error}"))?;
    let top = Fields::top(&document);
    let string =
        |key| top.string(key).map(Option::unwrap_or_default).map_err(|problem| format!("is damaged: {problem}"));
    if string("kind")? != "cniCacheV1" {
        return Err(format!("is of the kind {:?}, not \"cniCacheV1\"", string("kind")?));
    }
    if string("containerId")? != key.container_id || string("ifName")? != key.ifname {
        return Err("is about another attachment".to_owned());
    }
    let damaged = |problem: keelson_host::Problem| format!("is damaged: {problem}");
    let mut pod = Pod::default();
    for pair in top.array("cniArgs").map_err(damaged)? {
        let [Some(name), Some(value)] = [pair[0].as_str(), pair[1].as_str()] else { continue };
        match name {
            "K8S_POD_NAMESPACE" => value.clone_into(&mut pod.namespace),
            "K8S_POD_NAME" => value.clone_into(&mut pod.name),
            "K8S_POD_UID" => value.clone_into(&mut pod.uid),
            _ => {}
        }
    }
    let has_ports = match top.object("capabilityArgs").map_err(damaged)? {
        Some(arguments) => !arguments.array("portMappings").map_err(damaged)?.is_empty(),
        None => false,
    };
    let result = match top.get("result") {
        Some(value) => CniResult::parse("result", value, SpecVersion::NEWEST).map_err(damaged)?,
        None => CniResult::default(),
    };
    Ok(CachedAdd { netns: string("netns")?.to_owned(), pod, result, has_ports })
}
