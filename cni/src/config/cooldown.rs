//! `ipam.cooldown`: how long a released address is kept back.

use std::time::Duration;

use keelson_host::Problem;
use serde_json::Value;

use super::fields::Fields;

/// Long enough for neighbours and load balancers to forget the address's last owner.
const DEFAULT: Duration = Duration::from_secs(30);

/// Go's units of a duration, in nanoseconds; longer ones first where one begins another.
const UNITS: [(&str, f64); 8] =
    [("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("μs", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 60e9), ("h", 3600e9)];

/// Reads the key from `ipam`: seconds as a number, or text as Go writes a duration.
pub(super) fn parse(ipam: &Fields<'_>) -> Result<Duration, Problem> {
    let found = match ipam.get("cooldown") {
        None => return Ok(DEFAULT),
        Some(Value::Number(number)) => number.as_f64().and_then(seconds),
        Some(Value::String(text)) => go_duration(text),
        Some(_) => None,
    };
    found.ok_or_else(|| {
        let value = ipam.get("cooldown").map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned));
        let remedy = "write seconds as a number, or text such as \"30s\" or \"1m30s\"; 0 turns it off";
        Problem::new(ipam.path_of("cooldown"), value.unwrap_or_default(), "is not a duration", remedy)
    })
}

fn seconds(seconds: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(seconds).ok()
}

/// The non-negative part of what Go's `time.ParseDuration` takes: `1h15m30.5s`, or `0`.
fn go_duration(text: &str) -> Option<Duration> {
    let text = text.strip_prefix('+').unwrap_or(text);
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut sum = 0.0;
    while !rest.is_empty() || text.is_empty() {
        let length = rest.find(|character: char| !character.is_ascii_digit() && character != '.')?;
        let (number, behind) = rest.split_at(length);
        let end = behind.find(|character: char| character.is_ascii_digit() || character == '.').unwrap_or(behind.len());
        let (unit, after) = behind.split_at(end);
        let (_, nanoseconds) = UNITS.iter().find(|(name, _)| *name == unit)?;
        sum += number.parse::<f64>().ok()? * nanoseconds;
        rest = after;
    }
    seconds(sum / 1e9)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn read(ipam: &Value) -> Result<Duration, String> {
        parse(&Fields::below("ipam", ipam.as_object().unwrap())).map_err(|problem| problem.to_string())
    }

    #[test]
    fn numbers_are_seconds_and_text_is_as_in_go() {
        for (value, seconds) in [
            (json!({}), 30.0),
            (json!({"cooldown": null}), 30.0),
            (json!({"Cooldown": 0}), 0.0),
            (json!({"cooldown": 90}), 90.0),
            (json!({"cooldown": "0"}), 0.0),
            (json!({"cooldown": "30s"}), 30.0),
            (json!({"cooldown": "1h2m3.5s"}), 3723.5),
            (json!({"cooldown": "250ms"}), 0.25),
            (json!({"cooldown": "1.5m"}), 90.0),
        ] {
            assert_eq!(read(&value), Ok(Duration::from_secs_f64(seconds)), "{value}");
        }
    }

    #[test]
    fn anything_else_is_named() {
        for value in
            [json!("30"), json!(-1), json!("-5s"), json!(""), json!("5 s"), json!("s"), json!("1d"), json!(true)]
        {
            let error = read(&json!({"cooldown": value})).unwrap_err();
            assert!(error.starts_with("ipam.cooldown: ") && error.contains("is not a duration"), "{error}");
        }
        assert!(read(&json!({"cooldown": 1e300})).is_err());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC*|[0-9.smhnu]*") {
            let _ = go_duration(&text);
        }
    }
}
