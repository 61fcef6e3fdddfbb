//! Chains of any nftables table that see packets on their way through the host. The numbers are those of
//! linux/netfilter/nf_tables.h.

use super::{
    KernelError,
    attribute::{Attributes, attribute, text},
    netfilter::{self, NetfilterMessage, number},
    netlink::NetfilterSocket,
    nftables::{INET, IPV4, IPV6, SUBSYSTEM},
};

/// `NF_INET_FORWARD` (linux/netfilter.h).
const FORWARD: u32 = 2;

/// `NF_DROP` there.
const DROP: u32 = 0;

/// A chain that the kernel calls for each packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BaseChain {
    /// As `nft` names it: `ip`, `ip6`, `inet`.
    pub(crate) family: &'static str,
    pub(crate) table: String,
    pub(crate) name: String,
    /// Whether it drops what no rule of it decides about.
    pub(crate) drops: bool,
    pub(crate) rules: u32,
}

/// The chains at the forward hook, of every table of IPv4, IPv6 or both: those of iptables-nft are among them.
pub(crate) fn forwarding() -> Result<Vec<BaseChain>, KernelError> {
    let message = netfilter::message(SUBSYSTEM, 4, 0, &Attributes::new());
    let answers = NetfilterSocket::open()?.dump("list the nftables chains", &message)?;
    Ok(answers.iter().filter_map(forward_chain).collect())
}

fn forward_chain(answer: &NetfilterMessage) -> Option<BaseChain> {
    let (family, told) = netfilter::parts(answer, SUBSYSTEM, 3)?;
    let family = match family {
        IPV4 => "ip",
        IPV6 => "ip6",
        INET => "inet",
        _ => return None,
    };
    let hook = attribute(attribute(told, 4)?, 1).and_then(number)?;
    let chain = BaseChain {
        family,
        table: attribute(told, 1).map(text)?,
        name: attribute(told, 3).map(text)?,
        drops: attribute(told, 5).and_then(number) == Some(DROP),
        // Each rule refers to its chain; nobody jumps to a base chain.
        rules: attribute(told, 6).and_then(number).unwrap_or_default(),
    };
    (hook == FORWARD).then_some(chain)
}
