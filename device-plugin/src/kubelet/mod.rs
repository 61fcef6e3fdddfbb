//! The kubelet as seen from here: where it listens, how a resource is registered, and when that has to be done again.

mod endpoint;
mod pace;
mod registration;
mod session;
mod socket;

pub(crate) use registration::offer_until;
pub(crate) use socket::sweep_dead_sockets;
