//! Masquerading: what Pods send to the world outside carries the node's address.
//!
//! One table for all networks of the node, whose rules never change with the Pods: it is a function of the set of
//! subnets alone.
//!
//! ```text
//! table inet keelson {
//!     set pods4 { type ipv4_addr; flags interval; elements = { 10.88.0.0/16 } }
//!     set pods6 { type ipv6_addr; flags interval; }
//!     chain postrouting {
//!         type nat hook postrouting priority 90;
//!         meta nfproto ipv4 ip saddr @pods4 ip daddr != @pods4 @nh,128,8 < 0xe0 masquerade
//!         meta nfproto ipv6 ip6 saddr @pods6 ip6 daddr != @pods6 @nh,192,8 != 0xff masquerade
//!     }
//! }
//! ```
//!
//! Every change replaces the whole table in one transaction, based on the rules' generation number: if anybody changed
//! any rule since the subnets were read, the kernel refuses it and we read them anew. That takes no lock and leaves
//! the old table or the new one, whatever kills us.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};
use netlink_packet_netfilter::nftables::Operator;
use nix::errno::Errno;

use super::{
    KernelError,
    netlink::NetfilterSocket,
    nftables::{self, Boundary, step},
};

/// The table of family inet that is ours.
const TABLE: &str = "keelson";
/// Like every name here no word of nft's grammar, or what `nft list` prints could not be loaded again.
const CHAIN: &str = "postrouting";
const SET_V4: &str = "pods4";
const SET_V6: &str = "pods6";

/// Just before srcnat (100), where kube-proxy's and iptables' chains are: whichever speaks first decides.
const PRIORITY: i32 = 90;

/// What the rule of one address family looks at.
struct Family {
    set: &'static str,
    /// Names the set within the transaction.
    id: u32,
    /// `meta nfproto` (linux/netfilter.h).
    number: u8,
    /// Where the addresses are in the IP header (RFC 791, RFC 8200), and how long they are.
    source: u32,
    destination: u32,
    length: u32,
    /// What the destination's first byte must be for unicast: IPv4 addresses from 224 on are multicast, reserved or
    /// broadcast, ff00::/8 is multicast.
    unicast: (Operator, u8),
}

const FAMILIES: [Family; 2] = [
    Family {
        set: SET_V4,
        id: 1,
        number: 2,
        source: 12,
        destination: 16,
        length: 4,
        unicast: (Operator::LessThan, 0xe0),
    },
    Family {
        set: SET_V6,
        id: 2,
        number: 10,
        source: 8,
        destination: 24,
        length: 16,
        unicast: (Operator::NotEqual, 0xff),
    },
];

/// How often a transaction is tried against changes by others.
const ATTEMPTS: usize = 50;

/// Makes the table hold `subnets` and its rules; three questions if it does already.
pub(crate) fn ensure(subnets: &[IpNet]) -> Result<(), KernelError> {
    let mut socket = NetfilterSocket::open()?;
    if missing(&mut socket, subnets)?.is_empty() {
        return Ok(());
    }
    change(&mut socket, |found| with(found, subnets))
}

/// What of the table is not there, each as a part of a sentence.
pub(crate) fn differences(subnets: &[IpNet]) -> Result<Vec<String>, KernelError> {
    missing(&mut NetfilterSocket::open()?, subnets)
}

fn missing(socket: &mut NetfilterSocket, subnets: &[IpNet]) -> Result<Vec<String>, KernelError> {
    let found = read(socket)?;
    let mut missing: Vec<String> = subnets
        .iter()
        .filter(|subnet| !found.iter().any(|other| other.contains(*subnet)))
        .map(|subnet| format!("the nftables table inet {TABLE} lacks {subnet}"))
        .collect();
    let masqueraded = nftables::masqueraded_sets(socket, TABLE, CHAIN)?;
    for family in FAMILIES.iter().filter(|family| !masqueraded.iter().any(|set| set == family.set)) {
        missing.push(format!("the nftables chain inet {TABLE} {CHAIN} lacks the rule of the set {}", family.set));
    }
    Ok(missing)
}

/// Takes `subnets` out of the table, and with the last subnet the table.
pub(crate) fn remove(subnets: &[IpNet]) -> Result<(), KernelError> {
    let mut socket = NetfilterSocket::open()?;
    change(&mut socket, |found| found.into_iter().filter(|subnet| !subnets.contains(subnet)).collect())
}

/// The subnets that the table holds.
fn read(socket: &mut NetfilterSocket) -> Result<Vec<IpNet>, KernelError> {
    let mut found = to_subnets(nftables::boundaries(socket, TABLE, SET_V4)?);
    found.extend(to_subnets(nftables::boundaries(socket, TABLE, SET_V6)?));
    Ok(found)
}

/// `found` and `wanted`; intervals must not overlap, so a found subnet of the same family gives way to a wider one.
fn with(found: Vec<IpNet>, wanted: &[IpNet]) -> Vec<IpNet> {
    let mut all = found;
    for subnet in wanted {
        if !all.iter().any(|other| other.contains(subnet)) {
            all.retain(|other| !subnet.contains(other));
            all.push(*subnet);
        }
    }
    all
}

fn change(socket: &mut NetfilterSocket, new: impl Fn(Vec<IpNet>) -> Vec<IpNet>) -> Result<(), KernelError> {
    let mut last = None;
    for _ in 0..ATTEMPTS {
        let generation = nftables::generation(socket)?;
        let subnets = new(read(socket)?);
        match replace(socket, generation, &subnets) {
            // ERESTART, which nix has no name for: the rules changed since the generation was read.
            Err(error) if matches!(error.source.raw_os_error(), Some(libc::ERESTART)) => last = Some(error),
            other => return other,
        }
    }
    Err(last.unwrap_or_else(|| KernelError::new("change the nftables table", Errno::EAGAIN)))
}

