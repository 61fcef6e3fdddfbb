//! Host ports: ports of the node that lead to a container.

use std::{fmt, net::IpAddr};

use keelson_host::Problem;
use serde::{Deserialize, Serialize};

use super::fields::Fields;

/// A transport protocol that host ports exist for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// Its number in an IP header.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// One port of the node that leads to a port of the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PortMapping {
    pub(crate) protocol: Protocol,
    /// The node's address; `None` for all that it has, 0.0.0.0 or :: for all of that family.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) host_ip: Option<IpAddr>,
    pub(crate) host_port: u16,
    pub(crate) container_port: u16,
}

impl PortMapping {
    /// Whether it is for connections of that family.
    pub(crate) fn is_of(&self, is_ipv4: bool) -> bool {
        self.host_ip.is_none_or(|address| address.is_ipv4() == is_ipv4)
    }

    /// The one address of the node that it is for.
    pub(crate) fn address(&self) -> Option<IpAddr> {
        self.host_ip.filter(|address| !address.is_unspecified())
    }

    /// Whether a packet may be for both.
    fn overlaps(&self, other: &Self) -> bool {
        let is_other_place = |one: IpAddr, other: IpAddr| {
            one.is_ipv4() != other.is_ipv4() || (one != other && !one.is_unspecified() && !other.is_unspecified())
        };
        self.protocol == other.protocol
            && self.host_port == other.host_port
            && !self.host_ip.zip(other.host_ip).is_some_and(|(one, other)| is_other_place(one, other))
    }
}

/// Reads the list `portMappings` of `runtime`; `has` says of which families, IPv4 and IPv6, the container has addresses.
///
/// An entry without a host port publishes nothing. Neither does one for all addresses of a family that the container
/// isn't of; but one for a single such address can't have been meant.
pub(crate) fn parse_mappings(runtime: &Fields<'_>, has: (bool, bool)) -> Result<Vec<PortMapping>, Problem> {
    let mut mappings: Vec<PortMapping> = Vec::new();
    for entry in runtime.objects("portMappings")? {
        let name = entry.string("protocol")?.filter(|name| !name.is_empty()).unwrap_or("tcp");
        let Some(protocol) = Protocol::ALL.into_iter().find(|known| known.to_string().eq_ignore_ascii_case(name))
        else {
            return Err(Problem::new(
                entry.path_of("protocol"),
                name,
                "is not a known protocol",
                "take tcp, udp or sctp",
            ));
        };
        let Some(host_port) = port(&entry, "hostPort")? else { continue };
        let Some(container_port) = port(&entry, "containerPort")? else {
            let wrong = "is missing though there is a host port";
            return Err(Problem::new(entry.path_of("containerPort"), "", wrong, "take 1 to 65535"));
        };
        let host_ip = entry.address("hostIP")?.map(|address| address.to_canonical());
        let mapping = PortMapping { protocol, host_ip, host_port, container_port };
        if let Some(earlier) = mappings.iter().find(|earlier| earlier.overlaps(&mapping)) {
            let wrong = format!("is given twice: {earlier} and {mapping}");
            return Err(Problem::new(entry.path_of("hostPort"), host_port, wrong, "remove one of the two"));
        }
        if let Some(address) = mapping.address()
            && !(if address.is_ipv4() { has.0 } else { has.1 })
        {
            let wrong = "is of a family that the container has no address of";
            return Err(Problem::new(
                entry.path_of("hostIP"),
                address,
                wrong,
                "give an address of the container's family",
            ));
        }
        mappings.push(mapping);
    }
    Ok(mappings)
}

/// The port at `key`; none if it is absent or 0.
fn port(entry: &Fields<'_>, key: &str) -> Result<Option<u16>, Problem> {
    let Some(number) = entry.number(key)?.filter(|number| *number != 0) else { return Ok(None) };
    let problem = |_| Problem::new(entry.path_of(key), number, "is not a port", "take 1 to 65535");
    u16::try_from(number).map(Some).map_err(problem)
}

