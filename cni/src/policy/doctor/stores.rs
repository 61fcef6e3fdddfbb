//! Records, what lies beside them, the room that is left, and the installation.

use super::{Finding, NetworkFacts, Snapshot, word};

pub(super) fn examine(snapshot: &Snapshot) -> Vec<Finding> {
    let mut findings: Vec<Finding> = snapshot.networks.iter().flat_map(network).collect();
    if let Some(configured) = &snapshot.configured {
        let remedy = "keelson run --only network puts it in place";
        for path in &configured.missing {
            findings.push(Finding::error("not-installed", path.display().to_string(), "the file is missing", remedy));
        }
        for path in &configured.different {
            let problem = "the file differs from what the node's config asks for";
            findings.push(Finding::warning("not-installed", path.display().to_string(), problem, remedy));
        }
    }
    findings
}

fn network(network: &NetworkFacts) -> Vec<Finding> {
    let NetworkFacts { name, directory, .. } = network;
    let place = directory.display().to_string();
    let collect = format!("keelson network gc --network {name}");
    let mut findings = Vec::new();
    if network.filesystem.read_only {
        let problem = "the filesystem is read-only: no Pod can be attached";
        findings.push(Finding::error(
            "store",
            &place,
            problem,
            format!("mount -o remount,rw $(findmnt -no TARGET -T {place})"),
        ));
    }
    if network.filesystem.full {
        let problem = "the filesystem is full: no Pod can be attached";
        findings.push(Finding::error("store", &place, problem, format!("df -h {place}; df -i {place}; make room")));
    }
    for (key, reason) in &network.unreadable {
        let container = word(&key.container_id);
        // Its Pod's DEL does the same; nobody else can tell whether it still lives.
        let remedy = format!("keelson network gc --network {name} --force {container}");
        findings.push(Finding::error(
            "unreadable",
            &key.container_id,
            format!("the record can't be read: {reason}"),
            remedy,
        ));
    }
    if !network.leftovers.is_empty() {
        let (first, count) = (&network.leftovers[0], network.leftovers.len());
        let problem = format!(
            "{count} files or directories of killed processes or earlier boots are left, such as {}",
            first.display()
        );
        findings.push(Finding::warning("leftovers", &place, problem, &collect));
    }
    for usage in &network.usage {
        let (used, capacity) = (usage.used, usage.capacity);
        let told = format!("{used} of {capacity} addresses of {} are in use", usage.ranges);
        let remedy = format!("keelson network ls --network {name}, and delete Pods; {collect}; or widen the range");
        if used >= capacity {
            findings.push(Finding::error(
                "range-full",
                name,
                format!("{told}: the next ADD fails with code 11"),
                remedy,
            ));
        } else if used.saturating_mul(10) >= capacity.saturating_mul(9) {
            findings.push(Finding::warning("range-full", name, told, remedy));
        }
    }
    findings
}