fn replace(socket: &mut NetfilterSocket, generation: u32, subnets: &[IpNet]) -> Result<(), KernelError> {
    // Creating before deleting makes the deletion succeed whether or not the table was there.
    let mut steps = vec![
        step("create the nftables table", nftables::new_table(TABLE)),
        step("delete the old nftables table", nftables::delete_table(TABLE)),
    ];
    if !subnets.is_empty() {
        steps.push(step("create the nftables table", nftables::new_table(TABLE)));
        steps.push(step("create the nftables chain", nftables::new_source_nat_chain(TABLE, CHAIN, PRIORITY)));
        for family in &FAMILIES {
            let Family { set, id, source, destination, length, .. } = *family;
            steps.push(step("create an nftables set", nftables::new_set(TABLE, set, id, set == SET_V4)));
            let boundaries: Vec<Boundary> =
                subnets.iter().filter(|subnet| set_of(subnet) == set).flat_map(to_boundaries).collect();
            if !boundaries.is_empty() {
                let message = nftables::new_elements(TABLE, set, &boundaries);
                steps.push(step("fill an nftables set", message));
            }
            let (operator, first_byte) = family.unicast;
            let expressions = vec![
                nftables::load_family(),
                nftables::compare(Operator::Equal, &[family.number]),
                nftables::load_network_header(source, length),
                nftables::look_up(set, id, false),
                nftables::load_network_header(destination, length),
                nftables::look_up(set, id, true),
                nftables::load_network_header(destination, 1),
                nftables::compare(operator, &[first_byte]),
                nftables::masquerade(),
            ];
            steps.push(step("add an nftables rule", nftables::new_rule(TABLE, CHAIN, expressions)));
        }
    }
    nftables::commit(socket, generation, steps)
}

fn set_of(subnet: &IpNet) -> &'static str {
    if subnet.addr().is_ipv4() { SET_V4 } else { SET_V6 }
}

/// The subnet as the kernel wants it; the last of an address space has no end.
fn to_boundaries(subnet: &IpNet) -> Vec<Boundary> {
    let start = Boundary { address: subnet.network(), is_end: false };
    let after = match subnet.broadcast() {
        IpAddr::V4(last) => last.to_bits().checked_add(1).map(|bits| IpAddr::from(std::net::Ipv4Addr::from_bits(bits))),
        IpAddr::V6(last) => last.to_bits().checked_add(1).map(|bits| IpAddr::from(std::net::Ipv6Addr::from_bits(bits))),
    };
    std::iter::once(start).chain(after.map(|address| Boundary { address, is_end: true })).collect()
}

/// The subnets between boundaries, in any order; a start without an end reaches to the end of the address space.
fn to_subnets(mut boundaries: Vec<Boundary>) -> Vec<IpNet> {
    // An end sorts before a start at the same address: there one interval borders on the next.
    boundaries.sort_by_key(|boundary| (boundary.address, !boundary.is_end));
    let mut subnets = Vec::new();
    let mut rest = boundaries.iter().peekable();
    while let Some(start) = rest.next() {
        if start.is_end {
            continue;
        }
        let end = rest.next_if(|next| next.is_end).map(|end| end.address);
        match (start.address, end) {
            (IpAddr::V4(first), end) => {
                let last = match end {
                    Some(IpAddr::V4(end)) => end.to_bits().saturating_sub(1).into(),
                    _ => std::net::Ipv4Addr::BROADCAST,
                };
                subnets.extend(Ipv4Subnets::new(first, last, 0).map(IpNet::V4));
            }
            (IpAddr::V6(first), end) => {
                let last = match end {
                    Some(IpAddr::V6(end)) => end.to_bits().saturating_sub(1).into(),
                    _ => std::net::Ipv6Addr::from_bits(u128::MAX),
                };
                subnets.extend(Ipv6Subnets::new(first, last, 0).map(IpNet::V6));
            }
        }
    }
    subnets
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_wider_subnet_replaces_a_narrower_one() {
        assert_eq!(
            with(nets(&["10.88.4.0/24", "10.1.0.0/16"]), &nets(&["10.88.0.0/16"])),
            nets(&["10.1.0.0/16", "10.88.0.0/16"])
        );
        assert_eq!(
            with(nets(&["10.88.0.0/16"]), &nets(&["10.88.4.0/24", "fd00::/64"])),
            nets(&["10.88.0.0/16", "fd00::/64"])
        );
    }

    proptest! {
        #[test]
        fn subnets_survive_the_kernels_form(bits in prop::collection::vec((any::<u32>(), 8u8..=30), 0..6), six in prop::collection::vec((any::<u128>(), 8u8..=126), 0..6)) {
            let mut subnets: Vec<IpNet> = Vec::new();
            let candidates = bits
                .into_iter()
                .map(|(bits, length)| IpNet::new(std::net::Ipv4Addr::from_bits(bits).into(), length).unwrap().trunc())
                .chain(six.into_iter().map(|(bits, length)| IpNet::new(std::net::Ipv6Addr::from_bits(bits).into(), length).unwrap().trunc()));
            for subnet in candidates {
                if !subnets.iter().any(|other| other.contains(&subnet) || subnet.contains(other)) {
                    subnets.push(subnet);
                }
            }
            subnets.sort();
            for family in [true, false] {
                let ours: Vec<IpNet> = subnets.iter().copied().filter(|subnet| subnet.addr().is_ipv4() == family).collect();
                let mut back = to_subnets(ours.iter().flat_map(to_boundaries).collect());
                back.sort();
                prop_assert_eq!(back, ours);
            }
        }
    }
}
