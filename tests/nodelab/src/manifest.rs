//! Manifests as one would apply them to a cluster, and what nodelab makes of them.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::{
    api::{
        core::v1::{Container, PersistentVolumeClaim, Pod, ResourceRequirements},
        storage::v1::StorageClass,
    },
    apimachinery::pkg::api::resource,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{qos::Compute, quantity::Quantity};

/// All that a set of manifests asks for.
#[derive(Clone, Debug, Default)]
pub struct Manifests {
    pub(crate) classes: BTreeMap<String, ClassManifest>,
    pub(crate) claims: BTreeMap<String, ClaimManifest>,
    pub(crate) pods: Vec<PodManifest>,
}

/// A StorageClass.
#[derive(Clone, Debug)]
pub(crate) struct ClassManifest {
    pub(crate) provisioner: String,
    pub(crate) parameters: BTreeMap<String, String>,
    pub(crate) mount_options: Vec<String>,
}

/// A PersistentVolumeClaim.
#[derive(Clone, Debug)]
pub(crate) struct ClaimManifest {
    pub(crate) class: String,
    pub(crate) access_modes: Vec<String>,
    pub(crate) bytes: u64,
}

/// A Pod.
#[derive(Clone, Debug)]
pub struct PodManifest {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) grace_seconds: i64,
    /// Volume name to the claim's name.
    pub(crate) volumes: BTreeMap<String, String>,
    pub(crate) containers: Vec<ContainerManifest>,
}

/// A container of a Pod.
#[derive(Clone, Debug)]
pub(crate) struct ContainerManifest {
    pub(crate) name: String,
    pub(crate) image: String,
    pub(crate) command: Vec<String>,
    pub(crate) args: Vec<String>,
    pub(crate) working_dir: String,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) mounts: Vec<MountManifest>,
    pub(crate) compute: Compute,
    /// Extended resource to the number of devices.
    pub(crate) devices: BTreeMap<String, u64>,
}

/// A volume in a container.
#[derive(Clone, Debug)]
pub(crate) struct MountManifest {
    pub(crate) volume: String,
    pub(crate) path: String,
    pub(crate) read_only: bool,
}

impl Manifests {
    /// The Pods, in the order of the manifests.
    #[must_use]
    pub fn pods(&self) -> &[PodManifest] {
        &self.pods
    }

    /// Reads every `*.yaml` of a directory but `kustomization.yaml`, in the order of their names.
    ///
    /// # Errors
    ///
    /// As [`Manifests::add`], with the file's path.
    pub fn read(directory: &Path) -> Result<Self> {
        let mut files = Vec::new();
        for entry in fs::read_dir(directory).with_context(|| format!("failed to list {}", directory.display()))? {
            let path: PathBuf = entry?.path();
            if path.extension().is_some_and(|extension| extension == "yaml") && !path.ends_with("kustomization.yaml") {
                files.push(path);
            }
        }
        files.sort();
        let mut manifests = Self::default();
        for file in files {
            let text = fs::read_to_string(&file).with_context(|| format!("failed to read {}", file.display()))?;
            manifests.add(&text).with_context(|| format!("{} is refused", file.display()))?;
        }
        manifests.check_references()?;
        Ok(manifests)
    }

