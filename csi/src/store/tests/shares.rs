//! What pools promise, and what several of them share.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::MetadataExt,
    path::Path,
};

use super::settings;
use crate::{
    config::{PoolKind, PoolSettings},
    policy::{Abilities, Content, Figures, Provisioning, SnapshotId, VolumeId, charge},
    store::{
        Lacking, LookupError, Pace, Pool, Pools, SnapshotRecord, StoreError, VolumeRecord,
        pool::lock,
        record::Source,
        space::{Subject, promise_of},
    },
};

const BYTES: u64 = 1 << 20;

/// Two pools of images and one of directories, in one directory.
fn pools(directory: &Path) -> Pools {
    let of = |name: &str, kind| settings(directory, name, kind);
    let all = vec![of("a", PoolKind::Image), of("b", PoolKind::Image), of("c", PoolKind::Directory)];
    let pools = Pools::new(all, &directory.join("state"));
    pools.iter().for_each(|pool| pool.check().unwrap());
    pools
}

/// An image of [`BYTES`] with so many of them written, and what it takes on the disk.
fn image(pool: &Pool, name: &str, written: usize) -> (VolumeRecord, u64) {
    let id = VolumeId::generate();
    let made = VolumeRecord::new(id, name.to_owned(), BYTES, Provisioning::Thin, Content::Block);
    let draft = pool.build(made.id.as_str()).unwrap();
    let mut file = File::create_new(draft.folder().join("image")).unwrap();
    file.write_all(&vec![7; written]).unwrap();
    file.set_len(BYTES).unwrap();
    file.sync_all().unwrap();
    let taken = file.metadata().unwrap().blocks() * 512;
    draft.commit(made.clone(), Some(&file)).unwrap();
    (made, taken)
}

/// An empty snapshot of a volume, which holds 4 KiB.
fn snapshot(pool: &Pool, volume: &VolumeRecord) -> SnapshotRecord {
    let made = SnapshotRecord {
        id: SnapshotId::generate(),
        name: "snap-1".to_owned(),
        volume: volume.id.clone(),
        bytes: BYTES,
        held: 4096,
        created: 1,
        content: Content::Block,
        family: volume.id.clone(),
        template_bytes: 0,
        group: None,
    };
    let draft = pool.build(made.id.as_str()).unwrap();
    File::create_new(draft.folder().join("image")).unwrap();
    draft.commit(made.clone(), None).unwrap();
    made
}

/// Makes the pool believe that its filesystem shows something else.
fn pretend(pool: &Pool, change: impl FnOnce(&mut Abilities)) {
    change(lock(&pool.abilities).as_mut().unwrap());
}

#[test]
fn a_volume_is_promised_its_size_and_has_taken_its_blocks() {
    let directory = tempfile::tempdir().unwrap();
    let pools = pools(directory.path());
    let pool = pools.named("a").unwrap();
    assert_eq!(pool.promises().unwrap(), (0, 0));
    let (volume, taken) = image(pool, "pvc-1", 64 << 10);
    assert!(taken > 0);
    assert_eq!(pool.promises().unwrap(), (charge(BYTES), taken));
    assert_eq!(pool.figures(volume.id.as_str()), Some(Figures { exclusive: taken, shared: 0 }));
    // A copy from before it was measured.
    let copy = snapshot(pool, &volume);
    assert_eq!(pool.promises().unwrap(), (charge(BYTES) + charge(4096), taken));
    pool.remove(&copy).unwrap();
    assert_eq!(pool.promises().unwrap(), (charge(BYTES), taken));
    // What is attached is measured every time, and once more when it no longer is.
    let path = pool.folder(&volume).join("image");
    let grow = |written: usize| {
        fs::write(&path, vec![7; written]).unwrap();
        fs::metadata(&path).unwrap().blocks() * 512
    };
    let grown = grow(128 << 10);
    assert_eq!(pool.promises().unwrap().1, taken);
    pools.attached(&volume.id);
    assert_eq!(pool.promises().unwrap().1, grown);
    let grown = grow(256 << 10);
    pool.detached(&volume.id);
    assert_eq!(pool.promises().unwrap().1, grown);
    grow(512 << 10);
    assert_eq!(pool.promises().unwrap().1, grown);
    // A scan counts the same, and what can't be read as well.
    fs::write(pool.folder(&volume).join("volume.json"), "{").unwrap();
    pool.release();
    let again =
        super::super::Pool::new(settings(directory.path(), "a", PoolKind::Image), &directory.path().join("state"));
    again.check().unwrap();
    let taken = fs::metadata(&path).unwrap().blocks() * 512;
    assert_eq!(again.promises().unwrap(), (charge(512 << 10), taken));
}

#[test]
fn a_scan_counts_what_was_promised() {
    let directory = tempfile::tempdir().unwrap();
    let first = pools(directory.path());
    let (_, taken) = image(first.named("a").unwrap(), "pvc-1", 64 << 10);
    drop(first);
    assert_eq!(pools(directory.path()).named("a").unwrap().promises().unwrap(), (charge(BYTES), taken));
}

