//! ADD: attach a container to the network.

use std::{
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL};
use nix::errno::Errno;
use serde_json::Value;

use super::{
    check,
    result::{AddResult, ResultAddress, ResultInterface},
};
use crate::{
    config::{
        invocation::AttachmentCall,
        network::{Attachment, NetworkConfig, Route},
    },
    error::Failure,
    kernel::{
        KernelError, RouteSocket, Step, address, bridge,
        link::{self, Link},
        masquerade,
        netns::Namespace,
        route, sysctl,
        veth::{self, VethPair},
    },
    policy::naming,
    store::{AttachmentState, Kind, Record, Store, VERSION, describe},
};

/// What an ADD works on.
struct Addition<'a> {
    config: &'a NetworkConfig,
    call: &'a AttachmentCall,
    attachment: Attachment,
    namespace: Namespace,
    host: RouteSocket,
    inside: RouteSocket,
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
    let host = RouteSocket::open()?;
    let mut addition = Addition { config, call, attachment, namespace, host, inside };
    addition.refuse_what_is_in_the_way()?;

    let store = Store::new(&config.data_dir, &config.name)?;
    store.create()?;
    let _lock = store.lock_attachment(&call.key)?;
    store.sweep_attachment(&call.key)?;
    if let Some(earlier) = store.read(&call.key)? {
        match earlier.state {
            // The ADD that made it was killed or failed to clean up; nobody got its result.
            AttachmentState::Pending => undo(&store, &mut addition.host, &earlier)?,
            AttachmentState::Active => return addition.repeat(&earlier),
        }
    }
    let mut record = addition.new_record(&store);
    store.reserve(&mut record, &addition.attachment.sets, &addition.attachment.requested)?;
    let made = addition.make(&store, &mut record).and_then(|result| {
        record.state = AttachmentState::Active;
        store.write(&record)?;
        Ok(result)
    });
    match made {
        Ok(result) => Ok(result.to_json(config.version)),
        Err(failure) => match undo(&store, &mut addition.host, &record) {
            Ok(()) => Err(failure),
            // What is left is in the record: DEL, GC or a repeated ADD removes it.
            Err(second) => Err(Failure::Several(vec![failure, second])),
        },
    }
}

/// Removes the attachment's link, and with it everything in the container, and then its record.
///
/// A complete attachment's record first says that it no longer is: whoever finds it after a kill undoes the rest.
pub(super) fn undo(store: &Store, host: &mut RouteSocket, record: &Record) -> Result<(), Failure> {
    if record.state == AttachmentState::Active {
        // It only matters after a kill; a full disk must not keep the link alive.
        let _ = store.write(&Record { state: AttachmentState::Pending, ..record.clone() });
    }
    link::delete(host, &record.host_interface)?;
    store.release(record)?;
    Ok(())
}

