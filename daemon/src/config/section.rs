//! A section's text to its type, with everything that is wrong with it.

use keelson_host::{Problem, Problems, parse_section};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// A user who mistyped more keys than this starts with these.
const MOST_PROBLEMS: usize = 32;

/// Parses one section, telling every key that is unknown or of the wrong type and not only the first.
///
/// What is reported is taken out and the rest parsed again. Every key has a default, so a wrong one doesn't hide its
/// neighbours.
pub(super) fn parse_whole<T: DeserializeOwned>(path: &str, value: &Value) -> Result<T, Problems> {
    if value.is_null() {
        let remedy = format!("write `{path}: {{}}` to run it with its defaults, or leave the key out");
        return Err(Problem::new(path, "", "is empty", remedy).into());
    }
    let mut problems = Problems::default();
    let mut rest = value.clone();
    loop {
        match parse_section(path, &rest) {
            Ok(section) => return problems.into_result(section),
            // A key that has to be there was taken out above, and its problem told.
            Err(problem) if problems.0.iter().any(|told| told.path == problem.path) => return Err(problems),
            Err(problem) => {
                let removed = remove(&mut rest, problem.path.strip_prefix(path).unwrap_or(&problem.path));
                problems.push(problem);
                if !removed || problems.0.len() >= MOST_PROBLEMS {
                    return Err(problems);
                }
            }
        }
    }
}

/// Removes what lies at `path`, such as `.pools[0].path`; false if nothing does.
fn remove(value: &mut Value, path: &str) -> bool {
    let keys: Vec<&str> = path.split(['.', '[', ']']).filter(|key| !key.is_empty()).collect();
    let Some((last, parents)) = keys.split_last() else { return false };
    let parent = parents.iter().try_fold(value, |value, key| match value {
        Value::Object(map) => map.get_mut(*key),
        Value::Array(list) => list.get_mut(key.parse::<usize>().ok()?),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    });
    match parent {
        Some(Value::Object(map)) => map.remove(*last).is_some(),
        Some(Value::Array(list)) => match last.parse() {
            Ok(index) if index < list.len() => {
                list.remove(index);
                true
            }
            _ => false,
        },
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Debug, Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Section {
        name: String,
        pools: Vec<Pool>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only parsed")]
    struct Pool {
        path: String,
    }

    #[track_caller]
    fn check(value: &Value, expected: &[&str]) {
        let problems = parse_whole::<Section>("storage", value).unwrap_err();
        let paths: Vec<&str> = problems.0.iter().map(|problem| problem.path.as_str()).collect();
        assert_eq!(paths, expected, "{problems}");
    }

    #[test]
    fn every_wrong_key_is_told() {
        check(&json!({"nmae": "a", "pols": []}), &["storage.nmae", "storage.pols"]);
        check(&json!({"name": 1, "pools": [{"path": 2}]}), &["storage.name", "storage.pools[0].path"]);
        check(&json!({"pools": [{}]}), &["storage.pools[0].path"]);
    }

    #[test]
    fn what_is_no_section_at_all_is_told_once() {
        check(&json!("x"), &["storage"]);
        check(&Value::Null, &["storage"]);
        check(&json!({"a.b": 1}), &["storage.a.b"]);
    }
}
