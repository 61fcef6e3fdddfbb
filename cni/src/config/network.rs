//! The network config on stdin.
//!
//! Parsed in two steps, as the verbs need different parts: [`NetworkConfig::parse`] reads what names the network and its
//! records, which DEL and GC must be able to do after somebody broke the rest; [`NetworkConfig::attachment`] reads and
//! checks everything that ADD, CHECK and STATUS work by.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;
use keelson_host::{Problem, Problems};
use serde_json::{Map, Value, json};

use super::{
    bandwidth::{self, Bandwidth},
    cooldown,
    dns::{Dns, parse_dns, parse_runtime_dns, read_resolv_conf},
    fields::{Fields, not_a, objects},
    invocation::{AttachmentKey, CniArgs},
    ipam::{Pool, built_in_ipam, parse_routes, parse_sets, requested_addresses},
    link_options::{self, LinkOptions, Surroundings, has_automatic_mtu},
    mac::Mac,
    names::{identifier_fault, interface_name_fault, plugin_name_fault},
    persona::{Executable, Persona},
    ports::{PortMapping, parse_mappings},
    range::RangeSet,
    result::{Address, CniResult, unspeakable},
    route::{Route, check_routes, ipv6_default},
    version::SpecVersion,
};

/// Where the runtime lists the attachments that are valid: an early draft of the spec had the second name, and libcni
/// sends both.
const VALID_ATTACHMENTS: [&str; 2] = ["cni.dev/valid-attachments", "cni.dev/attachments"];

/// The reference bridge's default.
const DEFAULT_BRIDGE: &str = "cni0";

/// The reference's other plugins, by whose names this one must not do what it does.
const OTHER_PLUGINS: [&str; 14] = [
    "bandwidth",
    "dhcp",
    "dummy",
    "firewall",
    "host-device",
    "ipvlan",
    "macvlan",
    "sbr",
    "static",
    "tap",
    "tuning",
    "vlan",
    "vrf",
    "flannel",
];

/// The type that selects the built-in IPAM.
pub(crate) const OWN_TYPE: &str = "keelson-cni";

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
    /// The IPAM plugin that is to be executed, if addresses don't come from this one.
    pub(crate) ipam_plugin: Option<String>,
    /// Whether another plugin calls this one as its IPAM: only addresses are wanted.
    pub(crate) is_ipam: bool,
    /// As it came: a delegated plugin gets the complete config.
    pub(crate) text: Vec<u8>,
    persona: Persona,
    document: Map<String, Value>,
}

/// How Pods are attached to the network: a wholly checked config.
#[derive(Clone, Debug)]
pub(crate) struct Attachment {
    /// The bridge that the container is attached to; `None` in routed mode.
    pub(crate) bridge: Option<String>,
    /// Whether the bridge carries the ranges' gateway addresses.
    pub(crate) is_gateway: bool,
    /// Whether addresses of the bridge that aren't the gateway's are removed.
    pub(crate) force_address: bool,
    pub(crate) masquerade: bool,
    /// Whether masquerading by iptables was asked for, which is done with nftables.
    pub(crate) asks_for_iptables: bool,
    /// `None` takes the bridge's.
    pub(crate) mtu: Option<u32>,
    pub(crate) hairpin: bool,
    pub(crate) isolated: bool,
    /// One address from each set; empty for a layer-2 attachment.
    pub(crate) sets: Vec<RangeSet>,
    pub(crate) routes: Vec<Route>,
    /// Name servers of the runtime, else of the config itself; if there are none, those of the IPAM are told.
    pub(crate) dns: Dns,
    pub(crate) ipam_dns: Dns,
    /// Whether the default routes go by the gateways.
    pub(crate) is_default_gateway: bool,
    /// The Ethernet address asked for by config or runtime.
    pub(crate) mac: Option<Mac>,
    /// Addresses asked for; each is in one of `sets`, no two in the same.
    pub(crate) requested: Vec<IpAddr>,
    pub(crate) ports: Vec<PortMapping>,
    /// Whether frames from another Ethernet address than the container's are dropped.
    pub(crate) spoof_check: bool,
    pub(crate) bandwidth: Option<Bandwidth>,
    pub(crate) options: LinkOptions,
    /// How long a released address is kept back while there are others.
    pub(crate) cooldown: Duration,
    /// Whether STATUS fails while no address can be given.
    pub(crate) fails_when_full: bool,
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
    /// Reads version, name and `ipam`'s type and `dataDir`; `executable` is what this plugin was called as.
    pub(crate) fn parse(text: &[u8], executable: &Executable) -> Result<Self, ConfigError> {
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
        if top.get("plugins").is_some() && top.get("type").is_none() {
            let remedy = "pass one entry of the list, with the list's name and cniVersion in it";
            return Err(
                Problem::new("plugins", "", "makes this a list of plugins, as a runtime reads it", remedy).into()
            );
        }
        if OTHER_PLUGINS.contains(&executable.name.as_str()) {
            let remedy = "call it keelson-cni, bridge, ptp, portmap, host-local or loopback";
            return Err(Problem::new(
                "argv[0]",
                &executable.name,
                "is the name of a plugin that this one can't be",
                remedy,
            )
            .into());
        }
        let own = |kind: &str| kind == OWN_TYPE || kind == executable.name;
        let ipam_plugin = match top.object("ipam")? {
            Some(ipam) => ipam.string("type")?.filter(|kind| !kind.is_empty() && !own(kind)).map(str::to_owned),
            None => None,
        };
        if let Some(plugin) = &ipam_plugin
            && let Some(wrong) = plugin_name_fault(plugin)
        {
            return Err(Problem::new("ipam.type", plugin, wrong, "give the file name of a plugin").into());
        }
        // Who delegates hands its own config down: its top type is its own, and its IPAM's type is ours.
        let has_own_ipam = |ipam: &Fields<'_>| ipam.string("type").is_ok_and(|kind| kind.is_some_and(own));
        let is_ipam = top.object("ipam")?.is_some_and(|ipam| has_own_ipam(&ipam))
            && top.string("type")?.is_some_and(|kind| !kind.is_empty() && !own(kind));
        let persona = executable.persona;
        let data_dir = data_dir(&top, ipam_plugin.is_some(), persona)?;
        Ok(Self { version, name, data_dir, ipam_plugin, is_ipam, text: text.to_vec(), persona, document })
    }

