//! Routes inside a container, as configs and results write them.

use std::net::IpAddr;

use ipnet::IpNet;
use keelson_host::Problem;
use serde::{Deserialize, Serialize};

use super::{fields::Fields, range::RangeSet};

/// The main routing table (rtnetlink(7)), where a route without a table goes.
const MAIN_TABLE: u32 = 254;

/// rtnetlink(7): from this scope on, a route has no gateway.
const LINK_SCOPE: u8 = 253;

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

impl Route {
    /// The plain route to `dst` by the gateway of its family.
    pub(crate) fn to(dst: IpNet) -> Self {
        Self { dst, gw: None, mtu: None, advmss: None, priority: None, table: None, scope: None }
    }

    /// The route to one address that is on the link itself.
    pub(crate) fn on_link(address: IpAddr) -> Self {
        Self { scope: Some(LINK_SCOPE), ..Self::to(address.into()) }
    }

    /// Whether it has no gateway, and gets none: what it leads to is on the link itself.
    pub(crate) fn is_on_link(&self) -> bool {
        self.gw.is_none() && self.scope.is_some_and(|scope| scope >= LINK_SCOPE)
    }

    pub(crate) fn is_in_main_table(&self) -> bool {
        self.table() == MAIN_TABLE
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

/// Finds what the kernel would refuse after half of the attachment is made: a route of a family without addresses, to
/// the same place twice, or by a gateway that can't be reached.
pub(super) fn check_routes(routes: &[Route], sets: &[RangeSet]) -> Result<(), Problem> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::range::{Range, RangeText};

    #[test]
    fn a_gateway_is_in_a_range_or_behind_an_earlier_route_on_the_link() {
        let text = RangeText { subnet: "10.1.0.0/24".to_owned(), ..RangeText::default() };
        let sets = [RangeSet(vec![Range::new("", "", &text).unwrap()])];
        let by =
            |gateway: &str| Route { gw: Some(gateway.parse().unwrap()), ..Route::to("10.9.0.0/16".parse().unwrap()) };
        let link = |address: &str| Route::on_link(address.parse().unwrap());
        let fits = |routes: &[Route]| check_routes(routes, &sets).is_ok();
        assert!(fits(&[by("10.1.0.7")]));
        assert!(fits(&[link("192.0.2.1"), by("192.0.2.1")]));
        assert!(!fits(&[by("192.0.2.1")]));
        assert!(!fits(&[by("192.0.2.1"), link("192.0.2.1")]));
        assert!(!fits(&[link("192.0.2.2"), by("192.0.2.1")]));
        assert!(!fits(&[Route::to("192.0.2.0/24".parse().unwrap()), by("192.0.2.1")]));
    }
}
