//! Which routing tables an interface with source-based routing takes, and which routes go there.

use std::{collections::HashSet, net::IpAddr};

use ipnet::IpNet;

use crate::{
    config::route::{Route, ipv6_default},
    store::Lease,
};

/// Where free tables are looked for, as the reference plugin does; 253 to 255 are the kernel's own.
const FIRST_TABLE: u32 = 100;
const OWN_TABLES: std::ops::RangeInclusive<u32> = 253..=255;

/// The first `count` tables that nobody uses.
pub(crate) fn free_tables(used: &HashSet<u32>, count: usize) -> Vec<u32> {
    let is_free = |table: &u32| !used.contains(table) && !OWN_TABLES.contains(table);
    (FIRST_TABLE..).filter(is_free).take(count).collect()
}

/// Moves `routes` from the main table to those of the addresses that they belong to, one of `tables` for each: a route
/// by a gateway belongs to the addresses that the gateway is a neighbour of, one without to all of its family. And each
/// table gets the default route by its address' gateway.
pub(crate) fn moved(routes: &[Route], leases: &[Lease], tables: &[u32]) -> Vec<Route> {
    // What names a table of its own stays there.
    let (main, mut placed): (Vec<Route>, Vec<Route>) = routes.iter().cloned().partition(Route::is_in_main_table);
    for (lease, table) in leases.iter().zip(tables) {
        let own = lease.address;
        let belongs = |route: &&Route| {
            route.dst.addr().is_ipv4() == own.addr().is_ipv4()
                && route.gw.is_none_or(|gateway| is_neighbour(own, gateway))
        };
        let default = if own.addr().is_ipv4() { IpNet::default() } else { ipv6_default() };
        let mut here: Vec<Route> = main.iter().filter(belongs).cloned().collect();
        if lease.gateway.is_some() && !here.iter().any(|route| route.dst == default) {
            here.push(Route { gw: lease.gateway, ..Route::to(default) });
        }
        placed.extend(here.into_iter().map(|route| Route { table: Some(*table), ..route }));
    }
    placed
}

fn is_neighbour(own: IpNet, other: IpAddr) -> bool {
    let is_link_local = matches!(other, IpAddr::V6(other) if other.is_unicast_link_local() && own.addr().is_ipv6());
    is_link_local || own.contains(&other)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lease(address: &str, gateway: Option<&str>) -> Lease {
        Lease { address: address.parse().unwrap(), gateway: gateway.map(|text| text.parse().unwrap()), set: None }
    }

    fn route(dst: &str, gateway: Option<&str>, table: Option<u32>) -> Route {
        Route { gw: gateway.map(|text| text.parse().unwrap()), table, ..Route::to(dst.parse().unwrap()) }
    }

    #[test]
    fn each_table_has_what_its_address_reaches() {
        let leases = [
            lease("10.1.0.2/24", Some("10.1.0.1")),
            lease("10.2.0.2/24", None),
            lease("fd00::2/64", Some("fd00::1")),
            lease("10.3.0.2/24", None),
        ];
        let routes = [
            route("10.9.0.0/16", Some("10.1.0.7"), None),
            route("0.0.0.0/0", Some("10.2.0.1"), Some(254)),
            route("10.8.0.0/16", Some("10.1.0.1"), Some(300)),
            route("fd09::/64", None, None),
        ];
        let expected = [
            route("10.8.0.0/16", Some("10.1.0.1"), Some(300)),
            route("10.9.0.0/16", Some("10.1.0.7"), Some(100)),
            route("0.0.0.0/0", Some("10.1.0.1"), Some(100)),
            route("0.0.0.0/0", Some("10.2.0.1"), Some(101)),
            route("fd09::/64", None, Some(102)),
            route("::/0", Some("fd00::1"), Some(102)),
        ];
        assert_eq!(moved(&routes, &leases, &[100, 101, 102, 103]), expected);
    }

    #[test]
    fn the_kernels_own_tables_are_not_free() {
        let used: HashSet<u32> = (100..250).chain([251]).collect();
        assert_eq!(free_tables(&used, 4), [250, 252, 256, 257]);
    }

    proptest! {
        #[test]
        fn free_tables_are_free_and_differ(used in prop::collection::hash_set(90..270_u32, 0..100), count in 0..20_usize) {
            let tables = free_tables(&used, count);
            prop_assert_eq!(tables.iter().collect::<HashSet<_>>().len(), count);
            prop_assert!(tables.iter().all(|table| *table >= 100 && !used.contains(table)));
        }
    }
}
