//! What nftables does for an attachment: masquerading, host ports, the check of its Ethernet address.

use std::{fs, net::IpAddr, path::Path};

use ipnet::IpNet;

use crate::{
    config::{
        invocation::AttachmentKey,
        ports::{PortMapping, Protocol},
    },
    error::Failure,
    kernel::{
        KernelError, NetfilterSocket, RouteSocket, address, conntrack, link, listener, masquerade,
        ports::{self, Owner, Publication},
        rules::NAT,
        spoofing, sysctl,
    },
    store::{AttachmentState, Kind, Record, Store, describe},
};

/// Refuses host ports on which a process of the host listens, which would never hear of a packet again.
pub(super) fn refuse_listened_ports(ports: &[PortMapping]) -> Result<(), Failure> {
    for mapping in ports {
        for any in [IpAddr::from([0; 4]), IpAddr::from([0; 16])] {
            let address = mapping.address().unwrap_or(any);
            if !mapping.is_of(any.is_ipv4()) {
                continue;
            }
            if let Some(holder) = listener::find(mapping.protocol, address, mapping.host_port) {
                return Err(Failure::PortTaken { port: mapping.to_string(), holder });
            }
        }
    }
    Ok(())
}

/// Sees that the rules are there, with the subnets to masquerade; what somebody removed comes back for all Pods.
pub(crate) fn ensure(data_dir: &Path, record: &Record, masqueraded: &[IpNet]) -> Result<(), Failure> {
    if !record.masquerade && record.ports.is_empty() {
        return Ok(());
    }
    let mut socket = NetfilterSocket::open()?;
    if NAT.ensure(&mut socket)? {
        restore_elements(&mut socket, data_dir, true)?;
    }
    if record.masquerade {
        masquerade::ensure(&mut socket, masqueraded)?;
    }
    Ok(())
}

/// Starts what the attachment is to have beside masquerading, once its links are there.
pub(super) fn start(host: &mut RouteSocket, record: &Record) -> Result<(), Failure> {
    if record.ports.is_empty() && !record.spoof_check {
        return Ok(());
    }
    let mut socket = NetfilterSocket::open()?;
    check_spoofing(&mut socket, record)?;
    let Some(publication) = publication(record) else { return Ok(()) };
    ports::publish(&mut socket, &publication, &mut |owner| is_gone(host, owner))?;
    let is_local = |port: &PortMapping| port.is_of(true) && port.address().is_none_or(|address| address.is_loopback());
    if publication.addresses.iter().any(IpAddr::is_ipv4) && publication.ports.iter().any(is_local) {
        // Clients on the node itself may call 127.0.0.1. The rules keep others from it: they are there by now.
        sysctl::ensure(&format!("ipv4/conf/{}/route_localnet", publication.link), "1")?;
    }
    let mut own = Vec::new();
    for port in publication.ports.iter().filter(|port| port.protocol == Protocol::Udp) {
        if own.is_empty() {
            own = address::all(host)?.into_iter().map(|(_, address)| address.addr()).collect();
        }
        for target in publication.addresses.iter().filter(|target| port.is_of(target.is_ipv4())) {
            let wanted = port.address().map_or_else(|| own.clone(), |address| vec![address]);
            conntrack::end_stale(&mut socket, *target, port.host_port, &wanted)?;
        }
    }
    Ok(())
}

fn check_spoofing(socket: &mut NetfilterSocket, record: &Record) -> Result<(), KernelError> {
    if record.spoof_check {
        spoofing::check(socket, &record.host_interface, &mac_of(record))?;
    }
    Ok(())
}

