//! One lab: a containerd, the suite and a stand-in for the kubelet, from start to sweep.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use keelson_proto::cri::v1::{
    CdiDevice, ContainerConfig, ContainerMetadata, Device, ImageSpec, KeyValue, LinuxContainerConfig,
    LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, Mount, NamespaceMode,
    NamespaceOption, PodSandboxConfig, PodSandboxMetadata,
};

use crate::{
    cgroup::Cgroups,
    containerd::{Containerd, program, share_mounts},
    cri::Cri,
    device_manager::{Allocation, DeviceManager},
    keelson::{DEVICES, Keelson, RESOURCE, storage_socket},
    layout::{Layout, Lock, Range},
    manifest::{ContainerManifest, Manifests, PodManifest},
    qos::{Class, container_resources, pod_resources},
    sweep::{self, sweep},
    volumes::{Driver, Volume},
};

/// A running lab. Dropping it sweeps all of it away; [`Lab::stop`] ends it in order and `Lab::leave` keeps it.
#[derive(Debug)]
pub struct Lab {
    pub(crate) layout: Layout,
    pub(crate) range: Range,
    pub(crate) cri: Cri,
    /// `None` only while containerd is being restarted, and after the end.
    pub(crate) containerd: Option<Containerd>,
    pub(crate) keelson: Option<Keelson>,
    pub(crate) devices: DeviceManager,
    pub(crate) driver: Driver,
    cgroups: Cgroups,
    guard: Guard,
}

/// Sweeps the lab when dropped, unless told not to.
#[derive(Debug)]
struct Guard {
    layout: Layout,
    armed: bool,
    /// Given back after the sweep.
    _lock: Lock,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.armed
            && let Err(error) = sweep(&self.layout)
        {
            // Nobody may be there to read it: a panic here would keep the rest from being dropped.
            let _ = writeln!(std::io::stderr(), "nodelab: {error:#}; try again with: nodelab clean");
        }
    }
}

/// A Pod that runs.
#[derive(Debug)]
pub struct RunningPod {
    pub(crate) manifest: PodManifest,
    pub(crate) uid: String,
    pub(crate) class: Class,
    pub(crate) cgroup: String,
    pub(crate) sandbox: String,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) containers: BTreeMap<String, RunningContainer>,
    pub(crate) volumes: Vec<Volume>,
}

/// A container that runs.
#[derive(Debug)]
pub(crate) struct RunningContainer {
    pub(crate) id: String,
    /// Its first process, in the host's numbering.
    pub(crate) pid: u32,
    pub(crate) allocation: Allocation,
}

/// What a command in a container came to.
#[derive(Debug)]
pub struct Output {
    /// The exit code.
    pub code: i32,
    /// What it wrote to its standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to its standard error, without the end of the last line.
    pub stderr: String,
}

impl Output {
    /// The standard output as text, without the end of the last line.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }
}

impl Lab {
    /// Brings up a lab with the programs in `programs`, calling `progress` before each step.
    ///
    /// # Errors
    ///
    /// When the machine lacks something, with the remedy, or a program doesn't come up, with the end of its log. What
    /// was started is swept away.
    pub async fn start(programs: &Path, progress: &dyn Fn(&str)) -> Result<Self> {
        Self::start_in(Layout::new(), programs, false, progress).await
    }

    /// [`Lab::start`] in a given directory. If `keep`, what fails leaves its files there, to be looked at.
    pub(crate) async fn start_in(layout: Layout, programs: &Path, keep: bool, progress: &dyn Fn(&str)) -> Result<Self> {
        check_machine()?;
        let range = layout.free_range()?;
        let cgroups = Cgroups::find()?;
        let lock = layout.create()?;
        // From here on: what fails is swept away.
        let mut guard = Guard { layout: layout.clone(), armed: true, _lock: lock };
        match Self::start_programs(&layout, programs, &range, progress).await {
            Ok(started) => {
                let (containerd, keelson, cri, devices, driver) = started;
                Ok(Self {
                    layout,
                    range,
                    cri,
                    containerd: Some(containerd),
                    keelson: Some(keelson),
                    devices,
                    driver,
                    cgroups,
                    guard,
                })
            }
            Err(error) => {
                guard.armed = !keep;
                Err(error)
            }
        }
    }

