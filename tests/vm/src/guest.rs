//! What runs in the guest: the scripts of its start, and the command lines that the host sends.

use std::path::Path;

use keelson_testkit::{SCENARIO_LOG, SKIP_LOG, VM_DISK, VM_HEARD};

use crate::{cpio::Archive, programs::Program, shape::Shape, shape::Tests};

/// Where the guest's tests write what they skip.
pub(crate) const SKIPS: &str = "/run/keelson-skips";

/// Where they write which of the reference's scenarios they have played.
pub(crate) const SCENARIOS: &str = "/run/keelson-scenarios";

/// What the host heard before it cut the power.
const HEARD: &str = "/run/keelson-heard";

/// The part of the initramfs that isn't Debian's.
pub(crate) fn scripts() -> Vec<u8> {
    let mut archive = Archive::default();
    archive.executable("init", include_bytes!("guest/init.sh"));
    archive.executable("agent", include_bytes!("guest/agent.sh"));
    archive.finish()
}

/// The command that gives a guest what its shape promises and the host's directories.
pub(crate) fn setup(shape: &Shape, shares: &[std::path::PathBuf]) -> String {
    // The programs don't change while a guest runs, so that it may keep what it has read.
    const OPTIONS: &str = "ro,trans=virtio,version=9p2000.L,cache=loose,msize=262144";
    let mut commands = vec!["set -e".to_owned()];
    if !shape.modules.is_empty() {
        commands.push(format!("modprobe -a {}", shape.modules.join(" ")));
    }
    for (number, disk) in shape.disks.iter().enumerate() {
        commands.push(format!(
            "mkdir -p {0} && mount -t {2} {1} {0}",
            disk.mount,
            disk_device(number),
            disk.filesystem
        ));
    }
    for (number, directory) in shares.iter().enumerate() {
        let directory = quote(directory);
        commands.push(format!("mkdir -p {directory} && mount -t 9p -o {OPTIONS} share{number} {directory}"));
    }
    commands.join("; ")
}

/// The command that writes down what was heard.
pub(crate) fn tell(heard: &[String]) -> String {
    let lines: Vec<_> = heard.iter().map(|line| quote(Path::new(line))).collect();
    format!("printf '%s\\n' {} > {HEARD}", lines.join(" "))
}

/// The first disk is the root's.
fn disk_device(number: usize) -> String {
    // A shape has a handful of disks.
    format!("/dev/vd{}", char::from(b'b' + u8::try_from(number).unwrap_or(u8::MAX - b'b')))
}

/// The command that runs `tests` of a program where cargo would run it, in cargo's surroundings.
pub(crate) fn script(shape: &Shape, program: &Program, tests: &Tests) -> String {
    let mut script =
        format!("cd {} && {SKIP_LOG}={SKIPS} {SCENARIO_LOG}={SCENARIOS} {VM_HEARD}={HEARD}", quote(&program.directory));
    if let Some(disk) = shape.disks.first() {
        script += &format!(" {VM_DISK}={}", disk.mount);
    }
    if let Ok(cache) = keelson_testkit::cache_dir() {
        script += &format!(" KEELSON_CACHE={}", quote(&cache));
    }
    script += &format!(" {}", quote(&program.executable));
    if let Some(test) = tests.only {
        script += &format!(" --exact {test}");
    }
    for (pattern, _) in tests.without {
        script += &format!(" --skip {pattern}");
    }
    script
}

/// One word for the guest's shell.
fn quote(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_stays_one_word() {
        assert_eq!(quote(Path::new("/a b/it's")), r"'/a b/it'\''s'");
    }

    #[test]
    fn disks_follow_the_roots() {
        assert_eq!((disk_device(0), disk_device(2)), ("/dev/vdb".to_owned(), "/dev/vdd".to_owned()));
    }
}
