//! What this machine is, read from a root that can be `/`, `/host` or a test fixture.
//!
//! Reads only, with two exceptions that every plugin needs done in one right way: [`write_atomic`], the file writer of
//! every store, and [`PrivateSocket`], the socket of every server.

mod atomic;
mod error;
mod node;
mod problem;
mod root;
mod socket;

pub use atomic::{Durability, write_atomic};
pub use error::{InspectError, read_text};
pub use node::Node;
pub use problem::{Problem, Problems, parse_section};
pub use root::HostRoot;
pub use socket::PrivateSocket;
