//! The Pod annotations `pinning.keelson.dev/<key>`.

use std::{borrow::Borrow, collections::BTreeSet};

/// What every annotation of ours starts with.
const ANNOTATION_PREFIX: &str = "pinning.keelson.dev/";

const EXCLUSIVE: &str = "exclusive";

/// The greatest number of unknown keys that a note names: a Pod may carry 256 KiB of annotations.
const MOST_NAMED: usize = 3;

/// The greatest part of a wrong value that a note quotes, in characters.
const MOST_QUOTED: usize = 60;

/// What a Pod's annotations ask for one of its containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wishes {
    /// `exclusive`: whether the container may get CPUs of its own; `true` unless said otherwise.
    pub(crate) exclusive: bool,
    /// Annotations that were ignored, each with the reason. A wrong annotation never fails the Pod.
    pub(crate) ignored: Vec<String>,
}

impl Default for Wishes {
    fn default() -> Self {
        Self { exclusive: true, ignored: Vec::new() }
    }
}

impl Wishes {
    /// Reads the wishes for `container` from its Pod's annotations, given as (key, value) in any order.
    ///
    /// A value is for the whole Pod (`"false"`) or for containers by name (`"main=true,sidecar=false"`); a container
    /// that a list doesn't name keeps the default.
    pub(crate) fn parse<'a>(annotations: impl IntoIterator<Item = (&'a str, &'a str)>, container: &str) -> Self {
        let mut wishes = Self::default();
        let mut unknown = BTreeSet::new();
        for (key, value) in annotations {
            match key.strip_prefix(ANNOTATION_PREFIX) {
                Some(EXCLUSIVE) => match value_for(container, value, boolean) {
                    Ok(Some(exclusive)) => wishes.exclusive = exclusive,
                    Ok(None) => {}
                    Err(wrong) => wishes.ignored.push(format!("ignored annotation {key}: {wrong}")),
                },
                Some(other) => {
                    unknown.insert(quoted(other));
                }
                None => {}
            }
        }
        if !unknown.is_empty() {
            let named: Vec<&str> = unknown.iter().take(MOST_NAMED).map(Borrow::borrow).collect();
            let more = unknown.len() - named.len();
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let named = named.join(", ");
            wishes.ignored.push(format!(
                "ignored annotations {ANNOTATION_PREFIX}...: unknown {named}{more}; the known key is {EXCLUSIVE:?}"
            ));
        }
        wishes
    }
}

/// The value of an annotation for one container; all of it is checked, so that what is wrong for one container is wrong
/// for all.
fn value_for<T>(container: &str, text: &str, parse: fn(&str) -> Result<T, String>) -> Result<Option<T>, String> {
    if !text.contains('=') {
        return parse(text.trim()).map(Some);
    }
    let mut seen = BTreeSet::new();
    let mut found = None;
    for part in text.split(',').map(str::trim) {
        let Some((name, value)) = part.split_once('=') else {
            return Err(format!("{} is not <container>=<value>", quoted(part)));
        };
        if !is_container_name(name) {
            return Err(format!("{} is not a container's name", quoted(name)));
        }
        if !seen.insert(name) {
            return Err(format!("container {} is named twice", quoted(name)));
        }
        let value = parse(value)?;
        if name == container {
            found = Some(value);
        }
    }
    Ok(found)
}

fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(format!("{} is neither \"true\" nor \"false\"", quoted(text))),
    }
}

/// Kubernetes names containers with DNS labels (RFC 1123): at most 63 of `a-z0-9-`, none at an end a hyphen.
fn is_container_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-')
}

fn quoted(text: &str) -> String {
    let mut short: String = text.chars().take(MOST_QUOTED).collect();
    if short.len() < text.len() {
        short.push_str("...");
    }
    format!("{short:?}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wishes(value: &str) -> Wishes {
        Wishes::parse([("pinning.keelson.dev/exclusive", value), ("other.example/exclusive", "rubbish")], "main")
    }

    #[track_caller]
    fn accepted(value: &str, exclusive: bool) {
        assert_eq!(wishes(value), Wishes { exclusive, ignored: vec![] });
    }

    #[track_caller]
    fn refused(value: &str, reason: &str) {
        let ignored = vec![format!("ignored annotation pinning.keelson.dev/exclusive: {reason}")];
        assert_eq!(wishes(value), Wishes { exclusive: true, ignored });
    }

    #[test]
    fn a_value_counts_for_the_whole_pod_or_by_container() {
        accepted("false", false);
        accepted(" true ", true);
        accepted("main=false", false);
        accepted("sidecar=true, main=false", false);
        accepted("sidecar=false", true);
    }

    #[test]
    fn a_wrong_value_is_ignored_with_the_reason() {
        refused("", r#""" is neither "true" nor "false""#);
        refused("False", r#""False" is neither "true" nor "false""#);
        refused("true,main=false", r#""true" is not <container>=<value>"#);
        refused("main=false,", r#""" is not <container>=<value>"#);
        refused("main=false,main=false", r#"container "main" is named twice"#);
        refused("main=false,sidecar=0", r#""0" is neither "true" nor "false""#);
        refused("Main=false", r#""Main" is not a container's name"#);
        refused("=false", r#""" is not a container's name"#);
    }

    #[test]
    fn unknown_keys_are_named_but_not_all_of_a_flood() {
        let keys: Vec<String> = (0..1000).map(|number| format!("{ANNOTATION_PREFIX}key{number:03}")).collect();
        let found = Wishes::parse(keys.iter().map(|key| (key.as_str(), "x")), "main");
        assert_eq!(
            found.ignored,
            ["ignored annotations pinning.keelson.dev/...: unknown \"key000\", \"key001\", \"key002\" and 997 more; \
              the known key is \"exclusive\""]
        );
    }

    proptest! {
        #[test]
        fn any_text_is_either_taken_or_ignored_with_a_short_reason(value in "[a-z=, \"\u{0}\u{1F980}-]{0,200}") {
            let found = wishes(&value);
            prop_assert!(found.ignored.len() <= 1);
            prop_assert!(found.exclusive || found.ignored.is_empty());
            prop_assert!(found.ignored.iter().all(|reason| reason.len() < 1500));
        }
    }
}
