//! GC: free what belongs to attachments that the runtime no longer knows, or that have lost their container.

use std::{
    cell::OnceCell,
    collections::HashSet,
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::{
    del::detach_locked,
    delegate::Delegate,
    heal::{self, Life},
};
use crate::{
    calls,
    config::{invocation::AttachmentKey, network::NetworkConfig},
    error::Failure,
    kernel::{
        RouteSocket, link,
        netns::{self, Inhabited},
    },
    policy::naming,
    store::{Record, Store, describe},
};

/// What [`collect_garbage`] frees, and how far it goes.
#[derive(Clone, Debug, Default)]
pub struct GcOptions {
    /// The attachments that the runtime says are valid, as container id and interface; every other is garbage.
    ///
    /// `None`: nobody knows. Then only attachments are garbage whose link is gone, and the record older than half a
    /// minute: what the network plugin would free by itself when addresses run out.
    pub valid: Option<Vec<(String, String)>>,
    /// Only tell what would be freed.
    pub dry_run: bool,
    /// Free even what seems to be alive: an attachment that isn't valid, but whose namespace has processes.
    pub force: bool,
    /// The processes that namespaces are looked for in; `/proc` unless told. It must show all of the host's.
    pub proc: Option<PathBuf>,
}

/// What [`collect_garbage`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GcReport {
    /// Freed, or in a dry run: would be.
    pub freed: Vec<GcEntry>,
    /// Garbage by the list, and yet left alone.
    pub skipped: Vec<GcEntry>,
    /// Could not be freed.
    pub failed: Vec<GcEntry>,
}

/// One attachment in a [`GcReport`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GcEntry {
    /// The container's id.
    pub container_id: String,
    /// The interface in the container.
    pub ifname: String,
    /// `namespace/name` of the Pod, or words for the container where no Pod is known.
    pub owner: String,
    /// The addresses that it holds.
    pub addresses: Vec<String>,
    /// Why it was freed or skipped, or what went wrong.
    pub reason: String,
}

/// Why [`collect_garbage`] could do nothing at all.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct GcError(#[from] Failure);

/// Frees the garbage among the attachments of `network`, whose records are below `data_dir`, and tells of each.
///
/// An attachment that isn't valid, but whose link is there and whose namespace has processes, is skipped unless forced;
/// so is one that another call works on. Must be called in the host's network namespace: in any other, every link seems
/// to be gone. `keelson network gc` and the daemon's network process call this; the verb GC does the same with the
/// runtime's list.
///
/// # Errors
///
/// [`GcError`] if records or links can't be listed. That one attachment can't be freed is in the report.
pub fn collect_garbage(data_dir: &Path, network: &str, options: &GcOptions) -> Result<GcReport, GcError> {
    let store = Store::new(data_dir, network).map_err(Failure::from)?;
    let collected = collect(&store, network, options, None)?;
    Ok(collected.report)
}

/// Undoes every attachment that is not in the runtime's list; goes on after an error and reports all.
///
/// Without a list nothing is done: no word isn't the word "none".
///
/// The plugin that gives the addresses is asked for the same, whatever came of our own part; but not for the addresses of
/// what we leave alone.
pub(super) fn gc(config: &NetworkConfig) -> Result<(), Failure> {
    let Some(valid) = config.valid_attachments()? else { return Ok(()) };
    let valid = valid.into_iter().map(|key| (key.container_id, key.ifname)).collect();
    let store = Store::new(&config.data_dir, &config.name)?;
    let options = GcOptions { valid: Some(valid), ..GcOptions::default() };
    // One that can't be executed keeps only its own addresses.
    let (delegate, missing) = match Delegate::of(config) {
        Ok(delegate) => (delegate, None),
        Err(error) => (None, Some(error)),
    };
    let mut collected = collect(&store, &config.name, &options, delegate.as_ref())?;
    for entry in &collected.report.skipped {
        calls::note(format!("GC left {} alone: {}", entry.owner, entry.reason));
    }
    if let Some(delegate) = delegate {
        let key =
            |entry: &GcEntry| AttachmentKey { container_id: entry.container_id.clone(), ifname: entry.ifname.clone() };
        let kept: Vec<AttachmentKey> = collected.report.skipped.iter().map(key).collect();
        collected.failures.extend(delegate.collect_garbage(&kept).err().map(Failure::from));
    }
    collected.failures.extend(missing.map(Failure::from));
    match collected.failures.len() {
        0 => Ok(()),
        1 => Err(collected.failures.swap_remove(0)),
        _ => Err(Failure::Several(collected.failures)),
    }
}

/// A report, and the failures that are in it as text.
#[derive(Default)]
struct Collected {
    report: GcReport,
    failures: Vec<Failure>,
}

/// `delegate` is the plugin that addresses return to which aren't ours, if it can be asked.
fn collect(
    store: &Store,
    network: &str,
    options: &GcOptions,
    delegate: Option<&Delegate<'_>>,
) -> Result<Collected, Failure> {
    let mut collected = Collected::default();
    if !store.directory().is_dir() {
        return Ok(collected);
    }
    let valid: Option<HashSet<(&str, &str)>> =
        options.valid.as_ref().map(|valid| valid.iter().map(|(id, ifname)| (id.as_str(), ifname.as_str())).collect());
    let is_listed = |key: &AttachmentKey| {
        valid.as_ref().is_some_and(|valid| valid.contains(&(key.container_id.as_str(), key.ifname.as_str())))
    };
    let mut candidates = store.keys()?;
    candidates.retain(|key| !is_listed(key));
    if !candidates.is_empty() {
        let mut host = RouteSocket::open()?;
        let look = Look { links: heal::links(&mut host)?, inhabited: OnceCell::new(), options, delegate };
        for key in &candidates {
            collected.one(store, &mut host, network, &look, key);
        }
    }
    if !options.dry_run {
        collected.failures.extend(store.sweep().err().map(Failure::from));
    }
    Ok(collected)
}

