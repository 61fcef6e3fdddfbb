//! The one unsafe call of the crate.

use std::{io, os::fd::OwnedFd};

use tokio::io::{Interest, unix::AsyncFd};

/// Has the runtime wait for `descriptor` to become readable. Must be called within a tokio runtime.
#[expect(unsafe_code, reason = "tokio has no safe way to wait for a descriptor of a type that it doesn't know")]
pub(super) fn readable(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open for as long as it exists, its number never changes, and the `AsyncFd` owns it.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }?)
}
