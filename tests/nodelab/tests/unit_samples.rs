//! The samples are ordinary manifests that nodelab takes as they are.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use keelson_nodelab::Manifests;
use keelson_testkit::workspace_root;

#[test]
fn the_samples_are_taken_as_they_are() {
    let manifests = Manifests::read(&workspace_root().join("daemonset/samples")).unwrap();
    assert_eq!(manifests.pods().len(), 2);
}

#[test]
fn a_file_with_an_unknown_field_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let text = "{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [], dnsPolice: Default}}";
    std::fs::write(directory.path().join("pod.yaml"), text).unwrap();
    let message = format!("{:#}", Manifests::read(directory.path()).unwrap_err());
    assert!(message.contains("pod.yaml is refused: document 1, Pod \"a\": unknown field spec.dnsPolice"), "{message}");
}
