//! `keelson uninstall` in a network namespace of its own, with the real executable.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    fs,
    panic::AssertUnwindSafe,
    process::{Output, Stdio},
    time::Duration,
};

use keelson_testkit::{Netns, is_root, skip_unless, wait_until};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// A net for a hung test.
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn what_keelson_put_on_the_node_is_taken_away_and_volumes_stay() {
    skip_unless!(is_root(), "not root, which network namespaces take");
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    for folder in ["conf", "bin", "pool", "cdi"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    let conflist = root.join("conf/10-test.conflist");
    fs::write(&conflist, "{}").unwrap();
    fs::write(root.join("conf/20-other.conflist"), "{}").unwrap();
    let config = root.join("config.yaml");
    let here = root.display();
    fs::write(
        &config,
        format!(
            "apiVersion: keelson.dev/v1alpha1\n\
             kind: NodeConfig\n\
             nodeName: node-a\n\
             observability: {{address: \"127.0.0.1:0\"}}\n\
             stateDir: {here}/state\n\
             network: {{name: test, bridge: kl-uninstall, confDir: {here}/conf, binDir: {here}/bin}}\n\
             storage:\n\
             \x20 endpoint: unix://{here}/csi.sock\n\
             \x20 registration: {{enabled: false}}\n\
             \x20 pools: [{{name: a, path: {here}/pool, kind: directory, allowSharedFilesystem: true}}]\n\
             devices:\n\
             \x20 kubeletDir: {here}\n\
             \x20 cdiDir: {here}/cdi\n\
             \x20 resources: [{{name: example.com/fpga, simulated: {{count: 2}}}}]\n\
             pinning: {{}}\n"
        ),
    )
    .unwrap();
    let namespace = Netns::new().unwrap();
    let entries = |folder: &str| fs::read_dir(root.join(folder)).map_or(0, Iterator::count);
    let run_until = |plugin: &str, what: &str, made: &dyn Fn() -> bool| {
        let mut child = namespace
            .command(env!("CARGO_BIN_EXE_keelson"))
            .args(["run", "--only", plugin, "--config"])
            .arg(&config)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let waited = std::panic::catch_unwind(AssertUnwindSafe(|| wait_until(what, LIMIT, || made().then_some(()))));
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGTERM).unwrap();
        assert!(child.wait().unwrap().success());
        waited.unwrap();
    };
    run_until("devices", "the devices and their CDI file", &|| entries("cdi") == 1 && entries("state/devices") > 0);
    run_until("storage", "the pool and its socket", &|| {
        // The pool is made beside the socket; by its marker it is one.
        root.join("pool/keelson-pool.json").exists() && root.join("csi.sock").exists()
    });
    fs::create_dir(root.join("pool/volume")).unwrap();
    let uninstall = || -> Output {
        namespace.command(env!("CARGO_BIN_EXE_keelson")).args(["uninstall", "--config"]).arg(&config).output().unwrap()
    };
    for _ in 0..2 {
        // What is gone already is no error.
        let output = uninstall();
        assert!(output.status.success(), "{output:?}");
        let told = String::from_utf8(output.stdout).unwrap();
        assert!(told.contains("network: the network config, the records and the nftables rules are gone"), "{told}");
        assert!(told.contains("storage: volumes and pools are left in place"), "{told}");
        assert!(!conflist.exists());
        assert_eq!(entries("cdi"), 0, "CDI files are left");
        assert!(!root.join("state/devices").exists(), "simulated devices are left");
    }
    assert!(root.join("conf/20-other.conflist").exists());
    assert!(root.join("pool/volume").exists());
}
