//! Network links.

use std::fmt;

use serde::Serialize;

use crate::{
    HostRoot, InspectError,
    device::uevent_value,
    tree::{Tree, decimal, unless_gone},
};

const LINK_DIRECTORY: &str = "/sys/class/net";

/// One network link (interface).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Link {
    /// Its name, `eth0`.
    pub name: String,
    /// Its number, unique in its network namespace.
    pub index: u32,
    /// The largest packet it takes, in bytes, link header not counted.
    pub mtu: u32,
    /// Its link-layer address, `02:fc:00:00:00:01`; `None` for links without one, such as tunnels.
    pub mac: Option<String>,
    /// Its operational state.
    pub state: OperationalState,
    /// The bridge, bond, ... that it is a port of.
    pub master: Option<String>,
    /// What the kernel calls its kind in uevents: `bridge`, `vlan`, `vxlan`, `wlan`, ... Hardware, veth and many
    /// others have none.
    pub kind: Option<String>,
    /// The driver of the device behind it; virtual links have none.
    pub driver: Option<String>,
}

/// RFC 2863's operational states, as Linux names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OperationalState {
    /// The driver doesn't tell: usual for loopback and tun.
    Unknown,
    /// Parts of it are missing.
    NotPresent,
    /// It can't pass packets.
    Down,
    /// What it is stacked on is down.
    LowerLayerDown,
    /// It is being tested.
    Testing,
    /// It waits for something, such as 802.1X.
    Dormant,
    /// It passes packets.
    Up,
}

impl fmt::Display for OperationalState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Unknown => "unknown",
            Self::NotPresent => "notpresent",
            Self::Down => "down",
            Self::LowerLayerDown => "lowerlayerdown",
            Self::Testing => "testing",
            Self::Dormant => "dormant",
            Self::Up => "up",
        })
    }
}

/// The network links, by name.
///
/// # Caveats
///
/// sysfs shows the links of the network namespace **that it was mounted in**, not of the one that the reader is in: after
/// `setns`, and under `ip netns exec` where that can't remount `/sys`, this still gives the first namespace's links.
/// A container that has the host's `/sys` mounted sees the host's links, whatever its own network.
///
/// # Errors
///
/// [`InspectError::Read`] and [`InspectError::Parse`] as the attributes give them. A link that goes away in between is
/// none.
pub fn links(root: &HostRoot) -> Result<Vec<Link>, InspectError> {
    let tree = Tree::open(root)?;
    let mut links = Vec::new();
    for name in tree.names_if_present(LINK_DIRECTORY)? {
        let directory = format!("{LINK_DIRECTORY}/{name}");
        let link = link(&tree, &directory, name);
        links.extend(unless_gone(&tree, &format!("{directory}/ifindex"), link)?.flatten());
    }
    Ok(links)
}

/// Reads one link's directory (Documentation/ABI/testing/sysfs-class-net); `None` for what isn't a link, such as the
/// file `bonding_masters`. Samples: ifindex `4`, mtu `1500`, address `02:fc:00:00:00:01`, operstate `up`,
/// master -> `../br0`, in uevent `DEVTYPE=bridge`, device/driver -> `../../../../bus/virtio/drivers/virtio_net`.
fn link(tree: &Tree, directory: &str, name: String) -> Result<Option<Link>, InspectError> {
    let attribute = |name: &str| format!("{directory}/{name}");
    let index = || tree.value(attribute("ifindex"), "a link's number", decimal);
    let Some(first_index) = index()? else { return Ok(None) };
    let link = Link {
        index: first_index,
        mtu: tree.value(attribute("mtu"), "a size in bytes", decimal)?.unwrap_or(0),
        mac: tree.value(attribute("address"), "bytes such as 02:fc:00:00:00:01", mac)?.flatten(),
        state: tree
            .value(attribute("operstate"), "one of RFC 2863's states, such as up", state)?
            .unwrap_or(OperationalState::Unknown),
        master: tree.link_name(attribute("master"))?,
        kind: uevent_value(tree, directory, "DEVTYPE")?,
        driver: tree.link_name(attribute("device/driver"))?,
        name,
    };
    // Another link may have got the name meanwhile; what was read is then half of one and half of the other.
    Ok(if index()? == Some(first_index) { Some(link) } else { None })
}

/// Two hexadecimal digits a byte, of which Ethernet has 6 and InfiniBand 20; empty for a link without addresses.
fn mac(text: &str) -> Option<Option<String>> {
    let is_byte = |byte: &str| byte.len() == 2 && byte.bytes().all(|digit| digit.is_ascii_hexdigit());
    match text {
        "" => Some(None),
        _ if text.split(':').all(is_byte) => Some(Some(text.to_owned())),
        _ => None,
    }
}

fn state(text: &str) -> Option<OperationalState> {
    use OperationalState::{Dormant, Down, LowerLayerDown, NotPresent, Testing, Unknown, Up};
    let states = [Unknown, NotPresent, Down, LowerLayerDown, Testing, Dormant, Up];
    states.into_iter().find(|state| state.to_string() == text)
}
