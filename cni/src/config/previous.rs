//! The previous result that CHECK compares the kernel with.

use std::net::IpAddr;

use ipnet::IpNet;
use keelson_host::Problem;
use serde_json::Value;

use super::{
    fields::{Fields, not_a},
    network::{Route, parse_route},
};

/// The parts of a result that can be compared with the kernel; the same in every version we speak.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PreviousResult {
    pub(crate) interfaces: Vec<PreviousInterface>,
    pub(crate) addresses: Vec<PreviousAddress>,
    pub(crate) routes: Vec<Route>,
}

/// An interface that some plugin of the chain made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PreviousInterface {
    pub(crate) name: String,
    pub(crate) mac: String,
    /// Told from spec version 1.1.0 on.
    pub(crate) mtu: Option<u32>,
    /// Empty on the host.
    pub(crate) sandbox: String,
}

/// An address that some plugin of the chain gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PreviousAddress {
    pub(crate) address: IpNet,
    pub(crate) gateway: Option<IpAddr>,
    /// Which of the interfaces has it.
    pub(crate) interface: Option<usize>,
}

impl PreviousResult {
    /// Reads `prevResult`.
    pub(crate) fn parse(value: &Value) -> Result<Self, Problem> {
        let Some(object) = value.as_object() else { return Err(not_a("prevResult", value, "an object")) };
        let top = Fields::below("prevResult", object);
        let text = |fields: &Fields<'_>, key: &str| Ok(fields.string(key)?.unwrap_or_default().to_owned());
        let mut interfaces = Vec::new();
        for interface in top.objects("interfaces")? {
            interfaces.push(PreviousInterface {
                name: text(&interface, "name")?,
                mac: text(&interface, "mac")?,
                mtu: interface.number("mtu")?.filter(|mtu| *mtu != 0),
                sandbox: text(&interface, "sandbox")?,
            });
        }
        let mut addresses = Vec::new();
        for ip in top.objects("ips")? {
            let address = ip.string("address")?.unwrap_or_default();
            let Ok(address) = address.parse::<IpNet>() else {
                return Err(Problem::new(ip.path_of("address"), address, "is not an address with a prefix", ""));
            };
            let interface = match ip.get("interface") {
                None => None,
                Some(index) => match index.as_u64().and_then(|index| usize::try_from(index).ok()) {
                    Some(index) if index < interfaces.len() => Some(index),
                    _ => {
                        let wrong = format!("is no index into the {} interfaces", interfaces.len());
                        return Err(Problem::new(ip.path_of("interface"), index, wrong, ""));
                    }
                },
            };
            addresses.push(PreviousAddress { address, gateway: ip.address("gateway")?, interface });
        }
        let routes = top.objects("routes")?.iter().map(parse_route).collect::<Result<_, _>>()?;
        Ok(Self { interfaces, addresses, routes })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn an_index_past_the_interfaces_is_refused() {
        let value = json!({"interfaces": [{"name": "eth0"}], "ips": [{"address": "10.0.0.2/24", "interface": 1}]});
        let error = PreviousResult::parse(&value).unwrap_err().to_string();
        assert_eq!(error, "prevResult.ips[0].interface: \"1\" is no index into the 1 interfaces");
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "\\PC{0,30}", number in any::<i64>()) {
            for value in [json!(text), json!({"ips": [{"address": text, "interface": number}]}), json!({"interfaces": text}), json!({"routes": [{"dst": text, "scope": number}]})] {
                let _ = PreviousResult::parse(&value);
            }
        }
    }
}
