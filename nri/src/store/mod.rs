//! What must survive the plugin's end: a record of each placement, one file per container.
//!
//! The cgroups themselves keep containers where they are; the records tell whose decision that was. A record is written
//! before the runtime gets its answer, so a cpuset that is ours has its record; only where the disk hangs or fails does
//! the answer go out without, and a plugin that ends before the disk is back then finds a cpuset of which it knows
//! nothing. A record without its container is dropped at the next synchronization, and so is every record of another
//! boot: ids are not used twice. A power cut may therefore lose records, and nothing is synced to disk.
//! docs/formats-pinning.md shows the format.

mod record;
mod recorder;

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use keelson_host::{Durability, write_atomic};

pub(crate) use record::Record;
pub(crate) use recorder::{Change, Recorder};

use crate::Error;

const SUFFIX: &str = ".json";

/// The directory of records.
#[derive(Debug)]
pub(crate) struct Store {
    directory: PathBuf,
}

impl Store {
    /// Opens the records below `state_dir`, made if absent, and reads all of them, by container id.
    ///
    /// A file that holds no record, such as one that a power cut tore, is no error: it is reported and removed. One of a
    /// newer version of the format is reported and kept.
    pub(crate) fn open(state_dir: &Path) -> Result<(Self, BTreeMap<String, Record>), Error> {
        let directory = state_dir.join("containers");
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| Error::Store { action, path, source }
        };
        fs::create_dir_all(&directory).map_err(failed("create", &directory))?;
        let mut records = BTreeMap::new();
        for entry in fs::read_dir(&directory).map_err(failed("list", &directory))? {
            let path = entry.map_err(failed("list", &directory))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let Some(id) = name.strip_suffix(SUFFIX).filter(|id| is_container_id(id)) else {
                if name.starts_with('.') && name.ends_with(".tmp") {
                    fs::remove_file(&path).map_err(failed("remove", &path))?;
                }
                continue;
            };
            let bytes = fs::read(&path).map_err(failed("read", &path))?;
            match Record::parse(&bytes, id) {
                Ok(record) => {
                    records.insert(id.to_owned(), record);
                }
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "ignored a record of a placement");
                    if !error.is_newer() {
                        fs::remove_file(&path).map_err(failed("remove", &path))?;
                    }
                }
            }
        }
        Ok((Self { directory }, records))
    }

    /// Writes a record in place of the container's earlier one.
    fn put(&self, record: &Record) -> io::Result<()> {
        let bytes = serde_json::to_vec_pretty(record)?;
        write_atomic(&self.path(&record.container), &bytes, 0o600, Durability::Process)
    }

    /// Removes a container's record; one that isn't there is removed already.
    fn remove(&self, container: &str) -> io::Result<()> {
        match fs::remove_file(self.path(container)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn path(&self, container: &str) -> PathBuf {
        self.directory.join(format!("{container}{SUFFIX}"))
    }
}

/// Whether `id` can be a container's: 1 to 128 of `A-Za-z0-9_.-`, the first a letter or digit. Such an id names a file
/// and leads nowhere else. containerd's and CRI-O's ids are 64 hexadecimal digits.
pub(crate) fn is_container_id(id: &str) -> bool {
    (1..=128).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
        && id.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
}

#[cfg(test)]
mod tests {
    use keelson_host::CpuSet;

    use super::*;
    use crate::{
        Mode,
        policy::{Container, Kind, Placement, Pod, Qos, Wishes},
    };

    fn record(id: &str, kind: Kind) -> Record {
        let container = Container {
            id: id.to_owned(),
            pod: Pod {
                sandbox: "5a".to_owned(),
                namespace: "default".to_owned(),
                name: "app".to_owned(),
                uid: "0-1".to_owned(),
            },
            name: "main".to_owned(),
            qos: Some(Qos::Guaranteed),
            whole_cpus: Some(2),
            memory_limit_bytes: None,
            device_nodes: Default::default(),
            wishes: Wishes::default(),
            cpus: CpuSet::new(),
            mems: CpuSet::new(),
        };
        let placement = Placement { kind, reasons: vec!["because".to_owned()] };
        Record::new(&container, &placement, Mode::Enforce)
    }

    fn exclusive() -> Kind {
        Kind::Exclusive { cpus: CpuSet::from([2, 3]), mems: CpuSet::from([0]) }
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory.join("containers")).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn records_come_back() {
        let directory = tempfile::tempdir().unwrap();
        let (store, records) = Store::open(directory.path()).unwrap();
        assert!(records.is_empty());
        let expected =
            [record("aa", exclusive()), record("bb", Kind::Shared { managed: true }), record("cc", Kind::Untouched)];
        for record in &expected {
            store.put(record).unwrap();
        }
        store.remove("bb").unwrap();
        store.remove("bb").unwrap();
        let (_, records) = Store::open(directory.path()).unwrap();
        assert_eq!(records.into_values().collect::<Vec<_>>(), [expected[0].clone(), expected[2].clone()]);
    }

    #[test]
    fn torn_and_foreign_files_do_not_stop_the_plugin() {
        let directory = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(directory.path()).unwrap();
        store.put(&record("aa", exclusive())).unwrap();
        let folder = directory.path().join("containers");
        let whole = fs::read(folder.join("aa.json")).unwrap();
        for length in 0..whole.len() {
            fs::write(folder.join("aa.json"), &whole[..length]).unwrap();
            let (_, records) = Store::open(directory.path()).unwrap();
            assert!(records.is_empty(), "{length} of {} bytes", whole.len());
            assert_eq!(names(directory.path()), Vec::<String>::new());
        }
        // A record under another container's name says nothing about that container.
        fs::write(folder.join("bb.json"), &whole).unwrap();
        fs::write(folder.join(".aa.json.17.0.tmp"), b"half").unwrap();
        fs::write(folder.join("README"), b"a person's").unwrap();
        let newer = String::from_utf8(whole).unwrap().replace("\"version\": 1", "\"version\": 2");
        fs::write(folder.join("cc.json"), newer).unwrap();
        let (_, records) = Store::open(directory.path()).unwrap();
        assert!(records.is_empty());
        assert_eq!(names(directory.path()), ["README", "cc.json"]);
    }

    #[test]
    fn an_id_leads_nowhere_else() {
        for id in ["0123abcd", "a", "A-b_c.d"] {
            assert!(is_container_id(id), "{id}");
        }
        for id in ["", ".", "..", "../x", "a/b", ".hidden", "-x", "a\0", "é", &"a".repeat(129)] {
            assert!(!is_container_id(id), "{id}");
        }
    }
}
