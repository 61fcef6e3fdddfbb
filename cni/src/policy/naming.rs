//! Names and Ethernet addresses that follow from what they belong to, so that a retry, a DEL and a GC find them again.

use std::net::IpAddr;

use crate::config::{invocation::AttachmentKey, mac::Mac};

/// FNV-1a, 64 bits: stable across releases of this program and of Rust, which the standard library's hashers are not.
/// The parts are separated, so that ("ab", "c") and ("a", "bc") differ.
fn hash(parts: &[&str]) -> u64 {
    let mut state: u64 = 0xcbf2_9ce4_8422_2325;
    for part in parts {
        for byte in part.bytes().chain([0]) {
            state = (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    state
}

/// A number for the attachment's lock.
pub(crate) fn attachment_number(key: &AttachmentKey) -> u64 {
    hash(&["lock", &key.container_id, &key.ifname])
}

/// The name of the host's end of the attachment's veth pair: `kl` and 13 hexadecimal digits.
///
/// A container's id never comes back, so a late DEL of an old sandbox can't name a new one's link.
pub(crate) fn host_interface(network: &str, key: &AttachmentKey) -> String {
    format!("kl{:013x}", hash(&["veth", network, &key.container_id, &key.ifname]) >> 12)
}

/// The name of the link that what the container sends is shaped on: `ks` and 13 hexadecimal digits.
pub(crate) fn shaping_interface(network: &str, key: &AttachmentKey) -> String {
    format!("ks{:013x}", hash(&["shaping", network, &key.container_id, &key.ifname]) >> 12)
}

/// The names of the links on the host that the attachment may have for itself.
pub(crate) fn own_links(network: &str, key: &AttachmentKey) -> [String; 2] {
    [host_interface(network, key), shaping_interface(network, key)]
}

/// The name of the bridge's port that a VLAN's gateway, the link called `gateway`, is tied to.
pub(crate) fn gateway_port(gateway: &str) -> String {
    format!("kg{:013x}", hash(&["gateway", gateway]) >> 12)
}

/// Whether `name` may be that of a link which one attachment has for itself on the host.
pub(crate) fn is_own_link(name: &str) -> bool {
    let digits = name.strip_prefix("kl").or_else(|| name.strip_prefix("ks"));
    digits.is_some_and(|digits| digits.len() == 13 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
}

/// The Ethernet address of a link on the host that an attachment has for itself.
pub(crate) fn host_mac(host_interface: &str) -> Mac {
    hashed_mac(&["host", host_interface])
}

/// The Ethernet address of a bridge: another one on every node and in every boot.
pub(crate) fn bridge_mac(boot_id: &str, bridge: &str) -> Mac {
    hashed_mac(&["bridge", boot_id, bridge])
}

/// The Ethernet address of the container's end.
///
/// It follows the Pod's first address: when the address is given to another Pod, its neighbours' entries stay right,
/// and nobody has to be told.
pub(crate) fn container_mac(address: Option<IpAddr>, host_interface: &str) -> Mac {
    match address {
        Some(IpAddr::V4(address)) => {
            let [a, b, c, d] = address.octets();
            Mac([0x6a, 0x6c, a, b, c, d])
        }
        Some(IpAddr::V6(address)) => hashed_mac(&["container", &address.to_string()]),
        None => hashed_mac(&["container", host_interface]),
    }
}

/// A locally administered unicast address (IEEE 802: the second bit of the first byte set, the lowest not).
fn hashed_mac(parts: &[&str]) -> Mac {
    let [_, _, _, a, b, c, d, e] = hash(parts).to_be_bytes();
    Mac([0x6e, a, b, c, d, e])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(container_id: &str, ifname: &str) -> AttachmentKey {
        AttachmentKey { container_id: container_id.to_owned(), ifname: ifname.to_owned() }
    }

    #[test]
    fn names_stay_what_they_were_in_earlier_releases() {
        // A running Pod's link is found by this name after an upgrade: a changed value breaks its DEL.
        assert_eq!(host_interface("keelson", &key("0f3c", "eth0")), "kl3ef4eba660ee7");
        assert_eq!(shaping_interface("keelson", &key("0f3c", "eth0")), "ksb3f9a333140f5");
        assert_eq!(gateway_port("kl0.7"), "kge57b0b00e1354");
        assert_eq!(container_mac(Some("10.88.0.5".parse().unwrap()), "x").to_string(), "6a:6c:0a:58:00:05");
    }

    #[test]
    fn an_attachments_own_link_is_told_by_its_name() {
        assert!(is_own_link(&host_interface("keelson", &key("0f3c", "eth0"))));
        assert!(is_own_link(&shaping_interface("keelson", &key("0f3c", "eth0"))));
        for other in ["kl0", "kl3ef4eba660ee", "kl3ef4eba660ee70", "kl3ef4eba660eeg", "kg3ef4eba660ee7", "eth0"] {
            assert!(!is_own_link(other), "{other}");
        }
    }

    #[test]
    fn names_differ_with_each_part_and_fit_the_kernel() {
        let names = [
            host_interface("a", &key("b", "c")),
            host_interface("ab", &key("", "c")),
            host_interface("a", &key("bc", "")),
            host_interface("a", &key("b", "d")),
        ];
        for (index, name) in names.iter().enumerate() {
            assert_eq!(name.len(), 15);
            assert!(!names[..index].contains(name));
        }
    }

    #[test]
    fn addresses_are_local_and_unicast() {
        for mac in [
            host_mac("kl0"),
            bridge_mac("boot", "kl0"),
            container_mac(None, "kl0"),
            container_mac(Some("fd00::1".parse().unwrap()), "x"),
            container_mac(Some("10.0.0.1".parse().unwrap()), "x"),
        ] {
            assert_eq!(mac.0[0] & 3, 2);
        }
    }
}
