//! Every YAML document below `daemonset/` is what its kind says, without a key that the API server would drop.
//!
//! The k8s-openapi types accept unknown keys, so `serde_ignored` watches for them.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use k8s_openapi::{
    api::{
        apps::v1::{DaemonSet, Deployment},
        core::v1::{ConfigMap, Container, Namespace, PersistentVolumeClaim, Pod, ServiceAccount, VolumeMount},
        rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding},
        storage::{
            v1::{CSIDriver, StorageClass},
            v1beta1::VolumeAttributesClass,
        },
    },
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};
use keelson::{
    config::{Environment, NodeConfig},
    plugins::{self, PluginKind},
};
use keelson_host::HostRoot;
use keelson_testkit::workspace_root;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

/// The part of a kustomization that ours use.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kustomization {
    api_version: String,
    kind: String,
    namespace: Option<String>,
    #[serde(default)]
    resources: Vec<PathBuf>,
    #[serde(default)]
    components: Vec<PathBuf>,
    #[serde(default)]
    patches: Vec<Patch>,
}

/// The part of the snapshot CRDs that ours use (snapshot.storage.k8s.io/v1).
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(dead_code, reason = "only read to see what is there")]
struct VolumeSnapshotClass {
    api_version: String,
    kind: String,
    metadata: ObjectMeta,
    driver: String,
    deletion_policy: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(dead_code, reason = "only read to see what is there")]
struct VolumeSnapshot {
    api_version: String,
    kind: String,
    metadata: ObjectMeta,
    spec: VolumeSnapshotSpec,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(dead_code, reason = "only read to see what is there")]
struct VolumeSnapshotSpec {
    volume_snapshot_class_name: String,
    source: VolumeSnapshotSource,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(dead_code, reason = "only read to see what is there")]
struct VolumeSnapshotSource {
    persistent_volume_claim_name: String,
}

#[derive(Debug, Deserialize)]
struct Patch {
    path: PathBuf,
}

/// Reads one document as a `T` and gives the paths of the keys that `T` doesn't have.
fn unknown_keys<T: DeserializeOwned>(document: &Value) -> Result<(T, Vec<String>), serde_json::Error> {
    let mut unknown = Vec::new();
    let value = serde_ignored::deserialize(document, |path| unknown.push(path.to_string()))?;
    // Kustomize's own word in a patch, which it takes out.
    unknown.retain(|path| !path.ends_with(".$patch"));
    Ok((value, unknown))
}

/// What is wrong with a document, in words; `None` if nothing is.
fn fault(document: &Value) -> Option<String> {
    fn check<T: DeserializeOwned>(document: &Value) -> Option<String> {
        match unknown_keys::<T>(document) {
            Ok((_, unknown)) if unknown.is_empty() => None,
            Ok((_, unknown)) => Some(format!("unknown keys: {}", unknown.join(", "))),
            Err(error) => Some(error.to_string()),
        }
    }
    let word = |key: &str| document[key].as_str().unwrap_or_default();
    // k8s-openapi checks that apiVersion and kind are the type's own.
    match word("kind") {
        "ClusterRole" => check::<ClusterRole>(document),
        "ClusterRoleBinding" => check::<ClusterRoleBinding>(document),
        "ConfigMap" => check::<ConfigMap>(document),
        "CSIDriver" => check::<CSIDriver>(document),
        "DaemonSet" => check::<DaemonSet>(document),
        "Deployment" => check::<Deployment>(document),
        "Component" | "Kustomization" => check::<Kustomization>(document),
        "Namespace" => check::<Namespace>(document),
        "PersistentVolumeClaim" => check::<PersistentVolumeClaim>(document),
        "Pod" => check::<Pod>(document),
        "Role" => check::<Role>(document),
        "RoleBinding" => check::<RoleBinding>(document),
        "ServiceAccount" => check::<ServiceAccount>(document),
        "StorageClass" => check::<StorageClass>(document),
        // The same as v1beta1, which the bindings of this Kubernetes' version have.
        "VolumeAttributesClass" => {
            let mut document = document.clone();
            let version = std::mem::replace(&mut document["apiVersion"], "storage.k8s.io/v1beta1".into());
            check::<VolumeAttributesClass>(&document)
                .or_else(|| (version != "storage.k8s.io/v1").then(|| format!("apiVersion is {version}")))
        }
        "VolumeSnapshot" => check::<VolumeSnapshot>(document),
        "VolumeSnapshotClass" => check::<VolumeSnapshotClass>(document),
        other => Some(format!("kind {other:?} is not known to this test; add its type")),
    }
}

