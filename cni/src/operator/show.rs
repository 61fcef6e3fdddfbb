//! Everything about one attachment.

use super::{
    AttachmentReport, InterfaceReport, OperatorError, Places, ShownAttachment,
    gather::{attachment_facts, interfaces},
    report::state_of,
};
use crate::{
    calls::last_calls,
    kernel::RouteSocket,
    policy::doctor::{NamespaceFacts, Snapshot, examine_attachment, missing_rules},
    service::rule_differences,
    store::Record,
};

/// As many as tell a story.
const MOST_CALLS: usize = 10;

/// The attachments that `selector` names: a Pod (`name` or `namespace/name`), the beginning of a container's id, an
/// address, or the host's interface.
///
/// # Errors
///
/// [`OperatorError::NotFound`] if there is none, else as for [`list`](super::list).
pub fn show(places: &Places, selector: &str) -> Result<Vec<ShownAttachment>, OperatorError> {
    let networks = places.networks()?;
    let mut host = RouteSocket::open()?;
    let snapshot = Snapshot { host: interfaces(&mut host)?, ..Snapshot::default() };
    let mut shown = Vec::new();
    for network in networks {
        for key in network.store.keys()? {
            let data_dir = network.data_dir.clone();
            match network.store.read(&key) {
                Ok(Some(record)) if names(selector, &record) => {
                    shown.push(of_record(record, places, data_dir, &snapshot, &mut host)?);
                }
                Ok(_) => {}
                Err(error) if key.container_id.starts_with(selector) => {
                    let names = (key.container_id.as_str(), key.ifname.as_str());
                    let calls = last_calls(&data_dir, &network.name, names.0, names.1, MOST_CALLS);
                    shown.push(ShownAttachment {
                        attachment: AttachmentReport::unreadable(&network.name, data_dir, names, error.to_string()),
                        host_interface: None,
                        container_interface: None,
                        namespace_problem: None,
                        findings: Vec::new(),
                        calls,
                    });
                }
                Err(_) => {}
            }
        }
    }
    if shown.is_empty() {
        return Err(OperatorError::NotFound { selector: selector.to_owned(), places: places.directories().to_vec() });
    }
    Ok(shown)
}

fn of_record(
    record: Record,
    places: &Places,
    data_dir: std::path::PathBuf,
    snapshot: &Snapshot,
    socket: &mut RouteSocket,
) -> Result<ShownAttachment, OperatorError> {
    let host = &snapshot.host;
    let state = state_of(&record, &host.links);
    let attachment = AttachmentReport::of_record(&record, data_dir, state);
    let host_interface = host
        .link(&record.host_interface)
        .map(|link| InterfaceReport::new(link, &host.links, &host.addresses, &host.routes));
    let calls =
        last_calls(&attachment.data_dir, &record.network, &record.key.container_id, &record.key.ifname, MOST_CALLS);
    let facts = attachment_facts(record, places.root(), socket)?;
    let mut findings = examine_attachment(&facts, snapshot);
    findings.extend(missing_rules(&rule_differences(std::iter::once(&facts.record))?));
    let (container_interface, namespace_problem) = match &facts.namespace {
        NamespaceFacts::Entered(inside) => {
            let link = inside.link(&facts.record.key.ifname);
            (link.map(|link| InterfaceReport::new(link, &inside.links, &inside.addresses, &inside.routes)), None)
        }
        NamespaceFacts::Gone => (None, Some("the namespace is gone".to_owned())),
        NamespaceFacts::Closed(reason) => (None, Some(reason.clone())),
    };
    Ok(ShownAttachment { attachment, host_interface, container_interface, namespace_problem, findings, calls })
}

fn names(selector: &str, record: &Record) -> bool {
    if selector.is_empty() {
        return false;
    }
    let pod = &record.pod;
    let is_pod = match selector.split_once('/') {
        Some((namespace, name)) => pod.namespace == namespace && pod.name == name,
        None => pod.name == selector,
    };
    is_pod
        || record.key.container_id.starts_with(selector)
        || record.host_interface == selector
        || selector.parse().is_ok_and(|address| record.holds(address))
}