impl Collected {
    /// Frees one candidate, or says why not.
    fn one(&mut self, store: &Store, host: &mut RouteSocket, network: &str, look: &Look<'_>, key: &AttachmentKey) {
        // A dry run makes no file, not even a lock's.
        let lock = match look.options.dry_run {
            true => Ok(None),
            false => store.lock_attachment_if_idle(key).map(Some),
        };
        let found = store.read(key);
        let entry = |reason| entry(key, found.as_ref().ok().and_then(Option::as_ref), reason);
        let verdict = match (&lock, &found) {
            (Err(error), _) => {
                self.report.failed.push(entry(error.to_string()));
                self.failures.extend(lock.err().map(Failure::from));
                return;
            }
            (Ok(Some(None)), _) => Err("another call is working on it".to_owned()),
            // Somebody else has freed it meanwhile.
            (_, Ok(None)) => return,
            (_, Ok(Some(record))) => match look.judge(record, host) {
                None => return,
                Some(verdict) => verdict,
            },
            // Whose container it is, or was, can't be told; DEL frees it, whatever it says.
            (_, Err(error)) if look.options.valid.is_none() => Err(error.to_string()),
            (_, Err(error)) if look.has_link(&naming::host_interface(network, key), host) && !look.options.force => {
                Err(format!("its link is there, and {error}"))
            }
            (_, Err(_)) => Ok(NOT_LISTED.to_owned()),
        };
        match verdict {
            Err(reason) => self.report.skipped.push(entry(reason)),
            Ok(reason) if look.options.dry_run => self.report.freed.push(entry(reason)),
            Ok(reason) => match detach_locked(store, host, network, key, |record| look.give_back(record)) {
                Ok(()) => self.report.freed.push(entry(reason)),
                Err(failure) => {
                    self.report.failed.push(entry(failure.one_line()));
                    self.failures.push(failure);
                }
            },
        }
    }
}

const NOT_LISTED: &str = "it is not among the valid attachments";

/// What is looked at once for all candidates.
struct Look<'a> {
    links: HashSet<String>,
    /// The namespaces with processes, if somebody wants to know.
    inhabited: OnceCell<Inhabited>,
    options: &'a GcOptions,
    delegate: Option<&'a Delegate<'a>>,
}

impl Look<'_> {
    /// A link that wasn't there at first may have been made by the call whose lock we have got since. One that can't be
    /// looked for is taken to be there.
    fn has_link(&self, name: &str, host: &mut RouteSocket) -> bool {
        self.links.contains(name) || link::find(host, name).map_or(true, |found| found.is_some())
    }

    /// Returns addresses that are another plugin's to it.
    fn give_back(&self, record: Option<&Record>) -> Result<(), Failure> {
        match (self.delegate, record.filter(|record| record.ipam_plugin.is_some())) {
            (Some(delegate), Some(record)) => Ok(delegate.delete_other(&record.key)?),
            _ => Ok(()),
        }
    }

    /// Why an attachment that isn't listed is freed, or as an error why it isn't; `None` if it is no garbage.
    fn judge(&self, record: &Record, host: &mut RouteSocket) -> Option<Result<String, String>> {
        if let (None, Some(_), Some(plugin)) = (self.delegate, &self.options.valid, &record.ipam_plugin) {
            return Some(Err(format!("its addresses are those of the plugin {plugin}: DEL returns them")));
        }
        let life = heal::life(record, |name| self.has_link(name, host));
        if self.options.valid.is_none() {
            return match life {
                Life::Whole => None,
                Life::Waiting => Some(Err("its link is gone, but it may just be being made".to_owned())),
                Life::Stale => Some(Ok("its link is gone".to_owned())),
            };
        }
        if life != Life::Whole || self.options.force {
            return Some(Ok(NOT_LISTED.to_owned()));
        }
        let inhabited = self
            .inhabited
            .get_or_init(|| netns::inhabited(self.options.proc.as_deref().unwrap_or_else(|| Path::new("/proc"))));
        // Records of format 1 don't have it.
        let identity = record.netns_identity.or_else(|| netns::identity_at(Path::new(&record.netns)));
        Some(match identity.map(|identity| inhabited.has(identity)) {
            None | Some(Some(false)) => Ok(NOT_LISTED.to_owned()),
            Some(Some(true)) => Err(format!("{NOT_LISTED}, but processes run in its namespace {}", record.netns)),
            Some(None) => Err(format!("{NOT_LISTED}, and whether processes run in its namespace can't be seen")),
        })
    }
}

fn entry(key: &AttachmentKey, record: Option<&Record>, reason: String) -> GcEntry {
    let addresses =
        record.map(|record| record.addresses.iter().map(|lease| lease.address.addr().to_string()).collect());
    GcEntry {
        container_id: key.container_id.clone(),
        ifname: key.ifname.clone(),
        owner: record.map_or_else(|| format!("{} of container {}", key.ifname, key.container_id), describe),
        addresses: addresses.unwrap_or_default(),
        reason,
    }
}
