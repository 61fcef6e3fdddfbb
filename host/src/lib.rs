//! What this machine is, read from a root that can be `/`, `/host` or a test fixture.
//!
//! [`HostRoot`] says where the machine's `/sys`, `/proc` and `/dev` are. Each kind of fact has a file of its own here and
//! one way in: [`Topology::read`] for CPUs, caches and NUMA nodes, [`pci_functions`], [`device_nodes`],
//! [`block_devices`], [`links`], [`mounts`] and [`CgroupLayout::read`]. [`Inspection::read`] gives them all, for
//! `keelson inspect`. [`fixture`] makes machines for tests.
//!
//! ```
//! use keelson_host::{HostRoot, Topology};
//!
//! let topology = Topology::read(&HostRoot::system())?;
//! for node in &topology.nodes {
//!     println!("node {} has CPUs {} and {} bytes", node.id, node.cpus, node.memory_bytes);
//! }
//! # Ok::<(), keelson_host::InspectError>(())
//! ```
//!
//! What the kernel leaves out is unknown (`None`, an empty set), not an error. What it would never write is
//! [`InspectError::Parse`] with the file, its content and what was expected there.
//!
//! Reads only, with two exceptions that every plugin needs done in one right way: [`write_atomic`], the file writer of
//! every store, and [`PrivateSocket`], the socket of every server.

mod atomic;
mod block;
mod cgroup;
mod cpu_set;
mod device;
mod error;
pub mod fixture;
mod inspection;
mod link;
mod mount;
mod node;
mod pci;
mod problem;
mod report;
mod root;
mod serialize;
mod socket;
mod topology;
mod tree;

pub use atomic::{Durability, write_atomic};
pub use block::{BlockDevice, block_devices};
pub use cgroup::CgroupLayout;
pub use cpu_set::{CpuSet, ParseCpuSetError};
pub use device::{DeviceKind, DeviceNode, device_node, device_nodes, device_numa_node};
pub use error::{InspectError, error_chain};
pub use inspection::{Inspection, Unread};
pub use link::{Link, OperationalState, links};
pub use mount::{Mount, mounts};
pub use node::Node;
pub use pci::{PciFunction, pci_functions};
pub use problem::{Problem, Problems, parse_section};
pub use root::HostRoot;
pub use socket::{LONGEST_SOCKET_PATH, PrivateSocket, is_dead_socket};
pub use topology::{Cpu, NumaNode, Topology};
pub use tree::{boot_id, read_text};
