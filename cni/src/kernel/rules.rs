//! The rules, which are constant: what differs from Pod to Pod and from network to network is in sets and maps.
//!
//! ```text
//! table inet keelson {
//!     set pods4 { type ipv4_addr; flags interval; elements = { 10.88.0.0/16 } }
//!     set pods6 { type ipv6_addr; flags interval; }
//!     set links { type ifname; elements = { "keelson0" } }
//!     map ports4 {
//!         type inet_proto . inet_service : ipv4_addr . inet_service
//!         elements = { tcp . 8080 comment "kl5c1e… 3f9a…@eth0 default/web" : 10.88.0.7 . 80 }
//!     }
//!     map ports6 { type inet_proto . inet_service : ipv6_addr . inet_service; }
//!     map addressed_ports4 { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }
//!     map addressed_ports6 { type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service; }
//!     chain host_ports {
//!         iifname @links meta mark set meta mark | 0x00002000
//!         dnat ip to ip daddr . meta l4proto . th dport map @addressed_ports4
//!         dnat ip to meta l4proto . th dport map @ports4
//!         dnat ip6 to ip6 daddr . meta l4proto . th dport map @addressed_ports6
//!         dnat ip6 to meta l4proto . th dport map @ports6
//!         meta mark set meta mark & 0xffffdfff
//!     }
//!     chain prerouting { type nat hook prerouting priority -110; fib daddr type local jump host_ports }
//!     chain output { type nat hook output priority -110; fib daddr type local jump host_ports }
//!     chain guard { type filter hook prerouting priority -300; iifname @links ip daddr 127.0.0.0/8 drop }
//!     chain postrouting {
//!         type nat hook postrouting priority 90;
//!         meta mark & 0x00002000 == 0x00002000 meta mark set meta mark & 0xffffdfff masquerade
//!         ip saddr 127.0.0.0/8 oifname != "lo" masquerade
//!         ip saddr @pods4 ip daddr != @pods4 @nh,128,8 < 0xe0 masquerade
//!         ip6 saddr @pods6 ip6 daddr != @pods6 ip6 daddr != ff00::/8 masquerade
//!     }
//! }
//! table bridge keelson {
//!     set checked { type ifname; }
//!     set allowed { type ifname . ether_addr; }
//!     chain prerouting {
//!         type filter hook prerouting priority -300;
//!         iifname @checked iifname . ether saddr != @allowed drop
//!     }
//! }
//! ```
//!
//! Host ports: only what is addressed to the node itself is looked up. The wire to a Pod on the client's own link is
//! shorter than the way back through the node, so such a client (and a Pod that calls itself) must see the node's
//! address: its connection carries a bit of the packet's mark from the first chain to the last. Sets and maps are left
//! alone when the rules are built anew, and no name is a word of nft's grammar, or what it prints could not be loaded.

use super::{
    KernelError,
    netlink::NetfilterSocket,
    nftables::{
        self, BRIDGE, Chain, EQUAL, Expression as E, IN_NAME, INET, IPV4, IPV6, LESS, MARK, NETWORK_PROTOCOL,
        NOT_EQUAL, NetfilterStep, OUT_NAME, Set, TRANSPORT_PROTOCOL, Table, Type,
    },
};

