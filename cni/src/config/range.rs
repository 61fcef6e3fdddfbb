//! Address ranges: what a Pod's addresses are taken from.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};
use keelson_host::{Problem, Problems};

use super::fields::ADDRESS_REMEDY;

/// RFC 4291, section 2.5.5.2: an IPv4 address in an IPv6 socket's clothes.
const V4_MAPPED: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96);

/// One range as somebody wrote it, host-local's four keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RangeText {
    pub(crate) subnet: String,
    pub(crate) first: Option<String>,
    pub(crate) last: Option<String>,
    pub(crate) gateway: Option<String>,
}

/// A part of one subnet that addresses are taken from.
///
/// Invariant: `subnet` has no host bits, `first` to `last` lie inside it without its network address (and, for IPv4,
/// its broadcast address), `gateway` lies in it, and at least one address of the range isn't the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) subnet: IpNet,
    pub(crate) first: IpAddr,
    pub(crate) last: IpAddr,
    pub(crate) gateway: IpAddr,
}

/// Ranges of one family; a Pod gets one address from each set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RangeSet(pub(crate) Vec<Range>);

impl Range {
    /// Checks `text`, found at `path`, and fills in what it leaves out: the gateway is the subnet's first address, the
    /// range the whole subnet. `subnet_path` names the subnet itself.
    pub(crate) fn new(path: &str, subnet_path: &str, text: &RangeText) -> Result<Self, Problem> {
        let problem = |key: &str, value: &str, wrong: String, remedy: &str| {
            let path = if key == "subnet" { subnet_path.to_owned() } else { format!("{path}.{key}") };
            Problem::new(path, value, wrong, remedy)
        };
        let Ok(subnet) = text.subnet.parse::<IpNet>() else {
            return Err(problem(
                "subnet",
                &text.subnet,
                "is not a subnet".to_owned(),
                "write it as 10.88.0.0/16 or fd00:88::/64",
            ));
        };
        if subnet.addr() != subnet.network() {
            let remedy = format!("write {}", subnet.trunc());
            return Err(problem("subnet", &text.subnet, "has host bits set".to_owned(), &remedy));
        }
        if subnet.max_prefix_len() - subnet.prefix_len() < 2 {
            let wrong = "is too small for a gateway and a Pod".to_owned();
            return Err(problem("subnet", &text.subnet, wrong, "take a prefix of at most /30 (IPv4) or /126 (IPv6)"));
        }
        let network = subnet.network();
        if network.is_unspecified() || network.is_loopback() || network.is_multicast() {
            let wrong = "is not a range of unicast addresses".to_owned();
            return Err(problem("subnet", &text.subnet, wrong, "take a private range such as 10.88.0.0/16"));
        }
        if let IpNet::V6(subnet) = subnet
            && (V4_MAPPED.contains(&subnet) || subnet.contains(&V4_MAPPED))
        {
            let wrong = "has IPv4-mapped addresses, which never leave a host".to_owned();
            return Err(problem("subnet", &text.subnet, wrong, "write the IPv4 subnet itself, such as 10.88.0.0/16"));
        }
        let lowest = to_bits(network) + 1;
        let highest = match subnet {
            IpNet::V4(_) => to_bits(subnet.broadcast()) - 1,
            IpNet::V6(_) => to_bits(subnet.broadcast()),
        };
        let within = |key: &str, value: &Option<String>, default: u128| {
            let Some(value) = value else { return Ok(default) };
            let Ok(address) = value.parse::<IpAddr>() else {
                return Err(problem(key, value, "is not an IP address".to_owned(), ADDRESS_REMEDY));
            };
            if !subnet.contains(&address) {
                let wrong = format!("is not in the subnet {subnet}");
                return Err(problem(key, value, wrong, "take an address of the subnet"));
            }
            let bits = to_bits(address);
            if bits < lowest || bits > highest {
                let wrong = format!("is the network or broadcast address of {subnet}");
                return Err(problem(key, value, wrong, "take an address between the two"));
            }
            Ok(bits)
        };
        let gateway = within("gateway", &text.gateway, lowest)?;
        let first = within("rangeStart", &text.first, lowest)?;
        let last = within("rangeEnd", &text.last, highest)?;
        if first > last {
            let wrong = format!("is after rangeEnd {}", from_bits(last, &subnet));
            return Err(problem("rangeStart", &from_bits(first, &subnet).to_string(), wrong, "swap the two"));
        }
        if first == last && first == gateway {
            let wrong = "leaves no address beside the gateway".to_owned();
            return Err(problem("rangeStart", &from_bits(first, &subnet).to_string(), wrong, "widen the range"));
        }
        let address = |bits| from_bits(bits, &subnet);
        Ok(Self { subnet, first: address(first), last: address(last), gateway: address(gateway) })
    }

