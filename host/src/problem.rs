//! What is wrong with something that came from outside: where, which value, and what would be right.

use std::fmt;

use serde::de::DeserializeOwned;
use serde_json::Value;

/// One thing wrong with a config or request.
///
/// Displays as `storage.pools[0].path: "/x" is a symbolic link; name the directory itself`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key's path from the top of the document, such as `storage.pools[0].path`.
    pub path: String,
    /// The value found there as the user wrote it, empty if the key is absent.
    pub value: String,
    /// What is wrong with it, as a predicate: `is a symbolic link`.
    pub wrong: String,
    /// What would be right, as an instruction: `name the directory itself`.
    pub remedy: String,
}

impl Problem {
    /// A problem with the value at `path`.
    pub fn new(
        path: impl Into<String>,
        value: impl fmt::Display,
        wrong: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { path: path.into(), value: value.to_string(), wrong: wrong.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(formatter, "{}: ", self.path)?;
        }
        if !self.value.is_empty() {
            write!(formatter, "{:?} ", self.value)?;
        }
        write!(formatter, "{}", self.wrong)?;
        if !self.remedy.is_empty() {
            write!(formatter, "; {}", self.remedy)?;
        }
        Ok(())
    }
}

/// Everything wrong with one document, in the order found; never empty when used as an error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl Problems {
    /// Adds one problem.
    pub fn push(&mut self, problem: Problem) {
        self.0.push(problem);
    }

    /// `Ok(value)` if nothing was found, else all that was found.
    ///
    /// # Errors
    ///
    /// These problems, if there are any.
    pub fn into_result<T>(self, value: T) -> Result<T, Self> {
        if self.0.is_empty() { Ok(value) } else { Err(self) }
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(formatter)?;
            }
            write!(formatter, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Parses one section of a config, whose types carry `#[serde(deny_unknown_fields)]`.
///
/// `path` is the section's own path, such as `storage`. An unknown key is reported with its full path and the
/// nearest key that exists.
///
/// # Errors
///
/// The first key that is unknown or holds a value of the wrong type.
pub fn parse_section<T: DeserializeOwned>(path: &str, value: &Value) -> Result<T, Problem> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let inner = error.path().to_string();
        let mut full = match inner.as_str() {
            "." => path.to_owned(),
            _ if path.is_empty() => inner,
            _ => format!("{path}.{inner}"),
        };
        let message = error.inner().to_string();
        // serde words this "unknown field `rangs`, expected one of `name`, `ranges`" (or "expected `name`", or
        // "there are no fields"); it gives no structured access to either name.
        if let Some(rest) = message.strip_prefix("unknown field ") {
            let mut names = rest.split('`').skip(1).step_by(2);
            let unknown = names.next().unwrap_or_default().to_owned();
            let known: Vec<&str> = names.collect();
            // serde_path_to_error names the unknown key itself as the last element in some formats.
            if !(full == unknown || full.ends_with(&format!(".{unknown}"))) {
                full = if full.is_empty() { unknown.clone() } else { format!("{full}.{unknown}") };
            }
            let nearest = known.iter().min_by_key(|name| strsim::damerau_levenshtein(name, &unknown));
            let remedy = match nearest {
                Some(name) if strsim::damerau_levenshtein(name, &unknown) <= 3 => format!("did you mean {name:?}?"),
                _ => format!("known keys: {}", known.join(", ")),
            };
            let parent = lookup(value, error.path());
            let found = parent.and_then(|parent| parent.get(&unknown)).or(parent).map(shown).unwrap_or_default();
            return Problem::new(full, found, "is the value of an unknown key", remedy);
        }
        if let Some(key) = message.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`')) {
            let full = if full.is_empty() { key.to_owned() } else { format!("{full}.{key}") };
            return Problem::new(full, "", "is missing", "add it");
        }
        let found = lookup(value, error.path()).map(shown).unwrap_or_default();
        match message.rsplit_once(", expected ") {
            Some((_, expected)) => Problem::new(full, found, "is not valid here", format!("write {}", words(expected))),
            None => Problem::new(full, found, format!("is not valid here ({message})"), ""),
        }
    })
}

/// What serde expected, as a user says it: serde knows Rust's types, and no other way to ask for them than its message
/// (`invalid type: integer `7`, expected a string`, ``unknown variant `x`, expected `a` or `b```).
fn words(expected: &str) -> String {
    match expected {
        "a string" | "path string" => "text, in quotes if it looks like something else".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a sequence" => "a list: [...]".to_owned(),
        "a map" => "keys and values: {...}".to_owned(),
        "u8" => up_to(u8::MAX),
        "u16" => up_to(u16::MAX),
        "u32" => up_to(u32::MAX),
        "u64" | "usize" => up_to(u64::MAX),
        _ if expected.starts_with("struct ") => "keys and values: {...}".to_owned(),
        _ if expected.contains('`') => {
            let names: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
            format!("one of: {}", names.join(", "))
        }
        other => other.to_owned(),
    }
}