impl fmt::Display for PortMapping {
    /// `tcp/8080`, or `tcp/192.0.2.1:8080` where the node's address matters.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_ip {
            None => write!(formatter, "{}/{}", self.protocol, self.host_port),
            Some(IpAddr::V6(address)) => write!(formatter, "{}/[{address}]:{}", self.protocol, self.host_port),
            Some(address) => write!(formatter, "{}/{address}:{}", self.protocol, self.host_port),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parse(list: &Value) -> Result<Vec<PortMapping>, String> {
        let runtime = json!({"PortMappings": list});
        let fields = Fields::below("runtimeConfig", runtime.as_object().unwrap());
        parse_mappings(&fields, (true, false)).map_err(|problem| problem.to_string())
    }

    #[test]
    fn mappings_are_read_as_runtimes_write_them() {
        let mappings = parse(&json!([
            {"hostPort": 8080, "containerPort": 80},
            {"HostPort": 8080, "containerPort": 80, "protocol": "UDP", "hostIP": ""},
            {"hostPort": 8081, "containerPort": 80, "protocol": "sctp", "hostIP": "192.0.2.1"},
            {"hostPort": 8081, "containerPort": 80, "protocol": "SCTP", "hostIP": "::ffff:192.0.2.2"},
            {"hostPort": 8081, "containerPort": 80, "protocol": "sctp", "hostIP": "::"},
            {"hostPort": 0, "containerPort": 80},
            {"containerPort": 80},
        ]));
        let texts: Vec<String> = mappings.unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["tcp/8080", "udp/8080", "sctp/192.0.2.1:8081", "sctp/192.0.2.2:8081", "sctp/[::]:8081"]);
        assert_eq!(parse(&Value::Null), Ok(vec![]));
    }

    #[test]
    fn a_mapping_is_of_its_addresss_family_or_of_both() {
        let mapping = |address: Option<&str>| PortMapping {
            protocol: Protocol::Tcp,
            host_ip: address.map(|text| text.parse().unwrap()),
            host_port: 80,
            container_port: 80,
        };
        for (address, families) in [(None, [true, true]), (Some("0.0.0.0"), [true, false]), (Some("::"), [false, true])]
        {
            assert_eq!([true, false].map(|is_ipv4| mapping(address).is_of(is_ipv4)), families, "{address:?}");
        }
    }

    #[test]
    fn protocols_have_their_assigned_numbers() {
        // IANA's list of assigned internet protocol numbers.
        assert_eq!(Protocol::ALL.map(Protocol::number), [6, 17, 132]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (list, wanted) in [
            (json!([{"hostPort": 70000, "containerPort": 80}]), "portMappings[0].hostPort: \"70000\" is not a port"),
            (json!([{"hostPort": -1, "containerPort": 80}]), "portMappings[0].hostPort: \"-1\" is not a whole number"),
            (json!([{"hostPort": 1, "containerPort": 65536}]), "portMappings[0].containerPort: \"65536\" is not"),
            (json!([{"hostPort": 1}]), "portMappings[0].containerPort: is missing"),
            (json!([{"hostPort": 1, "containerPort": 1, "protocol": "icmp"}]), "protocol: \"icmp\" is not a known"),
            (json!([{"hostPort": 1, "containerPort": 1, "hostIP": "localhost"}]), "hostIP: \"localhost\" is not an IP"),
            (json!([{"hostPort": 1, "containerPort": 1, "hostIP": "fd00::1"}]), "hostIP: \"fd00::1\" is of a family"),
            (json!([7]), "portMappings[0]: \"7\" is not an object"),
        ] {
            let message = parse(&list).unwrap_err();
            assert!(message.contains(wanted), "{message}");
        }
    }

    #[test]
    fn a_port_given_twice_is_an_error() {
        let twice = |one: &str, other: &str| {
            let entry = |address: &str| json!({"hostPort": 80, "containerPort": 1, "hostIP": address});
            parse(&json!([entry(one), entry(other)])).is_err()
        };
        assert!(twice("", "") && twice("", "192.0.2.1") && twice("192.0.2.1", "0.0.0.0") && twice("::", ""));
        assert!(twice("192.0.2.1", "192.0.2.1") && twice("0.0.0.0", "192.0.2.1"));
        assert!(!twice("192.0.2.1", "192.0.2.2") && !twice("::", "0.0.0.0") && !twice("::", "192.0.2.1"));
    }
}
