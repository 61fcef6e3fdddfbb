//! The picture that the doctor judges: records, and what the kernel has.

use std::{
    collections::BTreeMap,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use keelson_host::HostRoot;
use nix::sys::statvfs::{FsFlags, statvfs};

use super::{OperatorError, Places, elements::known_owners, places::FoundNetwork};
use crate::{
    kernel::{
        KernelError, NetfilterSocket, RouteSocket, address, elements,
        link::{self, Link},
        netns::{Namespace, NamespaceError},
        nft_chains, route, shaping, sysctl,
    },
    policy::{
        doctor::{
            AttachmentFacts, FilesystemFacts, Interfaces, NamespaceFacts, NetworkFacts, SetUsage, Snapshot, owner,
        },
        link_file, naming,
    },
    service::{missing_source_rules, rule_differences},
    store::{Record, StoreError},
};

/// Where udev's link files lie (systemd.link(5)).
const LINK_FILES: [&str; 4] =
    ["/etc/systemd/network", "/run/systemd/network", "/usr/lib/systemd/network", "/lib/systemd/network"];

/// Looks at everything.
pub(super) fn gather(places: &Places) -> Result<Snapshot, OperatorError> {
    let mut netfilter = NetfilterSocket::open()?;
    let earlier = elements::all(&mut netfilter)?;
    // Links before records: an ADD writes its record first, so a link of ours without one had none.
    let mut socket = RouteSocket::open()?;
    let host = interfaces(&mut socket)?;
    let networks = match places.networks() {
        // There is still the installation to look at.
        Err(OperatorError::NoNetwork(_)) => Vec::new(),
        other => other?,
    };
    let networks: Vec<NetworkFacts> =
        networks.iter().map(|network| network_facts(network, places.root(), &mut socket)).collect::<Result<_, _>>()?;
    let mut snapshot = Snapshot {
        networks,
        host,
        forward_chains: nft_chains::forwarding()?,
        legacy_tables: legacy_tables(),
        mac_policies: mac_policies(places.root()),
        now_seconds: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        ..Snapshot::default()
    };
    let records = snapshot.networks.iter().flat_map(|network| &network.attachments);
    snapshot.rules_missing = rule_differences(records.map(|attachment| &attachment.record))?;
    snapshot.switches = switches(&snapshot);
    snapshot.known_owners = known_owners(places)?;
    // Those that are there before and after, as an ADD or DEL may have been at work in between.
    snapshot.elements = elements::all(&mut netfilter)?;
    snapshot.elements.retain(|element| earlier.contains(element));
    Ok(snapshot)
}

fn network_facts(
    network: &FoundNetwork,
    root: &HostRoot,
    host: &mut RouteSocket,
) -> Result<NetworkFacts, OperatorError> {
    let store = &network.store;
    let mut facts = NetworkFacts {
        name: network.name.clone(),
        directory: store.directory().to_owned(),
        leftovers: store.leftovers()?,
        filesystem: filesystem(store.directory()),
        ..NetworkFacts::default()
    };
    for key in store.keys()? {
        match store.read(&key) {
            Ok(Some(record)) => facts.attachments.push(attachment_facts(record, root, host)?),
            // A DEL removed it since.
            Ok(None) => {}
            Err(error) => facts.unreadable.push((key, error.to_string())),
        }
    }
    let records: Vec<&Record> = facts.attachments.iter().map(|attachment| &attachment.record).collect();
    facts.usage = usage(network, &records)?;
    Ok(facts)
}

/// The record with what there is in its container, if its namespace is still the one that was attached.
pub(super) fn attachment_facts(
    record: Record,
    root: &HostRoot,
    host: &mut RouteSocket,
) -> Result<AttachmentFacts, KernelError> {
    let mut missing_source_rules = Vec::new();
    let namespace = match Namespace::open(&root.join(&record.netns)) {
        Ok(namespace) if record.netns_identity.is_none_or(|identity| identity == namespace.identity()) => {
            match look_inside(&namespace, &record) {
                Ok((inside, missing)) => {
                    missing_source_rules = missing;
                    NamespaceFacts::Entered(inside)
                }
                Err(error) => NamespaceFacts::Closed(error.to_string()),
            }
        }
        // Another container's by now, or only the empty file that a namespace was mounted on.
        Ok(_) | Err(NamespaceError::NotANamespace { .. } | NamespaceError::Own { .. }) => NamespaceFacts::Gone,
        Err(NamespaceError::Open { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            NamespaceFacts::Gone
        }
        Err(error) => NamespaceFacts::Closed(error.to_string()),
    };
    let shaping_differences = match &record.bandwidth {
        Some(bandwidth) => {
            shaping::differences(host, &record.host_interface, bandwidth, record.shaping_interface.as_deref())?
        }
        None => Vec::new(),
    };
    Ok(AttachmentFacts { record, namespace, shaping_differences, missing_source_rules })
}

fn look_inside(namespace: &Namespace, record: &Record) -> Result<(Interfaces, Vec<(IpAddr, u32)>), NamespaceError> {
    let mut inside = namespace.route_socket()?;
    Ok((interfaces(&mut inside)?, missing_source_rules(record, &mut inside)?))
}

pub(super) fn interfaces(socket: &mut RouteSocket) -> Result<Interfaces, KernelError> {
    Ok(Interfaces { links: link::all(socket)?, addresses: address::all(socket)?, routes: route::all(socket)? })
}

/// Whether this seems to be the network namespace that the network's links are in: one of them is, or there are none.
pub(super) fn is_here(network: &FoundNetwork, links: &[Link]) -> Result<bool, StoreError> {
    let mut expects_links = false;
    for (_, record) in network.store.records()? {
        let Ok(record) = record else { continue };
        if !record.host_interface.is_empty() {
            expects_links = true;
            if links.iter().any(|link| [&record.host_interface, &record.bridge].contains(&&link.name)) {
                return Ok(true);
            }
        }
    }
    Ok(!expects_links)
}

/// Those of `links` that the network made and that belong to no attachment of it.
pub(super) fn links_without_record<'a>(links: &'a [Link], network: &FoundNetwork) -> Result<Vec<&'a Link>, StoreError> {
    let mut known = Vec::new();
    for key in network.store.keys()? {
        match network.store.read(&key) {
            Ok(record) => known.extend(record.into_iter().flat_map(|record| {
                [Some(record.host_interface), record.shaping_interface].into_iter().flatten().collect::<Vec<_>>()
            })),
            Err(_) => known.extend(naming::own_links(&network.name, &key)),
        }
    }
    let ours = links.iter().filter(|link| owner(link) == Some(network.name.as_str()) && !known.contains(&link.name));
    Ok(ours.collect())
}

