//! Volume capabilities: what a request asks for, and what a volume can be used as.

use keelson_host::Problem;
use keelson_proto::csi::v1::{VolumeCapability, volume_capability};
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use volume_capability::access_mode::Mode;

use super::{FilesystemType, MountOptions};
use crate::config::PoolKind;

/// How a volume may be published, as far as storage of one node can.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum AccessMode {
    /// `SINGLE_NODE_WRITER`: at one path.
    Writer,
    /// `SINGLE_NODE_READER_ONLY`: at one path, read-only.
    ReaderOnly,
    /// `SINGLE_NODE_SINGLE_WRITER`: at one path.
    SingleWriter,
    /// `SINGLE_NODE_MULTI_WRITER`: at any number of paths.
    MultiWriter,
}

impl AccessMode {
    /// Its name in the CSI spec.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Writer => Mode::SingleNodeWriter,
            Self::ReaderOnly => Mode::SingleNodeReaderOnly,
            Self::SingleWriter => Mode::SingleNodeSingleWriter,
            Self::MultiWriter => Mode::SingleNodeMultiWriter,
        }
        .as_str_name()
    }
}

/// A device or a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Access {
    /// A raw block device.
    Block,
    /// A mounted filesystem.
    #[serde(rename_all = "camelCase")]
    Mount {
        /// Its type; empty is whatever the volume has.
        filesystem: String,
        /// How it is mounted.
        options: MountOptions,
    },
}

/// What a request asks a volume to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Capability {
    pub(crate) mode: AccessMode,
    pub(crate) access: Access,
}

/// Why a capability can't be served.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Rejected {
    /// It isn't well-formed.
    Invalid(Problem),
    /// It is, but no volume of this driver can be that.
    Unsupported(Problem),
}

/// What a volume is, once made, for all its life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "RecordedContent", into = "RecordedContent")]
pub(crate) enum Content {
    /// An image without a filesystem of ours.
    Block,
    /// An image that was formatted, once.
    Filesystem { filesystem: FilesystemType, uuid: Uuid },
    /// A directory.
    Directory,
    /// A btrfs subvolume.
    Subvolume,
}

/// [`Content`] as it is written: the filesystem's name is the type.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "type")]
enum RecordedContent {
    Block,
    Ext4 { uuid: Uuid },
    Xfs { uuid: Uuid },
    Btrfs { uuid: Uuid },
    Directory,
    Subvolume,
}

impl From<RecordedContent> for Content {
    fn from(recorded: RecordedContent) -> Self {
        let (filesystem, uuid) = match recorded {
            RecordedContent::Block => return Self::Block,
            RecordedContent::Directory => return Self::Directory,
            RecordedContent::Subvolume => return Self::Subvolume,
            RecordedContent::Ext4 { uuid } => (FilesystemType::Ext4, uuid),
            RecordedContent::Xfs { uuid } => (FilesystemType::Xfs, uuid),
            RecordedContent::Btrfs { uuid } => (FilesystemType::Btrfs, uuid),
        };
        Self::Filesystem { filesystem, uuid }
    }
}

impl From<Content> for RecordedContent {
    fn from(content: Content) -> Self {
        match content {
            Content::Block => Self::Block,
            Content::Directory => Self::Directory,
            Content::Subvolume => Self::Subvolume,
            Content::Filesystem { filesystem: FilesystemType::Ext4, uuid } => Self::Ext4 { uuid },
            Content::Filesystem { filesystem: FilesystemType::Xfs, uuid } => Self::Xfs { uuid },
            Content::Filesystem { filesystem: FilesystemType::Btrfs, uuid } => Self::Btrfs { uuid },
        }
    }
}

/// What a volume is to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ContentKind {
    Block,
    Filesystem(FilesystemType),
    Directory,
    Subvolume,
}

impl ContentKind {
    /// Whether it is a raw file behind a loop device.
    pub(crate) fn is_image(self) -> bool {
        match self {
            Self::Block | Self::Filesystem(_) => true,
            Self::Directory | Self::Subvolume => false,
        }
    }
}

impl Content {
    pub(crate) fn kind(&self) -> ContentKind {
        match self {
            Self::Block => ContentKind::Block,
            Self::Filesystem { filesystem, .. } => ContentKind::Filesystem(*filesystem),
            Self::Directory => ContentKind::Directory,
            Self::Subvolume => ContentKind::Subvolume,
        }
    }
}

