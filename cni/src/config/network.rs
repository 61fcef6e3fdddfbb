//! The network config on stdin.
//!
//! Parsed in two steps, as the verbs need different parts: [`NetworkConfig::parse`] reads what names the network and its
//! records, which DEL and GC must be able to do after somebody broke the rest; [`NetworkConfig::attachment`] reads and
//! checks everything that ADD, CHECK and STATUS work by.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use keelson_host::{Problem, Problems};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    fields::{ADDRESS_REMEDY, Fields, not_a, objects},
    invocation::{AttachmentKey, CniArgs},
    mac::Mac,
    names::{identifier_fault, interface_name_fault},
    range::{Range, RangeSet, RangeText, check_sets},
    version::SpecVersion,
};

/// Where records live unless `ipam.dataDir` says otherwise.
const DEFAULT_DATA_DIR: &str = "/run/keelson/network";

/// The reference bridge's default.
const DEFAULT_BRIDGE: &str = "cni0";

/// The type that selects the built-in IPAM.
const OWN_TYPE: &str = "keelson-cni";

/// The main routing table (rtnetlink(7)), where a route without a table goes.
const MAIN_TABLE: u32 = 254;

/// rtnetlink(7): from this scope on, a route has no gateway.
const LINK_SCOPE: u8 = 253;

/// What is wrong with a network config.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("failed to decode the network config: {0}")]
    Decode(String),
    #[error("incompatible CNI versions")]
    Version(String),
    #[error("invalid network config: {}", faults(.0))]
    Invalid(Problems),
    /// The spec asks for key and value in the message.
    #[error("unsupported field in the network config: {}", fault(.0))]
    Unsupported(Problem),
}

/// Where, which value, and what is wrong with it, on one line; the remedies go into the error's details.
fn faults(problems: &Problems) -> String {
    let faults: Vec<String> = problems.0.iter().map(fault).collect();
    faults.join("; ")
}

fn fault(problem: &Problem) -> String {
    Problem { remedy: String::new(), ..problem.clone() }.to_string()
}

impl From<Problem> for ConfigError {
    fn from(problem: Problem) -> Self {
        Self::Invalid(problem.into())
    }
}

impl From<Problems> for ConfigError {
    fn from(problems: Problems) -> Self {
        Self::Invalid(problems)
    }
}

/// A network config whose version, name and place of records are known to be right.
#[derive(Clone, Debug)]
pub(crate) struct NetworkConfig {
    pub(crate) version: SpecVersion,
    pub(crate) name: String,
    pub(crate) data_dir: PathBuf,
    document: Map<String, Value>,
}

/// How Pods are attached to the network: a wholly checked config.
#[derive(Clone, Debug)]
pub(crate) struct Attachment {
    pub(crate) bridge: String,
    /// Whether the bridge carries the ranges' gateway addresses.
    pub(crate) is_gateway: bool,
    /// Whether addresses of the bridge that aren't the gateway's are removed.
    pub(crate) force_address: bool,
    pub(crate) masquerade: bool,
    /// `None` takes the bridge's.
    pub(crate) mtu: Option<u32>,
    pub(crate) hairpin: bool,
    pub(crate) isolated: bool,
    /// One address from each set; empty for a layer-2 attachment.
    pub(crate) sets: Vec<RangeSet>,
    pub(crate) routes: Vec<Route>,
    pub(crate) dns: Dns,
    /// The Ethernet address asked for by config or runtime.
    pub(crate) mac: Option<Mac>,
    /// Addresses asked for; each is in one of `sets`, no two in the same.
    pub(crate) requested: Vec<IpAddr>,
}

/// A route inside the Pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Route {
    pub(crate) dst: IpNet,
    /// `None` takes the gateway of the address of that family.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) gw: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) mtu: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) advmss: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) priority: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) table: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) scope: Option<u8>,
}

/// Name servers as the spec has them; the runtime, not the plugin, puts them into the container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Dns {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) nameservers: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) domain: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) search: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) options: Vec<String>,
}

