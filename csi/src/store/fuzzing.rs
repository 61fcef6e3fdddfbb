//! Records that hold anything, and pools that hold anything.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a broken promise is a panic")]

use std::{
    collections::BTreeSet,
    env,
    fmt::Debug,
    fs,
    path::{Component, Path, PathBuf},
    process,
};

use serde_json::Value;

use super::{
    Kept, Lookup, Pools,
    attachments::Attachment,
    format::{Format, RecordError, parse_record, print},
    identity::{MARKER, Marker, Remembered},
    record::{GroupRecord, SnapshotRecord, VolumeRecord},
};
use crate::{
    config::{PoolKind, PoolSettings},
    policy::Reserve,
};

/// Reads `text` as a record of every kind.
pub(crate) fn check_record(text: &[u8]) {
    if let Some(volume) = read::<VolumeRecord>(text) {
        let source = volume.source.iter().map(|source| source.as_str().to_owned());
        source.chain([volume.id.to_string(), volume.family().to_string()]).for_each(|id| check_id(&id));
    }
    if let Some(snapshot) = read::<SnapshotRecord>(text) {
        let ids = [snapshot.id.to_string(), snapshot.volume.to_string(), snapshot.family.to_string()];
        ids.into_iter().chain(snapshot.group.map(|group| group.to_string())).for_each(|id| check_id(&id));
    }
    if let Some(group) = read::<GroupRecord>(text) {
        let snapshots = group.snapshots.iter().map(ToString::to_string);
        snapshots.chain([group.id.to_string()]).for_each(|id| check_id(&id));
    }
    if let Some(attachment) = read::<Attachment>(text) {
        let published = attachment.published.iter().map(|publication| &publication.target);
        for path in published.chain(attachment.staged.iter().map(|staged| &staged.path)) {
            let plain =
                path.as_path().components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
            assert!(plain && path.as_path().is_absolute(), "{path}");
        }
    }
    let _ = read::<Marker>(text);
    let _ = read::<Remembered>(text);
}

/// What is read is written and read again as the same; another version is refused, by its number.
fn read<T: Format + PartialEq + Debug>(text: &[u8]) -> Option<T> {
    let path = Path::new("/pool/record");
    let version = serde_json::from_slice::<Value>(text).ok().and_then(|document| document.get("version")?.as_u64());
    let known = version.is_some_and(|version| (u64::from(T::OLDEST)..=u64::from(T::NEWEST)).contains(&version));
    match parse_record::<T>(path, text) {
        Ok(record) => {
            assert!(known, "read as version {version:?}");
            let written = print(path, &record).unwrap();
            assert_eq!(parse_record::<T>(path, &written).unwrap(), record);
            Some(record)
        }
        Err(error @ RecordError::Version { found, .. }) => {
            assert!(!known && error.to_string().contains(&found.to_string()), "{error}");
            None
        }
        Err(error) => {
            assert!(matches!(error, RecordError::Content { .. }), "{error:?}");
            assert!(error.to_string().starts_with("/pool/record "), "{error}");
            None
        }
    }
}

/// An id of ours is one component of a path.
fn check_id(id: &str) {
    let mut components = Path::new(id).components();
    assert_eq!((components.next(), components.next()), (Some(Component::Normal(id.as_ref())), None), "{id:?}");
}

/// Puts the files that `text` describes where a pool keeps its own, and reads the pool.
pub(crate) fn check_pool(text: &[u8]) {
    let Ok(Value::Object(files)) = serde_json::from_slice(text) else { return };
    let root = env::temp_dir().join(format!("keelson-fuzz-pool-{}", process::id()));
    let _ = fs::remove_dir_all(&root);
    let path = root.join("pool");
    fs::create_dir_all(&root).unwrap();
    for (name, content) in &files {
        put(&path, Path::new(name), content);
    }
    let settings = PoolSettings {
        name: "pool".to_owned(),
        resolved: path.clone(),
        path: path.clone(),
        kind: PoolKind::Directory,
        unenforced_sizes: false,
        reserve: Reserve::Percent(0),
        overcommit_percent: 100,
        may_create: false,
    };
    let pools = Pools::new(vec![settings], &root.join("state"));
    let before = folders(&path);
    // The first look scans it, the second finds it scanned.
    for _ in 0..2 {
        use_all(&pools, &path);
    }
    let after = folders(&path);
    assert!(before.is_subset(&after), "{:?}", before.difference(&after));
    fs::remove_dir_all(&root).unwrap();
}

/// Names that lead elsewhere, or are taken, make nothing.
fn put(directory: &Path, name: &Path, content: &Value) {
    if !name.components().all(|part| matches!(part, Component::Normal(_))) {
        return;
    }
    let path = directory.join(name);
    let _ = path.parent().map(fs::create_dir_all);
    let _ = match content {
        Value::String(text) => fs::write(&path, text),
        other => fs::write(&path, other.to_string()),
    };
}

/// What a scan must leave where it is.
fn folders(pool: &Path) -> BTreeSet<PathBuf> {
    let within = |name: &str| fs::read_dir(pool.join(name)).into_iter().flatten().map(|entry| entry.unwrap().path());
    ["volumes", "snapshots", "groups"]
        .into_iter()
        .flat_map(within)
        .chain([pool.join(MARKER)])
        .filter(|it| it.exists())
        .collect()
}

fn use_all(pools: &Pools, path: &Path) {
    let pool = pools.iter().next().unwrap();
    if pool.check().is_err() {
        return;
    }
    list::<VolumeRecord>(pools, &path.join("volumes"));
    list::<SnapshotRecord>(pools, path);
    list::<GroupRecord>(pools, &path.join("groups"));
    let room = pools.room(pool).unwrap();
    assert!(room.available <= room.free.saturating_add(room.taken), "{room:?}");
    assert_eq!(fs::read_dir(path.join("building")).unwrap().count(), 0);
}

/// What is listed is there, under its id and under some name, once.
fn list<T: Kept>(pools: &Pools, home: &Path) {
    let all = pools.after::<T>(None, usize::MAX).unwrap();
    for (pool, record) in &all {
        let folder = record.folder(pool);
        assert!(folder.starts_with(home) && folder.join(T::FILE).is_file(), "{}", folder.display());
        assert!(matches!(pool.find::<T>(record.id()), Lookup::Found(found) if found.id() == record.id()));
        assert_eq!(pools.locate::<T>(&record.id().to_string()).unwrap().1.id(), record.id());
        let named = pools.find_by_name::<T>(None, record.name()).unwrap();
        assert!(named.is_some_and(|(_, named)| named.name() == record.name()), "{}", record.name());
    }
    // In pages of one, the same.
    let mut last: Option<T::Id> = None;
    for (_, record) in &all {
        let page = pools.after::<T>(last.as_ref(), 1).unwrap();
        assert!(matches!(page.as_slice(), [(_, next)] if next.id() == record.id()));
        last = Some(record.id().clone());
    }
    assert!(all.is_empty() || pools.after::<T>(last.as_ref(), 1).unwrap().is_empty());
}