impl Capability {
    /// Reads a capability of a request; `at` is the field's name, for the message.
    pub(crate) fn parse(at: &str, capability: Option<&VolumeCapability>) -> Result<Self, Rejected> {
        let invalid = |field: &str, value: &str, wrong: &str, remedy: &str| {
            Rejected::Invalid(Problem::new(format!("{at}{field}"), value, wrong, remedy))
        };
        let Some(capability) = capability else {
            return Err(invalid("", "", "is missing", "say how the volume is to be used"));
        };
        let access = match &capability.access_type {
            None => return Err(invalid(".access_type", "", "is missing", "ask for block or mount")),
            Some(volume_capability::AccessType::Block(_)) => Access::Block,
            Some(volume_capability::AccessType::Mount(mount)) => {
                if !mount.volume_mount_group.is_empty() {
                    let remedy = "the driver doesn't advertise VOLUME_MOUNT_GROUP; leave it empty";
                    return Err(invalid(".mount.volume_mount_group", &mount.volume_mount_group, "is set", remedy));
                }
                let options = MountOptions::parse(&mount.mount_flags)
                    .map_err(|wrong| invalid(".mount.mount_flags", "", &wrong, "use options of mount(8)"))?;
                Access::Mount { filesystem: mount.fs_type.clone(), options }
            }
        };
        let mode = capability.access_mode.as_ref().map_or(0, |mode| mode.mode);
        let mode = match Mode::try_from(mode) {
            Ok(Mode::SingleNodeWriter) => AccessMode::Writer,
            Ok(Mode::SingleNodeReaderOnly) => AccessMode::ReaderOnly,
            Ok(Mode::SingleNodeSingleWriter) => AccessMode::SingleWriter,
            Ok(Mode::SingleNodeMultiWriter) => AccessMode::MultiWriter,
            Ok(mode @ (Mode::MultiNodeReaderOnly | Mode::MultiNodeSingleWriter | Mode::MultiNodeMultiWriter)) => {
                return Err(Rejected::Unsupported(Problem::new(
                    format!("{at}.access_mode"),
                    mode.as_str_name(),
                    "needs several nodes, but the volume lies on the disk of one",
                    "use a SINGLE_NODE mode (ReadWriteOnce or ReadWriteOncePod)",
                )));
            }
            Ok(Mode::Unknown) | Err(_) => {
                let value = if mode == 0 { String::new() } else { mode.to_string() };
                return Err(invalid(".access_mode", &value, "is missing or unknown", "use a SINGLE_NODE mode"));
            }
        };
        Ok(Self { mode, access })
    }

    /// Whether a volume of this kind can be used so; the reason if not.
    pub(crate) fn fits(&self, content: ContentKind) -> Result<(), String> {
        match (&self.access, content) {
            (Access::Block, ContentKind::Block) => Ok(()),
            (Access::Block, ContentKind::Filesystem(_)) => {
                Err("a volume with a filesystem can't be used as a raw block device".to_owned())
            }
            (Access::Block, ContentKind::Directory | ContentKind::Subvolume) => {
                Err("a directory can't be used as a raw block device; use a pool of kind image".to_owned())
            }
            (Access::Mount { .. }, ContentKind::Block) => {
                Err("a raw block volume has no filesystem to mount".to_owned())
            }
            (Access::Mount { filesystem, .. }, ContentKind::Filesystem(found)) => {
                if filesystem.is_empty() || filesystem == found.as_str() {
                    return Ok(());
                }
                Err(format!("its filesystem is {found}, not {filesystem:?}"))
            }
            (Access::Mount { filesystem, options }, ContentKind::Directory | ContentKind::Subvolume) => {
                let own = if content == ContentKind::Subvolume { FilesystemType::Btrfs.as_str() } else { "" };
                if !filesystem.is_empty() && filesystem != own {
                    return Err(format!(
                        "a directory has no filesystem of its own, so it can't be {filesystem:?}; leave the type out"
                    ));
                }
                if !options.filesystem.is_empty() {
                    return Err("a directory has no filesystem of its own, so it takes only the options of a bind \
                                mount (ro, noexec, noatime and the like)"
                        .to_owned());
                }
                Ok(())
            }
        }
    }

    /// How it differs from `wanted`, where they aren't the same. Mount options, which may be secret, are only named.
    pub(crate) fn difference(&self, wanted: &Self) -> String {
        let access = |capability: &Self| match &capability.access {
            Access::Block => "a block device".to_owned(),
            Access::Mount { filesystem, .. } if filesystem.is_empty() => "a mount".to_owned(),
            Access::Mount { filesystem, .. } => format!("a mount of {filesystem}"),
        };
        let words = |capability: &Self| format!("{} as {}", access(capability), capability.mode.as_str());
        match (words(self), words(wanted)) {
            (has, wanted) if has == wanted => "other mount options".to_owned(),
            (has, wanted) => format!("{has}, not {wanted}"),
        }
    }

    /// Whether nothing may be written through this publication.
    pub(crate) fn is_read_only(&self) -> bool {
        self.mode == AccessMode::ReaderOnly
    }
}