    /// Reads and checks how Pods are attached; `args` may ask for addresses.
    pub(crate) fn attachment(&self, args: &CniArgs) -> Result<Attachment, ConfigError> {
        let top = Fields::top(&self.document);
        refuse_unsupported(&top)?;
        let empty = Map::new();
        let runtime = top.object("runtimeConfig")?.unwrap_or_else(|| Fields::below("runtimeConfig", &empty));
        let bridge = if self.is_routed(&top)? { None } else { Some(bridge_name(&top)?) };
        let ipam = if self.ipam_plugin.is_some() { None } else { built_in_ipam(&top)? };
        let mut sets = Vec::new();
        let mut routes = Vec::new();
        let mut ipam_dns = Dns::default();
        let mut cooldown = Duration::ZERO;
        if let Some(ipam) = &ipam {
            sets = parse_sets(ipam, &runtime)?;
            routes = parse_routes(ipam)?;
            cooldown = cooldown::parse(ipam)?;
            if let Some(path) = ipam.string("resolvConf")?.filter(|path| !path.is_empty()) {
                ipam_dns = read_resolv_conf(&ipam.path_of("resolvConf"), Path::new(path))?;
            }
        }
        let is_default_gateway = top.boolean("isDefaultGateway")?;
        // Who delegates adds the default routes itself.
        if is_default_gateway && !self.is_ipam {
            for (is_ipv4, default) in [(true, IpNet::default()), (false, ipv6_default())] {
                let wanted = sets.iter().any(|set| set.is_ipv4() == is_ipv4);
                if wanted && !routes.iter().any(|route| route.dst == default) {
                    routes.push(Route::to(default));
                }
            }
        }
        check_routes(&routes, &sets)?;
        if self.ipam_plugin.is_none() {
            let ipv4 = sets.iter().filter(|set| set.is_ipv4()).count();
            if let Some(wrong) = unspeakable(self.version, ipv4, sets.len() - ipv4) {
                let remedy = "take cniVersion 0.3.0 or later, or one range set of each family";
                return Err(Problem::new("ipam.ranges", "", wrong, remedy).into());
            }
        }
        let mtu = if has_automatic_mtu(&top) { None } else { top.number("mtu")?.filter(|mtu| *mtu != 0) };
        let smallest = if sets.iter().any(|set| !set.is_ipv4()) { 1280 } else { 68 };
        if let Some(mtu) = mtu.filter(|mtu| !(smallest..=65535).contains(mtu)) {
            let remedy = format!("take {smallest} to 65535, 0 for the bridge's, or \"auto\"");
            return Err(Problem::new("mtu", mtu, "is out of range", remedy).into());
        }
        // Of which families another IPAM plugin's addresses are, only that one knows.
        let has = |is_ipv4| self.ipam_plugin.is_some() || sets.iter().any(|set| set.is_ipv4() == is_ipv4);
        let ports = parse_mappings(&runtime, (has(true), has(false)))?;
        let spoof_check = top.boolean("macspoofchk")?;
        if spoof_check && bridge.is_none() {
            let remedy = "remove it: a routed container shares its link with nobody";
            return Err(Problem::new("macspoofchk", true, "is for containers on a bridge", remedy).into());
        }
        // What another IPAM plugin can give, only that one knows.
        let requested = match self.ipam_plugin {
            None => requested_addresses(&top, &runtime, args, &sets)?,
            Some(_) => Vec::new(),
        };
        let is_gateway = top.boolean("isGateway")? || is_default_gateway;
        let options = link_options::parse(
            &top,
            &Surroundings {
                bridge: bridge.as_deref(),
                is_gateway,
                has_addresses: !sets.is_empty() || self.ipam_plugin.is_some(),
                args: cni_args(&top)?.as_ref(),
            },
        )?;
        Ok(Attachment {
            bridge,
            is_gateway,
            force_address: top.boolean("forceAddress")?,
            masquerade: top.boolean("ipMasq")? && (!sets.is_empty() || self.ipam_plugin.is_some()),
            asks_for_iptables: top.string("ipMasqBackend")? == Some("iptables"),
            mtu,
            hairpin: top.boolean("hairpinMode")?,
            isolated: top.boolean("portIsolation")?,
            sets,
            routes,
            dns: match runtime.object("dns")? {
                Some(dns) if !dns.is_empty() => parse_runtime_dns(&dns)?,
                _ => parse_dns(top.object("dns")?)?,
            },
            ipam_dns,
            is_default_gateway,
            mac: requested_mac(&top, &runtime, args)?,
            requested,
            ports,
            spoof_check,
            bandwidth: bandwidth::parse(&top, &runtime)?,
            options,
            cooldown,
            fails_when_full: fails_when_full(&top)?,
        })
    }