    async fn start_programs(
        layout: &Layout,
        programs: &Path,
        range: &Range,
        progress: &dyn Fn(&str),
    ) -> Result<(Containerd, Keelson, Cri, DeviceManager, Driver)> {
        layout.put_programs(programs)?;
        share_mounts(layout)?;
        progress(&format!("Starting containerd in {}", layout.root().display()));
        let mut containerd = Containerd::start(layout).await?;
        containerd.import_images(layout).await?;
        let devices = DeviceManager::start(&layout.kubelet().join("device-plugins"))?;
        progress("Starting keelson run with all four plugins");
        let mut keelson = Keelson::start(layout, range.as_str()).await?;
        let cri = Cri::at(&layout.containerd_socket())?;
        wait_until_usable(&mut keelson, &cri, &devices).await?;
        let driver = Driver::connect(&storage_socket(layout), &layout.kubelet()).await?;
        Ok((containerd, keelson, cri, devices, driver))
    }

    /// The suite.
    pub(crate) fn keelson(&mut self) -> Result<&mut Keelson> {
        self.keelson.as_mut().context("keelson run was stopped")
    }

    /// Makes a volume for every claim, as the external provisioner does.
    ///
    /// # Errors
    ///
    /// When a class names another driver, or the driver refuses.
    pub async fn provision(&self, manifests: &Manifests) -> Result<BTreeMap<String, Volume>> {
        let mut volumes = BTreeMap::new();
        for (name, claim) in &manifests.claims {
            let class = manifests.classes.get(&claim.class).context("checked when the manifests were read")?;
            ensure!(
                class.provisioner == self.driver.name(),
                "StorageClass {}: provisioner {:?} is not here; this lab has {:?}",
                claim.class,
                class.provisioner,
                self.driver.name()
            );
            let uid = uuid::Uuid::new_v4().to_string();
            let volume = self.driver.create(claim, class, &uid).await.with_context(|| format!("claim {name}"))?;
            volumes.insert(name.clone(), volume);
        }
        Ok(volumes)
    }

    /// Does for a Pod what the kubelet does, in its order: admission with the devices, cgroup, volumes, sandbox,
    /// containers.
    ///
    /// # Errors
    ///
    /// When a step fails; what was done by then is swept away with the lab.
    pub async fn create_pod(&self, manifest: &PodManifest, claims: &BTreeMap<String, Volume>) -> Result<RunningPod> {
        let pod = self.try_create_pod(manifest, claims).await;
        pod.with_context(|| format!("failed to create Pod {}", manifest.name))
    }

