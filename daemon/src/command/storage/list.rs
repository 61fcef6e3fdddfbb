//! `keelson storage ls`.

use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, ValueEnum};
use keelson_csi::operator::{
    GroupReport, Provision, SnapshotReport, UseKind, UseReport, VolumeReport, damaged, groups, snapshots, volumes,
};

use super::{NodeArguments, or_dash, plain, size, size_or_dash, tell_damaged, tell_unread};
use crate::{
    command::output::{age, print, print_json, table},
    error::Failure,
};

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Kind {
    /// What Pods use
    #[default]
    Volumes,
    /// What was kept of volumes, in groups or not
    Snapshots,
    /// Snapshots of several volumes at one instant
    Groups,
}

#[derive(Debug, Args)]
pub(in crate::command) struct ListArguments {
    /// What to list
    #[arg(value_enum, default_value_t)]
    kind: Kind,
    #[command(flatten)]
    node: NodeArguments,
}

pub(super) fn run(arguments: &ListArguments) -> Result<(), Failure> {
    let settings = arguments.node.settings()?;
    let json = arguments.node.is_json();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let prefix = match arguments.kind {
        Kind::Volumes => "v1-",
        Kind::Snapshots => "s1-",
        Kind::Groups => "g1-",
    };
    tell_damaged(damaged(&settings).iter().filter(|one| one.id.starts_with(prefix)));
    match arguments.kind {
        Kind::Volumes => {
            let (found, unread) = volumes(&settings)?;
            tell_unread(&unread);
            if json { print_json(&found) } else { print(&volumes_text(&found)) }
        }
        Kind::Snapshots => {
            let (found, unread) = snapshots(&settings)?;
            tell_unread(&unread);
            if json { print_json(&found) } else { print(&snapshots_text(&found, now)) }
        }
        Kind::Groups => {
            let (found, unread) = groups(&settings);
            tell_unread(&unread);
            if json { print_json(&found) } else { print(&groups_text(&found, now)) }
        }
    }
}

fn volumes_text(found: &[VolumeReport]) -> String {
    let header = ["ID", "NAME", "POOL", "SIZE", "PROVISIONING", "CONTENT", "FREES", "SHARED", "SOURCE", "IN USE"];
    let mut rows = vec![header.map(str::to_owned)];
    rows.extend(found.iter().map(|volume| {
        [
            plain(&volume.id),
            plain(&volume.name),
            plain(&volume.pool),
            size(volume.bytes),
            provisioning(volume.provisioning).to_owned(),
            volume.content.to_owned(),
            size_or_dash(volume.exclusive_bytes),
            size_or_dash(volume.shared_bytes),
            or_dash(volume.source.as_deref()),
            in_use(volume),
        ]
    }));
    table(&rows)
}

pub(super) fn provisioning(provisioning: Provision) -> &'static str {
    match provisioning {
        Provision::Thin => "thin",
        Provision::Thick => "thick",
    }
}

/// For what it is in use, and for how many Pods.
fn in_use(volume: &VolumeReport) -> String {
    let count = |what: UseKind| volume.uses.iter().filter(|one| one.what == what).count();
    let mut parts = Vec::new();
    if count(UseKind::Staged) > 0 {
        parts.push("staged".to_owned());
    }
    for (what, name) in [(UseKind::Published, "published"), (UseKind::Mounted, "mounted")] {
        match count(what) {
            0 => {}
            1 => parts.push(name.to_owned()),
            more => parts.push(format!("{name} {more}x")),
        }
    }
    if parts.is_empty() && !volume.devices.is_empty() {
        parts.push(volume.devices.join(","));
    }
    or_dash(Some(&parts.join(", ")))
}

fn snapshots_text(found: &[SnapshotReport], now: u64) -> String {
    let header = ["ID", "NAME", "POOL", "VOLUME", "SIZE", "CONTENT", "FREES", "SHARED", "AGE", "GROUP"];
    let mut rows = vec![header.map(str::to_owned)];
    rows.extend(found.iter().map(|snapshot| {
        [
            plain(&snapshot.id),
            or_dash(Some(&snapshot.name)),
            plain(&snapshot.pool),
            plain(&snapshot.volume),
            size(snapshot.bytes),
            snapshot.content.to_owned(),
            size_or_dash(snapshot.exclusive_bytes),
            size_or_dash(snapshot.shared_bytes),
            age(now, snapshot.created_at_seconds),
            or_dash(snapshot.group.as_deref()),
        ]
    }));
    table(&rows)
}

fn groups_text(found: &[GroupReport], now: u64) -> String {
    let header = ["ID", "NAME", "POOL", "SNAPSHOTS", "PAUSE", "AGE"];
    let mut rows = vec![header.map(str::to_owned)];
    rows.extend(found.iter().map(|group| {
        [
            plain(&group.id),
            plain(&group.name),
            plain(&group.pool),
            group.snapshots.len().to_string(),
            format!("{}µs", group.pause_microseconds),
            age(now, group.created_at_seconds),
        ]
    }));
    table(&rows)
}

/// What a mount is for, where it is, and the Pod that it is for.
pub(super) fn use_text(one: &UseReport) -> String {
    let what = match one.what {
        UseKind::Staged => "staged",
        UseKind::Published => "published",
        UseKind::Mounted => "mounted",
    };
    let read_only = if one.read_only { ", read-only" } else { "" };
    let pod = one.pod_uid.as_ref().map(|uid| format!(" for Pod {uid}")).unwrap_or_default();
    plain(&format!("{what}{read_only} at {}{pod}", one.path))
}
