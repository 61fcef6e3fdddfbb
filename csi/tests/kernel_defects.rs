//! What csi-driver-host-path gets wrong, by number; each number is a test here or beside the calls that it is about.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    os::unix::fs::FileExt,
    path::Path,
    process::Command,
};

use common::{
    MIB, Place, Running, block,
    disk::run,
    expect_code, mounted, mounted_with, names,
    process::{Clients, Process},
    publication, request,
};
use keelson_proto::csi::v1::{
    ControllerGetVolumeRequest, ListVolumesRequest, NodeExpandVolumeRequest, NodeGetVolumeHealthRequest,
    NodeGetVolumeStatsRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest,
    volume_capability::access_mode::Mode,
};
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn d1_a_list_comes_in_pages_and_each_volume_is_on_one() {
    needs_a_kernel!();
    let place = Place::new();
    let mut driver = Running::start(&place, &place.section("directory")).await;
    for number in 0..7 {
        driver.create(request(&format!("pvc-{number}"), 0, mounted())).await.unwrap();
    }
    let lasting: BTreeSet<String> = place.volumes().into_iter().collect();
    // Others come and go between the pages.
    let (mut seen, mut token, mut churn) = (Vec::new(), String::new(), 0);
    loop {
        let request = ListVolumesRequest { max_entries: 2, starting_token: token };
        let page = driver.controller.list_volumes(request).await.unwrap().into_inner();
        assert!(page.entries.len() <= 2);
        seen.extend(page.entries.into_iter().map(|entry| entry.volume.unwrap().volume_id));
        let id = driver.create(request_of(churn)).await.unwrap().volume_id;
        if churn % 2 == 0 {
            driver.delete(&id).await.unwrap();
        }
        churn += 1;
        token = page.next_token;
        if token.is_empty() {
            break;
        }
    }
    assert!(churn >= 4, "{churn} pages");
    let lasting_seen: Vec<_> = seen.iter().filter(|id| lasting.contains(*id)).cloned().collect();
    assert_eq!(lasting_seen, lasting.into_iter().collect::<Vec<_>>());
    for token in ["0", "2", "-1"] {
        let request = ListVolumesRequest { max_entries: 0, starting_token: token.to_owned() };
        expect_code(driver.controller.list_volumes(request).await, Code::Aborted);
    }
    driver.stop().await;
}

fn request_of(number: usize) -> keelson_proto::csi::v1::CreateVolumeRequest {
    request(&format!("churn-{number}"), 0, mounted())
}