    async fn try_create_pod(&self, manifest: &PodManifest, claims: &BTreeMap<String, Volume>) -> Result<RunningPod> {
        let uid = uuid::Uuid::new_v4().to_string();
        let mut allocations = BTreeMap::new();
        for container in &manifest.containers {
            let allocation = self.devices.allocate(&uid, &container.devices).await?;
            allocations.insert(container.name.clone(), allocation);
        }

        let compute: Vec<_> = manifest.containers.iter().map(|container| container.compute).collect();
        let class = Class::of(&compute);
        let cgroup = class.cgroup(&self.layout.cgroup(), &uid);
        let resources = pod_resources(&compute);
        self.cgroups.create(&cgroup, &resources)?;

        let mut volumes = Vec::new();
        let mut directories = BTreeMap::new();
        for (name, claim) in &manifest.volumes {
            let volume = claims.get(claim).with_context(|| format!("claim {claim} has no volume"))?;
            directories.insert(name.as_str(), self.driver.publish(volume, &uid, false).await?);
            volumes.push(volume.clone());
        }

        let log_directory = self.layout.join("log/pods").join(&uid);
        fs::create_dir_all(&log_directory).with_context(|| format!("failed to create {}", log_directory.display()))?;
        let sandbox_config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: manifest.name.clone(),
                uid: uid.clone(),
                namespace: manifest.namespace.clone(),
                attempt: 0,
            }),
            hostname: manifest.name.clone(),
            log_directory: log_directory.display().to_string(),
            labels: labels(manifest, &uid),
            annotations: manifest.annotations.clone(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: cgroup.clone(),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(pod_namespaces()),
                    ..LinuxSandboxSecurityContext::default()
                }),
                resources: Some(resources),
                ..LinuxPodSandboxConfig::default()
            }),
            ..PodSandboxConfig::default()
        };
        let sandbox = self.cri.run_sandbox(sandbox_config.clone()).await?;
        let addresses = self.cri.addresses(&sandbox).await?;

        let mut containers = BTreeMap::new();
        for container in &manifest.containers {
            let allocation = allocations.remove(&container.name).unwrap_or_default();
            self.devices.before_start(&allocation).await?;
            let config = container_config(manifest, &uid, class, container, &allocation, &directories)?;
            let id = self.cri.run_container(&sandbox, &sandbox_config, config).await?;
            let pid = self.cri.pid(&id).await?;
            containers.insert(container.name.clone(), RunningContainer { id, pid, allocation });
        }
        Ok(RunningPod { manifest: manifest.clone(), uid, class, cgroup, sandbox, addresses, containers, volumes })
    }

    /// Undoes [`Lab::create_pod`] in the kubelet's order.
    ///
    /// # Errors
    ///
    /// When a step fails; the steps after it are not done.
    pub async fn delete_pod(&self, pod: &RunningPod) -> Result<()> {
        let deleted = self.try_delete_pod(pod).await;
        deleted.with_context(|| format!("failed to delete Pod {}", pod.manifest.name))
    }

    async fn try_delete_pod(&self, pod: &RunningPod) -> Result<()> {
        for container in pod.containers.values() {
            self.cri.remove_container(&container.id, pod.manifest.grace_seconds).await?;
        }
        self.cri.remove_sandbox(&pod.sandbox).await?;
        for volume in &pod.volumes {
            self.driver.unpublish(volume, &pod.uid).await?;
        }
        self.cgroups.remove(&pod.cgroup)?;
        self.devices.free(&pod.uid);
        for directory in
            [self.layout.kubelet().join("pods").join(&pod.uid), self.layout.join("log/pods").join(&pod.uid)]
        {
            // The kubelet's own directories only: no file of a volume is in them once it is unpublished.
            match fs::remove_dir_all(&directory) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("failed to remove {}", directory.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Deletes a volume, as the external provisioner does when its claim is gone.
    ///
    /// # Errors
    ///
    /// When the driver refuses.
    pub async fn delete_volume(&self, volume: &Volume) -> Result<()> {
        self.driver.delete(volume).await
    }

    /// Runs `command` in the Pod's first container.
    ///
    /// # Errors
    ///
    /// When it can't be run; a command that ends with another code than 0 is none.
    pub async fn exec(&self, pod: &RunningPod, command: &[&str]) -> Result<Output> {
        let answer = self.cri.exec(&pod.container()?.id, command).await?;
        Ok(Output {
            code: answer.exit_code,
            stdout: answer.stdout,
            stderr: String::from_utf8_lossy(&answer.stderr).trim_end().to_owned(),
        })
    }

    /// [`Lab::exec`] of a command that must succeed.
    ///
    /// # Errors
    ///
    /// When it can't be run, or ends with another code than 0.
    pub async fn exec_ok(&self, pod: &RunningPod, command: &[&str]) -> Result<Output> {
        let output = self.exec(pod, command).await?;
        ensure!(
            output.code == 0,
            "{command:?} in {} ended with code {}: {}",
            pod.manifest.name,
            output.code,
            output.stderr
        );
        Ok(output)
    }

    /// Kills the process of `plugin` (`network`, `storage`, `devices` or `pinning`) and waits until all are ready again.
    ///
    /// # Errors
    ///
    /// When the supervisor doesn't bring it back, or its devices aren't registered again.
    pub async fn kill_plugin(&mut self, plugin: &str) -> Result<(u32, u32)> {
        let keelson = self.keelson.as_mut().context("keelson run was stopped")?;
        let pids = keelson.kill_plugin(plugin).await?;
        wait_until_usable(keelson, &self.cri, &self.devices).await?;
        Ok(pids)
    }

    /// The processes of `keelson run`: the supervisor's and each plugin's, with what they are called.
    ///
    /// # Errors
    ///
    /// When a plugin has no process.
    pub fn processes(&self) -> Result<Vec<(&'static str, u32)>> {
        let keelson = self.keelson.as_ref().context("keelson run was stopped")?;
        let mut processes = vec![("supervisor", keelson.pid())];
        for plugin in ["network", "storage", "devices", "pinning"] {
            let pid = keelson.plugin_pid(plugin)?.with_context(|| format!("keelson runs no {plugin} process"))?;
            processes.push((plugin, pid));
        }
        Ok(processes)
    }

    /// Where a cgroup of the lab exists.
    pub(crate) fn cgroup_directories(&self, cgroup: &str) -> Vec<PathBuf> {
        self.cgroups.directories(cgroup)
    }

    /// Kills containerd, starts it anew in the same directories and waits for the suite to be ready; the containers run
    /// on.
    ///
    /// # Errors
    ///
    /// When containerd doesn't come up or the suite doesn't find it again.
    pub async fn restart_containerd(&mut self) -> Result<()> {
        self.containerd.take().context("containerd was stopped")?.kill()?;
        self.containerd = Some(Containerd::start(&self.layout).await?);
        let keelson = self.keelson.as_mut().context("keelson run was stopped")?;
        keelson.wait_ready().await?;
        wait_until_usable(keelson, &self.cri, &self.devices).await
    }

    /// Ends the lab in order and returns what is left in the kernel all the same.
    ///
    /// # Errors
    ///
    /// When a program doesn't end well or something can't be removed; the rest is then swept away.
    pub async fn stop(mut self) -> Result<Vec<String>> {
        self.keelson.take().context("keelson run was stopped")?.stop(&self.layout)?;
        self.containerd.take().context("containerd was stopped")?.stop()?;
        sweep::remove_network(&self.layout)?;
        self.cgroups.remove(&self.layout.cgroup())?;
        self.devices.stop().await;
        sweep::unshare_mounts(&self.layout)?;
        sweep::leftovers(&self.layout, Some(self.range.as_str()))
    }

    /// Lets containerd and the suite run on, with the Pods, until `nodelab clean`.
    pub(crate) fn leave(mut self) {
        if let Some(keelson) = self.keelson.take() {
            keelson.leave();
        }
        if let Some(containerd) = self.containerd.take() {
            containerd.leave();
        }
        self.guard.armed = false;
    }
}

impl RunningPod {
    /// The first container.
    pub(crate) fn container(&self) -> Result<&RunningContainer> {
        let first = self.manifest.containers.first().context("a Pod has a container")?;
        self.containers.get(&first.name).context("every container of a running Pod runs")
    }
}

/// That the machine has what a lab needs, each lack with its remedy.
pub(crate) fn check_machine() -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "root is needed: a lab makes network namespaces, mounts and cgroups; run it with sudo"
    );
    for name in ["runc", "busybox", "mkfs.ext4", "nft", "losetup", "tar"] {
        program(name)?;
    }
    let cpus = std::thread::available_parallelism().context("failed to count the CPUs")?.get();
    ensure!(
        cpus >= 2,
        "2 CPUs are needed, one that a container has alone and one for the rest; this machine has {cpus}"
    );
    Ok(())
}