    /// Adds the documents of `text`.
    ///
    /// # Errors
    ///
    /// When it is no YAML, a kind is none of the three, a field is not Kubernetes' own or none that nodelab
    /// acts on. A field that is silently ignored would make a sample say what it doesn't do.
    pub fn add(&mut self, text: &str) -> Result<()> {
        let documents: Vec<Value> = serde_saphyr::from_multiple(text).context("this is no YAML")?;
        for (index, document) in documents.into_iter().enumerate() {
            if document.is_null() {
                continue;
            }
            let kind = document["kind"].as_str().unwrap_or_default().to_owned();
            let name = document["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            self.add_document(document).with_context(|| format!("document {}, {kind} {name:?}", index + 1))?;
        }
        Ok(())
    }

    fn add_document(&mut self, document: Value) -> Result<()> {
        let version = document["apiVersion"].as_str().unwrap_or_default();
        let kind = document["kind"].as_str().unwrap_or_default();
        match (version, kind) {
            ("v1", "Pod") => self.pods.push(pod(parse(document, POD_FIELDS)?)?),
            ("v1", "PersistentVolumeClaim") => {
                let (name, claim) = claim(parse(document, CLAIM_FIELDS)?)?;
                ensure!(self.claims.insert(name, claim).is_none(), "there are two of this name");
            }
            ("storage.k8s.io/v1", "StorageClass") => {
                let (name, class) = class(parse(document, CLASS_FIELDS)?)?;
                ensure!(self.classes.insert(name, class).is_none(), "there are two of this name");
            }
            _ => bail!(
                "nodelab takes Pod (v1), PersistentVolumeClaim (v1) and StorageClass (storage.k8s.io/v1), not {kind:?} of {version:?}"
            ),
        }
        Ok(())
    }

    /// Checks that every claim and class that is named exists.
    ///
    /// # Errors
    ///
    /// The first that doesn't.
    pub fn check_references(&self) -> Result<()> {
        for pod in &self.pods {
            for (volume, claim) in &pod.volumes {
                ensure!(
                    self.claims.contains_key(claim),
                    "Pod {}: volume {volume}: there is no claim {claim:?}",
                    pod.name
                );
            }
            for container in &pod.containers {
                for mount in &container.mounts {
                    ensure!(
                        pod.volumes.contains_key(&mount.volume),
                        "Pod {}: container {}: there is no volume {:?}",
                        pod.name,
                        container.name,
                        mount.volume
                    );
                }
            }
        }
        for (name, claim) in &self.claims {
            ensure!(
                self.classes.contains_key(&claim.class),
                "claim {name}: there is no StorageClass {:?}",
                claim.class
            );
        }
        Ok(())
    }
}

/// The fields that nodelab acts on or that change nothing here. A path ends in `.*` for a map.
const POD_FIELDS: &[&str] = &[
    "apiVersion",
    "kind",
    "metadata.name",
    "metadata.namespace",
    "metadata.labels.*",
    "metadata.annotations.*",
    "spec.terminationGracePeriodSeconds",
    "spec.automountServiceAccountToken",
    "spec.volumes[].name",
    "spec.volumes[].persistentVolumeClaim.claimName",
    "spec.containers[].name",
    "spec.containers[].image",
    "spec.containers[].imagePullPolicy",
    "spec.containers[].command[]",
    "spec.containers[].args[]",
    "spec.containers[].workingDir",
    "spec.containers[].env[].name",
    "spec.containers[].env[].value",
    "spec.containers[].ports[].name",
    "spec.containers[].ports[].containerPort",
    "spec.containers[].ports[].protocol",
    "spec.containers[].resources.requests.*",
    "spec.containers[].resources.limits.*",
    "spec.containers[].volumeMounts[].name",
    "spec.containers[].volumeMounts[].mountPath",
    "spec.containers[].volumeMounts[].readOnly",
];

const CLAIM_FIELDS: &[&str] = &[
    "apiVersion",
    "kind",
    "metadata.name",
    "metadata.namespace",
    "metadata.labels.*",
    "metadata.annotations.*",
    "spec.storageClassName",
    "spec.accessModes[]",
    "spec.resources.requests.storage",
];

const CLASS_FIELDS: &[&str] = &[
    "apiVersion",
    "kind",
    "metadata.name",
    "metadata.labels.*",
    "metadata.annotations.*",
    "provisioner",
    "parameters.*",
    "mountOptions[]",
    "reclaimPolicy",
    "volumeBindingMode",
    "allowVolumeExpansion",
];

/// Parses a document into its Kubernetes type, with nothing left over.
fn parse<T: DeserializeOwned + Serialize>(mut document: Value, acted_on: &[&str]) -> Result<T> {
    quantities_to_text(&mut document);
    let mut unknown = Vec::new();
    let object: T = serde_ignored::deserialize(&document, |path| {
        // serde_ignored writes an `Option` on the way as `?`.
        unknown.push(path.to_string().replace(".?", ""));
    })
    .context("a value has the wrong type")?;
    ensure!(unknown.is_empty(), "unknown field {}; Kubernetes has none of this name there", unknown.join(", "));
    let mut ignored = Vec::new();
    leaves(&document, "", &mut |path| {
        if !acted_on.iter().any(|known| is_match(known, path)) {
            ignored.push(path.to_owned());
        }
    });
    ensure!(ignored.is_empty(), "nodelab does not act on {}; leave it out", ignored.join(", "));
    Ok(object)
}

/// The API server takes `cpu: 1` for `cpu: "1"`; the generated types take text only.
fn quantities_to_text(document: &mut Value) {
    match document {
        Value::Object(fields) => {
            for (name, value) in fields {
                if matches!(name.as_str(), "requests" | "limits")
                    && let Value::Object(quantities) = value
                {
                    for quantity in quantities.values_mut().filter(|quantity| quantity.is_number()) {
                        *quantity = Value::String(quantity.to_string());
                    }
                } else {
                    quantities_to_text(value);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(quantities_to_text),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Calls `visit` with the path of each leaf: `spec.containers[].name`.
fn leaves(value: &Value, path: &str, visit: &mut impl FnMut(&str)) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                leaves(value, &path, visit);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| leaves(item, &format!("{path}[]"), visit)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => visit(path),
    }
}

fn is_match(known: &str, path: &str) -> bool {
    match known.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => path == known,
    }
}

fn class(class: StorageClass) -> Result<(String, ClassManifest)> {
    let name = class.metadata.name.context("metadata.name is missing")?;
    let manifest = ClassManifest {
        provisioner: class.provisioner,
        parameters: class.parameters.unwrap_or_default(),
        mount_options: class.mount_options.unwrap_or_default(),
    };
    Ok((name, manifest))
}

fn claim(claim: PersistentVolumeClaim) -> Result<(String, ClaimManifest)> {
    let name = claim.metadata.name.context("metadata.name is missing")?;
    let spec = claim.spec.context("spec is missing")?;
    let requests = spec.resources.and_then(|resources| resources.requests).unwrap_or_default();
    let storage = requests.get("storage").context("spec.resources.requests.storage is missing")?;
    let access_modes = spec.access_modes.unwrap_or_default();
    ensure!(!access_modes.is_empty(), "spec.accessModes is empty; name one, such as ReadWriteOnce");
    let manifest = ClaimManifest {
        class: spec.storage_class_name.context("spec.storageClassName is missing; nodelab has no default class")?,
        access_modes,
        bytes: storage.0.parse::<Quantity>().context("spec.resources.requests.storage")?.units()?,
    };
    Ok((name, manifest))
}

fn pod(pod: Pod) -> Result<PodManifest> {
    let spec = pod.spec.context("spec is missing")?;
    let mut volumes = BTreeMap::new();
    for volume in spec.volumes.unwrap_or_default() {
        let claim = volume.persistent_volume_claim.context("spec.volumes: nodelab knows persistentVolumeClaim only")?;
        volumes.insert(volume.name, claim.claim_name);
    }
    let containers: Vec<ContainerManifest> = spec.containers.into_iter().map(container).collect::<Result<_>>()?;
    ensure!(!containers.is_empty(), "spec.containers is empty");
    Ok(PodManifest {
        name: pod.metadata.name.context("metadata.name is missing")?,
        namespace: pod.metadata.namespace.unwrap_or_else(|| "default".to_owned()),
        labels: pod.metadata.labels.unwrap_or_default(),
        annotations: pod.metadata.annotations.unwrap_or_default(),
        grace_seconds: spec.termination_grace_period_seconds.unwrap_or(30),
        volumes,
        containers,
    })
}

fn container(container: Container) -> Result<ContainerManifest> {
    let (compute, devices) = resources(container.resources.unwrap_or_default())
        .with_context(|| format!("spec.containers: {}: resources", container.name))?;
    Ok(ContainerManifest {
        image: container.image.with_context(|| format!("spec.containers: {}: image is missing", container.name))?,
        name: container.name,
        command: container.command.unwrap_or_default(),
        args: container.args.unwrap_or_default(),
        working_dir: container.working_dir.unwrap_or_default(),
        env: container
            .env
            .unwrap_or_default()
            .into_iter()
            .map(|variable| (variable.name, variable.value.unwrap_or_default()))
            .collect(),
        mounts: container
            .volume_mounts
            .unwrap_or_default()
            .into_iter()
            .map(|mount| MountManifest {
                volume: mount.name,
                path: mount.mount_path,
                read_only: mount.read_only.unwrap_or(false),
            })
            .collect(),
        compute,
        devices,
    })
}

fn resources(resources: ResourceRequirements) -> Result<(Compute, BTreeMap<String, u64>)> {
    let mut compute = Compute::default();
    let mut devices = BTreeMap::new();
    let requests = resources.requests.unwrap_or_default();
    let limits = resources.limits.unwrap_or_default();
    let parse = |value: &resource::Quantity| value.0.parse::<Quantity>();
    for (name, value) in &requests {
        match name.as_str() {
            "cpu" => compute.cpu_request = Some(parse(value)?.thousandths()?),
            "memory" => compute.memory_request = Some(parse(value)?.units()?),
            // As the API server has it: an extended resource isn't overcommitted.
            name => ensure!(limits.get(name) == Some(value), "requests.{name} must equal limits.{name}"),
        }
    }
    for (name, value) in &limits {
        match name.as_str() {
            "cpu" => compute.cpu_limit = Some(parse(value)?.thousandths()?),
            "memory" => compute.memory_limit = Some(parse(value)?.units()?),
            name => {
                let is_extended = name.contains('/') && !name.contains("kubernetes.io/");
                ensure!(is_extended, "{name} is neither cpu, memory nor an extended resource such as example.com/fpga");
                let count = parse(value)?.units()?;
                ensure!(
                    parse(value)? == count.to_string().parse()?,
                    "limits.{name}: {} is not a whole number",
                    value.0
                );
                devices.insert(name.to_owned(), count);
            }
        }
    }
    Ok((compute.defaulted(), devices))
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: app}
spec:
  containers:
    - name: main
      image: keelson.local/busybox:1
      resources: {limits: {cpu: 1, memory: 64Mi, example.com/fpga: 2}}
";

    #[track_caller]
    fn refused(text: &str) -> String {
        format!("{:#}", Manifests::default().add(text).unwrap_err())
    }

    #[test]
    fn a_pod_is_read_with_the_defaults_of_the_api_server() {
        let mut manifests = Manifests::default();
        manifests.add(POD).unwrap();
        let container = &manifests.pods[0].containers[0];
        assert_eq!(container.compute.cpu_request, Some(1000));
        assert_eq!(container.compute.memory_request, Some(64 << 20));
        assert_eq!(container.devices["example.com/fpga"], 2);
        assert_eq!(manifests.pods[0].namespace, "default");
    }

    #[test]
    fn a_field_that_kubernetes_does_not_have_is_named_with_its_path() {
        let message = refused(&POD.replace("image:", "imagePulPolicy: Never\n      image:"));
        assert_eq!(
            message,
            "document 1, Pod \"app\": unknown field spec.containers.0.imagePulPolicy; Kubernetes has none of this name there"
        );
    }

    #[test]
    fn a_field_that_nodelab_does_not_act_on_is_refused_too() {
        let message = refused(&POD.replace("spec:", "spec:\n  hostNetwork: true"));
        assert_eq!(message, "document 1, Pod \"app\": nodelab does not act on spec.hostNetwork; leave it out");
    }

    #[test]
    fn other_kinds_and_wrong_values_are_refused() {
        assert!(refused("{apiVersion: apps/v1, kind: Deployment}").contains("not \"Deployment\" of \"apps/v1\""));
        assert!(refused(&POD.replace("64Mi", "64mi")).contains("\"64mi\" is not a quantity"));
        assert!(refused(&POD.replace("fpga: 2", "fpga: 500m")).contains("500m is not a whole number"));
        assert!(refused(&POD.replace("name: main", "name: [main]")).contains("wrong type"));
    }

    #[test]
    fn a_claim_or_class_that_is_not_there_is_named() {
        let mut manifests = Manifests::default();
        manifests
            .add(
                "{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: data}, spec: {storageClassName: fast, \
                 accessModes: [ReadWriteOnce], resources: {requests: {storage: 64Mi}}}}",
            )
            .unwrap();
        assert_eq!(manifests.claims["data"].bytes, 64 << 20);
        let message = manifests.check_references().unwrap_err().to_string();
        assert_eq!(message, "claim data: there is no StorageClass \"fast\"");
    }
}
