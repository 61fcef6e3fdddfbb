//! Where a volume can be reached: on its node and nowhere else.

use std::collections::BTreeMap;

use keelson_proto::csi::v1::{Topology, TopologyRequirement};

/// The segment that names the node.
pub(crate) const TOPOLOGY_KEY: &str = "topology.keelson.dev/node";

/// The topology of everything on `node`.
pub(crate) fn segments(node: &str) -> Topology {
    Topology { segments: BTreeMap::from([(TOPOLOGY_KEY.to_owned(), node.to_owned())]) }
}

/// Whether a volume on `node` is what the requirement asks for.
///
/// "If requisite is specified then the provisioned volume MUST be accessible from at least one of the requisite
/// topologies"; preferred alone is as binding (CSI spec, TopologyRequirement).
pub(crate) fn admits(requirement: Option<&TopologyRequirement>, node: &str) -> bool {
    let Some(requirement) = requirement else { return true };
    let binding = if requirement.requisite.is_empty() { &requirement.preferred } else { &requirement.requisite };
    binding.is_empty() || binding.iter().any(|topology| includes(topology, node))
}

/// Whether everything that the topology names is true of `node`. A segment that isn't ours can't be.
pub(crate) fn includes(topology: &Topology, node: &str) -> bool {
    topology.segments.iter().all(|(key, value)| key == TOPOLOGY_KEY && value == node)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(segments: &[(&str, &str)]) -> Topology {
        let segments = segments.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Topology { segments }
    }

    #[test]
    fn only_this_node_will_do() {
        let (here, there) = (segments("a"), segments("b"));
        let zone = of(&[(TOPOLOGY_KEY, "a"), ("example.com/zone", "1")]);
        let admits = |requisite: &[&Topology], preferred: &[&Topology]| {
            let list = |topologies: &[&Topology]| topologies.iter().map(|topology| (*topology).clone()).collect();
            let requirement = TopologyRequirement { requisite: list(requisite), preferred: list(preferred) };
            super::admits(Some(&requirement), "a")
        };
        assert!(super::admits(None, "a"));
        assert!(admits(&[], &[]));
        assert!(admits(&[&here], &[]));
        assert!(admits(&[&there, &here], &[&there]));
        assert!(!admits(&[&there], &[&here]));
        assert!(!admits(&[], &[&there]));
        assert!(admits(&[], &[&here]));
        assert!(!admits(&[&zone], &[]));
        assert!(admits(&[&Topology::default()], &[]));
    }
}
