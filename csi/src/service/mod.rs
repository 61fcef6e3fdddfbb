//! The protocol's edge: validation of what was asked, and calls.

mod in_flight;

pub(crate) use in_flight::{Guard, InFlight, Pending};