    /// Whether `address` may be given to a Pod from this range.
    pub(crate) fn offers(&self, address: IpAddr) -> bool {
        self.subnet.contains(&address) && self.first <= address && address <= self.last && address != self.gateway
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.is_ipv4() == other.is_ipv4() && self.first <= other.last && other.first <= self.last
    }

    fn is_ipv4(&self) -> bool {
        self.subnet.addr().is_ipv4()
    }

    /// The address after `address` in this range, skipping the gateway; `None` past the end.
    pub(crate) fn after(&self, address: IpAddr) -> Option<IpAddr> {
        let last = to_bits(self.last);
        let mut next = to_bits(address).checked_add(1)?;
        if next == to_bits(self.gateway) {
            next += 1;
        }
        (next <= last).then(|| from_bits(next, &self.subnet))
    }

    /// The first address that the range offers.
    pub(crate) fn start(&self) -> IpAddr {
        if self.first == self.gateway { from_bits(to_bits(self.first) + 1, &self.subnet) } else { self.first }
    }

    /// How many addresses the range offers, capped at `u128::MAX`.
    pub(crate) fn size(&self) -> u128 {
        let all = (to_bits(self.last) - to_bits(self.first)).saturating_add(1);
        all - u128::from(self.first <= self.gateway && self.gateway <= self.last)
    }
}

impl RangeSet {
    /// The range of the set that offers `address`.
    pub(crate) fn range_of(&self, address: IpAddr) -> Option<&Range> {
        self.0.iter().find(|range| range.offers(address))
    }

    /// How many addresses the set offers, capped at `u128::MAX`.
    pub(crate) fn size(&self) -> u128 {
        self.0.iter().fold(0, |sum, range| sum.saturating_add(range.size()))
    }

    /// The address after `last`, range by range and from the end back to the start; the first one of all if the set
    /// doesn't offer `last`.
    pub(crate) fn after(&self, last: Option<IpAddr>) -> Option<IpAddr> {
        let position = last.and_then(|last| Some((self.0.iter().position(|range| range.offers(last))?, last)));
        let Some((index, last)) = position else { return self.0.first().map(Range::start) };
        self.0[index].after(last).or_else(|| self.0.get((index + 1) % self.0.len()).map(Range::start))
    }

    /// Whether the set is of IPv4 ranges.
    pub(crate) fn is_ipv4(&self) -> bool {
        self.0.first().is_some_and(Range::is_ipv4)
    }
}

/// What is wrong with sets as a whole: an empty set, two families in one, an overlap within or between them.
///
/// `path` names the list; `set_path` gives the path of range `j` of set `i`.
pub(crate) fn check_sets(sets: &[RangeSet], path: &str, range_path: impl Fn(usize, usize) -> String) -> Problems {
    let mut problems = Problems::default();
    if sets.is_empty() {
        problems.push(Problem::new(path, "", "names no range", "give at least one, such as 10.88.0.0/16"));
    }
    let mut earlier: Vec<(String, &Range)> = Vec::new();
    for (index, set) in sets.iter().enumerate() {
        if set.0.is_empty() {
            problems.push(Problem::new(
                format!("{path}[{index}]"),
                "",
                "is an empty set",
                "give it a range or remove it",
            ));
        }
        for (inner, range) in set.0.iter().enumerate() {
            let here = range_path(index, inner);
            if range.is_ipv4() != set.is_ipv4() {
                let wrong = "is of another family than the set's first range";
                problems.push(Problem::new(&here, range.subnet, wrong, "give each family a set of its own"));
            }
            if let Some((there, other)) = earlier.iter().find(|(_, other)| other.overlaps(range)) {
                let wrong = format!("overlaps {} ({there})", other.subnet);
                problems.push(Problem::new(&here, range.subnet, wrong, "make the ranges disjoint"));
            }
            earlier.push((here, range));
        }
    }
    problems
}

fn to_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// The address of `subnet`'s family with these bits.
fn from_bits(bits: u128, subnet: &IpNet) -> IpAddr {
    match subnet {
        // Invariant: only bits between two IPv4 addresses get here, so the upper 96 are zero.
        IpNet::V4(_) => Ipv4Addr::from_bits(u32::try_from(bits).unwrap_or(u32::MAX)).into(),
        IpNet::V6(_) => Ipv6Addr::from_bits(bits).into(),
    }
}

#[cfg(test)]
mod tests;
