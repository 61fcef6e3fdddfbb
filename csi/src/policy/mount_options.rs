//! The mount flags of a StorageClass: which belong to the mount, which to its filesystem.

use rustix::mount::MountAttrFlags as Attr;
use serde::{Deserialize, Serialize};

/// All of a request's mount flags together: "mount_flags: 4 KiB" (CSI spec, Size Limits).
const LONGEST_FLAGS: usize = 4096;

/// Which kind of access time updates; the bits of `MOUNT_ATTR__ATIME`.
const ATIME_BITS: u32 = 0x70;

/// How something is to be mounted. May be sensitive: never logged.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct MountOptions {
    /// `MOUNT_ATTR_*`: what a single mount has, and a bind mount may have on its own.
    pub(crate) attributes: u32,
    /// Options of the filesystem, such as `discard` or `commit=30`; all mounts of it share them.
    pub(crate) filesystem: Vec<String>,
}

impl MountOptions {
    /// Exactly what the source of a bind mount has: for device nodes, which `nodev` would make useless.
    pub(crate) const NONE: Self = Self { attributes: 0, filesystem: Vec::new() };

    /// Sorts `flags`. Unless they say otherwise (`suid`, `dev`), the mount gets `nosuid` and `nodev`: what a Pod
    /// writes into its volume gives nobody privileges.
    pub(crate) fn parse(flags: &[String]) -> Result<Self, String> {
        if flags.iter().map(String::len).sum::<usize>() > LONGEST_FLAGS {
            return Err(format!("have more than {LONGEST_FLAGS} bytes together"));
        }
        let mut attributes = Attr::MOUNT_ATTR_NOSUID | Attr::MOUNT_ATTR_NODEV;
        let mut filesystem = Vec::new();
        // One flag may hold several, as on the command line of mount(8).
        for flag in flags.iter().map(|flag| split(flag)).collect::<Result<Vec<_>, _>>()?.iter().flatten() {
            match flag.as_str() {
                "" | "defaults" => {}
                "ro" => attributes |= Attr::MOUNT_ATTR_RDONLY,
                "rw" => attributes -= Attr::MOUNT_ATTR_RDONLY,
                "nosuid" => attributes |= Attr::MOUNT_ATTR_NOSUID,
                "suid" => attributes -= Attr::MOUNT_ATTR_NOSUID,
                "nodev" => attributes |= Attr::MOUNT_ATTR_NODEV,
                "dev" => attributes -= Attr::MOUNT_ATTR_NODEV,
                "noexec" => attributes |= Attr::MOUNT_ATTR_NOEXEC,
                "exec" => attributes -= Attr::MOUNT_ATTR_NOEXEC,
                "nodiratime" => attributes |= Attr::MOUNT_ATTR_NODIRATIME,
                "diratime" => attributes -= Attr::MOUNT_ATTR_NODIRATIME,
                "relatime" | "atime" => attributes = with_atime(attributes, Attr::empty()),
                "noatime" => attributes = with_atime(attributes, Attr::MOUNT_ATTR_NOATIME),
                "strictatime" => attributes = with_atime(attributes, Attr::MOUNT_ATTR_STRICTATIME),
                "bind" | "rbind" | "move" | "remount" => {
                    return Err(format!("contain {flag:?}, which is not an option but another operation"));
                }
                _ if flag.contains('\0') => return Err("contain a NUL".to_owned()),
                _ => filesystem.push(flag.to_owned()),
            }
        }
        Ok(Self { attributes: attributes.bits(), filesystem })
    }

    /// The same, and read-only if `read_only` is set.
    pub(crate) fn with_read_only(mut self, read_only: bool) -> Self {
        if read_only {
            self.attributes |= Attr::MOUNT_ATTR_RDONLY.bits();
        }
        self
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.attributes & Attr::MOUNT_ATTR_RDONLY.bits() != 0
    }
}

