//! From host-local's reservations to records.

use std::{collections::BTreeMap, net::IpAddr, path::Path};

use ipnet::IpNet;

use super::{
    Migration, MigrationEntry, MigrationError, MigrationOutcome, MigrationReport, Sides,
    cache::{self, CachedAdd},
};
use crate::{
    config::{
        invocation::{AttachmentCall, AttachmentKey, CniArgs},
        result::Interface,
    },
    kernel::{
        RouteSocket,
        link::{self, Link},
        netns::Namespace,
    },
    service::{ensure_rules, new_record, with_gateway},
    store::{AttachmentState, Kind, Lease, Record, StoreError, host_local::Holder},
};

/// The interface that Kubernetes' runtimes ask for.
const USUAL_INTERFACE: &str = "eth0";

/// Makes a record of each attachment that host-local has given addresses to: from then on no ADD gives them to another
/// Pod, and CHECK and DEL of these Pods do what they do for Pods of this plugin's own.
///
/// host-local's files stay as they are. Meanwhile nothing else may give addresses of the network: stop the kubelet.
///
/// # Errors
///
/// A config that can't be used, and what keeps reading reservations, the kernel's links or records, or writing these. An
/// attachment that can't be imported is no error: the report says why.
pub fn import_host_local(migration: &Migration) -> Result<MigrationReport, MigrationError> {
    let sides = migration.sides()?;
    let mut report =
        MigrationReport { network: sides.config.name.clone(), dry_run: migration.dry_run, entries: Vec::new() };
    let Some(reservations) = sides.reservations()? else {
        // Nothing found must not look like nothing to do: addresses of running Pods would be given again.
        let directory = sides.directory.display();
        return Err(MigrationError(format!("there are no reservations: the directory {directory} does not exist")));
    };
    let mut attachments: BTreeMap<AttachmentKey, Vec<IpAddr>> = BTreeMap::new();
    for (address, reservation) in reservations.of_addresses() {
        let wrong = match &reservation.holder {
            Holder::Attachment(key) => {
                attachments.entry(key.clone()).or_default().push(address);
                continue;
            }
            Holder::Container(container_id) => {
                let key = AttachmentKey { container_id: container_id.clone(), ifname: USUAL_INTERFACE.to_owned() };
                attachments.entry(key).or_default().push(address);
                continue;
            }
            Holder::Nobody => "its file is empty: host-local was killed, and nobody got the address".to_owned(),
            Holder::Unknown(why) => format!("its file {why}"),
        };
        report.entries.push(MigrationEntry::new(MigrationOutcome::Skipped, vec![address], wrong));
    }
    let links = link::all(&mut RouteSocket::open()?)?;
    if !migration.dry_run && !attachments.is_empty() {
        sides.store.create()?;
    }
    for (key, mut addresses) in attachments {
        addresses.sort();
        let entry = sides.import(&key, &addresses, &links, migration)?;
        report.entries.push(entry.of(&key));
    }
    Ok(report)
}

impl Sides {
    fn import(
        &self,
        key: &AttachmentKey,
        addresses: &[IpAddr],
        links: &[Link],
        migration: &Migration,
    ) -> Result<MigrationEntry, MigrationError> {
        let (cached, mut remarks) = match cache::read(&migration.results, &self.other_name, key) {
            Ok(Some(cached)) => (cached, Vec::new()),
            Ok(None) => (CachedAdd::default(), vec!["the result of its ADD is not in the cache".to_owned()]),
            Err(wrong) => (CachedAdd::default(), vec![wrong]),
        };
        let _lock = if migration.dry_run { None } else { self.store.lock_attachment(key)? };
        let mut record = self.record(key, &cached);
        for address in addresses {
            match self.lease(*address, &cached) {
                Some(lease) => record.addresses.push(lease),
                None => remarks.push(format!("{address} is in no range of the config, so no ADD gives it")),
            }
        }
        self.add_links(&mut record, &cached, links);
        if record.kind == Kind::Ipam {
            remarks.push("no link of it was found: its addresses become free by DEL, GC or a reboot".to_owned());
        }
        if cached.has_ports {
            remarks.push("its host ports are the portmap plugin's, and stay until that one's DEL".to_owned());
        }
        let entry = |outcome, detail| MigrationEntry::new(outcome, addresses.to_vec(), detail).of_pod(&cached.pod);
        if record.addresses.is_empty() {
            return Ok(entry(MigrationOutcome::Skipped, remarks.join("; ")));
        }
        match self.store.read(key) {
            Ok(None) => {}
            Ok(Some(known)) if record.addresses.iter().all(|lease| known.holds(lease.address.addr())) => {
                return Ok(entry(MigrationOutcome::AlreadyThere, String::new()));
            }
            Ok(Some(_)) => {
                return Ok(entry(MigrationOutcome::Skipped, "there is a record of it with other addresses".to_owned()));
            }
            Err(error @ (StoreError::Corrupt { .. } | StoreError::OtherVersion { .. })) => {
                return Ok(entry(MigrationOutcome::Skipped, error.to_string()));
            }
            Err(error) => return Err(error.into()),
        }
        match self.store.adopt(&record, migration.dry_run) {
            Err(error @ (StoreError::Taken { .. } | StoreError::Corrupt { .. } | StoreError::OtherVersion { .. })) => {
                return Ok(entry(MigrationOutcome::Skipped, error.to_string()));
            }
            other => other?,
        }
        if !migration.dry_run {
            let ranges = self.attachment.sets.iter().flat_map(|set| &set.0);
            let subnets: Vec<IpNet> = ranges.map(|range| range.subnet).collect();
            ensure_rules(&self.config.data_dir, &record, &subnets)?;
        }
        Ok(entry(MigrationOutcome::Migrated, remarks.join("; ")))
    }

