//! Results: what a plugin made, as `prevResult`, a delegated plugin and stdout have it, in every version of the spec.

use std::net::IpAddr;

use ipnet::IpNet;
use keelson_host::Problem;
use serde_json::{Map, Value, json};

use super::{
    dns::{Dns, parse_dns},
    fields::{Fields, not_a},
    route::{Route, parse_route},
    version::SpecVersion,
};

/// A result, as the newest version of the spec has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CniResult {
    pub(crate) interfaces: Vec<Interface>,
    pub(crate) addresses: Vec<Address>,
    pub(crate) routes: Vec<Route>,
    pub(crate) dns: Dns,
}

/// An interface that some plugin of the chain made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Interface {
    pub(crate) name: String,
    pub(crate) mac: String,
    /// Told from spec version 1.1.0 on.
    pub(crate) mtu: Option<u32>,
    /// Empty on the host.
    pub(crate) sandbox: String,
    /// Of interfaces that other plugins make: a vhost-user socket, a PCI function (1.1.0).
    pub(crate) socket_path: String,
    pub(crate) pci_id: String,
}

/// An address that some plugin of the chain gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) address: IpNet,
    pub(crate) gateway: Option<IpAddr>,
    /// Which of the interfaces has it; a delegated IPAM plugin doesn't know.
    pub(crate) interface: Option<usize>,
}

impl CniResult {
    /// Reads a result found at `path`; one without a version of its own is of `version`.
    pub(crate) fn parse(path: &str, value: &Value, version: SpecVersion) -> Result<Self, Problem> {
        let Some(object) = value.as_object() else { return Err(not_a(path, value, "an object")) };
        let top = Fields::below(path, object);
        let version = match top.string("cniVersion")?.filter(|text| !text.is_empty()) {
            None => version,
            Some(text) => SpecVersion::parse(text).ok_or_else(|| {
                Problem::new(top.path_of("cniVersion"), text, "is not a known version of the spec", "")
            })?,
        };
        if version.has_one_address_per_family() { Self::parse_oldest(&top) } else { Self::parse_lists(&top) }
    }

    /// Before 0.3.0: `ip4` and `ip6`, each with its routes.
    fn parse_oldest(top: &Fields<'_>) -> Result<Self, Problem> {
        let mut result = Self { dns: parse_dns(top.object("dns")?)?, ..Self::default() };
        for key in ["ip4", "ip6"] {
            let Some(ip) = top.object(key)? else { continue };
            let address = subnet(&ip, "ip")?;
            result.addresses.push(Address { address, gateway: ip.address("gateway")?, interface: None });
            for route in ip.objects("routes")? {
                result.routes.push(parse_route(&route)?);
            }
        }
        Ok(result)
    }

    fn parse_lists(top: &Fields<'_>) -> Result<Self, Problem> {
        let text = |fields: &Fields<'_>, key: &str| Ok(fields.string(key)?.unwrap_or_default().to_owned());
        let mut interfaces = Vec::new();
        for interface in top.objects("interfaces")? {
            interfaces.push(Interface {
                name: text(&interface, "name")?,
                mac: text(&interface, "mac")?,
                mtu: interface.number("mtu")?.filter(|mtu| *mtu != 0),
                sandbox: text(&interface, "sandbox")?,
                socket_path: text(&interface, "socketPath")?,
                pci_id: text(&interface, "pciID")?,
            });
        }
        let mut addresses = Vec::new();
        for ip in top.objects("ips")? {
            let address = subnet(&ip, "address")?;
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
            addresses.push(Address { address, gateway: ip.address("gateway")?, interface });
        }
        let routes = top.objects("routes")?.iter().map(parse_route).collect::<Result<_, _>>()?;
        Ok(Self { interfaces, addresses, routes, dns: parse_dns(top.object("dns")?)? })
    }

    /// What `self` and, after it, `later` made: the indices of `later` move behind the interfaces of `self`.
    pub(crate) fn followed_by(mut self, later: Self) -> Self {
        let before = self.interfaces.len();
        self.interfaces.extend(later.interfaces);
        self.addresses.extend(
            later
                .addresses
                .into_iter()
                .map(|address| Address { interface: address.interface.map(|index| index + before), ..address }),
        );
        self.routes.extend(later.routes);
        if !later.dns.is_empty() {
            self.dns = later.dns;
        }
        self
    }

