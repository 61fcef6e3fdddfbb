//! The suite under test: `keelson run` with a config of the lab's own.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    layout::{KEELSON_LOG, Layout},
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
        let config = layout.config_file();
        fs::write(&config, config_of(layout, range))
            .with_context(|| format!("failed to write {}", config.display()))?;
        let mut command = Command::new(layout.program("keelson"));
        // What the machine's environment says of its own node must not reach the lab.
        for variable in ["NODE_NAME", "CSI_ENDPOINT"] {
            command.env_remove(variable);
        }
        command.arg("run").arg("--config").arg(&config);
        let log = layout.log(KEELSON_LOG);
        let mut daemon = Daemon::start("keelson run", command, layout.root(), log.clone())?;
        let served = "keelson run to serve its health";
        let address = daemon
            .wait_for(served, async || fs::read_to_string(&log).ok().and_then(|log| supervisor_address(&log)))
            .await?;
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
fn config_of(layout: &Layout, range: &str) -> String {
    format!(
        r#"# Written by nodelab: the NodeConfig of this lab.
apiVersion: keelson.dev/v1alpha1
kind: NodeConfig
nodeName: {node}
stateDir: {root}/keelson
# Whatever ports are free; the log names them.
observability: {{address: "127.0.0.1:0"}}
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
  # The lab calls the driver at its socket: it has no plugin watcher.
  registration: {{enabled: false}}
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

/// The address that the supervisor logs once it is bound:
/// `{"level":"INFO","message":"serving ...","process":"supervisor","address":"127.0.0.1:36401",...}`.
fn supervisor_address(log: &str) -> Option<SocketAddr> {
    log.lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find(|event| event["process"] == "supervisor" && event["address"].is_string())
        .and_then(|event| event["address"].as_str()?.parse().ok())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_supervisors_own_address_is_taken() {
        let log = concat!(
            "{\"message\":\"serving\",\"process\":\"storage\",\"address\":\"127.0.0.1:1\"}\n",
            "not JSON\n",
            "{\"message\":\"started\",\"process\":\"supervisor\"}\n",
            "{\"message\":\"serving\",\"process\":\"supervisor\",\"address\":\"127.0.0.1:2\"}\n{\"mess",
        );
        assert_eq!(supervisor_address(log), Some(SocketAddr::from(([127, 0, 0, 1], 2))));
        assert_eq!(supervisor_address(""), None);
    }
}
