//! A CSI driver that runs, with clients.

use std::{
    fs::{self, File},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use keelson_proto::csi::v1::{
    ProbeRequest, controller_client::ControllerClient, identity_client::IdentityClient, node_client::NodeClient,
    snapshot_metadata_client::SnapshotMetadataClient,
};
use rustix::process::{Pid, Signal};
use serde_json::json;
use tonic::transport::{Channel, Endpoint};

pub(super) const NODE: &str = "bench";

/// How long a start may take.
const PATIENCE: Duration = Duration::from_secs(120);

pub(super) struct Server {
    process: Child,
    pub(super) identity: IdentityClient<Channel>,
    pub(super) controller: ControllerClient<Channel>,
    pub(super) node: NodeClient<Channel>,
    pub(super) metadata: SnapshotMetadataClient<Channel>,
}

impl Server {
    /// Our driver, with a pool of images below `root`.
    pub(super) async fn keelson(program: &Path, root: &Path) -> Result<Self> {
        Self::start(keelson(program, root)?, root).await
    }

    /// Our driver below another program, such as strace.
    pub(super) async fn keelson_below(mut above: Command, program: &Path, root: &Path) -> Result<Self> {
        let command = keelson(program, root)?;
        above.arg(command.get_program()).args(command.get_args());
        Self::start(above, root).await
    }

    /// csi-driver-host-path, with its state below `root`.
    pub(super) async fn host_path(program: &Path, root: &Path) -> Result<Self> {
        let mut command = Command::new(program);
        command.args(["--drivername=hostpath.csi.k8s.io", "--enable-snapshot-metadata=true"]);
        command.arg(format!("--nodeid={NODE}"));
        command.arg(format!("--endpoint=unix://{}", root.join("csi.sock").display()));
        command.arg(format!("--statedir={}", root.join("state").display()));
        fs::create_dir_all(root.join("state"))?;
        Self::start(command, root).await
    }

    async fn start(mut command: Command, root: &Path) -> Result<Self> {
        let log = root.join("log");
        let file = File::create(&log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let mut process = command.spawn().with_context(|| format!("failed to run {command:?}"))?;
        let start = Instant::now();
        loop {
            if let Some((identity, channel)) = connect(root).await {
                return Ok(Self {
                    process,
                    identity,
                    controller: ControllerClient::new(channel.clone()),
                    node: NodeClient::new(channel.clone()),
                    metadata: SnapshotMetadataClient::new(channel),
                });
            }
            if process.try_wait()?.is_some() || start.elapsed() > PATIENCE {
                let _ = process.kill();
                let _ = process.wait();
                bail!("{command:?} doesn't serve: {}", fs::read_to_string(&log).unwrap_or_default().trim());
            }
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.id()
    }
}

/// The clients, once the driver answers that it is ready.
async fn connect(root: &Path) -> Option<(IdentityClient<Channel>, Channel)> {
    let socket = format!("unix://{}", root.join("csi.sock").display());
    // Servers in Go want a host name there.
    let origin = "http://localhost".parse().ok()?;
    let channel = Endpoint::from_shared(socket).ok()?.origin(origin).connect().await.ok()?;
    let mut identity = IdentityClient::new(channel.clone());
    let ready = identity.probe(ProbeRequest {}).await.ok()?.into_inner().ready;
    ready.unwrap_or(true).then_some((identity, channel))
}

fn keelson(program: &Path, root: &Path) -> Result<Command> {
    let section = json!({
        "endpoint": format!("unix://{}", root.join("csi.sock").display()),
        "pools": [{"name": "pool", "path": root.join("pool"), "kind": "image"}],
    });
    fs::create_dir_all(root.join("pool"))?;
    let path = root.join("section.json");
    fs::write(&path, section.to_string())?;
    let mut command = Command::new(program);
    command.arg("serve").arg(path).arg(NODE).arg(root.join("state"));
    Ok(command)
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process(Pid::from_child(&self.process), Signal::TERM);
        let start = Instant::now();
        while self.process.try_wait().is_ok_and(|ended| ended.is_none()) {
            if start.elapsed() > Duration::from_secs(15) {
                let _ = self.process.kill();
                let _ = self.process.wait();
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}