    fn record(&self, key: &AttachmentKey, cached: &CachedAdd) -> Record {
        let args = CniArgs { pod: cached.pod.clone(), ..CniArgs::default() };
        let netns = Some(cached.netns.clone().into()).filter(|_| !cached.netns.is_empty());
        let call = AttachmentCall { key: key.clone(), netns, args };
        Record {
            state: AttachmentState::Active,
            kind: Kind::Ipam,
            masquerade: self.attachment.masquerade,
            ..new_record(&self.config, &call, &self.store)
        }
    }

    /// The address with prefix and gateway: the config's if the address is in one of its subnets, else the result's.
    fn lease(&self, address: IpAddr, cached: &CachedAdd) -> Option<Lease> {
        let sets = &self.attachment.sets;
        let offered = sets.iter().position(|set| set.range_of(address).is_some());
        let range = sets.iter().flat_map(|set| &set.0).find(|range| range.subnet.contains(&address));
        if let Some(range) = range {
            let address = IpNet::new(address, range.subnet.prefix_len()).ok()?;
            return Some(Lease { address, gateway: Some(range.gateway), set: offered });
        }
        let told = cached.result.addresses.iter().find(|told| told.address.addr() == address)?;
        Some(Lease { address: told.address, gateway: told.gateway, set: None })
    }

    /// Adds the veth pair that the reference bridge made: as the kernel has it, or if its namespace can't be entered, as
    /// the result tells it.
    fn add_links(&self, record: &mut Record, cached: &CachedAdd, links: &[Link]) {
        let interfaces = &cached.result.interfaces;
        let told = |interface: &&Interface| interface.name == record.key.ifname && !interface.sandbox.is_empty();
        let container = interfaces.iter().find(told);
        if let Some((namespace, inside, host)) = find_pair(&cached.netns, &record.key.ifname, links) {
            record.netns_identity = Some(namespace.identity());
            record.container_mac = inside.mac_text();
            record.mtu = Some(inside.mtu);
            record.host_interface.clone_from(&host.name);
            record.host_mac = host.mac_text();
            if let Some(bridge) = links.iter().find(|link| Some(link.index) == host.master) {
                record.bridge.clone_from(&bridge.name);
            }
        } else if let Some(container) = container
            && let [bridge, host, ..] = interfaces.as_slice()
            && bridge.sandbox.is_empty()
            && host.sandbox.is_empty()
        {
            // The reference's order: the bridge, the host's end, the container's.
            record.bridge.clone_from(&bridge.name);
            record.host_interface.clone_from(&host.name);
            record.host_mac.clone_from(&host.mac);
            record.container_mac.clone_from(&container.mac);
        }
        if !record.host_interface.is_empty() {
            record.kind = if record.bridge.is_empty() { Kind::Routed } else { Kind::Bridge };
            record.routes = cached.result.routes.iter().map(|route| with_gateway(route, record)).collect();
            record.dns.clone_from(&cached.result.dns);
        }
    }
}

/// The two ends of the veth pair whose one end is called `ifname` in the namespace at `path`.
fn find_pair<'a>(path: &str, ifname: &str, links: &'a [Link]) -> Option<(Namespace, Link, &'a Link)> {
    let namespace = Namespace::open(Path::new(path)).ok()?;
    let inside = link::find(&mut namespace.route_socket().ok()?, ifname).ok()??;
    // Each names the other by its index; that of a pair elsewhere would have to agree in both.
    let is_peer =
        |link: &&Link| link.kind == "veth" && Some(link.index) == inside.peer && link.peer == Some(inside.index);
    let host = links.iter().find(is_peer)?;
    Some((namespace, inside, host))
}