impl Dns {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The `cniVersion` of a document, if it is an object that has one; `VERSION` echoes it, known or not.
pub(crate) fn stated_version(text: &[u8]) -> Result<Option<String>, ConfigError> {
    let document = parse_object(text)?;
    match Fields::top(&document).get("cniVersion") {
        None => Ok(None),
        Some(Value::String(version)) => Ok(Some(version.clone())),
        Some(other) => Err(ConfigError::Decode(not_a("cniVersion", other, "a string").to_string())),
    }
}

fn parse_object(text: &[u8]) -> Result<Map<String, Value>, ConfigError> {
    serde_json::from_slice(text).map_err(|error| ConfigError::Decode(error.to_string()))
}

impl NetworkConfig {
    /// Reads version, name and `ipam.dataDir`.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, ConfigError> {
        // A config without a version is of 0.1.0 (the spec's section 1).
        let stated = stated_version(text)?.filter(|version| !version.is_empty()).unwrap_or_else(|| "0.1.0".to_owned());
        let version = SpecVersion::parse(&stated).ok_or(ConfigError::Version(stated))?;
        let document = parse_object(text)?;
        let top = Fields::top(&document);
        let name = top.string("name")?.unwrap_or_default().to_owned();
        if name.is_empty() {
            return Err(Problem::new("name", "", "missing network name", "give the network a name").into());
        }
        if let Some(wrong) = identifier_fault(&name) {
            let remedy = "use letters, digits, '_', '.' and '-', starting with a letter or digit";
            return Err(Problem::new("name", &name, wrong, remedy).into());
        }
        let stated_dir = match top.object("ipam")? {
            Some(ipam) => ipam.string("dataDir")?.filter(|directory| !directory.is_empty()),
            None => None,
        };
        let data_dir = PathBuf::from(stated_dir.unwrap_or(DEFAULT_DATA_DIR));
        if !data_dir.is_absolute() {
            let problem = Problem::new(
                "ipam.dataDir",
                data_dir.display(),
                "is not an absolute path",
                format!("give the path from the root, such as {DEFAULT_DATA_DIR}"),
            );
            return Err(problem.into());
        }
        Ok(Self { version, name, data_dir, document })
    }

    /// Reads and checks how Pods are attached; `args` may ask for addresses.
    pub(crate) fn attachment(&self, args: &CniArgs) -> Result<Attachment, ConfigError> {
        let top = Fields::top(&self.document);
        refuse_unsupported(&top)?;
        let empty = Map::new();
        let runtime = top.object("runtimeConfig")?.unwrap_or_else(|| Fields::below("runtimeConfig", &empty));
        let bridge = top.string("bridge")?.filter(|name| !name.is_empty()).unwrap_or(DEFAULT_BRIDGE).to_owned();
        if let Some(wrong) = interface_name_fault(&bridge) {
            let remedy = "use 1 to 15 characters without '/', ':' and spaces";
            return Err(Problem::new("bridge", bridge, wrong, remedy).into());
        }
        let ipam = built_in_ipam(&top)?;
        let mut sets = Vec::new();
        let mut routes = Vec::new();
        let mut dns = parse_dns(top.object("dns")?)?;
        if let Some(ipam) = &ipam {
            sets = parse_sets(ipam, &runtime)?;
            routes = parse_routes(ipam)?;
            if let Some(path) = ipam.string("resolvConf")?.filter(|path| !path.is_empty()) {
                dns = read_resolv_conf(&ipam.path_of("resolvConf"), Path::new(path))?;
            }
        }
        let is_default_gateway = top.boolean("isDefaultGateway")?;
        if is_default_gateway {
            for (is_ipv4, default) in [(true, IpNet::default()), (false, ipv6_default())] {
                let wanted = sets.iter().any(|set| set.is_ipv4() == is_ipv4);
                if wanted && !routes.iter().any(|route| route.dst == default) {
                    routes.push(Route::to(default));
                }
            }
        }
        check_routes(&routes, &sets)?;
        let mtu = top.number("mtu")?.filter(|mtu| *mtu != 0);
        let smallest = if sets.iter().any(|set| !set.is_ipv4()) { 1280 } else { 68 };
        if let Some(mtu) = mtu.filter(|mtu| !(smallest..=65535).contains(mtu)) {
            let remedy = format!("take {smallest} to 65535, or 0 for the bridge's");
            return Err(Problem::new("mtu", mtu, "is out of range", remedy).into());
        }
        let requested = requested_addresses(&top, &runtime, args, &sets)?;
        Ok(Attachment {
            bridge,
            is_gateway: top.boolean("isGateway")? || is_default_gateway,
            force_address: top.boolean("forceAddress")?,
            masquerade: top.boolean("ipMasq")? && !sets.is_empty(),
            mtu,
            hairpin: top.boolean("hairpinMode")?,
            isolated: top.boolean("portIsolation")?,
            sets,
            routes,
            dns,
            mac: requested_mac(&top, &runtime, args)?,
            requested,
        })
    }

