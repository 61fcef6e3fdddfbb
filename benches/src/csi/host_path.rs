//! What csi-driver-host-path runs and writes for a block volume, without its server: a bound from below for its times.
//!
//! As read in its source: `fallocate -l` and `losetup -f` make a volume, `losetup -d` and an unlink remove it, `mount -o
//! bind` publishes it, `cp` makes a snapshot, `dd` a volume of one, and every change rewrites all of state.json, with no
//! fsync anywhere. One mutex is held during each operation.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, Result};
use serde_json::json;

use super::run;

/// Blocks are compared in this size.
const BLOCK: usize = 4096;

pub(super) struct Commands {
    root: PathBuf,
    state: Mutex<State>,
}

/// What state.json tells: the volumes and snapshots, each with a file.
#[derive(Default)]
struct State {
    made: u64,
    files: BTreeMap<String, PathBuf>,
}

impl Commands {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A volume, with the content of another or of a snapshot.
    pub(super) fn create(&self, bytes: i64, source: Option<&str>) -> Result<String> {
        let mut state = self.lock();
        let (id, path) = state.add(&self.root);
        run("fallocate", &["-l".as_ref(), format!("{}M", bytes >> 20).as_ref(), path.as_os_str()])?;
        run("losetup", &["-f".as_ref(), path.as_os_str()])?;
        device(&path)?;
        self.write(&state)?;
        if let Some(source) = source {
            let (from, to) = (format!("if={}", state.file(source)?.display()), format!("of={}", path.display()));
            run("dd", &[&from, &to].map(OsStr::new))?;
        }
        Ok(id)
    }

    /// A snapshot, which is a copy.
    pub(super) fn snapshot(&self, volume: &str) -> Result<String> {
        let mut state = self.lock();
        let from = state.file(volume)?.to_owned();
        let (id, path) = state.add(&self.root);
        run("cp", &[from.as_os_str(), path.as_os_str()])?;
        self.write(&state)?;
        Ok(id)
    }

    pub(super) fn remove(&self, id: &str) -> Result<()> {
        let mut state = self.lock();
        let Some(path) = state.files.remove(id) else { return Ok(()) };
        if let Ok(device) = device(&path) {
            run("losetup", &["-d".as_ref(), device.as_os_str()])?;
        }
        fs::remove_file(&path)?;
        self.write(&state)
    }

    /// Staging only changes the state.
    pub(super) fn note(&self) -> Result<()> {
        self.write(&self.lock())
    }

    pub(super) fn publish(&self, id: &str, target: &Path) -> Result<()> {
        let state = self.lock();
        let device = device(state.file(id)?)?;
        File::create(target)?;
        run("mount", &["-o".as_ref(), "bind".as_ref(), device.as_os_str(), target.as_os_str()])?;
        self.write(&state)
    }

    pub(super) fn unpublish(&self, target: &Path) -> Result<()> {
        let state = self.lock();
        run("umount", &[target.as_os_str()])?;
        fs::remove_file(target)?;
        self.write(&state)
    }

    /// How many blocks differ, found by reading both files.
    pub(super) fn differences(&self, base: &str, target: &str) -> Result<u64> {
        let state = self.lock();
        let (mut base, mut target) = (File::open(state.file(base)?)?, File::open(state.file(target)?)?);
        let (mut one, mut other) = (vec![0; BLOCK], vec![0; BLOCK]);
        let mut found = 0;
        while base.read(&mut one)? > 0 && target.read(&mut other)? > 0 {
            found += u64::from(one != other);
        }
        Ok(found)
    }

    fn write(&self, state: &State) -> Result<()> {
        let volumes: Vec<_> = state
            .files
            .iter()
            .map(|(id, path)| {
                json!({"VolName": id, "VolID": id, "VolSize": 1 << 30, "VolPath": path, "VolAccessType": 1,
                    "ParentVolID": "", "ParentSnapID": "", "Ephemeral": false, "NodeID": "bench", "Kind": "",
                    "ReadOnlyAttach": false, "Attached": false, "Staged": null, "Published": null})
            })
            .collect();
        fs::write(self.root.join("state.json"), json!({"Volumes": volumes}).to_string())?;
        Ok(())
    }
}

impl State {
    fn add(&mut self, root: &Path) -> (String, PathBuf) {
        self.made += 1;
        let id = format!("{:08x}-0000-0000-0000-000000000000", self.made);
        let path = root.join(&id);
        self.files.insert(id.clone(), path.clone());
        (id, path)
    }

    fn file(&self, id: &str) -> Result<&Path> {
        self.files.get(id).map(PathBuf::as_path).with_context(|| format!("there is no {id}"))
    }
}

/// The loop device over a file, by a look at all of them.
pub(super) fn device(file: &Path) -> Result<PathBuf> {
    for entry in fs::read_dir("/sys/block")? {
        let entry = entry?;
        let Ok(backing) = fs::read_to_string(entry.path().join("loop/backing_file")) else { continue };
        if Path::new(backing.trim_end()) == file {
            return Ok(Path::new("/dev").join(entry.file_name()));
        }
    }
    anyhow::bail!("no loop device is over {}", file.display())
}
