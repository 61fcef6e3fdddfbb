//! Property: nothing marked as secret is ever printed with `Debug`, which is what log lines use.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use keelson_proto::csi::v1::{CreateVolumeRequest, NodePublishVolumeRequest, VolumeCapability, volume_capability};

fn secrets() -> BTreeMap<String, String> {
    BTreeMap::from([("passphrase".to_owned(), "hunter2".to_owned())])
}

#[test]
fn debug_prints_every_field_but_the_secret_ones() {
    let request = CreateVolumeRequest { name: "pvc-1".to_owned(), secrets: secrets(), ..Default::default() };
    let printed = format!("{request:?}");
    assert!(printed.contains(r#"name: "pvc-1""#) && printed.contains(r#"secrets: "[redacted]""#), "{printed}");
    assert!(!printed.contains("hunter2") && !printed.contains("passphrase"), "{printed}");
}

#[test]
fn a_request_around_the_message_hides_them_too() {
    let access = volume_capability::AccessType::Mount(volume_capability::MountVolume {
        fs_type: "ext4".to_owned(),
        ..Default::default()
    });
    let message = NodePublishVolumeRequest {
        volume_capability: Some(VolumeCapability { access_type: Some(access), ..Default::default() }),
        secrets: secrets(),
        ..Default::default()
    };
    let printed = format!("{:#?}", tonic::Request::new(message));
    assert!(printed.contains("ext4"), "{printed}");
    assert!(!printed.contains("hunter2"), "{printed}");
}
