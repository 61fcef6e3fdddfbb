//! The `ipam` object: where addresses come from, and the routes that come with them.

use std::{net::IpAddr, path::Path};

use keelson_host::Problem;
use serde_json::Map;

use super::{
    dns::{Dns, read_resolv_conf},
    fields::{ADDRESS_REMEDY, Fields, not_a, objects},
    invocation::CniArgs,
    network::{ConfigError, OWN_TYPE, cni_args},
    range::{Range, RangeSet, RangeText, check_sets},
    result::unspeakable,
    route::{Route, parse_route},
    version::SpecVersion,
};

/// What addresses are given from, and what goes with them: all that host-local works by.
#[derive(Clone, Debug)]
pub(crate) struct Pool {
    /// One address from each set; there is at least one.
    pub(crate) sets: Vec<RangeSet>,
    pub(crate) routes: Vec<Route>,
    pub(crate) dns: Dns,
    /// Addresses asked for; each is in one of `sets`, no two in the same.
    pub(crate) requested: Vec<IpAddr>,
}

impl Pool {
    /// Reads the config at `top`. Whether the routes can be reached, the plugin that delegates knows.
    pub(super) fn parse(top: &Fields<'_>, version: SpecVersion, args: &CniArgs) -> Result<Self, ConfigError> {
        let Some(ipam) = top.object("ipam")? else {
            return Err(Problem::new("ipam", "", "IPAM config missing 'ipam' key", "give it ranges").into());
        };
        let empty = Map::new();
        let runtime = top.object("runtimeConfig")?.unwrap_or_else(|| Fields::below("runtimeConfig", &empty));
        let sets = parse_sets(&ipam, &runtime)?;
        let ipv4 = sets.iter().filter(|set| set.is_ipv4()).count();
        if let Some(wrong) = unspeakable(version, ipv4, sets.len() - ipv4) {
            let remedy = "take cniVersion 0.3.0 or later, or one range set of each family";
            return Err(Problem::new("ipam.ranges", "", wrong, remedy).into());
        }
        let dns = match ipam.string("resolvConf")?.filter(|path| !path.is_empty()) {
            Some(path) => read_resolv_conf(&ipam.path_of("resolvConf"), Path::new(path))?,
            None => Dns::default(),
        };
        let requested = requested_addresses(top, &runtime, args, &sets)?;
        Ok(Self { sets, routes: parse_routes(&ipam)?, dns, requested })
    }
}

/// The `ipam` object if it isn't empty, `None` for a layer-2 attachment; its type has been found to be ours.
pub(crate) fn built_in_ipam<'a>(top: &Fields<'a>) -> Result<Option<Fields<'a>>, ConfigError> {
    let Some(ipam) = top.object("ipam")?.filter(|ipam| !ipam.is_empty()) else { return Ok(None) };
    let has_ranges = ipam.get("ranges").is_some() || ipam.get("subnet").is_some();
    match ipam.string("type")? {
        None | Some("") if has_ranges => Ok(Some(ipam)),
        None | Some("") => {
            let remedy = format!("give it ranges, or remove it for a layer-2 attachment; its own type is {OWN_TYPE}");
            Err(Problem::new("ipam", "", "has neither type nor ranges", remedy).into())
        }
        Some(_) => Ok(Some(ipam)),
    }
}

/// The runtime's ranges first, then `subnet` with its companions, then `ranges`: host-local's order.
pub(crate) fn parse_sets(ipam: &Fields<'_>, runtime: &Fields<'_>) -> Result<Vec<RangeSet>, ConfigError> {
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
        let set = value.as_array().ok_or_else(|| Problem {
            remedy: "each range set is a list of ranges, also one of one: [[{\"subnet\": \"10.88.0.0/16\"}]]"
                .to_owned(),
            ..not_a(&path, value, "a list")
        })?;
        objects(&path, set)
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

pub(crate) fn parse_routes(ipam: &Fields<'_>) -> Result<Vec<Route>, Problem> {
    ipam.objects("routes")?.iter().map(parse_route).collect()
}

/// The addresses asked for by `runtimeConfig.ips`, `args.cni.ips` and `CNI_ARGS` `IP`, each with or without a prefix.
pub(crate) fn requested_addresses(
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
        // Behind the colon, here and below, are the reference's words, which others look for.
        let Some(set) = sets.iter().position(|set| set.range_of(address).is_some()) else {
            let is_gateway = sets.iter().flat_map(|set| &set.0).any(|range| range.gateway == address);
            let wrong = if is_gateway {
                format!("is kept back: requested ip {address} is subnet's gateway")
            } else {
                format!("is in no range: failed to allocate all requested IPs: {address}")
            };
            return Err(Problem::new(path, text, wrong, "ask for an address that a range offers"));
        };
        if addresses.contains(&address) {
            continue;
        }
        if taken_sets.contains(&set) {
            let wrong = format!("is the second one of a range set: failed to allocate all requested IPs: {address}");
            return Err(Problem::new(path, text, wrong, "ask for one address of each set"));
        }
        taken_sets.push(set);
        addresses.push(address);
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pool(ipam: Value, version: SpecVersion) -> Result<Pool, ConfigError> {
        let top = Map::from_iter([("ipam".to_owned(), ipam)]);
        Pool::parse(&Fields::top(&top), version, &CniArgs::default())
    }

    #[test]
    fn empty_texts_are_as_if_left_out() {
        let ipam = json!({"subnet": "10.1.2.0/24", "rangeStart": "", "rangeEnd": "10.1.2.9", "resolvConf": ""});
        let pool = pool(ipam, SpecVersion::NEWEST).unwrap();
        assert_eq!(pool.sets[0].0[0].last.to_string(), "10.1.2.9");
        assert_eq!(pool.sets[0].0[0].first.to_string(), "10.1.2.1");
    }

    #[test]
    fn a_bad_range_is_named_with_its_path() {
        let ipam = json!({"ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd00::/64", "rangeEnd": "fd01::1"}]]});
        let error = pool(ipam, SpecVersion::NEWEST).unwrap_err().to_string();
        assert!(error.contains(" ipam.ranges[1][0].rangeEnd: \"fd01::1\""), "{error}");
    }

    #[test]
    fn old_versions_have_one_set_of_each_family() {
        let ranges = |subnets: [&str; 2]| json!({"ranges": subnets.map(|subnet| json!([{"subnet": subnet}]))});
        for (subnets, fits) in [
            (["10.1.2.0/24", "fd00::/64"], true),
            (["10.1.2.0/24", "10.1.3.0/24"], false),
            (["fd00::/64", "fd01::/64"], false),
        ] {
            assert_eq!(pool(ranges(subnets), SpecVersion::V0_2_0).is_ok(), fits, "{subnets:?}");
            assert!(pool(ranges(subnets), SpecVersion::V0_3_0).is_ok(), "{subnets:?}");
        }
    }
}
