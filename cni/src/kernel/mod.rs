//! The side with effects: links, addresses, routes, rules and kernel switches, over netlink and procfs.

pub(crate) mod address;
pub(crate) mod announce;
mod attribute;
pub(crate) mod bridge;
pub(crate) mod conntrack;
pub(crate) mod elements;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
pub(crate) mod link;
pub(crate) mod listener;
pub(crate) mod masquerade;
mod message;
mod netfilter;
mod netlink;
pub(crate) mod netns;
pub(crate) mod nft_chains;
mod nftables;
pub(crate) mod ports;
pub(crate) mod route;
pub(crate) mod rules;
pub(crate) mod shaping;
pub(crate) mod source_rule;
pub(crate) mod spoofing;
pub(crate) mod sysctl;
pub(crate) mod veth;
pub(crate) mod vlan;
pub(crate) mod watch;

pub(crate) use netlink::{Events, KernelError, NetfilterSocket, RouteSocket, Step};
