//! Kubernetes quantities: `64Mi`, `1`, `500m`, `1.5Gi`, `1e3`.

use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};

/// A non-negative number as Kubernetes writes it, kept exactly.
///
/// Format: the documentation of `io.k8s.apimachinery.pkg.api.resource.Quantity`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quantity {
    numerator: u128,
    denominator: u128,
}

impl Quantity {
    /// The number, rounded up as Kubernetes does.
    pub(crate) fn units(self) -> Result<u64> {
        self.scaled(1)
    }

    /// The number of thousandths, rounded up.
    pub(crate) fn thousandths(self) -> Result<u64> {
        self.scaled(1000)
    }

    fn scaled(self, factor: u128) -> Result<u64> {
        let product = self.numerator.checked_mul(factor).context("the quantity is too large")?;
        u64::try_from(product.div_ceil(self.denominator)).context("the quantity is too large")
    }
}

impl FromStr for Quantity {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let right = "such as 500m, 1, 64Mi or 1e3";
        let split = text.find(|letter: char| !(letter.is_ascii_digit() || letter == '.')).unwrap_or(text.len());
        let (number, suffix) = text.split_at(split);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let digits = format!("{whole}{fraction}");
        ensure!(!digits.is_empty() && !fraction.contains('.'), "{text:?} is not a quantity; {right}");
        // 18 digits and any suffix stay within 128 bits.
        ensure!(digits.len() <= 18, "{text:?} has too many digits");
        let mut numerator: u128 = digits.parse()?;
        let mut denominator = 10_u128.pow(u32::try_from(fraction.len())?);
        match suffix {
            "" => {}
            "m" => denominator *= 1000,
            "k" => numerator *= 1000,
            "M" => numerator *= 1000_u128.pow(2),
            "G" => numerator *= 1000_u128.pow(3),
            "T" => numerator *= 1000_u128.pow(4),
            "P" => numerator *= 1000_u128.pow(5),
            "E" => numerator *= 1000_u128.pow(6),
            "Ki" => numerator <<= 10,
            "Mi" => numerator <<= 20,
            "Gi" => numerator <<= 30,
            "Ti" => numerator <<= 40,
            "Pi" => numerator <<= 50,
            "Ei" => numerator <<= 60,
            _ => match suffix.strip_prefix(['e', 'E']).and_then(|exponent| exponent.parse::<u32>().ok()) {
                Some(exponent) if exponent <= 18 => numerator *= 10_u128.pow(exponent),
                _ => bail!("{text:?} is not a quantity; {right}"),
            },
        }
        Ok(Self { numerator, denominator })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, thousandths: u64) {
        assert_eq!(text.parse::<Quantity>().unwrap().thousandths().unwrap(), thousandths, "{text}");
    }

    #[test]
    fn reads_what_kubernetes_writes() {
        check("1", 1000);
        check("500m", 500);
        check("1.5", 1500);
        check("0.0001", 1);
        check("64Mi", 67_108_864_000);
        check("1e3", 1_000_000);
        check("1.5Gi", 1_610_612_736_000);
    }

    #[test]
    fn refuses_what_is_none() {
        for text in ["", ".", "1.2.3", "-1", "+1", "1 Mi", "1mi", "1e", "1e-3", "Mi", "9999999999999999999"] {
            assert!(text.parse::<Quantity>().is_err(), "{text:?}");
        }
        assert!("16Ei".parse::<Quantity>().unwrap().units().is_err());
    }
}
