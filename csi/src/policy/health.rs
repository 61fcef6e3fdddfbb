//! What is wrong with volumes and pools, in the words of CSI's health calls.
//!
//! Reasons are for programs and never change their meaning; docs/storage.md lists them.

use keelson_proto::csi::v1::{
    StorageHealthErrorType, VolumeHealthErrorType, node_get_storage_health_response::StorageBackendHealth,
    volume_health::VolumeHealthEntry,
};

/// What is wrong with a pool as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PoolFault {
    /// Nothing is at its path, or a directory that isn't a pool.
    Missing,
    /// Another disk is there.
    WrongDisk,
    /// It can't be read or written.
    IoErrors,
    /// Another process has it.
    InUse,
    /// A look at it did not end.
    NotResponding,
    ReadOnly,
    /// Less is free than what is kept free: somebody else writes to its filesystem.
    Full,
}

/// What is wrong with a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum VolumeFault {
    /// That of its pool.
    Pool(PoolFault),
    RecordDamaged,
    /// Its image, or its directory, isn't there.
    ImageMissing,
    /// Its image is shorter than the volume.
    ImageTruncated,
    /// Its image can't be read.
    ImageUnreadable,
    /// Its image doesn't show the filesystem that was made.
    FilesystemLost,
    /// It is mounted for writing, and can't be written to: so ext4 answers to errors.
    FilesystemReadOnly,
    /// ext4 has recorded errors.
    FilesystemErrors,
    /// Its mount answers with errors: so xfs and btrfs answer to errors.
    FilesystemShutDown,
    /// What is mounted or published is no longer backed by its image.
    LoopDeviceLost,
    /// Subvolumes that somebody made lie in it, and its limit doesn't hold there.
    LimitEscaped,
}

impl PoolFault {
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::Missing => "PoolMissing",
            Self::WrongDisk => "WrongDisk",
            Self::IoErrors => "PoolIoErrors",
            Self::InUse => "PoolInUse",
            Self::NotResponding => "PoolNotResponding",
            Self::ReadOnly => "PoolReadOnly",
            Self::Full => "PoolFull",
        }
    }

    /// Whether its volumes can be reached all the same.
    fn leaves_volumes(self) -> bool {
        matches!(self, Self::ReadOnly | Self::Full)
    }

    /// The entry of a pool, with `detail` for people.
    pub(crate) fn entry(self, detail: String) -> StorageBackendHealth {
        let status = if self.leaves_volumes() {
            StorageHealthErrorType::StorageDegraded
        } else {
            StorageHealthErrorType::StorageUnreachable
        };
        StorageBackendHealth {
            status: status.into(),
            reason: self.reason().to_owned(),
            message: detail,
            volume_capability: None,
        }
    }
}

impl VolumeFault {
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Pool(fault) => fault.reason(),
            Self::RecordDamaged => "RecordDamaged",
            Self::ImageMissing => "ImageMissing",
            Self::ImageTruncated => "ImageTruncated",
            Self::ImageUnreadable => "ImageUnreadable",
            Self::FilesystemLost => "FilesystemLost",
            Self::FilesystemReadOnly => "FilesystemReadOnly",
            Self::FilesystemErrors => "FilesystemErrors",
            Self::FilesystemShutDown => "FilesystemShutDown",
            Self::LoopDeviceLost => "LoopDeviceLost",
            Self::LimitEscaped => "LimitEscaped",
        }
    }

    fn status(&self) -> VolumeHealthErrorType {
        use VolumeHealthErrorType::{DataLoss, Degraded, Inaccessible};
        match self {
            Self::Pool(fault) if fault.leaves_volumes() => Degraded,
            Self::Pool(_)
            | Self::RecordDamaged
            | Self::ImageUnreadable
            | Self::FilesystemShutDown
            | Self::LoopDeviceLost => Inaccessible,
            Self::ImageMissing | Self::ImageTruncated | Self::FilesystemLost => DataLoss,
            Self::FilesystemReadOnly | Self::FilesystemErrors | Self::LimitEscaped => Degraded,
        }
    }

    /// The entry of a volume, with `detail` for people.
    pub(crate) fn entry(&self, detail: String) -> VolumeHealthEntry {
        VolumeHealthEntry { status: self.status().into(), reason: self.reason().to_owned(), message: detail }
    }
}

/// Whether a filesystem with `free` bytes has less than the `reserve` that is kept free; a few blocks don't count.
pub(crate) fn is_full(free: u64, reserve: u64) -> bool {
    const LEAST: u64 = 1 << 20;
    free < reserve.max(LEAST)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const POOL: [PoolFault; 7] = [
        PoolFault::Missing,
        PoolFault::WrongDisk,
        PoolFault::IoErrors,
        PoolFault::InUse,
        PoolFault::NotResponding,
        PoolFault::ReadOnly,
        PoolFault::Full,
    ];

    #[test]
    fn reasons_are_camel_case_and_say_one_thing_each() {
        use VolumeFault as V;
        let own = [
            V::RecordDamaged,
            V::ImageMissing,
            V::ImageTruncated,
            V::ImageUnreadable,
            V::FilesystemLost,
            V::FilesystemReadOnly,
            V::FilesystemErrors,
            V::FilesystemShutDown,
            V::LoopDeviceLost,
            V::LimitEscaped,
        ];
        let reasons: Vec<_> = POOL.map(V::Pool).iter().chain(&own).map(VolumeFault::reason).collect();
        let different: BTreeSet<_> = reasons.iter().collect();
        assert_eq!(different.len(), reasons.len());
        for reason in reasons {
            let starts_upper = reason.starts_with(|letter: char| letter.is_ascii_uppercase());
            assert!(starts_upper && reason.chars().all(|letter| letter.is_ascii_alphabetic()), "{reason}");
        }
    }

    #[test]
    fn the_reasons_are_documented() {
        let text = include_str!("../../../docs/storage.md");
        for fault in POOL {
            assert!(text.contains(&format!("`{}`", fault.reason())), "{}", fault.reason());
        }
    }

    #[test]
    fn what_is_kept_free_is_not_full() {
        assert!(!is_full(10 << 20, 10 << 20));
        assert!(is_full((10 << 20) - 1, 10 << 20));
        assert!(is_full(4096, 0));
        assert!(!is_full(1 << 20, 0));
    }
}
