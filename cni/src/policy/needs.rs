//! What the kernel has to have by records alone.

use ipnet::IpNet;

use crate::{
    config::route::Route,
    store::{Kind, Record},
};

/// The routes that take the place of the subnets' own. In routed mode: to the gateway by the link, to the rest of the
/// subnet by the gateway. With source-based routing: to the subnet by the link, but in the address' table.
pub(crate) fn own_routes(record: &Record) -> Vec<Route> {
    let mut routes = Vec::new();
    for (index, lease) in record.addresses.iter().enumerate() {
        let subnet = lease.address.trunc();
        let table = record.moved_table(index);
        match lease.gateway {
            Some(gateway) if record.kind == Kind::Routed => {
                routes.push(Route { table, ..Route::on_link(gateway) });
                routes.push(Route { gw: Some(gateway), table, ..Route::to(subnet) });
            }
            _ if table.is_some() => routes.push(Route { dst: subnet, table, ..Route::on_link(subnet.addr()) }),
            _ => {}
        }
    }
    routes
}

/// All routes that the container has to have.
pub(crate) fn container_routes(record: &Record) -> impl Iterator<Item = Route> {
    own_routes(record).into_iter().chain(record.routes.iter().cloned())
}

/// The gateway addresses that links of the host have to have for `records`, each once with its link. Records that don't
/// tell which link that is, those of earlier releases among them, ask for none.
pub(crate) fn gateways<'a>(records: impl Iterator<Item = &'a Record>) -> Vec<(&'a str, IpNet)> {
    let mut gateways = Vec::new();
    for record in records {
        let Some(link) = record.gateway_interface.as_deref() else { continue };
        for lease in &record.addresses {
            let gateway = lease.gateway.and_then(|gateway| IpNet::new(gateway, lease.address.prefix_len()).ok());
            gateways.extend(gateway.map(|gateway| (link, gateway)).filter(|wanted| !gateways.contains(wanted)));
        }
    }
    gateways
}
