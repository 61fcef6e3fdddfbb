//! Ethernet addresses.

use std::{fmt, net::Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};

/// The address of one network interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mac(pub(crate) [u8; 6]);

impl Mac {
    /// Parses `02:00:5e:10:00:01` (or with dashes); an address that no interface may have (a multicast one, or all
    /// zeroes) is none.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2)?;
            // from_str_radix would take a sign.
            if !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return None;
            }
            *byte = u8::from_str_radix(part, 16).ok()?;
        }
        (parts.next().is_none() && bytes[0] & 1 == 0 && bytes != [0; 6]).then_some(Self(bytes))
    }
}

impl Mac {
    /// The IPv6 link-local address of an interface with this address (RFC 4291, appendix A), with its prefix.
    pub(crate) fn link_local(self) -> IpNet {
        let [a, b, c, d, e, f] = self.0;
        let address = Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
        IpNet::V6(Ipv6Net::new_assert(address, 64))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(formatter, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_local_address_follows_the_ethernet_address() {
        assert_eq!(Mac([0x6e, 0, 0, 0, 0, 1]).link_local().to_string(), "fe80::6c00:ff:fe00:1/64");
        assert_eq!(Mac([0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde]).link_local().to_string(), "fe80::3656:78ff:fe9a:bcde/64");
    }

    #[test]
    fn only_addresses_an_interface_may_have_are_parsed() {
        assert_eq!(Mac::parse("02:00:5E:10:00:01").unwrap().to_string(), "02:00:5e:10:00:01");
        assert_eq!(Mac::parse("02-00-5e-10-00-01").unwrap().0, [2, 0, 0x5e, 0x10, 0, 1]);
        for bad in [
            "",
            "02:00:5e:10:00",
            "02:00:5e:10:00:01:02",
            "01:00:5e:00:00:01",
            "00:00:00:00:00:00",
            "+2:00:5e:10:00:01",
            "2:0:5e:10:0:1",
        ] {
            assert_eq!(Mac::parse(bad), None, "{bad}");
        }
    }
}
