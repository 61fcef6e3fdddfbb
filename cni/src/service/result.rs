//! The result of ADD, in the version that was asked for.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::config::{
    network::{Dns, Route},
    version::SpecVersion,
};

/// The result, as the newest version of the spec has it.
#[derive(Clone, Debug)]
pub(super) struct AddResult {
    /// [bridge, the host's end, the container's end]: chained plugins count on the order.
    pub(super) interfaces: Vec<ResultInterface>,
    pub(super) addresses: Vec<ResultAddress>,
    pub(super) routes: Vec<Route>,
    pub(super) dns: Dns,
}

#[derive(Clone, Debug)]
pub(super) struct ResultInterface {
    pub(super) name: String,
    pub(super) mac: String,
    pub(super) mtu: u32,
    /// Empty on the host.
    pub(super) sandbox: String,
}

#[derive(Clone, Debug)]
pub(super) struct ResultAddress {
    pub(super) address: IpNet,
    pub(super) gateway: Option<IpAddr>,
    pub(super) interface: usize,
}

impl AddResult {
    /// The JSON of `version`: 1.0.0 has no MTUs and none of the newer keys of routes; 0.4.0 tells an address's family
    /// and always has `dns`.
    pub(super) fn to_json(&self, version: SpecVersion) -> Value {
        let mut result = json!({"cniVersion": version.as_str()});
        result["interfaces"] = self.interfaces.iter().map(|interface| interface_json(interface, version)).collect();
        if !self.addresses.is_empty() {
            result["ips"] = self.addresses.iter().map(|address| address_json(address, version)).collect();
        }
        if !self.routes.is_empty() {
            result["routes"] = self.routes.iter().map(|route| route_json(route, version)).collect();
        }
        if version < SpecVersion::V1_0_0 || !self.dns.is_empty() {
            result["dns"] = json!(self.dns);
        }
        result
    }
}

fn interface_json(interface: &ResultInterface, version: SpecVersion) -> Value {
    let mut json = json!({"name": interface.name, "mac": interface.mac});
    if version >= SpecVersion::V1_1_0 {
        json["mtu"] = json!(interface.mtu);
    }
    if !interface.sandbox.is_empty() {
        json["sandbox"] = json!(interface.sandbox);
    }
    json
}

fn address_json(address: &ResultAddress, version: SpecVersion) -> Value {
    let mut json = json!({
        "address": address.address.to_string(),
        "interface": address.interface,
    });
    if let Some(gateway) = address.gateway {
        json["gateway"] = json!(gateway.to_string());
    }
    if version < SpecVersion::V1_0_0 {
        json["version"] = json!(if address.address.addr().is_ipv4() { "4" } else { "6" });
    }
    json
}

fn route_json(route: &Route, version: SpecVersion) -> Value {
    if version >= SpecVersion::V1_1_0 {
        return json!(route);
    }
    let mut json = json!({"dst": route.dst.to_string()});
    if let Some(gateway) = route.gw {
        json["gw"] = json!(gateway.to_string());
    }
    json
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> AddResult {
        let interface = |name: &str, mac: &str, sandbox: &str| ResultInterface {
            name: name.to_owned(),
            mac: mac.to_owned(),
            mtu: 1500,
            sandbox: sandbox.to_owned(),
        };
        AddResult {
            interfaces: vec![
                interface("kl0", "6e:00:00:00:00:01", ""),
                interface("kl0123", "6e:00:00:00:00:02", ""),
                interface("eth0", "6a:6c:0a:58:00:05", "/run/netns/x"),
            ],
            addresses: vec![
                ResultAddress {
                    address: "10.88.0.5/16".parse().unwrap(),
                    gateway: "10.88.0.1".parse().ok(),
                    interface: 2,
                },
                ResultAddress { address: "fd00::5/64".parse().unwrap(), gateway: "fd00::1".parse().ok(), interface: 2 },
            ],
            routes: vec![
                Route { gw: Some("10.88.0.1".parse().unwrap()), ..Route::to("0.0.0.0/0".parse().unwrap()) },
                Route { scope: Some(0), table: Some(0), mtu: Some(1400), ..Route::to("10.9.0.0/16".parse().unwrap()) },
            ],
            dns: Dns::default(),
        }
    }

    #[track_caller]
    fn golden(version: SpecVersion, expected: &str) {
        let expected: Value = serde_json::from_str(expected).unwrap();
        assert_eq!(sample().to_json(version), expected);
    }

    #[test]
    fn version_0_4_0() {
        golden(
            SpecVersion::V0_4_0,
            r#"{"cniVersion":"0.4.0",
                "interfaces":[{"name":"kl0","mac":"6e:00:00:00:00:01"},{"name":"kl0123","mac":"6e:00:00:00:00:02"},
                              {"name":"eth0","mac":"6a:6c:0a:58:00:05","sandbox":"/run/netns/x"}],
                "ips":[{"version":"4","interface":2,"address":"10.88.0.5/16","gateway":"10.88.0.1"},
                       {"version":"6","interface":2,"address":"fd00::5/64","gateway":"fd00::1"}],
                "routes":[{"dst":"0.0.0.0/0","gw":"10.88.0.1"},{"dst":"10.9.0.0/16"}],
                "dns":{}}"#,
        );
    }

    #[test]
    fn version_1_0_0() {
        golden(
            SpecVersion::V1_0_0,
            r#"{"cniVersion":"1.0.0",
                "interfaces":[{"name":"kl0","mac":"6e:00:00:00:00:01"},{"name":"kl0123","mac":"6e:00:00:00:00:02"},
                              {"name":"eth0","mac":"6a:6c:0a:58:00:05","sandbox":"/run/netns/x"}],
                "ips":[{"interface":2,"address":"10.88.0.5/16","gateway":"10.88.0.1"},
                       {"interface":2,"address":"fd00::5/64","gateway":"fd00::1"}],
                "routes":[{"dst":"0.0.0.0/0","gw":"10.88.0.1"},{"dst":"10.9.0.0/16"}]}"#,
        );
    }

    #[test]
    fn version_1_1_0() {
        golden(
            SpecVersion::V1_1_0,
            r#"{"cniVersion":"1.1.0",
                "interfaces":[{"name":"kl0","mac":"6e:00:00:00:00:01","mtu":1500},{"name":"kl0123","mac":"6e:00:00:00:00:02","mtu":1500},
                              {"name":"eth0","mac":"6a:6c:0a:58:00:05","mtu":1500,"sandbox":"/run/netns/x"}],
                "ips":[{"interface":2,"address":"10.88.0.5/16","gateway":"10.88.0.1"},
                       {"interface":2,"address":"fd00::5/64","gateway":"fd00::1"}],
                "routes":[{"dst":"0.0.0.0/0","gw":"10.88.0.1"},{"dst":"10.9.0.0/16","mtu":1400,"table":0,"scope":0}]}"#,
        );
    }

    #[test]
    fn a_layer_2_result_has_interfaces_only() {
        let result = AddResult { addresses: vec![], routes: vec![], ..sample() };
        let json = result.to_json(SpecVersion::V1_1_0);
        assert_eq!(json.as_object().unwrap().keys().collect::<Vec<_>>(), ["cniVersion", "interfaces"]);
    }
}
