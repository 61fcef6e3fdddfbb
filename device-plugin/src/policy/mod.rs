//! Pure decisions: which devices there are, how they are called, what the kubelet is told. No I/O, no clock.

mod allocation;
mod backoff;
mod cdi;
pub(crate) mod device;
mod id;
mod inventory;
mod listing;
mod matching;

pub(crate) use allocation::{AllocationError, allocate};
pub(crate) use backoff::Backoff;
pub(crate) use cdi::{CdiSpec, PERMISSIONS, cdi_spec, qualified_name};
pub(crate) use device::{Device, Fault, Health, Node, Origin};
pub(crate) use id::{node_id, simulated_id};
pub(crate) use inventory::{Entry, Inventory};
pub(crate) use listing::{Listing, TooLarge};
pub(crate) use matching::{Conflict, conflicts, merge};
