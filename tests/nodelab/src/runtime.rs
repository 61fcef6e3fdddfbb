//! A container runtime with a CNI plugin and nothing else, for measuring what one sandbox takes.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use keelson_proto::cri::v1::{
    LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption, PodSandboxConfig,
    PodSandboxMetadata,
};

use crate::{
    containerd::{Containerd, share_mounts},
    cri::Cri,
    layout::{Layout, Lock},
    sweep::sweep,
};

/// A running containerd in a directory of its own, swept away when dropped.
#[derive(Debug)]
pub struct Runtime {
    layout: Layout,
    cri: Cri,
    containerd: Option<Containerd>,
    /// Given back after the sweep.
    _lock: Lock,
}

impl Runtime {
    /// Starts containerd with the CNI programs of `plugins` and the network of `conflist`.
    ///
    /// What containerd and the plugins set up goes into the caller's network namespace.
    ///
    /// # Errors
    ///
    /// When the machine lacks something or containerd doesn't come up with that network, with the end of its log.
    pub async fn start(plugins: &Path, conflist: &str) -> Result<Self> {
        let layout = Layout::new();
        let lock = layout.create()?;
        let cri = Cri::at(&layout.containerd_socket())?;
        // From here on: what fails is swept away.
        let mut runtime = Self { layout, cri, containerd: None, _lock: lock };
        let layout = &runtime.layout;
        share_mounts(layout)?;
        for entry in fs::read_dir(plugins).with_context(|| format!("failed to list {}", plugins.display()))? {
            let program = entry?.path();
            if let Some(name) = program.file_name().filter(|_| program.is_file()) {
                let copy = layout.join("cni/bin").join(name);
                fs::copy(&program, &copy).with_context(|| format!("failed to copy to {}", copy.display()))?;
            }
        }
        let configuration = layout.join("cni/conf/10-network.conflist");
        fs::write(&configuration, conflist).with_context(|| format!("failed to write {}", configuration.display()))?;
        let mut containerd = Containerd::start(layout).await?;
        containerd.import_images(layout).await?;
        let cri = &runtime.cri;
        containerd
            .wait_for("containerd to be ready", async || matches!(cri.not_ready().await, Ok(None)).then_some(()))
            .await?;
        runtime.containerd = Some(containerd);
        Ok(runtime)
    }

    /// RunPodSandbox: returns the sandbox's id once it is on the network, or on the host's if `host_network`.
    ///
    /// # Errors
    ///
    /// When the runtime refuses.
    pub async fn run_sandbox(&self, name: &str, host_network: bool) -> Result<String> {
        let network = if host_network { NamespaceMode::Node } else { NamespaceMode::Pod };
        let namespaces = NamespaceOption {
            network: network.into(),
            pid: NamespaceMode::Container.into(),
            ..NamespaceOption::default()
        };
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: name.to_owned(),
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            log_directory: self.layout.join("log").display().to_string(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: format!("{}/{name}", self.layout.cgroup()),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces),
                    ..LinuxSandboxSecurityContext::default()
                }),
                ..LinuxPodSandboxConfig::default()
            }),
            ..PodSandboxConfig::default()
        };
        self.cri.run_sandbox(config).await
    }

    /// StopPodSandbox and RemovePodSandbox.
    ///
    /// # Errors
    ///
    /// When the runtime refuses.
    pub async fn remove_sandbox(&self, sandbox: &str) -> Result<()> {
        self.cri.remove_sandbox(sandbox).await
    }

    /// Stops containerd and removes all that it had.
    ///
    /// # Errors
    ///
    /// When it doesn't end well, or something can't be removed.
    pub fn stop(mut self) -> Result<()> {
        self.containerd.take().context("containerd was stopped")?.stop()?;
        sweep(&self.layout)
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        // After a stop there is nothing left to sweep.
        if let Err(error) = sweep(&self.layout) {
            eprintln!("nodelab: {error:#}; try again with: nodelab clean");
        }
    }
}
