//! A real containerd of the lab's own.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context, Result, anyhow, ensure};
use keelson_host::HostRoot;
use keelson_testkit::Tool;
use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

use crate::{
    cri::Cri,
    image::{self, PAUSE_IMAGE},
    layout::{CONTAINERD_LOG, Layout},
    process::Daemon,
};

/// A running containerd.
#[derive(Debug)]
pub(crate) struct Containerd {
    daemon: Daemon,
}

/// Paths that containerd 2.1 takes from no setting: the shims' sockets below its default state directory, and libcni's
/// cache of results. Each lab's containerd sees directories of the lab there.
const FIXED_PATHS: [(&str, &str); 2] = [("/run/containerd", "run-containerd"), ("/var/lib/cni", "cni/cache")];

impl Containerd {
    /// Starts containerd and returns once it answers.
    ///
    /// # Errors
    ///
    /// When its programs are missing or it doesn't come up, with the end of its log.
    pub(crate) async fn start(layout: &Layout) -> Result<Self> {
        let tools = Tool::Containerd.ensure()?;
        let configuration = layout.join("containerd.toml");
        fs::write(&configuration, configuration_of(layout)?)
            .with_context(|| format!("failed to write {}", configuration.display()))?;
        let mut command = Command::new(tools.join("containerd"));
        command.arg("--config").arg(&configuration).env("PATH", path_with(&tools)?);
        let mut daemon = start_in_mount_namespace(layout, command)?;
        let cri = Cri::at(&layout.containerd_socket())?;
        daemon.wait_for("containerd to answer", async || cri.version().await.ok()).await?;
        Ok(Self { daemon })
    }

    /// Imports the images that the Pods use; they are made on the spot.
    pub(crate) async fn import_images(&mut self, layout: &Layout) -> Result<()> {
        let archive = image::make_archive(&layout.join("images"))?;
        let output = ctr(layout)?
            // The CRI plugin unpacks them when it needs them, with the snapshotter that it is told to use.
            .args(["--namespace", "k8s.io", "images", "import", "--no-unpack"])
            .arg(&archive)
            .output()
            .context("failed to run ctr")?;
        ensure!(
            output.status.success(),
            "ctr failed to import {}: {}",
            archive.display(),
            String::from_utf8_lossy(&output.stderr)
        );
        // The CRI plugin learns of images by an event.
        let cri = Cri::at(&layout.containerd_socket())?;
        for image in image::IMAGES {
            self.daemon
                .wait_for("containerd to know the imported images", async || {
                    cri.has_image(image).await.ok()?.then_some(())
                })
                .await?;
        }
        Ok(())
    }

    /// Waits for something of containerd's doing.
    pub(crate) async fn wait_for<T>(&mut self, what: &str, condition: impl AsyncFnMut() -> Option<T>) -> Result<T> {
        self.daemon.wait_for(what, condition).await
    }

    /// Stops containerd; containers run on, as in production.
    pub(crate) fn stop(self) -> Result<()> {
        let status = self.daemon.stop()?;
        ensure!(status.success(), "containerd ended with {status}");
        Ok(())
    }

    /// Kills containerd as a crash would; containers run on.
    pub(crate) fn kill(self) -> Result<()> {
        self.daemon.kill()
    }

    /// Lets containerd run on when this process ends.
    pub(crate) fn leave(self) -> u32 {
        self.daemon.leave()
    }
}

/// containerd's own client, pointed at the lab's containerd.
pub(crate) fn ctr(layout: &Layout) -> Result<Command> {
    let mut command = Command::new(Tool::Containerd.ensure()?.join("ctr"));
    command.arg("--address").arg(layout.containerd_socket());
    Ok(command)
}

/// Makes the lab's directory a mount whose events go both ways between this mount namespace and containerd's.
///
/// Volumes that are mounted here must be seen there, and a Pod's network namespace, which is mounted there, here.
pub(crate) fn share_mounts(layout: &Layout) -> Result<()> {
    let root = layout.root();
    let no_data = None::<&str>;
    mount(Some(root), root, no_data, MsFlags::MS_BIND, no_data)
        .and_then(|()| mount(no_data, root, no_data, MsFlags::MS_SHARED, no_data))
        .with_context(|| format!("failed to make {} a shared mount", root.display()))
}