/// The options of one flag, which commas separate. Between double quotes they don't, as in the `context="...:c1,c2"` that
/// the kubelet sends; the quotes are mount(8)'s, and no part of the value for the kernel.
fn split(flag: &str) -> Result<Vec<String>, String> {
    let mut options = vec![String::new()];
    let mut quoted = false;
    for part in flag.chars() {
        match part {
            '"' => quoted = !quoted,
            ',' if !quoted => options.push(String::new()),
            _ => options.last_mut().map_or((), |option| option.push(part)),
        }
    }
    if quoted { Err("contain a double quote that isn't closed".to_owned()) } else { Ok(options) }
}

/// Values may be sensitive, such as the SELinux context of a Pod: only their number shows.
impl std::fmt::Debug for MountOptions {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("MountOptions")
            .field("attributes", &format_args!("{:#x}", self.attributes))
            .field("filesystem", &format_args!("{} options", self.filesystem.len()))
            .finish()
    }
}

fn with_atime(attributes: Attr, atime: Attr) -> Attr {
    (attributes - Attr::from_bits_retain(ATIME_BITS)) | atime
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(flags: &[&str]) -> Result<MountOptions, String> {
        MountOptions::parse(&flags.iter().map(|flag| (*flag).to_owned()).collect::<Vec<_>>())
    }

    #[track_caller]
    fn check(flags: &[&str], attributes: Attr, filesystem: &[&str]) {
        let found = parse(flags).unwrap();
        assert_eq!(Attr::from_bits_retain(found.attributes), attributes);
        assert_eq!(found.filesystem, filesystem);
    }

    #[test]
    fn flags_go_to_the_mount_or_to_the_filesystem() {
        let default = Attr::MOUNT_ATTR_NOSUID | Attr::MOUNT_ATTR_NODEV;
        check(&[], default, &[]);
        check(&["defaults", "rw"], default, &[]);
        check(&["noatime", "discard"], default | Attr::MOUNT_ATTR_NOATIME, &["discard"]);
        check(&["noatime,commit=30", "relatime"], default, &["commit=30"]);
        check(&["suid", "dev", "noexec", "ro"], Attr::MOUNT_ATTR_NOEXEC | Attr::MOUNT_ATTR_RDONLY, &[]);
        check(&["context=\"a:b\""], default, &["context=a:b"]);
        check(&["suid,nosuid", "dev,nodev", "noexec,exec"], default, &[]);
        check(&["nosuid", "nodev"], default, &[]);
        check(&["nodiratime"], default | Attr::MOUNT_ATTR_NODIRATIME, &[]);
        check(&["nodiratime", "diratime"], default, &[]);
        check(&["noatime", "strictatime"], default | Attr::MOUNT_ATTR_STRICTATIME, &[]);
        check(&["context=\"a:b:c1,c2\",discard", ","], default, &["context=a:b:c1,c2", "discard"]);
    }

    #[test]
    fn other_operations_and_too_much_are_refused() {
        for flags in [&["bind"][..], &["rw,remount"], &["a\0b"], &["context=\"a"], &[&"x".repeat(4097)]] {
            assert!(parse(flags).is_err());
        }
        check(&[&"x".repeat(4096)], Attr::MOUNT_ATTR_NOSUID | Attr::MOUNT_ATTR_NODEV, &[&"x".repeat(4096)]);
    }

    #[test]
    fn values_are_not_printed() {
        let printed = format!("{:?}", parse(&["password=geheim"]).unwrap());
        assert!(printed.contains("1 options") && !printed.contains("geheim"), "{printed}");
    }

    proptest! {
        #[test]
        fn read_only_is_only_ever_added(flags in proptest::collection::vec("[a-z=,]{0,8}", 0..6)) {
            if let Ok(options) = MountOptions::parse(&flags) {
                let before = Attr::from_bits_retain(options.attributes);
                let after = Attr::from_bits_retain(options.clone().with_read_only(true).attributes);
                prop_assert_eq!(after, before | Attr::MOUNT_ATTR_RDONLY);
                prop_assert_eq!(options.clone().with_read_only(false), options);
            }
        }
    }
}
