//! From records to host-local's reservations.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{Migration, MigrationEntry, MigrationError, MigrationOutcome, MigrationReport, Sides};
use crate::store::{
    AttachmentState, Record, StoreError,
    host_local::{self, Draft, Holder, Reservations},
};

/// Writes host-local's reservations of every attachment that there is a record of: from then on host-local gives its
/// addresses to no other Pod, and the reference's DEL removes link and reservation.
///
/// The records stay as they are. Meanwhile nothing else may give addresses of the network: stop the kubelet.
///
/// # Errors
///
/// A config that can't be used, and what keeps from reading records or writing reservations. An attachment that can't be
/// exported is no error: the report says why.
pub fn export_host_local(migration: &Migration) -> Result<MigrationReport, MigrationError> {
    let sides = migration.sides()?;
    let mut report =
        MigrationReport { network: sides.config.name.clone(), dry_run: migration.dry_run, entries: Vec::new() };
    if !migration.dry_run {
        host_local::create(&sides.directory)?;
    }
    let reservations = sides.reservations()?;
    let mut known = BTreeSet::new();
    // The address that was given last from each set, and when.
    let mut last: BTreeMap<usize, (u64, IpAddr)> = BTreeMap::new();
    for key in sides.store.keys()? {
        let entry = match sides.store.read(&key) {
            Ok(None) => continue,
            Ok(Some(record)) => {
                for lease in &record.addresses {
                    let address = lease.address.addr();
                    known.insert(address);
                    if let Some(set) = lease.set {
                        let given = (record.created_at_seconds, address);
                        last.entry(set).and_modify(|last| *last = given.max(*last)).or_insert(given);
                    }
                }
                export(&record, &sides, reservations.as_ref(), migration)?
            }
            Err(error @ (StoreError::Corrupt { .. } | StoreError::OtherVersion { .. })) => {
                MigrationEntry::new(MigrationOutcome::Skipped, Vec::new(), error.to_string())
            }
            Err(error) => return Err(error.into()),
        };
        report.entries.push(entry.of(&key));
    }
    let Some(reservations) = reservations else { return Ok(report) };
    for (address, reservation) in reservations.of_addresses().filter(|(address, _)| !known.contains(address)) {
        let holder = reservation.holder.describe();
        let entry = if migration.replace {
            if !migration.dry_run {
                reservations.remove(address)?;
            }
            MigrationEntry::new(
                MigrationOutcome::Removed,
                vec![address],
                format!("it had no record, and was held by {holder}"),
            )
        } else {
            let detail = format!("there is no record of it; it's held by {holder}");
            MigrationEntry::new(MigrationOutcome::Skipped, vec![address], detail)
        };
        report.entries.push(entry);
    }
    if !migration.dry_run {
        for (set, (_, address)) in last {
            reservations.write_last(set, address)?;
        }
    }
    Ok(report)
}

fn export(
    record: &Record,
    sides: &Sides,
    reservations: Option<&Reservations>,
    migration: &Migration,
) -> Result<MigrationEntry, MigrationError> {
    let addresses: Vec<IpAddr> = record.addresses.iter().map(|lease| lease.address.addr()).collect();
    let entry =
        |outcome, detail: String| Ok(MigrationEntry::new(outcome, addresses.clone(), detail).of_pod(&record.pod));
    if record.state == AttachmentState::Pending {
        return entry(MigrationOutcome::Skipped, "an ADD or DEL of it works, or was killed: repeat its DEL".to_owned());
    }
    if addresses.is_empty() || record.ipam_plugin.is_some() {
        return entry(MigrationOutcome::AlreadyThere, "it has no addresses of this plugin's".to_owned());
    }
    let own = Holder::Attachment(record.key.clone());
    let holders: Vec<Option<&Holder>> =
        addresses.iter().map(|address| reservations.and_then(|reservations| reservations.holder(*address))).collect();
    if holders.iter().all(|holder| *holder == Some(&own)) {
        return entry(MigrationOutcome::AlreadyThere, String::new());
    }
    for (address, holder) in addresses.iter().zip(&holders) {
        match holder {
            None | Some(Holder::Nobody) => {}
            Some(holder) if **holder == own || migration.replace => {}
            Some(holder) => {
                let detail = format!("{address} is held by {}", holder.describe());
                return entry(MigrationOutcome::Skipped, detail);
            }
        }
    }
    if let Some(reservations) = reservations
        && !migration.dry_run
    {
        let draft = Draft::write(&sides.directory, &record.key)?;
        for (address, holder) in addresses.iter().zip(&holders) {
            if *holder != Some(&own) {
                reservations.replace(&draft, *address)?;
            }
        }
    }
    entry(MigrationOutcome::Migrated, String::new())
}