    /// Reads and checks where addresses come from, and nothing else: the rest is the caller's who delegates.
    pub(crate) fn pool(&self, args: &CniArgs) -> Result<Pool, ConfigError> {
        Pool::parse(&Fields::top(&self.document), self.version, args)
    }

    /// The config with `kept` among its valid attachments, under each name that it lists them by.
    pub(crate) fn text_with_valid(&self, kept: &[AttachmentKey]) -> Vec<u8> {
        if kept.is_empty() {
            return self.text.clone();
        }
        let mut document = self.document.clone();
        for (_, value) in
            document.iter_mut().filter(|(name, _)| VALID_ATTACHMENTS.iter().any(|key| name.eq_ignore_ascii_case(key)))
        {
            if let Some(list) = value.as_array_mut() {
                list.extend(kept.iter().map(|key| json!({"containerID": key.container_id, "ifname": key.ifname})));
            }
        }
        Value::Object(document).to_string().into_bytes()
    }

    /// Whether the container is attached by host routes instead of a bridge.
    fn is_routed(&self, top: &Fields<'_>) -> Result<bool, Problem> {
        let is_routed = match top.string("mode")? {
            None | Some("") => self.persona == Persona::PointToPoint,
            Some("bridge") => false,
            Some("routed") => true,
            Some(other) => {
                return Err(Problem::new("mode", other, "is no mode of attachment", "take \"bridge\" or \"routed\""));
            }
        };
        if is_routed {
            for key in ["hairpinMode", "promiscMode", "portIsolation", "forceAddress", "preserveDefaultVlan"] {
                if top.boolean(key)? {
                    let remedy = "remove the key, or take mode \"bridge\"";
                    return Err(Problem::new(key, true, "is about a bridge, and mode \"routed\" has none", remedy));
                }
            }
        }
        Ok(is_routed)
    }

