//! The `ipam` object: where addresses come from, and the routes that come with them.

use std::net::IpAddr;

use keelson_host::Problem;

use super::{
    fields::{ADDRESS_REMEDY, Fields, not_a, objects},
    invocation::CniArgs,
    network::{ConfigError, OWN_TYPE, cni_args},
    range::{Range, RangeSet, RangeText, check_sets},
    route::{Route, parse_route},
};

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
