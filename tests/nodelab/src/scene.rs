//! The samples' Pods, and everything that is verified while they run: from inside a container, or from the kernel.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};
use keelson_host::CpuSet;
use serde_json::Value;

use crate::lab::{Lab, RunningPod};

/// The claim of the samples: 64 MiB.
pub(crate) const VOLUME_BYTES: u64 = 64 << 20;
const PORT: u16 = 8080;
/// Where the samples mount the volume, and the file that is served from it.
const DIRECTORY: &str = "/data";
const FILE: &str = "payload";

/// What is verified while the Pods run, in the order of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// Addresses of their own, from the range.
    Network,
    /// A block device of the right size with a filesystem of its own.
    Volume,
    /// The bytes that one Pod writes are the bytes that the other fetches.
    Data,
    /// The device opens where it was asked for.
    Device,
    /// It opens nowhere else.
    Isolation,
    /// One CPU for the guaranteed Pod alone.
    Cpus,
    /// The class's cgroup, limits and OOM score.
    Resources,
}

impl Check {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Network, Self::Volume, Self::Data, Self::Device, Self::Isolation, Self::Cpus, Self::Resources];

    /// The stage's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Network => "network",
            Self::Volume => "volume",
            Self::Data => "data",
            Self::Device => "device",
            Self::Isolation => "isolation",
            Self::Cpus => "cpus",
            Self::Resources => "resources",
        }
    }
}

/// The Pods of the samples, running.
#[derive(Debug)]
pub struct Scene {
    pub(crate) app: RunningPod,
    pub(crate) peer: RunningPod,
    /// What was written into the volume.
    payload: Vec<u8>,
}

/// A device node in a container.
#[derive(Debug)]
struct Node {
    path: String,
    major: u32,
    minor: u32,
}

impl Scene {
    /// Takes the Pods `app` and `peer`, and has `app` write random bytes into its volume.
    ///
    /// # Errors
    ///
    /// When one of the two is missing or the bytes can't be written.
    pub async fn set(lab: &Lab, mut pods: Vec<RunningPod>) -> Result<Self> {
        let mut take = |name: &str| {
            let index = pods.iter().position(|pod| pod.manifest.name == name);
            index.map(|index| pods.swap_remove(index)).with_context(|| format!("the samples have no Pod {name:?}"))
        };
        let (app, peer) = (take("app")?, take("peer")?);
        // What tee prints is what it wrote, before anything was read back.
        let write = format!("head -c 262144 /dev/urandom | tee {DIRECTORY}/{FILE}");
        let payload = lab.exec_ok(&app, &["sh", "-c", &write]).await?.stdout;
        ensure!(payload.len() == 262_144, "app wrote {} bytes instead of 262144", payload.len());
        Ok(Self { app, peer, payload })
    }

    /// `app` and `peer`.
    #[must_use]
    pub fn pods(&self) -> (&RunningPod, &RunningPod) {
        (&self.app, &self.peer)
    }

    /// Verifies one thing and says what was seen.
    ///
    /// # Errors
    ///
    /// What is not as it should be.
    pub async fn check(&self, lab: &Lab, check: Check) -> Result<String> {
        match check {
            Check::Network => self.network(lab).await,
            Check::Volume => self.volume(lab).await,
            Check::Data => self.data(lab).await,
            Check::Device => self.device(lab).await,
            Check::Isolation => self.isolation(lab).await,
            Check::Cpus => self.cpus(lab).await,
            Check::Resources => self.resources(lab).await,
        }
    }

    /// The addresses on eth0 are what the runtime was told, differ, and come from the range.
    async fn network(&self, lab: &Lab) -> Result<String> {
        let range = lab.range.as_str();
        let mut addresses = Vec::new();
        for pod in [&self.app, &self.peer] {
            let name = &pod.manifest.name;
            // Sample: "2: eth0    inet 10.90.17.2/24 brd 10.90.17.255 scope global eth0\       valid_lft ..."
            let text = lab.exec_ok(pod, &["ip", "-4", "-o", "addr", "show", "dev", "eth0"]).await?.text();
            let address = text.split_whitespace().nth(3).and_then(|address| address.split('/').next());
            let address: Ipv4Addr = address
                .and_then(|address| address.parse().ok())
                .with_context(|| format!("{name}: no address in {text:?}"))?;
            ensure!(
                pod.addresses.contains(&IpAddr::V4(address)),
                "{name} has {address}, but the runtime was told {:?}",
                pod.addresses
            );
            ensure!(is_in_range(address, range)?, "{name} has {address}, which is not in {range}");
            addresses.push(address);
        }
        ensure!(addresses[0] != addresses[1], "app and peer both have {}", addresses[0]);
        Ok(format!("app has {} and peer {}, both of {range}: ip addr in the containers", addresses[0], addresses[1]))
    }

