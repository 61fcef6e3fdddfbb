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
        let found = lookup(value, error.path()).map(shown).unwrap_or_default();
        Problem::new(full, found, format!("is not valid here ({message})"), "")
    })
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
    struct Pool {
        #[expect(dead_code, reason = "only parsed")]
        name: String,
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
    fn a_value_of_the_wrong_type_is_named_with_its_path() {
        check(
            &json!({"pools": [{"name": 7}]}),
            "storage.pools[0].name: \"7\" is not valid here (invalid type: integer `7`, expected a string)",
        );
    }
}