/// The table of the inet family: masquerading and host ports.
pub(crate) const NAT: Layout = Layout {
    table: Table { family: INET, name: "keelson" },
    sets: &[
        Set { name: PODS4, key: IPV4_ADDRESS, data: None, is_interval: true },
        Set { name: PODS6, key: IPV6_ADDRESS, data: None, is_interval: true },
        Set { name: LINKS, key: LINK_NAME, data: None, is_interval: false },
        Set { name: PORTS4, key: PORT, data: Some(IPV4_ADDRESS.and(SERVICE)), is_interval: false },
        Set { name: PORTS6, key: PORT, data: Some(IPV6_ADDRESS.and(SERVICE)), is_interval: false },
        Set {
            name: ADDRESSED_PORTS4,
            key: IPV4_ADDRESS.and(PROTOCOL).and(SERVICE),
            data: Some(IPV4_ADDRESS.and(SERVICE)),
            is_interval: false,
        },
        Set {
            name: ADDRESSED_PORTS6,
            key: IPV6_ADDRESS.and(PROTOCOL).and(SERVICE),
            data: Some(IPV6_ADDRESS.and(SERVICE)),
            is_interval: false,
        },
    ],
    chains: &[
        Chain { name: HOST_PORTS, hook: None },
        Chain { name: "prerouting", hook: Some(("nat", PREROUTING, DESTINATION_NAT)) },
        Chain { name: "output", hook: Some(("nat", OUTPUT, DESTINATION_NAT)) },
        Chain { name: "guard", hook: Some(("filter", PREROUTING, RAW)) },
        Chain { name: "postrouting", hook: Some(("nat", POSTROUTING, SOURCE_NAT)) },
    ],
    rules: &[
        (HOST_PORTS, &[ARRIVES_BY, in_set(LINKS), LOAD_MARK, E::Bits { mask: u32::MAX, or: CLIENT }, E::SetMark]),
        (
            HOST_PORTS,
            &[
                FAMILY,
                is(&[IPV4]),
                DESTINATION4,
                E::Meta { key: TRANSPORT_PROTOCOL, register: 9 },
                E::Payload { base: 2, offset: 2, length: 2, register: 10 },
                E::Map { map: ADDRESSED_PORTS4 },
                E::DestinationNat { family: IPV4, port: 9 },
            ],
        ),
        (
            HOST_PORTS,
            &[
                E::Meta { key: TRANSPORT_PROTOCOL, register: 1 },
                E::Payload { base: 2, offset: 2, length: 2, register: 9 },
                E::Map { map: PORTS4 },
                E::DestinationNat { family: IPV4, port: 9 },
            ],
        ),
        (
            HOST_PORTS,
            &[
                FAMILY,
                is(&[IPV6]),
                DESTINATION6,
                E::Meta { key: TRANSPORT_PROTOCOL, register: 2 },
                E::Payload { base: 2, offset: 2, length: 2, register: 13 },
                E::Map { map: ADDRESSED_PORTS6 },
                E::DestinationNat { family: IPV6, port: 2 },
            ],
        ),
        (
            HOST_PORTS,
            &[
                E::Meta { key: TRANSPORT_PROTOCOL, register: 1 },
                E::Payload { base: 2, offset: 2, length: 2, register: 9 },
                E::Map { map: PORTS6 },
                E::DestinationNat { family: IPV6, port: 2 },
            ],
        ),
        (HOST_PORTS, &[LOAD_MARK, E::Bits { mask: !CLIENT, or: 0 }, E::SetMark]),
        ("prerouting", &[E::IsLocal, E::Jump { chain: HOST_PORTS }]),
        ("output", &[E::IsLocal, E::Jump { chain: HOST_PORTS }]),
        (
            "guard",
            &[
                ARRIVES_BY,
                in_set(LINKS),
                FAMILY,
                is(&[IPV4]),
                E::Payload { base: 1, offset: 16, length: 1, register: 1 },
                is(&[127]),
                E::Drop,
            ],
        ),
        (
            "postrouting",
            &[
                LOAD_MARK,
                E::Bits { mask: CLIENT, or: 0 },
                is(&CLIENT.to_ne_bytes()),
                LOAD_MARK,
                E::Bits { mask: !CLIENT, or: 0 },
                E::SetMark,
                E::Masquerade,
            ],
        ),
        (
            "postrouting",
            &[
                FAMILY,
                is(&[IPV4]),
                E::Payload { base: 1, offset: 12, length: 1, register: 1 },
                is(&[127]),
                E::Meta { key: OUT_NAME, register: 1 },
                E::Compare { operator: NOT_EQUAL, value: b"lo\0\0\0\0\0\0\0\0\0\0\0\0\0\0" },
                E::Masquerade,
            ],
        ),
        // Addresses from 224 on are multicast, reserved or broadcast, ff00::/8 is multicast.
        (
            "postrouting",
            &[
                FAMILY,
                is(&[IPV4]),
                E::Payload { base: 1, offset: 12, length: 4, register: 1 },
                in_set(PODS4),
                DESTINATION4,
                E::Lookup { set: PODS4, inverted: true },
                E::Payload { base: 1, offset: 16, length: 1, register: 1 },
                E::Compare { operator: LESS, value: &[224] },
                E::Masquerade,
            ],
        ),
        (
            "postrouting",
            &[
                FAMILY,
                is(&[IPV6]),
                E::Payload { base: 1, offset: 8, length: 16, register: 1 },
                in_set(PODS6),
                DESTINATION6,
                E::Lookup { set: PODS6, inverted: true },
                E::Payload { base: 1, offset: 24, length: 1, register: 1 },
                E::Compare { operator: NOT_EQUAL, value: &[0xff] },
                E::Masquerade,
            ],
        ),
    ],
    last: Some("output"),
};

