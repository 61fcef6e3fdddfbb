//! Pods on a real containerd, through all four plugins.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use common::{lacks, programs, samples};
use keelson_nodelab::{Check, Lab, Manifests, Options, Scene, run};
use keelson_testkit::skip_unless;

/// The samples, every verification, and nothing left at the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_samples_get_what_they_ask_for_and_leave_nothing() {
    skip_unless!(lacks().is_empty(), lacks());
    let options = Options { programs: programs(), samples: samples(), keep: false };
    let outcome = run(&options, &|line| eprintln!("{line}")).await;
    assert!(outcome.report.is_ok(), "\n{}", outcome.report.table());
    assert!(outcome.report.0.len() >= 8);
}

/// A plugin process or containerd is killed and comes back: the Pods that run notice nothing, and new ones get as much.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_of_anything_disturb_no_running_pod() {
    skip_unless!(lacks().is_empty(), lacks());
    let mut lab = Lab::start(&programs(), &|line| eprintln!("{line}")).await.unwrap();
    let manifests = Manifests::read(&samples()).unwrap();
    let claims = lab.provision(&manifests).await.unwrap();
    let mut pods = Vec::new();
    for manifest in manifests.pods() {
        pods.push(lab.create_pod(manifest, &claims).await.unwrap());
    }
    let scene = Scene::set(&lab, pods).await.unwrap();

    for plugin in ["network", "storage", "devices", "pinning"] {
        let (old, new) = lab.kill_plugin(plugin).await.unwrap();
        assert_ne!(old, new);
        check_all(&lab, &scene, plugin).await;
    }
    lab.restart_containerd().await.unwrap();
    check_all(&lab, &scene, "containerd").await;

    // And what is restarted goes on working for new Pods: the same two once more.
    let (app, peer) = scene.pods();
    lab.delete_pod(app).await.unwrap();
    lab.delete_pod(peer).await.unwrap();
    let mut pods = Vec::new();
    for manifest in manifests.pods() {
        pods.push(lab.create_pod(manifest, &claims).await.unwrap());
    }
    let scene = Scene::set(&lab, pods).await.unwrap();
    check_all(&lab, &scene, "restarts and new Pods").await;
    let (app, peer) = scene.pods();
    lab.delete_pod(app).await.unwrap();
    lab.delete_pod(peer).await.unwrap();
    for volume in claims.values() {
        lab.delete_volume(volume).await.unwrap();
    }
    assert_eq!(lab.stop().await.unwrap(), Vec::<String>::new());
}

async fn check_all(lab: &Lab, scene: &Scene, after: &str) {
    for check in Check::ALL {
        if let Err(error) = scene.check(lab, check).await {
            panic!("after {after}: {}: {error:#}", check.name());
        }
    }
}

/// More devices than there are: the Pod isn't admitted, and holds nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_asks_for_too_much_is_not_admitted() {
    skip_unless!(lacks().is_empty(), lacks());
    let lab = Lab::start(&programs(), &|line| eprintln!("{line}")).await.unwrap();
    let pod = |name: &str, count: u32| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{terminationGracePeriodSeconds: 0, containers: \
             [{{name: main, image: 'keelson.local/busybox:1', command: [sleep, infinity], resources: {{limits: \
             {{example.com/fpga: {count}}}}}}}]}}}}"
        )
    };
    let mut manifests = Manifests::default();
    manifests.add(&pod("five", 5)).unwrap();
    manifests.add(&pod("four", 4)).unwrap();
    let claims = std::collections::BTreeMap::new();
    let error = format!("{:#}", lab.create_pod(&manifests.pods()[0], &claims).await.unwrap_err());
    assert!(error.contains("only 4 of them are healthy and free"), "{error}");
    let four = lab.create_pod(&manifests.pods()[1], &claims).await.unwrap();
    lab.delete_pod(&four).await.unwrap();
    let four = lab.create_pod(&manifests.pods()[1], &claims).await.unwrap();
    lab.delete_pod(&four).await.unwrap();
    assert_eq!(lab.stop().await.unwrap(), Vec::<String>::new());
}
