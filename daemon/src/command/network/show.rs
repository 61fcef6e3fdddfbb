//! `keelson network show`.

use std::{
    fmt::Write,
    time::{SystemTime, UNIX_EPOCH},
};

use clap::Args;
use keelson_cni::operator::{InterfaceReport, RouteReport, ShownAttachment, show};

use super::{
    PlaceArguments, finding_text,
    list::{pod_name, state_name},
    or_dash, plain,
};
use crate::{
    command::{
        Format,
        output::{age, print, print_json, table},
    },
    error::Failure,
};

#[derive(Debug, Args)]
pub(in crate::command) struct ShowArguments {
    /// A Pod (name or namespace/name), the beginning of a container's id, an address or a link of the host
    #[arg(value_name = "POD|CONTAINER|ADDRESS|LINK")]
    selector: String,
    #[command(flatten)]
    places: PlaceArguments,
}

pub(super) fn run(arguments: &ShowArguments) -> Result<(), Failure> {
    let settings = arguments.places.settings()?;
    let shown = show(&arguments.places.places(settings.as_ref()), &arguments.selector)?;
    if arguments.places.output == Format::Json {
        return print_json(&shown);
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let texts: Vec<String> = shown.iter().map(|shown| text(shown, now)).collect();
    print(&texts.join("\n"))
}

fn text(shown: &ShownAttachment, now: u64) -> String {
    let attachment = &shown.attachment;
    let addresses: Vec<String> = attachment
        .addresses
        .iter()
        .map(|address| {
            let gateway = address.gateway.map(|gateway| format!(" (gateway {gateway})")).unwrap_or_default();
            format!("{}{gateway}", address.address)
        })
        .collect();
    let mut rows = vec![
        ["Pod", &pod_name(attachment)].map(str::to_owned),
        ["Pod UID", &or_dash(&attachment.pod.uid)].map(str::to_owned),
        ["Container", &or_dash(&attachment.container_id)].map(str::to_owned),
        ["Interface", &or_dash(&attachment.ifname)].map(str::to_owned),
        ["Network", &format!("{} ({})", plain(&attachment.network), attachment.data_dir.display())].map(str::to_owned),
        ["Kind", &or_dash(&attachment.kind)].map(str::to_owned),
        ["State", state_name(attachment.state)].map(str::to_owned),
        ["Age", &age(now, attachment.created_at_seconds)].map(str::to_owned),
        ["Namespace", &or_dash(&attachment.netns)].map(str::to_owned),
        ["Bridge", &or_dash(&attachment.bridge)].map(str::to_owned),
        ["Addresses", &or_dash(&addresses.join(", "))].map(str::to_owned),
        ["Routes", &or_dash(&routes(&attachment.routes))].map(str::to_owned),
        ["Host ports", &or_dash(&attachment.ports.join(", "))].map(str::to_owned),
        ["Masquerade", if attachment.masquerade { "yes" } else { "no" }].map(str::to_owned),
        ["On the host", &interface(shown.host_interface.as_ref(), "no link")].map(str::to_owned),
        [
            "In the container",
            &interface(
                shown.container_interface.as_ref(),
                shown.namespace_problem.as_deref().unwrap_or("no interface"),
            ),
        ]
        .map(str::to_owned),
    ];
    if let Some(reason) = &attachment.unreadable {
        rows.push(["Unreadable".to_owned(), plain(reason)]);
    }
    let mut text = table(&rows);
    for finding in &shown.findings {
        text.push_str(&finding_text(finding));
    }
    if !shown.calls.is_empty() {
        text.push_str("Last calls\n");
    }
    for call in &shown.calls {
        let ended = match call.code {
            0 => "ok".to_owned(),
            code => format!("code {code}: {}", plain(&call.message)),
        };
        let phases: Vec<String> =
            call.phases.iter().map(|phase| format!("{} {} µs", plain(&phase.name), phase.duration_us)).collect();
        let (ago, verb) = (age(now, call.time_ms / 1000), plain(&call.verb));
        // Writing to a String doesn't fail.
        let _ = writeln!(text, "  {ago} ago  {verb}  {} µs  {ended}  [{}]", call.duration_us, phases.join(", "));
        for note in &call.notes {
            let _ = writeln!(text, "    {}", plain(note));
        }
    }
    text
}

fn interface(found: Option<&InterfaceReport>, absent: &str) -> String {
    let Some(found) = found else { return plain(absent) };
    let state = match (found.up, found.running) {
        (true, true) => "up",
        (true, false) => "up, no carrier",
        (false, _) => "down",
    };
    let bridge = found.bridge.as_ref().map(|bridge| format!(", port of {bridge}")).unwrap_or_default();
    let addresses: Vec<String> = found.addresses.iter().map(ToString::to_string).collect();
    let mut text = format!("{} (index {}, {}, mtu {}, {state}{bridge})", found.name, found.index, found.mac, found.mtu);
    if !addresses.is_empty() {
        let _ = write!(text, " {}", addresses.join(", "));
    }
    if !found.routes.is_empty() {
        let _ = write!(text, "; routes: {}", routes(&found.routes));
    }
    plain(&text)
}

fn routes(routes: &[RouteReport]) -> String {
    let route = |route: &RouteReport| match route.gw {
        Some(gateway) => format!("{} via {gateway}", route.dst),
        None => route.dst.to_string(),
    };
    routes.iter().map(route).collect::<Vec<_>>().join(", ")
}
