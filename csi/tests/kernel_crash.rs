//! What goes wrong around helpers and at the end of the process. kernel_kill.rs kills the driver and its helpers.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    fs,
    io::Read,
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use common::{MIB, NODE, Place, connect, expect_code, mounted, request};
use keelson_proto::csi::v1::{CreateVolumeRequest, DeleteVolumeRequest, controller_client::ControllerClient};
use keelson_testkit::{missing, skip_unless, wait_until, wait_until_async};
use nix::{
    sys::{
        signal::{Signal, kill},
        stat::Mode,
    },
    unistd::{Pid, mkfifo},
};
use tonic::{Code, transport::Channel};

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

    /// The ids of its child processes, dead or alive.
    fn children(&self) -> Vec<u32> {
        let parent = format!("PPid:\t{}\n", self.id());
        let processes = fs::read_dir("/proc").unwrap().flatten();
        // A process that ends meanwhile is nobody's child.
        processes
            .filter(|entry| fs::read_to_string(entry.path().join("status")).is_ok_and(|text| text.contains(&parent)))
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect()
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
        // The helpers that wait to be asked.
        for child in victim.children() {
            command.args(["-p", &child.to_string()]);
        }
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        // It says so when it has attached. What else it says stays in the pipe.
        let said = child.stderr.as_mut().unwrap().read(&mut [0; 4096]).unwrap();
        assert!(said > 0, "strace has ended");
        Self(child)
    }

    fn holds(&self, victim: &Victim) -> bool {
        let tracer = format!("TracerPid:\t{}\n", self.0.id());
        let threads = fs::read_dir(format!("/proc/{}/task", victim.id())).unwrap().flatten();
        let helpers = victim.children().into_iter().map(|child| format!("/proc/{child}").into());
        let mut all = threads.map(|thread| thread.path()).chain(helpers);
        all.all(|process: PathBuf| {
            fs::read_to_string(process.join("status")).is_ok_and(|status| status.contains(&tracer))
        })
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
    assert_eq!(victim.children(), [0; 0]);
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
