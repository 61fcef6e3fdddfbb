//! Patterns of device nodes' paths.

use glob::{MatchOptions, Pattern};

const OPTIONS: MatchOptions =
    MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };

/// A pattern such as `/dev/ttyS*` or `/dev/vfio/[0-9]*`: `*`, `?` and `[...]` within one component of the path.
///
/// Kept as one pattern per component, so that finding what it matches reads only the directories that can hold
/// matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodePattern {
    /// The components below `/dev`, at least one.
    components: Vec<Pattern>,
}

impl NodePattern {
    /// Parses a pattern; the error says what is wrong, as a predicate, and what would be right.
    pub(crate) fn parse(text: &str) -> Result<Self, (String, &'static str)> {
        const REMEDY: &str = "write an absolute path below /dev such as \"/dev/ttyS*\"";
        let Some(below) = text.strip_prefix("/dev/") else {
            return Err(("is not below /dev".to_owned(), REMEDY));
        };
        let mut components = Vec::new();
        for component in below.split('/') {
            if matches!(component, "" | "." | "..") || component.contains('\0') {
                return Err((format!("has the component {component:?}"), REMEDY));
            }
            if component.contains("**") {
                return Err(("contains \"**\"".to_owned(), "name each directory, or use \"*\" for one of any name"));
            }
            let pattern = Pattern::new(component)
                .map_err(|error| (format!("is not a pattern ({})", error.msg), "use *, ? and [...] as a shell does"))?;
            components.push(pattern);
        }
        Ok(Self { components })
    }

    /// The components below `/dev`.
    pub(crate) fn components(&self) -> &[Pattern] {
        &self.components
    }

    /// Whether a file name matches one component. As in a shell, a leading dot has to be written out.
    pub(crate) fn component_matches(component: &Pattern, name: &str) -> bool {
        component.matches_with(name, OPTIONS)
    }

    /// Whether the pattern matches the whole path.
    pub(crate) fn matches(&self, path: &str) -> bool {
        path.strip_prefix("/dev/").is_some_and(|below| {
            let names: Vec<&str> = below.split('/').collect();
            names.len() == self.components.len()
                && self.components.iter().zip(names).all(|(component, name)| Self::component_matches(component, name))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn matches(pattern: &str, path: &str) -> bool {
        NodePattern::parse(pattern).unwrap().matches(path)
    }

    #[test]
    fn each_component_is_a_pattern_of_its_own() {
        assert!(matches("/dev/ttyS*", "/dev/ttyS12"));
        assert!(!matches("/dev/ttyS*", "/dev/ttyS/1"));
        assert!(matches("/dev/*/[0-9]", "/dev/vfio/7"));
        assert!(!matches("/dev/*/[0-9]", "/dev/vfio/vfio"));
        assert!(!matches("/dev/*", "/dev/.hidden"));
        assert!(matches("/dev/.h*", "/dev/.hidden"));
        assert!(!matches("/dev/fpga?", "/dev/fpga"));
    }

    #[test]
    fn a_pattern_that_could_mean_something_else_is_refused() {
        for pattern in [
            "",
            "/",
            "/dev",
            "/dev/",
            "ttyS*",
            "/etc/*",
            "/dev/../etc/*",
            "/dev/./x",
            "/dev//x",
            "/dev/x/",
            "/dev/**",
            "/dev/**/x",
            "/dev/[",
            "/dev/a\0",
        ] {
            let (wrong, remedy) = NodePattern::parse(pattern).unwrap_err();
            assert!(!wrong.is_empty() && !remedy.is_empty(), "{pattern:?}");
        }
    }

    proptest! {
        #[test]
        fn a_plain_path_matches_itself_only(path in "/dev/[a-z0-9]{1,8}(/[a-z0-9]{1,8}){0,2}", other in "/dev/[a-z0-9/]{1,20}") {
            prop_assert!(matches(&path, &path));
            prop_assert_eq!(matches(&path, &other), path == other);
        }
    }
}
