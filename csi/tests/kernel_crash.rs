//! SIGKILL at the system calls that change something: the successor and the retry finish the job, and nothing is lost
//! or left over.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    fs,
    io::Read,
    os::unix::{fs::OpenOptionsExt, process::ExitStatusExt},
    process::{Child, Command, Stdio},
    time::Duration,
};

use common::{MIB, NODE, Place, block, connect, expect_code, mounted, publication, request};
use keelson_proto::csi::v1::{
    CreateVolumeRequest, DeleteVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest,
    NodeUnstageVolumeRequest, VolumeCapability, controller_client::ControllerClient, node_client::NodeClient,
};
use keelson_testkit::{missing, skip_unless, wait_until, wait_until_async};
use nix::{
    sys::{
        signal::{Signal, kill},
        stat::Mode,
    },
    unistd::{Pid, mkfifo},
};
use tonic::{Code, Status, transport::Channel};

/// A driver in a process of its own, killed when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One that serves.
struct Victim {
    process: Process,
    channel: Channel,
}

impl Victim {
    fn spawn(place: &Place, kind: &str) -> Process {
        let section = place.path("section.json");
        fs::write(&section, place.section(kind).to_string()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_keelson-csi-alone"));
        command.arg("serve").args([&section, &NODE.into(), &place.path("state")]);
        Process(command.stdin(Stdio::null()).spawn().unwrap())
    }

    async fn start(place: &Place, kind: &str) -> Self {
        let process = Self::spawn(place, kind);
        let socket = place.socket();
        let channel =
            wait_until_async("the driver to serve", Duration::from_secs(60), async || connect(&socket).await.ok())
                .await;
        Self { process, channel }
    }

    fn id(&self) -> u32 {
        self.process.0.id()
    }

    /// Waits for it to die of SIGKILL, as the answer suggests that its client got.
    fn expect_killed(mut self, answer: &Status) {
        let what = format!("the driver to die, who answered {answer}");
        let status = wait_until(&what, Duration::from_secs(60), || self.process.0.try_wait().unwrap());
        assert_eq!(status.signal(), Some(9), "{status}");
    }

    /// How many child processes it has, dead or alive.
    fn children(&self) -> usize {
        let parent = format!("PPid:\t{}\n", self.id());
        let processes = fs::read_dir("/proc").unwrap().flatten();
        // A process that ends meanwhile is nobody's child.
        processes
            .filter(|entry| fs::read_to_string(entry.path().join("status")).is_ok_and(|text| text.contains(&parent)))
            .count()
    }
}

/// An strace that lies in wait for a driver and its helpers; gone when dropped, and they run on.
struct Trap(Child);

impl Trap {
    /// Lets each of the system calls `calls` fail, or kill who makes it, as `what` says in strace's words.
    fn set(victim: &Victim, calls: &str, what: &str) -> Self {
        // A thread that is started while strace attaches may escape it.
        wait_until("all threads to be traced", Duration::from_secs(60), || {
            let trap = Self::try_to_set(victim, calls, what);
            trap.holds(victim).then_some(trap)
        })
    }

    fn try_to_set(victim: &Victim, calls: &str, what: &str) -> Self {
        let mut command = Command::new("strace");
        command.args(["-f", "-o", "/dev/null", "-e", &format!("trace={calls}")]);
        command.args(["-e", &format!("inject={calls}:{what}"), "-p", &victim.id().to_string()]);
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        // It says so when it has attached. What else it says stays in the pipe.
        let said = child.stderr.as_mut().unwrap().read(&mut [0; 4096]).unwrap();
        assert!(said > 0, "strace has ended");
        Self(child)
    }

    fn holds(&self, victim: &Victim) -> bool {
        let tracer = format!("TracerPid:\t{}\n", self.0.id());
        let threads = fs::read_dir(format!("/proc/{}/task", victim.id())).unwrap().flatten();
        threads
            .map(|thread| fs::read_to_string(thread.path().join("status")))
            .all(|status| status.is_ok_and(|status| status.contains(&tracer)))
    }
}

impl Drop for Trap {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether this machine lets processes be traced.
fn can_trace() -> bool {
    missing(&["strace"]).is_empty()
        && Command::new("strace").args(["-o", "/dev/null", "true"]).status().is_ok_and(|status| status.success())
}

/// The steps of a volume's life, by the calls of a kubelet and a provisioner that try again until they succeed.
struct Life {
    name: String,
    capability: VolumeCapability,
    staging: String,
    target: String,
    id: Option<String>,
}

impl Life {
    const STEPS: usize = 6;

