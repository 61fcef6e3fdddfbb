//! Pools: what they promise, what they recognise, what survives.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{collections::BTreeMap, fs, os::unix::fs::MetadataExt, process::Command, time::Duration};

use common::{MIB, NODE, Place, Running, block, expect_code, mounted, names, publication, request};
use keelson_proto::csi::v1::{
    CapacityRange, CreateVolumeRequest, GetCapacityRequest, GetCapacityResponse, GroupControllerGetCapabilitiesRequest,
    ListVolumesRequest, NodeGetInfoRequest, ProbeRequest, Topology, TopologyRequirement,
    ValidateVolumeCapabilitiesRequest, group_controller_client::GroupControllerClient,
};
use keelson_testkit::{skip_unless, wait_until_async};
use serde_json::json;
use tonic::{Code, Status};

async fn capacity(driver: &mut Running) -> Result<GetCapacityResponse, Status> {
    let request = GetCapacityRequest { volume_capabilities: vec![mounted()], ..GetCapacityRequest::default() };
    Ok(driver.controller.get_capacity(request).await?.into_inner())
}

async fn list(driver: &mut Running, starting_token: &str, max_entries: i32) -> Result<(Vec<String>, String), Status> {
    let request = ListVolumesRequest { max_entries, starting_token: starting_token.to_owned() };
    let answer = driver.controller.list_volumes(request).await?.into_inner();
    Ok((answer.entries.into_iter().map(|entry| entry.volume.unwrap().volume_id).collect(), answer.next_token))
}

