//! Which blocks have data and which changed, held against the bytes themselves.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt,
    path::PathBuf,
};

use common::{MIB, Place, Running, block, disk::Disk, expect_code, mounted, process::Process, request};
use keelson_proto::csi::v1::{
    BlockMetadata, BlockMetadataType, CreateSnapshotRequest, CreateVolumeRequest, GetMetadataAllocatedRequest,
    GetMetadataDeltaRequest, VolumeContentSource,
    snapshot_metadata_client::SnapshotMetadataClient,
    volume_content_source::{SnapshotSource, Type},
};
use keelson_testkit::{Chance, missing, skip_unless};
use rustix::fs::FallocateFlags;
use tonic::{Code, Status, transport::Channel};

const BLOCK: usize = 4096;

struct Scene {
    driver: Running,
    metadata: SnapshotMetadataClient<Channel>,
    place: Place,
    _disk: Disk,
    // It goes after what is on it.
    _directory: tempfile::TempDir,
}

/// What a stream told: the volume's size, its messages' lengths and the ranges.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    bytes: i64,
    messages: Vec<usize>,
    ranges: Vec<(u64, u64)>,
}

impl Told {
    fn new() -> Self {
        Self { bytes: -1, messages: Vec::new(), ranges: Vec::new() }
    }

    fn hear(&mut self, kind: i32, bytes: i64, blocks: &[BlockMetadata]) {
        assert_eq!(kind, i32::from(BlockMetadataType::VariableLength));
        self.bytes = bytes;
        self.messages.push(blocks.len());
        for found in blocks {
            let (start, length) = (u64::try_from(found.byte_offset).unwrap(), u64::try_from(found.size_bytes).unwrap());
            assert!(length > 0 && start % BLOCK as u64 == 0 && length % BLOCK as u64 == 0);
            assert!(self.ranges.last().is_none_or(|(before, length)| before + length < start), "not ascending");
            self.ranges.push((start, length));
        }
    }

    /// The blocks that it names, by number.
    fn blocks(&self) -> Vec<u64> {
        self.ranges.iter().flat_map(|(start, length)| start / 4096..(start + length) / 4096).collect()
    }
}

impl Scene {
    async fn new(filesystem: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("keelson-csi-").tempdir_in("/var/tmp").unwrap();
        let place = Place::new();
        let disk = Disk::make(&directory.path().join("disk"), filesystem, 2 << 30, &place.path("pool"));
        let driver = Running::start(&place, &place.section("image")).await;
        let metadata = SnapshotMetadataClient::new(common::connect(&place.socket()).await.unwrap());
        Self { driver, metadata, place, _disk: disk, _directory: directory }
    }

    fn volume(&self, id: &str) -> PathBuf {
        self.place.path("pool/volumes").join(id).join("image")
    }

    fn bytes_of(&self, snapshot: &str) -> Vec<u8> {
        fs::read(self.place.path("pool/snapshots").join(snapshot).join("image")).unwrap()
    }

    async fn snapshot(&mut self, name: &str, volume: &str) -> String {
        let request = CreateSnapshotRequest {
            name: name.to_owned(),
            source_volume_id: volume.to_owned(),
            ..CreateSnapshotRequest::default()
        };
        self.driver.controller.create_snapshot(request).await.unwrap().into_inner().snapshot.unwrap().snapshot_id
    }

    async fn allocated(&mut self, snapshot: &str, starting_offset: i64, max_results: i32) -> Result<Told, Status> {
        let request = GetMetadataAllocatedRequest {
            snapshot_id: snapshot.to_owned(),
            starting_offset,
            max_results,
            ..GetMetadataAllocatedRequest::default()
        };
        let mut stream = self.metadata.get_metadata_allocated(request).await?.into_inner();
        let mut told = Told::new();
        while let Some(message) = stream.message().await? {
            told.hear(message.block_metadata_type, message.volume_capacity_bytes, &message.block_metadata);
        }
        Ok(told)
    }