fn up_to(most: impl fmt::Display) -> String {
    format!("a whole number from 0 to {most}")
}

/// A value as the user may recognise it: text without quotes, everything else as JSON, and not more than a line of it.
fn shown(value: &Value) -> String {
    const LONGEST: usize = 80;
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

fn lookup<'a>(value: &'a Value, path: &serde_path_to_error::Path) -> Option<&'a Value> {
    use serde_path_to_error::Segment;
    path.iter().try_fold(value, |value, segment| match segment {
        Segment::Seq { index } => value.get(index),
        Segment::Map { key } => value.get(key),
        Segment::Enum { .. } | Segment::Unknown => None,
    })
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Section {
        #[expect(dead_code, reason = "only parsed")]
        pools: Vec<Pool>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only parsed")]
    struct Pool {
        name: String,
        #[serde(default)]
        kind: Kind,
        #[serde(default)]
        count: u16,
        #[serde(default)]
        shared: bool,
        #[serde(default)]
        path: std::path::PathBuf,
        #[serde(default)]
        cpus: crate::CpuSet,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Kind {
        #[default]
        Image,
        Directory,
    }

    #[track_caller]
    fn check(value: &Value, expected: &str) {
        assert_eq!(parse_section::<Section>("storage", value).unwrap_err().to_string(), expected);
    }

    #[test]
    fn an_unknown_key_is_named_with_the_nearest_right_one() {
        check(
            &json!({"pools": [{"nmae": "a"}]}),
            "storage.pools[0].nmae: \"a\" is the value of an unknown key; did you mean \"name\"?",
        );
        check(&json!({"pol": []}), "storage.pol: \"[]\" is the value of an unknown key; did you mean \"pools\"?");
        check(
            &json!({"somethingElse": 1}),
            "storage.somethingElse: \"1\" is the value of an unknown key; known keys: pools",
        );
    }

    #[test]
    fn a_wrong_value_is_named_with_its_path_and_what_would_be_right() {
        let text = "text, in quotes if it looks like something else";
        for (pool, expected) in [
            (json!({"name": 7}), format!("name: \"7\" is not valid here; write {text}")),
            (json!({"path": true}), format!("path: \"true\" is not valid here; write {text}")),
            (json!({"kind": "x"}), "kind: \"x\" is not valid here; write one of: image, directory".to_owned()),
            (json!({"count": "7"}), "count: \"7\" is not valid here; write a whole number from 0 to 65535".to_owned()),
            (json!({"count": -1}), "count: \"-1\" is not valid here; write a whole number from 0 to 65535".to_owned()),
            (json!({"shared": "yes"}), "shared: \"yes\" is not valid here; write true or false".to_owned()),
        ] {
            let mut whole = json!({"name": "a"});
            whole.as_object_mut().unwrap().extend(pool.as_object().unwrap().clone());
            check(&json!({"pools": [whole]}), &format!("storage.pools[0].{expected}"));
        }
        check(
            &json!({"pools": {"name": "a"}}),
            "storage.pools: \"{\\\"name\\\":\\\"a\\\"}\" is not valid here; write a list: [...]",
        );
        check(&json!({"pools": ["a"]}), "storage.pools[0]: \"a\" is not valid here; write keys and values: {...}");
        check(&json!({"pools": [{}]}), "storage.pools[0].name: is missing; add it");
        check(&json!("pools"), "storage: \"pools\" is not valid here; write keys and values: {...}");
        let error = parse_section::<Section>("storage", &json!({"pools": [{"name": "a", "cpus": "x"}]})).unwrap_err();
        assert!(error.to_string().starts_with("storage.pools[0].cpus: \"x\" is not valid here ("), "{error}");
    }
}
