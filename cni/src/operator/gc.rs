//! Freeing what nobody uses any more, on an operator's word.

use serde::Serialize;

use super::{
    OperatorError, Places,
    elements::remove_orphans,
    gather::{is_here, links_without_record},
};
use crate::{
    GcEntry, GcOptions, collect_garbage,
    config::invocation::AttachmentKey,
    kernel::{
        KernelError, RouteSocket,
        link::{self, Link},
        netns, shaping,
    },
};

/// What [`gc`] frees, and how far it goes.
#[derive(Clone, Debug, Default)]
pub struct GcRequest {
    /// Container ids, or their beginnings: these attachments and no others. Empty: every attachment whose link is gone,
    /// and what killed processes and earlier boots left.
    pub containers: Vec<String>,
    /// Only tell what would be freed.
    pub dry_run: bool,
    /// Free the named attachments even if their namespace has processes.
    pub force: bool,
}

/// What [`gc`] did in one network.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Collected {
    /// The network's name; `*` for what the networks share.
    pub network: String,
    /// Attachments that were freed, or in a dry run: would be.
    pub freed: Vec<GcEntry>,
    /// Attachments that were looked at and left alone.
    pub skipped: Vec<GcEntry>,
    /// Attachments that could not be freed.
    pub failed: Vec<GcEntry>,
    /// Links, files, directories and nftables elements that belonged to no attachment and are gone, or would be.
    pub removed: Vec<String>,
}

impl Collected {
    /// Nothing was done, as this seems to be another network namespace than the host's.
    fn elsewhere(network: &str, keys: &[AttachmentKey]) -> Self {
        let entry = |key: &AttachmentKey| GcEntry {
            container_id: key.container_id.clone(),
            ifname: key.ifname.clone(),
            owner: format!("{} of container {}", key.ifname, key.container_id),
            addresses: Vec::new(),
            reason:
                "no link of the network is here, so this may not be the host's network namespace; if it is, name the \
                     container"
                    .to_owned(),
        };
        Self { network: network.to_owned(), skipped: keys.iter().map(entry).collect(), ..Self::default() }
    }
}

/// Those of `lost` whose container has no processes. Its record may be gone, or lie where nobody looked, as in the
/// `dataDir` that the network had before: its Pod runs on.
fn without_processes<'a>(
    host: &mut RouteSocket,
    lost: &[&'a Link],
    links: &[Link],
    places: &Places,
) -> Result<Vec<&'a Link>, KernelError> {
    let Some(ends) = netns::inhabited_veth_ends(&places.root().join("/proc")) else { return Ok(Vec::new()) };
    // Each end names the other by its index; that of a pair elsewhere would have to agree in both.
    let lives = |link: &Link| ends.iter().any(|(own, peer)| *peer == link.index && link.peer == Some(*own));
    let is_pair = |link: &Link| link.peer.is_some();
    let mut doomed: Vec<&Link> = lost.iter().copied().filter(|link| is_pair(link) && !lives(link)).collect();
    // One that shapes lives with the pair whose packets it takes.
    for shaping in lost.iter().copied().filter(|link| !is_pair(link)) {
        let mut is_used = false;
        for pair in links.iter().filter(|link| is_pair(link) && !doomed.contains(link)) {
            is_used |= shaping::is_redirected(host, pair, shaping)?;
        }
        if !is_used {
            doomed.push(shaping);
        }
    }
    Ok(doomed)
}

fn lost_link(name: &str) -> GcEntry {
    GcEntry {
        container_id: String::new(),
        ifname: String::new(),
        owner: format!("link {name}"),
        addresses: Vec::new(),
        reason: "no record knows it, but processes run in its container's namespace, or that can't be seen".to_owned(),
    }
}

/// Frees what nobody uses in the networks of `places`. Must be called in the host's network namespace: in any other,
/// every link seems to be gone. So a network of which no link is there is left alone.
///
/// # Errors
///
/// What kept it from looking. That something can't be freed is in the answer.
pub fn gc(places: &Places, request: &GcRequest) -> Result<Vec<Collected>, OperatorError> {
    let mut host = RouteSocket::open()?;
    // Before the records: an ADD writes its record first, so a link of ours without one had none.
    let links = link::all(&mut host)?;
    let mut all = Vec::new();
    let mut gone = Vec::new();
    let mut is_all_here = true;
    for network in places.networks()? {
        let mut options = GcOptions {
            dry_run: request.dry_run,
            force: request.force && !request.containers.is_empty(),
            proc: Some(places.root().join("/proc")),
            valid: None,
        };
        let keys = network.store.keys()?;
        if request.containers.is_empty() && !is_here(&network, &links)? {
            is_all_here = false;
            all.push(Collected::elsewhere(&network.name, &keys));
            continue;
        }
        if !request.containers.is_empty() {
            let is_named = |id: &str| request.containers.iter().any(|named| id.starts_with(named.as_str()));
            let others = keys.iter().filter(|key| !is_named(&key.container_id));
            options.valid = Some(others.map(|key| (key.container_id.clone(), key.ifname.clone())).collect());
        }
        // The collection sweeps some of them by itself.
        let leftovers = network.store.leftovers()?;
        let report = collect_garbage(&network.data_dir, &network.name, &options)
            .map_err(|error| OperatorError::Records(error.to_string()))?;
        let mut collected = Collected {
            network: network.name.clone(),
            freed: report.freed,
            skipped: report.skipped,
            failed: report.failed,
            removed: Vec::new(),
        };
        if request.containers.is_empty() {
            collected.removed.extend(leftovers.iter().map(|path| path.display().to_string()));
            if !request.dry_run {
                network.store.remove_earlier_boots()?;
            }
            let lost = links_without_record(&links, &network)?;
            let doomed =
                if lost.is_empty() { Vec::new() } else { without_processes(&mut host, &lost, &links, places)? };
            for link in lost {
                if !doomed.contains(&link) {
                    collected.skipped.push(lost_link(&link.name));
                // A DEL removed it since, and an ADD may have made another of its name.
                } else if request.dry_run || link::remove(&mut host, link)? {
                    collected.removed.push(format!("link {}", link.name));
                    gone.push(link.name.clone());
                }
            }
        }
        all.push(collected);
    }
    // All networks have the same tables.
    if request.containers.is_empty() && is_all_here {
        let removed = remove_orphans(places, &gone, request.dry_run)?;
        if !removed.is_empty() {
            all.push(Collected { network: "*".to_owned(), removed, ..Collected::default() });
        }
    }
    Ok(all)
}
