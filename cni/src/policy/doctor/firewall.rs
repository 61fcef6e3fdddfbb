//! Rules: ours that are missing, and others' that drop what Pods send.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::{Finding, Snapshot};
use crate::store::Kind;

pub(super) fn examine(snapshot: &Snapshot) -> Vec<Finding> {
    let mut findings = missing_rules(&snapshot.rules_missing);
    let subnets = subnets(snapshot);
    if subnets.is_empty() {
        return findings;
    }
    for chain in snapshot.forward_chains.iter().filter(|chain| chain.drops) {
        let subject = format!("{} {} {}", chain.family, chain.table, chain.name);
        let mut commands = Vec::new();
        for subnet in &subnets {
            let keyword = if subnet.addr().is_ipv4() { "ip" } else { "ip6" };
            if chain.family == keyword || chain.family == "inet" {
                commands.push(format!("nft insert rule {subject} {keyword} saddr {subnet} accept"));
                commands.push(format!("nft insert rule {subject} {keyword} daddr {subnet} accept"));
            }
        }
        if commands.is_empty() {
            continue;
        }
        let remedy = commands.join(" && ");
        findings.push(if chain.rules == 0 {
            let problem = "the chain drops every packet that the node forwards, and so all that leaves a bridge";
            Finding::error("forward-drop", subject, problem, remedy)
        } else {
            let problem = format!(
                "the chain drops what none of its {} rules accepts; see that Pods are among it: nft list chain {subject}",
                chain.rules
            );
            Finding::warning("forward-drop", subject, problem, remedy)
        });
    }
    if snapshot.legacy_tables.iter().any(|table| table == "filter") {
        let problem = "the older iptables has a filter table, whose policy can't be read from here";
        let remedy = "iptables-legacy -S FORWARD; if it says DROP: iptables-legacy -P FORWARD ACCEPT, or accept the Pods' subnets";
        findings.push(Finding::warning("legacy-iptables", "filter", problem, remedy));
    }
    let switch = "bridge/bridge-nf-call-iptables";
    let has_bridge = snapshot.attachments().any(|attachment| attachment.record.kind == Kind::Bridge);
    if has_bridge && snapshot.switches.get(switch).is_none_or(|value| value != "1") {
        let how = if snapshot.switches.contains_key(switch) { "is off" } else { "is not loaded" };
        let problem = format!(
            "br_netfilter {how}: a Service whose endpoint is on the client's own bridge doesn't answer, as the reply never \
             passes the rules that translate it back"
        );
        let remedy = "modprobe br_netfilter && sysctl -w net.bridge.bridge-nf-call-iptables=1 \
                      net.bridge.bridge-nf-call-ip6tables=1; or take the routed mode, which doesn't need it";
        findings.push(Finding::warning("br-netfilter", "bridge-nf-call-iptables", problem, remedy));
    }
    findings
}

/// What nftables lacks: `differences` as CHECK tells them.
pub(crate) fn missing_rules(differences: &[String]) -> Vec<Finding> {
    let finding = |missing| Finding::error("rules-missing", "inet keelson", missing, "keelson network restore");
    differences.iter().map(finding).collect()
}

/// The subnets of the addresses that our interfaces have.
pub(super) fn subnets(snapshot: &Snapshot) -> BTreeSet<IpNet> {
    let linked = snapshot.attachments().filter(|attachment| !attachment.record.host_interface.is_empty());
    linked.flat_map(|attachment| &attachment.record.addresses).map(|lease| lease.address.trunc()).collect()
}
