//! Snapshots, groups and templates, and what a scan makes of them.

use std::fs::{self, File};

use super::{Lookup, Pool, VolumeRecord, pool, record};
use crate::{
    policy::{Content, FilesystemType, GroupId, SnapshotId, VolumeId},
    store::{GroupRecord, Kept, SnapshotRecord, StoreError},
};

/// A volume in the pool.
fn volume(pool: &Pool) -> VolumeRecord {
    let made = record(&VolumeId::generate());
    pool.build(made.id.as_str()).unwrap().commit(made.clone(), None).unwrap();
    made
}

fn cut(volume: &VolumeRecord, name: &str, group: Option<&GroupId>) -> SnapshotRecord {
    SnapshotRecord {
        id: SnapshotId::generate(),
        name: name.to_owned(),
        volume: volume.id.clone(),
        bytes: 0,
        held: 0,
        created: 1,
        content: Content::Directory,
        family: volume.id.clone(),
        template_bytes: 0,
        group: group.cloned(),
    }
}

/// A group of two snapshots in the pool.
fn group(pool: &Pool, volume: &VolumeRecord) -> (GroupRecord, Vec<SnapshotRecord>) {
    let id = GroupId::generate();
    let members: Vec<_> = ["one", "two"].iter().map(|name| cut(volume, name, Some(&id))).collect();
    let draft = pool.build(id.as_str()).unwrap();
    for member in &members {
        let folder = draft.folder().join(member.id.as_str());
        fs::create_dir(&folder).unwrap();
        draft.seal(&folder, member, None).unwrap();
    }
    let snapshots = members.iter().map(|member| member.id.clone()).collect();
    let made = GroupRecord { id, name: "group".to_owned(), created: 1, snapshots, pause_microseconds: 5 };
    draft.commit_group(&made, members.clone()).unwrap();
    (made, members)
}

#[track_caller]
fn expect<T: Kept + PartialEq>(pool: &Pool, record: &T) {
    assert!(matches!(pool.find::<T>(record.id()), Lookup::Found(found) if *found == *record), "{record:?}");
    assert_eq!(pool.find_by_name::<T>(record.name()).unwrap().as_deref(), Some(record));
    assert!(pool.folder(record).join(T::FILE).is_file());
}

#[track_caller]
fn expect_gone<T: Kept>(pool: &Pool, record: &T) {
    assert!(matches!(pool.find::<T>(record.id()), Lookup::Absent), "{record:?}");
    assert!(pool.find_by_name::<T>(record.name()).unwrap().is_none());
    assert!(!pool.folder(record).exists());
}

#[test]
fn what_is_made_is_found_by_a_scan_and_what_is_removed_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let first = pool(directory.path());
    first.check().unwrap();
    let volume = volume(&first);
    let snapshot = cut(&volume, "alone", None);
    first.build(snapshot.id.as_str()).unwrap().commit(snapshot.clone(), None).unwrap();
    let (group, members) = group(&first, &volume);
    let second = pool(directory.path());
    for (pool, scanned) in [(&first, false), (&second, true)] {
        if scanned {
            first.release();
            pool.check().unwrap();
        }
        expect(pool, &volume);
        expect(pool, &snapshot);
        expect(pool, &group);
        assert!(pool.find_by_name::<GroupRecord>("group").unwrap().is_some());
        members.iter().for_each(|member| expect(pool, member));
        let all = pool.after::<SnapshotRecord>(None, 10).unwrap();
        assert_eq!(all.len(), 3);
        assert!(all.is_sorted_by_key(|record| record.id.clone()));
        let rest = pool.after::<SnapshotRecord>(Some(&all[0].id), 1).unwrap();
        assert_eq!(rest, all[1..2]);
        let of_group = pool.filtered::<SnapshotRecord>(|record| record.group.is_some()).unwrap();
        assert_eq!(of_group.len(), 2);
        assert!(pool.damaged().unwrap().is_empty());
    }
    second.remove_group(&group).unwrap();
    expect_gone(&second, &group);
    members.iter().for_each(|member| expect_gone(&second, member));
    second.remove(&snapshot).unwrap();
    expect_gone(&second, &snapshot);
    expect(&second, &volume);
    assert_eq!(fs::read_dir(second.building()).unwrap().count(), 0);
}

#[test]
fn a_changed_record_is_the_one_that_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let first = pool(directory.path());
    first.check().unwrap();
    let changed = VolumeRecord { bytes: 77, ..volume(&first) };
    first.update(changed.clone()).unwrap();
    expect(&first, &changed);
    first.release();
    let second = pool(directory.path());
    second.check().unwrap();
    expect(&second, &changed);
}

#[test]
fn a_draft_that_is_dropped_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let pool = pool(directory.path());
    pool.check().unwrap();
    let draft = pool.build("v1-half").unwrap();
    fs::write(draft.folder().join("image"), "half").unwrap();
    drop(draft);
    assert_eq!(fs::read_dir(pool.building()).unwrap().count(), 0);
}

