//! Who is attached to what.

use super::{AttachmentReport, OperatorError, Places, report::state_of};
use crate::kernel::{RouteSocket, link};

/// Every attachment of every network in `places`, by network and Pod.
///
/// # Errors
///
/// [`OperatorError::NoNetwork`] if there is none, and what kept it from reading records or links. A record that can't be
/// read is no error: it is listed as such.
pub fn list(places: &Places) -> Result<Vec<AttachmentReport>, OperatorError> {
    let networks = places.networks()?;
    let links = link::all(&mut RouteSocket::open()?)?;
    let mut attachments = Vec::new();
    for network in networks {
        for key in network.store.keys()? {
            match network.store.read(&key) {
                Ok(Some(record)) => {
                    let state = state_of(&record, &links);
                    attachments.push(AttachmentReport::of_record(&record, network.data_dir.clone(), state));
                }
                // A DEL removed it since.
                Ok(None) => {}
                Err(error) => attachments.push(AttachmentReport::unreadable(
                    &network.name,
                    network.data_dir.clone(),
                    (&key.container_id, &key.ifname),
                    error.to_string(),
                )),
            }
        }
    }
    let order = |attachment: &AttachmentReport| {
        let AttachmentReport { network, pod, container_id, ifname, .. } = attachment;
        (network.clone(), pod.namespace.clone(), pod.name.clone(), container_id.clone(), ifname.clone())
    };
    attachments.sort_by_key(order);
    Ok(attachments)
}