/// The table of the bridge family: which Ethernet addresses may come out of a container.
pub(crate) const SPOOFING: Layout = Layout {
    table: Table { family: BRIDGE, name: "keelson" },
    sets: &[
        Set { name: CHECKED, key: LINK_NAME, data: None, is_interval: false },
        Set { name: ALLOWED, key: LINK_NAME.and(ETHERNET), data: None, is_interval: false },
    ],
    chains: &[Chain { name: "prerouting", hook: Some(("filter", PREROUTING, RAW)) }],
    rules: &[(
        "prerouting",
        &[
            ARRIVES_BY,
            in_set(CHECKED),
            ARRIVES_BY,
            E::Payload { base: 0, offset: 6, length: 6, register: 2 },
            E::Lookup { set: ALLOWED, inverted: true },
            E::Drop,
        ],
    )],
    last: None,
};

/// Subnets whose Pods are masqueraded.
pub(crate) const PODS4: &str = "pods4";
pub(crate) const PODS6: &str = "pods6";
/// The links that clients of a host port may share with its Pod.
pub(crate) const LINKS: &str = "links";
/// Host ports on every address of the node, and on one.
pub(crate) const PORTS4: &str = "ports4";
pub(crate) const PORTS6: &str = "ports6";
pub(crate) const ADDRESSED_PORTS4: &str = "addressed_ports4";
pub(crate) const ADDRESSED_PORTS6: &str = "addressed_ports6";
/// Bridge ports whose source addresses are checked, and with which they may send.
pub(crate) const CHECKED: &str = "checked";
pub(crate) const ALLOWED: &str = "allowed";

const HOST_PORTS: &str = "host_ports";

/// The bit of the mark: the one that the reference portmap plugin uses for this, below the two of kube-proxy.
const CLIENT: u32 = 1 << 13;

/// linux/netfilter.h: `NF_INET_PRE_ROUTING` (and `NF_BR_PRE_ROUTING`), `NF_INET_LOCAL_OUT`, `NF_INET_POST_ROUTING`.
const PREROUTING: u32 = 0;
const OUTPUT: u32 = 3;
const POSTROUTING: u32 = 4;

/// Just before dstnat (-100) and srcnat (100), where kube-proxy's and iptables' chains are: whichever speaks first
/// decides.
const DESTINATION_NAT: i32 = -110;
const SOURCE_NAT: i32 = 90;
/// Before connections are tracked: a reply's translated address isn't seen here.
const RAW: i32 = -300;

/// The types by nft's numbers.
const IPV4_ADDRESS: Type = Type { number: 7, length: 4 };
const IPV6_ADDRESS: Type = Type { number: 8, length: 16 };
const ETHERNET: Type = Type { number: 9, length: 6 };
const PROTOCOL: Type = Type { number: 12, length: 1 };
const SERVICE: Type = Type { number: 13, length: 2 };
const LINK_NAME: Type = Type { number: nftables::LINK_NAME, length: 16 };
const PORT: Type = PROTOCOL.and(SERVICE);

