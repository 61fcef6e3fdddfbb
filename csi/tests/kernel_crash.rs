//! SIGKILL at any moment: the successor and the retry finish the job, and nothing is lost or left over.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    fs::File,
    io::Write,
    process::{Child, Command, Stdio},
    time::Duration,
};

use common::{MIB, NODE, Place, block, connect, mounted, publication, request};
use keelson_proto::csi::v1::{
    CreateVolumeRequest, DeleteVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest,
    NodeUnstageVolumeRequest, VolumeCapability, controller_client::ControllerClient, node_client::NodeClient,
};
use keelson_testkit::wait_until_async;
use tonic::{Status, transport::Channel};

/// A driver in a process of its own, killed when dropped.
struct Victim {
    child: Child,
    channel: Channel,
}

impl Victim {
    async fn start(place: &Place, kind: &str) -> Self {
        let section = place.path("section.json");
        File::create(&section).unwrap().write_all(place.section(kind).to_string().as_bytes()).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_keelson-csi-alone"))
            .arg("serve")
            .args([&section, &NODE.into(), &place.path("state")])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let socket = place.socket();
        let channel =
            wait_until_async("the driver to serve", Duration::from_secs(60), async || connect(&socket).await.ok())
                .await;
        Self { child, channel }
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The steps of a volume's life, by the calls of a kubelet and a provisioner that try again until they succeed.
struct Life {
    name: String,
    capability: VolumeCapability,
    staging: String,
    target: String,
    id: Option<String>,
}

impl Life {
    const STEPS: usize = 6;

    async fn step(&mut self, number: usize, channel: &Channel) -> Result<(), Status> {
        let mut controller = ControllerClient::new(channel.clone());
        let mut node = NodeClient::new(channel.clone());
        let volume_id = self.id.clone().unwrap_or_default();
        match number {
            0 => {
                let wish: CreateVolumeRequest = request(&self.name, 16 * MIB, self.capability.clone());
                let id = controller.create_volume(wish).await?.into_inner().volume.unwrap().volume_id;
                // What was answered once is the answer for ever.
                assert_eq!(*self.id.get_or_insert(id.clone()), id);
                Ok(())
            }
            1 => {
                let request = NodeStageVolumeRequest {
                    volume_id,
                    staging_target_path: self.staging.clone(),
                    volume_capability: Some(self.capability.clone()),
                    ..NodeStageVolumeRequest::default()
                };
                node.node_stage_volume(request).await.map(drop)
            }
            2 => {
                let request = publication(&volume_id, &self.staging, &self.target, self.capability.clone());
                node.node_publish_volume(request).await.map(drop)
            }
            3 => {
                let request = NodeUnpublishVolumeRequest { volume_id, target_path: self.target.clone() };
                node.node_unpublish_volume(request).await.map(drop)
            }
            4 => {
                let request = NodeUnstageVolumeRequest { volume_id, staging_target_path: self.staging.clone() };
                node.node_unstage_volume(request).await.map(drop)
            }
            _ => {
                let request = DeleteVolumeRequest { volume_id, ..DeleteVolumeRequest::default() };
                controller.delete_volume(request).await.map(drop)
            }
        }
    }
}

/// Lives a volume's life again and again; in each, the driver is killed once, a little later in each round.
async fn live_and_be_killed(kind: &str, capability: VolumeCapability) {
    let place = Place::new();
    for round in 0..Life::STEPS * 5 {
        let mut life = Life {
            name: format!("pvc-{round}"),
            capability: capability.clone(),
            staging: place.text("staging"),
            target: place.text("pods/target"),
            id: None,
        };
        let doomed = round / 5;
        let mut victim = Victim::start(&place, kind).await;
        for step in 0..Life::STEPS {
            if step == doomed {
                // Each of five rounds lets it get further into the call. Whatever it got done, the check is the same.
                let head_start = Duration::from_micros([0, 400, 1500, 4000, 9000][round % 5]);
                let channel = victim.channel.clone();
                let call = life.step(step, &channel);
                let _answer = tokio::time::timeout(head_start, call).await;
                drop(victim);
                victim = Victim::start(&place, kind).await;
            }
            let channel = victim.channel.clone();
            // A helper of the killed driver may be ending just now.
            wait_until_async(&format!("step {step} of round {round}"), Duration::from_secs(60), async || {
                life.step(step, &channel).await.ok()
            })
            .await;
            if step == 2 {
                assert_eq!(place.mounts().iter().filter(|mount| mount.point == place.path("pods/target")).count(), 1);
            }
        }
        place.expect_clean();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_step_of_an_image_volumes_life() {
    needs_a_kernel!();
    live_and_be_killed("image", mounted()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_step_of_a_block_volumes_life() {
    needs_a_kernel!();
    live_and_be_killed("image", block()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_step_of_a_directory_volumes_life() {
    needs_a_kernel!();
    live_and_be_killed("directory", mounted()).await;
}
