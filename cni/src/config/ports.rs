//! Host ports: ports of the node that lead to a container.

use std::{fmt, net::IpAddr};

use serde::{Deserialize, Serialize};

/// A transport protocol that host ports exist for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Protocol {
    Tcp,
    Udp,
    Sctp,
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
    /// The node's address; `None` for all that it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) host_ip: Option<IpAddr>,
    pub(crate) host_port: u16,
    pub(crate) container_port: u16,
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
