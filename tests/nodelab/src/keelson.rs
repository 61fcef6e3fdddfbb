//! The suite under test: `keelson run` with a config of the lab's own.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    layout::Layout,
    process::{Daemon, as_pid, child_with_arguments},
};

/// The resource of the samples, and how many simulated devices it has.
pub(crate) const RESOURCE: &str = "example.com/fpga";
pub(crate) const DEVICES: usize = 4;
/// The driver's name, which the samples' StorageClass names.
pub(crate) const DRIVER: &str = "csi.keelson.dev";

/// A running supervisor with its four plugin processes.
#[derive(Debug)]
pub(crate) struct Keelson {
    daemon: Daemon,
    address: SocketAddr,
}

impl Keelson {
    /// Writes the config, starts `keelson run` and returns once all four plugins are ready.
    ///
    /// # Errors
    ///
    /// When the suite doesn't become ready.
    pub(crate) async fn start(layout: &Layout, range: &str) -> Result<Self> {
        let address = free_ports()?;
        let config = layout.config_file();
        fs::write(&config, config_of(layout, range, address))
            .with_context(|| format!("failed to write {}", config.display()))?;
        let mut command = Command::new(layout.program("keelson"));
        // What the machine's environment says of its own node must not reach the lab.
        for variable in ["NODE_NAME", "CSI_ENDPOINT"] {
            command.env_remove(variable);
        }
        command.arg("run").arg("--config").arg(&config);
        let daemon = Daemon::start("keelson run", command, layout.root(), layout.join("log/keelson.log"))?;
        let mut keelson = Self { daemon, address };
        keelson.wait_ready().await?;
        Ok(keelson)
    }

    /// Where the supervisor serves /healthz, /readyz and /metrics.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The supervisor's process.
    pub(crate) fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// The process of one plugin: `network`, `storage`, `devices` or `pinning`.
    pub(crate) fn plugin_pid(&self, plugin: &str) -> Result<Option<u32>> {
        child_with_arguments(self.daemon.pid(), &["--only", plugin])
    }

    /// Kills a plugin's process and waits for the supervisor to bring up another; returns both process ids.
    pub(crate) async fn kill_plugin(&mut self, plugin: &str) -> Result<(u32, u32)> {
        let old = self.plugin_pid(plugin)?.with_context(|| format!("keelson runs no {plugin} process"))?;
        kill(as_pid(old)?, Signal::SIGKILL).with_context(|| format!("failed to kill process {old}"))?;
        let new = self.plugin_pid_other_than(plugin, old).await?;
        self.wait_ready().await?;
        Ok((old, new))
    }

    async fn plugin_pid_other_than(&mut self, plugin: &str, old: u32) -> Result<u32> {
        let supervisor = self.daemon.pid();
        let arguments = ["--only", plugin];
        self.daemon
            .wait_for("the supervisor to start the plugin anew", async || {
                child_with_arguments(supervisor, &arguments).ok().flatten().filter(|pid| *pid != old)
            })
            .await
    }

    /// Waits until all plugins are ready.
    pub(crate) async fn wait_ready(&mut self) -> Result<()> {
        let address = self.address;
        let is_ready = async || matches!(http_get(address, "/readyz").await, Ok((200, _))).then_some(());
        match self.daemon.wait_for("all plugins to be ready", is_ready).await {
            Ok(()) => Ok(()),
            Err(error) => {
                // Which plugin isn't, and why.
                let answer = http_get(address, "/readyz").await;
                Err(error.context(format!("/readyz of keelson run says {answer:?}")))
            }
        }
    }

    /// Waits for something of the suite's doing.
    pub(crate) async fn wait_for<T>(&mut self, what: &str, condition: impl AsyncFnMut() -> Option<T>) -> Result<T> {
        self.daemon.wait_for(what, condition).await
    }

    /// Ends the suite with SIGTERM.
    ///
    /// # Errors
    ///
    /// When it doesn't end well, or leaves a plugin process or one of its sockets.
    pub(crate) fn stop(self, layout: &Layout) -> Result<()> {
        let status = self.daemon.stop()?;
        ensure!(status.success(), "keelson run ended with {status}");
        let left: Vec<String> = sockets_below(layout.root())?
            .into_iter()
            .filter(|path| path.starts_with(layout.kubelet()) && !path.ends_with("kubelet.sock"))
            .map(|path| path.display().to_string())
            .collect();
        ensure!(left.is_empty(), "keelson run left sockets: {}", left.join(", "));
        Ok(())
    }

    /// Lets the suite run on when this process ends.
    pub(crate) fn leave(self) -> u32 {
        self.daemon.leave()
    }
}

/// The socket of the storage plugin.
pub(crate) fn storage_socket(layout: &Layout) -> PathBuf {
    layout.kubelet().join("plugins").join(DRIVER).join("csi.sock")
}

/// Every key that names a path, an address or a name on the machine is the lab's own.
fn config_of(layout: &Layout, range: &str, address: SocketAddr) -> String {
    format!(
        r#"# Written by nodelab: the NodeConfig of this lab.
apiVersion: keelson.dev/v1alpha1
kind: NodeConfig
nodeName: {node}
stateDir: {root}/keelson
observability: {{address: "{address}"}}
network:
  name: {mark}
  bridge: {bridge}
  ranges: ["{range}"]
  masquerade: true
  confDir: {root}/cni/conf
  binDir: {root}/cni/bin
storage:
  driverName: {DRIVER}
  endpoint: unix://{endpoint}
  pools: [{{name: default, path: {root}/pool, kind: image, allowSharedFilesystem: true}}]
devices:
  kubeletDir: {root}/kubelet/device-plugins
  cdiDir: {root}/cdi
  resources:
    - {{name: {RESOURCE}, simulated: {{count: {DEVICES}}}}}
pinning: {{socket: {nri}, pluginIndex: "10", mode: enforce, reservedCpus: ""}}
"#,
        node = layout.mark(),
        root = layout.root().display(),
        mark = layout.mark(),
        bridge = layout.bridge(),
        endpoint = storage_socket(layout).display(),
        nri = layout.nri_socket().display(),
    )
}

/// An address of the loopback whose port and the four after it are free: the supervisor's and the plugins'.
fn free_ports() -> Result<SocketAddr> {
    for _ in 0..100 {
        let first = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("failed to bind a port of the loopback")?;
        let address = first.local_addr()?;
        let others: Vec<_> = (1..=4)
            .filter_map(|offset| TcpListener::bind((Ipv4Addr::LOCALHOST, address.port().checked_add(offset)?)).ok())
            .collect();
        if others.len() == 4 {
            return Ok(address);
        }
    }
    bail!("found no five free ports in a row on the loopback")
}

/// The status and the body of `GET http://<address><path>`.
pub(crate) async fn http_get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = tokio::time::timeout(Duration::from_secs(10), exchange).await.context("no answer")??;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is no HTTP")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("the answer is no HTTP")?;
    Ok((status, body.to_owned()))
}

/// The bound sockets whose files lie below `directory`.
pub(crate) fn sockets_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let path = "/proc/net/unix";
    // Sample: "ffff...: 00000002 00000000 00010000 0001 01 12345 /run/x.sock"; a connected socket has its server's path.
    let mut found: Vec<PathBuf> = fs::read_to_string(path)
        .with_context(|| format!("failed to read {path}"))?
        .lines()
        .filter_map(|line| line.split_whitespace().nth(7))
        .map(PathBuf::from)
        .filter(|socket| socket.starts_with(directory))
        .collect();
    found.sort();
    found.dedup();
    Ok(found)
}