    /// The JSON of `version`, for a result that is not [`unspeakable`] in it.
    pub(crate) fn to_json(&self, version: SpecVersion) -> Value {
        let mut result = Map::new();
        result.insert("cniVersion".to_owned(), json!(version.as_str()));
        if version.has_one_address_per_family() {
            for (key, is_ipv4) in [("ip4", true), ("ip6", false)] {
                if let Some(ip) = self.addresses.iter().find(|ip| ip.address.addr().is_ipv4() == is_ipv4) {
                    result.insert(key.to_owned(), self.oldest_json(ip));
                }
            }
        } else {
            let mut list = |key: &str, values: Vec<Value>| {
                if !values.is_empty() {
                    result.insert(key.to_owned(), Value::Array(values));
                }
            };
            list("interfaces", self.interfaces.iter().map(|interface| interface_json(interface, version)).collect());
            list("ips", self.addresses.iter().map(|address| address_json(address, version)).collect());
            list("routes", self.routes.iter().map(|route| route_json(route, version)).collect());
        }
        if version < SpecVersion::V1_0_0 || !self.dns.is_empty() {
            result.insert("dns".to_owned(), json!(self.dns));
        }
        Value::Object(result)
    }

    fn oldest_json(&self, ip: &Address) -> Value {
        let mut json = Map::new();
        json.insert("ip".to_owned(), json!(ip.address.to_string()));
        insert_address(&mut json, "gateway", ip.gateway);
        let is_ipv4 = ip.address.addr().is_ipv4();
        let routes = self.routes.iter().filter(|route| route.dst.addr().is_ipv4() == is_ipv4);
        let routes: Vec<Value> = routes.map(|route| route_json(route, SpecVersion::V0_2_0)).collect();
        if !routes.is_empty() {
            json.insert("routes".to_owned(), Value::Array(routes));
        }
        Value::Object(json)
    }
}

/// What keeps a result with so many addresses of each family from being told in `version`.
///
/// The oldest versions need an address, and have room for the first of each family only. libcni drops the others; a
/// container with an address that nobody is told of is worse than an error.
pub(crate) fn unspeakable(version: SpecVersion, ipv4: usize, ipv6: usize) -> Option<String> {
    if !version.has_one_address_per_family() {
        return None;
    }
    match (ipv4, ipv6) {
        (0, 0) => Some("cannot convert: no valid IP addresses".to_owned()),
        (0..=1, 0..=1) => None,
        _ => Some(format!("CNI version {version} does not support more than 1 address per family")),
    }
}

fn subnet(fields: &Fields<'_>, key: &str) -> Result<IpNet, Problem> {
    let text = fields.string(key)?.unwrap_or_default();
    text.parse().map_err(|_| Problem::new(fields.path_of(key), text, "is not an address with a prefix", ""))
}

fn insert_address(json: &mut Map<String, Value>, key: &str, address: Option<IpAddr>) {
    if let Some(address) = address {
        json.insert(key.to_owned(), json!(address.to_string()));
    }
}

fn insert_text(json: &mut Map<String, Value>, key: &str, text: &str) {
    if !text.is_empty() {
        json.insert(key.to_owned(), json!(text));
    }
}

/// An interface; its MTU and what it is made of are told from 1.1.0 on.
fn interface_json(interface: &Interface, version: SpecVersion) -> Value {
    let mut json = Map::new();
    json.insert("name".to_owned(), json!(interface.name));
    insert_text(&mut json, "mac", &interface.mac);
    insert_text(&mut json, "sandbox", &interface.sandbox);
    if version >= SpecVersion::V1_1_0 {
        if let Some(mtu) = interface.mtu {
            json.insert("mtu".to_owned(), json!(mtu));
        }
        insert_text(&mut json, "socketPath", &interface.socket_path);
        insert_text(&mut json, "pciID", &interface.pci_id);
    }
    Value::Object(json)
}

/// An address; before 1.0.0 it tells its family.
fn address_json(address: &Address, version: SpecVersion) -> Value {
    let mut json = Map::new();
    json.insert("address".to_owned(), json!(address.address.to_string()));
    insert_address(&mut json, "gateway", address.gateway);
    if let Some(interface) = address.interface {
        json.insert("interface".to_owned(), json!(interface));
    }
    if version < SpecVersion::V1_0_0 {
        json.insert("version".to_owned(), json!(if address.address.addr().is_ipv4() { "4" } else { "6" }));
    }
    Value::Object(json)
}

