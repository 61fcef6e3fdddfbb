//! ADD: attach a container to the network.

use std::{
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use ipnet::IpNet;
use serde_json::Value;

use super::{
    check,
    delegate::{Delegate, DelegateError, delete_by},
    heal, rules, source_routing,
    wire::{Wire, Wired, gateway_link, masqueraded},
};
use crate::{
    config::{
        invocation::AttachmentCall,
        network::{Attachment, NetworkConfig},
        result::{Address, CniResult, Interface, unspeakable},
        route::{Route, ipv6_default},
    },
    error::Failure,
    kernel::{RouteSocket, bridge, link, netns::Namespace},
    policy::naming,
    store::{AttachmentState, Kind, Lease, Record, Request, Store},
};

/// What an ADD works on.
struct Addition<'a> {
    config: &'a NetworkConfig,
    call: &'a AttachmentCall,
    attachment: Attachment,
    /// What the plugins before this one in the chain made.
    previous: CniResult,
    wire: Wire,
}

/// Attaches the container and gives the result to print.
///
/// Everything is checked before anything is done. Then the record says what is going to be made, before it is made: who
/// comes after a kill undoes by it. An error undoes what was done.
pub(super) fn add(config: &NetworkConfig, call: &AttachmentCall) -> Result<Value, Failure> {
    // ADD isn't parsed without CNI_NETNS; an empty path can't be opened.
    let namespace = Namespace::open(&call.netns.clone().unwrap_or_default())?;
    let inside = namespace.route_socket()?;
    let attachment = config.attachment(&call.args)?;
    let previous = config.prev_result()?.unwrap_or_default();
    let delegate = Delegate::of(config)?;
    let wire = Wire { namespace, host: RouteSocket::open()?, inside };
    let mut addition = Addition { config, call, attachment, previous, wire };
    addition.refuse_what_is_in_the_way()?;

    let store = Store::new(&config.data_dir, &config.name)?;
    store.create()?;
    let _lock = store.lock_attachment(&call.key)?;
    store.sweep_attachment(&call.key)?;
    if let Some(earlier) = store.read(&call.key)? {
        match earlier.state {
            // The ADD that made it was killed or failed to clean up; nobody got its result.
            AttachmentState::Pending => addition.roll_back(&store, delegate.as_ref(), &earlier)?,
            AttachmentState::Active => return addition.repeat(&earlier),
        }
    }
    let mut record = addition.new_record(&store);
    heal::reserve(&store, &mut addition.wire.host, &mut record, &Request::from(&addition.attachment))?;
    let made = addition.attach(&store, delegate.as_ref(), &mut record).and_then(|result| {
        record.state = AttachmentState::Active;
        store.write(&record)?;
        Ok(result)
    });
    match made {
        Ok(result) => Ok(result.to_json(config.version)),
        Err(failure) => match addition.roll_back(&store, delegate.as_ref(), &record) {
            Ok(()) => Err(failure),
            // What is left is in the record: DEL, GC or a repeated ADD removes it.
            Err(second) => Err(Failure::Several(vec![failure, second])),
        },
    }
}

/// Gives up what nftables does for the attachment, removes its link, and with it everything in the container, and then
/// its record. Before that `give_back` returns addresses that are another plugin's: if it can't, the container has lost its
/// network all the same, and the record stays for the next try.
///
/// A complete attachment's record first says that it no longer is: whoever finds it after a kill undoes the rest.
pub(super) fn undo(
    store: &Store,
    host: &mut RouteSocket,
    record: &Record,
    give_back: impl FnOnce() -> Result<(), Failure>,
) -> Result<(), Failure> {
    store.mark_pending(record);
    let _to_close = rules::end(record)?;
    if !record.host_interface.is_empty() {
        link::delete(host, &record.host_interface)?;
    }
    if let Some(name) = &record.shaping_interface {
        link::delete(host, name)?;
    }
    source_routing::undo(record)?;
    give_back()?;
    store.release(record)?;
    Ok(())
}

