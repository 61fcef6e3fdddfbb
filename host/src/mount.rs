//! The mount table.

use std::{
    ffi::OsString,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

use serde::Serialize;

use crate::{
    HostRoot, InspectError, serialize,
    tree::{Tree, decimal, if_present},
};

/// One mount, as a line of `/proc/PID/mountinfo` tells it, with the kernel's octal escapes undone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Mount {
    /// The mount's id; reused after umount.
    pub id: u32,
    /// The id of the mount it is mounted on.
    pub parent: u32,
    /// Major and minor number of the filesystem's device: what stat(2) gives as `st_dev` for files on it.
    pub device: (u32, u32),
    /// The directory or file within the filesystem that is mounted: `/` unless it is a bind mount.
    #[serde(serialize_with = "serialize::path")]
    pub root: PathBuf,
    /// Where it is mounted.
    #[serde(serialize_with = "serialize::path")]
    pub point: PathBuf,
    /// This mount's own options: `rw`, `nosuid`, `relatime`, ...
    pub options: Vec<String>,
    /// How mounts propagate: `shared:N`, `master:N`, `propagate_from:N`, `unbindable`; empty is private.
    pub propagation: Vec<String>,
    /// The filesystem's type: `ext4`, `fuse.sshfs`.
    pub kind: String,
    /// What is mounted, in the filesystem's own words: often a device, `none`, or the type once more.
    pub source: String,
    /// The filesystem's options, which all its mounts share.
    pub super_options: Vec<String>,
}

impl Mount {
    /// Whether writing through this mount fails: it or its filesystem is read-only.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.options.iter().chain(&self.super_options).any(|option| option == "ro")
    }
}

/// The mounts, in the kernel's order: of two at one point the later one is on top.
///
/// For [`HostRoot::system`] these are the mounts that this very process sees. Below another root, such as a host's `/`
/// mounted at `/host`, they are those of its process 1, whose mount points are paths below that root; failing that (a
/// fixture), those of its `/proc/self`.
///
/// # Errors
///
/// [`InspectError::Read`] if there is no table, [`InspectError::Parse`] for a line of another form.
pub fn mounts(root: &HostRoot) -> Result<Vec<Mount>, InspectError> {
    let tree = Tree::open(root)?;
    let (path, table) = table(&tree, root)?;
    table
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| {
            parse_line(line).ok_or_else(|| {
                let expected = "a line as proc_pid_mountinfo(5) describes it";
                tree.unexpected(path, &String::from_utf8_lossy(line), expected)
            })
        })
        .collect()
}

/// The mount table's path and content.
fn table(tree: &Tree, root: &HostRoot) -> Result<(&'static str, Vec<u8>), InspectError> {
    const OF_INIT: &str = "/proc/1/mountinfo";
    const OF_SELF: &str = "/proc/self/mountinfo";
    if root.path() != Path::new("/")
        && let Some(table) = if_present(tree.bytes(OF_INIT))?
    {
        return Ok((OF_INIT, table));
    }
    Ok((OF_SELF, tree.bytes(OF_SELF)?))
}

/// Parses one line (proc_pid_mountinfo(5); Documentation/filesystems/proc.rst, section 3.5). Sample:
///
/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`
///
/// that is: id, parent, device, root, mount point, options, any number of optional fields, a dash, type, source,
/// options of the filesystem.
fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let number = |field: &[u8]| decimal::<u32>(std::str::from_utf8(field).ok()?);
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let device = fields.next()?;
    let colon = device.iter().position(|byte| *byte == b':')?;
    let device = (number(&device[..colon])?, number(&device[colon + 1..])?);
    let root = path(fields.next()?);
    let point = path(fields.next()?);
    let options = options(fields.next()?);
    let mut propagation = Vec::new();
    loop {
        match fields.next()? {
            b"-" => break,
            field => propagation.push(text(field)),
        }
    }
    let kind = text(fields.next()?);
    // A filesystem with an empty source leaves two blanks here, so the field is there and empty.
    let source = text(fields.next()?);
    let super_options = self::options(fields.next()?);
    Some(Mount { id, parent, device, root, point, options, propagation, kind, source, super_options })
}

/// Undoes the escapes that the kernel writes for blank, tab, newline, backslash and `#`: a backslash and three octal
/// digits (fs/seq_file.c, `mangle_path`).
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let escaped = match rest {
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] => {
                Some((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'))
            }
            _ => None,
        };
        match escaped {
            Some(byte) => {
                bytes.push(byte);
                rest = &rest[4..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    bytes
}

fn path(field: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(unescape(field)))
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(&unescape(field)).into_owned()
}

/// Splits before unescaping, so that an escaped comma stays within its option.
fn options(field: &[u8]) -> Vec<String> {
    field.split(|byte| *byte == b',').map(text).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_manual_pages_sample() {
        let line = b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue";
        let strings = |strings: &[&str]| strings.iter().map(|string| (*string).to_owned()).collect::<Vec<_>>();
        let expected = Mount {
            id: 36,
            parent: 35,
            device: (98, 0),
            root: "/mnt1".into(),
            point: "/mnt2".into(),
            options: strings(&["rw", "noatime"]),
            propagation: strings(&["master:1"]),
            kind: "ext3".to_owned(),
            source: "/dev/root".to_owned(),
            super_options: strings(&["rw", "errors=continue"]),
        };
        assert_eq!(parse_line(line), Some(expected));
    }

    #[test]
    fn any_number_of_optional_fields() {
        let none = parse_line(b"1 0 0:1 / / rw - tmpfs none rw").unwrap();
        assert_eq!(none.propagation, [""; 0]);
        let three = parse_line(b"1 0 0:1 / / rw shared:1 master:2 propagate_from:3 - tmpfs none rw").unwrap();
        assert_eq!(three.propagation, ["shared:1", "master:2", "propagate_from:3"]);
    }

    #[test]
    fn escapes_are_undone_and_nothing_else_is() {
        assert_eq!(unescape(br"a\040b\011c\012d\134e\043f"), b"a b\tc\nd\\e#f");
        assert_eq!(unescape(br"\377\400\08\0"), b"\xff\\400\\08\\0");
    }

    #[test]
    fn an_empty_source_is_a_field() {
        let mount = parse_line(b"1 0 0:1 / /mnt rw - tmpfs  rw,size=4k").unwrap();
        assert_eq!((mount.source.as_str(), mount.super_options.len()), ("", 2));
    }

    #[test]
    fn read_only_is_the_mounts_or_the_filesystems() {
        let is_read_only = |line: &str| parse_line(line.as_bytes()).unwrap().is_read_only();
        assert!(is_read_only("1 0 0:1 / /mnt ro,relatime - ext4 /dev/vda rw"));
        assert!(is_read_only("1 0 0:1 / /mnt rw,relatime - ext4 /dev/vda ro"));
        assert!(!is_read_only("1 0 0:1 / /mnt rw,relatime - ext4 /dev/vda rw,errors=remount-ro"));
    }

    #[test]
    fn a_line_that_ends_early_is_none() {
        let line = "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw";
        for (end, _) in line.match_indices(' ') {
            assert_eq!(parse_line(&line.as_bytes()[..end]), None, "{}", &line[..end]);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_mount_or_none(line in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = parse_line(&line);
        }

        #[test]
        fn almost_a_line_is_a_mount_or_none(line in r"([0-9:]{0,3} ){0,4}(/[a-z\\0-7]{0,5} ){0,3}(-? ?[a-z,=]{0,4} ?){0,5}") {
            let _ = parse_line(line.as_bytes());
        }
    }
}