#[tokio::test(flavor = "multi_thread")]
async fn d4_a_volume_that_is_not_there_is_not_found() {
    needs_a_kernel!();
    let place = Place::new();
    let mut driver = Running::start(&place, &place.section("image")).await;
    let created = driver.create(request("pvc-1", 16 * MIB, mounted())).await.unwrap();
    let get = |id: &str| ControllerGetVolumeRequest { volume_id: id.to_owned() };
    let answer = driver.controller.controller_get_volume(get(&created.volume_id)).await.unwrap().into_inner();
    assert_eq!(answer.volume.as_ref(), Some(&created));
    assert!(answer.status.unwrap().published_node_ids.is_empty());
    driver.delete(&created.volume_id).await.unwrap();
    for id in [created.volume_id.as_str(), "v1-0123456789abcdef0123456789abcdef", "some/path", "../pool"] {
        expect_code(driver.controller.controller_get_volume(get(id)).await, Code::NotFound);
    }
    expect_code(driver.controller.controller_get_volume(get("")).await, Code::InvalidArgument);
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn d6_a_second_publish_with_other_arguments_is_told_and_options_count() {
    needs_a_kernel!();
    let place = Place::new();
    let mut driver = Running::start(&place, &place.section("image")).await;
    let (staging, target) = (place.text("staging"), place.text("pods/mount"));
    let with = |flags: &[&str]| mounted_with(flags, Mode::SingleNodeWriter);
    let id = driver.create(request("pvc-1", 16 * MIB, mounted())).await.unwrap().volume_id;
    driver.stage(&id, &staging, with(&["noatime"])).await.unwrap();
    let publish = |flags: &[&str]| publication(&id, &staging, &target, with(flags));
    driver.publish(publish(&["noatime", "noexec"])).await.unwrap();
    let mount = place.mount_at("pods/mount").unwrap();
    assert_eq!(mount.kind, "ext4");
    for option in ["noatime", "noexec"] {
        assert!(mount.options.contains(&option.to_owned()), "{mount:?}");
    }
    driver.publish(publish(&["noatime", "noexec"])).await.unwrap();
    expect_code(driver.publish(publish(&[])).await, Code::AlreadyExists);
    let mut read_only = publish(&["noatime", "noexec"]);
    read_only.readonly = true;
    expect_code(driver.publish(read_only).await, Code::AlreadyExists);
    assert_eq!(place.mount_at("pods/mount").unwrap(), mount);
    driver.unpublish(&id, &target).await.unwrap();
    driver.unstage(&id, &staging).await.unwrap();
    driver.delete(&id).await.unwrap();
    place.expect_clean();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn d8_what_is_left_mounted_at_a_target_loses_nothing() {
    needs_a_kernel!();
    let place = Place::new();
    let mut driver = Running::start(&place, &place.section("directory")).await;
    let (staging, target) = (place.text("staging"), place.text("pods/mount"));
    let id = driver.create(request("pvc-1", MIB, mounted())).await.unwrap().volume_id;
    driver.stage(&id, &staging, mounted()).await.unwrap();
    driver.publish(publication(&id, &staging, &target, mounted())).await.unwrap();
    fs::write(place.path("pods/mount/file"), b"precious").unwrap();
    // Stacked: ours three times, and then somebody else's.
    place.bind("staging", "pods/mount");
    place.bind("staging", "pods/mount");
    place.mount_tmpfs("pods/mount", "size=1m");
    fs::write(place.path("pods/mount/other"), b"theirs").unwrap();
    expect_code(driver.unpublish(&id, &target).await, Code::FailedPrecondition);
    assert_eq!(fs::read(place.path("pods/mount/other")).unwrap(), b"theirs");
    place.unmount("pods/mount");
    driver.unpublish(&id, &target).await.unwrap();
    assert!(!Path::new(&target).exists());
    assert_eq!(fs::read(place.path("staging/file")).unwrap(), b"precious");
    driver.unstage(&id, &staging).await.unwrap();
    driver.delete(&id).await.unwrap();
    place.expect_clean();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn d9_a_block_volume_is_attached_again_after_a_reboot() {
    needs_a_kernel!();
    let place = Place::new();
    let mut driver = Running::start(&place, &place.section("image")).await;
    let (staging, target) = (place.text("staging"), place.text("pods/device"));
    let id = driver.create(request("pvc-1", 16 * MIB, block())).await.unwrap().volume_id;
    driver.stage(&id, &staging, block()).await.unwrap();
    driver.publish(publication(&id, &staging, &target, block())).await.unwrap();
    let write = OpenOptions::new().write(true).open(&target).unwrap();
    write.write_all_at(&[7; 4096], 8192).unwrap();
    write.sync_all().unwrap();
    drop(write);
    driver.stop().await;
    // All that a reboot takes.
    place.unmount("pods/device");
    for number in place.loops() {
        run(Command::new("losetup").arg("-d").arg(format!("/dev/loop{number}")));
    }
    for stages in [true, false] {
        let mut driver = Running::start(&place, &place.section("image")).await;
        // Some kubelets stage anew, others only publish.
        if stages {
            driver.stage(&id, &staging, block()).await.unwrap();
        }
        driver.publish(publication(&id, &staging, &target, block())).await.unwrap();
        let mut found = [0; 4096];
        OpenOptions::new().read(true).open(&target).unwrap().read_exact_at(&mut found, 8192).unwrap();
        assert_eq!(found, [7; 4096]);
        assert_eq!(place.loops().len(), 1);
        driver.stop().await;
        place.unmount("pods/device");
        for number in place.loops() {
            run(Command::new("losetup").arg("-d").arg(format!("/dev/loop{number}")));
        }
    }
    let mut driver = Running::start(&place, &place.section("image")).await;
    driver.unpublish(&id, &target).await.unwrap();
    driver.unstage(&id, &staging).await.unwrap();
    driver.delete(&id).await.unwrap();
    place.expect_clean();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn d10_no_id_and_no_name_becomes_a_path() {
    needs_a_kernel!();
    let place = Place::new();
    let mut driver = Running::start(&place, &place.section("directory")).await;
    let id = driver.create(request("../../escape", 0, mounted())).await.unwrap().volume_id;
    assert_eq!(place.volumes(), std::slice::from_ref(&id));
    fs::create_dir(place.path("victim")).unwrap();
    fs::write(place.path("victim/volume.json"), b"{}").unwrap();
    fs::write(place.path("victim/file"), b"precious").unwrap();
    let before = names(&place.path("."));
    let (staging, target) = (place.text("staging"), place.text("pods/mount"));
    let absolute = place.text("victim");
    let traversals =
        ["../../victim", "../victim", "..", ".", "/", "victim", &absolute, &format!("{id}/../{id}"), &format!("{id}/")];
    for traversal in traversals {
        let volume_id = traversal.to_owned();
        driver.delete(traversal).await.unwrap();
        expect_code(driver.stage(traversal, &staging, mounted()).await, Code::NotFound);
        expect_code(driver.publish(publication(traversal, &staging, &target, mounted())).await, Code::NotFound);
        let request = NodeUnpublishVolumeRequest { volume_id: volume_id.clone(), target_path: target.clone() };
        expect_code(driver.node.node_unpublish_volume(request).await, Code::NotFound);
        let request = NodeUnstageVolumeRequest { volume_id: volume_id.clone(), staging_target_path: staging.clone() };
        expect_code(driver.node.node_unstage_volume(request).await, Code::NotFound);
        let (volume_path, path) = (target.clone(), target.clone());
        let request = NodeExpandVolumeRequest { volume_id: volume_id.clone(), volume_path, ..Default::default() };
        expect_code(driver.node.node_expand_volume(request).await, Code::NotFound);
        let request =
            NodeGetVolumeStatsRequest { volume_id: volume_id.clone(), volume_path: path, ..Default::default() };
        expect_code(driver.node.node_get_volume_stats(request).await, Code::NotFound);
        let request = NodeGetVolumeHealthRequest { volume_id: volume_id.clone(), ..Default::default() };
        expect_code(driver.node.node_get_volume_health(request).await, Code::NotFound);
        expect_code(
            driver.controller.controller_get_volume(ControllerGetVolumeRequest { volume_id }).await,
            Code::NotFound,
        );
    }
    assert_eq!(names(&place.path(".")), before);
    assert_eq!(fs::read(place.path("victim/file")).unwrap(), b"precious");
    assert_eq!(place.volumes(), std::slice::from_ref(&id));
    driver.delete(&id).await.unwrap();
    place.expect_clean();
    driver.stop().await;
}

/// Page faults of the children that a process has waited for (proc_pid_stat(5), field 11): it grows with each.
fn faults_of_children(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The second field is the name in parentheses; the third is the first one after it.
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    fields.split(' ').nth(11 - 3).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn d14_figures_are_asked_for_without_another_process() {
    needs_a_kernel!();
    let place = Place::new();
    let (process, clients) = Process::serve(&place, &place.section("image")).await;
    let Clients { mut controller, mut node, .. } = clients;
    let staging = place.text("staging");
    let created = controller.create_volume(request("pvc-1", 16 * MIB, mounted())).await.unwrap().into_inner();
    let id = created.volume.unwrap().volume_id;
    let before = faults_of_children(process.id());
    let request = NodeStageVolumeRequest {
        volume_id: id.clone(),
        staging_target_path: staging.clone(),
        volume_capability: Some(mounted()),
        ..NodeStageVolumeRequest::default()
    };
    node.node_stage_volume(request).await.unwrap();
    let staged = faults_of_children(process.id());
    assert!(staged > before, "a stage has a helper: so it shows");
    for _ in 0..20 {
        let (volume_id, volume_path) = (id.clone(), staging.clone());
        let request = NodeGetVolumeStatsRequest { volume_id, volume_path, ..NodeGetVolumeStatsRequest::default() };
        assert_eq!(node.node_get_volume_stats(request).await.unwrap().into_inner().usage.len(), 2);
    }
    assert_eq!(faults_of_children(process.id()), staged);
    let request = NodeUnstageVolumeRequest { volume_id: id.clone(), staging_target_path: staging };
    node.node_unstage_volume(request).await.unwrap();
}
