//! The guest's root and kernel, made from Debian's packages and kept.

use std::{
    collections::hash_map::DefaultHasher,
    fs::{self, File},
    hash::{Hash, Hasher},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use keelson_testkit::cache_dir;

use crate::{cpio::Archive, modules::closure};

/// What the test programs need and start, beside the kernel.
const PACKAGES: [&str; 16] = [
    "btrfs-progs",
    "busybox-static",
    "coreutils",
    "dash",
    "e2fsprogs",
    "iproute2",
    "iputils-ping",
    "kmod",
    "libc6",
    "libgcc-s1",
    "mount",
    "netbase",
    "nftables",
    "strace",
    "util-linux",
    "xfsprogs",
];

/// The package that depends on Debian's newest kernel. The kernel for clouds has no 9p.
const KERNEL: &str = "linux-image-amd64";

/// The modules without which the root isn't found. ext4 asks for crc32c by a name that modules.dep doesn't have.
const BOOT_MODULES: [&str; 4] = ["virtio_pci", "virtio_blk", "crc32c_generic", "ext4"];

/// A kernel, an initramfs without scripts, and a root, in a directory that is named after the packages' versions.
#[derive(Debug)]
pub struct Root(PathBuf);

impl Root {
    /// Finds the root of the newest packages that this machine's package lists know, or makes it, after saying so;
    /// with `refuse`, only says so. Two processes that ask at once wait for one.
    ///
    /// # Errors
    ///
    /// When it isn't there and may not or can't be made: that needs Debian's apt and dpkg, and root.
    pub fn ensure(refuse: bool) -> Result<Self> {
        if let Ok(root) = Selection::resolve().and_then(|selection| selection.root())
            && root.is_complete()
        {
            return Ok(root);
        }
        ensure!(!refuse, "the VM's root is not made yet; run: cargo xtask test vm");
        ensure!(
            Path::new("/usr/bin/apt-get").exists(),
            "the VM's root is made by apt-get; use Debian, or leave vm out"
        );
        // What the lists name may be gone from the mirror.
        check(Command::new("apt-get").args(["-qq", "update"]))?;
        let selection = Selection::resolve()?;
        let root = selection.root()?;
        let base = cache_dir()?;
        fs::create_dir_all(&base).with_context(|| format!("failed to create {}", base.display()))?;
        let lock = File::create(base.join("vm.lock")).context("failed to make the lock of the VM's root")?;
        lock.lock().context("failed to lock the making of the VM's root")?;
        if !root.is_complete() {
            eprintln!("Making the VM's root from Debian's packages in {} (once; a minute)", root.0.display());
            let start = Instant::now();
            // Whatever an interrupted attempt left.
            let partial = base.join("vm.partial");
            remove(&partial)?;
            fs::create_dir(&partial).with_context(|| format!("failed to create {}", partial.display()))?;
            Self(partial.clone()).make(&selection)?;
            remove(&root.0)?;
            fs::rename(&partial, &root.0).with_context(|| format!("failed to name {}", root.0.display()))?;
            eprintln!("  done in {} s", start.elapsed().as_secs());
        }
        Ok(root)
    }

    pub(crate) fn kernel(&self) -> PathBuf {
        self.0.join("vmlinuz")
    }

    /// Busybox and the modules, but no scripts.
    pub(crate) fn initramfs(&self) -> PathBuf {
        self.0.join("initramfs")
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.0.join("root.img")
    }

    fn is_complete(&self) -> bool {
        self.image().exists()
    }

    fn make(&self, selection: &Selection) -> Result<()> {
        let (archives, tree) = (self.0.join("archives"), self.0.join("tree"));
        fs::create_dir_all(archives.join("partial"))?;
        check(
            apt(&["install", "--yes", "--download-only"])
                .args(PACKAGES)
                .arg("-o")
                .arg(format!("Dir::Cache::archives={}", archives.display())),
        )?;
        check(apt(&["download"]).arg(&selection.kernel).current_dir(&archives))?;
        // As on every Debian since 11, /bin and its like lead into /usr; the packages have both.
        for name in ["bin", "lib", "lib64", "sbin"] {
            fs::create_dir_all(tree.join("usr").join(name))?;
            std::os::unix::fs::symlink(format!("usr/{name}"), tree.join(name))?;
        }
        for entry in fs::read_dir(&archives)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                unpack(&path, &tree)?;
            }
        }
        let version = selection.kernel.trim_start_matches("linux-image-");
        check(Command::new("chroot").arg(&tree).args(["/sbin/depmod", "-a", version]))?;
        fs::rename(tree.join(format!("boot/vmlinuz-{version}")), self.kernel())?;
        fs::write(self.initramfs(), initramfs(&tree, version)?)?;
        let image = self.0.join("root.img.partial");
        check(Command::new("mkfs.ext4").args(["-q", "-m", "0", "-d"]).arg(&tree).arg(&image).arg("2G"))?;
        remove(&tree)?;
        remove(&archives)?;
        fs::rename(image, self.image())?;
        Ok(())
    }
}

