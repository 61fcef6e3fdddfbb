//! CPUs of running containers, as the kernel tells them, while others come and go on a real containerd.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;

use common::{lacks, programs};
use keelson_host::{CpuSet, HostRoot, Topology};
use keelson_nodelab::{Lab, Manifests, RunningPod};
use keelson_testkit::skip_unless;

/// A Pod with one container; `limits` make it Guaranteed, none BestEffort.
fn pod(name: &str, annotations: &str, limits: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, annotations: {{{annotations}}}}}, spec: \
         {{terminationGracePeriodSeconds: 0, containers: [{{name: main, image: 'keelson.local/busybox:1', \
         command: [sleep, infinity], resources: {{limits: {{{limits}}}}}}}]}}}}"
    )
}

/// The CPUs that a process in the Pod's container may run on.
async fn cpus(lab: &Lab, pod: &RunningPod) -> CpuSet {
    let output = lab.exec_ok(pod, &["grep", "Cpus_allowed_list", "/proc/self/status"]).await.unwrap();
    output.text().split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Running containers make room and get it back, through whatever restarts, and a Pod that wants no CPU of its own
/// gets none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_shares_makes_room_and_gets_it_back() {
    skip_unless!(lacks().is_empty(), lacks());
    let online = Topology::read(&HostRoot::system()).unwrap().online();
    let mut lab = Lab::start(&programs(), &|line| eprintln!("{line}")).await.unwrap();
    let mut manifests = Manifests::default();
    manifests.add(&pod("peer", "", "")).unwrap();
    manifests.add(&pod("modest", "pinning.keelson.dev/exclusive: 'main=false'", "cpu: 1, memory: 32Mi")).unwrap();
    manifests.add(&pod("app", "", "cpu: 1, memory: 32Mi")).unwrap();
    let claims = BTreeMap::new();
    let [peer, modest, app] = manifests.pods() else { unreachable!("three were added") };

    let peer = lab.create_pod(peer, &claims).await.unwrap();
    let modest = lab.create_pod(modest, &claims).await.unwrap();
    assert_eq!((cpus(&lab, &peer).await, cpus(&lab, &modest).await), (online.clone(), online.clone()));

    // The updates of the two ride on the reply that creates the third.
    let running = lab.create_pod(app, &claims).await.unwrap();
    let own = cpus(&lab, &running).await;
    assert_eq!(own.len(), 1);
    let rest = online.difference(&own);
    for after in ["the exclusive Pod came", "the plugin was killed", "containerd was restarted"] {
        match after {
            "the plugin was killed" => drop(lab.kill_plugin("pinning").await.unwrap()),
            "containerd was restarted" => lab.restart_containerd().await.unwrap(),
            _ => {}
        }
        assert_eq!(cpus(&lab, &running).await, own, "after {after}");
        assert_eq!((cpus(&lab, &peer).await, cpus(&lab, &modest).await), (rest.clone(), rest.clone()), "after {after}");
    }

    lab.delete_pod(&running).await.unwrap();
    assert_eq!((cpus(&lab, &peer).await, cpus(&lab, &modest).await), (online.clone(), online));
    lab.delete_pod(&peer).await.unwrap();
    lab.delete_pod(&modest).await.unwrap();
    assert_eq!(lab.stop().await.unwrap(), Vec::<String>::new());
}
