//! YAML text to plain values, with limits: a config is small and shallow, whatever its file holds.

use serde_json::Value;
use serde_saphyr::options::{DuplicateKeyPolicy, MergeKeyPolicy, NonFiniteFloatPolicy};

/// Longest config file: a thousand resources fit many times over.
pub(super) const MAX_BYTES: u64 = 1 << 20;
const MAX_DEPTH: usize = 24;
const MAX_NODES: usize = 100_000;

/// Parses one YAML document.
///
/// Duplicate keys, merge keys, several documents and application tags are refused: each of them makes two readers of
/// one file see two configs. `yes` and `no` are strings, as YAML 1.2 has it.
///
/// # Errors
///
/// One line that says what is wrong and where.
pub(super) fn parse(text: &str) -> Result<Value, String> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            flow_nesting_limit: MAX_DEPTH,
            max_nodes: MAX_NODES,
            max_events: 4 * MAX_NODES,
            max_documents: 1,
            max_aliases: 1_000,
            max_anchors: 1_000,
            max_total_scalar_bytes: 1 << 20,
            max_inclusion_depth: 0,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MAX_NODES },
        duplicate_keys: DuplicateKeyPolicy::Error,
        merge_keys: MergeKeyPolicy::Error,
        non_finite_float_policy: NonFiniteFloatPolicy::Reject,
        strict_booleans: true,
        reject_unsupported_tags: true,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| in_our_words(&error.to_string()))
}

/// The library's message without advice that is for programmers, in one line.
fn in_our_words(message: &str) -> String {
    message
        .replace('\n', " ")
        .replace(", set DuplicateKeyPolicy in Options if acceptable", " (given twice; remove one)")
        .replace("budget breached: Documents { documents: 2 }", "a second document; a config is one document")
        .replace("budget breached: ", "too much for a config: ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn refused(text: &str, word: &str) {
        let message = parse(text).unwrap_err();
        assert!(message.contains(word), "{message:?} has no {word:?}");
    }

    #[test]
    fn scalars_are_what_yaml_1_2_says() {
        let value = parse("a: yes\nb: 10\nc: '10'\nd: true\ne: ~\nf: 10ee\ng: 0x10\n").unwrap();
        assert_eq!(value, json!({"a": "yes", "b": 10, "c": "10", "d": true, "e": null, "f": "10ee", "g": 16}));
    }

    #[test]
    fn what_two_readers_could_read_differently_is_refused() {
        refused("a: 1\na: 2\n", "duplicate mapping key: a (given twice; remove one) at line 2");
        refused("x: &x {a: 1}\ny: {<<: *x}\n", "merge");
        refused("a: 1\n---\nb: 1\n", "a second document; a config is one document");
        refused("a: !secret 1\n", "tag");
        refused("a: .nan\n", "finite");
    }

    #[test]
    fn a_file_that_grows_when_read_is_refused() {
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let previous = level - 1;
            bomb += &format!("a{level}: &a{level} [{}]\n", vec![format!("*a{previous}"); 9].join(", "));
        }
        assert!(parse(&bomb).is_err());
        assert!(parse(&"[".repeat(10_000)).is_err());
        assert!(parse(&(0..200).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect::<String>()).is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[a-z{}\\[\\]:,&*!#|>'\"\\- \n0-9.~%@`\\\\]{0,200}") {
            // Either answer is right; returning at all is the property.
            let _ = parse(&text);
        }
    }
}
