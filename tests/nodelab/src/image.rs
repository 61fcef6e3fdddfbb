//! The images of the lab, made on the spot from Debian's busybox: no registry is needed.

use std::{
    fs::{self, Permissions},
    io::Write,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::containerd::program;

/// What the samples' Pods run: busybox with all its applets.
pub(crate) const BUSYBOX_IMAGE: &str = "keelson.local/busybox:1";
/// What keeps a Pod's namespaces: a process that sleeps.
pub(crate) const PAUSE_IMAGE: &str = "keelson.local/pause:1";
/// All of them.
pub(crate) const IMAGES: [&str; 2] = [BUSYBOX_IMAGE, PAUSE_IMAGE];

/// Writes an OCI archive with [`IMAGES`] below `directory` and returns its path.
///
/// Both images are one layer: a root directory with busybox and a link per applet. The layout is that of the OCI image
/// specification, section "Image Layout": `oci-layout`, `index.json` and `blobs/sha256/<digest>`.
///
/// # Errors
///
/// When busybox isn't static or a file can't be written.
pub(crate) fn make_archive(directory: &Path) -> Result<PathBuf> {
    let archive = directory.join("images.tar");
    let root = directory.join("root");
    let layout = directory.join("oci");
    let blobs = layout.join("blobs/sha256");
    for path in [&root.join("bin"), &root.join("tmp"), &blobs] {
        fs::create_dir_all(path).with_context(|| format!("failed to create {}", path.display()))?;
    }
    make_root(&root)?;
    let layer = directory.join("layer.tar");
    pack(&root, &layer)?;
    let layer_digest = digest(&fs::read(&layer).with_context(|| format!("failed to read {}", layer.display()))?)?;
    let layer_size = fs::metadata(&layer)?.len();
    fs::rename(&layer, blobs.join(&layer_digest))?;

    let mut manifests = Vec::new();
    for (name, command) in [(BUSYBOX_IMAGE, "sh"), (PAUSE_IMAGE, "sleep infinity")] {
        let command: Vec<&str> = command.split(' ').collect();
        let configuration = add_blob(
            &blobs,
            "application/vnd.oci.image.config.v1+json",
            &json!({
                "architecture": architecture()?,
                "os": "linux",
                "config": {"Env": ["PATH=/bin"], "Cmd": command},
                "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer_digest}")]},
            }),
        )?;
        let mut manifest = add_blob(
            &blobs,
            "application/vnd.oci.image.manifest.v1+json",
            &json!({
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": configuration,
                "layers": [{
                    "mediaType": "application/vnd.oci.image.layer.v1.tar",
                    "digest": format!("sha256:{layer_digest}"),
                    "size": layer_size,
                }],
            }),
        )?;
        // containerd's importer takes the image's full name from its own annotation.
        manifest["annotations"] = json!({"io.containerd.image.name": name});
        manifests.push(manifest);
    }
    write(&layout.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    write(&layout.join("index.json"), json!({"schemaVersion": 2, "manifests": manifests}).to_string().as_bytes())?;
    pack(&layout, &archive)?;
    Ok(archive)
}

/// Fills `root` with busybox and its applets.
fn make_root(root: &Path) -> Result<()> {
    let busybox = program("busybox")?;
    let content = fs::read(&busybox).with_context(|| format!("failed to read {}", busybox.display()))?;
    ensure!(
        is_static(&content) == Some(true),
        "{} needs shared libraries, which a container with nothing else does not have; install Debian's package \
         busybox-static",
        busybox.display()
    );
    let inside = root.join("bin/busybox");
    write(&inside, &content)?;
    fs::set_permissions(&inside, Permissions::from_mode(0o755))
        .with_context(|| format!("failed to make {} executable", inside.display()))?;
    // The host's, not the copy: a process that another thread is about to start may hold the copy open for writing, and
    // the kernel executes no such file.
    let list = Command::new(&busybox).arg("--list").output().context("failed to run busybox")?;
    ensure!(list.status.success(), "busybox --list failed: {}", String::from_utf8_lossy(&list.stderr));
    for applet in String::from_utf8_lossy(&list.stdout).lines().filter(|applet| *applet != "busybox") {
        symlink("busybox", root.join("bin").join(applet)).with_context(|| format!("failed to link {applet}"))?;
    }
    Ok(())
}

/// Whether a program of the machine's own kind asks for no dynamic loader; `None` if it is no such program.
///
/// elf(5): a 64-bit ELF header has the program headers' offset at 32, their size and number at 54 and 56; a header of
/// type 3 (`PT_INTERP`) names the loader.
fn is_static(program: &[u8]) -> Option<bool> {
    const PT_INTERP: u32 = 3;
    if !program.starts_with(b"\x7fELF\x02") {
        return None;
    }
    let number =
        |offset: usize| Some(usize::from(u16::from_ne_bytes(program.get(offset..offset + 2)?.try_into().ok()?)));
    let first = usize::try_from(u64::from_ne_bytes(program.get(32..40)?.try_into().ok()?)).ok()?;
    let (size, count) = (number(54)?, number(56)?);
    for index in 0..count {
        let header = first.checked_add(index * size)?;
        let kind = u32::from_ne_bytes(program.get(header..header.checked_add(4)?)?.try_into().ok()?);
        if kind == PT_INTERP {
            return Some(false);
        }
    }
    Some(true)
}

fn add_blob(blobs: &Path, media_type: &str, content: &Value) -> Result<Value> {
    let content = content.to_string();
    let digest = digest(content.as_bytes())?;
    write(&blobs.join(&digest), content.as_bytes())?;
    Ok(json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": content.len()}))
}

fn pack(directory: &Path, archive: &Path) -> Result<()> {
    let output = Command::new("tar")
        .args(["--sort=name", "--numeric-owner", "--owner=0", "--group=0", "--mtime=@0", "--create", "--file"])
        .arg(archive)
        .arg("--directory")
        .arg(directory)
        .arg(".")
        .output()
        .context("failed to run tar")?;
    ensure!(output.status.success(), "tar failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// The SHA-256 of `content` in hexadecimal, as coreutils compute it.
pub(crate) fn digest(content: &[u8]) -> Result<String> {
    let mut child = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("failed to run sha256sum")?;
    // Closed at the end of the statement, which is sha256sum's end of file; it prints nothing before that.
    child.stdin.take().context("sha256sum has no standard input")?.write_all(content)?;
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let digest = text.split(' ').next().unwrap_or_default();
    ensure!(output.status.success() && digest.len() == 64, "sha256sum printed no digest: {text:?}");
    Ok(digest.to_owned())
}

/// The machine's architecture in the OCI's words, which are Go's.
fn architecture() -> Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => anyhow::bail!("nodelab makes images for x86_64 and aarch64 only, and this is {other}"),
    }
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    fs::write(path, content).with_context(|| format!("failed to write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_with_a_loader_is_not_static() {
        // The test itself is linked to the C library.
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(is_static(&own), Some(false));
        assert_eq!(is_static(b"#!/bin/sh\n"), None);
        assert_eq!(is_static(b"\x7fELF\x02"), None);
    }
}
