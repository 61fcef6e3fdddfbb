use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::config::invocation::Pod;

fn key() -> AttachmentKey {
    AttachmentKey { container_id: "c1".to_owned(), ifname: "eth0".to_owned() }
}

fn cached() -> Value {
    json!({
        "kind": "cniCacheV1", "containerId": "c1", "config": "e30=", "ifName": "eth0", "networkName": "net",
        "netns": "/run/netns/x",
        "cniArgs": [["IgnoreUnknown", "1"], ["K8S_POD_NAMESPACE", "ns"], ["K8S_POD_NAME", "app"], ["K8S_POD_UID", "u"]],
        "capabilityArgs": {"portMappings": [{"hostPort": 80}]},
        "result": {"cniVersion": "0.4.0", "interfaces": [{"name": "cni0"}], "ips": [{"version": "4", "address": "10.0.0.2/24"}]},
    })
}

#[test]
fn a_remembered_add_is_taken_apart() {
    let found = cache::parse(cached().to_string().as_bytes(), &key()).unwrap();
    assert_eq!(found.netns, "/run/netns/x");
    assert_eq!(found.pod, Pod { namespace: "ns".to_owned(), name: "app".to_owned(), uid: "u".to_owned() });
    assert_eq!(found.result.addresses[0].address, "10.0.0.2/24".parse().unwrap());
    assert!(found.has_ports);
}

#[test]
fn what_is_not_the_attachments_own_is_refused() {
    let wrong = |change: &dyn Fn(&mut Value)| {
        let mut document = cached();
        change(&mut document);
        cache::parse(document.to_string().as_bytes(), &key()).unwrap_err()
    };
    assert_eq!(wrong(&|document| document["kind"] = json!("v2")), "is of the kind \"v2\", not \"cniCacheV1\"");
    assert_eq!(wrong(&|document| document["containerId"] = json!("c2")), "is about another attachment");
    assert!(wrong(&|document| document["netns"] = json!(7)).contains("netns"));
    assert!(wrong(&|document| document["result"]["ips"] = json!([{"address": "x"}])).contains("result.ips[0].address"));
    // A power cut left it: libcni doesn't sync its cache.
    assert!(cache::parse(b"", &key()).unwrap_err().starts_with("is no JSON object"));
}

#[test]
fn the_own_plugin_of_a_list_is_found() {
    let list = json!({"name": "net", "cniVersion": "1.0.0", "plugins": [{"type": "tuning"}, {"type": "keelson-cni", "bridge": "b"}]});
    let (text, executable) = own_config(list.to_string().as_bytes()).unwrap();
    let expected = json!({"type": "keelson-cni", "bridge": "b", "name": "net", "cniVersion": "1.0.0"});
    assert_eq!(serde_json::from_slice::<Value>(&text).unwrap(), expected);
    assert_eq!(executable.name, "keelson-cni");
    assert!(own_config(b"{\"plugins\": []}").is_err());
    assert!(own_config(b"[]").is_err());
}

#[test]
fn a_network_whose_addresses_are_another_plugins_is_refused() {
    let config = json!({"name": "net", "cniVersion": "1.1.0", "type": "keelson-cni", "ipam": {"type": "host-local"}});
    let error = import_host_local(&Migration::new(config.to_string().into_bytes())).unwrap_err();
    assert!(error.to_string().contains("come from the plugin \"host-local\""), "{error}");
}

proptest! {
    #[test]
    fn nothing_in_the_cache_panics(text in "\\PC{0,60}", field in "(kind|netns|cniArgs|capabilityArgs|result)", number in any::<i64>()) {
        let _ = cache::parse(text.as_bytes(), &key());
        for value in [json!(text), json!(number), json!([[text]]), json!([text, number]), json!({"portMappings": text, "ips": [{"address": text}]})] {
            let mut document = cached();
            document[field.as_str()] = value;
            let _ = cache::parse(document.to_string().as_bytes(), &key());
        }
    }
}