/// The packages that apt would install where nothing is installed yet.
#[derive(Debug)]
struct Selection {
    /// The kernel's package, such as `linux-image-6.1.0-18-amd64`.
    kernel: String,
    /// All files, with versions and checksums, for the root's name.
    files: String,
}

impl Selection {
    fn resolve() -> Result<Self> {
        let kernel = kernel_package(&output(Command::new("apt-cache").args(["depends", KERNEL]))?)?;
        let mut files = output(apt(&["install", "--print-uris"]).args(PACKAGES))?;
        files += &output(apt(&["download", "--print-uris"]).arg(&kernel))?;
        Ok(Self { kernel, files })
    }

    fn root(&self) -> Result<Root> {
        let mut hasher = DefaultHasher::new();
        // Sample: 'http://mirror/pool/main/d/dash/dash_0.5.12-2_amd64.deb' dash_0.5.12-2_amd64.deb 91848 SHA256:0a1b
        for line in self.files.lines() {
            line.split_once(' ').map(|(_, file)| file).hash(&mut hasher);
        }
        // This file is the recipe.
        include_str!("root.rs").hash(&mut hasher);
        Ok(Root(cache_dir()?.join(format!("vm-{:016x}", hasher.finish()))))
    }
}

/// The kernel's own package in what `apt-cache depends` says of the one without a version.
fn kernel_package(depends: &str) -> Result<String> {
    // Sample: "  Depends: linux-image-6.1.0-18-amd64"
    let mut packages = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    let found = packages.find(|package| package.starts_with("linux-image-"));
    found.map(str::to_owned).with_context(|| format!("apt knows no {KERNEL}; run: apt-get update"))
}

/// Busybox and the modules that find the root, in the order in which they are loaded.
fn initramfs(tree: &Path, version: &str) -> Result<Vec<u8>> {
    let modules = tree.join("lib/modules").join(version);
    let read = |path: PathBuf| fs::read(&path).with_context(|| format!("failed to read {}", path.display()));
    let text = |name: &str| read(modules.join(name)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let mut archive = Archive::default();
    archive.directory("bin");
    archive.executable("bin/busybox", &read(tree.join("bin/busybox"))?);
    archive.directory("modules");
    let dependencies = text("modules.dep")?;
    for (number, file) in closure(&dependencies, &text("modules.builtin")?, &BOOT_MODULES)?.iter().enumerate() {
        archive.executable(&format!("modules/{number:02}"), &read(modules.join(file))?);
    }
    Ok(archive.finish())
}

fn unpack(package: &Path, tree: &Path) -> Result<()> {
    // `dpkg-deb --extract` would put directories where the links are.
    let mut content = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdout(Stdio::piped())
        .spawn()
        .context("failed to run dpkg-deb")?;
    let Some(pipe) = content.stdout.take() else { bail!("dpkg-deb has no standard output") };
    check(Command::new("tar").args(["-x", "--keep-directory-symlink", "-C"]).arg(tree).stdin(pipe))?;
    ensure!(content.wait()?.success(), "dpkg-deb can't read {}", package.display());
    Ok(())
}

/// apt-get as if nothing were installed, so that it names everything.
fn apt(arguments: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    // Files below the cache of a root user are not for apt's own user.
    command.args(["-qq", "-o", "Dir::State::status=/dev/null", "-o", "APT::Sandbox::User=root"]);
    command.args(["-o", "APT::Install-Recommends=false"]).args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
    command.stdin(Stdio::null());
    command
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("failed to run {command:?}"))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed: {}", complaint.trim_end());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs `command` to its end, with its standard output on stderr.
pub(crate) fn check(command: &mut Command) -> Result<()> {
    let status = command.stdout(std::io::stderr()).status().with_context(|| format!("failed to run {command:?}"))?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}

fn remove(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("failed to remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn the_kernels_package_is_found() {
        let depends = "linux-image-amd64\n  Depends: linux-image-6.1.0-18-amd64\n  Suggests: x\n";
        assert_eq!(kernel_package(depends).unwrap(), "linux-image-6.1.0-18-amd64");
        assert!(kernel_package("").unwrap_err().to_string().contains("apt-get update"));
    }

    #[test]
    fn another_version_is_another_root_but_another_mirror_is_not() {
        let root = |mirror: &str, version: &str| {
            let files = format!("'http://{mirror}/dash_{version}.deb' dash_{version}.deb 91848 SHA256:0a1b\n");
            Selection { kernel: String::new(), files }.root().unwrap().0
        };
        assert_eq!(root("a", "1"), root("b", "1"));
        assert_ne!(root("a", "1"), root("a", "2"));
    }
}
