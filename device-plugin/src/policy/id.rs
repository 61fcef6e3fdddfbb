//! Devices' ids: readable, stable, at most 63 characters, and names in CDI as they are.

use std::path::Path;

/// The kubelet's limit (api.proto, `Device.ID`).
const LONGEST: usize = 63;

/// The id of a device that is one node: its path below `/dev` with `:` for `/`, such as `ttyS0` or `vfio:12`.
///
/// A path that this would not keep apart from others, or that CDI can't take as a name (letters, digits, `_`, `-`, `.`
/// and `:`, the first and last a letter or digit), is cut to size and ends in a hash of the whole.
pub(crate) fn node_id(path: &Path) -> String {
    let text = path.to_string_lossy();
    let below = text.strip_prefix("/dev/").unwrap_or(&text);
    let is_safe = |character: char| character.is_ascii_alphanumeric() || matches!(character, '.' | '_' | '-');
    let is_end = |character: char| character.is_ascii_alphanumeric();
    let plain = below.len() <= LONGEST
        && below.chars().all(|character| is_safe(character) || character == '/')
        && below.starts_with(is_end)
        && below.ends_with(is_end);
    if plain {
        return below.replace('/', ":");
    }
    let readable: String = below
        .trim_start_matches(|character| !is_end(character))
        .chars()
        .map(|character| if is_safe(character) { character } else { '-' })
        .take(LONGEST - 18)
        .collect();
    format!("n{readable}-{:016x}", fnv1a(path.as_os_str().as_encoded_bytes()))
}

/// The id of the simulated device of this index.
pub(crate) fn simulated_id(index: u32) -> String {
    format!("simulated-{index}")
}

/// The 64-bit FNV-1a hash: the standard library promises no hash that stays the same over releases.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_id_reads_like_the_path() {
        assert_eq!(node_id(Path::new("/dev/ttyS0")), "ttyS0");
        assert_eq!(node_id(Path::new("/dev/vfio/12")), "vfio:12");
        assert_eq!(node_id(Path::new("/dev/dfl-port.0")), "dfl-port.0");
    }

    /// Pods hold ids for as long as they run, so a new release must not rename devices.
    #[test]
    fn an_odd_path_keeps_its_id_over_releases() {
        assert_eq!(node_id(Path::new("/dev/a:b")), "na-b-4ad9d682a59daa75");
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }

    proptest! {
        #[test]
        fn an_id_fits_the_kubelet_and_cdi(path in "/dev/\\PC{1,100}|/dev/[a-z0-9:/._-]{1,80}") {
            let id = node_id(Path::new(&path));
            prop_assert!(!id.is_empty() && id.len() <= LONGEST, "{}", id);
            prop_assert!(id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.:".contains(&byte)), "{}", id);
            prop_assert!(id.starts_with(|first: char| first.is_ascii_alphanumeric()));
            prop_assert!(id.ends_with(|last: char| last.is_ascii_alphanumeric()));
            prop_assert_eq!(id, node_id(Path::new(&path)));
        }

        #[test]
        fn different_paths_have_different_ids(
            one in "/dev/[ab:/._-]{1,6}", other in "/dev/[ab:/._-]{1,6}",
        ) {
            prop_assert_eq!(node_id(Path::new(&one)) == node_id(Path::new(&other)), one == other);
        }
    }
}
