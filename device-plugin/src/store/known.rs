//! `known.json`: the devices that were offered since the machine booted.
//!
//! A device that is away when the plugin starts is in no scan. Without this memory it would vanish from the kubelet's
//! list instead of being unhealthy, and the Pod that has it would never be told.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use keelson_host::{DeviceKind, Durability, InspectError, boot_id, write_atomic};
use serde::{Deserialize, Serialize};

use super::StoreError;
use crate::policy::{Device, Node, Origin};

const VERSION: u32 = 1;
const FILE_NAME: &str = "known.json";

/// The file of known devices. It counts for one boot only: a reboot ends every container, and may give devices other
/// names.
#[derive(Clone, Debug)]
pub(crate) struct KnownStore {
    path: PathBuf,
    boot_id: String,
    written: Option<Vec<u8>>,
}

impl KnownStore {
    pub(crate) fn new(state_dir: &Path) -> Result<Self, InspectError> {
        let boot_id = boot_id()?;
        Ok(Self { path: state_dir.join(FILE_NAME), boot_id, written: None })
    }

    /// The devices known by resource; none after a reboot, and none if the file can't be understood, which is logged:
    /// the scan then tells what is there, and only what is away stays unknown.
    pub(crate) fn load(&self) -> Result<BTreeMap<String, Vec<Device>>, StoreError> {
        let content = match fs::read(&self.path) {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            Err(source) => return Err(StoreError::Read { path: self.path.clone(), source }),
        };
        let path = self.path.display();
        // The version comes first: another version's file may have other fields.
        match serde_json::from_slice(&content) {
            Ok(Versioned { version: VERSION }) => {}
            Ok(Versioned { version }) => {
                tracing::warn!(%path, version, "known devices were written by another release; starting without them");
                return Ok(BTreeMap::new());
            }
            Err(error) => {
                tracing::warn!(%path, %error, "known devices can't be read; starting without them");
                return Ok(BTreeMap::new());
            }
        }
        match serde_json::from_slice::<KnownFile>(&content) {
            Ok(file) if file.boot_id == self.boot_id => Ok(file
                .resources
                .into_iter()
                .map(|(name, devices)| (name, devices.into_iter().filter_map(DeviceRecord::into_device).collect()))
                .collect()),
            Ok(_) => Ok(BTreeMap::new()),
            Err(error) => {
                tracing::warn!(%path, %error, "known devices can't be read; starting without them");
                Ok(BTreeMap::new())
            }
        }
    }

