//! `Allocate`.

use std::{collections::BTreeSet, time::Duration};

use keelson_proto::deviceplugin::v1beta1 as api;
use tokio::{task, time};

use super::Offer;
use crate::{
    config::ResourceName,
    kernel::verify,
    metrics::ResultLabels,
    policy::{AllocationError, Device, Node, PERMISSIONS, allocate, qualified_name},
};

/// The kubelet sets no deadline, and admits no other Pod on the node meanwhile.
const DEADLINE: Duration = Duration::from_secs(2);

/// What each container gets. Nothing is changed or remembered by it: which container has what is the kubelet's to know.
pub(super) async fn answer(
    offer: &Offer,
    request: &api::AllocateRequest,
) -> Result<api::AllocateResponse, AllocationError> {
    let answer = checked(offer, request).await;
    offer.metrics.allocations.get_or_create(&ResultLabels::of(&offer.name, &answer)).inc();
    match &answer {
        Ok(_) => tracing::info!(resource = %offer.name, containers = ?request.container_requests, "allocated devices"),
        Err(error) => tracing::warn!(resource = %offer.name, %error, "refused to allocate devices"),
    }
    answer
}

async fn checked(offer: &Offer, request: &api::AllocateRequest) -> Result<api::AllocateResponse, AllocationError> {
    let listing = offer.listing.borrow().clone().unwrap_or_default();
    let ids: Vec<&[String]> =
        request.container_requests.iter().map(|container| container.devices_ids.as_slice()).collect();
    let containers = allocate(&offer.name, &listing, &ids)?;
    look_again(offer, containers.concat()).await?;
    let container_responses = containers.iter().map(|devices| response(&offer.name, devices)).collect();
    Ok(api::AllocateResponse { container_responses })
}

/// Checks that the devices are still what was listed: a change may not have been noticed yet.
async fn look_again(offer: &Offer, devices: Vec<Device>) -> Result<(), AllocationError> {
    let root = offer.root.clone();
    let look = task::spawn_blocking(move || {
        devices.into_iter().find_map(|device| verify(&root, &device).err().map(|found| (device.id, found)))
    });
    let changed = match time::timeout(DEADLINE, look).await {
        Ok(Ok(changed)) => changed,
        // The task isn't aborted, so it panicked.
        Ok(Err(error)) => std::panic::resume_unwind(error.into_panic()),
        Err(_) => {
            return Err(AllocationError::Deadline { name: offer.name.clone(), seconds: DEADLINE.as_secs() });
        }
    };
    match changed {
        None => Ok(()),
        Some((id, found)) => {
            offer.rescan.notify_one();
            Err(AllocationError::Changed { name: offer.name.clone(), id, found })
        }
    }
}

/// What one container gets: its devices' nodes, and their names in CDI.
///
/// Both at once are safe. containerd 2.1 makes the nodes of `devices` first; for CDI it then replaces the node that has
/// the same path (`cdi.ContainerEdits.Apply`: `RemoveDevice`, `AddDevice`) and adds a second, equal rule to the device
/// cgroup. A runtime with CDI off ignores `cdi_devices` and still makes the nodes.
fn response(name: &ResourceName, devices: &[Device]) -> api::ContainerAllocateResponse {
    let nodes: BTreeSet<&Node> = devices.iter().flat_map(|device| device.nodes.iter().chain(&device.shared)).collect();
    api::ContainerAllocateResponse {
        devices: nodes.into_iter().map(device_spec).collect(),
        cdi_devices: devices.iter().map(|device| api::CdiDevice { name: qualified_name(name, device) }).collect(),
        ..Default::default()
    }
}

fn device_spec(node: &Node) -> api::DeviceSpec {
    api::DeviceSpec {
        container_path: node.container_path.display().to_string(),
        host_path: node.path.display().to_string(),
        permissions: PERMISSIONS.to_owned(),
    }
}
