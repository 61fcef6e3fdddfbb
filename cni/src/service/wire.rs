//! The kernel's side of ADD: the links between a container and the node, with addresses and routes.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use nix::errno::Errno;

use crate::{
    config::{
        link_options::gateway_name, mac::Mac, network::Attachment, route::Route, sysctl::Switch, vlan::DEFAULT_VLAN,
    },
    error::Failure,
    kernel::{
        Events, KernelError, RouteSocket, Step,
        address::{self, AddressOptions},
        announce, bridge,
        link::{self, Link},
        netns::Namespace,
        route,
        shaping::{self, ShapingLink},
        source_rule, sysctl,
        veth::{self, HostEnd, PortFlags, VethPair},
        vlan::{self, Gateway},
    },
    policy::{naming, needs::own_routes},
    store::{Lease, Record, Store, describe},
};

/// The two ends of what is made: the node's namespace and the container's.
pub(super) struct Wire {
    pub(super) namespace: Namespace,
    pub(super) host: RouteSocket,
    pub(super) inside: RouteSocket,
}

/// The links that were made, as the kernel has them.
pub(super) struct Wired {
    /// `None` in routed mode.
    pub(super) bridge: Option<Link>,
    pub(super) container: Link,
    /// What carries the gateways' addresses instead of the bridge: in a VLAN.
    pub(super) gateway: Option<Link>,
}

impl Wire {
    /// Makes what the record says.
    pub(super) fn make(
        &mut self,
        store: &Store,
        attachment: &Attachment,
        record: &mut Record,
    ) -> Result<Wired, Failure> {
        let first = record.addresses.first().map(|lease| lease.address.addr());
        let container_mac = attachment.mac.unwrap_or_else(|| naming::container_mac(first, &record.host_interface));
        record.container_mac = container_mac.to_string();
        let asked_mtu = self.asked_mtu(attachment)?;
        let (bridge, gateway) = match &attachment.bridge {
            None => (None, None),
            Some(name) => {
                let (bridge, gateway) = self.make_bridge(store, attachment, name, asked_mtu, &record.addresses)?;
                (Some(bridge), gateway)
            }
        };
        let mtu = asked_mtu.or(bridge.as_ref().map(|bridge| bridge.mtu)).unwrap_or(bridge::DEFAULT_MTU);
        record.mtu = Some(mtu);
        let pair = VethPair {
            host_name: &record.host_interface,
            host_mac: naming::host_mac(&record.host_interface),
            container_name: &record.key.ifname,
            container_mac,
            mtu,
        };
        self.make_pair(&pair, bridge.as_ref())?;
        let alias = format!("{}:{}", bridge::alias(&record.network), describe(record));
        let end = match &bridge {
            Some(_) => HostEnd::Port(PortFlags { hairpin: attachment.hairpin, isolated: attachment.isolated }),
            None => HostEnd::Routed { has_ipv6: record.addresses.iter().any(|lease| lease.address.addr().is_ipv6()) },
        };
        veth::configure_host_end(&mut self.host, &record.host_interface, &alias, end)?;
        if let Some(vlans) = &attachment.options.vlans {
            vlan::set(&mut self.host, &record.host_interface, vlans)?;
        }
        if bridge.is_none() {
            self.route_to_container(record)?;
        }
        self.shape(record, &alias)?;
        let container = self.configure_container_end(attachment, record)?;
        self.set_switches(&attachment.options.switches, &record.key.ifname)?;
        if !record.container_down {
            link::wait_until_running(&mut self.host, &record.host_interface, Events::of_links)?;
            if bridge.is_some() {
                self.announce(record, &container, container_mac)?;
            }
        }
        let bridge = match bridge {
            None => None,
            // The first port brings the bridge to life; one with spanning tree takes its time, for which nobody waits.
            Some(bridge) => Some(link::find(&mut self.host, &record.bridge)?.unwrap_or(bridge)),
        };
        Ok(Wired { bridge, container, gateway })
    }

