//! Told of each change of rules, links, addresses and switches in a namespace.

use std::os::fd::{AsFd, OwnedFd};

use netlink_sys::{
    Socket,
    protocols::{NETLINK_NETFILTER, NETLINK_ROUTE},
};

use super::KernelError;

/// `NFNLGRP_NFTABLES` (linux/netfilter/nfnetlink.h): any change of any table.
const NFTABLES: u32 = 7;

/// linux/rtnetlink.h: links, addresses, and forwarding of both families.
const ROUTE_GROUPS: [u32; 5] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV4_NETCONF,
    libc::RTNLGRP_IPV6_NETCONF,
];

/// Sockets that don't block and are readable when something changed in the calling thread's namespace: links, addresses
/// or forwarding the first, nftables the second.
pub(crate) fn changes() -> Result<[OwnedFd; 2], KernelError> {
    Ok([subscribe(NETLINK_ROUTE, &ROUTE_GROUPS)?, subscribe(NETLINK_NETFILTER, &[NFTABLES])?])
}

fn subscribe(protocol: isize, groups: &[u32]) -> Result<OwnedFd, KernelError> {
    let failed = |error| KernelError::new("subscribe to changes of the network", error);
    let mut socket = Socket::new(protocol).map_err(failed)?;
    socket.bind_auto().map_err(failed)?;
    for group in groups {
        socket.add_membership(*group).map_err(failed)?;
    }
    socket.set_non_blocking(true).map_err(failed)?;
    socket.as_fd().try_clone_to_owned().map_err(failed)
}