#[test]
fn a_directory_is_promised_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let pools = pools(directory.path());
    let of = |name: &str, content: Content| promise_of(content.kind(), BYTES, pools.named(name).unwrap());
    assert_eq!(of("a", Content::Block), charge(BYTES));
    assert_eq!(of("c", Content::Directory), 0);
    pretend(pools.named("c").unwrap(), |abilities| abilities.enforces_sizes = true);
    assert_eq!(of("c", Content::Directory), charge(BYTES));
}

#[test]
fn a_cut_shares_all_that_its_source_has() {
    let directory = tempfile::tempdir().unwrap();
    let pools = pools(directory.path());
    let pool = pools.named("a").unwrap();
    let (volume, taken) = image(pool, "pvc-1", 64 << 10);
    pool.promises().unwrap();
    pretend(pool, |abilities| abilities.shares_blocks = true);
    let mut cuts = vec![snapshot(pool, &volume).id.to_string()];
    let clone = VolumeRecord {
        name: "pvc-2".to_owned(),
        id: VolumeId::generate(),
        source: Some(Source::Volume(volume.id.clone())),
        family: Some(volume.id.clone()),
        ..volume.clone()
    };
    cuts.push(clone.id.to_string());
    pool.build(clone.id.as_str()).unwrap().commit(clone, None).unwrap();
    cuts.push(volume.id.to_string());
    for id in cuts {
        assert_eq!(pool.figures(&id), Some(Figures { exclusive: 0, shared: taken }), "{id}");
    }
}

#[test]
fn what_only_a_template_can_share_with_is_not_mapped_again() {
    let directory = tempfile::tempdir().unwrap();
    let pools = pools(directory.path());
    let pool = pools.named("a").unwrap();
    let (volume, taken) = image(pool, "pvc-1", 64 << 10);
    let id = volume.id.as_str();
    let find = || Subject::find(pool, pool.lock().as_ref().unwrap(), id.to_owned(), 0).unwrap();
    // Never measured.
    assert_eq!(find().shared_with_template, None);
    let before = Figures { exclusive: 1, shared: 4096 };
    pool.lock().as_mut().unwrap().ledger.measured(id, 0, before);
    // Its neighbour is no relative.
    image(pool, "pvc-2", 0);
    let subject = find();
    assert_eq!(subject.shared_with_template, Some(4096));
    assert_eq!(subject.measure(pool).unwrap().figures, Figures { exclusive: taken, shared: 0 });
    pretend(pool, |abilities| abilities.shares_blocks = true);
    assert_eq!(subject.measure(pool).unwrap().figures, Figures { exclusive: taken - 4096, shared: 4096 });
    // With a relative.
    snapshot(pool, &volume);
    assert_ne!(pool.figures(id), Some(Figures::default()));
    assert_eq!(find().shared_with_template, None);
    // Deleted meanwhile, and a path that can't be looked at.
    let folder = pool.folder(&volume);
    fs::remove_dir_all(&folder).unwrap();
    assert_eq!(subject.measure(pool).unwrap().figures, Figures::default());
    fs::write(&folder, "no directory").unwrap();
    assert!(subject.measure(pool).is_err());
}

#[test]
fn pools_of_one_filesystem_share_its_space() {
    let directory = tempfile::tempdir().unwrap();
    let pools = pools(directory.path());
    let (a, b) = (pools.named("a").unwrap(), pools.named("b").unwrap());
    let promised = || [a, b].map(|pool| pools.room(pool).unwrap().promised);
    let kept = pools.reserve(a, BYTES, charge(BYTES), Pace::AsWritten).unwrap();
    assert_eq!(promised(), [charge(BYTES); 2]);
    drop(kept);
    assert_eq!(promised(), [0; 2]);
    let (_, taken) = image(b, "pvc-1", 64 << 10);
    assert_eq!(promised(), [charge(BYTES); 2]);
    assert_eq!(pools.room(a).unwrap().taken, taken);
    assert!(matches!(pools.reserve(a, BYTES, u64::MAX, Pace::AtOnce), Err(Lacking::Space { bytes: BYTES, .. })));
}

#[test]
fn what_lies_in_any_pool_is_found_and_listed_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let pools = pools(directory.path());
    let made = ["a", "b", "b", "a"].map(|name| {
        let pool = pools.named(name).unwrap();
        (name, image(pool, &format!("pvc-{}", VolumeId::generate()), 0).0)
    });
    for (name, volume) in &made {
        let (pool, found) = pools.locate::<VolumeRecord>(volume.id.as_str()).unwrap();
        assert_eq!((pool.settings.name.as_str(), &*found), (*name, volume));
        let (pool, found) = pools.find_by_name::<VolumeRecord>(None, &volume.name).unwrap().unwrap();
        assert_eq!((pool.settings.name.as_str(), &*found), (*name, volume));
    }
    let listed = pools.after::<VolumeRecord>(None, usize::MAX).unwrap();
    assert_eq!(listed.len(), 4);
    assert!(listed.is_sorted_by_key(|(_, record)| record.id.clone()));
    let rest = pools.after::<VolumeRecord>(Some(&listed[1].1.id), 1).unwrap();
    assert_eq!(rest[0].1, listed[2].1);
    let unknown = VolumeId::generate();
    assert!(matches!(pools.locate::<VolumeRecord>(unknown.as_str()), Err(LookupError::Unknown { .. })));
    // A pool that was never looked at is looked at for what no other knows.
    drop(pools);
    let again = self::pools(directory.path());
    assert_eq!(*again.locate::<VolumeRecord>(made[1].1.id.as_str()).unwrap().1, made[1].1);
}