    fn make_bridge(
        &mut self,
        store: &Store,
        attachment: &Attachment,
        name: &str,
        mtu: Option<u32>,
        leases: &[Lease],
    ) -> Result<(Link, Option<Link>), Failure> {
        let options = &attachment.options;
        let mac = naming::bridge_mac(store.boot_id(), name);
        let bridge = bridge::ensure(&mut self.host, name, store.network(), mac, mtu, options.vlans.is_some())?;
        if options.vlans.is_some() {
            bridge::require_vlans(&bridge)?;
        }
        if options.is_promiscuous {
            bridge::ensure_promiscuous(&mut self.host, &bridge)?;
        }
        let gateways = if attachment.is_gateway { gateways(attachment, leases) } else { Vec::new() };
        let gateway = match (gateway_link(attachment), &options.vlans) {
            (Some(name), Some(vlans)) if !gateways.is_empty() => {
                let port = naming::gateway_port(&name);
                let pair = Gateway {
                    mac: naming::bridge_mac(store.boot_id(), &name),
                    port_mac: naming::host_mac(&port),
                    name: &name,
                    port: &port,
                };
                Some(vlan::ensure_gateway(&mut self.host, &pair, &bridge, store.network(), vlans)?)
            }
            _ => None,
        };
        if !gateways.is_empty() {
            let holder = gateway.as_ref().unwrap_or(&bridge);
            bridge::ensure_addresses(&mut self.host, holder, &gateways, attachment.force_address)?;
            ensure_forwarding(gateways.iter().map(IpNet::addr))?;
        }
        Ok((bridge, gateway))
    }

    /// The MTU that the config asks for; an automatic one only counts where no bridge has one.
    fn asked_mtu(&mut self, attachment: &Attachment) -> Result<Option<u32>, Failure> {
        let has_bridge = match &attachment.bridge {
            Some(name) if attachment.options.has_automatic_mtu => bridge::find(&mut self.host, name)?.is_some(),
            _ => false,
        };
        if attachment.options.has_automatic_mtu && !has_bridge {
            return Ok(route::way_out_mtu(&mut self.host)?);
        }
        Ok(attachment.mtu)
    }

    fn set_switches(&mut self, switches: &[Switch], ifname: &str) -> Result<(), Failure> {
        if switches.is_empty() {
            return Ok(());
        }
        let set = || switches.iter().try_for_each(|switch| sysctl::ensure(&switch.path(ifname), &switch.value));
        Ok(self.namespace.within(set)??)
    }

    /// Tells the neighbours of addresses that may have had another Ethernet address with another container.
    fn announce(&mut self, record: &Record, container: &Link, mac: Mac) -> Result<(), Failure> {
        let addresses = record.addresses.iter().map(|lease| lease.address.addr());
        let is_news = |address: &IpAddr| naming::container_mac(Some(*address), &record.host_interface) != mac;
        let news: Vec<IpAddr> = addresses.filter(is_news).collect();
        if news.is_empty() {
            return Ok(());
        }
        Ok(announce::announce(&self.namespace, &mut self.inside, container.index, mac, &news)?)
    }

    fn make_pair(&mut self, pair: &VethPair<'_>, bridge: Option<&Link>) -> Result<(), Failure> {
        let bridge = bridge.map(|bridge| bridge.index);
        match veth::create(&mut self.host, pair, bridge, &self.namespace) {
            Err(error) if error.errno() == Some(Errno::EEXIST) => {
                // Nobody else uses the name on the host: it's what an ADD left whose record was lost.
                link::delete(&mut self.host, pair.host_name)?;
                match veth::create(&mut self.host, pair, bridge, &self.namespace) {
                    Err(error) if error.errno() == Some(Errno::EEXIST) => {
                        let (ifname, peer) = (pair.container_name.to_owned(), pair.host_name.to_owned());
                        Err(Failure::InterfaceExists { ifname, peer })
                    }
                    other => Ok(other?),
                }
            }
            other => Ok(other?),
        }
    }

