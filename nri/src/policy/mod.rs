//! Pure decisions: which container gets which CPUs and which memory, and why. No I/O, no clock.
//!
//! [`Container`] is what is known of a container, [`Machine`] what there is to give, [`Pinning`] who has what.
//!
//! Invariants, property-tested in `tests`:
//! - no two exclusive placements share a CPU, and none holds a reserved CPU;
//! - the shared set is never empty;
//! - no answer names an offline CPU, a node without memory or an empty set;
//! - the order in which containers are reported decides nothing.

mod annotations;
mod container;
mod machine;
mod pinning;

pub(crate) use annotations::Wishes;
pub(crate) use container::{Container, Pod, Qos, whole_cpus};
pub(crate) use machine::Machine;
pub(crate) use pinning::{Assignment, Kind, Moves, Pinning, Placement, Recorded};

#[cfg(test)]
use pinning::Outcome;
#[cfg(test)]
mod tests;