/// A route; all but its destination and gateway is told from 1.1.0 on.
fn route_json(route: &Route, version: SpecVersion) -> Value {
    if version >= SpecVersion::V1_1_0 {
        return json!(route);
    }
    let mut json = Map::new();
    json.insert("dst".to_owned(), json!(route.dst.to_string()));
    insert_address(&mut json, "gw", route.gw);
    Value::Object(json)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> CniResult {
        let interface = |name: &str, mac: &str, sandbox: &str| Interface {
            name: name.to_owned(),
            mac: mac.to_owned(),
            mtu: Some(1500),
            sandbox: sandbox.to_owned(),
            ..Interface::default()
        };
        let address = |text: &str, gateway: &str| Address {
            address: text.parse().unwrap(),
            gateway: gateway.parse().ok(),
            interface: Some(2),
        };
        CniResult {
            interfaces: vec![
                interface("kl0", "6e:00:00:00:00:01", ""),
                interface("kl0123", "6e:00:00:00:00:02", ""),
                interface("eth0", "6a:6c:0a:58:00:05", "/run/netns/x"),
            ],
            addresses: vec![address("10.88.0.5/16", "10.88.0.1"), address("fd00::5/64", "fd00::1")],
            routes: vec![
                Route { gw: "10.88.0.1".parse().ok(), ..Route::to("0.0.0.0/0".parse().unwrap()) },
                Route { scope: Some(0), table: Some(0), mtu: Some(1400), ..Route::to("10.9.0.0/16".parse().unwrap()) },
                Route::to("::/0".parse().unwrap()),
            ],
            dns: Dns::default(),
        }
    }

    #[track_caller]
    fn golden(versions: &[SpecVersion], expected: &str) {
        for version in versions {
            let mut expected: Value = serde_json::from_str(expected).unwrap();
            expected["cniVersion"] = json!(version.as_str());
            assert_eq!(sample().to_json(*version), expected);
        }
    }

    #[test]
    fn versions_0_1_0_and_0_2_0() {
        golden(
            &[SpecVersion::V0_1_0, SpecVersion::V0_2_0],
            r#"{"ip4":{"ip":"10.88.0.5/16","gateway":"10.88.0.1","routes":[{"dst":"0.0.0.0/0","gw":"10.88.0.1"},{"dst":"10.9.0.0/16"}]},
                "ip6":{"ip":"fd00::5/64","gateway":"fd00::1","routes":[{"dst":"::/0"}]},
                "dns":{}}"#,
        );
    }

    #[test]
    fn versions_0_3_0_to_0_4_0() {
        golden(
            &[SpecVersion::V0_3_0, SpecVersion::V0_3_1, SpecVersion::V0_4_0],
            r#"{"interfaces":[{"name":"kl0","mac":"6e:00:00:00:00:01"},{"name":"kl0123","mac":"6e:00:00:00:00:02"},
                              {"name":"eth0","mac":"6a:6c:0a:58:00:05","sandbox":"/run/netns/x"}],
                "ips":[{"version":"4","interface":2,"address":"10.88.0.5/16","gateway":"10.88.0.1"},
                       {"version":"6","interface":2,"address":"fd00::5/64","gateway":"fd00::1"}],
                "routes":[{"dst":"0.0.0.0/0","gw":"10.88.0.1"},{"dst":"10.9.0.0/16"},{"dst":"::/0"}],
                "dns":{}}"#,
        );
    }

    #[test]
    fn version_1_0_0() {
        golden(
            &[SpecVersion::V1_0_0],
            r#"{"interfaces":[{"name":"kl0","mac":"6e:00:00:00:00:01"},{"name":"kl0123","mac":"6e:00:00:00:00:02"},
                              {"name":"eth0","mac":"6a:6c:0a:58:00:05","sandbox":"/run/netns/x"}],
                "ips":[{"interface":2,"address":"10.88.0.5/16","gateway":"10.88.0.1"},
                       {"interface":2,"address":"fd00::5/64","gateway":"fd00::1"}],
                "routes":[{"dst":"0.0.0.0/0","gw":"10.88.0.1"},{"dst":"10.9.0.0/16"},{"dst":"::/0"}]}"#,
        );
    }

    #[test]
    fn version_1_1_0() {
        golden(
            &[SpecVersion::V1_1_0],
            r#"{"interfaces":[{"name":"kl0","mac":"6e:00:00:00:00:01","mtu":1500},{"name":"kl0123","mac":"6e:00:00:00:00:02","mtu":1500},
                              {"name":"eth0","mac":"6a:6c:0a:58:00:05","mtu":1500,"sandbox":"/run/netns/x"}],
                "ips":[{"interface":2,"address":"10.88.0.5/16","gateway":"10.88.0.1"},
                       {"interface":2,"address":"fd00::5/64","gateway":"fd00::1"}],
                "routes":[{"dst":"0.0.0.0/0","gw":"10.88.0.1"},{"dst":"10.9.0.0/16","mtu":1400,"table":0,"scope":0},{"dst":"::/0"}]}"#,
        );
    }

    #[test]
    fn a_layer_2_result_has_interfaces_only_and_none_in_the_oldest_versions() {
        let result = CniResult { addresses: vec![], routes: vec![], ..sample() };
        let json = result.to_json(SpecVersion::V1_1_0);
        assert_eq!(json.as_object().unwrap().keys().collect::<Vec<_>>(), ["cniVersion", "interfaces"]);
        for version in SpecVersion::ALL {
            let expected = "cannot convert: no valid IP addresses".to_owned();
            assert_eq!(unspeakable(version, 0, 0), version.has_one_address_per_family().then_some(expected));
        }
    }

    #[test]
    fn the_oldest_versions_hold_one_address_of_each_family() {
        for (ipv4, ipv6) in [(1, 0), (0, 1), (1, 1)] {
            assert_eq!(unspeakable(SpecVersion::V0_1_0, ipv4, ipv6), None);
        }
        for (ipv4, ipv6) in [(2, 0), (1, 2)] {
            let expected = "CNI version 0.2.0 does not support more than 1 address per family";
            assert_eq!(unspeakable(SpecVersion::V0_2_0, ipv4, ipv6).unwrap(), expected);
            assert_eq!(unspeakable(SpecVersion::V0_3_0, ipv4, ipv6), None);
        }
    }

    #[test]
    fn what_follows_keeps_pointing_at_its_own_interfaces() {
        let both = sample().followed_by(sample());
        let indices: Vec<_> = both.addresses.iter().map(|address| address.interface.unwrap()).collect();
        assert_eq!((both.interfaces.len(), indices), (6, vec![2, 2, 5, 5]));
        // The name service of the last one that has any.
        let dns = Dns { domain: Some("cluster.local".to_owned()), ..Dns::default() };
        let named = CniResult { dns: dns.clone(), ..sample() };
        assert_eq!(named.clone().followed_by(sample()).dns, dns);
        assert_eq!(sample().followed_by(named).dns, dns);
    }

    #[test]
    fn an_index_past_the_interfaces_is_refused() {
        let value = json!({"interfaces": [{"name": "eth0"}], "ips": [{"address": "10.0.0.2/24", "interface": 1}]});
        let error = CniResult::parse("prevResult", &value, SpecVersion::V1_0_0).unwrap_err().to_string();
        assert_eq!(error, "prevResult.ips[0].interface: \"1\" is no index into the 1 interfaces");
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "\\PC{0,30}", number in any::<i64>(), version in prop::sample::select(&SpecVersion::ALL)) {
            for value in [
                json!(text),
                json!({"ips": [{"address": text, "interface": number}]}),
                json!({"ip4": {"ip": text, "gateway": text}}),
                json!({"interfaces": text}),
                json!({"routes": [{"dst": text, "scope": number}]}),
                json!({"cniVersion": text}),
            ] {
                let _ = CniResult::parse("prevResult", &value, version);
            }
        }

        /// What is printed in a version is read back as far as that version can tell.
        #[test]
        fn what_is_printed_is_read(version in prop::sample::select(&SpecVersion::ALL)) {
            let printed = sample().to_json(version);
            let read = CniResult::parse("", &printed, SpecVersion::NEWEST).unwrap();
            prop_assert_eq!(read.to_json(version), printed);
        }
    }
}
