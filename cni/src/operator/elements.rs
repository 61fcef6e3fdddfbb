//! What nftables holds for attachments that are no more.

use super::{OperatorError, Places};
use crate::{
    kernel::{
        NetfilterSocket, RouteSocket,
        elements::{self, OwnedElement},
        link,
    },
    policy::doctor::KnownOwners,
};

/// What the records in all of `places` call theirs, whichever network is asked about.
pub(super) fn known_owners(places: &Places) -> Result<KnownOwners, OperatorError> {
    let mut known = KnownOwners::default();
    for network in places.all_networks()? {
        for key in network.store.keys()? {
            match network.store.read(&key) {
                // A DEL removed it since, and its elements before.
                Ok(None) => {}
                found => known.add(&network.name, &key, found.ok().flatten().as_ref()),
            }
        }
    }
    Ok(known)
}

/// Removes the elements whose link is gone, or is among `gone`, and which no record knows. Tells each.
pub(super) fn remove_orphans(places: &Places, gone: &[String], dry_run: bool) -> Result<Vec<String>, OperatorError> {
    let mut told = Ok(Vec::new());
    // Elements, links, records in this order: whoever adds an element has its record and its link before.
    let mut choose = |all: Vec<OwnedElement>| match orphans(places, gone, all) {
        Ok(orphans) => {
            told = Ok(orphans.iter().map(text).collect());
            if dry_run { Vec::new() } else { orphans }
        }
        Err(error) => {
            told = Err(error);
            Vec::new()
        }
    };
    elements::remove(&mut NetfilterSocket::open()?, &mut choose)?;
    told
}

fn orphans(
    places: &Places,
    gone: &[String],
    mut elements: Vec<OwnedElement>,
) -> Result<Vec<OwnedElement>, OperatorError> {
    let mut links = link::all(&mut RouteSocket::open()?)?;
    links.retain(|link| !gone.contains(&link.name));
    let known = known_owners(places)?;
    elements.retain(|element| known.lack(element, &links));
    Ok(elements)
}

fn text(element: &OwnedElement) -> String {
    let owner = if element.is_port() { format!(" of {}", element.owner.text) } else { String::new() };
    format!("element {}{owner}", element.text())
}