/// The filesystem that the first capability with a name wants; ext4 where none has one.
fn wanted_filesystem(capabilities: &[Capability]) -> Result<FilesystemType, String> {
    let named = capabilities.iter().find_map(|capability| match &capability.access {
        Access::Mount { filesystem, .. } => Some(filesystem.as_str()).filter(|name| !name.is_empty()),
        Access::Block => None,
    });
    let Some(name) = named else { return Ok(FilesystemType::Ext4) };
    FilesystemType::named(name).ok_or_else(|| {
        let offered = FilesystemType::ALL.map(FilesystemType::as_str).join(", ");
        format!("the filesystem {name:?} is not offered; use one of {offered}, or leave it out")
    })
}

/// What a volume in a pool of `kind` has to be to serve all `capabilities`.
///
/// # Errors
///
/// Why no volume there can serve them all.
pub(crate) fn content_for(kind: PoolKind, capabilities: &[Capability]) -> Result<ContentKind, String> {
    let block = capabilities.iter().any(|capability| capability.access == Access::Block);
    let content = match (kind, block) {
        (PoolKind::Image, true) => ContentKind::Block,
        (PoolKind::Image, false) => ContentKind::Filesystem(wanted_filesystem(capabilities)?),
        (PoolKind::Directory, _) => ContentKind::Directory,
        (PoolKind::Subvolume, _) => ContentKind::Subvolume,
    };
    capabilities.iter().try_for_each(|capability| capability.fits(content)).map(|()| content)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;
    use volume_capability::{AccessType, BlockVolume, MountVolume};

    use super::*;

    pub(crate) fn mount(filesystem: &str, flags: &[&str]) -> Access {
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        Access::Mount { filesystem: filesystem.to_owned(), options: MountOptions::parse(&flags).unwrap() }
    }

    const EXT4: ContentKind = ContentKind::Filesystem(FilesystemType::Ext4);

    fn request(access: Option<AccessType>, mode: i32) -> VolumeCapability {
        VolumeCapability { access_mode: Some(volume_capability::AccessMode { mode }), access_type: access }
    }

    fn any_access() -> Option<AccessType> {
        Some(AccessType::Mount(MountVolume::default()))
    }

    #[test]
    fn what_is_missing_is_invalid_and_what_needs_more_nodes_is_unsupported() {
        let parse = |capability: Option<&VolumeCapability>| Capability::parse("volume_capability", capability);
        assert!(matches!(parse(None), Err(Rejected::Invalid(_))));
        assert!(matches!(parse(Some(&request(None, 1))), Err(Rejected::Invalid(_))));
        for mode in [-1, 0, 8, 99] {
            assert!(matches!(parse(Some(&request(any_access(), mode))), Err(Rejected::Invalid(_))), "{mode}");
        }
        let no_mode = VolumeCapability { access_mode: None, access_type: any_access() };
        assert!(matches!(parse(Some(&no_mode)), Err(Rejected::Invalid(_))));
        for mode in [3, 4, 5] {
            assert!(matches!(parse(Some(&request(any_access(), mode))), Err(Rejected::Unsupported(_))), "{mode}");
        }
        for mode in [1, 2, 6, 7] {
            assert!(parse(Some(&request(any_access(), mode))).is_ok(), "{mode}");
            assert!(parse(Some(&request(Some(AccessType::Block(BlockVolume {})), mode))).is_ok(), "{mode}");
        }
    }

    #[test]
    fn modes_have_the_names_of_the_spec() {
        for (mode, name, read_only) in [
            (1, "SINGLE_NODE_WRITER", false),
            (2, "SINGLE_NODE_READER_ONLY", true),
            (6, "SINGLE_NODE_SINGLE_WRITER", false),
            (7, "SINGLE_NODE_MULTI_WRITER", false),
        ] {
            let parsed = Capability::parse("c", Some(&request(any_access(), mode))).unwrap();
            assert_eq!((parsed.mode.as_str(), parsed.is_read_only()), (name, read_only));
        }
        for (mode, value) in [(0, ""), (99, "99")] {
            let refused = Capability::parse("c", Some(&request(any_access(), mode)));
            assert!(matches!(refused, Err(Rejected::Invalid(problem)) if problem.value == value), "{mode}");
        }
    }

    #[test]
    fn images_are_what_loop_devices_show() {
        for kind in [ContentKind::Block, EXT4] {
            assert!(kind.is_image(), "{kind:?}");
        }
        for kind in [ContentKind::Directory, ContentKind::Subvolume] {
            assert!(!kind.is_image(), "{kind:?}");
        }
    }

    #[test]
    fn a_subvolume_is_of_btrfs_and_a_directory_of_nothing() {
        let fits = |content| {
            let btrfs = Capability { mode: AccessMode::Writer, access: mount("btrfs", &[]) };
            btrfs.fits(content).is_ok()
        };
        assert!(fits(ContentKind::Subvolume) && !fits(ContentKind::Directory));
    }

    #[test]
    fn a_volume_mount_group_is_not_ignored() {
        let mount = MountVolume { volume_mount_group: "1000".to_owned(), ..MountVolume::default() };
        let capability = request(Some(AccessType::Mount(mount)), 1);
        assert!(matches!(Capability::parse("c", Some(&capability)), Err(Rejected::Invalid(_))));
    }

    #[test]
    fn only_what_a_pool_can_be_is_promised() {
        let capability = |access| Capability { mode: AccessMode::Writer, access };
        let content =
            |kind, accesses: Vec<Access>| content_for(kind, &accesses.into_iter().map(capability).collect::<Vec<_>>());
        assert_eq!(content(PoolKind::Image, vec![Access::Block]), Ok(ContentKind::Block));
        assert_eq!(content(PoolKind::Image, vec![mount("", &["discard"])]), Ok(EXT4));
        assert_eq!(content(PoolKind::Image, vec![mount("ext4", &[]), mount("", &[])]), Ok(EXT4));
        let xfs = ContentKind::Filesystem(FilesystemType::Xfs);
        assert_eq!(content(PoolKind::Image, vec![mount("", &[]), mount("xfs", &[])]), Ok(xfs));
        assert_eq!(content(PoolKind::Directory, vec![mount("", &["noatime"])]), Ok(ContentKind::Directory));
        assert_eq!(content(PoolKind::Subvolume, vec![mount("", &["noatime"])]), Ok(ContentKind::Subvolume));
        for filesystem in FilesystemType::ALL {
            let wanted = vec![mount("", &[]), mount(filesystem.as_str(), &[])];
            assert_eq!(content(PoolKind::Image, wanted), Ok(ContentKind::Filesystem(filesystem)));
        }
        for (kind, accesses) in [
            (PoolKind::Image, vec![mount("ext3", &[])]),
            (PoolKind::Image, vec![mount("xfs", &[]), mount("ext4", &[])]),
            (PoolKind::Image, vec![mount("", &[]), Access::Block]),
            (PoolKind::Directory, vec![Access::Block]),
            (PoolKind::Directory, vec![mount("ext4", &[])]),
            (PoolKind::Directory, vec![mount("", &["discard"])]),
            (PoolKind::Subvolume, vec![Access::Block]),
            (PoolKind::Subvolume, vec![mount("ext4", &[])]),
            (PoolKind::Subvolume, vec![mount("", &["discard"])]),
        ] {
            assert!(content(kind, accesses.clone()).is_err(), "{kind:?} {accesses:?}");
        }
    }

    fn access() -> impl Strategy<Value = Access> {
        prop_oneof![
            Just(Access::Block),
            ("|ext4|xfs|ext3", proptest::sample::subsequence(vec!["ro", "noexec", "discard"], 0..3))
                .prop_map(|(filesystem, flags)| mount(&filesystem, &flags)),
        ]
    }

    #[test]
    fn content_is_written_with_the_filesystem_as_its_type() {
        for filesystem in FilesystemType::ALL {
            let content = Content::Filesystem { filesystem, uuid: Uuid::nil() };
            let written = serde_json::to_value(&content).unwrap();
            assert_eq!(written, serde_json::json!({"type": filesystem.as_str(), "uuid": Uuid::nil()}));
            assert_eq!(serde_json::from_value::<Content>(written).unwrap(), content);
        }
        for (content, name) in [(Content::Block, "block"), (Content::Directory, "directory")] {
            assert_eq!(serde_json::to_value(&content).unwrap(), serde_json::json!({"type": name}));
        }
    }

    proptest! {
        #[test]
        fn a_volume_made_for_some_capabilities_serves_each_of_them(
            accesses in proptest::collection::vec(access(), 1..4),
            kind in proptest::sample::select(vec![PoolKind::Image, PoolKind::Directory]),
        ) {
            let capabilities: Vec<Capability> =
                accesses.into_iter().map(|access| Capability { mode: AccessMode::Writer, access }).collect();
            if let Ok(content) = content_for(kind, &capabilities) {
                for capability in &capabilities {
                    prop_assert_eq!(capability.fits(content), Ok(()));
                }
            } else {
                let offered: &[ContentKind] = match kind {
                    PoolKind::Image => &[
                        ContentKind::Block,
                        EXT4,
                        ContentKind::Filesystem(FilesystemType::Xfs),
                        ContentKind::Filesystem(FilesystemType::Btrfs),
                    ],
                    _ => &[ContentKind::Directory],
                };
                let serves = |content: &ContentKind| capabilities.iter().all(|one| one.fits(*content).is_ok());
                prop_assert!(!offered.iter().any(serves));
            }
        }
    }
}