    /// The attachments that the runtime says are valid; `None` if it says nothing, which is not the same as none.
    pub(crate) fn valid_attachments(&self) -> Result<Option<Vec<AttachmentKey>>, ConfigError> {
        let top = Fields::top(&self.document);
        // An early draft of the spec had the second name, and libcni sends both.
        let Some(path) =
            ["cni.dev/valid-attachments", "cni.dev/attachments"].into_iter().find(|key| top.get(key).is_some())
        else {
            return Ok(None);
        };
        let mut keys = Vec::new();
        for attachment in objects(path, top.array(path)?)? {
            let text = |key: &str| match attachment.string(key)? {
                Some(text) if !text.is_empty() => Ok(text.to_owned()),
                _ => Err(Problem::new(attachment.path_of(key), "", "is missing", "name the attachment in full")),
            };
            keys.push(AttachmentKey { container_id: text("containerID")?, ifname: text("ifname")? });
        }
        Ok(Some(keys))
    }

    /// The final result of the ADD chain, which CHECK is about.
    pub(crate) fn prev_result(&self) -> Option<&Value> {
        Fields::top(&self.document).get("prevResult")
    }
}

impl Route {
    /// The plain route to `dst` by the gateway of its family.
    pub(crate) fn to(dst: IpNet) -> Self {
        Self { dst, gw: None, mtu: None, advmss: None, priority: None, table: None, scope: None }
    }

    /// Whether it has no gateway, and gets none: what it leads to is on the link itself.
    pub(crate) fn is_on_link(&self) -> bool {
        self.gw.is_none() && self.scope.is_some_and(|scope| scope >= LINK_SCOPE)
    }

    /// The table that it is in.
    pub(crate) fn table(&self) -> u32 {
        // 0 is the kernel's word for "no table given".
        self.table.filter(|table| *table != 0).unwrap_or(MAIN_TABLE)
    }

    /// Whether the kernel takes the two for one route, where `default` is the gateway of those that name none.
    fn is_the_same(&self, other: &Self, default: IpAddr) -> bool {
        let key = |route: &Self| {
            let gateway = (!route.is_on_link()).then(|| route.gw.unwrap_or(default));
            (route.dst, gateway, route.priority, route.table())
        };
        key(self) == key(other)
    }
}

pub(crate) fn ipv6_default() -> IpNet {
    IpNet::V6(ipnet::Ipv6Net::default())
}

/// Refuses what the reference bridge would do and this plugin doesn't do yet: ignoring it would build another network
/// than the one that was asked for.
fn refuse_unsupported(top: &Fields<'_>) -> Result<(), ConfigError> {
    for key in ["promiscMode", "macspoofchk", "enabledad", "disableContainerInterface", "preserveDefaultVlan"] {
        if top.boolean(key)? {
            return Err(unsupported(&top.path_of(key), true));
        }
    }
    if let Some(vlan) = top.number("vlan")?.filter(|vlan| *vlan != 0) {
        return Err(unsupported("vlan", vlan));
    }
    if let Some(trunk) = top.get("vlanTrunk").filter(|_| !matches!(top.array("vlanTrunk"), Ok([]))) {
        return Err(unsupported("vlanTrunk", trunk));
    }
    // Masquerading is always done with nftables; an explicit wish for something else isn't met silently.
    if let Some(backend) = top.string("ipMasqBackend")?.filter(|backend| !matches!(*backend, "" | "nftables")) {
        return Err(unsupported("ipMasqBackend", backend));
    }
    if let Some(runtime) = top.object("runtimeConfig")? {
        if let Some(mappings) = runtime.get("portMappings").filter(|_| !matches!(runtime.array("portMappings"), Ok([])))
        {
            return Err(unsupported("runtimeConfig.portMappings", mappings));
        }
        if runtime.object("bandwidth")?.is_some_and(|bandwidth| !bandwidth.is_empty()) {
            return Err(unsupported("runtimeConfig.bandwidth", "..."));
        }
    }
    Ok(())
}

