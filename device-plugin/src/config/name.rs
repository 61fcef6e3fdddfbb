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

    /// The CDI kind of its devices, as vendor and class: the same domain and name, except that CDI wants a letter first
    /// (SPEC.md, "kind"), so that `x` goes before a digit.
    pub(crate) fn cdi_kind(&self) -> (String, String) {
        let with_letter = |part: &str| {
            let letter = if part.starts_with(|first: char| first.is_ascii_digit()) { "x" } else { "" };
            format!("{letter}{part}")
        };
        let (domain, name) = self.parts();
        (with_letter(domain), with_letter(name))
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
