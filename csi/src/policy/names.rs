//! Names and ids: what is legal, by whose rule.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// "fields of type string are limited to 128 bytes" (CSI spec, Size Limits).
const LONGEST_STRING: usize = 128;

/// An id of our own making, which is therefore usable as a file name: a prefix and 32 hexadecimal digits.
///
/// Invariant: a path below a pool is only ever built from such a type, never from a string of a request.
macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub(crate) struct $name(String);

        impl $name {
            /// A new id that nothing else has.
            pub(crate) fn generate() -> Self {
                Self(format!("{}{}", $prefix, Uuid::new_v4().simple()))
            }

            pub(crate) fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = ForeignId;

            fn from_str(text: &str) -> Result<Self, ForeignId> {
                let digits = text.strip_prefix($prefix).ok_or(ForeignId)?;
                let hexadecimal = digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
                if digits.len() == 32 && hexadecimal { Ok(Self(text.to_owned())) } else { Err(ForeignId) }
            }
        }

        impl TryFrom<String> for $name {
            type Error = ForeignId;

            fn try_from(text: String) -> Result<Self, ForeignId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }
    };
}

id!(
    /// A volume's id.
    VolumeId, "v1-"
);
id!(
    /// A snapshot's id.
    SnapshotId, "s1-"
);
id!(
    /// The id of a group of snapshots.
    GroupId, "g1-"
);

/// The string is no id that this driver ever gave.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an id of this driver")]
pub(crate) struct ForeignId;

/// The rule for every string of a request that has no rule of its own: at most 128 bytes.
pub(crate) fn check_string(text: &str) -> Result<(), String> {
    if text.len() > LONGEST_STRING {
        return Err(format!("has {} bytes, more than {LONGEST_STRING}", text.len()));
    }
    Ok(())
}

/// The rule for the name of a volume: "Any Unicode string that conforms to the length limit is allowed except those
/// containing [...] U+0000 - U+0008, U+000B, U+000C, U+000E - U+001F, U+007F - U+009F" (CSI spec, CreateVolume).
pub(crate) fn check_volume_name(name: &str) -> Result<(), String> {
    check_string(name)?;
    match name.chars().find(|character| character.is_control() && !matches!(character, '\t' | '\n' | '\r')) {
        Some(control) => Err(format!("contains the control character {}", control.escape_unicode())),
        None => Ok(()),
    }
}

/// "MUST follow domain name notation format [...] It SHOULD include the plugin's host company name and the plugin
/// name, [...] MUST be 63 characters or less, beginning and ending with an alphanumeric character with dashes, dots,
/// and alphanumerics between" (CSI spec, GetPluginInfo).
pub(crate) fn check_driver_name(name: &str) -> Result<(), String> {
    check_label(name, |byte| byte.is_ascii_alphanumeric(), |byte| matches!(byte, b'-' | b'.'))
}

/// The value of a topology segment becomes the value of a label on the Kubernetes node.
pub(crate) fn check_topology_value(value: &str) -> Result<(), String> {
    check_label(value, |byte| byte.is_ascii_alphanumeric(), |byte| matches!(byte, b'-' | b'_' | b'.'))
}

/// A pool's name is a file name and part of metrics: a DNS label.
pub(crate) fn check_pool_name(name: &str) -> Result<(), String> {
    check_label(name, |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9'), |byte| byte == b'-')
}

/// At most 63 characters; `end` may stand anywhere, `middle` only between.
fn check_label(text: &str, end: impl Fn(u8) -> bool, middle: impl Fn(u8) -> bool) -> Result<(), String> {
    let (Some(first), Some(last)) = (text.bytes().next(), text.bytes().last()) else {
        return Err("is empty".to_owned());
    };
    if text.len() > 63 {
        return Err(format!("has {} bytes, more than 63", text.len()));
    }
    if let Some(wrong) = text.chars().find(|character| !character.is_ascii_graphic()) {
        return Err(format!("contains {wrong:?}"));
    }
    if let Some(wrong) = text.bytes().find(|byte| !end(*byte) && !middle(*byte)) {
        return Err(format!("contains {:?}", char::from(wrong)));
    }
    if !end(first) || !end(last) {
        return Err("starts or ends with a mark".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_ids_of_our_own_making_are_ids() {
        let id = VolumeId::generate();
        assert_eq!(id.as_str().parse(), Ok(id.clone()));
        for foreign in ["", "v1-", "v1-../../etc", "some/path", "v2-0123456789abcdef0123456789abcdef"] {
            assert_eq!(foreign.parse::<VolumeId>(), Err(ForeignId), "{foreign}");
        }
        assert_eq!(id.as_str().to_uppercase().parse::<VolumeId>(), Err(ForeignId));
    }

    #[test]
    fn volume_names_may_hold_anything_but_controls() {
        for legal in ["pvc-1", "../../etc/passwd", "a/b", "Größe 大", &"x".repeat(128)] {
            assert_eq!(check_volume_name(legal), Ok(()), "{legal}");
        }
        for illegal in ["a\0b", "a\u{7f}", "a\u{85}", "a\u{1b}[0m", &"x".repeat(129)] {
            assert!(check_volume_name(illegal).is_err(), "{illegal:?}");
        }
    }

    #[test]
    fn labels() {
        assert_eq!(check_driver_name("csi.keelson.dev"), Ok(()));
        assert!(check_driver_name("csi_keelson").is_err());
        assert!(check_driver_name(".csi").is_err());
        assert_eq!(check_topology_value("node_a.b-c"), Ok(()));
        assert!(check_topology_value("").is_err());
        assert_eq!(check_pool_name("fast-1"), Ok(()));
        assert_eq!(check_pool_name(&"x".repeat(63)), Ok(()));
        for illegal in ["", "..", "a/b", "A", "-a", "a-", "ä", &"x".repeat(64)] {
            assert!(check_pool_name(illegal).is_err(), "{illegal}");
        }
    }

    proptest! {
        #[test]
        fn whatever_parses_as_an_id_is_one_path_component(text in "\\PC{0,40}|v1-[0-9a-f/.]{32}") {
            if let Ok(id) = text.parse::<VolumeId>() {
                prop_assert_eq!(id.as_str(), &text);
                prop_assert!(!text.contains(['/', '.', '\0']));
            }
        }

        #[test]
        fn a_pool_name_that_passes_is_one_path_component(text in "\\PC{0,70}") {
            if check_pool_name(&text).is_ok() {
                prop_assert!(!text.contains(['/', '.', '\0']) && !text.is_empty());
            }
        }
    }
}