#[test]
fn a_folder_with_another_record_or_none_is_damaged() {
    let directory = tempfile::tempdir().unwrap();
    let first = pool(directory.path());
    first.check().unwrap();
    let (moved, bare) = (VolumeId::generate(), VolumeId::generate());
    let whole = volume(&first);
    fs::rename(first.folder(&whole), first.volumes().join(moved.as_str())).unwrap();
    fs::create_dir(first.volumes().join(bare.as_str())).unwrap();
    // A snapshot of a group that lies outside of it.
    let astray = cut(&whole, "astray", Some(&GroupId::generate()));
    let folder = first.snapshots().join(astray.id.as_str());
    first.build(astray.id.as_str()).unwrap().seal(&first.building().join(astray.id.as_str()), &astray, None).unwrap();
    fs::create_dir(&folder).unwrap();
    let text = serde_json::json!({"version": 1, "id": astray.id, "name": "astray", "volume": whole.id, "bytes": 0,
        "held": 0, "created": 1, "content": {"type": "directory"}, "family": whole.id, "group": astray.group});
    fs::write(folder.join("snapshot.json"), text.to_string()).unwrap();
    first.release();
    let second = pool(directory.path());
    second.check().unwrap();
    let mut damaged = second.damaged().unwrap();
    damaged.sort();
    let reason = |id: &str| damaged.iter().find(|(name, _)| name == id).map(|(_, reason)| reason.clone()).unwrap();
    assert_eq!(reason(moved.as_str()), format!("its record is that of {}", whole.id));
    assert_eq!(reason(bare.as_str()), "its record is missing");
    assert_eq!(reason(astray.id.as_str()), format!("its record is that of {}", astray.id));
    assert!(matches!(second.find::<VolumeRecord>(&moved), Lookup::Damaged(_)));
    assert_eq!(damaged.len(), 3);
}

#[test]
fn the_snapshots_of_a_group_whose_record_is_damaged_are_there_and_count() {
    let directory = tempfile::tempdir().unwrap();
    let first = pool(directory.path());
    first.check().unwrap();
    let whole = volume(&first);
    let id = GroupId::generate();
    let (member, broken) = (cut(&whole, "", Some(&id)), SnapshotId::generate());
    let draft = first.build(id.as_str()).unwrap();
    let folder = draft.make_folder(member.id.as_str()).unwrap();
    draft.seal(&folder, &member, None).unwrap();
    let snapshots = vec![member.id.clone()];
    let group = GroupRecord { id, name: "group".to_owned(), created: 1, snapshots, pause_microseconds: 0 };
    draft.commit_group(&group, vec![member.clone()]).unwrap();
    let folder = first.folder(&group);
    fs::write(folder.join("group.json"), "{").unwrap();
    fs::create_dir(folder.join(broken.as_str())).unwrap();
    let image = folder.join(broken.as_str()).join("image");
    fs::write(&image, vec![1; 1 << 20]).unwrap();
    File::open(&image).unwrap().sync_all().unwrap();
    first.release();
    let second = pool(directory.path());
    second.check().unwrap();
    assert!(matches!(second.find::<GroupRecord>(&group.id), Lookup::Damaged(_)));
    expect(&second, &member);
    assert!(matches!(second.find::<SnapshotRecord>(&broken), Lookup::Damaged(_)));
    assert!(second.figures(broken.as_str()).unwrap().exclusive >= 1 << 20);
}

#[test]
fn a_scan_sweeps_what_was_half_written_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let first = pool(directory.path());
    first.check().unwrap();
    let whole = volume(&first);
    let (folder, root) = (first.folder(&whole), &first.settings.path);
    let memory = directory.path().join("state/storage/pools");
    fs::create_dir_all(root.join("templates")).unwrap();
    let halves = [
        folder.join(".volume.json.77.0.tmp"),
        root.join(".keelson-pool.json.77.3.tmp"),
        memory.join(".pool.json.77.0.tmp"),
        root.join("templates/.half"),
    ];
    let others = [memory.join(".other.json.77.0.tmp"), folder.join(".volume.json.swp"), root.join("templates/ext4-1")];
    halves.iter().chain(&others).for_each(|path| fs::write(path, "{").unwrap());
    first.release();
    let second = pool(directory.path());
    second.check().unwrap();
    expect(&second, &whole);
    assert_eq!(halves.map(|path| path.exists()), [false; 4]);
    assert_eq!(others.map(|path| path.exists()), [true; 3]);
}

#[test]
fn eight_templates_are_kept_and_the_newest_of_all() {
    let directory = tempfile::tempdir().unwrap();
    let pool = pool(directory.path());
    pool.check().unwrap();
    let make = |bytes: u64| {
        pool.make_template::<StoreError>(FilesystemType::Ext4, bytes, |path| {
            assert!(!path.exists());
            File::create_new(path).map_err(StoreError::io("create", path))
        })
    };
    assert!(pool.template(FilesystemType::Ext4, 1).unwrap().is_none());
    fs::create_dir(pool.templates()).unwrap();
    // A maker that was killed.
    fs::write(pool.templates().join(".half"), "half").unwrap();
    for bytes in 1..=20 {
        assert!(make(bytes).unwrap().is_some());
        assert!(pool.template(FilesystemType::Ext4, bytes).unwrap().is_some());
        assert!(pool.template(FilesystemType::Xfs, bytes).unwrap().is_none());
    }
    assert_eq!(fs::read_dir(pool.templates()).unwrap().count(), 8);
    pool.drop_template(FilesystemType::Ext4, 20).unwrap();
    assert!(pool.template(FilesystemType::Ext4, 20).unwrap().is_none());
    pool.drop_template(FilesystemType::Ext4, 20).unwrap();
    // What is in the way is told of.
    fs::create_dir(pool.templates().join(".half")).unwrap();
    make(21).unwrap_err();
    fs::remove_dir_all(pool.templates()).unwrap();
    fs::write(pool.templates(), "no directory").unwrap();
    pool.template(FilesystemType::Ext4, 19).unwrap_err();
}
