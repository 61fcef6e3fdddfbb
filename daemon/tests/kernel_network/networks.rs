//! Limits, routing by source, and networks that the node's config doesn't speak of.

use keelson_testkit::{is_root, missing, skip_unless};
use serde_json::{Value, json};

use crate::node::Node;

fn checks(findings: &Value) -> Vec<(&str, &str)> {
    findings
        .as_array()
        .unwrap()
        .iter()
        .map(|finding| (finding["severity"].as_str().unwrap(), finding["check"].as_str().unwrap()))
        .collect()
}

#[test]
fn what_check_compares_the_doctor_tells() {
    skip_unless!(is_root(), "not root, which network namespaces take");
    skip_unless!(missing(&["tc"]).is_empty(), "needs tc");
    let node = Node::new();
    let mut config = node.plugin_config();
    config["sbr"] = json!(true);
    config["runtimeConfig"]["bandwidth"] =
        json!({"ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 8_000_000, "egressBurst": 800_000});
    let pod = node.pod_with("aaaa", &config);
    assert_eq!(node.findings(), Vec::<Value>::new());
    let show = || node.ask(&["network", "show", "aaaa"]).0[0].clone();
    assert_eq!(show()["findings"], json!([]));

    let inside = format!("nsenter --net={} ip", pod.path().display());
    node.shell(&format!("{inside} rule del from 10.77.0.2 && {inside} -6 rule del from fd77::2"));
    assert_eq!(checks(&show()["findings"]), [("error", "source-rule"); 2]);
    for finding in node.findings() {
        node.shell(finding["remedy"].as_str().unwrap());
    }
    assert_eq!(node.checks(), Vec::<String>::new());

    node.shell("nft delete element inet keelson ports4 '{ tcp . 8080 }'");
    assert_eq!(checks(&show()["findings"]), [("error", "rules-missing")]);
    node.shell("keelson network restore --network test");
    assert_eq!(show()["findings"], json!([]));

    node.shell(&format!("tc qdisc del dev {} root", node.link_of("aaaa")));
    assert_eq!(node.checks(), ["shaping"]);
    assert_eq!(checks(&show()["findings"]), [("warning", "shaping")]);
    let shaping = show()["attachment"]["shapingInterface"].as_str().unwrap().to_owned();
    node.shell(&format!("ip link del {shaping}"));
    assert_eq!(checks(&show()["findings"]), [("error", "shaping")]);
}

#[test]
fn a_gateway_comes_back_by_the_record_alone() {
    skip_unless!(is_root(), "not root, which network namespaces take");
    let node = Node::new();
    let mut config = node.plugin_config();
    config["name"] = json!("other");
    config["bridge"] = json!("kt1");
    config["ipam"]["ranges"] = json!([[{"subnet": "10.78.0.0/24"}]]);
    let _pod = node.pod_with("aaaa", &config);
    let other = ["--network", "other"];
    let ask = |what: &str| node.ask(&[&["network", what], &other[..]].concat()).0;
    node.shell("ip address del 10.78.0.1/24 dev kt1");
    let found = ask("doctor");
    assert!(checks(&found).contains(&("error", "gateway-missing")), "{found}");
    let repairs = ask("restore");
    assert_eq!(repairs, json!([{"what": "address", "missing": "the bridge kt1 lacked 10.78.0.1/24"}]));
    node.shell("ip address show dev kt1 | grep -q 10.78.0.1/24");
    assert_eq!(ask("restore"), json!([]));
    node.shell("ip link set kt1 down");
    assert_eq!(ask("restore")[0]["what"], "bridge");
}