fn unsupported(path: &str, value: impl std::fmt::Display) -> ConfigError {
    ConfigError::Unsupported(Problem::new(path, value, "is not supported yet", "remove the key"))
}

/// The `ipam` object if it selects the built-in IPAM, `None` for a layer-2 attachment.
fn built_in_ipam<'a>(top: &Fields<'a>) -> Result<Option<Fields<'a>>, ConfigError> {
    let Some(ipam) = top.object("ipam")?.filter(|ipam| !ipam.is_empty()) else { return Ok(None) };
    let has_ranges = ipam.get("ranges").is_some() || ipam.get("subnet").is_some();
    match ipam.string("type")? {
        None | Some("") if has_ranges => Ok(Some(ipam)),
        None | Some("") => {
            let remedy = format!("give it ranges, or remove it for a layer-2 attachment; its own type is {OWN_TYPE}");
            Err(Problem::new("ipam", "", "has neither type nor ranges", remedy).into())
        }
        Some(OWN_TYPE) => Ok(Some(ipam)),
        Some(other) => Err(ConfigError::Unsupported(Problem::new(
            "ipam.type",
            other,
            "would be delegated to another plugin, which is not supported yet",
            format!("use {OWN_TYPE:?}, or ranges and no type"),
        ))),
    }
}

/// The runtime's ranges first, then `subnet` with its companions, then `ranges`: host-local's order.
fn parse_sets(ipam: &Fields<'_>, runtime: &Fields<'_>) -> Result<Vec<RangeSet>, ConfigError> {
    let mut lists = range_lists(runtime, "ipRanges")?;
    if ipam.string("subnet")?.is_some() {
        lists.push(vec![ipam.clone()]);
    }
    lists.extend(range_lists(ipam, "ranges")?);
    let mut sets = Vec::new();
    for list in &lists {
        sets.push(RangeSet(list.iter().map(parse_range).collect::<Result<_, _>>()?));
    }
    let problems = check_sets(&sets, &ipam.path_of("ranges"), |set, range| lists[set][range].path_of("subnet"));
    Ok(problems.into_result(sets)?)
}

/// The lists of range objects in the list at `key`.
fn range_lists<'a>(fields: &Fields<'a>, key: &str) -> Result<Vec<Vec<Fields<'a>>>, Problem> {
    let lists = fields.array(key)?.iter().enumerate().map(|(index, value)| {
        let path = format!("{}[{index}]", fields.path_of(key));
        objects(&path, value.as_array().ok_or_else(|| not_a(&path, value, "a list"))?)
    });
    lists.collect()
}

fn parse_range(range: &Fields<'_>) -> Result<Range, Problem> {
    let owned = |key: &str| Ok(range.string(key)?.filter(|text| !text.is_empty()).map(str::to_owned));
    let text = RangeText {
        subnet: range.string("subnet")?.unwrap_or_default().to_owned(),
        first: owned("rangeStart")?,
        last: owned("rangeEnd")?,
        gateway: owned("gateway")?,
    };
    Range::new(range.path(), &range.path_of("subnet"), &text)
}

fn parse_routes(ipam: &Fields<'_>) -> Result<Vec<Route>, Problem> {
    ipam.objects("routes")?.iter().map(parse_route).collect()
}

