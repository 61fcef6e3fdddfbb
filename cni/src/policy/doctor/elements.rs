//! Elements of our nftables tables that belong to nobody.

use std::collections::HashSet;

use super::{Finding, Snapshot};
use crate::{
    config::invocation::AttachmentKey,
    kernel::{elements::OwnedElement, link::Link},
    policy::naming,
    store::Record,
};

/// What the records of all networks call theirs, those of networks that nobody asked about, too.
#[derive(Clone, Debug, Default)]
pub(crate) struct KnownOwners {
    links: HashSet<String>,
    /// As the owner of a host port without a link of its own is called in its element's comment: `@network id@ifname`.
    attachments: HashSet<String>,
    /// The networks that have records, likewise: `@network`.
    networks: HashSet<String>,
}

impl KnownOwners {
    /// Adds the attachment `key`; without `record`, which can't be read, what follows from its name.
    pub(crate) fn add(&mut self, network: &str, key: &AttachmentKey, record: Option<&Record>) {
        self.networks.insert(format!("@{network}"));
        self.attachments.insert(format!("@{network} {}@{}", key.container_id, key.ifname));
        self.links.insert(naming::host_interface(network, key));
        if let Some(record) = record {
            self.links.extend([record.host_interface.clone(), record.bridge.clone()]);
        }
    }

    /// Whether the element's link is gone, and no record has a use for it: not even one of an ADD that is at work.
    pub(crate) fn lack(&self, element: &OwnedElement, links: &[Link]) -> bool {
        let owner = &element.owner.token;
        // What a person, or another program, wrote into the map is theirs.
        let is_ours = !element.is_port() || naming::is_own_link(owner);
        is_ours && !self.links.contains(owner) && !links.iter().any(|link| link.name == *owner)
    }

    /// Whether it is of an attachment without a link, and the records of its network don't know that one.
    fn miss(&self, element: &OwnedElement) -> bool {
        let owner = &element.owner;
        // A text without a second word may be cut off.
        let Some((attachment, _)) = owner.text.split_once(' ') else { return false };
        self.networks.contains(&owner.token) && !self.attachments.contains(&format!("{} {attachment}", owner.token))
    }
}

pub(super) fn examine(snapshot: &Snapshot) -> Vec<Finding> {
    let known = &snapshot.known_owners;
    let mut findings = Vec::new();
    for element in &snapshot.elements {
        let owner = &element.owner;
        if known.lack(element, &snapshot.host.links) {
            let of = if element.is_port() { format!(" of {}", owner.text) } else { String::new() };
            let problem = format!("the link {}{of} is gone, and no record knows the element", owner.token);
            findings.push(Finding::warning("orphan-element", element.text(), problem, "keelson network gc"));
        } else if element.is_port() && known.miss(element) {
            let problem =
                format!("it belongs to {}, and no record of that network that was found knows it", owner.text);
            let remedy = format!("nft 'delete element {}'", element.text());
            findings.push(Finding::warning("orphan-element", element.text(), problem, remedy));
        }
    }
    findings
}