impl Type {
    /// The concatenation, whose parts begin at registers of four bytes.
    const fn and(self, next: Self) -> Self {
        Self {
            number: (self.number << 6) | next.number,
            length: self.length.next_multiple_of(4) + next.length.next_multiple_of(4),
        }
    }
}

const ARRIVES_BY: E = E::Meta { key: IN_NAME, register: 1 };
const LOAD_MARK: E = E::Meta { key: MARK, register: 1 };
const FAMILY: E = E::Meta { key: NETWORK_PROTOCOL, register: 1 };
const DESTINATION4: E = E::Payload { base: 1, offset: 16, length: 4, register: 1 };
const DESTINATION6: E = E::Payload { base: 1, offset: 24, length: 16, register: 1 };

const fn is(value: &'static [u8]) -> E {
    E::Compare { operator: EQUAL, value }
}

const fn in_set(set: &'static str) -> E {
    E::Lookup { set, inverted: false }
}

/// A table with all that is in it but elements.
pub(crate) struct Layout {
    pub(crate) table: Table,
    sets: &'static [Set],
    chains: &'static [Chain],
    /// Each with its chain, in the chain's order.
    rules: &'static [(&'static str, &'static [E])],
    /// The chain whose rules are made after the elements of all attachments are there: whoever is killed before that
    /// leaves a table that is seen to be incomplete.
    last: Option<&'static str>,
}

impl Layout {
    /// The steps that make what is missing and every rule anew but those of the last chain, and leave the elements alone.
    pub(crate) fn build(&self) -> Vec<NetfilterStep> {
        let mut steps = vec![self.table.create()];
        steps.extend((1..).zip(self.sets).map(|(id, set)| self.table.create_set(set, id)));
        for chain in self.chains {
            steps.push(self.table.create_chain(chain));
            if Some(chain.name) != self.last {
                steps.extend(self.fill(chain.name));
            }
        }
        steps
    }

    /// The steps that make all rules of a chain anew.
    fn fill(&self, chain: &'static str) -> impl Iterator<Item = NetfilterStep> {
        let rules = self.rules.iter().filter(move |(name, _)| *name == chain);
        let add = rules.map(move |(_, expressions)| self.table.add_rule(chain, expressions));
        std::iter::once(self.table.flush_chain(chain)).chain(add)
    }

    /// Makes the rules of the last chain.
    pub(crate) fn complete(&self, socket: &mut NetfilterSocket) -> Result<(), KernelError> {
        nftables::commit(socket, self.last.into_iter().flat_map(|chain| self.fill(chain)).collect())
    }

    /// Builds the table unless it is complete; tells whether it had to. Then it still lacks the last chain's rules.
    pub(crate) fn ensure(&self, socket: &mut NetfilterSocket) -> Result<bool, KernelError> {
        if self.incomplete_chains(socket)?.is_empty() {
            return Ok(false);
        }
        nftables::commit(socket, self.build())?;
        Ok(true)
    }

    /// The chains that have more or fewer rules than they should: one list of all rules, whatever the number of Pods.
    pub(crate) fn incomplete_chains(&self, socket: &mut NetfilterSocket) -> Result<Vec<&'static str>, KernelError> {
        let found = self.table.chains_of_rules(socket)?;
        let is_incomplete = |chain: &&str| {
            let wanted = self.rules.iter().filter(|(name, _)| name == chain).count();
            found.iter().filter(|name| name == chain).count() != wanted
        };
        Ok(self.chains.iter().map(|chain| chain.name).filter(is_incomplete).collect())
    }
}

/// The name of a link as sets have it.
pub(crate) fn link_key(name: &str) -> Vec<u8> {
    let mut key = name.as_bytes().to_vec();
    key.resize(16, 0);
    key
}

/// Whether no host port is published.
pub(crate) fn has_no_ports(socket: &mut NetfilterSocket) -> Result<bool, KernelError> {
    for map in [PORTS4, PORTS6, ADDRESSED_PORTS4, ADDRESSED_PORTS6] {
        if !NAT.table.list(socket, map)?.is_empty() {
            return Ok(false);
        }
    }
    Ok(true)
}
