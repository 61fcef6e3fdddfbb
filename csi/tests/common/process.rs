//! A driver in a process of its own, which a test can kill.

use std::{
    fs,
    process::{Child, Command, Stdio},
    time::Duration,
};

use keelson_proto::csi::v1::{
    controller_client::ControllerClient, group_controller_client::GroupControllerClient,
    identity_client::IdentityClient, node_client::NodeClient,
};
use keelson_testkit::wait_until_async;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tonic::transport::Channel;

use super::{NODE, Place, connect};

/// How long a driver may take to start on a machine with much else to do.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A driver's process, killed when dropped.
pub(crate) struct Process(Option<Child>);

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Process {
    pub(crate) fn spawn(place: &Place, section: &Value) -> Self {
        let path = place.path("section.json");
        fs::write(&path, section.to_string()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_keelson-csi-alone"));
        command.arg("serve").args([&path, &NODE.into(), &place.path("state")]);
        Self(Some(command.stdin(Stdio::null()).spawn().unwrap()))
    }

    /// Starts a driver, and waits until it serves.
    pub(crate) async fn serve(place: &Place, section: &Value) -> (Self, Clients) {
        let process = Self::spawn(place, section);
        (process, Clients::connect(place).await)
    }

    /// Sends it a signal that ends it, and waits until it has.
    pub(crate) fn end(self, signal: Signal) {
        let mut child = self.into_child();
        kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
        child.wait().unwrap();
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.as_ref().unwrap().id()
    }

    /// Hands over who kills it and waits for it.
    pub(crate) fn into_child(mut self) -> Child {
        self.0.take().unwrap()
    }
}

/// Clients of a driver.
#[derive(Clone)]
pub(crate) struct Clients {
    pub(crate) identity: IdentityClient<Channel>,
    pub(crate) controller: ControllerClient<Channel>,
    pub(crate) node: NodeClient<Channel>,
    pub(crate) group: GroupControllerClient<Channel>,
}

impl Clients {
    pub(crate) async fn connect(place: &Place) -> Self {
        let socket = place.socket();
        let channel = wait_until_async("the driver to serve", PATIENCE, async || connect(&socket).await.ok()).await;
        Self {
            identity: IdentityClient::new(channel.clone()),
            controller: ControllerClient::new(channel.clone()),
            node: NodeClient::new(channel.clone()),
            group: GroupControllerClient::new(channel),
        }
    }
}
