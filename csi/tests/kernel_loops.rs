//! Loop devices: what they do to their images, and to whom they belong.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::MetadataExt,
    path::Path,
    process::Command,
};

use common::{MIB, Place, Running, block, disk::Disk, expect_code, mounted, publication, request};
use keelson_proto::csi::v1::CreateVolumeRequest;
use nix::fcntl::{FallocateFlags, fallocate};
use tonic::Code;

/// What `losetup` prints.
fn losetup(arguments: &[&str]) -> String {
    let output = Command::new("losetup").args(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn provisioned(how: &str, request: CreateVolumeRequest) -> CreateVolumeRequest {
    let parameters = [("provisioning".to_owned(), how.to_owned())].into();
    CreateVolumeRequest { parameters, ..request }
}

/// How much of the image is really there.
fn allocated(place: &Place, id: &str) -> u64 {
    fs::metadata(place.path("pool/volumes").join(id).join("image")).unwrap().blocks() * 512
}

fn discard_limit(number: u32) -> u64 {
    let limit = fs::read_to_string(format!("/sys/block/loop{number}/queue/discard_max_bytes")).unwrap();
    limit.trim().parse().unwrap()
}

fn run(program: &str, arguments: &[&str]) -> std::process::ExitStatus {
    Command::new(program).args(arguments).stderr(std::process::Stdio::null()).status().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn discards_from_inside_give_a_thin_volumes_space_back_and_never_a_thick_ones() {
    needs_a_kernel!();
    let missing = keelson_testkit::missing(&["blkdiscard", "fstrim"]);
    keelson_testkit::skip_unless!(missing.is_empty(), format!("needs {}", missing.join(", ")));
    for how in ["thin", "thick"] {
        let is_thick = how == "thick";
        let place = Place::new();
        let mut driver = Running::start(&place, &place.section("image")).await;
        let (staging, target) = (place.text("staging"), place.text("pods/target"));

        // A raw block volume: whoever has the device may discard and punch.
        let volume = driver.create(provisioned(how, request("block", 32 * MIB, block()))).await.unwrap();
        let id = &volume.volume_id;
        driver.stage(id, &staging, block()).await.unwrap();
        driver.publish(publication(id, &staging, &target, block())).await.unwrap();
        let [number] = place.loops()[..] else { panic!("not one loop device: {:?}", place.loops()) };
        assert_eq!(discard_limit(number) == 0, is_thick);
        fs::write(&target, vec![0x5a; 32 << 20]).unwrap();
        let device = OpenOptions::new().write(true).open(&target).unwrap();
        device.sync_all().unwrap();
        let full = allocated(&place, id);
        assert!(full >= 32 << 20, "{full}");
        assert_eq!(run("blkdiscard", &[&target]).success(), !is_thick);
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let _ = fallocate(&device, punch, 0, 16 << 20);
        let _ = fallocate(&device, FallocateFlags::FALLOC_FL_ZERO_RANGE, 16 << 20, 16 << 20);
        device.sync_all().unwrap();
        drop(device);
        assert_eq!(allocated(&place, id) >= full, is_thick, "{how}: {} of {full}", allocated(&place, id));
        driver.unpublish(id, &target).await.unwrap();
        driver.unstage(id, &staging).await.unwrap();
        driver.delete(id).await.unwrap();
        // The number is anybody's again, who may discard. If it is taken already, then by a test with a thin volume.
        let (foreign, node) = (place.path("foreign"), format!("/dev/loop{number}"));
        File::create(&foreign).and_then(|file| file.set_len(1 << 20)).unwrap();
        let bound = run("losetup", &[&node, foreign.to_str().unwrap()]).success();
        assert!(!is_thick || !Path::new(&format!("/sys/block/loop{number}")).exists() || discard_limit(number) > 0);
        if bound {
            losetup(&["-d", &node]);
        }

        // A filesystem that is trimmed.
        let volume = driver.create(provisioned(how, request("mounted", 64 * MIB, mounted()))).await.unwrap();
        let id = &volume.volume_id;
        driver.stage(id, &staging, mounted()).await.unwrap();
        driver.publish(publication(id, &staging, &target, mounted())).await.unwrap();
        let file = Path::new(&target).join("file");
        fs::write(&file, vec![0x5a; 32 << 20]).unwrap();
        File::open(&file).unwrap().sync_all().unwrap();
        let full = allocated(&place, id);
        fs::remove_file(&file).unwrap();
        nix::unistd::syncfs(File::open(&target).unwrap()).unwrap();
        assert_eq!(run("fstrim", &[&target]).success(), !is_thick);
        assert_eq!(allocated(&place, id) >= full, is_thick, "{how}: {} of {full}", allocated(&place, id));
        driver.unpublish(id, &target).await.unwrap();
        driver.unstage(id, &staging).await.unwrap();
        driver.delete(id).await.unwrap();
        place.expect_clean();
        driver.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_published_block_volume_keeps_its_file_and_the_kubelets_lock_on_it_is_not_ours() {
    needs_a_kernel!();
    let place = Place::new();
    let mut driver = Running::start(&place, &place.section("image")).await;
    let (staging, target) = (place.text("staging"), place.text("pods/device"));
    let id = driver.create(request("pvc-1", 16 * MIB, block())).await.unwrap().volume_id;
    driver.stage(&id, &staging, block()).await.unwrap();
    driver.publish(publication(&id, &staging, &target, block())).await.unwrap();
    let [number] = place.loops()[..] else { panic!("not one loop device: {:?}", place.loops()) };
    let device = format!("/dev/loop{number}");
    // The kubelet binds another loop device to what is published, so that it can't vanish (its AttachFileDevice).
    let lock = losetup(&["-f", "--show", &device]);
    assert_ne!(lock, device);

    // Opened and closed by all: the last close takes nothing away.
    fs::write(&target, [0x5a; 4096]).unwrap();
    drop(File::open(&device).unwrap());
    driver.publish(publication(&id, &staging, &target, block())).await.unwrap();
    let backing = fs::read_to_string(format!("/sys/block/loop{number}/loop/backing_file")).unwrap();
    assert!(backing.trim().ends_with(&format!("{id}/image")), "{backing}");
    assert_eq!(fs::read_to_string(format!("/sys/block/loop{number}/loop/autoclear")).unwrap().trim(), "0");

    // A lock that is left behind keeps the volume, and nothing but the volume.
    driver.unpublish(&id, &target).await.unwrap();
    driver.unstage(&id, &staging).await.unwrap();
    assert!(Path::new(&format!("/sys/block/{}/loop/backing_file", &lock["/dev/".len()..])).exists());
    let status = expect_code(driver.delete(&id).await, Code::FailedPrecondition);
    assert!(status.message().contains(&device), "{status}");
    losetup(&["-d", &lock]);
    driver.delete(&id).await.unwrap();
    place.expect_clean();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_others_bound_to_an_image_keeps_it_from_being_deleted() {
    needs_a_kernel!();
    let place = Place::new();
    let mut driver = Running::start(&place, &place.section("image")).await;
    let staging = place.text("staging");
    let id = driver.create(request("pvc-1", 16 * MIB, block())).await.unwrap().volume_id;
    // The driver knows all about it.
    driver.stage(&id, &staging, block()).await.unwrap();
    driver.unstage(&id, &staging).await.unwrap();
    let image = place.path("pool/volumes").join(&id).join("image");
    let device = losetup(&["-f", "--show", image.to_str().unwrap()]);
    let status = expect_code(driver.delete(&id).await, Code::FailedPrecondition);
    assert!(status.message().contains(&device), "{status}");
    losetup(&["-d", &device]);
    driver.delete(&id).await.unwrap();
    place.expect_clean();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_was_let_go_behind_the_drivers_back_is_bound_anew() {
    needs_a_kernel!();
    let place = Place::new();
    let mut driver = Running::start(&place, &place.section("image")).await;
    let staging = place.text("staging");
    let id = driver.create(request("pvc-1", 16 * MIB, block())).await.unwrap().volume_id;
    for _ in 0..2 {
        driver.stage(&id, &staging, block()).await.unwrap();
        let [number] = place.loops()[..] else { panic!("not one loop device: {:?}", place.loops()) };
        losetup(&["-d", &format!("/dev/loop{number}")]);
        keelson_testkit::wait_until("the device to be free", std::time::Duration::from_secs(30), || {
            place.loops().is_empty().then_some(())
        });
        // Somebody else gets the number, as it may be.
        let foreign = place.path("foreign");
        File::create(&foreign).and_then(|file| file.set_len(1 << 20)).unwrap();
        let other = losetup(&["-f", "--show", foreign.to_str().unwrap()]);
        driver.stage(&id, &staging, block()).await.unwrap();
        assert_eq!(place.loops().len(), 2);
        driver.unstage(&id, &staging).await.unwrap();
        assert_eq!(place.loops().len(), 1, "the other is left alone");
        losetup(&["-d", &other]);
    }
    driver.delete(&id).await.unwrap();
    place.expect_clean();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn direct_io_goes_in_blocks_that_the_pools_filesystem_can_do() {
    needs_a_kernel!();
    let place = Place::new();
    let mut driver = Running::start(&place, &place.section("image")).await;
    let (staging, target) = (place.text("staging"), place.text("pods/device"));
    let id = driver.create(request("pvc-1", 16 * MIB, block())).await.unwrap().volume_id;
    driver.stage(&id, &staging, block()).await.unwrap();
    driver.publish(publication(&id, &staging, &target, block())).await.unwrap();
    let [number] = place.loops()[..] else { panic!("not one loop device: {:?}", place.loops()) };
    let attribute = |name: &str| -> u64 {
        fs::read_to_string(format!("/sys/block/loop{number}/{name}")).unwrap().trim().parse().unwrap()
    };
    let block = attribute("queue/logical_block_size");
    assert!(block == 512 || block == 4096, "{block}");
    // What the file itself takes as direct I/O, the device took over.
    let image = place.path("pool/volumes").join(&id).join("image");
    let can = direct_read(&image, block).is_ok();
    assert_eq!(attribute("loop/dio") == 1, can);
    driver.unpublish(&id, &target).await.unwrap();
    driver.unstage(&id, &staging).await.unwrap();
    driver.delete(&id).await.unwrap();
    place.expect_clean();
    driver.stop().await;
}

/// Reads the second block of the file without the page cache.
fn direct_read(path: &Path, block: u64) -> io::Result<()> {
    use std::os::unix::fs::{FileExt, OpenOptionsExt};
    let file = OpenOptions::new().read(true).custom_flags(nix::libc::O_DIRECT).open(path)?;
    let block = usize::try_from(block).unwrap();
    let buffer = &mut vec![0; 2 * 4096 + block];
    let start = buffer.as_ptr().align_offset(4096);
    file.read_exact_at(&mut buffer[start..start + block], block as u64)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sectors_of_a_raw_block_volume_stay_when_its_blocks_are_shared() {
    needs_a_kernel!();
    for (filesystem, sector) in [("xfs", Some("4096")), ("btrfs", Some("4096")), ("ext4", None)] {
        keelson_testkit::skip_unless!(
            keelson_testkit::missing(&[&format!("mkfs.{filesystem}")]).is_empty(),
            "needs xfsprogs and btrfs-progs"
        );
        let place = Place::new();
        let disk = Disk::make(&place.path("disk"), filesystem, 512 << 20, &place.path("pool"));
        if filesystem == "ext4" {
            fs::remove_dir(place.path("pool/lost+found")).unwrap();
        }
        let mut driver = Running::start(&place, &place.section("image")).await;
        let volume = driver.create(request("block", 32 * MIB, block())).await.unwrap();
        let (id, staging) = (&volume.volume_id, place.text("staging"));
        let image = place.path("pool/volumes").join(id).join("image");
        let mut seen = Vec::new();
        for _ in 0..2 {
            driver.stage(id, &staging, block()).await.unwrap();
            let behind =
                |number: &u32| fs::read_to_string(format!("/sys/block/loop{number}/loop/backing_file")).unwrap();
            let number =
                place.loops().into_iter().find(|number| behind(number).trim() == image.to_str().unwrap()).unwrap();
            let found = fs::read_to_string(format!("/sys/block/loop{number}/queue/logical_block_size")).unwrap();
            seen.push(found.trim().to_owned());
            let device = OpenOptions::new().write(true).open(format!("/dev/loop{number}")).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&device, &[1; 1 << 16], 0).unwrap();
            device.sync_all().unwrap();
            drop(device);
            driver.unstage(id, &staging).await.unwrap();
            // On btrfs cp would need to know that the image has no checksums.
            if filesystem == "xfs" {
                let copy = place.path("pool/building").join(format!("copy-{}", seen.len()));
                assert!(run("cp", &["--reflink=always", image.to_str().unwrap(), copy.to_str().unwrap()]).success());
            }
        }
        assert_eq!(seen[0], seen[1], "{filesystem}");
        assert!(sector.is_none_or(|sector| seen[0] == sector), "{filesystem}: {seen:?}");
        driver.delete(id).await.unwrap();
        driver.stop().await;
        disk.unmount();
    }
}