    /// The volume in `app` is a block device of the size that was asked for, with a filesystem of its own.
    async fn volume(&self, lab: &Lab) -> Result<String> {
        let mountinfo = lab.exec_ok(&self.app, &["cat", "/proc/self/mountinfo"]).await?.text();
        let (device, kind) =
            mount_at(&mountinfo, DIRECTORY).with_context(|| format!("app has no mount at {DIRECTORY}"))?;
        let (root, _) = mount_at(&mountinfo, "/").context("app has no root")?;
        ensure!(device != root, "the volume is on the container's own filesystem {root}");
        let size = format!("/sys/dev/block/{device}/size");
        // Sectors of 512 bytes, whatever the device's own are (Documentation/block/stat.rst).
        let inside: u64 =
            lab.exec_ok(&self.app, &["cat", &size]).await?.text().parse().context("the size is no number")?;
        ensure!(inside * 512 == VOLUME_BYTES, "the block device {device} has {} bytes", inside * 512);
        let backing = fs::read_to_string(format!("/sys/dev/block/{device}/loop/backing_file"))
            .with_context(|| format!("{device} is no loop device"))?;
        ensure!(
            Path::new(backing.trim_end()).starts_with(lab.layout.join("pool")),
            "{device} is backed by {}, which is not in the pool",
            backing.trim_end()
        );
        let peer = lab.exec_ok(&self.peer, &["cat", "/proc/self/mountinfo"]).await?.text();
        ensure!(!peer.contains(&format!(" {device} ")), "peer sees the volume");
        Ok(format!(
            "{DIRECTORY} in app is {kind} of its own on block device {device} with {} bytes: mountinfo and \
             /sys/dev/block in the container",
            inside * 512
        ))
    }

    /// What `peer` fetches from `app` is what was written.
    async fn data(&self, lab: &Lab) -> Result<String> {
        let address = self.app.addresses.first().context("app has no address")?;
        let url = format!("http://{address}:{PORT}/{FILE}");
        let fetched = lab.exec_ok(&self.peer, &["wget", "-q", "-O", "-", &url]).await?.stdout;
        ensure!(
            fetched == self.payload,
            "peer fetched {} bytes that are not the {} that were written",
            fetched.len(),
            self.payload.len()
        );
        Ok(format!(
            "peer fetched {} random bytes from {url}, the very ones that app wrote to its volume: wget in the container",
            fetched.len()
        ))
    }

    /// The device opens in `app`.
    async fn device(&self, lab: &Lab) -> Result<String> {
        let mut seen = Vec::new();
        for node in self.nodes(lab).await? {
            let opened = open(lab, &self.app, &node.path).await?;
            ensure!(opened == Ok(()), "{} does not open in app: {opened:?}", node.path);
            seen.push(format!("{} (character device {}:{})", node.path, node.major, node.minor));
        }
        let ids: Vec<&str> = self
            .app
            .container()?
            .allocation
            .devices
            .iter()
            .flat_map(|(_, ids)| ids.iter().map(String::as_str))
            .collect();
        Ok(format!("app was given {} and opens {}", ids.join(", "), seen.join(", ")))
    }