impl Addition<'_> {
    /// Refuses what can be seen to fail, before anything is written: a link in the bridge's place, and an interface of
    /// the asked name that is no earlier try of ours.
    fn refuse_what_is_in_the_way(&mut self) -> Result<(), Failure> {
        bridge::find(&mut self.host, &self.attachment.bridge)?;
        let ours = naming::host_interface(&self.config.name, &self.call.key);
        let ifname = &self.call.key.ifname;
        if link::find(&mut self.inside, ifname)?.is_some() && link::find(&mut self.host, &ours)?.is_none() {
            return Err(Failure::InterfaceExists { ifname: ifname.clone() });
        }
        Ok(())
    }

    fn new_record(&self, store: &Store) -> Record {
        let host_interface = naming::host_interface(&self.config.name, &self.call.key);
        Record {
            version: VERSION,
            boot_id: store.boot_id().to_owned(),
            state: AttachmentState::Pending,
            kind: Kind::Bridge,
            network: self.config.name.clone(),
            key: self.call.key.clone(),
            netns: self.call.netns.clone().unwrap_or_default().to_string_lossy().into_owned(),
            netns_identity: Some(self.namespace.identity()),
            pod: self.call.args.pod.clone(),
            bridge: self.attachment.bridge.clone(),
            host_mac: naming::host_mac(&host_interface).to_string(),
            host_interface,
            container_mac: String::new(),
            mtu: None,
            addresses: Vec::new(),
            routes: Vec::new(),
            ipam_plugin: None,
            masquerade: self.attachment.masquerade,
            ports: Vec::new(),
            bandwidth: None,
            shaping_interface: None,
            spoof_check: false,
            // A clock before 1970 is told as 1970.
            created_at_seconds: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        }
    }

    /// Makes what the record says, and fills in what follows from its addresses.
    fn make(&mut self, store: &Store, record: &mut Record) -> Result<AddResult, Failure> {
        let first = record.addresses.first().map(|lease| lease.address.addr());
        let container_mac = self.attachment.mac.unwrap_or_else(|| naming::container_mac(first, &record.host_interface));
        record.container_mac = container_mac.to_string();
        record.routes = self.attachment.routes.iter().map(|route| with_gateway(route, record)).collect();

        let bridge = self.make_bridge(store)?;
        if self.attachment.masquerade {
            let subnets: Vec<IpNet> =
                self.attachment.sets.iter().flat_map(|set| &set.0).map(|range| range.subnet).collect();
            masquerade::ensure(&subnets)?;
        }
        let mtu = self.attachment.mtu.unwrap_or(bridge.mtu);
        record.mtu = Some(mtu);
        let pair = VethPair {
            host_name: &record.host_interface,
            host_mac: naming::host_mac(&record.host_interface),
            container_name: &record.key.ifname,
            container_mac,
            mtu,
        };
        self.make_pair(&pair, &bridge)?;
        let alias = format!("{}:{}", bridge::alias(&record.network), describe(record));
        let (hairpin, isolated) = (self.attachment.hairpin, self.attachment.isolated);
        veth::configure_host_end(&mut self.host, &record.host_interface, &alias, hairpin, isolated)?;
        let container = self.configure_container_end(record)?;
        link::wait_until_running(&mut self.host, &record.host_interface)?;
        // The first port brings the bridge to life; a bridge with spanning tree takes its time, for which nobody waits.
        let bridge = link::find(&mut self.host, &record.bridge)?.unwrap_or(bridge);
        Ok(self.result(record, &bridge, &container))
    }

    fn make_bridge(&mut self, store: &Store) -> Result<Link, Failure> {
        let name = &self.attachment.bridge;
        let mac = naming::bridge_mac(store.boot_id(), name);
        let bridge = bridge::ensure(&mut self.host, name, &self.config.name, mac, self.attachment.mtu)?;
        if self.attachment.is_gateway && !self.attachment.sets.is_empty() {
            let ranges = self.attachment.sets.iter().flat_map(|set| &set.0);
            let mut gateways: Vec<IpNet> = Vec::new();
            for range in ranges {
                // The prefix is the subnet's own, so it fits its gateway.
                gateways.extend(IpNet::new(range.gateway, range.subnet.prefix_len()).ok());
            }
            gateways.dedup();
            bridge::ensure_addresses(&mut self.host, &bridge, &gateways, self.attachment.force_address)?;
            if gateways.iter().any(|gateway| gateway.addr().is_ipv4()) {
                sysctl::ensure(sysctl::FORWARD_V4, "1")?;
            }
            if gateways.iter().any(|gateway| gateway.addr().is_ipv6()) {
                sysctl::ensure(sysctl::FORWARD_V6, "1")?;
            }
        }
        Ok(bridge)
    }

    fn make_pair(&mut self, pair: &VethPair<'_>, bridge: &Link) -> Result<(), Failure> {
        match veth::create(&mut self.host, pair, bridge.index, &self.namespace) {
            Err(error) if error.errno() == Some(Errno::EEXIST) => {
                // Nobody else uses the name on the host: it's what an ADD left whose record was lost.
                link::delete(&mut self.host, pair.host_name)?;
                match veth::create(&mut self.host, pair, bridge.index, &self.namespace) {
                    Err(error) if error.errno() == Some(Errno::EEXIST) => {
                        Err(Failure::InterfaceExists { ifname: pair.container_name.to_owned() })
                    }
                    other => Ok(other?),
                }
            }
            other => Ok(other?),
        }
    }

    /// Brings the container's end up, with addresses and routes, in one batch.
    fn configure_container_end(&mut self, record: &Record) -> Result<Link, Failure> {
        let ifname = &record.key.ifname;
        let link = link::find(&mut self.inside, ifname)?
            .ok_or_else(|| KernelError::new(format!("find {ifname} in the container"), Errno::ENODEV))?;
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
        steps.extend(record.addresses.iter().map(|lease| Step {
            doing: format!("add the address {} to {ifname} in the container", lease.address),
            message: address::add(link.index, lease.address),
            flags: NLM_F_CREATE | NLM_F_EXCL,
        }));
        steps.extend(record.routes.iter().map(|route| Step {
            doing: format!("add the route to {} in the container", route.dst),
            message: route::add(link.index, route),
            // Behind a route that another network's attachment has to the same place.
            flags: NLM_F_CREATE | NLM_F_APPEND,
        }));
        self.inside.batch(&steps)?;
        link::wait_until_running(&mut self.inside, ifname)?;
        Ok(link)
    }

    /// Answers an ADD of an attachment that is complete: with the same result if all of it is still there.
    ///
    /// The spec leaves it to the runtime not to ask; a runtime that was killed before it read the answer asks again.
    fn repeat(&mut self, record: &Record) -> Result<Value, Failure> {
        let differences = check::compare_with_record(record, &mut self.host, &mut self.inside)?;
        let bridge = bridge::find(&mut self.host, &record.bridge)?;
        let container = link::find(&mut self.inside, &record.key.ifname)?;
        match (bridge, container) {
            (Some(bridge), Some(container)) if differences.is_empty() => {
                Ok(self.result(record, &bridge, &container).to_json(self.config.version))
            }
            _ => Err(Failure::AttachmentDiffers(differences)),
        }
    }

    fn result(&self, record: &Record, bridge: &Link, container: &Link) -> AddResult {
        let bridge_mac: Vec<String> = bridge.mac.iter().map(|byte| format!("{byte:02x}")).collect();
        // As it is spelled in this call: a repeated one may have another way to the same place.
        let sandbox = self.call.netns.as_deref().unwrap_or_else(|| Path::new("")).to_string_lossy();
        let interface = |name: &str, mac: &str, mtu: u32, sandbox: &str| ResultInterface {
            name: name.to_owned(),
            mac: mac.to_owned(),
            mtu,
            sandbox: sandbox.to_owned(),
        };
        AddResult {
            interfaces: vec![
                interface(&record.bridge, &bridge_mac.join(":"), bridge.mtu, ""),
                // Both ends were made with one MTU.
                interface(&record.host_interface, &record.host_mac, container.mtu, ""),
                interface(&record.key.ifname, &record.container_mac, container.mtu, &sandbox),
            ],
            addresses: record
                .addresses
                .iter()
                .map(|lease| ResultAddress { address: lease.address, gateway: lease.gateway, interface: 2 })
                .collect(),
            routes: record.routes.clone(),
            dns: self.attachment.dns.clone(),
        }
    }
}

/// The route with the gateway of its family, unless it says that it has none.
fn with_gateway(route: &Route, record: &Record) -> Route {
    let mut route = route.clone();
    if route.gw.is_none() && !route.is_on_link() {
        let is_ipv4 = route.dst.addr().is_ipv4();
        let lease = record.addresses.iter().find(|lease| lease.address.addr().is_ipv4() == is_ipv4);
        route.gw = lease.and_then(|lease| lease.gateway);
    }
    route
}
