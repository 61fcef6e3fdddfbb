//! Paths that the kubelet asks us to mount on.

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

/// `PATH_MAX` without the NUL.
const LONGEST_PATH: usize = 4095;

/// A staging or target path: absolute, without `.`, `..`, repeated or trailing slashes, and not `/` itself.
///
/// In this form it is spelled as the kernel's mount table spells it, provided that no part of it is a symbolic link;
/// whoever opens it must make sure of that (`kernel::path`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct TargetPath(String);

impl TargetPath {
    pub(crate) fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }

    /// The directory above it.
    pub(crate) fn parent(&self) -> &Path {
        self.as_path().parent().unwrap_or(Path::new("/"))
    }

    /// Its last component.
    pub(crate) fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }
}

/// Whether one path is the other or lies inside it.
pub(crate) fn overlap(one: &Path, other: &Path) -> bool {
    one.starts_with(other) || other.starts_with(one)
}

impl TryFrom<String> for TargetPath {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text.len() > LONGEST_PATH {
            return Err(format!("has {} bytes, more than {LONGEST_PATH}", text.len()));
        }
        if text.contains('\0') {
            return Err("contains a NUL".to_owned());
        }
        let path = Path::new(&text);
        if !path.is_absolute() {
            return Err("is not absolute".to_owned());
        }
        if path.components().any(|part| part == Component::ParentDir) {
            return Err("contains \"..\"".to_owned());
        }
        // Rebuilding it drops ".", repeated and trailing slashes.
        let plain: PathBuf = path.components().collect();
        match plain.into_os_string().into_string() {
            Ok(plain) if plain != "/" => Ok(Self(plain)),
            _ => Err("is the root directory".to_owned()),
        }
    }
}

impl From<TargetPath> for String {
    fn from(path: TargetPath) -> Self {
        path.0
    }
}

impl std::fmt::Display for TargetPath {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<&str, &str>) {
        let found = TargetPath::try_from(text.to_owned());
        assert_eq!(found.as_ref().map(|path| path.0.as_str()).map_err(String::as_str), expected);
    }

    #[test]
    fn paths_are_brought_into_the_kernels_spelling() {
        check("/a/b", Ok("/a/b"));
        check("//a/./b//", Ok("/a/b"));
        check("/a b/ü", Ok("/a b/ü"));
        check("a/b", Err("is not absolute"));
        check("", Err("is not absolute"));
        check("/a/../b", Err("contains \"..\""));
        check("/", Err("is the root directory"));
        check("/./", Err("is the root directory"));
        check("/a\0b", Err("contains a NUL"));
        check(&format!("/{}", "x".repeat(4095)), Err("has 4096 bytes, more than 4095"));
        let longest = format!("/{}", "x".repeat(4094));
        check(&longest, Ok(&longest));
    }

    #[test]
    fn parent_and_name() {
        let path = TargetPath::try_from("/a/b".to_owned()).unwrap();
        assert_eq!((path.parent(), path.name()), (Path::new("/a"), "b"));
        assert_eq!(path.to_string(), "/a/b");
        let top = TargetPath::try_from("/a".to_owned()).unwrap();
        assert_eq!((top.parent(), top.name()), (Path::new("/"), "a"));
    }

    #[test]
    fn paths_overlap_where_one_is_in_the_other() {
        for (one, other, expected) in
            [("/a", "/a", true), ("/a", "/a/b", true), ("/a", "/ab", false), ("/a/b", "/a/c", false)]
        {
            assert_eq!(overlap(Path::new(one), Path::new(other)), expected, "{one} {other}");
            assert_eq!(overlap(Path::new(other), Path::new(one)), expected, "{other} {one}");
        }
    }

    proptest! {
        #[test]
        fn parsing_is_idempotent_and_keeps_the_meaning(text in "(/|\\.|\\.\\.|[a-c ]|\\PC){0,20}") {
            if let Ok(path) = TargetPath::try_from(text.clone()) {
                prop_assert_eq!(TargetPath::try_from(path.0.clone()), Ok(path.clone()));
                prop_assert!(Path::new(&text).components().eq(path.as_path().components()));
                prop_assert_eq!(path.parent().join(path.name()), path.as_path());
            }
        }
    }
}
