//! The calls of the CSI driver beside csi-driver-host-path and the floors that nobody can go below.
//!
//! Each filesystem that is measured lies on an image on the root disk, so that a flush is one: ours and theirs keep
//! everything they have on it. Samples are interleaved, and each starts with a filesystem that was synced: nobody pays
//! for what another has left to write.

mod blocks;
mod create;
mod cycle;
mod extents;
mod host_path;
mod io;
mod many;
mod place;
mod random;
mod server;
mod snapshot;
mod steps;
mod subject;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use keelson_testkit::{is_root, missing};

use self::{
    host_path::Commands,
    place::{Filesystem, Place},
    server::Server,
    subject::{Served, Subject},
};
use crate::{programs, report::Report};

/// A group of measurements that share what they are measured with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Group {
    /// CreateVolume, one at a time and 16 at once
    Create,
    /// Everything from CreateVolume to DeleteVolume
    Cycle,
    /// Snapshots and clones of a written volume, by its extents
    Snapshot,
    /// What changed between two snapshots
    Blocks,
    /// Reads and writes in a volume beside those in a file
    Io,
    /// 10,000 volumes in a pool
    Many,
    /// Where the time of CreateVolume and NodePublishVolume goes
    Steps,
}

/// What the rows of the report call the two.
const OURS: &str = "keelson";
const THEIRS: &str = "csi-driver-host-path";
const STAND_IN: &str = "host-path's commands alone";

/// Filesystems whose files can share blocks.
const FILESYSTEMS: [Filesystem; 2] = [Filesystem::Xfs, Filesystem::Btrfs];

/// The size of the volumes, as the limits have it.
const GIB: i64 = 1 << 30;

/// What is measured on one filesystem, which goes last.
struct Bench {
    ours: Subject,
    theirs: Subject,
    place: Place,
}

pub(crate) async fn measure(samples: usize, groups: &[Group], host_path: Option<&Path>) -> Result<Report> {
    let chosen = |group| groups.is_empty() || groups.contains(&group);
    ensure!(is_root(), "a CSI driver mounts filesystems: run it as root");
    let programs = ["mkfs.xfs", "mkfs.btrfs", "mkfs.ext4", "mount", "umount", "losetup", "fallocate", "cp", "dd"];
    let missing = missing(&[programs.as_slice(), &["fstrim", "filefrag", "strace"]].concat());
    ensure!(
        missing.is_empty(),
        "missing on PATH: {}: install xfsprogs, btrfs-progs, e2fsprogs, util-linux, coreutils and strace",
        missing.join(", ")
    );
    let keelson = programs::keelson_csi_alone()?;
    let mut report = Report::default();
    let each = [Group::Create, Group::Cycle, Group::Snapshot, Group::Blocks, Group::Io];
    for filesystem in FILESYSTEMS.into_iter().filter(|_| each.into_iter().any(chosen)) {
        let bench = Bench::new(filesystem, &keelson, host_path).await?;
        if chosen(Group::Create) {
            report.comparisons.extend(create::measure(&bench, samples).await?);
        }
        if chosen(Group::Cycle) {
            report.comparisons.push(cycle::measure(&bench, samples).await?);
        }
        if chosen(Group::Snapshot) {
            report.comparisons.extend(snapshot::measure(&bench, samples).await?);
        }
        if chosen(Group::Blocks) {
            report.comparisons.push(blocks::measure(&bench, samples).await?);
        }
        if chosen(Group::Io) {
            report.comparisons.extend(io::measure(&bench, samples).await?);
        }
    }
    if chosen(Group::Many) {
        report.comparisons.extend(many::measure(&keelson, samples).await?);
    }
    if chosen(Group::Steps) {
        for filesystem in FILESYSTEMS {
            report.breakdowns.extend(steps::measure(filesystem, &keelson, samples).await?);
        }
    }
    report.notes = notes(host_path);
    Ok(report)
}

fn notes(host_path: Option<&Path>) -> Vec<String> {
    let mut notes = vec![
        "each filesystem is on a loop device with direct I/O over a file on the disk below /var/tmp; state and sockets \
         of both drivers are on it too"
            .to_owned(),
        format!("the processor has {} cores", std::thread::available_parallelism().map_or(0, usize::from)),
    ];
    if host_path.is_none() {
        notes.push(format!(
            "{THEIRS} was not measured: name its program with --host-path. In its place \"{STAND_IN}\": what it runs and \
             writes for a block volume, one operation at a time as it does, without its server, which comes on top. It \
             makes nothing durable"
        ));
    }
    notes
}

impl Bench {
    async fn new(filesystem: Filesystem, keelson: &Path, host_path: Option<&Path>) -> Result<Self> {
        let place = Place::new(filesystem)?;
        eprintln!("starting the drivers on {}", filesystem.name());
        let ours = Subject::new(OURS, place.directory("ours")?, |root| async move {
            Ok(Served::Server(Arc::new(Server::keelson(keelson, &root).await?)))
        });
        let ours = ours.await?;
        let theirs = place.directory("theirs")?;
        let theirs = match host_path {
            Some(program) => {
                let start = |root: PathBuf| async move {
                    Ok(Served::Server(Arc::new(Server::host_path(program, &root).await?)))
                };
                Subject::new(THEIRS, theirs, start).await?
            }
            None => {
                let start = |root: PathBuf| async move { Ok(Served::Commands(Arc::new(Commands::new(root)))) };
                Subject::new(STAND_IN, theirs, start).await?
            }
        };
        Ok(Self { ours, theirs, place })
    }

    /// What a group of comparisons is headed with.
    fn heading(&self, what: &str) -> String {
        format!("{what}, {}", self.place.filesystem.name())
    }
}

/// Runs a program that must succeed.
fn run(program: &str, arguments: &[&std::ffi::OsStr]) -> Result<String> {
    let output = std::process::Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("failed to run {program}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {arguments:?} failed: {}", said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
