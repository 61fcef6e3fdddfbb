//! `keelson storage show`.

use clap::Args;
use keelson_csi::operator::{DeviceReport, ImageReport, Relation, Shown, ShownKind, show};

use super::{
    NodeArguments, finding_text,
    list::{provisioning, use_text},
    operations, or_dash, plain, size, size_or_dash,
};
use crate::{
    command::output::{print, print_json, table},
    error::Failure,
};

#[derive(Debug, Args)]
pub(in crate::command) struct ShowArguments {
    /// The id or the name of a volume, snapshot or group; a claim's volume is called pvc-UID
    #[arg(value_name = "ID|NAME")]
    selector: String,
    #[command(flatten)]
    node: NodeArguments,
}

pub(super) fn run(arguments: &ShowArguments) -> Result<(), Failure> {
    let (config, settings) = arguments.node.load()?;
    let shown = show(&settings, &arguments.selector, &operations::ask(&config))?;
    if arguments.node.is_json() {
        return print_json(&shown);
    }
    let texts: Vec<String> = shown.iter().map(text).collect();
    print(&texts.join("\n"))
}

fn text(shown: &Shown) -> String {
    let mut rows = match &shown.kind {
        ShownKind::Volume(volume) => vec![
            row("Volume", &volume.id),
            row("Name", &volume.name),
            row("Pool", &volume.pool),
            row("Size", &format!("{} ({} bytes)", size(volume.bytes), volume.bytes)),
            row("Provisioning", provisioning(volume.provisioning)),
            row("Content", volume.content),
            row("Deleting frees", &size_or_dash(volume.exclusive_bytes)),
            row("Shared", &size_or_dash(volume.shared_bytes)),
            row("Source", &or_dash(volume.source.as_deref())),
        ],
        ShownKind::Snapshot(snapshot) => vec![
            row("Snapshot", &snapshot.id),
            row("Name", &or_dash(Some(&snapshot.name))),
            row("Pool", &snapshot.pool),
            row("Volume", &snapshot.volume),
            row("Group", &or_dash(snapshot.group.as_deref())),
            row("Size", &format!("{} ({} bytes)", size(snapshot.bytes), snapshot.bytes)),
            row("Content", snapshot.content),
            row("Deleting frees", &size_or_dash(snapshot.exclusive_bytes)),
            row("Shared", &size_or_dash(snapshot.shared_bytes)),
        ],
        ShownKind::Damaged(damaged) => vec![
            row("Damaged", &damaged.id),
            row("Pool", &damaged.pool),
            row("Record", &format!("can't be read: {}", damaged.reason)),
        ],
        ShownKind::Group(group) => vec![
            row("Group", &group.id),
            row("Name", &group.name),
            row("Pool", &group.pool),
            row("Snapshots", &group.snapshots.join(", ")),
            row("Paused for", &format!("{} µs", group.pause_microseconds)),
        ],
    };
    rows.push(row("Folder", &shown.folder));
    if let Some(image) = &shown.image {
        rows.push(row("Image", &image_text(image)));
    }
    if let Some(problem) = &shown.image_problem {
        rows.push(row("Image", &format!("can't be read: {problem}")));
    }
    rows.extend(shown.devices.iter().map(|device| row("Loop device", &device_text(device))));
    rows.extend(shown.uses.iter().map(|one| row("Mount", &use_text(one))));
    let is_volume = match &shown.kind {
        ShownKind::Volume(_) => true,
        ShownKind::Damaged(damaged) => damaged.id.starts_with("v1-"),
        ShownKind::Snapshot(_) | ShownKind::Group(_) => false,
    };
    if is_volume {
        rows.push(row("Asked to stage", &or_dash(shown.recorded_staged.as_deref())));
        rows.push(row("Asked to publish", &or_dash(Some(&shown.recorded_published.join(", ")))));
    }
    rows.extend(shown.relatives.iter().map(|relative| {
        let relation = match relative.relation {
            Relation::Source => "source",
            Relation::Copy => "copy",
            Relation::Family => "same family",
        };
        let name = relative.name.as_deref().map_or("is gone", |name| if name.is_empty() { "unnamed" } else { name });
        row("Relative", &format!("{relation}: {} ({name})", relative.id))
    }));
    match (&shown.operations, &shown.operations_problem) {
        (Some(operations), _) if operations.is_empty() => rows.push(row("Operations", "none")),
        (Some(operations), _) => rows.extend(operations.iter().map(|operation| {
            let waits = if operation.awaited { "" } else { ", nobody waits for it" };
            row("Operation", &format!("{} for {} s{waits}", operation.operation, operation.seconds))
        })),
        (None, problem) => rows.push(row("Operations", &or_dash(problem.as_deref()))),
    }
    let mut text = table(&rows);
    text.extend(shown.findings.iter().map(finding_text));
    text
}

fn row(name: &str, value: &str) -> [String; 2] {
    [name.to_owned(), plain(value)]
}

fn image_text(image: &ImageReport) -> String {
    let extents = image.extents.map(|count| format!(" in {count} extents")).unwrap_or_default();
    let shows = match (&image.shows, &image.filesystem_uuid, image.filesystem_bytes) {
        (Some(name), Some(uuid), Some(bytes)) => format!("{name} {uuid} of {}", size(bytes)),
        (Some(name), ..) => name.clone(),
        (None, ..) => "nothing known".to_owned(),
    };
    format!("{}, {} allocated{extents}, shows {shows}", size(image.bytes), size(image.allocated_bytes))
}

fn device_text(device: &DeviceReport) -> String {
    let mut parts = vec![device.node.clone(), size(device.bytes)];
    parts.push(if device.direct_io { "direct I/O" } else { "through the page cache" }.to_owned());
    parts.push(format!("reads {} KiB ahead", device.read_ahead_kib));
    parts.push(if device.discards { "gives discards back" } else { "refuses discards" }.to_owned());
    if device.read_only {
        parts.push("read-only".to_owned());
    }
    if device.letting_go {
        parts.push("goes at the last close".to_owned());
    }
    parts.join(", ")
}