/// Finds what the kernel would refuse after half of the attachment is made: a route of a family without addresses, to
/// the same place twice, or by a gateway that can't be reached.
fn check_routes(routes: &[Route], sets: &[RangeSet]) -> Result<(), Problem> {
    for (index, route) in routes.iter().enumerate() {
        let problem = |key: &str, value: &dyn std::fmt::Display, wrong: &str, remedy: &str| {
            Err(Problem::new(format!("ipam.routes[{index}].{key}"), value, wrong, remedy))
        };
        let is_ipv4 = route.dst.addr().is_ipv4();
        let mut ranges = sets.iter().flat_map(|set| &set.0).filter(|range| range.subnet.addr().is_ipv4() == is_ipv4);
        let Some(first) = ranges.clone().next() else {
            let wrong = "is of a family that no range gives addresses of";
            return problem("dst", &route.dst, wrong, "remove the route or add a range");
        };
        let earlier = &routes[..index];
        if earlier.iter().any(|other| other.is_the_same(route, first.gateway)) {
            return problem("dst", &route.dst, "is the route of an earlier entry", "remove one of the two");
        }
        let Some(gw) = route.gw else { continue };
        let is_link_local = matches!(gw, IpAddr::V6(gw) if gw.is_unicast_link_local());
        let by_route = || earlier.iter().any(|other| other.is_on_link() && other.dst.contains(&gw));
        if !is_link_local && !ranges.any(|range| range.subnet.contains(&gw)) && !by_route() {
            let remedy =
                "take an address of a subnet of the ranges, or put a route with scope 253 (link) to it in front";
            return problem("gw", &gw, "is in no subnet that the container is on", remedy);
        }
    }
    Ok(())
}

/// Reads one route of a config or a previous result.
pub(crate) fn parse_route(route: &Fields<'_>) -> Result<Route, Problem> {
    let text = route.string("dst")?.unwrap_or_default();
    let Ok(dst) = text.parse::<IpNet>() else {
        let remedy = "write it as 0.0.0.0/0 or 10.0.0.0/8";
        return Err(Problem::new(route.path_of("dst"), text, "is not a subnet", remedy));
    };
    let gw = route.address("gw")?;
    if let Some(gw) = gw.filter(|gw| gw.is_ipv4() != dst.addr().is_ipv4()) {
        return Err(Problem::new(
            route.path_of("gw"),
            gw,
            format!("is of another family than {dst}"),
            "give a gateway of the route's family",
        ));
    }
    let scope = match route.number("scope")? {
        None => None,
        Some(scope) => Some(u8::try_from(scope).map_err(|_| {
            Problem::new(route.path_of("scope"), scope, "is not a scope", "take 0 (global), 253 (link) or 254 (host)")
        })?),
    };
    let positive = |key: &str| Ok(route.number(key)?.filter(|number| *number != 0));
    Ok(Route {
        dst: dst.trunc(),
        gw,
        mtu: positive("mtu")?,
        advmss: positive("advmss")?,
        priority: positive("priority")?,
        table: route.number("table")?,
        scope,
    })
}

fn parse_dns(dns: Option<Fields<'_>>) -> Result<Dns, Problem> {
    let Some(dns) = dns else { return Ok(Dns::default()) };
    Ok(Dns {
        nameservers: dns.strings("nameservers")?,
        domain: dns.string("domain")?.filter(|domain| !domain.is_empty()).map(str::to_owned),
        search: dns.strings("search")?,
        options: dns.strings("options")?,
    })
}

/// Reads a resolv.conf(5); `path` is the key that names it.
fn read_resolv_conf(path: &str, file: &Path) -> Result<Dns, Problem> {
    let text = std::fs::read_to_string(file).map_err(|error| {
        Problem::new(path, file.display(), format!("can't be read ({error})"), "name a file in resolv.conf's format")
    })?;
    let mut dns = Dns::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let keyword = words.next().unwrap_or_default();
        let values = words.map(str::to_owned);
        match keyword {
            "nameserver" => dns.nameservers.extend(values.take(1)),
            "domain" => dns.domain = values.take(1).next(),
            "search" => dns.search = values.collect(),
            "options" => dns.options.extend(values),
            _ => {}
        }
    }
    Ok(dns)
}

/// The Ethernet address asked for: the runtime's wish wins over `args`, that over `CNI_ARGS`.
fn requested_mac(top: &Fields<'_>, runtime: &Fields<'_>, args: &CniArgs) -> Result<Option<Mac>, Problem> {
    let cni = cni_args(top)?;
    let candidates = [
        (runtime.path_of("mac"), runtime.string("mac")?),
        ("args.cni.mac".to_owned(), cni.as_ref().map(|cni| cni.string("mac")).transpose()?.flatten()),
        ("CNI_ARGS MAC".to_owned(), args.mac.as_deref()),
    ];
    let Some((path, text)) =
        candidates.into_iter().find_map(|(path, text)| Some((path, text.filter(|t| !t.is_empty())?)))
    else {
        return Ok(None);
    };
    let mac = Mac::parse(text).ok_or_else(|| {
        Problem::new(path, text, "is not the Ethernet address of an interface", "write it as 02:00:5e:10:00:01")
    })?;
    Ok(Some(mac))
}