/// Waits for what the plugins do once they are ready: the CNI config read, the devices registered.
async fn wait_until_usable(keelson: &mut Keelson, cri: &Cri, devices: &DeviceManager) -> Result<()> {
    keelson
        .wait_for("containerd to find the CNI config", async || matches!(cri.not_ready().await, Ok(None)).then_some(()))
        .await?;
    keelson
        .wait_for("the devices to be registered", async || {
            (devices.allocatable().get(RESOURCE) == Some(&DEVICES)).then_some(())
        })
        .await
}

/// The labels that the kubelet sets beside the Pod's own.
fn labels(pod: &PodManifest, uid: &str) -> BTreeMap<String, String> {
    let mut labels = pod.labels.clone();
    labels.insert("io.kubernetes.pod.name".to_owned(), pod.name.clone());
    labels.insert("io.kubernetes.pod.namespace".to_owned(), pod.namespace.clone());
    labels.insert("io.kubernetes.pod.uid".to_owned(), uid.to_owned());
    labels
}

/// Network and IPC are the Pod's, processes each container's: the API's defaults.
fn pod_namespaces() -> NamespaceOption {
    NamespaceOption {
        network: NamespaceMode::Pod.into(),
        pid: NamespaceMode::Container.into(),
        ipc: NamespaceMode::Pod.into(),
        ..NamespaceOption::default()
    }
}

