//! `keelson uninstall` in a network namespace of its own, with the real executable.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{fs, process::Output};

use keelson_testkit::{Netns, is_root, skip_unless};

#[test]
fn what_keelson_put_on_the_node_is_taken_away_and_volumes_stay() {
    skip_unless!(is_root(), "not root, which network namespaces take");
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    for folder in ["conf", "bin", "pool/volume", "cdi"] {
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
             stateDir: {here}/state\n\
             network: {{name: test, bridge: kl-uninstall, confDir: {here}/conf, binDir: {here}/bin}}\n\
             storage:\n\
             \x20 endpoint: unix://{here}/csi.sock\n\
             \x20 pools: [{{name: a, path: {here}/pool, kind: directory, allowSharedFilesystem: true}}]\n\
             devices: {{kubeletDir: {here}, cdiDir: {here}/cdi}}\n\
             pinning: {{}}\n"
        ),
    )
    .unwrap();
    let namespace = Netns::new().unwrap();
    let uninstall = || -> Output {
        namespace.command(env!("CARGO_BIN_EXE_keelson")).args(["uninstall", "--config"]).arg(&config).output().unwrap()
    };
    for _ in 0..2 {
        // What is gone already is no error.
        let output = uninstall();
        assert!(output.status.success(), "{output:?}");
        let told = String::from_utf8(output.stdout).unwrap();
        assert!(told.contains("network: removed the network config"), "{told}");
        assert!(told.contains("storage: volumes and pools are left in place"), "{told}");
        assert!(!conflist.exists());
    }
    assert!(root.join("conf/20-other.conflist").exists());
    assert!(root.join("pool/volume").exists());
}