fn directory() -> PathBuf {
    workspace_root().join("daemonset")
}

/// Every YAML file below the directory with its documents.
fn documents() -> Vec<(PathBuf, Value)> {
    fn walk(directory: &Path, found: &mut Vec<(PathBuf, Value)>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") {
                let text = fs::read_to_string(&path).unwrap();
                let documents: Vec<Value> =
                    serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                assert!(!documents.is_empty(), "{} is empty", path.display());
                found.extend(documents.into_iter().map(|document| (path.clone(), document)));
            }
        }
    }
    let mut found = Vec::new();
    walk(&directory(), &mut found);
    found
}

/// The only document of its kind in a file of the base.
fn base<T: DeserializeOwned>(file: &str, kind: &str) -> T {
    let path = directory().join("base").join(file);
    let (_, document) =
        documents().into_iter().find(|(found, document)| *found == path && document["kind"] == kind).unwrap();
    serde_json::from_value(document).unwrap()
}

fn containers() -> Vec<Container> {
    base::<DaemonSet>("daemonset.yaml", "DaemonSet").spec.unwrap().template.spec.unwrap().containers
}

#[test]
fn every_document_is_what_its_kind_says() {
    let documents = documents();
    let kinds: BTreeSet<&str> = documents.iter().filter_map(|(_, document)| document["kind"].as_str()).collect();
    for kind in ["ClusterRole", "ConfigMap", "CSIDriver", "DaemonSet", "Kustomization", "Pod", "StorageClass"] {
        assert!(kinds.contains(kind), "there is no {kind} below daemonset/");
    }
    for (path, document) in documents {
        if let Some(fault) = fault(&document) {
            panic!("{}: {}: {fault}", path.display(), document["kind"]);
        }
    }
}

#[test]
fn a_wrong_document_is_noticed() {
    let parse = |text: &str| serde_saphyr::from_str::<Value>(text).unwrap();
    let pod = "{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{name: a, SPOT}]}}";
    assert_eq!(fault(&parse(&pod.replace("SPOT", "image: a"))), None);
    let mistyped = fault(&parse(&pod.replace("SPOT", "imagePulPolicy: Always"))).unwrap();
    assert!(mistyped.contains("imagePulPolicy"), "{mistyped}");
    assert!(fault(&parse(&pod.replace("SPOT", "image: [a]"))).is_some());
    assert!(fault(&parse(&pod.replace("v1", "v2").replace("SPOT", "image: a"))).is_some());
    assert!(fault(&parse("{apiVersion: v1, kind: Sercet}")).unwrap().contains("Sercet"));
    assert!(
        fault(&parse("{apiVersion: kustomize.config.k8s.io/v1beta1, kind: Kustomization, resuorces: []}")).is_some()
    );
}

#[test]
fn kustomizations_name_files_that_exist_and_forget_none() {
    for (path, document) in documents() {
        let version = match document["kind"].as_str() {
            Some("Kustomization") => "kustomize.config.k8s.io/v1beta1",
            Some("Component") => "kustomize.config.k8s.io/v1alpha1",
            _ => continue,
        };
        let kustomization: Kustomization = serde_json::from_value(document).unwrap();
        assert_eq!(kustomization.api_version, version, "{}: {}", path.display(), kustomization.kind);
        assert!(kustomization.namespace.is_none_or(|namespace| namespace == "keelson-system"));
        let folder = path.parent().unwrap();
        let patches = kustomization.patches.into_iter().map(|patch| patch.path);
        let named = kustomization.resources.into_iter().chain(kustomization.components).chain(patches);
        let named: Vec<PathBuf> = named.map(|name| folder.join(name)).collect();
        for name in &named {
            let file = if name.is_dir() { name.join("kustomization.yaml") } else { name.clone() };
            assert!(file.is_file(), "{} names {}, which is missing", path.display(), name.display());
        }
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap().path();
            let is_manifest = entry.extension().is_some_and(|extension| extension == "yaml") && entry != path;
            assert!(!is_manifest || named.contains(&entry), "{} forgets {}", path.display(), entry.display());
        }
    }
}