impl Addition<'_> {
    /// Refuses what can be seen to fail, before anything is written: a link in the bridge's place, and an interface of
    /// the asked name that is no earlier try of ours.
    fn refuse_what_is_in_the_way(&mut self) -> Result<(), Failure> {
        if let Some(bridge) = &self.attachment.bridge {
            bridge::find(&mut self.wire.host, bridge)?;
        }
        let ours = naming::host_interface(&self.config.name, &self.call.key);
        let ifname = &self.call.key.ifname;
        // One of ours that no record knows may be known to records that lie elsewhere.
        if link::find(&mut self.wire.inside, ifname)?.is_some() && !self.is_repeated()? {
            return Err(Failure::InterfaceExists { ifname: ifname.clone(), peer: ours });
        }
        rules::refuse_listened_ports(&self.attachment.ports)
    }

    /// Whether there is a record of the attachment.
    fn is_repeated(&self) -> Result<bool, Failure> {
        Ok(Store::new(&self.config.data_dir, &self.config.name)?.read(&self.call.key)?.is_some())
    }

    fn new_record(&self, store: &Store) -> Record {
        let host_interface = naming::host_interface(&self.config.name, &self.call.key);
        let bridge = self.attachment.bridge.clone();
        Record {
            kind: if bridge.is_some() { Kind::Bridge } else { Kind::Routed },
            netns_identity: Some(self.wire.namespace.identity()),
            bridge: bridge.unwrap_or_default(),
            host_mac: naming::host_mac(&host_interface).to_string(),
            host_interface,
            ipam_plugin: self.config.ipam_plugin.clone(),
            masquerade: self.attachment.masquerade,
            ports: self.attachment.ports.clone(),
            spoof_check: self.attachment.spoof_check,
            container_down: self.attachment.options.is_left_down,
            gateway_interface: self.gateway_interface(),
            bandwidth: self.attachment.bandwidth,
            shaping_interface: self
                .attachment
                .bandwidth
                .and_then(|bandwidth| bandwidth.egress)
                .map(|_| naming::shaping_interface(&self.config.name, &self.call.key)),
            ..new_record(self.config, self.call, store)
        }
    }

    /// The host's link that is to carry the gateways' addresses. In routed mode each attachment's own does.
    fn gateway_interface(&self) -> Option<String> {
        let bridge = self.attachment.bridge.clone().filter(|_| self.attachment.is_gateway)?;
        Some(gateway_link(&self.attachment).unwrap_or(bridge))
    }

    /// Gets addresses where another plugin gives them, and makes the links.
    fn attach(
        &mut self,
        store: &Store,
        delegate: Option<&Delegate<'_>>,
        record: &mut Record,
    ) -> Result<CniResult, Failure> {
        let mut routes = self.attachment.routes.clone();
        let mut ipam_dns = self.attachment.ipam_dns.clone();
        if let Some(delegate) = delegate {
            let given = delegate.add()?;
            record.addresses = self.leases(&given.addresses, delegate.plugin())?;
            routes = given.routes;
            self.add_default_routes(&mut routes, record);
            ipam_dns = given.dns;
            store.write(record)?;
        }
        record.routes = routes.iter().map(|route| with_gateway(route, record)).collect();
        let _lock = match self.attachment.options.source_routing {
            None => None,
            Some(routing) => {
                let lock = source_routing::choose(&mut self.wire, routing, record)?;
                store.write(record)?;
                lock
            }
        };
        record.dns = if self.attachment.dns.is_empty() { ipam_dns } else { self.attachment.dns.clone() };
        self.refuse_unspeakable(record)?;
        if self.attachment.masquerade && self.attachment.asks_for_iptables {
            eprintln!("ipMasqBackend: \"iptables\" is done with nftables (table inet keelson)");
        }
        rules::ensure(&self.config.data_dir, record, &masqueraded(&self.attachment, &record.addresses))?;
        let wired = self.wire.make(store, &self.attachment, record)?;
        rules::start(&mut self.wire.host, record)?;
        Ok(self.result(record, &wired))
    }

    /// Refuses addresses that the config's version of the spec has no place for in a result.
    fn refuse_unspeakable(&self, record: &Record) -> Result<(), Failure> {
        let own = record.addresses.iter().map(|lease| lease.address);
        let addresses = self.previous.addresses.iter().map(|address| address.address).chain(own);
        let (ipv4, ipv6): (Vec<IpNet>, Vec<IpNet>) = addresses.partition(|address| address.addr().is_ipv4());
        match unspeakable(self.config.version, ipv4.len(), ipv6.len()) {
            None => Ok(()),
            Some(reason) => Err(Failure::Unspeakable(reason)),
        }
    }

    /// The addresses that another plugin gave, each with a gateway if the bridge is to have one.
    fn leases(&self, given: &[Address], plugin: &str) -> Result<Vec<Lease>, DelegateError> {
        if given.is_empty() {
            let fault = "IPAM plugin returned missing IP config".to_owned();
            return Err(DelegateError::NoResult { plugin: plugin.to_owned(), fault });
        }
        let needs_gateway = self.attachment.is_gateway || self.attachment.bridge.is_none();
        let lease = |address: &Address| Lease {
            address: address.address,
            gateway: address.gateway.or_else(|| needs_gateway.then(|| first_host(address.address))),
            set: None,
        };
        Ok(given.iter().map(lease).collect())
    }

    fn add_default_routes(&self, routes: &mut Vec<Route>, record: &Record) {
        for default in [IpNet::default(), ipv6_default()] {
            let is_ipv4 = default.addr().is_ipv4();
            let wanted = record.addresses.iter().any(|lease| lease.address.addr().is_ipv4() == is_ipv4);
            if self.attachment.is_default_gateway && wanted && !routes.iter().any(|route| route.dst == default) {
                routes.push(Route::to(default));
            }
        }
    }

    /// Undoes what the record says, and returns the addresses to the plugin that they came from.
    fn roll_back(&mut self, store: &Store, delegate: Option<&Delegate<'_>>, record: &Record) -> Result<(), Failure> {
        undo(store, &mut self.wire.host, record, || delete_by(delegate, Some(record)))
    }

    /// Answers an ADD of an attachment that is complete: with the same result if all of it is still there.
    ///
    /// The spec leaves it to the runtime not to ask; a runtime that was killed before it read the answer asks again.
    fn repeat(&mut self, record: &Record) -> Result<Value, Failure> {
        let mut differences = check::compare_with_record(record, &mut self.wire.host, &mut self.wire.inside)?;
        let bridge = bridge::find(&mut self.wire.host, &record.bridge)?;
        let gateway = match gateway_link(&self.attachment) {
            Some(name) => link::find(&mut self.wire.host, &name)?,
            None => None,
        };
        let container = link::find(&mut self.wire.inside, &record.key.ifname)?;
        if let Some(container) = &container {
            check::compare_mac(container, &record.container_mac, &mut differences);
        }
        match container {
            Some(container) if differences.is_empty() => {
                Ok(self.result(record, &Wired { bridge, container, gateway }).to_json(self.config.version))
            }
            _ => Err(Failure::AttachmentDiffers(differences)),
        }
    }

    /// [bridge, the host's end, the container's end], without the bridge in routed mode: chained plugins count on the
    /// order. What earlier plugins made comes first.
    fn result(&self, record: &Record, wired: &Wired) -> CniResult {
        // As it is spelled in this call: a repeated one may have another way to the same place.
        let sandbox = self.call.netns.as_deref().unwrap_or_else(|| Path::new("")).to_string_lossy();
        let interface = |name: &str, mac: &str, mtu: u32, sandbox: &str| Interface {
            name: name.to_owned(),
            mac: mac.to_owned(),
            mtu: Some(mtu),
            sandbox: sandbox.to_owned(),
            ..Interface::default()
        };
        let mtu = wired.container.mtu;
        let mut interfaces = Vec::new();
        interfaces
            .extend(wired.bridge.as_ref().map(|bridge| interface(&bridge.name, &bridge.mac_text(), bridge.mtu, "")));
        // Both ends were made with one MTU.
        interfaces.push(interface(&record.host_interface, &record.host_mac, mtu, ""));
        interfaces.push(interface(&record.key.ifname, &record.container_mac, mtu, &sandbox));
        let container = interfaces.len() - 1;
        // What else there is comes after those.
        interfaces.extend(wired.gateway.as_ref().map(|link| interface(&link.name, &link.mac_text(), link.mtu, "")));
        interfaces.extend(record.shaping_interface.as_ref().map(|name| {
            let mac = naming::host_mac(name).to_string();
            interface(name, &mac, mtu, "")
        }));
        let address =
            |lease: &Lease| Address { address: lease.address, gateway: lease.gateway, interface: Some(container) };
        self.previous.clone().followed_by(CniResult {
            interfaces,
            addresses: record.addresses.iter().map(address).collect(),
            routes: record.routes.clone(),
            dns: record.dns.clone(),
        })
    }
}

