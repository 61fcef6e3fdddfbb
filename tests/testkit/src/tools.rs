//! The real Go programs that Keelson is tested against, built once from the modules pinned under `tests/tools/`.

use std::{
    collections::hash_map::DefaultHasher,
    env,
    ffi::OsStr,
    fs::{self, File},
    hash::{Hash, Hasher},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

/// A pinned set of programs: one folder under `tests/tools/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    /// `containerd`, `containerd-shim-runc-v2` and `ctr`.
    Containerd,
    /// The reference CNI plugins: `bridge`, `host-local`, `loopback`, `portmap`, `bandwidth`, `tuning`, `firewall`.
    CniPlugins,
    /// libcni's `cnitool`.
    Cnitool,
    /// `csi-sanity`.
    CsiSanity,
}

impl Tool {
    /// Every set, in the order in which they are worth building.
    pub const ALL: [Self; 4] = [Self::Containerd, Self::CniPlugins, Self::Cnitool, Self::CsiSanity];

    /// The set's folder below `tests/tools/`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::CniPlugins => "cni-plugins",
            Self::Cnitool => "cnitool",
            Self::CsiSanity => "csi-sanity",
        }
    }

    fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Containerd => &[
                "github.com/containerd/containerd/v2/cmd/containerd",
                "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
                "github.com/containerd/containerd/v2/cmd/ctr",
            ],
            Self::CniPlugins => &[
                "github.com/containernetworking/plugins/plugins/main/bridge",
                "github.com/containernetworking/plugins/plugins/main/loopback",
                "github.com/containernetworking/plugins/plugins/ipam/host-local",
                "github.com/containernetworking/plugins/plugins/meta/bandwidth",
                "github.com/containernetworking/plugins/plugins/meta/firewall",
                "github.com/containernetworking/plugins/plugins/meta/portmap",
                "github.com/containernetworking/plugins/plugins/meta/tuning",
            ],
            Self::Cnitool => &["github.com/containernetworking/cni/cnitool"],
            Self::CsiSanity => &["github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity"],
        }
    }

    /// Whether the set is built already, so that [`Tool::ensure`] would only return its path.
    ///
    /// # Errors
    ///
    /// When the pin can't be read.
    pub fn is_built(self) -> Result<bool> {
        Ok(self.directory()?.join("complete").exists())
    }

    /// Whether [`Tool::ensure`] can be asked: the set is built, or there is Go to build it with.
    #[must_use]
    pub fn is_available(self) -> bool {
        self.is_built().unwrap_or(false) || go_version().is_ok()
    }

    /// The directory with the set's programs, built on first use.
    ///
    /// The cache is keyed by the pin, so that a changed version is built anew; two processes that ask at once wait
    /// for one build.
    ///
    /// # Errors
    ///
    /// When Go is missing or the build fails, with what `go` said.
    pub fn ensure(self) -> Result<PathBuf> {
        let directory = self.directory()?;
        let marker = directory.join("complete");
        if marker.exists() {
            return Ok(directory);
        }
        fs::create_dir_all(&directory).with_context(|| format!("failed to create {}", directory.display()))?;
        let lock = File::create(directory.join("lock"))?;
        lock.lock()?;
        if marker.exists() {
            return Ok(directory);
        }
        go_version()?;
        // -trimpath keeps this machine's paths out of the programs; without cgo they need no C compiler and run
        // on any machine. containerd's optional btrfs snapshotter would need headers that we don't ask for.
        let output = Command::new("go")
            .current_dir(pin_directory(self.name()))
            .env("GOFLAGS", "-mod=readonly")
            .env("CGO_ENABLED", "0")
            .args(["build", "-trimpath", "-tags", "no_btrfs", "-ldflags", "-s -w", "-o"])
            .arg(format!("{}/", directory.display()))
            .args(self.packages())
            .output()
            .context("failed to run go")?;
        ensure!(
            output.status.success(),
            "go build of {} failed: {}",
            self.name(),
            String::from_utf8_lossy(&output.stderr)
        );
        File::create(&marker)?;
        Ok(directory)
    }

    fn directory(self) -> Result<PathBuf> {
        let mut hasher = DefaultHasher::new();
        for file in ["go.mod", "go.sum"] {
            let path = pin_directory(self.name()).join(file);
            fs::read(&path).with_context(|| format!("failed to read {}", path.display()))?.hash(&mut hasher);
        }
        self.packages().hash(&mut hasher);
        Ok(cache_dir()?.join(format!("{}-{:016x}", self.name(), hasher.finish())))
    }
}

/// A file of a Go module that `tests/tools/<pin>/go.mod` pins, such as a published .proto file.
///
/// # Errors
///
/// When Go is missing, the module can't be downloaded, or the file isn't in it.
pub fn go_module_file(pin: &str, module: &str, file: &str) -> Result<PathBuf> {
    go_version()?;
    let output = Command::new("go")
        .current_dir(pin_directory(pin))
        .args(["mod", "download", "-json", module])
        .output()
        .context("failed to run go")?;
    ensure!(output.status.success(), "go mod download {module} failed: {}", String::from_utf8_lossy(&output.stderr));
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let Some(directory) = answer["Dir"].as_str() else { bail!("go mod download {module} named no directory") };
    let path = Path::new(directory).join(file);
    ensure!(path.is_file(), "{module} has no file {file}");
    Ok(path)
}

/// The version that `go version` prints, such as `go1.26.8`.
///
/// # Errors
///
/// When there is no `go` on PATH, with the remedy.
pub fn go_version() -> Result<String> {
    let output = Command::new("go")
        .arg("version")
        .output()
        .context("go is not on PATH; install Go 1.26 or later: the real containerd and csi-sanity are built with it")?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.split_whitespace().nth(2).map(str::to_owned).context("go version printed no version")
}

/// Where built tools are kept: `$KEELSON_CACHE`, else `keelson` in the user's cache directory.
///
/// # Errors
///
/// When neither that nor `$HOME` is set.
pub fn cache_dir() -> Result<PathBuf> {
    if let Some(directory) = non_empty("KEELSON_CACHE") {
        return Ok(directory);
    }
    if let Some(directory) = non_empty("XDG_CACHE_HOME") {
        return Ok(directory.join("keelson"));
    }
    let home = non_empty("HOME").context("neither KEELSON_CACHE nor HOME is set; set KEELSON_CACHE to a directory")?;
    Ok(home.join(".cache/keelson"))
}

fn non_empty(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|value| value != OsStr::new("")).map(PathBuf::from)
}

/// The workspace's root directory.
#[must_use]
pub fn workspace_root() -> PathBuf {
    // The manifest of this crate lies in tests/testkit.
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn pin_directory(name: &str) -> PathBuf {
    workspace_root().join("tests/tools").join(name)
}
