//! The driver tells the kubelet of itself.
//!
//! The kubelet watches a directory for sockets (pkg/kubelet/pluginmanager). It asks who serves one that appears
//! (`GetInfo`), judges the answer, registers the driver, for which it calls `NodeGetInfo` on the driver's own socket, and
//! tells how that ended (`NotifyRegistrationStatus`). A socket that vanishes takes the registration with it. A kubelet
//! that starts looks at all that are there.
//!
//! Three things follow from how it does that:
//!
//! - The socket has the same name each time. A kubelet does one thing after another for one path, but for two at once:
//!   under a new name the driver would be registered while, or before, the old name takes it away. A socket that is made
//!   anew in place of the other is taken away and registered again, in this order.
//! - The name has an `@` in it. The kubelet's gRPC client sends the socket's path as the authority of its calls, `/`
//!   written as `%2F`, which is one for an HTTP/2 library only as far as an `@` follows.
//! - A driver whose registration failed has to make its socket anew: from some failures on, the kubelet takes it for
//!   registered and looks no more.

mod backoff;
mod metrics;
mod socket;
mod watch;

pub(crate) use metrics::Metrics;
pub(crate) use socket::{dead_sockets, longest_path};
pub(crate) use watch::{Registrant, keep_registered};
