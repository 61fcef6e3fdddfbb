//! The filesystems that images are formatted with.

use serde::{Deserialize, Serialize};

/// A filesystem that an image can have, by the kernel's name for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum FilesystemType {
    Ext4,
    Xfs,
    Btrfs,
}

impl FilesystemType {
    pub(crate) const ALL: [Self; 3] = [Self::Ext4, Self::Xfs, Self::Btrfs];

    /// As in `fs_type` of a capability, and as mount(2) calls it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }

    /// The type of that name, if it is one that images can have.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.as_str() == name)
    }
}

impl std::fmt::Display for FilesystemType {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_has_one_name_everywhere() {
        for one in FilesystemType::ALL {
            assert_eq!(FilesystemType::named(one.as_str()), Some(one));
            assert_eq!(serde_json::to_value(one).unwrap(), one.as_str());
            assert_eq!(one.to_string(), one.as_str());
        }
        assert_eq!(FilesystemType::named("ext3"), None);
    }
}