/// Ends what [`start`] started, or any part of it.
///
/// The socket is for closing after the links are removed: the kernel closes it when nobody looks at the removed elements
/// any more, and waits for the same while it removes a link.
pub(super) fn end(record: &Record) -> Result<Option<NetfilterSocket>, Failure> {
    if record.ports.is_empty() && !record.spoof_check {
        return Ok(None);
    }
    let mut socket = NetfilterSocket::open()?;
    if record.spoof_check {
        match mac_of(record) {
            // An ADD that was killed may have come to know it without writing it down.
            mac if mac.is_empty() => spoofing::release_all(&mut socket, &record.host_interface)?,
            mac => spoofing::release(&mut socket, &record.host_interface, &mac)?,
        }
    }
    let Some(publication) = publication(record) else { return Ok(Some(socket)) };
    ports::withdraw(&mut socket, &publication)?;
    for port in publication.ports.iter().filter(|port| port.protocol == Protocol::Udp) {
        for target in publication.addresses.iter().filter(|target| port.is_of(target.is_ipv4())) {
            conntrack::end_those_to(&mut socket, *target, port.host_port)?;
        }
    }
    Ok(Some(socket))
}

/// Ends what [`start`] may have started for an attachment whose record can't be read, by the name of its link alone.
pub(super) fn end_unknown(host_interface: &str) -> Result<(), KernelError> {
    let mut socket = NetfilterSocket::open()?;
    spoofing::release_all(&mut socket, host_interface)?;
    ports::withdraw_all(&mut socket, host_interface)
}

/// What is masqueraded otherwise, each as a part of a sentence.
pub(super) fn masquerade_differences(subnets: &[IpNet]) -> Result<Vec<String>, KernelError> {
    let mut socket = NetfilterSocket::open()?;
    let mut differences = rule_differences(&mut socket)?;
    differences.extend(masquerade::differences(&mut socket, subnets)?);
    Ok(differences)
}

fn rule_differences(socket: &mut NetfilterSocket) -> Result<Vec<String>, KernelError> {
    let chains = NAT.incomplete_chains(socket)?;
    let name = NAT.table.name;
    Ok(chains.iter().map(|chain| format!("the nftables chain inet {name} {chain} is not as it was made")).collect())
}

/// What of the rest the kernel has otherwise.
pub(super) fn differences(record: &Record) -> Result<Vec<String>, KernelError> {
    if record.ports.is_empty() && !record.spoof_check {
        return Ok(Vec::new());
    }
    let mut socket = NetfilterSocket::open()?;
    let mut differences = Vec::new();
    if let Some(publication) = publication(record) {
        differences.extend(rule_differences(&mut socket)?);
        differences.extend(ports::differences(&mut socket, &publication)?);
    }
    if record.spoof_check {
        differences.extend(spoofing::differences(&mut socket, &record.host_interface, &mac_of(record))?);
    }
    Ok(differences)
}

/// What nftables lacks of all that complete attachments among `records` need, each once, as a part of a sentence.
pub(crate) fn all_differences<'a>(
    records: impl Iterator<Item = &'a Record> + Clone,
) -> Result<Vec<String>, KernelError> {
    let complete = records.filter(|record| record.state == AttachmentState::Active);
    let masqueraded = complete.clone().filter(|record| record.masquerade);
    let mut subnets: Vec<IpNet> =
        masqueraded.flat_map(|record| &record.addresses).map(|lease| lease.address.trunc()).collect();
    subnets.sort();
    subnets.dedup();
    let mut all = if subnets.is_empty() { Vec::new() } else { masquerade_differences(&subnets)? };
    for record in complete {
        for difference in differences(record)? {
            if !all.contains(&difference) {
                all.push(difference);
            }
        }
    }
    Ok(all)
}

/// Brings back the tables' rules, and the elements of all attachments below `data_dir`, where any of them is missing.
///
/// Where no attachment needs them, nothing is touched.
pub(crate) fn restore(data_dir: &Path) -> Result<(), Failure> {
    restore_elements(&mut NetfilterSocket::open()?, data_dir, false)
}

