//! GC: free what belongs to attachments that the runtime no longer knows.

use super::del::detach;
use crate::{config::network::NetworkConfig, error::Failure, kernel::RouteSocket, store::Store};

/// Undoes every attachment that is not in the runtime's list; goes on after an error and reports all.
///
/// Without a list nothing is done: no word isn't the word "none".
pub(super) fn gc(config: &NetworkConfig) -> Result<(), Failure> {
    let Some(valid) = config.valid_attachments()? else { return Ok(()) };
    let store = Store::new(&config.data_dir, &config.name)?;
    if !store.directory().is_dir() {
        return Ok(());
    }
    let mut host = RouteSocket::open()?;
    let mut failures = Vec::new();
    for key in store.keys()?.iter().filter(|key| !valid.contains(key)) {
        failures.extend(detach(&store, &mut host, &config.name, key).err());
    }
    failures.extend(store.sweep().err().map(Failure::from));
    match failures.len() {
        0 => Ok(()),
        1 => Err(failures.swap_remove(0)),
        _ => Err(Failure::Several(failures)),
    }
}