    /// The attachments that the runtime says are valid; `None` if it says nothing, which is not the same as none.
    pub(crate) fn valid_attachments(&self) -> Result<Option<Vec<AttachmentKey>>, ConfigError> {
        let top = Fields::top(&self.document);
        let Some(path) = VALID_ATTACHMENTS.into_iter().find(|key| top.get(key).is_some()) else { return Ok(None) };
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

    /// Whether attachments of this config have links of ours.
    pub(crate) fn makes_links(&self) -> bool {
        !self.is_ipam && self.persona != Persona::PortMap
    }

    /// As which plugin this one was called.
    pub(crate) fn persona(&self) -> Persona {
        self.persona
    }

    /// The host ports that the runtime asks `portmap` for, of a container with these addresses.
    pub(crate) fn host_ports(&self, addresses: &[Address]) -> Result<Vec<PortMapping>, ConfigError> {
        let top = Fields::top(&self.document);
        // What these would change is the same for all containers of the node.
        if top.get("snat").is_some() && !top.boolean("snat")? {
            return Err(unsupported("snat", false));
        }
        if top.boolean("masqAll")? {
            return Err(unsupported("masqAll", true));
        }
        for key in ["conditionsV4", "conditionsV6"] {
            if let Some(first) = top.strings(key)?.first() {
                return Err(unsupported(key, first));
            }
        }
        let Some(runtime) = top.object("runtimeConfig")? else { return Ok(Vec::new()) };
        let has = |is_ipv4: bool| addresses.iter().any(|address| address.address.addr().is_ipv4() == is_ipv4);
        Ok(parse_mappings(&runtime, (has(true), has(false)))?)
    }

    /// The result of the plugins before this one, and for CHECK the final result of the chain.
    pub(crate) fn prev_result(&self) -> Result<Option<CniResult>, Problem> {
        let value = Fields::top(&self.document).get("prevResult");
        value.map(|value| CniResult::parse("prevResult", value, self.version)).transpose()
    }
}

/// Where records live: the top's `dataDir`, or that of an IPAM that isn't another plugin's. As host-local this plugin is
/// the IPAM, and the top is the caller's.
fn data_dir(top: &Fields<'_>, has_other_ipam: bool, persona: Persona) -> Result<PathBuf, Problem> {
    let is_ipam = persona == Persona::HostLocal;
    let default = persona.default_data_dir();
    let given = |text: &&str| !text.is_empty();
    let mut stated = top.string("dataDir")?.filter(given).filter(|_| !is_ipam).map(|text| ("dataDir", text));
    if let Some(ipam) = top.object("ipam")?.filter(|_| stated.is_none() && (is_ipam || !has_other_ipam)) {
        stated = ipam.string("dataDir")?.filter(given).map(|text| ("ipam.dataDir", text));
    }
    let Some((key, text)) = stated else { return Ok(PathBuf::from(default)) };
    let directory = PathBuf::from(text);
    if !directory.is_absolute() {
        let remedy = format!("give the path from the root, such as {default}");
        return Err(Problem::new(key, text, "is not an absolute path", remedy));
    }
    Ok(directory)
}

fn bridge_name(top: &Fields<'_>) -> Result<String, Problem> {
    let bridge = top.string("bridge")?.filter(|name| !name.is_empty()).unwrap_or(DEFAULT_BRIDGE);
    match interface_name_fault(bridge) {
        None => Ok(bridge.to_owned()),
        Some(wrong) => Err(Problem::new("bridge", bridge, wrong, "use 1 to 15 characters without '/', ':' and spaces")),
    }
}

/// Refuses what the reference plugins would do and this one doesn't: ignoring it would build another network than the
/// one that was asked for.
fn refuse_unsupported(top: &Fields<'_>) -> Result<(), ConfigError> {
    // Masquerading is always done with nftables; ADD says so where iptables was asked for.
    match top.string("ipMasqBackend")?.filter(|backend| !matches!(*backend, "" | "iptables" | "nftables")) {
        Some(backend) => Err(unsupported("ipMasqBackend", backend)),
        None => Ok(()),
    }
}

fn unsupported(path: &str, value: impl std::fmt::Display) -> ConfigError {
    ConfigError::Unsupported(Problem::new(path, value, "is not supported", "remove the key"))
}

/// `statusWhenFull`: what STATUS says when the ranges are full.
fn fails_when_full(top: &Fields<'_>) -> Result<bool, Problem> {
    match top.string("statusWhenFull")? {
        None | Some("" | "ok") => Ok(false),
        Some("error") => Ok(true),
        Some(other) => {
            let remedy = "write \"ok\", or \"error\" to make the node NotReady while no address is free";
            Err(Problem::new("statusWhenFull", other, "is neither \"ok\" nor \"error\"", remedy))
        }
    }
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

pub(crate) fn cni_args<'a>(top: &Fields<'a>) -> Result<Option<Fields<'a>>, Problem> {
    match top.object("args")? {
        Some(args) => args.object("cni"),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests;