    /// Gives the host's end the gateways' addresses, which answers the container's questions for them, and routes the
    /// container's addresses to it.
    fn route_to_container(&mut self, record: &Record) -> Result<(), Failure> {
        let name = &record.host_interface;
        let host = self.find_host_end(name)?;
        // A Pod must not be able to configure the host by router advertisements: on a node that doesn't forward IPv6 they
        // would count.
        sysctl::ensure_if_present(&format!("ipv6/conf/{name}/accept_ra"), "0")?;
        let mut steps = vec![Step { doing: format!("bring up {name}"), message: veth::up(host.index), flags: 0 }];
        if record.addresses.iter().any(|lease| lease.address.addr().is_ipv6()) {
            // By it the node asks for the container's Ethernet address on behalf of others.
            let link_local = naming::host_mac(name).link_local();
            steps.push(Step {
                doing: format!("add the address {link_local} to {name}"),
                message: address::add(host.index, link_local),
                flags: NLM_F_CREATE | NLM_F_REPLACE,
            });
        }
        for lease in &record.addresses {
            if let Some(gateway) = lease.gateway {
                steps.push(Step {
                    doing: format!("add the address {gateway} to {name}"),
                    message: address::add(host.index, gateway.into()),
                    flags: NLM_F_CREATE | NLM_F_REPLACE,
                });
            }
        }
        for route in host_routes(record) {
            steps.push(Step {
                doing: format!("add the route to {} by {name}", route.dst),
                message: route::add(host.index, &route),
                // An address that was another Pod's until a moment ago may still be routed to its link.
                flags: NLM_F_CREATE | NLM_F_REPLACE,
            });
        }
        self.host.batch(&steps)?;
        ensure_forwarding(record.addresses.iter().map(|lease| lease.address.addr()))?;
        Ok(())
    }

    /// Limits the bandwidth while nothing passes yet.
    fn shape(&mut self, record: &Record, alias: &str) -> Result<(), Failure> {
        let Some(bandwidth) = record.bandwidth else { return Ok(()) };
        let host_end = self.find_host_end(&record.host_interface)?;
        let link = record.shaping_interface.as_deref();
        let link = link.map(|name| ShapingLink { name, mac: naming::host_mac(name), alias });
        Ok(shaping::create(&mut self.host, &host_end, &bandwidth, link)?)
    }

    fn find_host_end(&mut self, name: &str) -> Result<Link, Failure> {
        let found = link::find(&mut self.host, name)?;
        found.ok_or_else(|| KernelError::new(format!("find {name}"), Errno::ENODEV).into())
    }

