//! The part of a pool that is kept free.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Space of a pool's filesystem that no volume is promised: so many bytes, or a part of its size.
///
/// Written as `5%`, or as bytes with a suffix that Kubernetes knows: `10Gi`, `500M`, `4096`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Reserve {
    /// Bytes.
    Bytes(u64),
    /// Hundredths of the filesystem's size, 0 to 100.
    Percent(u8),
}

/// The text is no amount of space.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("is no amount of space; write a part such as 5% or bytes such as 10Gi")]
pub struct InvalidReserve;

/// The suffixes of Kubernetes' quantities, longest first.
const UNITS: [(&str, u64); 10] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("Pi", 1 << 50),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("P", 1_000_000_000_000_000),
];

impl Reserve {
    /// In bytes, of a filesystem of `total` bytes.
    pub(crate) fn bytes_of(self, total: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            // In two parts, as the product may not fit.
            Self::Percent(percent) => total / 100 * u64::from(percent) + total % 100 * u64::from(percent) / 100,
        }
    }
}

impl FromStr for Reserve {
    type Err = InvalidReserve;

    fn from_str(text: &str) -> Result<Self, InvalidReserve> {
        if let Some(percent) = text.strip_suffix('%') {
            return match percent.parse() {
                Ok(percent @ 0..=100) => Ok(Self::Percent(percent)),
                _ => Err(InvalidReserve),
            };
        }
        let (number, unit) =
            UNITS.into_iter().find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, unit))).unwrap_or((text, 1));
        let plain = number.bytes().all(|byte| byte.is_ascii_digit());
        let number: u64 = number.parse().ok().filter(|_| plain).ok_or(InvalidReserve)?;
        number.checked_mul(unit).map(Self::Bytes).ok_or(InvalidReserve)
    }
}

impl TryFrom<String> for Reserve {
    type Error = InvalidReserve;

    fn try_from(text: String) -> Result<Self, InvalidReserve> {
        text.parse()
    }
}

impl From<Reserve> for String {
    fn from(reserve: Reserve) -> Self {
        reserve.to_string()
    }
}

impl fmt::Display for Reserve {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Percent(percent) => write!(formatter, "{percent}%"),
            Self::Bytes(bytes) => {
                let exact = UNITS[..5].iter().rev().find(|(_, unit)| *bytes > 0 && bytes % unit == 0);
                match exact {
                    Some((suffix, unit)) => write!(formatter, "{}{suffix}", bytes / unit),
                    None => write!(formatter, "{bytes}"),
                }
            }
        }
    }
}

impl JsonSchema for Reserve {
    fn schema_name() -> Cow<'static, str> {
        "Reserve".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^(([0-9]|[1-9][0-9]|100)%|[0-9]+([KMGTP]i|[kMGTP])?)$" })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn amounts() {
        for (text, expected, of_1000) in [
            ("0", Reserve::Bytes(0), 0),
            ("4096", Reserve::Bytes(4096), 4096),
            ("10Gi", Reserve::Bytes(10 << 30), 10 << 30),
            ("5M", Reserve::Bytes(5_000_000), 5_000_000),
            ("5%", Reserve::Percent(5), 50),
            ("100%", Reserve::Percent(100), 1000),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
            assert_eq!(expected.bytes_of(1000), of_1000, "{text}");
        }
        for wrong in ["", "%", "101%", "-1", "+1", "1.5Gi", "1 Gi", "Gi", "1gi", "99999999999P"] {
            assert_eq!(wrong.parse::<Reserve>(), Err(InvalidReserve), "{wrong:?}");
        }
    }

    #[test]
    fn a_part_of_a_size_that_is_no_multiple_of_100() {
        for (percent, total, expected) in
            [(5, 1050, 52), (50, 199, 99), (100, u64::MAX, u64::MAX), (99, 99, 98), (0, 99, 0)]
        {
            assert_eq!(Reserve::Percent(percent).bytes_of(total), expected, "{percent}% of {total}");
        }
    }

    #[test]
    fn amounts_are_printed_as_people_write_them() {
        for (reserve, expected) in [
            (Reserve::Bytes(0), "0"),
            (Reserve::Bytes(1000), "1000"),
            (Reserve::Bytes(10 << 30), "10Gi"),
            (Reserve::Bytes(3 << 10), "3Ki"),
            (Reserve::Percent(5), "5%"),
        ] {
            assert_eq!(reserve.to_string(), expected);
            assert_eq!(serde_json::to_value(reserve).unwrap(), expected);
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_again(bytes in prop_oneof![any::<u64>(), (0_u64..1000).prop_map(|n| n << 30)]) {
            let reserve = Reserve::Bytes(bytes);
            prop_assert_eq!(reserve.to_string().parse(), Ok(reserve));
        }
    }
}