/// The addresses asked for by `runtimeConfig.ips`, `args.cni.ips` and `CNI_ARGS` `IP`, each with or without a prefix.
fn requested_addresses(
    top: &Fields<'_>,
    runtime: &Fields<'_>,
    args: &CniArgs,
    sets: &[RangeSet],
) -> Result<Vec<IpAddr>, Problem> {
    let mut texts: Vec<(&str, String)> = Vec::new();
    texts.extend(runtime.strings("ips")?.into_iter().map(|text| ("runtimeConfig.ips", text)));
    if let Some(cni) = cni_args(top)? {
        texts.extend(cni.strings("ips")?.into_iter().map(|text| ("args.cni.ips", text)));
    }
    if let Some(ips) = &args.ip {
        texts.extend(ips.split(',').map(|text| ("CNI_ARGS IP", text.to_owned())));
    }
    let mut addresses: Vec<IpAddr> = Vec::new();
    let mut taken_sets = Vec::new();
    for (path, text) in texts {
        let bare = text.split('/').next().unwrap_or_default();
        let Ok(address) = bare.trim().parse::<IpAddr>() else {
            return Err(Problem::new(path, text, "is not an IP address", ADDRESS_REMEDY));
        };
        let Some(set) = sets.iter().position(|set| set.range_of(address).is_some()) else {
            return Err(Problem::new(path, text, "is in no range", "ask for an address that a range offers"));
        };
        if addresses.contains(&address) {
            continue;
        }
        if taken_sets.contains(&set) {
            let wrong = "is the second one asked for from the same range set";
            return Err(Problem::new(path, text, wrong, "ask for one address of each set"));
        }
        taken_sets.push(set);
        addresses.push(address);
    }
    Ok(addresses)
}

