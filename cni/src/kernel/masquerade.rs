//! Masquerading: what Pods send to the world outside carries the node's address.
//!
//! The rules are constant ([`rules`]); here are the subnets that they look up.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};

use super::{
    KernelError,
    address::{from_octets, octets},
    netlink::NetfilterSocket,
    nftables::{self, Element, NetfilterStep},
    rules::{self, NAT, PODS4, PODS6},
};

/// One end of an interval: its first address, or the first address after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Boundary {
    address: IpAddr,
    is_end: bool,
}

/// Makes the table hold `subnets`; a list per family if it does already.
pub(crate) fn ensure(socket: &mut NetfilterSocket, subnets: &[IpNet]) -> Result<(), KernelError> {
    if missing(socket, subnets)?.is_empty() {
        return Ok(());
    }
    nftables::update(socket, &mut |socket| {
        let found = read(socket, true, true)?;
        Ok(changes(&found, &with(found.clone(), subnets)))
    })
}

/// What of the subnets is not there, each as a part of a sentence.
pub(crate) fn differences(socket: &mut NetfilterSocket, subnets: &[IpNet]) -> Result<Vec<String>, KernelError> {
    let missing = missing(socket, subnets)?;
    Ok(missing.iter().map(|subnet| format!("the nftables table inet {} lacks {subnet}", NAT.table.name)).collect())
}

fn missing(socket: &mut NetfilterSocket, subnets: &[IpNet]) -> Result<Vec<IpNet>, KernelError> {
    let has = |is_ipv4| subnets.iter().any(|subnet| subnet.addr().is_ipv4() == is_ipv4);
    let found = read(socket, has(true), has(false))?;
    Ok(subnets.iter().filter(|subnet| !found.iter().any(|other| other.contains(*subnet))).copied().collect())
}

/// Takes `subnets` out of the table, and with the last element the table.
pub(crate) fn remove(subnets: &[IpNet]) -> Result<(), KernelError> {
    let mut socket = NetfilterSocket::open()?;
    nftables::update(&mut socket, &mut |socket| {
        let found = read(socket, true, true)?;
        let left: Vec<IpNet> = found.iter().filter(|subnet| !subnets.contains(subnet)).copied().collect();
        if left.is_empty() && rules::has_no_ports(socket)? {
            // Creating before deleting makes the deletion succeed whether or not the table was there.
            return Ok(vec![NAT.table.create(), NAT.table.delete()]);
        }
        Ok(changes(&found, &left))
    })
}

/// The subnets that the table holds, of the families asked for.
fn read(socket: &mut NetfilterSocket, ipv4: bool, ipv6: bool) -> Result<Vec<IpNet>, KernelError> {
    let mut found = Vec::new();
    for (_, set) in [(ipv4, PODS4), (ipv6, PODS6)].iter().filter(|(wanted, _)| *wanted) {
        found.extend(to_subnets(NAT.table.list(socket, set)?.iter().filter_map(Boundary::of).collect()));
    }
    Ok(found)
}

/// The steps from the subnets `old` to `new`.
fn changes(old: &[IpNet], new: &[IpNet]) -> Vec<NetfilterStep> {
    let mut steps = Vec::new();
    for (is_ipv4, set) in [(true, PODS4), (false, PODS6)] {
        let elements = |these: &[IpNet], without: &[IpNet]| -> Vec<Element> {
            let different = these.iter().filter(|net| net.addr().is_ipv4() == is_ipv4 && !without.contains(net));
            different.flat_map(to_boundaries).map(Boundary::into).collect()
        };
        let (removed, added) = (elements(old, new), elements(new, old));
        if !removed.is_empty() {
            steps.push(NAT.table.remove(set, &removed));
        }
        if !added.is_empty() {
            steps.push(NAT.table.add(set, &added));
        }
    }
    steps
}

impl Boundary {
    fn of(element: &Element) -> Option<Self> {
        Some(Self { address: from_octets(&element.key)?, is_end: element.is_end })
    }
}

impl From<Boundary> for Element {
    fn from(boundary: Boundary) -> Self {
        Self { key: octets(boundary.address), is_end: boundary.is_end, ..Self::default() }
    }
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