/// The two pools of images, as a process finds them that starts now; only the first one was looked at.
fn found_anew(directory: &Path) -> Pools {
    let of = |name: &str| settings(directory, name, PoolKind::Image);
    let pools = Pools::new(vec![of("a"), of("b")], &directory.join("state"));
    pools.named("a").unwrap().check().unwrap();
    pools
}

#[test]
fn a_pool_that_was_not_looked_at_yet_counts_where_it_shares_space() {
    let directory = tempfile::tempdir().unwrap();
    let before = pools(directory.path());
    image(before.named("b").unwrap(), "pvc-1", 0);
    drop(before);
    let pools = found_anew(directory.path());
    assert_eq!(pools.room(pools.named("a").unwrap()).unwrap().promised, charge(BYTES));
}

#[test]
fn nothing_is_promised_beside_a_pool_that_nobody_can_look_at() {
    let directory = tempfile::tempdir().unwrap();
    let before = pools(directory.path());
    // Another process has the other pool.
    before.named("a").unwrap().release();
    let pools = found_anew(directory.path());
    let a = pools.named("a").unwrap();
    let refused = pools.reserve(a, BYTES, 1, Pace::AsWritten);
    assert!(matches!(refused, Err(Lacking::Store(StoreError::Unavailable(_)))), "{refused:?}");
    before.named("b").unwrap().release();
    pools.reserve(a, BYTES, 1, Pace::AsWritten).unwrap();
}

#[test]
fn a_pool_that_was_lost_does_not_promise_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let pools = pools(directory.path());
    let a = pools.named("a").unwrap();
    *a.lock() = None;
    assert!(matches!(a.promises(), Err(StoreError::Unavailable(_))));
    let refused = pools.reserve(a, BYTES, 1, Pace::AsWritten);
    assert!(matches!(refused, Err(Lacking::Store(StoreError::Unavailable(_)))), "{refused:?}");
}

#[test]
fn an_image_that_is_longer_than_its_record_is_promised_its_length() {
    let directory = tempfile::tempdir().unwrap();
    let before = pools(directory.path());
    let (volume, _) = image(before.named("a").unwrap(), "pvc-1", 0);
    let path = before.named("a").unwrap().folder(&volume).join("image");
    let file = File::options().write(true).open(&path).unwrap();
    file.set_len(3 * BYTES).unwrap();
    drop(before);
    let pools = found_anew(directory.path());
    let pool = pools.named("a").unwrap();
    assert_eq!(pool.promises().unwrap().0, charge(3 * BYTES));
    pools.attached(&volume.id);
    file.set_len(BYTES).unwrap();
    assert_eq!(pool.promises().unwrap().0, charge(BYTES));
}

#[test]
fn what_is_attached_is_remembered_only_where_it_lies() {
    let directory = tempfile::tempdir().unwrap();
    let pools = pools(directory.path());
    let [a, b] = ["a", "b"].map(|name| pools.named(name).unwrap());
    let (volume, _) = image(a, "pvc-1", 0);
    pools.attached(&volume.id);
    for pool in [a, b] {
        pool.promises().unwrap();
    }
    assert!(lock(&a.attached).contains(&volume.id) && lock(&b.attached).is_empty());
}

#[test]
fn what_is_taken_at_once_is_there_however_much_may_be_promised() {
    let directory = tempfile::tempdir().unwrap();
    let of = PoolSettings { overcommit_percent: 1000, ..settings(directory.path(), "a", PoolKind::Image) };
    let pools = Pools::new(vec![of], &directory.path().join("state"));
    let pool = pools.named("a").unwrap();
    pool.check().unwrap();
    let free = pools.room(pool).unwrap().free;
    let most = free / 5 * 4;
    let _thin = pools.reserve(pool, most, free * 2, Pace::AsWritten).unwrap();
    let thick = pools.reserve(pool, most, most, Pace::AtOnce).unwrap();
    for pace in [Pace::AtOnce, Pace::Promised] {
        assert!(matches!(pools.reserve(pool, most, most, pace), Err(Lacking::Space { .. })));
    }
    drop(thick);
    let _filled = pools.reserve(pool, most, most, Pace::Promised).unwrap();
    assert!(matches!(pools.reserve(pool, most, most, Pace::AtOnce), Err(Lacking::Space { .. })));
    assert_eq!(pools.room(pool).unwrap().promised, free * 2);
}
