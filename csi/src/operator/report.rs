//! What the operator is told: plain data, for a table or for JSON.

use serde::Serialize;

use crate::config::PoolKind;

/// How a pool stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum PoolState {
    /// It is there and can be written to.
    Available,
    /// It is there, on a filesystem that can't be written to.
    ReadOnly,
    /// It was never used; the driver makes it a pool at its first use.
    Unused,
    /// It isn't there, or something else is in its place.
    Unavailable,
}

impl PoolState {
    /// The state's name, as in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Available => "available",
            Self::ReadOnly => "readOnly",
            Self::Unused => "unused",
            Self::Unavailable => "unavailable",
        }
    }
}

/// One pool of the config.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolReport {
    /// Its name.
    pub name: String,
    /// How it keeps volumes.
    pub kind: PoolKind,
    /// Its directory.
    pub path: String,
    /// How it stands.
    pub state: PoolState,
    /// Why it is not available.
    pub reason: Option<String>,
    /// The type of its filesystem.
    pub filesystem: Option<String>,
    /// What it has; none unless it could be read.
    pub space: Option<SpaceReport>,
    /// The pools that lie on the same filesystem: its space is theirs as well.
    pub shares_filesystem_with: Vec<String>,
    /// How many volumes it holds, and so on; 0 if it could not be read.
    pub volumes: usize,
    /// Snapshots, those in groups included.
    pub snapshots: usize,
    /// Groups of snapshots.
    pub groups: usize,
    /// Folders whose record can't be read.
    pub damaged: usize,
    /// Whether snapshots and clones share blocks with their source, and so are made at once.
    pub shares_blocks: bool,
    /// Whether no volume can grow beyond its size.
    pub enforces_sizes: bool,
}

/// The space of a pool's filesystem, in bytes. Pools on one filesystem share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SpaceReport {
    /// The filesystem's size.
    pub total_bytes: u64,
    /// What is free there.
    pub free_bytes: u64,
    /// What is kept free.
    pub reserve_bytes: u64,
    /// What was promised to volumes and snapshots.
    pub promised_bytes: u64,
    /// How much of that is taken at least.
    pub taken_bytes: u64,
    /// What can still be promised.
    pub available_bytes: u64,
}

/// How a volume's space is provided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Provision {
    /// Blocks are taken when they are written.
    Thin,
    /// Blocks were taken when it was made.
    Thick,
}

/// What a mount of a volume is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum UseKind {
    /// For the node, as `NodeStageVolume` asked.
    Staged,
    /// For a Pod, as `NodePublishVolume` asked.
    Published,
    /// No record tells why: the kubelet's own for a subPath, or somebody's by hand.
    Mounted,
}

/// One mount of a volume.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UseReport {
    /// What it is for.
    pub what: UseKind,
    /// Where it is.
    pub path: String,
    /// The Pod that it is for, where the kubelet's path tells.
    pub pod_uid: Option<String>,
    /// Whether writing through it fails.
    pub read_only: bool,
}

/// A volume, snapshot or group whose record can't be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DamagedReport {
    /// Its id, by its folder.
    pub id: String,
    /// Its pool.
    pub pool: String,
    /// Why the record can't be read.
    pub reason: String,
}

/// One volume.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeReport {
    /// Its id, the volume handle of its PersistentVolume.
    pub id: String,
    /// The name it was created under: `pvc-` and the claim's UID.
    pub name: String,
    /// Its pool.
    pub pool: String,
    /// Its size.
    pub bytes: u64,
    /// How its space is provided.
    pub provisioning: Provision,
    /// `block`, `ext4`, `xfs`, `btrfs`, `directory` or `subvolume`.
    pub content: &'static str,
    /// What deleting it gives back at least; none where that isn't known.
    pub exclusive_bytes: Option<u64>,
    /// What snapshots and clones have as well.
    pub shared_bytes: Option<u64>,
    /// The volume or snapshot that its content was copied from.
    pub source: Option<String>,
    /// Where it is mounted.
    pub uses: Vec<UseReport>,
    /// Its loop devices: `/dev/loop7`.
    pub devices: Vec<String>,
}

/// One snapshot.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotReport {
    /// Its id.
    pub id: String,
    /// The name it was created under.
    pub name: String,
    /// Its pool.
    pub pool: String,
    /// The volume that it was cut from, which may be gone.
    pub volume: String,
    /// The group that it belongs to.
    pub group: Option<String>,
    /// The volume's size at the cut.
    pub bytes: u64,
    /// When it was cut, in seconds since 1970 UTC.
    pub created_at_seconds: u64,
    /// As of a volume.
    pub content: &'static str,
    /// What deleting it gives back at least; none where that isn't known.
    pub exclusive_bytes: Option<u64>,
    /// What its volume, other snapshots and clones have as well.
    pub shared_bytes: Option<u64>,
}

/// One group of snapshots.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupReport {
    /// Its id.
    pub id: String,
    /// The name it was created under.
    pub name: String,
    /// Its pool.
    pub pool: String,
    /// When it was cut, in seconds since 1970 UTC.
    pub created_at_seconds: u64,
    /// For how long the volumes' filesystems were frozen.
    pub pause_microseconds: u64,
    /// Its snapshots.
    pub snapshots: Vec<String>,
}

/// The file behind a volume or a snapshot.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageReport {
    /// Where it is.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// What it takes, shared or not.
    pub allocated_bytes: u64,
    /// In how many pieces; none where the filesystem doesn't tell.
    pub extents: Option<u64>,
    /// What its first bytes show: `ext4`, `LUKS`, ...; none: nothing that is known here.
    pub shows: Option<String>,
    /// The UUID of the filesystem that it shows.
    pub filesystem_uuid: Option<String>,
    /// That filesystem's size.
    pub filesystem_bytes: Option<u64>,
}

/// A loop device.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceReport {
    /// Its node: `/dev/loop7`.
    pub node: String,
    /// Its size.
    pub bytes: u64,
    /// Whether it reaches its file without the page cache in between.
    pub direct_io: bool,
    /// Whether it refuses writes.
    pub read_only: bool,
    /// How far it reads ahead.
    #[serde(rename = "readAheadKiB")]
    pub read_ahead_kib: u64,
    /// Whether it gives discarded blocks back.
    pub discards: bool,
    /// Whether it lets go of its file at the last close.
    pub letting_go: bool,
}

/// How one thing is related to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Relation {
    /// It was copied from the other.
    Source,
    /// The other was copied from it.
    Copy,
    /// Both descend from one volume, and may share blocks.
    Family,
}

/// Something related to what is shown.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RelativeReport {
    /// Its id.
    pub id: String,
    /// Its name; none if it is gone.
    pub name: Option<String>,
    /// How it is related.
    pub relation: Relation,
}