#[tokio::test(flavor = "multi_thread")]
async fn creates_at_once_never_promise_more_than_there_is() {
    needs_a_kernel!();
    let place = Place::new();
    place.mount_tmpfs("pool", "size=256m");
    let driver = Running::start(&place, &place.section("image")).await;
    let creates = (0..16).map(|number| {
        let mut controller = driver.controller.clone();
        tokio::spawn(
            async move { controller.create_volume(request(&format!("pvc-{number}"), 32 * MIB, mounted())).await },
        )
    });
    let mut made = 0;
    for create in creates.collect::<Vec<_>>() {
        match create.await.unwrap() {
            Ok(_) => made += 1,
            Err(status) => assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}"),
        }
    }
    // Something that is being made may count twice for a moment, so one that would fit may have been refused.
    let mut controller = driver.controller.clone();
    for number in 16..32 {
        match controller.create_volume(request(&format!("pvc-{number}"), 32 * MIB, mounted())).await {
            Ok(_) => made += 1,
            Err(status) => assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}"),
        }
    }
    // 32 MiB and what they cost beside: seven fit into 256 MiB, eight don't.
    assert_eq!(made, 7);
    assert_eq!(place.volumes().len(), 7);
    assert_eq!(names(&place.path("pool/building")), [""; 0]);
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_volume_that_is_announced_can_be_made_and_filled() {
    needs_a_kernel!();
    let place = Place::new();
    place.mount_tmpfs("pool", "size=128m");
    let mut driver = Running::start(&place, &place.section("image")).await;
    let before = capacity(&mut driver).await.unwrap();
    let largest = before.maximum_volume_size.unwrap();
    assert!(largest < before.available_capacity && largest > 120 * MIB, "{before:?}");
    expect_code(driver.create(request("pvc-1", largest + 4096, block())).await, Code::ResourceExhausted);
    let id = driver.create(request("pvc-1", largest, block())).await.unwrap().volume_id;
    assert_eq!(capacity(&mut driver).await.unwrap().maximum_volume_size, Some(0));

    let (staging, target) = (place.text("staging"), place.text("pods/device"));
    driver.stage(&id, &staging, block()).await.unwrap();
    driver.publish(publication(&id, &staging, &target, block())).await.unwrap();
    let mut device = fs::OpenOptions::new().write(true).open(&target).unwrap();
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0x5a), largest.try_into().unwrap()), &mut device).unwrap();
    device.sync_all().unwrap();
    drop(device);
    driver.unpublish(&id, &target).await.unwrap();
    driver.unstage(&id, &staging).await.unwrap();
    driver.delete(&id).await.unwrap();
    place.expect_clean();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn thick_keeps_its_space_and_what_thin_discards_stays_promised() {
    needs_a_kernel!();
    let place = Place::new();
    place.mount_tmpfs("pool", "size=256m");
    let mut driver = Running::start(&place, &place.section("image")).await;
    let staging = place.text("staging");
    for (provisioning, takes) in [("thin", false), ("thick", true)] {
        let mut wish = request(provisioning, 64 * MIB, mounted());
        wish.parameters.insert("provisioning".to_owned(), provisioning.to_owned());
        let id = driver.create(wish).await.unwrap().volume_id;
        let image = place.path("pool/volumes").join(&id).join("image");
        let allocated = || fs::metadata(&image).unwrap().blocks() * 512;
        assert_eq!(allocated() >= 64 << 20, takes, "{provisioning} has {} bytes", allocated());
        driver.stage(&id, &staging, mounted()).await.unwrap();
        let before = capacity(&mut driver).await.unwrap().available_capacity;
        // Discards all that is free inside: of a thin volume the pool's filesystem gets it back, a thick one refuses.
        let trimmed = Command::new("fstrim").arg(&staging).output().unwrap();
        assert_eq!(trimmed.status.success(), !takes, "{trimmed:?}");
        assert_eq!(allocated() >= 64 << 20, takes, "{provisioning} has {} bytes", allocated());
        assert_eq!(capacity(&mut driver).await.unwrap().available_capacity, before);
        driver.unstage(&id, &staging).await.unwrap();
        driver.delete(&id).await.unwrap();
    }
    place.expect_clean();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_pools_on_one_filesystem_share_its_space() {
    needs_a_kernel!();
    let place = Place::new();
    place.mount_tmpfs("pool", "size=128m");
    let mut section = place.section("image");
    section["pools"] = json!([
        {"name": "one", "path": place.path("pool/one"), "allowSharedFilesystem": true},
        {"name": "two", "path": place.path("pool/two"), "allowSharedFilesystem": true},
    ]);
    let mut driver = Running::start(&place, &section).await;
    let wish = |name: &str, pool: &str| {
        let mut wish = request(name, 80 * MIB, block());
        wish.parameters.insert("pool".to_owned(), pool.to_owned());
        wish
    };
    driver.create(wish("pvc-1", "one")).await.unwrap();
    expect_code(driver.create(wish("pvc-2", "two")).await, Code::ResourceExhausted);
    // The name is known wherever it lies.
    expect_code(driver.create(wish("pvc-1", "two")).await, Code::AlreadyExists);
    expect_code(driver.create(wish("pvc-3", "three")).await, Code::InvalidArgument);
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sizes_are_exact_or_refused() {
    needs_a_kernel!();
    let place = Place::new();
    let mut driver = Running::start(&place, &place.section("image")).await;
    let sized = |name: &str, required_bytes, limit_bytes, capability| {
        let mut wish = request(name, 0, capability);
        wish.capacity_range = Some(CapacityRange { required_bytes, limit_bytes });
        wish
    };
    for (required, limit, expected) in [(64 * MIB, 64 * MIB, 64 * MIB), (1, 0, 4096), (4097, 8192, 8192)] {
        let wish = sized(&format!("block-{required}"), required, limit, block());
        assert_eq!(driver.create(wish).await.unwrap().capacity_bytes, expected);
    }
    let small = driver.create(sized("small", 1, 0, mounted())).await.unwrap();
    assert_eq!(small.capacity_bytes, 16 * MIB);
    for (required, limit, code) in [
        (1, 15 * MIB, Code::OutOfRange),
        (i64::MAX, 0, Code::OutOfRange),
        (1 << 60, 0, Code::ResourceExhausted),
        (-1, 0, Code::InvalidArgument),
        (2, 1, Code::InvalidArgument),
    ] {
        expect_code(driver.create(sized("wrong", required, limit, mounted())).await, code);
    }
    expect_code(driver.create(sized("block-1", 4097, 0, block())).await, Code::AlreadyExists);
    expect_code(driver.create(sized("block-1", 1, 0, mounted())).await, Code::AlreadyExists);
    assert_eq!(place.volumes().len(), 4);
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_wrong_with_a_request_changes_nothing() {
    needs_a_kernel!();
    let place = Place::new();
    let mut driver = Running::start(&place, &place.section("image")).await;
    let good = || request("pvc-1", MIB, block());
    let with = |change: &dyn Fn(&mut keelson_proto::csi::v1::CreateVolumeRequest)| {
        let mut wish = good();
        change(&mut wish);
        wish
    };
    for wish in [
        with(&|wish| wish.name.clear()),
        with(&|wish| wish.name = "x".repeat(129)),
        with(&|wish| wish.name = "a\u{7}b".to_owned()),
        with(&|wish| wish.volume_capabilities.clear()),
        with(&|wish| wish.volume_capabilities[0].access_mode.as_mut().unwrap().mode = 5),
        with(&|wish| wish.volume_capabilities.push(mounted())),
        with(&|wish| drop(wish.parameters.insert("pol".to_owned(), "pool".to_owned()))),
        with(&|wish| drop(wish.parameters.insert("pool".to_owned(), "../pool".to_owned()))),
        with(&|wish| drop(wish.parameters.insert("pool".to_owned(), "x".repeat(4096)))),
        with(&|wish| drop(wish.mutable_parameters.insert("iops".to_owned(), "1".to_owned()))),
        with(&|wish| wish.volume_content_source = Some(keelson_proto::csi::v1::VolumeContentSource::default())),
    ] {
        expect_code(driver.create(wish).await, Code::InvalidArgument);
    }
    assert_eq!(place.volumes(), [""; 0]);
    // A name may be anything else, and is never a path.
    for name in ["../../../../etc/keelson-was-here", "a/b", "..", "Größe 😀", &"n".repeat(128)] {
        let id = driver.create(request(name, MIB, block())).await.unwrap().volume_id;
        assert_eq!(&place.volumes(), std::slice::from_ref(&id));
        driver.delete(&id).await.unwrap();
    }
    for id in ["some/path", "../../volumes", "v1-0123456789abcdef0123456789abcdef"] {
        driver.delete(id).await.unwrap();
        expect_code(driver.stage(id, &place.text("staging"), block()).await, Code::NotFound);
    }
    expect_code(driver.delete("").await, Code::InvalidArgument);
    place.expect_clean();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_are_only_promised_to_this_node() {
    needs_a_kernel!();
    let place = Place::new();
    let mut driver = Running::start(&place, &place.section("image")).await;
    let info = driver.node.node_get_info(NodeGetInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(info.node_id, NODE);
    let here = info.accessible_topology.unwrap();
    assert_eq!(here.segments, BTreeMap::from([("topology.keelson.dev/node".to_owned(), NODE.to_owned())]));
    let there = Topology { segments: BTreeMap::from([("topology.keelson.dev/node".to_owned(), "node-b".to_owned())]) };
    let wish = |requisite: &[&Topology]| {
        let requisite = requisite.iter().map(|topology| (*topology).clone()).collect();
        let mut wish = request("pvc-1", MIB, block());
        wish.accessibility_requirements = Some(TopologyRequirement { requisite, preferred: vec![] });
        wish
    };
    expect_code(driver.create(wish(&[&there])).await, Code::ResourceExhausted);
    assert_eq!(place.volumes(), [""; 0]);
    let volume = driver.create(wish(&[&there, &here])).await.unwrap();
    assert_eq!(volume.accessible_topology, [here]);
    let elsewhere = GetCapacityRequest { accessible_topology: Some(there), ..GetCapacityRequest::default() };
    let capacity = driver.controller.get_capacity(elsewhere).await.unwrap().into_inner();
    assert_eq!((capacity.available_capacity, capacity.maximum_volume_size), (0, Some(0)));
    driver.delete(&volume.volume_id).await.unwrap();
    place.expect_clean();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_volume_can_be_is_confirmed_and_nothing_else() {
    needs_a_kernel!();
    let place = Place::new();
    let mut driver = Running::start(&place, &place.section("image")).await;
    let id = driver.create(request("pvc-1", MIB, block())).await.unwrap().volume_id;
    for (capability, confirmed) in [(block(), true), (mounted(), false)] {
        let request = ValidateVolumeCapabilitiesRequest {
            volume_id: id.clone(),
            volume_capabilities: vec![capability],
            ..ValidateVolumeCapabilitiesRequest::default()
        };
        let answer = driver.controller.validate_volume_capabilities(request).await.unwrap().into_inner();
        assert_eq!((answer.confirmed.is_some(), answer.message.is_empty()), (confirmed, confirmed), "{answer:?}");
    }
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_come_in_pages_that_deletions_do_not_upset() {
    needs_a_kernel!();
    let place = Place::new();
    let mut driver = Running::start(&place, &place.section("directory")).await;
    for number in 0..5 {
        driver.create(request(&format!("pvc-{number}"), 0, mounted())).await.unwrap();
    }
    let all = place.volumes();
    let (first, token) = list(&mut driver, "", 2).await.unwrap();
    assert_eq!(first, all[..2]);
    driver.delete(&all[1]).await.unwrap();
    driver.delete(&all[2]).await.unwrap();
    assert_eq!(list(&mut driver, &token, 2).await.unwrap(), (all[3..].to_vec(), String::new()));
    assert_eq!(list(&mut driver, "", 0).await.unwrap().0.len(), 3);
    expect_code(list(&mut driver, "not-a-token", 2).await, Code::Aborted);
    expect_code(list(&mut driver, "", -1).await, Code::InvalidArgument);
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_or_wrong_disk_makes_every_call_on_it_unavailable() {
    needs_a_kernel!();
    let place = Place::new();
    place.mount_tmpfs("disk", "size=64m");
    place.mount_tmpfs("other", "size=64m");
    place.bind("disk", "pool");
    let mut driver = Running::start(&place, &place.section("image")).await;
    let staging = place.text("staging");
    let id = driver.create(request("pvc-1", MIB, block())).await.unwrap().volume_id;
    for restart in [false, true] {
        for wrong in ["nothing", "another pool", "an empty disk"] {
            place.unmount("pool");
            match wrong {
                "another pool" => {
                    let marker = json!({"version": 1, "uuid": "6f0c2f9e-5a57-4c0f-9a77-0d7c9d3f1a11", "kind": "image"});
                    fs::write(place.path("other/keelson-pool.json"), marker.to_string()).unwrap();
                    place.bind("other", "pool");
                }
                "an empty disk" => {
                    fs::remove_file(place.path("other/keelson-pool.json")).unwrap();
                    place.bind("other", "pool");
                }
                _ => {}
            }
            if restart {
                driver.stop().await;
                driver = Running::start(&place, &place.section("image")).await;
            }
            expect_code(driver.delete(&id).await, Code::Unavailable);
            expect_code(driver.create(request("pvc-1", MIB, block())).await, Code::Unavailable);
            expect_code(driver.stage(&id, &staging, block()).await, Code::Unavailable);
            expect_code(driver.unstage(&id, &staging).await, Code::Unavailable);
            let publish = publication(&id, &staging, &place.text("pods/device"), block());
            expect_code(driver.publish(publish).await, Code::Unavailable);
            expect_code(driver.unpublish(&id, &place.text("pods/device")).await, Code::Unavailable);
            expect_code(capacity(&mut driver).await, Code::Unavailable);
            expect_code(list(&mut driver, "", 0).await, Code::Unavailable);
            // The driver itself is well: restarting it would mend nothing.
            driver.identity.probe(ProbeRequest {}).await.unwrap();
            if wrong != "nothing" {
                place.unmount("pool");
            }
            assert_eq!(names(&place.path("pool")), [""; 0], "nothing was made where the disk belongs");
            place.bind("disk", "pool");
            assert_eq!(&list(&mut driver, "", 0).await.unwrap().0, std::slice::from_ref(&id));
        }
    }
    driver.delete(&id).await.unwrap();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_the_pool_on_another_filesystem_is_not_the_pool() {
    needs_a_kernel!();
    let place = Place::new();
    place.mount_tmpfs("pool", "size=64m");
    let mut driver = Running::start(&place, &place.section("image")).await;
    let remembered: serde_json::Value =
        serde_json::from_slice(&fs::read(place.path("state/storage/pools/pool.json")).unwrap()).unwrap();
    skip_unless!(
        remembered["filesystemUuid"].is_string(),
        "the kernel does not tell the UUID of a filesystem (FS_IOC_GETFSUUID, 6.9)"
    );
    let marker = fs::read(place.path("pool/keelson-pool.json")).unwrap();
    place.unmount("pool");
    place.mount_tmpfs("pool", "size=64m");
    fs::write(place.path("pool/keelson-pool.json"), marker).unwrap();
    let status = expect_code(driver.create(request("pvc-1", MIB, block())).await, Code::Unavailable);
    assert!(status.message().contains("a copy on another filesystem"), "{status}");
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_with_files_in_it_does_not_become_a_pool() {
    needs_a_kernel!();
    let place = Place::new();
    let mut section = place.section("image");
    section["pools"][0]["path"] = json!(place.path("state/pool"));
    // Right when the config was checked, and no longer when the pool is first used.
    let settings = Running::settings(&place, &section);
    fs::create_dir(place.path("state/pool")).unwrap();
    fs::write(place.path("state/pool/precious"), b"x").unwrap();
    let mut driver = Running::start_with(&place, settings).await;
    expect_code(driver.create(request("pvc-1", MIB, block())).await, Code::Unavailable);
    assert_eq!(names(&place.path("state/pool")), ["precious"]);
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_below_the_state_directory_is_made_on_first_use_and_never_again() {
    needs_a_kernel!();
    let place = Place::new();
    let mut section = place.section("image");
    section["pools"][0]["path"] = json!(place.path("state/pools/default"));
    let mut driver = Running::start(&place, &section).await;
    driver.create(request("pvc-1", MIB, block())).await.unwrap();
    driver.stop().await;
    fs::rename(place.path("state/pools/default"), place.path("state/pools/away")).unwrap();
    let mut driver = Running::start(&place, &section).await;
    expect_code(driver.create(request("pvc-2", MIB, block())).await, Code::Unavailable);
    assert!(!place.path("state/pools/default").exists());
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_driver_adopts_what_is_there_and_disturbs_nothing() {
    needs_a_kernel!();
    let place = Place::new();
    let mut driver = Running::start(&place, &place.section("image")).await;
    let (staging, target) = (place.text("staging"), place.text("pods/mount"));
    let volume = driver.create(request("pvc-1", 16 * MIB, mounted())).await.unwrap();
    let id = &volume.volume_id;
    driver.stage(id, &staging, mounted()).await.unwrap();
    driver.publish(publication(id, &staging, &target, mounted())).await.unwrap();
    let held = fs::File::create(place.path("pods/mount/held-open")).unwrap();
    driver.stop().await;
    let (mounts, loops) = (place.mounts(), place.loops());

    // What a killed predecessor may have left: volumes that were being made, or deleted.
    for (name, file) in
        [("v1-00000000000000000000000000000001", None), ("v1-2", Some("image")), ("x", Some("volume.json"))]
    {
        let folder = place.path("pool/building").join(name);
        fs::create_dir(&folder).unwrap();
        if let Some(file) = file {
            fs::write(folder.join(file), b"half").unwrap();
        }
    }
    fs::write(place.path("state/storage/attachments/.v1-3.json.1.0.tmp"), b"{").unwrap();

    let mut driver = Running::start(&place, &place.section("image")).await;
    assert_eq!(names(&place.path("pool/building")), [""; 0]);
    assert_eq!((place.mounts(), place.loops()), (mounts.clone(), loops.clone()));
    assert_eq!(driver.create(request("pvc-1", 16 * MIB, mounted())).await.unwrap(), volume);
    driver.stage(id, &staging, mounted()).await.unwrap();
    driver.publish(publication(id, &staging, &target, mounted())).await.unwrap();
    assert_eq!((place.mounts(), place.loops()), (mounts, loops));
    let elsewhere = publication(id, &staging, &place.text("pods/other"), mounted());
    expect_code(driver.publish(elsewhere).await, Code::FailedPrecondition);
    expect_code(driver.delete(id).await, Code::FailedPrecondition);
    expect_code(driver.unpublish(id, &target).await, Code::FailedPrecondition);
    drop(held);
    driver.unpublish(id, &target).await.unwrap();
    driver.unstage(id, &staging).await.unwrap();
    driver.delete(id).await.unwrap();
    place.expect_clean();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_reboot_publishing_stages_anew() {
    needs_a_kernel!();
    let place = Place::new();
    let mut driver = Running::start(&place, &place.section("image")).await;
    let (staging, target) = (place.text("staging"), place.text("pods/mount"));
    let id = driver.create(request("pvc-1", 16 * MIB, mounted())).await.unwrap().volume_id;
    driver.stage(&id, &staging, mounted()).await.unwrap();
    driver.publish(publication(&id, &staging, &target, mounted())).await.unwrap();
    fs::write(place.path("pods/mount/file"), b"x").unwrap();
    driver.stop().await;
    // All that a reboot takes: mounts and loop devices. Records and mount points stay.
    place.unmount("pods/mount");
    place.unmount("staging");
    for number in place.loops() {
        let node = format!("/dev/loop{number}");
        assert!(Command::new("losetup").args(["-d", &node]).status().unwrap().success());
    }
    let mut driver = Running::start(&place, &place.section("image")).await;
    driver.publish(publication(&id, &staging, &target, mounted())).await.unwrap();
    assert_eq!(fs::read(place.path("pods/mount/file")).unwrap(), b"x");
    driver.unpublish(&id, &target).await.unwrap();
    driver.unstage(&id, &staging).await.unwrap();
    driver.delete(&id).await.unwrap();
    place.expect_clean();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_volume_is_reported_and_holds_up_no_other() {
    needs_a_kernel!();
    let place = Place::new();
    let mut driver = Running::start(&place, &place.section("image")).await;
    let id = driver.create(request("pvc-1", MIB, block())).await.unwrap().volume_id;
    driver.stop().await;
    let record = place.path("pool/volumes").join(&id).join("volume.json");
    fs::write(&record, r#"{"version": 3, "id": "x"}"#).unwrap();
    let mut driver = Running::start(&place, &place.section("image")).await;
    let status = expect_code(driver.delete(&id).await, Code::FailedPrecondition);
    assert!(status.message().contains("has version 3"), "{status}");
    assert!(record.exists());
    driver.create(request("pvc-2", MIB, block())).await.unwrap();
    driver.stop().await;
}

/// Thaws what a failed test left frozen.
struct Frozen(String);

impl Frozen {
    fn new(path: String) -> Self {
        assert!(Command::new("fsfreeze").args(["--freeze", &path]).status().unwrap().success());
        Self(path)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze").args(["--unfreeze", &self.0]).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_hangs_holds_up_only_its_own_calls() {
    needs_a_kernel!();
    let place = Place::new();
    mount_disk(&place);
    let mut section = place.section("image");
    let other = json!({"name": "other", "path": place.path("state/other"), "allowSharedFilesystem": true});
    section["pools"].as_array_mut().unwrap().push(other);
    let mut driver = Running::start(&place, &section).await;
    let wish = |name: &str, pool: &str| {
        let mut wish = request(name, 16 * MIB, mounted());
        wish.parameters.insert("pool".to_owned(), pool.to_owned());
        wish
    };
    let frozen = Frozen::new(place.text("pool"));
    let create = || {
        let (mut controller, wish) = (driver.controller.clone(), wish("hanging", "pool"));
        tokio::spawn(async move { controller.create_volume(wish).await })
    };
    let (mut one, mut two) = (create(), create());
    // One of them waits for the disk; the other is told so at once.
    let (refused, hanging) = tokio::select! {
        refused = &mut one => (refused, two),
        refused = &mut two => (refused, one),
    };
    expect_code(refused.unwrap(), Code::Aborted);

    let (staging, target) = (place.text("staging"), place.text("pods/mount"));
    let id = driver.create(wish("pvc-1", "other")).await.unwrap().volume_id;
    driver.stage(&id, &staging, mounted()).await.unwrap();
    driver.publish(publication(&id, &staging, &target, mounted())).await.unwrap();
    driver.unpublish(&id, &target).await.unwrap();
    driver.unstage(&id, &staging).await.unwrap();
    driver.delete(&id).await.unwrap();
    driver.identity.probe(ProbeRequest {}).await.unwrap();
    assert!(!hanging.is_finished());

    drop(frozen);
    hanging.await.unwrap().unwrap();
    driver.stop().await;
}

/// An ext4 filesystem of its own on the place's `pool`.
fn mount_disk(place: &Place) {
    let disk = place.text("disk.img");
    fs::File::create(&disk).unwrap().set_len(256 << 20).unwrap();
    assert!(Command::new("mkfs.ext4").args(["-q", "-F", &disk]).status().unwrap().success());
    assert!(Command::new("mount").args(["-o", "loop", &disk, &place.text("pool")]).status().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_about_a_disk_that_hangs_keeps_no_second_thread_waiting() {
    needs_a_kernel!();
    let place = Place::new();
    // The start finds no pool; the first question does, and would make it one.
    let settings = Running::settings(&place, &place.section("image"));
    fs::write(place.path("pool/precious"), b"x").unwrap();
    let driver = Running::start_with(&place, settings).await;
    mount_disk(&place);
    let frozen = Frozen::new(place.text("pool"));
    let list = || {
        let mut controller = driver.controller.clone();
        tokio::spawn(async move { controller.list_volumes(ListVolumesRequest::default()).await.map(drop) })
    };
    let capacity = || {
        let mut controller = driver.controller.clone();
        tokio::spawn(async move { controller.get_capacity(GetCapacityRequest::default()).await.map(drop) })
    };
    let mut waiting = Vec::new();
    for (mut one, mut two) in [(list(), list()), (capacity(), capacity())] {
        let (refused, hanging) = tokio::select! {
            refused = &mut one => (refused, two),
            refused = &mut two => (refused, one),
        };
        expect_code(refused.unwrap(), Code::Aborted);
        waiting.push(hanging);
    }
    drop(frozen);
    for call in waiting {
        call.await.unwrap().unwrap();
    }
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_that_fails_leaves_no_record_behind() {
    needs_a_kernel!();
    let place = Place::new();
    let mut driver = Running::start(&place, &place.section("directory")).await;
    let id = driver.create(request("pvc-1", 0, mounted())).await.unwrap().volume_id;
    let record = place.path("state/storage/attachments").join(format!("{id}.json"));
    // A directory where the record belongs can't be removed as a file.
    fs::create_dir(&record).unwrap();
    expect_code(driver.delete(&id).await, Code::Internal);
    assert_eq!(place.volumes(), [id.as_str()], "the volume is gone, and no retry will come to its record");
    fs::remove_dir(&record).unwrap();
    fs::write(&record, b"{}").unwrap();
    driver.delete(&id).await.unwrap();
    place.expect_clean();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn work_goes_on_when_the_client_goes_away() {
    needs_a_kernel!();
    let place = Place::new();
    let driver = Running::start(&place, &place.section("image")).await;
    let creates: Vec<_> = (0..16)
        .map(|number| {
            let mut controller = driver.controller.clone();
            let wish = request(&format!("pvc-{number}"), 1 << 30, mounted());
            tokio::spawn(async move { controller.create_volume(wish).await })
        })
        .collect();
    // 16 filesystems at once keep the machine busy for longer than it takes to see the first of them begun.
    let begun = wait_until_async("a volume to be begun", Duration::from_secs(60), async || {
        Some(names(&place.path("pool/building"))).filter(|begun| !begun.is_empty())
    })
    .await;
    for create in &creates {
        create.abort();
    }
    wait_until_async("nothing to be in the making", Duration::from_secs(60), async || {
        names(&place.path("pool/building")).is_empty().then_some(())
    })
    .await;
    let volumes = place.volumes();
    assert!(begun.iter().all(|id| volumes.contains(id)), "{begun:?} became {volumes:?}");
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_name_asked_for_at_once_is_one_volume() {
    needs_a_kernel!();
    let place = Place::new();
    let driver = Running::start(&place, &place.section("image")).await;
    let creates = (0..8).map(|_| {
        let mut controller = driver.controller.clone();
        tokio::spawn(async move { controller.create_volume(request("pvc-1", 16 * MIB, mounted())).await })
    });
    let mut ids = Vec::new();
    for create in creates.collect::<Vec<_>>() {
        match create.await.unwrap() {
            Ok(answer) => ids.push(answer.into_inner().volume.unwrap().volume_id),
            Err(status) => assert_eq!(status.code(), Code::Aborted, "{status:?}"),
        }
    }
    ids.dedup();
    assert_eq!(ids, place.volumes());
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_counted_by_method_and_code() {
    needs_a_kernel!();
    let place = Place::new();
    let mut driver = Running::start(&place, &place.section("directory")).await;
    driver.create(request("pvc-1", 0, mounted())).await.unwrap();
    expect_code(driver.delete("").await, Code::InvalidArgument);
    let text = driver.metrics();
    for line in [
        r#"keelson_storage_rpc_total{method="CreateVolume",code="Ok"} 1"#,
        r#"keelson_storage_rpc_total{method="DeleteVolume",code="InvalidArgument"} 1"#,
        r#"keelson_storage_rpc_duration_seconds_count{method="CreateVolume"} 1"#,
        r#"keelson_storage_rpc_in_flight 0"#,
        r#"keelson_storage_pool_available{pool="pool"} 1"#,
    ] {
        assert!(text.contains(line), "{line} is not in {text}");
    }
    driver.stop().await;
    assert!(!place.socket().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_gone_read_only_is_sick_and_says_so_everywhere() {
    needs_a_kernel!();
    for kind in ["image", "directory"] {
        let place = Place::new();
        place.mount_tmpfs("pool", "size=64m");
        let mut driver = Running::start(&place, &place.section(kind)).await;
        let staging = place.text("staging");
        let id = driver.create(request("pvc-1", 16 * MIB, mounted())).await.unwrap().volume_id;
        let remount = |option: &str| {
            let status = Command::new("mount").args(["-o", option]).arg(place.path("pool")).status().unwrap();
            assert!(status.success());
        };
        remount("remount,ro");
        for _ in 0..2 {
            for status in [
                driver.stage(&id, &staging, mounted()).await.unwrap_err(),
                driver.create(request("pvc-2", 16 * MIB, mounted())).await.unwrap_err(),
                driver.delete(&id).await.unwrap_err(),
                capacity(&mut driver).await.unwrap_err(),
            ] {
                assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                assert!(status.message().to_lowercase().contains("read-only"), "{status:?}");
            }
            assert_eq!(place.mounts().len(), 1);
            assert!(driver.metrics().contains(r#"keelson_storage_pool_available{pool="pool"} 0"#));
            assert_eq!(list(&mut driver, "", 0).await.unwrap().0, std::slice::from_ref(&id), "it can be seen");
            driver.stop().await;
            driver = Running::start(&place, &place.section(kind)).await;
        }
        remount("remount,rw");
        driver.stage(&id, &staging, mounted()).await.unwrap();
        assert!(driver.metrics().contains(r#"keelson_storage_pool_available{pool="pool"} 1"#));
        driver.unstage(&id, &staging).await.unwrap();
        driver.delete(&id).await.unwrap();
        place.expect_clean();
        driver.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_exists_under_a_name_decides_whatever_is_asked_for() {
    needs_a_kernel!();
    let place = Place::new();
    let mut section = place.section("directory");
    let image = json!({"name": "image", "path": place.path("state/image"), "allowSharedFilesystem": true});
    section["pools"].as_array_mut().unwrap().push(image);
    let mut driver = Running::start(&place, &section).await;
    let there = Topology { segments: BTreeMap::from([("topology.keelson.dev/node".to_owned(), "node-b".to_owned())]) };
    for pool in ["pool", "image"] {
        let wish = || {
            let mut wish = request(&format!("pvc-{pool}"), 64 * MIB, mounted());
            wish.parameters.insert("pool".to_owned(), pool.to_owned());
            wish
        };
        let id = driver.create(wish()).await.unwrap().volume_id;
        for (number, change) in [
            |wish: &mut CreateVolumeRequest| drop(wish.parameters.insert("pool".to_owned(), "nowhere".to_owned())),
            |wish: &mut CreateVolumeRequest| {
                drop(wish.parameters.insert("provisioning".to_owned(), "thick".to_owned()));
            },
            |wish: &mut CreateVolumeRequest| wish.volume_capabilities = vec![block()],
            |wish: &mut CreateVolumeRequest| {
                wish.capacity_range = Some(CapacityRange { required_bytes: 0, limit_bytes: 1 });
            },
            |wish: &mut CreateVolumeRequest| {
                wish.capacity_range = Some(CapacityRange { required_bytes: i64::MAX, limit_bytes: 0 });
            },
        ]
        .into_iter()
        .enumerate()
        {
            let mut wish = wish();
            change(&mut wish);
            let status = expect_code(driver.create(wish).await, Code::AlreadyExists);
            assert!(status.message().contains("exists, but"), "{number}: {status}");
        }
        let mut elsewhere = wish();
        let requisite = vec![there.clone()];
        elsewhere.accessibility_requirements = Some(TopologyRequirement { requisite, preferred: vec![] });
        expect_code(driver.create(elsewhere).await, Code::AlreadyExists);
        // What isn't well-formed is told first.
        let mut malformed = wish();
        malformed.parameters.insert("pol".to_owned(), "x".to_owned());
        expect_code(driver.create(malformed).await, Code::InvalidArgument);
        driver.delete(&id).await.unwrap();
    }
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_is_one_process_s_at_a_time() {
    needs_a_kernel!();
    let (place, other) = (Place::new(), Place::new());
    let mut first = Running::start(&place, &place.section("image")).await;
    let id = first.create(request("pvc-1", MIB, block())).await.unwrap().volume_id;
    let draft = place.path("pool/building/v1-00000000000000000000000000000001");
    fs::create_dir(&draft).unwrap();

    // Another socket and another state directory, but the same pool.
    let mut section = other.section("image");
    section["pools"][0]["path"] = json!(place.path("pool"));
    let mut second = Running::start(&other, &section).await;
    let status = expect_code(second.create(request("pvc-2", MIB, block())).await, Code::Unavailable);
    assert!(status.message().contains("in use by another process"), "{status}");
    expect_code(second.delete(&id).await, Code::Unavailable);
    assert!(draft.is_dir(), "what the other process may be building is not swept");
    assert!(second.metrics().contains(r#"keelson_storage_pool_available{pool="pool"} 0"#));

    first.stop().await;
    // Nobody needs to start it anew.
    assert_eq!(list(&mut second, "", 0).await.unwrap().0, std::slice::from_ref(&id));
    assert!(!draft.exists());
    second.delete(&id).await.unwrap();
    second.stop().await;
    place.expect_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_the_driver_lacks_is_refused_with_a_message() {
    needs_a_kernel!();
    let place = Place::new();
    let driver = Running::start(&place, &place.section("directory")).await;
    let channel = common::connect(&place.socket()).await.unwrap();
    let request = GroupControllerGetCapabilitiesRequest {};
    let answer = GroupControllerClient::new(channel).group_controller_get_capabilities(request).await;
    let status = expect_code(answer, Code::Unimplemented);
    assert_eq!(status.message(), "this driver has no such service or method");
    driver.stop().await;
}

/// What a pool can promise after volumes came and went is what it could before, but for a little.
async fn gives_back(filesystem: &str, volumes: &[CreateVolumeRequest]) {
    let place = Place::new();
    let directory = tempfile::Builder::new().prefix("keelson-csi-").tempdir_in("/var/tmp").unwrap();
    let disk = common::disk::Disk::make(&directory.path().join("disk"), filesystem, 2 << 30, &place.path("pool"));
    let mut driver = Running::start(&place, &place.section("image")).await;
    let before = capacity(&mut driver).await.unwrap().available_capacity;
    for wanted in volumes {
        let id = driver.create(wanted.clone()).await.unwrap().volume_id;
        driver.delete(&id).await.unwrap();
    }
    let after = capacity(&mut driver).await.unwrap().available_capacity;
    assert!(after > before - 16 * MIB, "{filesystem}: {before} bytes, then {after}");
    place.expect_clean();
    driver.stop().await;
    disk.unmount();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_deleted_can_be_promised_again_at_once() {
    needs_a_kernel!();
    let lacking = keelson_testkit::missing(&["mkfs.xfs", "mkfs.btrfs"]);
    keelson_testkit::skip_unless!(lacking.is_empty(), format!("needs {}", lacking.join(", ")));
    let mut thick = request("thick", 1024 * MIB, block());
    thick.parameters.insert("provisioning".to_owned(), "thick".to_owned());
    let xfs = |number: i64| {
        let mut wanted = request(&format!("xfs-{number}"), (300 + number) * MIB, mounted());
        wanted.parameters.insert("csi.storage.k8s.io/fstype".to_owned(), "xfs".to_owned());
        wanted
    };
    for filesystem in ["btrfs", "xfs"] {
        gives_back(filesystem, &[thick.clone(), xfs(1), xfs(2), xfs(3), xfs(4)]).await;
    }
}