fn container_config(
    pod: &PodManifest,
    uid: &str,
    class: Class,
    container: &ContainerManifest,
    allocation: &Allocation,
    volumes: &BTreeMap<&str, PathBuf>,
) -> Result<ContainerConfig> {
    let mut labels = labels(pod, uid);
    labels.insert("io.kubernetes.container.name".to_owned(), container.name.clone());
    let mut config = ContainerConfig {
        metadata: Some(ContainerMetadata { name: container.name.clone(), attempt: 0 }),
        image: Some(ImageSpec { image: container.image.clone(), ..ImageSpec::default() }),
        command: container.command.clone(),
        args: container.args.clone(),
        working_dir: container.working_dir.clone(),
        labels,
        log_path: format!("{}.log", container.name),
        linux: Some(LinuxContainerConfig {
            resources: Some(container_resources(class, container.compute, memory_capacity()?)),
            security_context: Some(LinuxContainerSecurityContext {
                namespace_options: Some(pod_namespaces()),
                ..LinuxContainerSecurityContext::default()
            }),
        }),
        ..ContainerConfig::default()
    };
    let mut environment: BTreeMap<&str, &str> = BTreeMap::new();
    for mount in &container.mounts {
        let directory = volumes.get(mount.volume.as_str()).context("checked when the manifests were read")?;
        config.mounts.push(Mount {
            container_path: mount.path.clone(),
            host_path: directory.display().to_string(),
            readonly: mount.read_only,
            ..Mount::default()
        });
    }
    for response in &allocation.responses {
        environment.extend(response.envs.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        config.annotations.extend(response.annotations.clone());
        config.cdi_devices.extend(response.cdi_devices.iter().map(|device| CdiDevice { name: device.name.clone() }));
        config.mounts.extend(response.mounts.iter().map(|mount| Mount {
            container_path: mount.container_path.clone(),
            host_path: mount.host_path.clone(),
            readonly: mount.read_only,
            ..Mount::default()
        }));
        config.devices.extend(response.devices.iter().map(|device| Device {
            container_path: device.container_path.clone(),
            host_path: device.host_path.clone(),
            permissions: device.permissions.clone(),
        }));
    }
    // The Pod's own variables win.
    environment.extend(container.env.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    config.envs = environment
        .into_iter()
        .map(|(key, value)| KeyValue { key: key.to_owned(), value: value.as_bytes().to_vec() })
        .collect();
    Ok(config)
}

/// The machine's memory in bytes: `MemTotal:       24689748 kB`.
fn memory_capacity() -> Result<u64> {
    let path = "/proc/meminfo";
    let text = fs::read_to_string(path).with_context(|| format!("failed to read {path}"))?;
    let kibibytes = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok())
        .context("/proc/meminfo has no MemTotal")?;
    Ok(kibibytes * 1024)
}
