//! Bandwidth: how fast a container may send and receive.

use keelson_host::Problem;
use serde::{Deserialize, Serialize};

use super::fields::Fields;

/// One direction's limit, a token bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Limit {
    /// Bits per second.
    pub(crate) rate: u64,
    /// Bits that may pass at once.
    pub(crate) burst: u64,
}

/// The limits of one container; at least one of the two is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bandwidth {
    /// What the container receives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ingress: Option<Limit>,
    /// What the container sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) egress: Option<Limit>,
}

const KEYS: [&str; 4] = ["ingressRate", "ingressBurst", "egressRate", "egressBurst"];

/// A byte: less can't be told to the kernel.
const SMALLEST: u64 = 8;

/// The reference plugin's bound: the burst's bytes must fit 32 bits.
const LARGEST_BURST: u64 = 8 * (u32::MAX as u64) - 1;

/// Reads the limits: the network's own keys, which win, or the runtime's wish for this container.
pub(super) fn parse(top: &Fields<'_>, runtime: &Fields<'_>) -> Result<Option<Bandwidth>, Problem> {
    let is_fixed = KEYS.iter().any(|key| top.get(key).is_some());
    let wish = runtime.object("bandwidth")?;
    let Some(fields) = (if is_fixed { Some(top) } else { wish.as_ref() }) else { return Ok(None) };
    let [ingress, egress] =
        [limit(fields, "ingressRate", "ingressBurst")?, limit(fields, "egressRate", "egressBurst")?];
    Ok((ingress.is_some() || egress.is_some()).then_some(Bandwidth { ingress, egress }))
}

fn limit(fields: &Fields<'_>, rate_key: &str, burst_key: &str) -> Result<Option<Limit>, Problem> {
    let rate = fields.long(rate_key)?.unwrap_or(0);
    let burst = fields.long(burst_key)?.unwrap_or(0);
    let problem = |key: &str, value: u64, wrong: &str, remedy: String| {
        Err(Problem::new(fields.path_of(key), value, wrong, remedy))
    };
    let both = || format!("give {rate_key} in bits a second and {burst_key} in bits, or neither");
    match (rate, burst) {
        (0, 0) => Ok(None),
        (_, 0) => problem(rate_key, rate, "comes without a burst", both()),
        (0, _) => problem(burst_key, burst, "comes without a rate", both()),
        (..SMALLEST, _) => problem(rate_key, rate, "is less than a byte a second", format!("take {SMALLEST} or more")),
        _ if !(SMALLEST..=LARGEST_BURST).contains(&burst) => {
            problem(burst_key, burst, "is out of range", format!("take {SMALLEST} to {LARGEST_BURST} bits"))
        }
        _ => Ok(Some(Limit { rate, burst })),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(top: &Value, runtime: &Value) -> Result<Option<Bandwidth>, Problem> {
        parse(&Fields::top(top.as_object().unwrap()), &Fields::below("runtimeConfig", runtime.as_object().unwrap()))
    }

    #[test]
    fn zero_is_no_limit() {
        for runtime in
            [json!({}), json!({"bandwidth": {}}), json!({"bandwidth": {"ingressRate": 0, "ingressBurst": 0}})]
        {
            assert_eq!(read(&json!({}), &runtime).unwrap(), None);
        }
    }

    #[test]
    fn each_direction_stands_alone_and_the_networks_own_keys_win() {
        let wish = json!({"bandwidth": {"IngressRate": 8000, "ingressBurst": 80, "egressRate": 0}});
        let limit = |rate, burst| Some(Limit { rate, burst });
        assert_eq!(read(&json!({}), &wish).unwrap(), Some(Bandwidth { ingress: limit(8000, 80), egress: None }));
        assert_eq!(
            read(&json!({"egressRate": 16, "egressBurst": 8}), &wish).unwrap(),
            Some(Bandwidth { ingress: None, egress: limit(16, 8) })
        );
        // As in the reference plugin a key that says 0 is one that was set.
        assert_eq!(read(&json!({"egressRate": 0}), &wish).unwrap(), None);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (bandwidth, expected) in [
            (json!({"ingressRate": 8}), "ingressRate: \"8\" comes without a burst"),
            (json!({"egressBurst": 8}), "egressBurst: \"8\" comes without a rate"),
            (json!({"egressRate": 7, "egressBurst": 8}), "egressRate: \"7\" is less than a byte a second"),
            (json!({"ingressRate": 8, "ingressBurst": 7}), "ingressBurst: \"7\" is out of range"),
            (
                json!({"ingressRate": 8, "ingressBurst": 34359738360_u64}),
                "ingressBurst: \"34359738360\" is out of range",
            ),
            (json!({"ingressRate": "8"}), "ingressRate: \"8\" is not a whole number"),
        ] {
            let error = read(&json!({}), &json!({"bandwidth": bandwidth})).unwrap_err().to_string();
            assert!(error.starts_with(&format!("runtimeConfig.bandwidth.{expected}")), "{error}");
        }
        let largest = json!({"bandwidth": {"ingressRate": u64::MAX, "ingressBurst": 34359738359_u64}});
        assert!(read(&json!({}), &largest).is_ok());
    }
}