    /// The device is not in `peer`, and a node that `peer` makes of its number doesn't open.
    async fn isolation(&self, lab: &Lab) -> Result<String> {
        // The same steps succeed with a device that every container may have: what follows fails for the right reason.
        if let Err(error) = make_and_open(lab, &self.peer, 1, 3).await? {
            bail!("peer can't open a /dev/null of its own making, so nothing can be said of other devices: {error}");
        }
        let mut seen = Vec::new();
        for node in self.nodes(lab).await? {
            match open(lab, &self.peer, &node.path).await? {
                Ok(()) => bail!("{} opens in peer", node.path),
                Err(error) => {
                    ensure!(
                        error.to_lowercase().contains("no such file"),
                        "peer is refused for another reason: {error}"
                    );
                }
            }
            match make_and_open(lab, &self.peer, node.major, node.minor).await? {
                Ok(()) => bail!("peer made a node {}:{} with mknod and opened it", node.major, node.minor),
                Err(error) => {
                    ensure!(error.contains("Operation not permitted"), "peer is refused for another reason: {error}");
                }
            }
            if let Err(error) = make_and_open(lab, &self.app, node.major, node.minor).await? {
                bail!("app, which may, can't open a node of its own making either: {error}");
            }
            seen.push(format!("{}:{}", node.major, node.minor));
        }
        Ok(format!(
            "in peer the node is absent, and one made with mknod ({}) is not permitted to open; in app it opens",
            seen.join(", ")
        ))
    }

    /// `app` has one CPU alone.
    async fn cpus(&self, lab: &Lab) -> Result<String> {
        let mut sets = Vec::new();
        for pod in [&self.app, &self.peer] {
            // The first process, which was there before anything else was asked.
            let status = lab.exec_ok(pod, &["cat", "/proc/1/status"]).await?.text();
            let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
            let list = list.context("the status has no Cpus_allowed_list")?.trim();
            sets.push(list.parse::<CpuSet>().with_context(|| format!("{list:?} is no list of CPUs"))?);
        }
        let (app, peer) = (&sets[0], &sets[1]);
        ensure!(app.iter().count() == 1, "app may run on CPUs {app}, not on exactly one");
        ensure!(
            !app.iter().any(|cpu| peer.contains(cpu)),
            "peer may run on CPUs {peer}, and app's {app} is one of them"
        );
        Ok(format!("app runs on CPU {app} alone, peer on {peer}: Cpus_allowed_list of process 1 in the containers"))
    }

    /// Each Pod is in its class's cgroup, with the limits and the OOM score of the kubelet's making.
    async fn resources(&self, lab: &Lab) -> Result<String> {
        let mut seen = Vec::new();
        for pod in [&self.app, &self.peer] {
            let path = format!("/proc/{}/cgroup", pod.container()?.pid);
            let cgroups = fs::read_to_string(&path).with_context(|| format!("failed to read {path}"))?;
            ensure!(
                cgroups.lines().any(|line| line.contains(&pod.cgroup)),
                "{} is not in {}: {cgroups}",
                pod.manifest.name,
                pod.cgroup
            );
            seen.push(format!("{} is {} in {}", pod.manifest.name, pod.class.name(), pod.cgroup));
        }
        // The first is version 1's file, the second version 2's.
        let limit = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max";
        let limit = lab.exec_ok(&self.app, &["sh", "-c", limit]).await?.text();
        let wanted = self.app.manifest.containers.first().and_then(|container| container.compute.memory_limit);
        ensure!(Some(&limit) == wanted.map(|bytes| bytes.to_string()).as_ref(), "app's memory limit is {limit}");
        let score = lab.exec_ok(&self.peer, &["cat", "/proc/1/oom_score_adj"]).await?.text();
        ensure!(score == "1000", "peer's OOM score is {score} instead of 1000");
        Ok(format!("{}; app's memory limit is {limit}, peer's OOM score 1000", seen.join(", ")))
    }

    /// The device nodes that the plugin gave `app`, by its answer or by the CDI specs that the answer names.
    async fn nodes(&self, lab: &Lab) -> Result<Vec<Node>> {
        let mut paths = Vec::new();
        for response in &self.app.container()?.allocation.responses {
            paths.extend(response.devices.iter().map(|device| device.container_path.clone()));
            for device in &response.cdi_devices {
                paths.extend(cdi_nodes(&lab.layout.join("cdi"), &device.name)?);
            }
        }
        paths.sort();
        paths.dedup();
        ensure!(!paths.is_empty(), "Allocate named no device node");
        let mut nodes = Vec::new();
        for path in paths {
            // busybox's stat prints the numbers in hexadecimal: "character special file 1 b".
            let text = lab.exec_ok(&self.app, &["stat", "-c", "%F %t %T", &path]).await?.text();
            let fields: Vec<&str> = text.split(' ').collect();
            let [.., major, minor] = fields.as_slice() else { bail!("stat printed {text:?} for {path}") };
            ensure!(text.starts_with("character special file"), "{path} is a {text}");
            let number = |field: &str| u32::from_str_radix(field, 16).with_context(|| format!("stat printed {text:?}"));
            nodes.push(Node { major: number(major)?, minor: number(minor)?, path });
        }
        Ok(nodes)
    }
}