/// Starts containerd in a mount namespace where [`FIXED_PATHS`] are the lab's.
fn start_in_mount_namespace(layout: &Layout, command: Command) -> Result<Daemon> {
    for (path, own) in FIXED_PATHS {
        for directory in [Path::new(path), &layout.join(own)] {
            fs::create_dir_all(directory).with_context(|| format!("failed to create {}", directory.display()))?;
        }
    }
    let layout = layout.clone();
    // The namespace is the thread's, and what the thread starts inherits it.
    thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).context("failed to make a mount namespace; nodelab needs CAP_SYS_ADMIN")?;
        let no_data = None::<&str>;
        // Everything but the lab's own directory turns to receiving only, or the bind mounts below would be seen by the
        // host's containerd.
        let mounts = keelson_host::mounts(&HostRoot::system())?;
        for point in mounts.iter().map(|mount| &mount.point).filter(|point| !point.starts_with(layout.root())) {
            mount(no_data, point, no_data, MsFlags::MS_SLAVE, no_data)
                // Unmounted on the host meanwhile, and so here.
                .or_else(|error| if matches!(error, Errno::EINVAL | Errno::ENOENT) { Ok(()) } else { Err(error) })
                .with_context(|| format!("failed to keep mounts below {} from the host", point.display()))?;
        }
        for (path, own) in FIXED_PATHS {
            mount(Some(&layout.join(own)), path, no_data, MsFlags::MS_BIND, no_data)
                .with_context(|| format!("failed to bind the lab's directory to {path}"))?;
        }
        Daemon::start("containerd", command, layout.root(), layout.log(CONTAINERD_LOG))
    })
    .join()
    .map_err(|_| anyhow!("the thread that starts containerd panicked"))?
}

/// containerd's configuration, version 3: that of 2.0 and later.
fn configuration_of(layout: &Layout) -> Result<String> {
    let path = |path: &str| toml_string(&layout.join(path));
    Ok(format!(
        r#"# Written by nodelab. Every path that containerd would share with another one on this host is set.
version = 3
root = {root}
state = {state}
# Needs a configuration or a kernel module of its own, and would log a warning each.
disabled_plugins = ["io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.blockfile", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]

[grpc]
address = {socket}

[plugins."io.containerd.internal.v1.opt"]
path = {opt}

[plugins."io.containerd.cri.v1.images"]
snapshotter = "{snapshotter}"

[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{PAUSE_IMAGE}"

[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = {restrict_oom_score_adj}
netns_mounts_under_state_dir = true
enable_cdi = true
cdi_spec_dirs = [{cdi}]

[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = [{cni_bin}]
conf_dir = {cni_conf}
use_internal_loopback = true

[plugins."io.containerd.cri.v1.runtime".containerd]
default_runtime_name = "runc"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
BinaryName = {runc}
Root = {runc_root}

[plugins."io.containerd.nri.v1.nri"]
disable = false
socket_path = {nri}
plugin_path = {nri_plugins}
plugin_config_path = {nri_configurations}
"#,
        root = path("containerd/root"),
        state = path("containerd/state"),
        socket = toml_string(&layout.containerd_socket()),
        opt = path("containerd/opt"),
        snapshotter = snapshotter(layout)?,
        restrict_oom_score_adj = !may_lower_oom_score()?,
        cdi = path("cdi"),
        cni_bin = path("cni/bin"),
        cni_conf = path("cni/conf"),
        runc = toml_string(&program("runc")?),
        runc_root = path("runc"),
        nri = toml_string(&layout.nri_socket()),
        nri_plugins = path("nri/plugins"),
        nri_configurations = path("nri/conf.d"),
    ))
}

/// What makes containers' root directories: overlayfs, or copies where the lab lies on an overlay itself, as in a
/// container, since the kernel puts no overlay's upper directory on another overlay.
fn snapshotter(layout: &Layout) -> Result<&'static str> {
    let mounts = keelson_host::mounts(&HostRoot::system())?;
    let lab = mounts.iter().rev().find(|mount| mount.point == layout.root());
    let lab = lab.with_context(|| format!("{} is no mount", layout.root().display()))?;
    Ok(if lab.kind == "overlay" { "native" } else { "overlayfs" })
}

/// Whether this process has CAP_SYS_RESOURCE. Without it a sandbox's OOM score of -998 is refused by the kernel, and
/// containerd has to be told to stay above its own score.
fn may_lower_oom_score() -> Result<bool> {
    const CAP_SYS_RESOURCE: u32 = 24;
    let status = fs::read_to_string("/proc/self/status").context("failed to read /proc/self/status")?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|value| u64::from_str_radix(value.trim(), 16).ok())
        .context("/proc/self/status has no CapEff")?;
    Ok(effective >> CAP_SYS_RESOURCE & 1 == 1)
}

/// The path of a program on PATH.
pub(crate) fn program(name: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("{name} is not on PATH; install Debian's package: {}", package_of(name)))
}

fn package_of(program: &str) -> &str {
    match program {
        "busybox" => "busybox-static",
        "losetup" => "mount",
        "mkfs.ext4" => "e2fsprogs",
        "nft" => "nftables",
        other => other,
    }
}

fn path_with(directory: &Path) -> Result<std::ffi::OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    Ok(env::join_paths(std::iter::once(directory.to_owned()).chain(env::split_paths(&path)))?)
}

/// A TOML basic string; the lab's paths hold nothing that needs escaping but what is escaped here.
fn toml_string(path: &Path) -> String {
    format!("{:?}", path.display().to_string())
}
