//! Secrets of requests reach neither the log nor an answer.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex},
};

use common::{MIB, Place, Running, expect_code, mounted, mounted_with, publication, request};
use keelson_proto::csi::v1::{DeleteVolumeRequest, NodeStageVolumeRequest, volume_capability::access_mode::Mode};
use tonic::Code;
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

const SECRET: &str = "geheim-4711";

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// The only test of this file: the log of a process is one.
#[tokio::test(flavor = "multi_thread")]
async fn secrets_reach_no_log_and_no_answer() {
    needs_a_kernel!();
    let log = Log::default();
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new("trace,h2=off,hyper=off,tower=off"))
        .with_writer(log.clone())
        .init();
    let place = Place::new();
    let mut driver = Running::start(&place, &place.section("image")).await;
    let secrets = BTreeMap::from([("password".to_owned(), SECRET.to_owned())]);
    let staging = place.text("staging");

    let mut wish = request("pvc-1", 16 * MIB, mounted());
    wish.secrets.clone_from(&secrets);
    let id = driver.create(wish.clone()).await.unwrap().volume_id;
    let mut messages = Vec::new();
    wish.secrets.insert("more".to_owned(), format!("{SECRET}{}", "x".repeat(4096)));
    messages.push(expect_code(driver.create(wish).await, Code::InvalidArgument));
    let stage = |capability| NodeStageVolumeRequest {
        volume_id: id.clone(),
        staging_target_path: staging.clone(),
        volume_capability: Some(capability),
        secrets: secrets.clone(),
        volume_context: BTreeMap::from([("csi.storage.k8s.io/serviceAccount.tokens".to_owned(), SECRET.to_owned())]),
        ..NodeStageVolumeRequest::default()
    };
    // "mount_flags MAY contain sensitive information": the value may; the option's name is what the answer must tell.
    let flag = format!("mistyped={SECRET}");
    let flags = mounted_with(&[&flag], Mode::SingleNodeWriter);
    messages.push(expect_code(driver.node.node_stage_volume(stage(flags)).await, Code::InvalidArgument));
    driver.node.node_stage_volume(stage(mounted())).await.unwrap();
    let mut publish = publication(&id, &staging, &place.text("pods/mount"), mounted());
    publish.secrets.clone_from(&secrets);
    publish.volume_context = BTreeMap::from([("token".to_owned(), SECRET.to_owned())]);
    driver.publish(publish).await.unwrap();
    driver.unpublish(&id, &place.text("pods/mount")).await.unwrap();
    driver.unstage(&id, &staging).await.unwrap();
    driver.controller.delete_volume(DeleteVolumeRequest { volume_id: id.clone(), secrets }).await.unwrap();
    place.expect_clean();
    driver.stop().await;

    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    for word in ["volume created", "volume published", "call failed", "volume deleted"] {
        assert!(log.contains(word), "the log is being read: {log}");
    }
    assert!(!log.contains(SECRET), "{log}");
    assert!(messages[1].message().contains("mistyped"), "{}", messages[1]);
    for status in messages {
        assert!(!status.message().contains(SECRET), "{status}");
    }
}
