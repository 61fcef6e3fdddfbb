//! One pool, with real directories.

mod holdings;
mod shares;

use std::{fs, os::unix::fs::MetadataExt, path::Path, sync::Barrier, thread};

use super::{Lookup, Pool, VolumeRecord, pool::lock};
use crate::{
    config::{PoolKind, PoolSettings},
    policy::{Content, PoolFault, Provisioning, Reserve, VolumeId},
};

/// A pool of directories in a directory of its own.
fn pool(directory: &Path) -> Pool {
    Pool::new(settings(directory, "pool", PoolKind::Directory), &directory.join("state"))
}

fn settings(directory: &Path, name: &str, kind: PoolKind) -> PoolSettings {
    let path = directory.join(name);
    PoolSettings {
        name: name.to_owned(),
        resolved: path.clone(),
        path,
        kind,
        unenforced_sizes: false,
        reserve: Reserve::Bytes(0),
        overcommit_percent: 100,
        may_create: true,
    }
}

fn record(id: &VolumeId) -> VolumeRecord {
    VolumeRecord::new(id.clone(), "pvc-1".to_owned(), 0, Provisioning::Thin, Content::Directory)
}

#[test]
fn a_scan_leaves_alone_what_is_being_built() {
    let directory = tempfile::tempdir().unwrap();
    let pool = pool(directory.path());
    pool.check().unwrap();
    let id = VolumeId::generate();
    let draft = pool.build(id.as_str()).unwrap();
    fs::create_dir(draft.folder().join("data")).unwrap();
    let left = pool.building().join(VolumeId::generate().as_str());
    fs::create_dir(&left).unwrap();
    // The pool's disk was gone for a moment.
    fs::rename(&pool.settings.path, directory.path().join("away")).unwrap();
    pool.check().unwrap_err();
    fs::rename(directory.path().join("away"), &pool.settings.path).unwrap();
    pool.check().unwrap();
    assert!(!left.exists());
    draft.commit(record(&id), None).unwrap();
    assert!(pool.folder(&record(&id)).join("data").is_dir());
    assert_eq!(pool.find_by_name::<VolumeRecord>("pvc-1").unwrap().as_deref(), Some(&record(&id)));
    assert!(lock(&pool.sites).is_empty());
}

#[test]
fn a_pool_that_is_lost_knows_nothing_rather_than_that_nothing_is_there() {
    let directory = tempfile::tempdir().unwrap();
    let pool = pool(directory.path());
    let id = VolumeId::generate();
    assert!(matches!(pool.find::<VolumeRecord>(&id), Lookup::Unknown));
    pool.find_by_name::<VolumeRecord>("pvc-1").unwrap_err();
    pool.after::<VolumeRecord>(None, 1).unwrap_err();
    pool.check().unwrap();
    assert!(matches!(pool.find::<VolumeRecord>(&id), Lookup::Absent));
}

#[test]
fn a_pool_is_used_by_one_process_until_it_is_released() {
    let directory = tempfile::tempdir().unwrap();
    let (one, other) = (pool(directory.path()), pool(directory.path()));
    assert!(!one.is_available() && one.device().is_none());
    one.check().unwrap();
    one.check_writable().unwrap();
    assert!(one.is_available());
    assert_eq!(one.device(), Some(fs::metadata(&one.settings.path).unwrap().dev()));
    other.check().unwrap_err();
    one.release();
    other.check().unwrap();
    one.check().unwrap_err();
}

#[test]
fn a_failed_check_gives_the_pool_up_unless_another_call_is_at_work_on_it() {
    let directory = tempfile::tempdir().unwrap();
    let (one, other) = (pool(directory.path()), pool(directory.path()));
    one.check().unwrap();
    let fail = || {
        let away = directory.path().join("away");
        fs::rename(&one.settings.path, &away).unwrap();
        one.check().unwrap_err();
        fs::rename(&away, &one.settings.path).unwrap();
    };
    let (own, second) = (one.enter().unwrap(), one.enter().unwrap());
    fail();
    assert!(matches!(other.check().unwrap_err().fault(), PoolFault::InUse));
    drop(second);
    fail();
    other.check().unwrap();
    drop(own);
}

#[test]
fn a_project_is_nobody_elses_until_its_limits_are_cleared() {
    let directory = tempfile::tempdir().unwrap();
    let pool = pool(directory.path());
    pool.check().unwrap();
    let record = VolumeRecord { project: Some(9), ..record(&VolumeId::generate()) };
    pool.build(record.id.as_str()).unwrap().commit(record.clone(), None).unwrap();
    assert_eq!(pool.projects(), [9]);
    lock(&pool.leaving).insert(7);
    assert_eq!(pool.projects(), [9, 7]);
    pool.forget_project(7);
    assert_eq!(pool.projects(), [9]);
    pool.remove(&record).unwrap();
    assert!(pool.projects().is_empty());
}

#[test]
fn what_is_no_directory_is_no_pool() {
    let directory = tempfile::tempdir().unwrap();
    let pool = pool(directory.path());
    fs::write(&pool.settings.path, "").unwrap();
    let error = pool.check().unwrap_err();
    assert!(keelson_host::error_chain(&error).ends_with("not a directory"), "{error:?}");
}

#[test]
fn turns_come_back() {
    let directory = tempfile::tempdir().unwrap();
    let pool = pool(directory.path());
    for _ in 0..2 {
        let turns: Vec<_> = std::iter::from_fn(|| pool.enter().ok()).collect();
        assert_eq!(turns.len(), 64);
    }
}

#[test]
fn two_first_uses_at_once_make_one_pool() {
    for _ in 0..30 {
        let directory = tempfile::tempdir().unwrap();
        let (pool, start) = (pool(directory.path()), Barrier::new(2));
        thread::scope(|scope| {
            let uses = [(); 2].map(|()| {
                scope.spawn(|| {
                    start.wait();
                    pool.check()
                })
            });
            for used in uses {
                used.join().unwrap().unwrap();
            }
        });
        pool.check().unwrap();
    }
}

#[test]
fn an_unmade_volume_that_is_not_durable_is_no_longer_believed_to_be_gone() {
    let directory = tempfile::tempdir().unwrap();
    let pool = pool(directory.path());
    pool.check().unwrap();
    let id = VolumeId::generate();
    let draft = pool.build(id.as_str()).unwrap();
    draft.commit(record(&id), None).unwrap();
    let (folder, away) = (pool.folder(&record(&id)), directory.path().join("away"));
    // The rename works; then there is no directory to sync.
    let failed = pool.rename(&pool.volumes(), &away, &pool.volumes(), |index| index.volumes.remove(&id));
    failed.unwrap_err();
    assert!(!pool.is_available());
    fs::rename(&away, pool.volumes()).unwrap();
    pool.check().unwrap();
    assert!(matches!(pool.find::<VolumeRecord>(&id), Lookup::Found(_)) && folder.is_dir());
    pool.remove(&record(&id)).unwrap();
    assert!(matches!(pool.find::<VolumeRecord>(&id), Lookup::Absent) && !folder.exists());
}