/// Starts every complete attachment of every network again; what is there stays. `is_built` says whether the table is
/// known to be there.
///
/// What one of them meets with keeps nothing from the others. The table is complete only after all were tried: when a
/// kill comes in between, the next ADD does it again.
fn restore_elements(socket: &mut NetfilterSocket, data_dir: &Path, is_built: bool) -> Result<(), Failure> {
    let mut restoration = Restoration { socket, host: RouteSocket::open()?, is_built };
    let mut failures = Vec::new();
    // What else lies there is somebody's that we don't know.
    let entries = fs::read_dir(data_dir).into_iter().flatten().flatten();
    let networks = entries.filter(|entry| Store::is_at(&entry.path()));
    for network in networks.filter_map(|entry| entry.file_name().into_string().ok()) {
        let found = Store::new(data_dir, &network).and_then(|store| Ok((store.keys()?, store)));
        match found {
            Ok((keys, store)) => failures.extend(keys.iter().filter_map(|key| restoration.restore(&store, key).err())),
            Err(error) => failures.push(error.into()),
        }
    }
    if restoration.is_built {
        NAT.complete(restoration.socket)?;
    }
    match failures.len() {
        0 => Ok(()),
        1 => Err(failures.remove(0)),
        _ => Err(Failure::Several(failures)),
    }
}

struct Restoration<'a> {
    socket: &'a mut NetfilterSocket,
    host: RouteSocket,
    /// Whether the table is known to be there.
    is_built: bool,
}

impl Restoration<'_> {
    fn restore(&mut self, store: &Store, key: &AttachmentKey) -> Result<(), Failure> {
        // One that can't be read has nothing that could be restored; DEL tells of it.
        let Ok(Some(record)) = store.read(key) else { return Ok(()) };
        if record.state != AttachmentState::Active {
            return Ok(());
        }
        if !self.is_built && (record.masquerade || !record.ports.is_empty()) {
            NAT.ensure(self.socket)?;
            self.is_built = true;
        }
        self.start(&record)?;
        // A DEL writes that it is at work before it ends anything. If it did so by now, it may have been too early
        // to see what was started here.
        if !matches!(store.read(key), Ok(Some(now)) if now == record) {
            end(&record)?;
        }
        Ok(())
    }

    fn start(&mut self, record: &Record) -> Result<(), KernelError> {
        if record.masquerade {
            let subnets: Vec<IpNet> = record.addresses.iter().map(|lease| lease.address.trunc()).collect();
            masquerade::ensure(self.socket, &subnets)?;
        }
        check_spoofing(self.socket, record)?;
        if let Some(publication) = publication(record) {
            // A port that somebody else got in between stays theirs: that attachment works, and CHECK of this one says so.
            ports::restore(self.socket, &publication, &mut |owner| is_gone(&mut self.host, owner))?;
        }
        Ok(())
    }
}

/// The record's host ports; `None` without any, or without an address that they could lead to.
fn publication(record: &Record) -> Option<Publication<'_>> {
    if record.ports.is_empty() || record.addresses.is_empty() {
        return None;
    }
    let owns_link = record.bridge.is_empty();
    let link = if owns_link { &record.host_interface } else { &record.bridge };
    let key = &record.key;
    // An attachment without a link of its own is known by its record alone.
    let token = if record.kind == Kind::Ports { format!("@{}", record.network) } else { record.host_interface.clone() };
    let text = format!("{}@{} {}", key.container_id, key.ifname, describe(record));
    Some(Publication {
        ports: &record.ports,
        addresses: record.addresses.iter().map(|lease| lease.address.addr()).collect(),
        link,
        owns_link,
        owner: Owner { token, text },
    })
}

/// Whether the attachment that a host port belongs to is gone. The port is given up before the link, and the link with
/// its namespace. One without a link of its own, somebody else's element, or what a person wrote there can't be told.
fn is_gone(host: &mut RouteSocket, owner: &Owner) -> Result<bool, KernelError> {
    if owner.token.is_empty() || owner.token.starts_with('@') {
        return Ok(false);
    }
    Ok(link::find(host, &owner.token)?.is_none())
}

fn mac_of(record: &Record) -> Vec<u8> {
    crate::config::mac::Mac::parse(&record.container_mac).map(|mac| mac.0.to_vec()).unwrap_or_default()
}
