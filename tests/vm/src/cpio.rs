//! The kernel's initramfs: a cpio archive in the format "newc".

/// An archive under construction. <https://docs.kernel.org/driver-api/early-userspace/buffer-format.html>
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    pub(crate) fn directory(&mut self, name: &str) {
        self.entry(name, 0o040_755, &[]);
    }

    pub(crate) fn executable(&mut self, name: &str, content: &[u8]) {
        self.entry(name, 0o100_755, content);
    }

    /// Ends the archive. Several may follow each other in one initramfs.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        // Files are some MiB, names some bytes: both fit the format's 32 bits.
        let (size, name_size) = (content.len() as u64, name.len() as u64 + 1);
        // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
        let fields = [u64::from(self.entries), u64::from(mode), 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::{
        fs,
        io::Write,
        os::unix::fs::PermissionsExt,
        process::{Command, Stdio},
    };

    use keelson_testkit::{missing, skip_unless};

    use super::*;

    fn sample() -> Vec<u8> {
        let mut archive = Archive::default();
        archive.directory("bin");
        archive.executable("bin/odd", b"12345");
        archive.finish()
    }

    #[test]
    fn headers_names_and_content_are_aligned() {
        let bytes = sample();
        let number = |value: u32| format!("{value:08x}");
        let fields = [2, 0o100_755, 0, 0, 1, 0, 5, 0, 0, 0, 0, 8, 0].map(number).concat();
        let header = format!("070701{fields}bin/odd");
        let text = String::from_utf8(bytes.clone()).unwrap().replace('\0', ".");
        assert!(text.contains(&header), "{text:?}");
        // 110 bytes of header, 8 of name and 2 of padding; 5 of content and 3 of padding.
        assert!(text.contains("bin/odd...12345...070701"), "{text:?}");
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn cpio_unpacks_it() {
        skip_unless!(missing(&["busybox"]).is_empty(), "needs busybox");
        let directory = tempfile::tempdir().unwrap();
        let mut cpio = Command::new("busybox")
            .args(["cpio", "-i"])
            .current_dir(&directory)
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        cpio.stdin.take().unwrap().write_all(&sample()).unwrap();
        assert!(cpio.wait().unwrap().success());
        let file = directory.path().join("bin/odd");
        assert_eq!(fs::read(&file).unwrap(), b"12345");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o755);
    }
}
