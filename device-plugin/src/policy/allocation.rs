//! What a container gets for the ids that the kubelet chose.

use std::collections::BTreeSet;

use super::{Device, Fault, Health, Listing};
use crate::config::ResourceName;

/// Why devices can't be given to a container.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AllocationError {
    /// The request names no container or, for one, no device.
    #[error("the request names no device of {0}; ask for at least one")]
    Empty(ResourceName),
    /// A device is asked for twice.
    #[error("device {id:?} of {name} is named twice in one request; name each device once")]
    Repeated {
        /// The resource.
        name: ResourceName,
        /// The device.
        id: String,
    },
    /// There is no such device.
    #[error("{name} has no device {id:?}; ask for one of those listed by ListAndWatch")]
    Unknown {
        /// The resource.
        name: ResourceName,
        /// What was asked for.
        id: String,
    },
    /// The device is known and can't be used.
    #[error("device {id:?} of {name} is unhealthy: {fault}")]
    Unhealthy {
        /// The resource.
        name: ResourceName,
        /// The device.
        id: String,
        /// Why.
        fault: Fault,
    },
    /// The device's node isn't what was listed.
    #[error("device {id:?} of {name} is not what was listed: {found}; it is being looked at again")]
    Changed {
        /// The resource.
        name: ResourceName,
        /// The device.
        id: String,
        /// What is there instead.
        found: String,
    },
    /// The host didn't answer.
    #[error("the device nodes of {name} could not be looked at within {seconds} s")]
    Deadline {
        /// The resource.
        name: ResourceName,
        /// The limit.
        seconds: u64,
    },
}

/// How much of an id that makes no sense an error repeats.
const LONGEST_EXCERPT: usize = 63;

/// The devices that one request names, a list for each of its containers; `request` has the ids of each.
pub(crate) fn allocate(
    name: &ResourceName,
    listing: &Listing,
    request: &[&[String]],
) -> Result<Vec<Vec<Device>>, AllocationError> {
    if request.is_empty() || request.iter().any(|ids| ids.is_empty()) {
        return Err(AllocationError::Empty(name.clone()));
    }
    let mut seen = BTreeSet::new();
    let mut one = |id: &String| -> Result<Device, AllocationError> {
        let (name, id) = (name.clone(), id.chars().take(LONGEST_EXCERPT).collect::<String>());
        let Some(entry) = listing.entry(&id) else { return Err(AllocationError::Unknown { name, id }) };
        if !seen.insert(id.clone()) {
            return Err(AllocationError::Repeated { name, id });
        }
        match &entry.health {
            Health::Healthy => Ok(entry.device.clone()),
            Health::Unhealthy(fault) => Err(AllocationError::Unhealthy { name, id, fault: fault.clone() }),
        }
    };
    request.iter().map(|ids| ids.iter().map(&mut one).collect()).collect()
}