    async fn delta(
        &mut self,
        base: &str,
        target: &str,
        starting_offset: i64,
        max_results: i32,
    ) -> Result<Told, Status> {
        let request = GetMetadataDeltaRequest {
            base_snapshot_id: base.to_owned(),
            target_snapshot_id: target.to_owned(),
            starting_offset,
            max_results,
            ..GetMetadataDeltaRequest::default()
        };
        let mut stream = self.metadata.get_metadata_delta(request).await?.into_inner();
        let mut told = Told::new();
        while let Some(message) = stream.message().await? {
            told.hear(message.block_metadata_type, message.volume_capacity_bytes, &message.block_metadata);
        }
        Ok(told)
    }
}

/// The blocks in which two images differ; beyond the end there are zeros.
fn differing(base: &[u8], target: &[u8]) -> Vec<u64> {
    let zeros = [0; BLOCK];
    let block = |bytes: &'_ [u8], at: usize| -> [u8; BLOCK] {
        bytes.get(at * BLOCK..(at + 1) * BLOCK).map_or(zeros, |block| block.try_into().unwrap())
    };
    (0..target.len() / BLOCK).filter(|at| block(base, *at) != block(target, *at)).map(|at| at as u64).collect()
}

fn contains_all(list: &[u64], all: &[u64]) -> bool {
    all.iter().all(|one| list.binary_search(one).is_ok())
}

macro_rules! needs_pools {
    () => {
        needs_a_kernel!();
        let missing = missing(&["mkfs.xfs", "mkfs.btrfs"]);
        skip_unless!(missing.is_empty(), format!("needs {}", missing.join(", ")));
    };
}

