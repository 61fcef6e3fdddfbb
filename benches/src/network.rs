//! The two network configurations that are compared: keelson-cni's and the reference's, as alike as can be.

use std::{net::Ipv4Addr, path::Path};

use serde_json::{Value, json};

/// What is measured, as what it is called and the value of `ipMasq`.
pub(crate) const VARIANTS: [(&str, bool); 2] = [("no masquerade", false), ("masquerade", true)];

/// What a reader has to know of these configurations.
pub(crate) const NOTE: &str = "the reference masquerades with its nftables backend, as keelson-cni does";

pub(crate) const SPEC_VERSION: &str = "1.0.0";

/// What the network is called.
pub(crate) const NAME: &str = "bench";

/// Each is a /16.
pub(crate) const KEELSON_SUBNET: Ipv4Addr = Ipv4Addr::new(10, 98, 0, 0);
pub(crate) const REFERENCE_SUBNET: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 0);

/// keelson-cni with its built-in IPAM, its records below `state`.
pub(crate) fn keelson(state: &Path, masquerade: bool) -> Value {
    json!({
        "type": "keelson-cni",
        "bridge": "kl-bench",
        "isGateway": true,
        "ipMasq": masquerade,
        "ipam": {
            "type": "keelson-cni",
            "ranges": [[{"subnet": format!("{KEELSON_SUBNET}/16")}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": state.join("keelson"),
        },
    })
}

/// The reference bridge with host-local, its records below `state`.
pub(crate) fn reference(state: &Path, masquerade: bool) -> Value {
    json!({
        "type": "bridge",
        "bridge": "ref-bench",
        "isGateway": true,
        "ipMasq": masquerade,
        "ipMasqBackend": "nftables",
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": format!("{REFERENCE_SUBNET}/16")}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": state.join("host-local"),
        },
    })
}

/// The reference portmap, which goes after the bridge; the host ports of a Pod come with each call.
pub(crate) fn portmap() -> Value {
    json!({"type": "portmap", "backend": "nftables"})
}
