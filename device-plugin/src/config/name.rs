//! Names of extended resources.

use std::fmt;

/// Kubernetes adds this to a resource's name for quotas, and the result has to be a qualified name as well.
const QUOTA_PREFIX: &str = "requests.";

/// The name of an extended resource, such as `example.com/fpga`.
///
/// Obeys what the API server and the kubelet check (`IsExtendedResourceName`, `IsQualifiedName`): a DNS-1123 subdomain,
/// a slash, and a name of letters, digits, `-`, `_` and `.` that starts and ends with a letter or digit; not below
/// `kubernetes.io`, not starting with `requests.`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ResourceName(String);

/// Why a string is no extended resource's name, worded as a [`keelson_host::Problem`] wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InvalidName {
    pub(crate) wrong: &'static str,
    pub(crate) remedy: &'static str,
}

impl ResourceName {
    pub(crate) fn parse(text: &str) -> Result<Self, InvalidName> {
        let invalid = |wrong, remedy| Err(InvalidName { wrong, remedy });
        if text.is_empty() {
            return invalid("is missing", "write an extended resource's name such as \"example.com/fpga\"");
        }
        let Some((domain, name)) = text.split_once('/') else {
            return invalid("has no domain", "write it as DOMAIN/NAME, such as \"example.com/fpga\"");
        };
        // The check is for the substring, so that "notkubernetes.io" is taken as well (IsPrefixedNativeResource).
        if domain.ends_with("kubernetes.io") {
            return invalid("is reserved for Kubernetes itself", "use a domain of your own that doesn't end so");
        }
        if domain.starts_with(QUOTA_PREFIX) {
            return invalid("starts with \"requests.\", which Kubernetes uses for quotas", "use another domain");
        }
        if domain.len() > 253 - QUOTA_PREFIX.len() || !domain.split('.').all(is_label) {
            return invalid(
                "has a domain that is no DNS name",
                "use at most 244 lower-case letters, digits, '-' and '.', each part starting and ending with a letter \
                 or digit",
            );
        }
        if name.len() > 63 || !is_qualified(name) {
            return invalid(
                "has no valid name after the slash",
                "use at most 63 letters, digits, '-', '_' and '.', starting and ending with a letter or digit",
            );
        }
        Ok(Self(text.to_owned()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The domain and the name.
    pub(crate) fn parts(&self) -> (&str, &str) {
        // parse() let only names with a slash pass.
        self.0.split_once('/').unwrap_or((&self.0, ""))
    }

    /// The CDI kind of its devices, as vendor and class: the same domain and name, with an `x` before what CDI can't
    /// take.
    ///
    /// CDI wants a letter first (SPEC.md, "kind"). And its Go parser, up to 1.0.1 at least, slices `name[1:len-1]`
    /// without looking at the length: a vendor or class of one letter in a specification file would make containerd
    /// panic.
    pub(crate) fn cdi_kind(&self) -> (String, String) {
        let fit = |part: &str| match part.as_bytes() {
            [first, _, ..] if first.is_ascii_alphabetic() => part.to_owned(),
            _ => format!("x{part}"),
        };
        let (domain, name) = self.parts();
        (fit(domain), fit(name))
    }
}

impl fmt::Display for ResourceName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// A label of a DNS-1123 subdomain. Kubernetes limits the subdomain's length, not the label's.
fn is_label(label: &str) -> bool {
    label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && starts_and_ends_alphanumeric(label)
}

fn is_qualified(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
        && starts_and_ends_alphanumeric(name)
}

fn starts_and_ends_alphanumeric(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.ends_with(|last: char| last.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn refused(name: &str, wrong: &str) {
        let found = ResourceName::parse(name).unwrap_err();
        assert!(found.wrong.contains(wrong), "{name:?}: {found:?}");
        assert!(!found.remedy.is_empty());
    }

    #[test]
    fn what_kubernetes_refuses_is_refused() {
        refused("", "missing");
        refused("fpga", "no domain");
        refused("kubernetes.io/fpga", "reserved");
        refused("device.kubernetes.io/fpga", "reserved");
        refused("notkubernetes.io/fpga", "reserved");
        refused("requests.example.com/fpga", "requests.");
        refused("/fpga", "no DNS name");
        refused("Example.com/fpga", "no DNS name");
        refused("example..com/fpga", "no DNS name");
        refused("-example.com/fpga", "no DNS name");
        refused("example_1.com/fpga", "no DNS name");
        refused(&format!("{}/fpga", "a".repeat(245)), "no DNS name");
        refused("example.com/", "name after the slash");
        refused("example.com/fpga/2", "name after the slash");
        refused("example.com/-fpga", "name after the slash");
        refused("example.com/fpga.", "name after the slash");
        refused("example.com/f pga", "name after the slash");
        refused(&format!("example.com/{}", "f".repeat(64)), "name after the slash");
    }

    #[test]
    fn what_kubernetes_takes_is_taken() {
        for name in ["example.com/fpga", "a/b", "1.example.com/3D_v1.2-x", "x/A"] {
            assert_eq!(ResourceName::parse(name).unwrap().to_string(), name);
        }
        ResourceName::parse(&format!("{}/{}", "a".repeat(244), "f".repeat(63))).unwrap();
    }

    #[test]
    fn a_cdi_kind_starts_with_a_letter_and_has_two() {
        let kind = |name| ResourceName::parse(name).unwrap().cdi_kind();
        assert_eq!(kind("example.com/fpga"), ("example.com".to_owned(), "fpga".to_owned()));
        assert_eq!(kind("1.example.com/3d"), ("x1.example.com".to_owned(), "x3d".to_owned()));
        assert_eq!(kind("a/f"), ("xa".to_owned(), "xf".to_owned()));
    }

    proptest! {
        #[test]
        fn names_built_by_the_rules_are_taken(
            domain in "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\\.[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?){0,3}",
            name in "[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?",
        ) {
            prop_assume!(!domain.starts_with("requests.") && !domain.ends_with("kubernetes.io"));
            let parsed = ResourceName::parse(&format!("{domain}/{name}"));
            prop_assert!(parsed.is_ok(), "{parsed:?}");
            for part in <[String; 2]>::from(parsed.unwrap().cdi_kind()) {
                prop_assert!(part.len() >= 2 && part.starts_with(|first: char| first.is_ascii_alphabetic()));
            }
        }

        #[test]
        fn nothing_else_is_taken(text in "[a-zA-Z0-9/._ -]{0,40}|\\PC{0,20}") {
            if let Ok(name) = ResourceName::parse(&text) {
                let (domain, last) = name.parts();
                prop_assert_eq!(text.matches('/').count(), 1);
                prop_assert!(domain.split('.').all(|label| !label.is_empty() && !label.starts_with('-')));
                prop_assert!(!last.is_empty() && last.len() <= 63);
                prop_assert!(domain.bytes().all(|byte| b"abcdefghijklmnopqrstuvwxyz0123456789-.".contains(&byte)));
            }
        }
    }
}