    async fn step(&mut self, number: usize, channel: &Channel) -> Result<(), Status> {
        let mut controller = ControllerClient::new(channel.clone());
        let mut node = NodeClient::new(channel.clone());
        let volume_id = self.id.clone().unwrap_or_default();
        match number {
            0 => {
                let wish: CreateVolumeRequest = request(&self.name, 16 * MIB, self.capability.clone());
                let id = controller.create_volume(wish).await?.into_inner().volume.unwrap().volume_id;
                // What was answered once is the answer for ever.
                assert_eq!(*self.id.get_or_insert(id.clone()), id);
                Ok(())
            }
            1 => {
                let request = NodeStageVolumeRequest {
                    volume_id,
                    staging_target_path: self.staging.clone(),
                    volume_capability: Some(self.capability.clone()),
                    ..NodeStageVolumeRequest::default()
                };
                node.node_stage_volume(request).await.map(drop)
            }
            2 => {
                let request = publication(&volume_id, &self.staging, &self.target, self.capability.clone());
                node.node_publish_volume(request).await.map(drop)
            }
            3 => {
                let request = NodeUnpublishVolumeRequest { volume_id, target_path: self.target.clone() };
                node.node_unpublish_volume(request).await.map(drop)
            }
            4 => {
                let request = NodeUnstageVolumeRequest { volume_id, staging_target_path: self.staging.clone() };
                node.node_unstage_volume(request).await.map(drop)
            }
            _ => {
                let request = DeleteVolumeRequest { volume_id, ..DeleteVolumeRequest::default() };
                controller.delete_volume(request).await.map(drop)
            }
        }
    }
}

const CREATE: usize = 0;
const STAGE: usize = 1;
const PUBLISH: usize = 2;
const UNPUBLISH: usize = 3;
const UNSTAGE: usize = 4;
const DELETE: usize = 5;

// The names of one system call on different machines; strace passes over those that this one lacks.
const MKDIR: &str = "?mkdir,?mkdirat";
const RENAME: &str = "?rename,?renameat,?renameat2";
const UNLINK: &str = "?unlink,?unlinkat,?rmdir";

/// Lives a volume's life again and again. In each, who makes the `count`th of the given system calls during the given
/// step, the driver or its helper, is killed as it enters it; `count` grows until the step ends before it. Gives how often a driver and a helper were killed.
async fn live_and_be_killed(kind: &str, capability: VolumeCapability, moments: &[(usize, &str)]) -> (usize, usize) {
    let place = Place::new();
    let mut victim = Victim::start(&place, kind).await;
    let (mut drivers, mut helpers) = (0, 0);
    for (doomed, calls) in moments {
        for count in 1.. {
            let at = format!("step {doomed} killed at {calls} {count}");
            let mut life = Life {
                name: format!("pvc-{doomed}-{calls}-{count}"),
                capability: capability.clone(),
                staging: place.text("staging"),
                target: place.text("pods/target"),
                id: None,
            };
            let mut hit = true;
            for step in 0..Life::STEPS {
                if step == *doomed {
                    let trap = Trap::set(&victim, calls, &format!("signal=KILL:when={count}"));
                    let channel = victim.channel.clone();
                    match life.step(step, &channel).await {
                        Ok(()) => hit = false,
                        Err(status) if status.message().contains("signal: 9") => helpers += 1,
                        Err(status) => {
                            victim.expect_killed(&status);
                            drivers += 1;
                            victim = Victim::start(&place, kind).await;
                        }
                    }
                    drop(trap);
                }
                let channel = victim.channel.clone();
                // A helper of the killed driver may be ending just now.
                wait_until_async(&format!("step {step} after {at}"), Duration::from_secs(60), async || {
                    life.step(step, &channel).await.ok()
                })
                .await;
                if step == PUBLISH {
                    let target = place.path("pods/target");
                    assert_eq!(place.mounts().iter().filter(|mount| mount.point == target).count(), 1, "{at}");
                }
            }
            place.expect_clean();
            if !hit {
                assert!(count > 1, "step {doomed} makes no {calls}");
                break;
            }
        }
    }
    eprintln!("{kind}: {drivers} drivers and {helpers} helpers were killed");
    (drivers, helpers)
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_step_of_an_image_volumes_life() {
    needs_a_kernel!();
    skip_unless!(can_trace(), "needs strace, and the right to trace processes");
    let moments = [
        (CREATE, MKDIR),
        (CREATE, "openat"),
        (CREATE, "ftruncate"),
        (CREATE, "execve"),
        (CREATE, "fsync"),
        (CREATE, RENAME),
        (STAGE, RENAME),
        (STAGE, "ioctl"),
        (STAGE, "fsopen,fsconfig,fsmount,move_mount"),
        (PUBLISH, MKDIR),
        (PUBLISH, RENAME),
        (PUBLISH, "open_tree,mount_setattr,move_mount"),
        (UNPUBLISH, "umount2"),
        (UNPUBLISH, UNLINK),
        (UNPUBLISH, RENAME),
        (UNSTAGE, "umount2"),
        (UNSTAGE, "ioctl"),
        (UNSTAGE, UNLINK),
        (DELETE, RENAME),
        (DELETE, "fsync"),
        (DELETE, UNLINK),
    ];
    let killed = live_and_be_killed("image", mounted(), &moments).await;
    assert!(killed.0 >= 30 && killed.1 >= 20, "{killed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_step_of_a_block_volumes_life() {
    needs_a_kernel!();
    skip_unless!(can_trace(), "needs strace, and the right to trace processes");
    let moments = [
        (STAGE, RENAME),
        (STAGE, "ioctl"),
        (PUBLISH, "openat2"),
        (PUBLISH, "ioctl"),
        (PUBLISH, "open_tree,move_mount"),
        (UNPUBLISH, UNLINK),
        (UNSTAGE, "ioctl"),
    ];
    let killed = live_and_be_killed("image", block(), &moments).await;
    assert!(killed.0 >= 20 && killed.1 >= 1, "{killed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_step_of_a_directory_volumes_life() {
    needs_a_kernel!();
    skip_unless!(can_trace(), "needs strace, and the right to trace processes");
    let moments = [
        (CREATE, MKDIR),
        (CREATE, "fsync"),
        (CREATE, RENAME),
        (STAGE, "open_tree,mount_setattr,move_mount"),
        (PUBLISH, "open_tree,mount_setattr,move_mount"),
        (DELETE, RENAME),
        (DELETE, UNLINK),
    ];
    let killed = live_and_be_killed("directory", mounted(), &moments).await;
    assert!(killed.0 >= 8 && killed.1 >= 2, "{killed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_helper_that_cannot_be_watched_is_not_left_alone() {
    needs_a_kernel!();
    skip_unless!(can_trace(), "needs strace, and the right to trace processes");
    let place = Place::new();
    let victim = Victim::start(&place, "image").await;
    let mut controller = ControllerClient::new(victim.channel.clone());
    let wish: CreateVolumeRequest = request("pvc-1", 16 * MIB, mounted());
    let trap = Trap::set(&victim, "pidfd_open", "error=EMFILE");
    expect_code(controller.create_volume(wish.clone()).await, Code::Internal);
    assert_eq!(victim.children(), 0);
    drop(trap);
    let volume = controller.create_volume(wish).await.unwrap().into_inner().volume.unwrap();
    let request = DeleteVolumeRequest { volume_id: volume.volume_id, ..DeleteVolumeRequest::default() };
    controller.delete_volume(request).await.unwrap();
    place.expect_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_does_not_answer_does_not_keep_the_program() {
    needs_a_kernel!();
    let place = Place::new();
    let victim = Victim::start(&place, "image").await;
    // The start doesn't wait for a slow disk.
    wait_until("the pool to be made", Duration::from_secs(60), || place.path("pool/volumes").exists().then_some(()));
    drop(victim);
    // A record that nobody ever writes stands for it.
    let folder = place.path("pool/volumes/v1-00000000000000000000000000000001");
    fs::create_dir(&folder).unwrap();
    let record = folder.join("volume.json");
    mkfifo(&record, Mode::S_IRUSR).unwrap();
    let mut victim = Victim::spawn(&place, "image");
    // Only what somebody reads can be opened in this way.
    let open = || fs::OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&record).ok();
    let _writer = wait_until("the driver to wait for the record", Duration::from_secs(60), open);
    kill(Pid::from_raw(victim.0.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    let status = wait_until("the driver to end", Duration::from_secs(60), || victim.0.try_wait().unwrap());
    assert!(status.success(), "{status}");
}