/// How full the network's range sets are.
pub(super) fn usage(network: &FoundNetwork, records: &[&Record]) -> Result<Vec<SetUsage>, StoreError> {
    let leases = || records.iter().flat_map(|record| &record.addresses);
    let mut usage = Vec::new();
    for (set, allocation) in network.store.allocations()? {
        let used = leases().filter(|lease| lease.set == Some(set)).count() as u128;
        let gateways: Vec<_> =
            leases().filter(|lease| lease.set == Some(set)).filter_map(|lease| lease.gateway).collect();
        let capacity = capacity_of(&allocation.ranges, &gateways);
        usage.push(SetUsage { set, used, capacity, released: allocation.released(), ranges: allocation.ranges });
    }
    Ok(usage)
}

/// How many addresses `ranges` have for Pods: all but the gateways, which are told by who already has one.
fn capacity_of(ranges: &str, gateways: &[IpAddr]) -> u128 {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    };
    let mut capacity: u128 = 0;
    for range in ranges.split(',') {
        let ends = range.split_once('-').and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
        let Some((first, last)) = ends.map(|(first, last)| (bits(first), bits(last))) else { continue };
        let has_gateway = gateways.iter().any(|gateway| (first..=last).contains(&bits(*gateway)));
        capacity = capacity.saturating_add(last.saturating_sub(first)).saturating_add(u128::from(!has_gateway));
    }
    capacity
}

fn filesystem(directory: &Path) -> FilesystemFacts {
    let Ok(space) = statvfs(directory) else { return FilesystemFacts::default() };
    FilesystemFacts {
        read_only: space.flags().contains(FsFlags::ST_RDONLY),
        // A filesystem that makes inodes as it goes tells of none at all.
        full: space.blocks_free() == 0 || (space.files() > 0 && space.files_free() == 0),
    }
}

/// The switches that checks ask for; those that the kernel lacks are left out.
fn switches(snapshot: &Snapshot) -> BTreeMap<String, String> {
    let fixed = [sysctl::FORWARD_V4, sysctl::FORWARD_V6, "bridge/bridge-nf-call-iptables", "ipv4/conf/all/rp_filter"];
    let of_links =
        snapshot.host.links.iter().flat_map(|link| {
            [format!("ipv6/conf/{}/accept_ra", link.name), format!("ipv4/conf/{}/rp_filter", link.name)]
        });
    let paths = fixed.into_iter().map(str::to_owned).chain(of_links);
    paths.filter_map(|path| sysctl::read(&path).ok().map(|value| (path, value))).collect()
}

/// The tables that the older iptables has in the kernel; it tells only their names.
fn legacy_tables() -> Vec<String> {
    let read = |family: &str| fs::read_to_string(format!("/proc/thread-self/net/{family}_tables_names"));
    let names = ["ip", "ip6"].into_iter().filter_map(|family| read(family).ok());
    names.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).collect()
}

fn mac_policies(root: &HostRoot) -> Vec<PathBuf> {
    let mut files: Vec<(String, String)> = Vec::new();
    for directory in LINK_FILES {
        let Ok(entries) = fs::read_dir(root.join(directory)) else { continue };
        for path in entries.filter_map(|entry| entry.ok().map(|entry| entry.path())) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            // The same name in an earlier directory takes its place.
            let is_new = !files.iter().any(|(other, _)| other.ends_with(&format!("/{name}")));
            if name.ends_with(".link")
                && is_new
                && let Ok(text) = fs::read_to_string(&path)
            {
                files.push((path.to_string_lossy().into_owned(), text));
            }
        }
    }
    link_file::that_changes_addresses(&files, "kl0000000000000", "veth").map(PathBuf::from).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_inside_a_range_is_for_no_pod() {
        assert_eq!(capacity_of("10.0.0.1-10.0.0.6", &["10.0.0.1".parse().unwrap()]), 5);
        assert_eq!(capacity_of("10.0.0.10-10.0.0.20,10.1.0.1-10.1.0.1", &["10.0.0.1".parse().unwrap()]), 12);
        assert_eq!(capacity_of("fd00::1-fd00::ffff", &["fd00::1".parse().unwrap()]), 0xfffe);
        assert_eq!(capacity_of("nonsense", &[]), 0);
    }
}
