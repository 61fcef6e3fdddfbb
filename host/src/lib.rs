//! What this machine is, read from a root that can be `/`, `/host` or a test fixture.
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
pub use error::{InspectError, read_text};
pub use inspection::{Inspection, Unread};
pub use link::{Link, OperationalState, links};
pub use mount::{Mount, mounts};
pub use node::Node;
pub use pci::{PciFunction, pci_functions};
pub use problem::{Problem, Problems, parse_section};
pub use root::HostRoot;
pub use socket::PrivateSocket;
pub use topology::{Cpu, NumaNode, Topology};