fn cni_args<'a>(top: &Fields<'a>) -> Result<Option<Fields<'a>>, Problem> {
    match top.object("args")? {
        Some(args) => args.object("cni"),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn config(mut value: Value) -> Result<Attachment, ConfigError> {
        value["cniVersion"] = json!("1.1.0");
        value["name"] = json!("net");
        NetworkConfig::parse(value.to_string().as_bytes())?.attachment(&CniArgs::default())
    }

    #[track_caller]
    fn invalid(value: Value, expected: &str) {
        match config(value) {
            Err(ConfigError::Invalid(problems)) => assert_eq!(problems.to_string(), expected),
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn unsupported(value: Value, expected: &str) {
        match config(value) {
            Err(ConfigError::Unsupported(problem)) => assert_eq!(problem.to_string(), expected),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn versions_are_matched_exactly() {
        let parse = |text: &str| NetworkConfig::parse(text.as_bytes());
        for version in SpecVersion::ALL {
            assert!(parse(&json!({"cniVersion": version.as_str(), "name": "n"}).to_string()).is_ok());
        }
        for (text, version) in [
            (r#"{"cniVersion": "9.9.9", "name": "n"}"#, "9.9.9"),
            (r#"{"cniVersion": "1.1", "name": "n"}"#, "1.1"),
            (r#"{"name": "n"}"#, "0.1.0"),
        ] {
            assert_eq!(parse(text).unwrap_err(), ConfigError::Version(version.to_owned()));
        }
        for text in ["", "{", "[]", "7", r#"{"cniVersion": 1}"#, "{} {}"] {
            assert!(matches!(parse(text), Err(ConfigError::Decode(_))), "{text}");
        }
    }

    #[test]
    fn an_absent_or_empty_ipam_is_a_layer_2_attachment() {
        for value in [json!({}), json!({"ipam": {}}), json!({"ipam": null})] {
            assert!(config(value).unwrap().sets.is_empty());
        }
        invalid(
            json!({"ipam": {"dataDir": "/x"}}),
            "ipam: has neither type nor ranges; give it ranges, or remove it for a layer-2 attachment; its own type is keelson-cni",
        );
        unsupported(
            json!({"ipam": {"type": "host-local", "subnet": "10.0.0.0/24"}}),
            "ipam.type: \"host-local\" would be delegated to another plugin, which is not supported yet; use \"keelson-cni\", or ranges and no type",
        );
    }

    #[test]
    fn ranges_come_in_host_locals_ways_and_order() {
        let found = config(json!({
            "isDefaultGateway": true,
            "IPAM": {
                "Type": "keelson-cni",
                "subnet": "10.1.0.0/24",
                "ranges": [[{"SUBNET": "10.2.0.0/24", "rangeStart": "10.2.0.9"}, {"subnet": "10.3.0.0/24"}], [{"subnet": "fd00::/64"}]],
                "routes": [{"dst": "10.9.0.0/16", "gw": "10.1.0.7"}],
            },
            "runtimeConfig": {"ipRanges": [[{"subnet": "10.4.0.0/24"}]]},
        }))
        .unwrap();
        let subnets: Vec<Vec<String>> =
            found.sets.iter().map(|set| set.0.iter().map(|range| range.subnet.to_string()).collect()).collect();
        assert_eq!(
            subnets,
            [vec!["10.4.0.0/24"], vec!["10.1.0.0/24"], vec!["10.2.0.0/24", "10.3.0.0/24"], vec!["fd00::/64"]]
        );
        let routes: Vec<String> = found.routes.iter().map(|route| route.dst.to_string()).collect();
        assert_eq!(routes, ["10.9.0.0/16", "0.0.0.0/0", "::/0"]);
        assert!(found.is_gateway);
    }

    #[test]
    fn what_would_be_ignored_is_refused() {
        unsupported(json!({"vlan": 100}), "vlan: \"100\" is not supported yet; remove the key");
        unsupported(
            json!({"vlanTrunk": [{"id": 1}]}),
            "vlanTrunk: \"[{\\\"id\\\":1}]\" is not supported yet; remove the key",
        );
        unsupported(json!({"promiscMode": true}), "promiscMode: \"true\" is not supported yet; remove the key");
        unsupported(
            json!({"ipMasqBackend": "iptables"}),
            "ipMasqBackend: \"iptables\" is not supported yet; remove the key",
        );
        unsupported(
            json!({"runtimeConfig": {"portMappings": [{"hostPort": 80}]}}),
            "runtimeConfig.portMappings: \"[{\\\"hostPort\\\":80}]\" is not supported yet; remove the key",
        );
        assert!(
            config(json!({"vlan": 0, "vlanTrunk": [], "promiscMode": false, "runtimeConfig": {"portMappings": []}}))
                .is_ok()
        );
    }

    #[test]
    fn bad_values_are_named() {
        invalid(
            json!({"bridge": "a/b"}),
            "bridge: \"a/b\" has a '/', ':', '%', white space or control character; use 1 to 15 characters without '/', ':' and spaces",
        );
        invalid(json!({"mtu": 40}), "mtu: \"40\" is out of range; take 68 to 65535, or 0 for the bridge's");
        invalid(
            json!({"mtu": 1000, "ipam": {"subnet": "fd00::/64"}}),
            "mtu: \"1000\" is out of range; take 1280 to 65535, or 0 for the bridge's",
        );
        invalid(
            json!({"mtu": "1400"}),
            "mtu: \"1400\" is not a whole number from 0 to 4294967295; write its digits without quotes",
        );
        invalid(
            json!({"ipam": {"subnet": "10.0.0.0/24", "routes": [{"dst": "10.9.0.0/16", "gw": "there"}]}}),
            "ipam.routes[0].gw: \"there\" is not an IP address; write it as 10.88.0.1 or fd00:88::1",
        );
        invalid(json!({"isGateway": "yes"}), "isGateway: \"yes\" is not true or false");
        invalid(
            json!({"ipam": {"subnet": "10.0.0.0/24", "dataDir": "x"}}),
            "ipam.dataDir: \"x\" is not an absolute path; give the path from the root, such as /run/keelson/network",
        );
        invalid(
            json!({"ipam": {"ranges": [{"subnet": "10.0.0.0/24"}]}}),
            "ipam.ranges[0]: \"{\\\"subnet\\\":\\\"10.0.0.0/24\\\"}\" is not a list",
        );
        invalid(
            json!({"ipam": {"type": "keelson-cni"}}),
            "ipam.ranges: names no range; give at least one, such as 10.88.0.0/16",
        );
        invalid(
            json!({"ipam": {"ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "10.0.0.0/25"}]]}}),
            "ipam.ranges[1][0].subnet: \"10.0.0.0/25\" overlaps 10.0.0.0/24 (ipam.ranges[0][0].subnet); make the ranges disjoint",
        );
        invalid(
            json!({"ipam": {"subnet": "10.0.0.0/24", "routes": [{"dst": "::/0"}]}}),
            "ipam.routes[0].dst: \"::/0\" is of a family that no range gives addresses of; remove the route or add a range",
        );
        let routes = |routes: Value| json!({"isDefaultGateway": true, "ipam": {"ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "fd00::/64"}]], "routes": routes}});
        invalid(
            routes(json!([{"dst": "10.9.0.0/16"}, {"dst": "10.9.1.2/16"}])),
            "ipam.routes[1].dst: \"10.9.0.0/16\" is the route of an earlier entry; remove one of the two",
        );
        invalid(
            routes(json!([{"dst": "0.0.0.0/0", "gw": "10.0.0.1"}, {"dst": "0.0.0.0/0"}])),
            "ipam.routes[1].dst: \"0.0.0.0/0\" is the route of an earlier entry; remove one of the two",
        );
        invalid(
            routes(json!([{"dst": "10.9.0.0/16", "gw": "10.8.0.1"}])),
            "ipam.routes[0].gw: \"10.8.0.1\" is in no subnet that the container is on; take an address of a subnet of the ranges, or put a route with scope 253 (link) to it in front",
        );
        for good in [
            json!([{"dst": "10.9.0.0/16", "priority": 1}, {"dst": "10.9.0.0/16", "table": 7}, {"dst": "10.9.0.0/16"}]),
            json!([{"dst": "10.9.0.0/16", "gw": "10.0.0.7"}, {"dst": "10.9.0.0/16", "gw": "10.0.0.8"}]),
            json!([{"dst": "10.8.0.1/32", "scope": 253}, {"dst": "10.9.0.0/16", "gw": "10.8.0.1"}]),
            json!([{"dst": "fd01::/64", "gw": "fe80::1"}]),
        ] {
            config(routes(good.clone())).unwrap_or_else(|error| panic!("{good}: {error}"));
        }
        invalid(
            json!({"ipam": {"subnet": "10.0.0.0/24"}, "runtimeConfig": {"ips": ["10.9.0.1"]}}),
            "runtimeConfig.ips: \"10.9.0.1\" is in no range; ask for an address that a range offers",
        );
        invalid(
            json!({"runtimeConfig": {"mac": "01:00:00:00:00:00"}}),
            "runtimeConfig.mac: \"01:00:00:00:00:00\" is not the Ethernet address of an interface; write it as 02:00:5e:10:00:01",
        );
    }

    #[test]
    fn no_word_on_valid_attachments_is_not_an_empty_list() {
        let parse = |value: Value| {
            let mut value = value;
            value["cniVersion"] = json!("1.1.0");
            value["name"] = json!("net");
            NetworkConfig::parse(value.to_string().as_bytes()).unwrap().valid_attachments()
        };
        assert_eq!(parse(json!({})).unwrap(), None);
        assert_eq!(parse(json!({"cni.dev/valid-attachments": []})).unwrap(), Some(vec![]));
        let one = json!([{"containerID": "c", "ifname": "eth0"}]);
        let key = AttachmentKey { container_id: "c".to_owned(), ifname: "eth0".to_owned() };
        assert_eq!(parse(json!({"cni.dev/attachments": one})).unwrap(), Some(vec![key]));
        assert!(parse(json!({"cni.dev/valid-attachments": [{"containerID": "c"}]})).is_err());
    }

    proptest! {
        #[test]
        fn no_document_panics(text in "\\PC{0,200}") {
            let _ = NetworkConfig::parse(text.as_bytes());
        }

        #[test]
        fn no_ipam_panics(key in "(type|ranges|subnet|routes|dataDir|gateway)", text in "\\PC{0,40}", number in any::<i64>()) {
            for value in [json!(text), json!(number), json!([text]), json!([[{"subnet": text, "rangeStart": text}]]), json!([{"dst": text}]), json!({"a": text})] {
                let _ = config(json!({"ipam": {key.as_str(): value, "subnet": "10.0.0.0/24"}}));
            }
        }
    }
}
