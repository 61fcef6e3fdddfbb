//! What is wrong with a node's networks, told from a picture of records and kernel, with the remedy for each finding.
//!
//! The picture is gathered elsewhere; what is decided here depends on nothing but it.

mod attachments;
mod bridges;
mod elements;
mod firewall;
#[cfg(test)]
mod generated;
mod node;
mod stores;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

use ipnet::IpNet;
use serde::Serialize;

use crate::{
    config::invocation::AttachmentKey,
    kernel::{elements::OwnedElement, link::Link, nft_chains::BaseChain, route::FoundRoute},
    store::Record,
};

pub(crate) use attachments::{examine_attachment, owner};
pub(crate) use elements::KnownOwners;
pub(crate) use firewall::missing_rules;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Packets are lost, or an ADD will fail.
    Error,
    /// Something is left over, or works only as long as nothing else happens.
    Warning,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The check that found it, a name that doesn't change between releases: `link-down`.
    pub check: &'static str,
    /// What it is about: a Pod, a link, a file.
    pub subject: String,
    /// What is wrong.
    pub problem: String,
    /// What to do about it: a command where there is one.
    pub remedy: String,
}

impl Finding {
    pub(crate) fn error(
        check: &'static str,
        subject: impl Into<String>,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let (subject, problem, remedy) = (subject.into(), problem.into(), remedy.into());
        Self { severity: Severity::Error, check, subject, problem, remedy }
    }

    pub(crate) fn warning(
        check: &'static str,
        subject: impl Into<String>,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { severity: Severity::Warning, ..Self::error(check, subject, problem, remedy) }
    }
}

/// A node's networks as records and kernel have them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) networks: Vec<NetworkFacts>,
    /// The host's links, addresses and routes.
    pub(crate) host: Interfaces,
    /// Chains that see packets on their way through the host.
    pub(crate) forward_chains: Vec<BaseChain>,
    /// What of the nftables table isn't there, of that which the records need.
    pub(crate) rules_missing: Vec<String>,
    /// The elements of our nftables tables that have owners.
    pub(crate) elements: Vec<OwnedElement>,
    /// Who may be an owner.
    pub(crate) known_owners: KnownOwners,
    /// The tables of the kernel's older iptables, which this process can't read.
    pub(crate) legacy_tables: Vec<String>,
    /// Switches below /proc/sys/net, by their path; one that the kernel doesn't have is not there.
    pub(crate) switches: BTreeMap<String, String>,
    /// Files of udev's that give virtual links Ethernet addresses of its own choice.
    pub(crate) mac_policies: Vec<PathBuf>,
    /// The node's own network: what the config asks for.
    pub(crate) configured: Option<Configured>,
    /// Seconds since 1970, UTC.
    pub(crate) now_seconds: u64,
}

/// The network that the node's config describes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Configured {
    pub(crate) bridge: String,
    /// The addresses that the bridge has to have.
    pub(crate) gateways: Vec<IpNet>,
    /// Files of the installation that are missing.
    pub(crate) missing: Vec<PathBuf>,
    /// Files of the installation that hold something else than they should.
    pub(crate) different: Vec<PathBuf>,
}

/// One network's records, and what lies beside them.
#[derive(Clone, Debug, Default)]
pub(crate) struct NetworkFacts {
    pub(crate) name: String,
    pub(crate) directory: PathBuf,
    pub(crate) attachments: Vec<AttachmentFacts>,
    /// Records that can't be read: which, and why.
    pub(crate) unreadable: Vec<(AttachmentKey, String)>,
    /// What other boots and killed processes left.
    pub(crate) leftovers: Vec<PathBuf>,
    pub(crate) usage: Vec<SetUsage>,
    pub(crate) filesystem: FilesystemFacts,
}

/// How full a range set is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SetUsage {
    pub(crate) set: usize,
    /// `10.88.0.1-10.88.255.254`.
    pub(crate) ranges: String,
    pub(crate) used: u128,
    pub(crate) capacity: u128,
    /// Released and waiting to be given again.
    pub(crate) released: u64,
}

/// What a store can still take.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FilesystemFacts {
    pub(crate) read_only: bool,
    pub(crate) full: bool,
}

/// An attachment's record, and its container's side.
#[derive(Clone, Debug)]
pub(crate) struct AttachmentFacts {
    pub(crate) record: Record,
    pub(crate) namespace: NamespaceFacts,
    /// What of its shaping is otherwise, as CHECK tells it.
    pub(crate) shaping_differences: Vec<String>,
    /// The rules by source that its container lacks: the source, and the table.
    pub(crate) missing_source_rules: Vec<(IpAddr, u32)>,
}

/// What is at the place where a container's namespace was.
#[derive(Clone, Debug)]
pub(crate) enum NamespaceFacts {
    /// Looked into.
    Entered(Interfaces),
    /// Nothing, or another namespace.
    Gone,
    /// It could not be looked into; the reason.
    Closed(String),
}

/// The links, addresses and routes of one namespace.
#[derive(Clone, Debug, Default)]
pub(crate) struct Interfaces {
    pub(crate) links: Vec<Link>,
    /// By the link's index.
    pub(crate) addresses: Vec<(u32, IpNet)>,
    pub(crate) routes: Vec<FoundRoute>,
}

impl Interfaces {
    pub(crate) fn link(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    fn link_at(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    fn has_address(&self, index: u32, address: IpNet) -> bool {
        self.addresses.contains(&(index, address))
    }

    /// The links that default routes leave by: the way to the world outside.
    fn uplinks(&self) -> impl Iterator<Item = &Link> {
        self.links.iter().filter(|link| {
            self.routes.iter().any(|route| route.dst.prefix_len() == 0 && route.link == Some(link.index))
        })
    }
}

impl Snapshot {
    /// Every attachment of every network.
    fn attachments(&self) -> impl Iterator<Item = &AttachmentFacts> {
        self.networks.iter().flat_map(|network| &network.attachments)
    }
}

/// `text` as one word of a shell's command: what a runtime calls a Pod must not run when a remedy is pasted.
fn word(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:@".contains(&byte);
    if !text.is_empty() && text.bytes().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Everything that is wrong, the worst first.
pub(crate) fn examine(snapshot: &Snapshot) -> Vec<Finding> {
    let mut findings: Vec<Finding> =
        snapshot.attachments().flat_map(|attachment| examine_attachment(attachment, snapshot)).collect();
    findings.extend(attachments::duplicates(snapshot));
    findings.extend(attachments::orphans(snapshot));
    findings.extend(bridges::examine(snapshot));
    findings.extend(firewall::examine(snapshot));
    findings.extend(elements::examine(snapshot));
    findings.extend(node::examine(snapshot));
    findings.extend(stores::examine(snapshot));
    findings.sort_by_key(|finding| finding.severity);
    findings
}
