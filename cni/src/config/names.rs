//! The names that come from outside, checked once: past these types nothing can climb out of a directory or be cut by
//! the kernel.

/// Longest name of a network interface: `IFNAMSIZ` is 16 with the terminating NUL (net/if.h).
const LONGEST_INTERFACE_NAME: usize = 15;

/// Longest network name or container id that still gives a file name, together with an interface name.
const LONGEST_IDENTIFIER: usize = 200;

/// What is wrong with a network's name or a container's id, as a predicate; `None` if nothing is.
///
/// The spec (section 2, "Parameters"): both "must start with an alphanumeric character, optionally followed by any
/// combination of one or more alphanumeric characters, underscore (), dot (.) or hyphen (-)".
pub(crate) fn identifier_fault(text: &str) -> Option<String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    if text.is_empty() {
        Some("is empty".to_owned())
    } else if text.len() > LONGEST_IDENTIFIER {
        Some(format!("is longer than {LONGEST_IDENTIFIER} bytes"))
    } else if !text.as_bytes()[0].is_ascii_alphanumeric() {
        Some("does not start with a letter or digit".to_owned())
    } else if !text.bytes().all(allowed) {
        Some("has characters other than letters, digits, '_', '.' and '-'".to_owned())
    } else {
        None
    }
}

/// What is wrong with the name of a plugin's executable, which is looked for in `CNI_PATH`; `None` if nothing is.
pub(crate) fn plugin_name_fault(text: &str) -> Option<String> {
    (text.contains('/') || text == "." || text == "..").then(|| "is a path".to_owned())
}

/// What is wrong with an interface's name, as a predicate; `None` if nothing is.
///
/// The kernel's rule (`dev_valid_name`): no '/', ':' or white space, not "." or "..", at most 15 bytes. And not a name
/// whose switches below /proc/sys/net it can't make.
pub(crate) fn interface_name_fault(text: &str) -> Option<String> {
    if text.is_empty() {
        Some("is empty".to_owned())
    } else if text.len() > LONGEST_INTERFACE_NAME {
        Some(format!("is longer than {LONGEST_INTERFACE_NAME} bytes"))
    } else if text == "." || text == ".." {
        Some("is a directory's name".to_owned())
    } else if text == "all" || text == "default" {
        Some("is the kernel's word for every interface's switches (/proc/sys/net/ipv4/conf)".to_owned())
    } else if text
        .chars()
        .any(|letter| matches!(letter, '/' | ':' | '%') || letter.is_whitespace() || letter.is_control())
    {
        Some("has a '/', ':', '%', white space or control character".to_owned())
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_follow_the_spec() {
        for good in ["a", "0f3", "kube-pod_1.x", &"x".repeat(200)] {
            assert_eq!(identifier_fault(good), None, "{good}");
        }
        for bad in ["", "-a", ".", "..", "a/b", "../a", "a b", "é", "a\n", &"x".repeat(201)] {
            assert!(identifier_fault(bad).is_some(), "{bad:?}");
        }
    }

    #[test]
    fn a_plugins_name_is_no_path() {
        for good in ["host-local", "a.b", "..."] {
            assert_eq!(plugin_name_fault(good), None, "{good}");
        }
        for bad in [".", "..", "a/b", "/bin/sh", "../x"] {
            assert!(plugin_name_fault(bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn interface_names_follow_the_kernel() {
        for good in ["eth0", "a", "exactly15bytes0", "net1-é"] {
            assert_eq!(interface_name_fault(good), None, "{good}");
        }
        for bad in ["", ".", "..", "a/b", "eth0:1", "a b", "a\t", "sixteen-bytes-00", "eth%d", "all", "default"] {
            assert!(interface_name_fault(bad).is_some(), "{bad:?}");
        }
    }
}