/// Writes, overwrites, discards and allocates at random, between snapshots; then every pair of snapshots is compared.
async fn what_is_told_is_held_against_the_bytes(filesystem: &str, is_exact: bool) {
    const BLOCKS: usize = 4096;
    let mut scene = Scene::new(filesystem).await;
    let chance = &mut Chance::new();
    println!("seed {}", chance.seed());
    let id = scene.driver.create(request("pvc-1", 16 * MIB, block())).await.unwrap().volume_id;
    let image = OpenOptions::new().read(true).write(true).open(scene.volume(&id)).unwrap();
    let mut snapshots = Vec::new();
    // Every block has bytes that were never there before, unless they are zeros.
    let mut written = 0_u64;
    // Blocks that the filesystem may count as changed although they are not: zeros that were written.
    for round in 0..8 {
        for _ in 0..chance.below(60) {
            let at = chance.below(BLOCKS);
            let length = (1 + chance.below(40)).min(BLOCKS - at);
            let (start, bytes) = ((at * BLOCK) as u64, (length * BLOCK) as u64);
            match chance.below(6) {
                0 => {
                    rustix::fs::fallocate(&image, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, start, bytes)
                        .unwrap();
                }
                1 => rustix::fs::fallocate(&image, FallocateFlags::KEEP_SIZE, start, bytes).unwrap(),
                _ => {
                    for block in 0..length {
                        written += 1;
                        let content: Vec<u8> = written.to_le_bytes().repeat(BLOCK / 8);
                        image.write_all_at(&content, ((at + block) * BLOCK) as u64).unwrap();
                    }
                }
            }
        }
        image.sync_all().unwrap();
        let cut = scene.snapshot(&format!("snap-{round}"), &id).await;
        let bytes = scene.bytes_of(&cut);
        snapshots.push((cut, bytes));
    }
    for (index, (target, bytes)) in snapshots.iter().enumerate() {
        let told = scene.allocated(target, 0, 0).await.unwrap();
        assert_eq!(told.bytes, 16 * MIB);
        let data = differing(&[], bytes);
        assert!(contains_all(&told.blocks(), &data), "data of {index} is left out");
        assert!(!is_exact || told.blocks() == data, "{filesystem} {index}");
        for (base, before) in &snapshots[..=index] {
            let told = scene.delta(base, target, 0, 0).await.unwrap();
            let changed = differing(before, bytes);
            assert!(contains_all(&told.blocks(), &changed), "a change up to {index} is left out");
            assert!(!is_exact || told.blocks() == changed, "{filesystem} {index}");
            // From a place on, and in small messages.
            let offset = chance.below(16 << 20);
            let block = (offset / BLOCK) as u64;
            let part = scene.delta(base, target, i64::try_from(offset).unwrap(), 3).await.unwrap();
            let expected: Vec<u64> = told.blocks().into_iter().filter(|found| *found >= block).collect();
            assert_eq!(part.blocks(), expected);
            assert!(part.messages.iter().all(|length| *length <= 3));
        }
    }
    scene.driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_and_allocated_blocks_on_xfs_are_exactly_those_that_the_bytes_show() {
    needs_pools!();
    what_is_told_is_held_against_the_bytes("xfs", true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_changed_or_allocated_block_on_btrfs_is_left_out() {
    needs_pools!();
    what_is_told_is_held_against_the_bytes("btrfs", false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_blocks_are_not_shared_all_data_counts_as_changed() {
    needs_pools!();
    what_is_told_is_held_against_the_bytes("ext4", false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_changes_come_in_several_messages_and_an_early_end_frees_the_snapshots() {
    needs_pools!();
    let mut scene = Scene::new("xfs").await;
    let id = scene.driver.create(request("pvc-1", 256 * MIB, block())).await.unwrap().volume_id;
    let base = scene.snapshot("base", &id).await;
    let image = OpenOptions::new().write(true).open(scene.volume(&id)).unwrap();
    for number in 0..10_000_u64 {
        image.write_all_at(&[1; BLOCK], number * 5 * BLOCK as u64).unwrap();
    }
    drop(image);
    let target = scene.snapshot("target", &id).await;
    let told = scene.delta(&base, &target, 0, 0).await.unwrap();
    assert!(told.ranges.iter().copied().eq((0..10_000).map(|number| (number * 5 * 4096, 4096))));
    assert_eq!(told.messages, [4096, 4096, 1808]);
    assert_eq!(told.ranges, scene.allocated(&target, 0, 1000).await.unwrap().ranges);
    assert_eq!(
        scene.allocated(&base, 0, 0).await.unwrap(),
        Told { bytes: 256 * MIB, messages: vec![0], ranges: vec![] }
    );

    let request = GetMetadataAllocatedRequest {
        snapshot_id: target.clone(),
        max_results: 1,
        ..GetMetadataAllocatedRequest::default()
    };
    let mut stream = scene.metadata.get_metadata_allocated(request).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().is_some());
    let delete = || keelson_proto::csi::v1::DeleteSnapshotRequest {
        snapshot_id: target.clone(),
        ..keelson_proto::csi::v1::DeleteSnapshotRequest::default()
    };
    // It is read.
    expect_code(scene.driver.controller.delete_snapshot(delete()).await, Code::Aborted);
    drop(stream);
    keelson_testkit::wait_until_async("the reading to end", std::time::Duration::from_secs(60), async || {
        scene.driver.controller.clone().delete_snapshot(delete()).await.ok()
    })
    .await;
    scene.driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_compared_is_refused() {
    needs_pools!();
    let mut scene = Scene::new("xfs").await;
    let one = scene.driver.create(request("one", 16 * MIB, block())).await.unwrap().volume_id;
    let other = scene.driver.create(request("other", 16 * MIB, block())).await.unwrap().volume_id;
    let files = scene.driver.create(request("files", 16 * MIB, mounted())).await.unwrap().volume_id;
    let (first, second) = (scene.snapshot("first", &one).await, scene.snapshot("second", &other).await);
    let files = scene.snapshot("files", &files).await;
    expect_code(scene.delta(&first, &second, 0, 0).await, Code::InvalidArgument);
    expect_code(scene.delta(&first, "none", 0, 0).await, Code::NotFound);
    expect_code(scene.delta("", &first, 0, 0).await, Code::InvalidArgument);
    expect_code(scene.allocated("none", 0, 0).await, Code::NotFound);
    expect_code(scene.allocated(&files, 0, 0).await, Code::FailedPrecondition);
    expect_code(scene.allocated(&first, -1, 0).await, Code::OutOfRange);
    expect_code(scene.allocated(&first, 16 * MIB + 1, 0).await, Code::OutOfRange);
    expect_code(scene.allocated(&first, 0, -1).await, Code::InvalidArgument);
    assert_eq!(scene.allocated(&first, 16 * MIB, 0).await.unwrap().ranges, []);
    scene.driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_volume_has_grown_by_counts_as_zeros_before() {
    needs_pools!();
    let mut scene = Scene::new("xfs").await;
    let id = scene.driver.create(request("pvc-1", 16 * MIB, block())).await.unwrap().volume_id;
    let base = scene.snapshot("base", &id).await;
    // The larger one is a volume of its own, whose snapshots can be compared among themselves.
    let source = Some(VolumeContentSource { r#type: Some(Type::Snapshot(SnapshotSource { snapshot_id: base })) });
    let wish = CreateVolumeRequest { volume_content_source: source, ..request("pvc-2", 64 * MIB, block()) };
    let large = scene.driver.create(wish).await.unwrap().volume_id;
    let before = scene.snapshot("before", &large).await;
    let image = OpenOptions::new().write(true).open(scene.volume(&large)).unwrap();
    image.write_all_at(&[1; BLOCK], 40 << 20).unwrap();
    let after = scene.snapshot("after", &large).await;
    let told = scene.delta(&before, &after, 0, 0).await.unwrap();
    assert_eq!(told, Told { bytes: 64 * MIB, messages: vec![1], ranges: vec![(40 << 20, 4096)] });
    scene.driver.stop().await;
}

/// What the process has read so far, from whatever: `rchar` of proc_pid_io(5).
fn read_by(process: u32) -> u64 {
    let io = fs::read_to_string(format!("/proc/{process}/io")).unwrap();
    io.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn d13_changed_blocks_are_told_without_reading_data() {
    needs_a_kernel!();
    skip_unless!(missing(&["mkfs.xfs"]).is_empty(), "needs mkfs.xfs");
    let directory = tempfile::Builder::new().prefix("keelson-csi-").tempdir_in("/var/tmp").unwrap();
    let place = Place::new();
    let disk = Disk::make(&directory.path().join("disk"), "xfs", 1 << 30, &place.path("pool"));
    let (process, mut clients) = Process::serve(&place, &place.section("image")).await;
    let mut metadata = SnapshotMetadataClient::new(common::connect(&place.socket()).await.unwrap());
    let created = clients.controller.create_volume(request("pvc-1", 256 * MIB, block())).await.unwrap();
    let id = created.into_inner().volume.unwrap().volume_id;
    let image = OpenOptions::new().write(true).open(place.path("pool/volumes").join(&id).join("image")).unwrap();
    let mut snapshots = Vec::new();
    for round in 1..=2_u8 {
        let data = vec![round; 64 << 20];
        image.write_all_at(&data, u64::from(round - 1) * (32 << 20)).unwrap();
        image.sync_all().unwrap();
        let cut = CreateSnapshotRequest {
            name: format!("snapshot-{round}"),
            source_volume_id: id.clone(),
            ..CreateSnapshotRequest::default()
        };
        let cut = clients.controller.create_snapshot(cut).await.unwrap();
        snapshots.push(cut.into_inner().snapshot.unwrap().snapshot_id);
    }
    let before = read_by(process.id());
    let wanted = GetMetadataDeltaRequest {
        base_snapshot_id: snapshots[0].clone(),
        target_snapshot_id: snapshots[1].clone(),
        ..GetMetadataDeltaRequest::default()
    };
    let mut stream = metadata.get_metadata_delta(wanted).await.unwrap().into_inner();
    let mut changed = 0;
    while let Some(message) = stream.message().await.unwrap() {
        changed += message.block_metadata.iter().map(|found| found.size_bytes).sum::<i64>();
    }
    let read = read_by(process.id()) - before;
    assert_eq!(changed, 64 * MIB);
    assert!(read < 1 << 20, "{read} bytes were read");
    drop(image);
    process.end(nix::sys::signal::Signal::SIGTERM);
    disk.unmount();
}