    /// Brings the container's end up, with addresses and routes, in one batch.
    fn configure_container_end(&mut self, attachment: &Attachment, record: &Record) -> Result<Link, Failure> {
        let ifname = &record.key.ifname;
        let link = link::find(&mut self.inside, ifname)?
            .ok_or_else(|| KernelError::new(format!("find {ifname} in the container"), Errno::ENODEV))?;
        if record.container_down {
            return Ok(link);
        }
        if link.ipv6_disabled && record.addresses.iter().any(|lease| lease.address.addr().is_ipv6()) {
            // A namespace whose sysctls disable IPv6 hands that on to new interfaces; this one is asked to have it.
            let switch = format!("ipv6/conf/{ifname}/disable_ipv6");
            self.namespace.within(|| sysctl::ensure(&switch, "0"))??;
        }
        let mut steps = vec![Step {
            doing: format!("bring up {ifname} in the container"),
            message: veth::up(link.index),
            flags: 0,
        }];
        let detects_duplicates = attachment.options.detects_duplicates;
        let own_routes = own_routes(record);
        let options = AddressOptions { without_route: !own_routes.is_empty(), detects_duplicates };
        steps.extend(record.addresses.iter().map(|lease| Step {
            doing: format!("add the address {} to {ifname} in the container", lease.address),
            message: address::add_with(link.index, lease.address, options),
            flags: NLM_F_CREATE | NLM_F_EXCL,
        }));
        steps.extend(own_routes.iter().chain(&record.routes).map(|route| Step {
            doing: format!("add the route to {} in the container", route.dst),
            message: route::add_from(link.index, route, record.source_hint(route)),
            // Behind a route that another network's attachment has to the same place.
            flags: NLM_F_CREATE | NLM_F_APPEND,
        }));
        steps.extend(record.source_rules().map(|(source, table)| Step {
            doing: format!("add the rule from {source} to table {table} in the container"),
            message: source_rule::add(source, table),
            flags: NLM_F_CREATE | NLM_F_EXCL,
        }));
        self.inside.batch(&steps)?;
        let subscribe = || self.namespace.within(Events::of_links)?.map_err(Failure::from);
        link::wait_until_running(&mut self.inside, ifname, subscribe)?;
        if detects_duplicates {
            let addresses: Vec<IpAddr> = record.addresses.iter().map(|lease| lease.address.addr()).collect();
            address::wait_until_verified(&mut self.inside, &self.namespace, link.index, &addresses)?;
        }
        Ok(link)
    }
}

/// The gateway addresses that the bridge carries: those of all ranges, or, where another plugin gave the addresses,
/// theirs.
pub(super) fn gateways(attachment: &Attachment, leases: &[Lease]) -> Vec<IpNet> {
    let mut gateways: Vec<IpNet> = Vec::new();
    // The prefix is the subnet's own, so it fits its gateway.
    for range in attachment.sets.iter().flat_map(|set| &set.0) {
        gateways.extend(IpNet::new(range.gateway, range.subnet.prefix_len()).ok());
    }
    if attachment.sets.is_empty() {
        for lease in leases {
            gateways.extend(lease.gateway.and_then(|gateway| IpNet::new(gateway, lease.address.prefix_len()).ok()));
        }
    }
    gateways.dedup();
    gateways
}

/// The subnets whose traffic is masqueraded: those of all ranges, or, where another plugin gave the addresses, theirs.
pub(super) fn masqueraded(attachment: &Attachment, leases: &[Lease]) -> Vec<IpNet> {
    let ranges: Vec<IpNet> = attachment.sets.iter().flat_map(|set| &set.0).map(|range| range.subnet).collect();
    if ranges.is_empty() { leases.iter().map(|lease| lease.address.trunc()).collect() } else { ranges }
}

/// The routes by which the node reaches a container in routed mode.
pub(super) fn host_routes(record: &Record) -> Vec<Route> {
    record.addresses.iter().map(|lease| Route::on_link(lease.address.addr())).collect()
}

/// The name of the link that carries the gateways' addresses instead of the bridge, if a VLAN has them.
pub(super) fn gateway_link(attachment: &Attachment) -> Option<String> {
    let vlans = attachment.options.vlans.as_ref().filter(|vlans| vlans.untagged != DEFAULT_VLAN)?;
    attachment.bridge.as_ref().filter(|_| attachment.is_gateway).map(|bridge| gateway_name(bridge, vlans))
}

/// Sees that the node forwards packets of the families of `addresses`.
fn ensure_forwarding(addresses: impl Iterator<Item = IpAddr>) -> Result<(), KernelError> {
    let (ipv4, ipv6): (Vec<IpAddr>, Vec<IpAddr>) = addresses.partition(IpAddr::is_ipv4);
    if !ipv4.is_empty() {
        sysctl::ensure(sysctl::FORWARD_V4, "1")?;
    }
    if !ipv6.is_empty() {
        sysctl::ensure(sysctl::FORWARD_V6, "1")?;
    }
    Ok(())
}
