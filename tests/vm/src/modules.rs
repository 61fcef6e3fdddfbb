//! Which kernel modules some need, and in which order they are loaded.

use anyhow::{Context, Result};

/// The files of `wanted` and of all that they need, each after what it needs.
///
/// `modules_dep` is the content of `modules.dep`; modules that are built into the kernel stand in `modules_builtin`
/// instead and have no file.
///
/// # Errors
///
/// When a module is in neither.
pub(crate) fn closure<'a>(modules_dep: &'a str, modules_builtin: &str, wanted: &[&str]) -> Result<Vec<&'a str>> {
    let mut files: Vec<&str> = Vec::new();
    for module in wanted {
        let mut lines = modules_dep.lines().filter_map(|line| line.split_once(':'));
        let Some((file, needed)) = lines.find(|(file, _)| name(file) == *module) else {
            let built_in = modules_builtin.lines().any(|file| name(file) == *module);
            built_in.then_some(()).with_context(|| format!("the kernel has no module {module}"))?;
            continue;
        };
        // modules.dep(5) lists all that is needed, not only what is needed directly; in the order of unloading.
        // Sample: "kernel/fs/ext4/ext4.ko: kernel/lib/crc16.ko kernel/fs/mbcache.ko kernel/fs/jbd2/jbd2.ko"
        for file in needed.split_whitespace().rev().chain([file]) {
            if !files.contains(&file) {
                files.push(file);
            }
        }
    }
    Ok(files)
}

/// `kernel/drivers/virtio/virtio_pci.ko` is `virtio_pci`.
fn name(file: &str) -> &str {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.split('.').next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    const DEP: &str = "kernel/virtio/virtio.ko: kernel/virtio/virtio_ring.ko
kernel/virtio/virtio_ring.ko:
kernel/block/virtio_blk.ko.xz: kernel/virtio/virtio.ko kernel/virtio/virtio_ring.ko
kernel/fs/ext4/ext4.ko: kernel/fs/jbd2/jbd2.ko
kernel/fs/jbd2/jbd2.ko:
";

    #[test]
    fn each_module_comes_once_and_after_what_it_needs() {
        assert_eq!(
            closure(DEP, "", &["virtio_blk", "ext4", "virtio"]).unwrap(),
            [
                "kernel/virtio/virtio_ring.ko",
                "kernel/virtio/virtio.ko",
                "kernel/block/virtio_blk.ko.xz",
                "kernel/fs/jbd2/jbd2.ko",
                "kernel/fs/ext4/ext4.ko"
            ]
        );
    }

    #[test]
    fn a_module_that_is_built_in_has_no_file_and_an_unknown_one_is_named() {
        assert_eq!(closure(DEP, "kernel/fs/nls/nls.ko\n", &["nls"]).unwrap(), Vec::<&str>::new());
        let error = closure(DEP, "", &["ext5"]).unwrap_err();
        assert_eq!(error.to_string(), "the kernel has no module ext5");
    }
}
