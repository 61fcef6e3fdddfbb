//! `keelson network ls`.

use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use keelson_cni::operator::{AttachmentReport, AttachmentState, list};

use super::{PlaceArguments, or_dash};
use crate::{
    command::{
        Format,
        output::{age, print, print_json, table},
    },
    error::Failure,
};

/// As much of a container's id as runtimes' tools show.
const SHORT_ID: usize = 12;

#[derive(Debug, Args)]
pub(in crate::command) struct ListArguments {
    #[command(flatten)]
    places: PlaceArguments,
    /// More columns
    #[arg(long)]
    wide: bool,
}

pub(super) fn run(arguments: &ListArguments) -> Result<(), Failure> {
    let settings = arguments.places.settings()?;
    let attachments = list(&arguments.places.places(settings.as_ref()))?;
    if arguments.places.output == Format::Json {
        return print_json(&attachments);
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let rows = attachments.iter().map(|attachment| columns(attachment, now));
    if arguments.wide {
        let mut wide = vec![
            [
                "POD",
                "CONTAINER",
                "IFNAME",
                "NETWORK",
                "KIND",
                "ADDRESSES",
                "HOST-IF",
                "PORTS",
                "STATE",
                "AGE",
                "BRIDGE",
                "MTU",
                "MAC",
                "NETNS",
                "DATA-DIR",
            ]
            .map(str::to_owned),
        ];
        wide.extend(rows.zip(&attachments).map(|(narrow, attachment)| {
            let [pod, _, ifname, network, kind, addresses, host, ports, state, age] = narrow;
            let id = or_dash(&attachment.container_id);
            let mtu = attachment.mtu.map_or_else(|| "-".to_owned(), |mtu| mtu.to_string());
            let [bridge, mac, netns] =
                [&attachment.bridge, &attachment.container_mac, &attachment.netns].map(|text| or_dash(text));
            let directory = attachment.data_dir.display().to_string();
            [pod, id, ifname, network, kind, addresses, host, ports, state, age, bridge, mtu, mac, netns, directory]
        }));
        return print(&table(&wide));
    }
    let mut narrow = vec![
        ["POD", "CONTAINER", "IFNAME", "NETWORK", "KIND", "ADDRESSES", "HOST-IF", "PORTS", "STATE", "AGE"]
            .map(str::to_owned),
    ];
    narrow.extend(rows);
    print(&table(&narrow))
}

fn columns(attachment: &AttachmentReport, now: u64) -> [String; 10] {
    let addresses: Vec<String> =
        attachment.addresses.iter().map(|address| address.address.addr().to_string()).collect();
    [
        pod_name(attachment),
        or_dash(&attachment.container_id.chars().take(SHORT_ID).collect::<String>()),
        or_dash(&attachment.ifname),
        or_dash(&attachment.network),
        or_dash(&attachment.kind),
        or_dash(&addresses.join(",")),
        or_dash(&attachment.host_interface),
        or_dash(&attachment.ports.join(",")),
        state_name(attachment.state).to_owned(),
        if attachment.created_at_seconds == 0 { "-".to_owned() } else { age(now, attachment.created_at_seconds) },
    ]
}

/// `namespace/name`, or a dash where the runtime didn't tell.
pub(super) fn pod_name(attachment: &AttachmentReport) -> String {
    let pod = &attachment.pod;
    if pod.name.is_empty() { "-".to_owned() } else { or_dash(&format!("{}/{}", pod.namespace, pod.name)) }
}

pub(super) fn state_name(state: AttachmentState) -> &'static str {
    match state {
        AttachmentState::Active => "active",
        AttachmentState::Pending => "pending",
        AttachmentState::Stale => "stale",
        AttachmentState::Unreadable => "unreadable",
    }
}
