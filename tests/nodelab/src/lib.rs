//! A stand-in for the kubelet and the provisioner on one machine: Pod manifests on a real containerd, through all four
//! of Keelson's plugins, with no cluster.
//!
//! [`run`] is the trial of `cargo xtask try`; [`clean`] removes what an earlier one left. A lab is one directory,
//! `/var/lib/keelson-lab-<id>`; see `docs/nodelab.md`.

mod aftermath;
mod cgroup;
mod clean;
mod containerd;
mod cri;
mod device_manager;
mod image;
mod keelson;
mod lab;
mod layout;
mod manifest;
mod process;
mod qos;
mod quantity;
mod report;
mod runtime;
mod scene;
mod sweep;
mod trial;
mod volumes;

pub use clean::{Cleaned, clean, traces};
pub use lab::{Lab, Output, RunningPod};
pub use manifest::{Manifests, PodManifest};
pub use report::{Report, Stage};
pub use runtime::Runtime;
pub use scene::{Check, Scene};
pub use trial::{Options, Outcome, run};
pub use volumes::Volume;
