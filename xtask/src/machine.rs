//! What this machine must have, and how it gets there.

use std::{
    path::Path,
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use keelson_testkit::{Tool, cache_dir, go_version, is_root, missing};
use nix::sys::utsname::uname;

use crate::run::check;

/// A program from Debian's packages and what it is for.
pub(crate) struct Package {
    name: &'static str,
    program: &'static str,
    purpose: &'static str,
}

/// What every tier but the unit tier needs.
pub(crate) const PACKAGES: [Package; 11] = [
    Package { name: "runc", program: "runc", purpose: "the OCI runtime below containerd" },
    Package { name: "e2fsprogs", program: "mkfs.ext4", purpose: "formats volumes" },
    Package { name: "btrfs-progs", program: "mkfs.btrfs", purpose: "formats volumes and pools of subvolumes" },
    Package { name: "xfsprogs", program: "mkfs.xfs", purpose: "formats volumes and pools" },
    Package { name: "busybox-static", program: "busybox", purpose: "the content of the test images" },
    Package { name: "nftables", program: "nft", purpose: "shows what was made in the kernel" },
    Package { name: "iproute2", program: "ip", purpose: "shows links and addresses" },
    Package { name: "iputils-ping", program: "ping", purpose: "sends traffic between test namespaces" },
    Package { name: "mount", program: "losetup", purpose: "takes away what a killed run left" },
    Package { name: "util-linux", program: "findmnt", purpose: "shows mounts" },
    Package { name: "strace", program: "strace", purpose: "kills processes at a chosen system call" },
];

/// What the VM tier needs beside those; its guests' root has packages of its own.
pub(crate) const VM_PACKAGES: [Package; 1] =
    [Package { name: "qemu-system-x86", program: "qemu-system-x86_64", purpose: "the machine that the VM tier boots" }];

/// The oldest kernel with all that the plugins use: openat2 (5.6), LOOP_CONFIGURE (5.8), mount_setattr (5.12); 5.15
/// is the first long-term release after those.
const OLDEST_KERNEL: (u32, u32) = (5, 15);

/// Checks that this process may change the kernel's state and that the kernel is young enough.
///
/// # Errors
///
/// One line that names what is missing and the remedy.
pub(crate) fn check_privileges() -> Result<()> {
    ensure!(
        is_root(),
        "this changes links, mounts and cgroups and needs root; run it as root, or in a virtual machine"
    );
    let name = uname().context("failed to ask the kernel for its version")?;
    let release = name.release().to_string_lossy().into_owned();
    // Sample: "6.1.0-18-amd64"
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    ensure!(
        version >= OLDEST_KERNEL,
        "kernel {release} is too old; boot {}.{} or later (Debian 12 has 6.1)",
        OLDEST_KERNEL.0,
        OLDEST_KERNEL.1
    );
    Ok(())
}

/// Installs what is missing of `packages`, after saying so; with `refuse`, only says so.
///
/// # Errors
///
/// When something is missing and may not or can't be installed.
pub(crate) fn provide_packages(packages: &[Package], refuse: bool) -> Result<()> {
    let programs: Vec<&str> = packages.iter().map(|package| package.program).collect();
    let absent = missing(&programs);
    let wanted: Vec<&Package> = packages.iter().filter(|package| absent.contains(&package.program)).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = wanted.iter().map(|package| package.name).collect();
    ensure!(!refuse, "missing: {}; install them with: apt-get install {}", absent.join(", "), names.join(" "));
    ensure!(
        Path::new("/usr/bin/apt-get").exists(),
        "missing: {}; this machine has no apt-get: install them with its own package manager",
        absent.join(", ")
    );
    eprintln!("Installing from Debian's packages:");
    for package in &wanted {
        eprintln!("  {:<16} {}", package.name, package.purpose);
    }
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(["-qq", "-o", "Dpkg::Use-Pty=0"]).args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
        // Standard output belongs to the command's own result (`-o json`).
        command.stdout(Stdio::from(std::io::stderr())).stdin(Stdio::null());
        check(&mut command)
    };
    apt(&["update"])?;
    apt(&[&["install", "--yes", "--no-install-recommends"], names.as_slice()].concat())?;
    let still = missing(&absent);
    ensure!(still.is_empty(), "still missing after the installation: {}", still.join(", "));
    Ok(())
}

/// Builds those of `tools` that the cache lacks, after saying so; with `refuse`, only says so.
///
/// # Errors
///
/// When one is missing and may not or can't be built.
pub(crate) fn provide_tools(tools: &[Tool], refuse: bool) -> Result<()> {
    for tool in tools {
        if tool.is_built()? {
            continue;
        }
        let pin = format!("tests/tools/{}/go.mod", tool.name());
        ensure!(!refuse, "{} is not built yet; run: cargo xtask tools", tool.name());
        check_go()?;
        eprintln!("Building {} from {pin} into {} (once; minutes)", tool.name(), cache_dir()?.display());
        let start = Instant::now();
        tool.ensure()?;
        eprintln!("  done in {} s", start.elapsed().as_secs());
    }
    Ok(())
}

/// Builds `tools`, for `cargo xtask tools`.
///
/// # Errors
///
/// As [`provide_tools`].
pub(crate) fn build_tools(tools: &[Tool]) -> Result<ExitCode> {
    provide_tools(tools, false)?;
    for tool in tools {
        println!("{:<12} {}", tool.name(), tool.ensure()?.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Checks that there is a Go toolchain, and one that is young enough.
///
/// # Errors
///
/// One line with the remedy.
pub(crate) fn check_go() -> Result<()> {
    const OLDEST: (u32, u32) = (1, 26);
    let version = go_version()?;
    // Sample: "go1.26.8"
    let mut numbers = version.trim_start_matches("go").split('.').map(|number| number.parse().unwrap_or(0));
    if (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) < OLDEST {
        bail!("{version} is too old; install Go {}.{} or later", OLDEST.0, OLDEST.1);
    }
    Ok(())
}