    /// Stores the known devices, if they are others than last time.
    pub(crate) fn save<'a>(
        &mut self,
        resources: impl IntoIterator<Item = (&'a str, Vec<&'a Device>)>,
    ) -> Result<(), StoreError> {
        let file = KnownFile {
            version: VERSION,
            boot_id: self.boot_id.clone(),
            resources: resources
                .into_iter()
                .map(|(name, devices)| (name.to_owned(), devices.into_iter().map(DeviceRecord::of).collect()))
                .collect(),
        };
        let content =
            serde_json::to_vec_pretty(&file).map_err(|source| StoreError::Json { path: self.path.clone(), source })?;
        if self.written.as_ref() == Some(&content) {
            return Ok(());
        }
        write_atomic(&self.path, &content, 0o600, Durability::Process)
            .map_err(|source| StoreError::Write { path: self.path.clone(), source })?;
        self.written = Some(content);
        Ok(())
    }

    /// Removes the file and what a killed process left half written in `state_dir`.
    pub(crate) fn sweep(state_dir: &Path, keep: bool) -> Result<(), StoreError> {
        let failed = |source| StoreError::Read { path: state_dir.to_owned(), source };
        let entries = match fs::read_dir(state_dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        for entry in entries {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let half_written = name.starts_with(&format!(".{FILE_NAME}.")) && name.ends_with(".tmp");
            if half_written || (name == FILE_NAME && !keep) {
                fs::remove_file(&path).map_err(|source| StoreError::Remove { path: path.clone(), source })?;
            }
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct KnownFile {
    version: u32,
    boot_id: String,
    resources: BTreeMap<String, Vec<DeviceRecord>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DeviceRecord {
    id: String,
    nodes: Vec<NodeRecord>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    shared: Vec<NodeRecord>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    numa_node: Option<u32>,
    origin: OriginRecord,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NodeRecord {
    path: PathBuf,
    container_path: PathBuf,
    kind: KindRecord,
    major: u32,
    minor: u32,
    mode: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum KindRecord {
    Char,
    Block,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum OriginRecord {
    DeviceNode,
    Pci { vendor: u16, device: u16 },
    Simulated,
}

impl DeviceRecord {
    fn of(device: &Device) -> Self {
        Self {
            id: device.id.clone(),
            nodes: device.nodes.iter().map(NodeRecord::of).collect(),
            shared: device.shared.iter().map(NodeRecord::of).collect(),
            numa_node: device.numa_node,
            origin: match device.origin {
                Origin::DeviceNode => OriginRecord::DeviceNode,
                Origin::Pci { vendor, device } => OriginRecord::Pci { vendor, device },
                Origin::Simulated => OriginRecord::Simulated,
            },
        }
    }

    /// Nothing for a record without a node, which is no device.
    fn into_device(self) -> Option<Device> {
        let device = Device {
            id: self.id,
            nodes: self.nodes.into_iter().map(NodeRecord::into_node).collect(),
            shared: self.shared.into_iter().map(NodeRecord::into_node).collect(),
            numa_node: self.numa_node,
            origin: match self.origin {
                OriginRecord::DeviceNode => Origin::DeviceNode,
                OriginRecord::Pci { vendor, device } => Origin::Pci { vendor, device },
                OriginRecord::Simulated => Origin::Simulated,
            },
        };
        (!device.nodes.is_empty()).then_some(device)
    }
}

impl NodeRecord {
    fn of(node: &Node) -> Self {
        Self {
            path: node.path.clone(),
            container_path: node.container_path.clone(),
            kind: match node.kind {
                DeviceKind::Char => KindRecord::Char,
                DeviceKind::Block => KindRecord::Block,
            },
            major: node.major,
            minor: node.minor,
            mode: node.mode,
        }
    }

    fn into_node(self) -> Node {
        Node {
            path: self.path,
            container_path: self.container_path,
            kind: match self.kind {
                KindRecord::Char => DeviceKind::Char,
                KindRecord::Block => DeviceKind::Block,
            },
            major: self.major,
            minor: self.minor,
            mode: self.mode,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::device::tests::{device, node};

    fn store(directory: &Path) -> KnownStore {
        KnownStore::new(directory).unwrap()
    }

    #[test]
    fn what_is_saved_is_loaded_in_the_same_boot() {
        let directory = tempfile::tempdir().unwrap();
        let pci = Device {
            shared: vec![node("/dev/vfio/vfio", 196)],
            numa_node: Some(0),
            origin: Origin::Pci { vendor: 0x10ee, device: 0x5000 },
            ..device("0000:3b:00.0", &[("/dev/vfio/7", 7)])
        };
        let simulated = Device { origin: Origin::Simulated, ..device("simulated-0", &[("/x", 229)]) };
        let mut saving = store(directory.path());
        saving.save([("a.b/c", vec![&pci, &simulated]), ("a.b/d", Vec::new())]).unwrap();
        let loaded = store(directory.path()).load().unwrap();
        assert_eq!(loaded["a.b/c"], [pci, simulated]);
        assert!(loaded["a.b/d"].is_empty());
    }

    #[test]
    fn another_boot_another_version_and_rubbish_are_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE_NAME);
        let known = device("a", &[("/dev/a", 1)]);
        store(directory.path()).save([("a.b/c", vec![&known])]).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let boot_id = store(directory.path()).boot_id;
        for content in [
            text.replace(&boot_id, "another"),
            text.replace("\"version\": 1", "\"version\": 2"),
            text.replace("\"id\"", "\"di\""),
            text[..text.len() / 2].to_owned(),
            String::new(),
        ] {
            fs::write(&path, &content).unwrap();
            assert!(store(directory.path()).load().unwrap().is_empty(), "{content}");
        }
        fs::remove_file(&path).unwrap();
        assert!(store(directory.path()).load().unwrap().is_empty());
    }
}
