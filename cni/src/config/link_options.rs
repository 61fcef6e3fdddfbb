//! What a network may ask of its links beyond addresses and routes.

use keelson_host::Problem;
use serde_json::Value;

use super::{
    fields::Fields,
    names::interface_name_fault,
    source_routing::{self, SourceRouting},
    sysctl::{self, Switch},
    vlan::{self, DEFAULT_VLAN, Vlans},
};

/// Options of the bridge and of the container's interface; by default there are none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LinkOptions {
    pub(crate) vlans: Option<Vlans>,
    pub(crate) is_promiscuous: bool,
    /// Whether the MTU is that of the link by which packets leave the node.
    pub(crate) has_automatic_mtu: bool,
    /// Whether IPv6 addresses are used only when duplicate address detection found nobody else.
    pub(crate) detects_duplicates: bool,
    /// Whether the container's interface is left down.
    pub(crate) is_left_down: bool,
    pub(crate) source_routing: Option<SourceRouting>,
    pub(crate) switches: Vec<Switch>,
}

/// What the rest of the config says that these options depend on.
pub(super) struct Surroundings<'a> {
    /// `None` in routed mode.
    pub(super) bridge: Option<&'a str>,
    pub(super) is_gateway: bool,
    pub(super) has_addresses: bool,
    /// `args.cni`.
    pub(super) args: Option<&'a Fields<'a>>,
}

/// Whether `mtu` is the word for an automatic one.
pub(super) fn has_automatic_mtu(top: &Fields<'_>) -> bool {
    matches!(top.get("mtu"), Some(Value::String(word)) if word == "auto")
}

pub(super) fn parse(top: &Fields<'_>, around: &Surroundings<'_>) -> Result<LinkOptions, Problem> {
    let options = LinkOptions {
        vlans: vlan::parse(top)?,
        is_promiscuous: top.boolean("promiscMode")?,
        has_automatic_mtu: has_automatic_mtu(top),
        detects_duplicates: top.boolean("enabledad")?,
        is_left_down: top.boolean("disableContainerInterface")?,
        source_routing: source_routing::parse(top)?,
        switches: sysctl::parse(top, around.args)?,
    };
    if options.is_promiscuous && top.boolean("hairpinMode")? {
        let wrong = "can't be set together with hairpinMode: a Pod would get its own frames twice";
        return Err(Problem::new("promiscMode", true, wrong, "remove one of the two"));
    }
    if options.is_left_down && around.has_addresses {
        let wrong = "can't be set together with ipam: an interface that is down has no use for addresses";
        return Err(Problem::new("disableContainerInterface", true, wrong, "remove one of the two"));
    }
    if options.source_routing.is_some() && !around.has_addresses {
        return Err(Problem::new("sbr", true, "needs addresses to route by", "remove it, or add ipam"));
    }
    match (&options.vlans, around.bridge) {
        (Some(vlans), Some(bridge)) if around.is_gateway && vlans.untagged != DEFAULT_VLAN => {
            let name = gateway_name(bridge, vlans);
            if let Some(wrong) = interface_name_fault(&name) {
                let wrong = format!("together with the VLAN names the gateway's link, {name}, which {wrong}");
                return Err(Problem::new("bridge", bridge, wrong, "take a shorter name"));
            }
        }
        (Some(vlans), None) => {
            let remedy = "remove the key, or take mode \"bridge\"";
            return Err(Problem::new(
                "vlan",
                vlans.untagged,
                "is about a bridge, and mode \"routed\" has none",
                remedy,
            ));
        }
        _ => {}
    }
    Ok(options)
}

/// The name of the link that carries a VLAN's gateway addresses, the reference bridge's.
pub(crate) fn gateway_name(bridge: &str, vlans: &Vlans) -> String {
    format!("{bridge}.{}", vlans.untagged)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(top: &Value, bridge: Option<&str>, has_addresses: bool) -> Result<LinkOptions, String> {
        let around = Surroundings { bridge, is_gateway: true, has_addresses, args: None };
        parse(&Fields::top(top.as_object().unwrap()), &around).map_err(|problem| problem.to_string())
    }

    #[test]
    fn nothing_is_asked_of_links_by_default() {
        let nothing = json!({"promiscMode": false, "vlan": 0, "enabledad": false, "sysctl": {}, "mtu": 1400});
        assert_eq!(read(&nothing, Some("kl0"), true), Ok(LinkOptions::default()));
        assert!(read(&json!({"mtu": "auto"}), Some("kl0"), true).unwrap().has_automatic_mtu);
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        for (top, bridge, has_addresses, expected) in [
            (
                json!({"promiscMode": true, "hairpinMode": true}),
                Some("kl0"),
                true,
                "promiscMode: \"true\" can't be set",
            ),
            (
                json!({"disableContainerInterface": true}),
                Some("kl0"),
                true,
                "disableContainerInterface: \"true\" can't",
            ),
            (json!({"sbr": true}), Some("kl0"), false, "sbr: \"true\" needs addresses"),
            (json!({"vlan": 100}), None, true, "vlan: \"100\" is about a bridge"),
            (json!({"vlan": 100}), Some("twelve-bytes"), true, "bridge: \"twelve-bytes\" together with the VLAN"),
        ] {
            let error = read(&top, bridge, has_addresses).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
        assert!(read(&json!({"vlan": 100}), Some("eleven-byte"), true).is_ok());
        assert!(read(&json!({"vlanTrunk": [{"id": 100}]}), Some("fifteen-bytes-0"), true).is_ok());
    }
}