#[test]
fn every_config_map_holds_a_config_that_keelson_takes() {
    let mut seen = 0;
    for (path, document) in documents() {
        if document["kind"] != "ConfigMap" {
            continue;
        }
        seen += 1;
        let text = document["data"]["config.yaml"].as_str().unwrap();
        // The node's own directories are not this machine's: nothing is there to be wrong.
        let empty = tempfile::tempdir().unwrap();
        let environment = Environment { node_name: Some("node-a".to_owned()), csi_endpoint: None };
        let config = NodeConfig::parse(&path, text, HostRoot::at(empty.path()), environment).unwrap();
        let without_network = path.starts_with(directory().join("overlays/no-network"));
        let expected = &PluginKind::ALL[usize::from(without_network)..];
        assert_eq!(config.enabled(), expected, "{}", path.display());
        let effective = config.effective().unwrap_or_else(|problems| panic!("{}: {problems}", path.display()));
        assert_eq!(effective["storage.driverName"].value, "csi.keelson.dev");
        for kind in config.enabled().into_iter().filter(|kind| *kind != PluginKind::Storage) {
            assert_eq!(plugins::check(kind, &config), Ok(()), "{}", path.display());
        }
    }
    assert_eq!(seen, 3);
}

#[test]
fn the_overlay_without_network_takes_away_the_container_and_what_only_it_mounts() {
    let path = directory().join("overlays/no-network/daemonset.yaml");
    let (_, patch) = documents().into_iter().find(|(found, _)| *found == path).unwrap();
    let deleted = |list: &str| -> BTreeSet<String> {
        let entries = patch["spec"]["template"]["spec"][list].as_array().unwrap();
        assert!(entries.iter().all(|entry| entry["$patch"] == "delete"), "{list}");
        entries.iter().map(|entry| entry["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(deleted("containers"), BTreeSet::from(["network".to_owned()]));
    let (network, others): (Vec<_>, Vec<_>) =
        containers().into_iter().partition(|container| container.name == "network");
    let mounted = |containers: Vec<Container>| -> BTreeSet<String> {
        containers.into_iter().flat_map(|container| container.volume_mounts.unwrap()).map(|mount| mount.name).collect()
    };
    assert_eq!(deleted("volumes"), &mounted(network) - &mounted(others));
}

#[test]
fn uninstalling_mounts_all_that_it_removes_and_may_change_the_network() {
    let path = directory().join("uninstall/daemonset.yaml");
    let (_, document) = documents().into_iter().find(|(found, _)| *found == path).unwrap();
    let spec = serde_json::from_value::<DaemonSet>(document).unwrap().spec.unwrap().template.spec.unwrap();
    assert_eq!(spec.host_network, Some(true));
    let container = &spec.init_containers.as_ref().unwrap()[0];
    assert_eq!(container.args.as_deref().unwrap(), ["uninstall", "--config", "/etc/keelson/config.yaml"]);
    let capabilities = container.security_context.as_ref().unwrap().capabilities.as_ref().unwrap();
    assert_eq!(capabilities.add.as_deref().unwrap(), ["NET_ADMIN"]);
    let map: ConfigMap = base("configmap.yaml", "ConfigMap");
    let environment = Environment { node_name: Some("node-a".to_owned()), csi_endpoint: None };
    let text = &map.data.unwrap()["config.yaml"];
    let config = NodeConfig::parse(Path::new("configmap.yaml"), text, HostRoot::system(), environment).unwrap();
    let effective = config.effective().unwrap();
    for key in ["network.confDir", "devices.cdiDir", "stateDir"] {
        let needed = effective[key].value.as_str().unwrap();
        let mount = container.volume_mounts.iter().flatten().find(|mount| mount.mount_path == needed);
        let mount = mount.unwrap_or_else(|| panic!("{needed} is not mounted"));
        assert_ne!(mount.read_only, Some(true), "{needed}");
        let volume = spec.volumes.iter().flatten().find(|volume| volume.name == mount.name).unwrap();
        assert_eq!(volume.host_path.as_ref().unwrap().path, needed);
    }
}

#[test]
fn the_daemonset_has_a_container_per_plugin_with_its_ports_and_paths() {
    let map: ConfigMap = base("configmap.yaml", "ConfigMap");
    let text = &map.data.unwrap()["config.yaml"];
    let environment = Environment { node_name: Some("node-a".to_owned()), csi_endpoint: None };
    let config = NodeConfig::parse(Path::new("configmap.yaml"), text, HostRoot::system(), environment).unwrap();
    let effective = config.effective().unwrap();
    let containers = containers();
    for kind in PluginKind::ALL {
        let container = containers.iter().find(|container| container.name == kind.name()).unwrap();
        let arguments = container.args.as_deref().unwrap();
        assert_eq!(arguments, ["run", "--only", kind.name(), "--config", "/etc/keelson/config.yaml"]);
        assert!(container.env.as_ref().unwrap().iter().any(|variable| variable.name == "NODE_NAME"));
        let probe = container.readiness_probe.as_ref().unwrap().http_get.as_ref().unwrap();
        assert_eq!(probe.path.as_deref(), Some("/readyz"));
        assert_eq!(probe.host.as_deref(), Some(config.address().ip().to_string().as_str()));
        assert_eq!(probe.port, IntOrString::Int(config.plugin_address(kind).port().into()));
        let mounts: Vec<&str> =
            container.volume_mounts.as_ref().unwrap().iter().map(|mount| mount.mount_path.as_str()).collect();
        let prefix = format!("{}.", kind.name());
        for (path, found) in effective.iter().filter(|(path, _)| path.starts_with(&prefix)) {
            let Some(needed) = found.value.as_str().map(|text| text.trim_start_matches("unix://")) else { continue };
            if needed.starts_with('/') {
                let mounted = mounts.iter().any(|mount| Path::new(needed).starts_with(mount));
                assert!(mounted, "{path}: {needed} is not mounted in the container {kind}");
            }
        }
    }
}

/// The mounts of a container that cover `path`, the deepest last, with their volumes' directories on the host.
fn covering(container: &Container, path: &Path) -> Vec<(VolumeMount, Option<String>)> {
    let volumes =
        base::<DaemonSet>("daemonset.yaml", "DaemonSet").spec.unwrap().template.spec.unwrap().volumes.unwrap();
    let mut found: Vec<(VolumeMount, Option<String>)> = container
        .volume_mounts
        .iter()
        .flatten()
        .filter(|mount| path.starts_with(&mount.mount_path))
        .map(|mount| {
            let volume = volumes.iter().find(|volume| volume.name == mount.name).unwrap();
            (mount.clone(), volume.host_path.as_ref().map(|host| host.path.clone()))
        })
        .collect();
    found.sort_by_key(|(mount, _)| mount.mount_path.len());
    found
}

#[test]
fn what_a_plugin_writes_is_mounted_at_the_hosts_own_path() {
    let map: ConfigMap = base("configmap.yaml", "ConfigMap");
    let environment = Environment { node_name: Some("node-a".to_owned()), csi_endpoint: None };
    let text = &map.data.unwrap()["config.yaml"];
    let config = NodeConfig::parse(Path::new("configmap.yaml"), text, HostRoot::system(), environment).unwrap();
    let effective = config.effective().unwrap();
    let value = |key: &str| effective[key].value.as_str().unwrap().trim_start_matches("unix://").to_owned();
    let state = value("stateDir");
    let pools = effective.keys().filter(|key| key.starts_with("storage.pools[") && key.ends_with("].path"));
    let mut written: Vec<(&str, String, Option<&str>)> = pools
        // A pool's disk may be mounted while the plugin runs.
        .map(|key| ("storage", value(key), Some("HostToContainer")))
        .collect();
    assert!(!written.is_empty(), "the config has no pool");
    written.extend([
        ("network", value("network.confDir"), None),
        ("network", value("network.binDir"), None),
        ("storage", value("storage.endpoint"), Some("Bidirectional")),
        ("storage", value("storage.registration.directory"), Some("Bidirectional")),
        // Where the kubelet has volumes staged and published; what is mounted there has to reach the host.
        ("storage", "/var/lib/kubelet/plugins/kubernetes.io/csi".to_owned(), Some("Bidirectional")),
        ("storage", "/var/lib/kubelet/pods".to_owned(), Some("Bidirectional")),
        ("storage", format!("{state}/storage"), Some("HostToContainer")),
        // Loop devices are made through loop-control and appear while the plugin runs.
        ("storage", "/dev/loop-control".to_owned(), Some("HostToContainer")),
        ("devices", value("devices.kubeletDir"), None),
        ("devices", value("devices.cdiDir"), None),
        ("devices", format!("{state}/devices"), None),
        ("pinning", format!("{state}/pinning"), None),
    ]);
    let containers = containers();
    for (plugin, path, propagation) in written {
        let container = containers.iter().find(|container| container.name == plugin).unwrap();
        let covering = covering(container, Path::new(&path));
        let (mount, host) = covering.last().unwrap_or_else(|| panic!("{path} is not mounted in {plugin}"));
        assert_eq!(host.as_deref(), Some(mount.mount_path.as_str()), "{path} is another one on the host");
        assert_ne!(mount.read_only, Some(true), "{plugin} can't write {path}");
        assert_eq!(mount.mount_propagation.as_deref(), propagation, "{path} in {plugin}");
        assert_eq!((&mount.sub_path, &mount.sub_path_expr), (&None, &None), "{path} in {plugin}");
    }
}

#[test]
fn the_image_has_what_the_storage_plugin_runs_and_names_no_host() {
    let recipe = fs::read_to_string(directory().join("Containerfile")).unwrap();
    let (_, image) = recipe.rsplit_once("\nFROM ").unwrap();
    let (_, packages) = image.split_once("install --yes --no-install-recommends ").unwrap();
    let packages: Vec<_> = packages.lines().next().unwrap().split_whitespace().collect();
    // They bring mkfs.btrfs, mkfs.ext4 and mkfs.xfs.
    for package in ["btrfs-progs", "e2fsprogs", "xfsprogs"] {
        assert!(packages.contains(&package), "{packages:?}");
    }
    assert!(!recipe.contains("://"), "{recipe}");
}

#[test]
fn no_container_has_a_privilege_that_it_was_not_given_here() {
    for container in containers() {
        let context = container.security_context.unwrap();
        assert_eq!(context.read_only_root_filesystem, Some(true), "{}", container.name);
        if container.name == "storage" {
            assert_eq!(context.privileged, Some(true));
            continue;
        }
        assert_eq!(context.privileged, None, "{}", container.name);
        assert_eq!(context.allow_privilege_escalation, Some(false), "{}", container.name);
        let capabilities = context.capabilities.unwrap();
        // It brings back nftables rules.
        let added = (container.name == "network").then(|| vec!["NET_ADMIN".to_owned()]);
        assert_eq!((capabilities.drop, capabilities.add), (Some(vec!["ALL".to_owned()]), added), "{}", container.name);
        for mount in container.volume_mounts.unwrap() {
            assert_ne!(mount.mount_propagation.as_deref(), Some("Bidirectional"), "{}", container.name);
        }
    }
}

#[test]
fn mounts_and_volumes_match() {
    let spec = base::<DaemonSet>("daemonset.yaml", "DaemonSet").spec.unwrap().template.spec.unwrap();
    let volumes: BTreeSet<String> = spec.volumes.unwrap().into_iter().map(|volume| volume.name).collect();
    let mounts = spec.containers.into_iter().flat_map(|container| container.volume_mounts.unwrap());
    assert_eq!(volumes, mounts.map(|mount| mount.name).collect());
}

#[test]
fn only_the_provisioner_has_a_token() {
    let account: ServiceAccount = base("rbac.yaml", "ServiceAccount");
    assert_eq!(account.automount_service_account_token, Some(false));
    let spec = base::<DaemonSet>("daemonset.yaml", "DaemonSet").spec.unwrap().template.spec.unwrap();
    assert_eq!(spec.automount_service_account_token, Some(false));
    let with_token = spec.containers.iter().filter(|container| {
        container.volume_mounts.iter().flatten().any(|mount| mount.mount_path.contains("serviceaccount"))
    });
    assert_eq!(with_token.map(|container| container.name.as_str()).collect::<Vec<_>>(), ["csi-provisioner"]);
}

/// The part of a Pod's spec that says what is mounted and who the Pod is.
fn pod_of(path: &str, kind: &str) -> k8s_openapi::api::core::v1::PodSpec {
    let path = directory().join(path);
    let (_, document) =
        documents().into_iter().find(|(found, document)| *found == path && document["kind"] == kind).unwrap();
    serde_json::from_value(document["spec"]["template"]["spec"].clone()).unwrap()
}

#[test]
fn the_resizer_runs_beside_a_driver_and_finds_its_socket() {
    let set = base::<DaemonSet>("daemonset.yaml", "DaemonSet");
    let labels = set.spec.unwrap().template.metadata.unwrap().labels.unwrap();
    let spec = pod_of("base/resizer.yaml", "Deployment");
    let affinity = spec.affinity.unwrap().pod_affinity.unwrap();
    let term = &affinity.required_during_scheduling_ignored_during_execution.unwrap()[0];
    let wanted = term.label_selector.as_ref().unwrap().match_labels.as_ref().unwrap();
    assert!(wanted.iter().all(|(name, value)| labels.get(name) == Some(value)), "{wanted:?}");
    assert_eq!(term.topology_key, "kubernetes.io/hostname");
    let container = &spec.containers[0];
    assert!(container.args.iter().flatten().any(|argument| argument == "--csi-address=/csi/csi.sock"));
    let mount = container.volume_mounts.iter().flatten().find(|mount| mount.mount_path == "/csi").unwrap();
    let volume = spec.volumes.iter().flatten().find(|volume| volume.name == mount.name).unwrap();
    let map: ConfigMap = base("configmap.yaml", "ConfigMap");
    let socket = format!("unix://{}/csi.sock", volume.host_path.as_ref().unwrap().path);
    assert!(map.data.unwrap()["config.yaml"].contains(&format!("endpoint: {socket}\n")), "{socket}");
    let context = container.security_context.as_ref().unwrap();
    assert_eq!((context.privileged, context.read_only_root_filesystem), (None, Some(true)));
    assert_eq!(context.capabilities.as_ref().unwrap().drop.as_deref(), Some(&["ALL".to_owned()][..]));
}

#[test]
fn the_snapshotter_mounts_only_what_the_base_has_and_serves_its_own_node() {
    let volumes =
        base::<DaemonSet>("daemonset.yaml", "DaemonSet").spec.unwrap().template.spec.unwrap().volumes.unwrap();
    let spec = pod_of("components/snapshots/daemonset.yaml", "DaemonSet");
    let container = &spec.containers[0];
    for mount in container.volume_mounts.iter().flatten() {
        assert!(volumes.iter().any(|volume| volume.name == mount.name), "{}", mount.name);
    }
    assert!(container.args.iter().flatten().any(|argument| argument == "--node-deployment=true"));
    assert!(container.env.iter().flatten().any(|variable| variable.name == "NODE_NAME"));
    let context = container.security_context.as_ref().unwrap();
    assert_eq!((context.privileged, context.allow_privilege_escalation), (None, Some(false)));
}