/// Opens `path` for reading in the container and says why that failed, if it did.
async fn open(lab: &Lab, pod: &RunningPod, path: &str) -> Result<Result<(), String>> {
    let output = lab.exec(pod, &["sh", "-c", "exec 3<\"$0\"", path]).await?;
    Ok(if output.code == 0 { Ok(()) } else { Err(output.stderr) })
}

/// Makes a character device node in the container and opens it.
async fn make_and_open(lab: &Lab, pod: &RunningPod, major: u32, minor: u32) -> Result<Result<(), String>> {
    let script = "rm -f /tmp/probe && mknod /tmp/probe c \"$0\" \"$1\" && exec 3</tmp/probe";
    let output = lab.exec(pod, &["sh", "-c", script, &major.to_string(), &minor.to_string()]).await?;
    Ok(if output.code == 0 { Ok(()) } else { Err(output.stderr) })
}

/// The paths of the device nodes of a CDI device, `vendor/class=name`, in the specs of `directory`.
fn cdi_nodes(directory: &Path, device: &str) -> Result<Vec<String>> {
    let (kind, name) = device.split_once('=').with_context(|| format!("{device:?} is no CDI device"))?;
    for entry in fs::read_dir(directory).with_context(|| format!("failed to list {}", directory.display()))? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let text = fs::read(&path).with_context(|| format!("failed to read {}", path.display()))?;
        let spec: Value = serde_json::from_slice(&text).with_context(|| format!("{} is no JSON", path.display()))?;
        let devices = spec["devices"].as_array().map(Vec::as_slice).unwrap_or_default();
        if let Some(found) = devices.iter().find(|found| spec["kind"] == kind && found["name"] == name) {
            let nodes = found["containerEdits"]["deviceNodes"].as_array().map(Vec::as_slice).unwrap_or_default();
            return Ok(nodes.iter().filter_map(|node| node["path"].as_str()).map(str::to_owned).collect());
        }
    }
    bail!("no CDI spec in {} has {device}", directory.display())
}

/// The device and the type of the filesystem that is mounted at `point`, the topmost one.
fn mount_at(mountinfo: &str, point: &str) -> Option<(String, String)> {
    // proc_pid_mountinfo(5): "36 35 98:0 /root /point rw,noatime master:1 - ext3 /dev/root rw"
    mountinfo
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let fields: Vec<&str> = left.split(' ').collect();
            (fields.get(4) == Some(&point))
                .then(|| (fields[2].to_owned(), right.split(' ').next().unwrap_or_default().to_owned()))
        })
        .next_back()
}

fn is_in_range(address: Ipv4Addr, range: &str) -> Result<bool> {
    let (network, length) = range.split_once('/').context("a range has a prefix length")?;
    let network: Ipv4Addr = network.parse()?;
    let mask = u32::MAX.checked_shl(32 - length.parse::<u32>()?).unwrap_or(0);
    Ok(u32::from(address) & mask == u32::from(network) & mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topmost_mount_counts() {
        let text = "1 0 0:49 / / rw - overlay overlay rw\n2 1 7:0 / /data rw,relatime - ext4 /dev/loop0 rw\n\
                    3 2 7:1 / /data rw master:4 - xfs /dev/loop1 rw";
        assert_eq!(mount_at(text, "/data"), Some(("7:1".to_owned(), "xfs".to_owned())));
        assert_eq!(mount_at(text, "/dat"), None);
    }

    #[test]
    fn ranges_are_prefixes() {
        assert!(is_in_range(Ipv4Addr::new(10, 90, 17, 254), "10.90.17.0/24").unwrap());
        assert!(!is_in_range(Ipv4Addr::new(10, 90, 18, 1), "10.90.17.0/24").unwrap());
    }
}