/// A record of the call that names nothing yet.
pub(crate) fn new_record(config: &NetworkConfig, call: &AttachmentCall, store: &Store) -> Record {
    Record {
        netns: call.netns.clone().unwrap_or_default().to_string_lossy().into_owned(),
        pod: call.args.pod.clone(),
        // A clock before 1970 is told as 1970.
        created_at_seconds: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        ..Record::blank(store.boot_id(), &config.name, call.key.clone())
    }
}

/// The first address after a subnet's own: where a gateway is unless somebody says otherwise.
fn first_host(address: IpNet) -> std::net::IpAddr {
    match address.network() {
        std::net::IpAddr::V4(network) => std::net::Ipv4Addr::from_bits(network.to_bits().saturating_add(1)).into(),
        std::net::IpAddr::V6(network) => std::net::Ipv6Addr::from_bits(network.to_bits().saturating_add(1)).into(),
    }
}

/// The route with the gateway of its family, unless it says that it has none.
pub(crate) fn with_gateway(route: &Route, record: &Record) -> Route {
    let mut route = route.clone();
    if route.gw.is_none() && !route.is_on_link() {
        let is_ipv4 = route.dst.addr().is_ipv4();
        let lease = record.addresses.iter().find(|lease| lease.address.addr().is_ipv4() == is_ipv4);
        route.gw = lease.and_then(|lease| lease.gateway);
    }
    route
}
