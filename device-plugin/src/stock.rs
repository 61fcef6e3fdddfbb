//! What there is of each resource: scanned, remembered, written to CDI and listed, in that order.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
};

use keelson_host::error_chain;
use tokio::sync::watch;

use crate::{
    conditions::Conditions,
    config::{DevicesSettings, Resource, ResourceName},
    kernel::{Skipped, discover},
    metrics::{HealthLabels, Metrics},
    policy::{Conflict, Device, Health, Inventory, Listing, TooLarge, cdi_spec, conflicts},
    store::{CdiStore, KnownStore, StoreError},
};

/// The known devices of all resources.
#[derive(Debug)]
pub(crate) struct Stock {
    settings: Arc<DevicesSettings>,
    /// In the config's order.
    shelves: Vec<Shelf>,
    cdi: CdiStore,
    known: KnownStore,
    metrics: Metrics,
    skipped: BTreeSet<Skipped>,
}

/// The known devices of one resource, and where its list is published.
#[derive(Debug)]
struct Shelf {
    inventory: Inventory,
    listing: watch::Sender<Option<Arc<Listing>>>,
}

/// What one scan came to.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The directories to watch.
    pub(crate) directories: BTreeSet<PathBuf>,
    /// What is wrong, if anything, by what it is about.
    problems: BTreeMap<String, Option<String>>,
}

impl Outcome {
    pub(crate) fn report(&self, conditions: &Conditions) {
        for (subject, problem) in &self.problems {
            match problem {
                Some(problem) => conditions.set(subject, problem),
                None => conditions.clear(subject),
            }
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error(transparent)]
enum PublishError {
    TooLarge(#[from] TooLarge),
    Store(#[from] StoreError),
}

impl Stock {
    /// Starts with the devices that an earlier process knew, as far as the config still selects them; gives a receiver
    /// of each resource's list, which holds nothing before the first [`Stock::refresh`].
    #[expect(clippy::type_complexity, reason = "named where it is used: `Offer::listing`")]
    pub(crate) fn new(
        settings: Arc<DevicesSettings>,
        known: KnownStore,
        metrics: Metrics,
    ) -> Result<(Self, Vec<watch::Receiver<Option<Arc<Listing>>>>), StoreError> {
        let mut remembered = known.load()?;
        let mut remember = |resource: &Resource| -> Vec<Device> {
            let devices = remembered.remove(resource.name.as_str()).unwrap_or_default();
            devices.into_iter().filter(|device| device.is_selected_by(resource)).collect()
        };
        let (shelves, listings) = settings
            .resources
            .iter()
            .map(|resource| {
                let inventory = Inventory::remembering(resource.name.clone(), remember(resource));
                let (listing, receiver) = watch::channel(None);
                (Shelf { inventory, listing }, receiver)
            })
            .unzip();
        let cdi = CdiStore::new(settings.cdi_dir.clone());
        Ok((Self { settings, shelves, cdi, known, metrics, skipped: BTreeSet::new() }, listings))
    }

    /// Looks at the host, writes what has to be written, and publishes the lists that changed. Blocks.
    pub(crate) fn refresh(&mut self) -> Outcome {
        let discovery = discover(&self.settings);
        self.log_skipped(discovery.skipped);
        let nothing: &[Device] = &[];
        let names = self.shelves.iter().map(|shelf| shelf.inventory.name());
        let found = discovery.found.iter().map(|found| found.as_deref().unwrap_or(nothing));
        let conflicts = conflicts(names.zip(found));
        self.metrics.conflicts.set(i64::try_from(conflicts.len()).unwrap_or(i64::MAX));

        let mut problems = BTreeMap::from([("device nodes".to_owned(), describe(&conflicts))]);
        let mut looked = Vec::new();
        for (shelf, found) in self.shelves.iter_mut().zip(discovery.found) {
            // What was known stays as it was where that failed: not being able to look says nothing of the devices.
            looked.push(found.map(|found| shelf.inventory.update(found, &conflicts)));
        }
        // A memory that can't be kept is no reason to offer nothing: it is only missed if the process ends.
        let known = self.shelves.iter().map(Shelf::known);
        let saved = self.known.save(known).err().map(|error| error_chain(&error));
        problems.insert("memory of known devices".to_owned(), saved);
        for (shelf, looked) in self.shelves.iter().zip(looked) {
            let problem = match looked {
                Ok(()) => shelf.publish(&self.cdi, &self.metrics).err().map(|error| error_chain(&error)),
                Err(error) => Some(error_chain(&error)),
            };
            problems.insert(format!("devices of {}", shelf.inventory.name()), problem);
        }
        Outcome { directories: discovery.directories, problems }
    }

    /// Says once of each thing that it was skipped.
    fn log_skipped(&mut self, skipped: BTreeSet<Skipped>) {
        for Skipped { path, reason } in skipped.difference(&self.skipped) {
            tracing::info!(path = %path.display(), %reason, "not offered");
        }
        self.skipped = skipped;
    }
}

impl Shelf {
    /// Writes the CDI file, then publishes the list if it differs: no device is offered that the runtime can't find.
    fn publish(&self, cdi: &CdiStore, metrics: &Metrics) -> Result<(), PublishError> {
        let name = self.inventory.name();
        let listing = Listing::of(&self.inventory)?;
        if cdi.put(name, cdi_spec(name, listing.devices()).as_ref())? {
            tracing::info!(resource = %name, "wrote the CDI file");
        }
        count(metrics, name, &listing);
        self.listing.send_if_modified(|published| {
            let differs = published.as_deref() != Some(&listing);
            if differs {
                log_health(name, published.as_deref(), &listing);
                *published = Some(Arc::new(listing));
            }
            differs
        });
        Ok(())
    }

    fn known(&self) -> (&str, Vec<&Device>) {
        let devices = self.inventory.entries().values().map(|entry| &entry.device).collect();
        (self.inventory.name().as_str(), devices)
    }
}

fn describe(conflicts: &[Conflict]) -> Option<String> {
    let texts: Vec<String> = conflicts.iter().map(|conflict| format!("{conflict}, so neither offers it")).collect();
    (!texts.is_empty()).then(|| texts.join("; "))
}

fn count(metrics: &Metrics, name: &ResourceName, listing: &Listing) {
    let (healthy, unhealthy) = listing.count();
    for (health, count) in [("Healthy", healthy), ("Unhealthy", unhealthy)] {
        let labels = HealthLabels { resource: name.to_string(), health };
        metrics.devices.get_or_create(&labels).set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}

fn log_health(name: &ResourceName, before: Option<&Listing>, now: &Listing) {
    for device in now.devices() {
        let health = |listing: &Listing| listing.entry(&device.id).map(|entry| entry.health.clone());
        let (was, is) = (before.and_then(health), health(now));
        if was != is {
            let explain = |health: Option<Health>| health.map_or("unknown".to_owned(), |health| health.explain());
            tracing::info!(resource = %name, device = device.id, was = explain(was), is = explain(is), "device health");
        }
    }
}
