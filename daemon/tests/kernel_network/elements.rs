//! Elements of nftables that belong to nobody.

use std::fs;

use keelson_testkit::{is_root, skip_unless};
use serde_json::json;

use crate::node::Node;

#[test]
fn elements_of_nobody_are_found_and_removed_and_those_of_running_pods_stay() {
    skip_unless!(is_root(), "not root, which network namespaces take");
    let node = Node::new();
    let _alive = node.pod("alive", true);
    let mut config = node.plugin_config();
    config["macspoofchk"] = json!(true);
    config["runtimeConfig"]["portMappings"][0]["hostPort"] = json!(9090);
    let _lost = node.pod_with("lost", &config);
    let link = node.link_of("lost");
    assert!(node.rules().contains(&link) && node.rules().contains("tcp . 9090"), "{}", node.rules());
    // As long as either is there, it is nobody's fault.
    let record = node.records().join("lost@eth0");
    let text = fs::read(&record).unwrap();
    fs::remove_file(&record).unwrap();
    assert_eq!(node.checks(), ["orphan-link"]);
    fs::write(&record, &text).unwrap();
    node.shell(&format!("ip link del {link}"));
    assert_eq!(node.checks(), ["link-missing"]);
    fs::remove_file(&record).unwrap();

    let findings = node.findings();
    let subjects: Vec<&str> = findings.iter().map(|finding| finding["subject"].as_str().unwrap()).collect();
    let checked = format!("bridge keelson checked {{ \"{link}\" }}");
    for subject in ["inet keelson ports4 { tcp . 9090 }", "inet keelson ports6 { tcp . 9090 }", &checked] {
        assert!(subjects.contains(&subject), "{subject} is not in {subjects:?}");
    }
    for finding in &findings {
        assert_eq!(
            (&finding["check"], &finding["severity"], &finding["remedy"]),
            (&json!("orphan-element"), &json!("warning"), &json!("keelson network gc"))
        );
    }
    assert!(findings.iter().any(|finding| finding["problem"].as_str().unwrap().contains("lost@eth0 ns/pod-lost")));

    let before = node.rules();
    let (would, status) = node.ask(&["network", "gc", "--dry-run"]);
    assert_eq!((status, node.rules()), (0, before));
    let (collected, status) = node.ask(&["network", "gc"]);
    assert_eq!((status, &collected), (0, &would));
    assert_eq!(collected[1]["network"], "*", "{collected}");
    assert_eq!(collected[1]["removed"].as_array().unwrap().len(), findings.len(), "{collected}");
    let rules = node.rules();
    assert!(!rules.contains(&link) && !rules.contains("tcp . 9090") && rules.contains("tcp . 8080"), "{rules}");
    assert_eq!(node.checks(), Vec::<String>::new());
}
