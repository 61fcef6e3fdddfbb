//! The plugin against a strict fake of the container runtime, in both eras of NRI.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod fake_runtime;

use std::{fs, path::Path, sync::Arc, time::Duration};

use fake_runtime::{Era, FakeRuntime, container, pod};
use keelson_host::{DeviceKind, HostRoot, Node, fixture::Spec};
use keelson_nri::{DeviceLocality, Mode, PinningSection, Plugin};
use keelson_proto::nri::v1alpha1::{
    Container, Empty, LinuxCpu, LinuxDevice, LinuxResources, OptionalInt64, OptionalUInt64,
};
use prometheus_client::registry::Registry;
use tempfile::TempDir;
use tokio::{sync::watch, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

/// A net for a hung test, not an assertion of speed.
const LIMIT: Duration = Duration::from_secs(60);

/// A character device with major number 240 is on NUMA node 1, all others on none.
struct FpgaOnNode1;

impl DeviceLocality for FpgaOnNode1 {
    fn numa_node(&self, kind: DeviceKind, major: u32, _minor: u32) -> Option<u32> {
        (kind == DeviceKind::Char && major == 240).then_some(1)
    }
}

/// A generated machine with room for the plugin's state and the runtime's socket.
struct Machine {
    directory: TempDir,
    root: HostRoot,
}

impl Machine {
    fn new(spec: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("host");
        fs::create_dir(&root).unwrap();
        let root = spec.parse::<Spec>().unwrap().build(&root).unwrap();
        Self { directory, root }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    fn runtime(&self, era: Era) -> FakeRuntime {
        FakeRuntime::start(&self.path("nri.sock"), era)
    }

    fn plugin(&self, mode: Mode, reserved: &str) -> Running {
        let section = PinningSection {
            socket: self.path("nri.sock"),
            mode,
            reserved_cpus: reserved.to_owned(),
            ..PinningSection::default()
        };
        let node = Node { name: "node-a".to_owned(), state_dir: self.path("state"), root: self.root.clone() };
        let settings = section.validate(&node).unwrap();
        let mut registry = Registry::default();
        let plugin = Plugin::new(settings, Arc::new(FpgaOnNode1), &mut registry).unwrap();
        let (ready, readiness) = watch::channel(Err("not started".to_owned()));
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(plugin.run(ready, shutdown.clone()));
        Running { task, shutdown, readiness, registry }
    }

    fn records(&self) -> Vec<String> {
        let names = fs::read_dir(self.path("state/pinning/containers")).unwrap();
        let mut names: Vec<String> = names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn record(&self, id: &str) -> String {
        fs::read_to_string(self.path("state/pinning/containers").join(format!("{id}.json"))).unwrap()
    }
}

/// The plugin at work.
struct Running {
    task: JoinHandle<Result<(), keelson_nri::Error>>,
    shutdown: CancellationToken,
    readiness: watch::Receiver<Result<(), String>>,
    registry: Registry,
}

impl Running {
    async fn ready(&mut self) {
        timeout(LIMIT, self.readiness.wait_for(Result::is_ok))
            .await
            .expect("the plugin becomes ready")
            .unwrap()
            .clone()
            .unwrap();
    }

    /// Waits for a reason not to be ready that contains `text`.
    async fn not_ready(&mut self, text: &str) {
        let condition = |state: &Result<(), String>| state.as_ref().is_err_and(|reason| reason.contains(text));
        let waited = timeout(LIMIT, self.readiness.wait_for(condition)).await.is_ok();
        assert!(waited, "{text:?} was not the reason: {:?}", *self.readiness.borrow());
    }

    async fn stop(self) {
        self.shutdown.cancel();
        timeout(LIMIT, self.task).await.expect("the plugin ends").unwrap().unwrap();
    }

    fn metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        text
    }
}

fn with_device(mut container: Container, major: i64) -> Container {
    let device = LinuxDevice {
        path: "/dev/fpga0".to_owned(),
        r#type: "c".to_owned(),
        major,
        minor: 0,
        ..LinuxDevice::default()
    };
    container.linux.as_mut().unwrap().devices.push(device);
    container
}

#[tokio::test]
async fn registers_and_synchronizes_in_both_eras() {
    for era in Era::BOTH {
        let machine = Machine::new("cores=2");
        let mut runtime = machine.runtime(era);
        let mut plugin = machine.plugin(Mode::Enforce, "");
        let active = runtime.activate().await.unwrap();
        assert_eq!(active.registration.plugin_name, "keelson");
        assert_eq!(active.registration.plugin_idx, "10");
        // RemovePodSandbox, CreateContainer, UpdateContainer, StopContainer, RemoveContainer.
        assert_eq!(active.connection.events, 0x68c);
        assert!(active.synchronized.is_empty());
        plugin.ready().await;
        assert!(plugin.metrics().contains("keelson_pinning_synchronized 1\n"), "{}", plugin.metrics());
        plugin.stop().await;
    }
}

#[tokio::test]
async fn a_pod_gets_its_own_cpu_and_its_peer_the_rest() {
    for era in Era::BOTH {
        let machine = Machine::new("cores=2");
        let mut runtime = machine.runtime(era);
        runtime.pods.insert("app".to_owned(), pod("app", ""));
        runtime.pods.insert("peer".to_owned(), pod("peer", "besteffort"));
        let plugin = machine.plugin(Mode::Enforce, "");
        let mut active = runtime.activate().await.unwrap();
        active.create(container("c-peer", "peer", 0)).await.unwrap();
        assert_eq!(active.runtime.cpus("c-peer"), "0-1");
        // The peer makes room with the reply that creates the other, before that one exists.
        active.create(container("c-app", "app", 1000)).await.unwrap();
        assert_eq!((active.runtime.cpus("c-app"), active.runtime.mems("c-app")), ("0", "0"));
        assert_eq!(active.runtime.cpus("c-peer"), "1");
        assert_eq!(machine.records(), ["c-app.json", "c-peer.json"]);
        let record: serde_json::Value = serde_json::from_str(&machine.record("c-app")).unwrap();
        assert_eq!(record["placement"], serde_json::json!({"kind": "exclusive", "cpus": "0", "mems": "0"}));
        assert_eq!(record["pod"]["name"], "name-app");
        assert_eq!(
            record["reasons"],
            serde_json::json!([
                "its Pod is Guaranteed and its limit is 1 whole CPUs: 0 are its own",
                "its memory is bound to node 0, where its CPUs are"
            ])
        );
        active.stop("c-app").await.unwrap();
        assert_eq!(active.runtime.cpus("c-peer"), "0-1");
        assert_eq!(machine.records(), ["c-peer.json"]);
        let metrics = plugin.metrics();
        for line in [
            "keelson_pinning_updates_total 2\n",
            "keelson_pinning_requests_total{method=\"CreateContainer\",code=\"0\"} 2\n",
            "keelson_pinning_containers{placement=\"shared\"} 1\n",
            "keelson_pinning_cpus{use=\"shared\"} 2\n",
        ] {
            assert!(metrics.contains(line), "{line} is not in {metrics}");
        }
        plugin.stop().await;
    }
}

#[tokio::test]
async fn removals_free_cpus_in_both_eras() {
    for era in Era::BOTH {
        let machine = Machine::new("cores=8");
        let mut runtime = machine.runtime(era);
        runtime.pods.insert("app".to_owned(), pod("app", ""));
        runtime.pods.insert("other".to_owned(), pod("other", ""));
        runtime.pods.insert("peer".to_owned(), pod("peer", "burstable"));
        let plugin = machine.plugin(Mode::Enforce, "");
        let mut active = runtime.activate().await.unwrap();
        active.create(container("c-peer", "peer", 500)).await.unwrap();
        active.create(container("c-app", "app", 2000)).await.unwrap();
        active.create(container("c-other", "other", 3000)).await.unwrap();
        assert_eq!(active.runtime.cpus("c-peer"), "5-7");
        // Neither removal can carry updates; the next reply that can does.
        active.remove("c-app").await.unwrap();
        active.remove_pod("other").await.unwrap();
        assert_eq!(machine.records(), ["c-peer.json"]);
        assert_eq!(active.runtime.cpus("c-peer"), "5-7");
        active.create(Container { name: "late".to_owned(), ..container("c-late", "peer", 0) }).await.unwrap();
        assert_eq!((active.runtime.cpus("c-peer"), active.runtime.cpus("c-late")), ("0-7", "0-7"));
        plugin.stop().await;
    }
}

#[tokio::test]
async fn five_hundred_containers_come_in_pieces_and_their_updates_go_as_go_can_read_them() {
    let machine = Machine::new("cores=16 threads=2");
    let mut runtime = machine.runtime(Era::StateChange);
    runtime.pods.insert("app".to_owned(), pod("app", ""));
    for number in 0..500 {
        let sandbox = format!("pod{number:03}");
        let class = if number % 2 == 0 { "besteffort" } else { "burstable" };
        runtime.pods.insert(sandbox.clone(), pod(&sandbox, class));
        let id = format!("{number:064}");
        runtime.containers.insert(id.clone(), container(&id, &sandbox, 0));
    }
    for chunk in [None, Some(1), Some(37)] {
        runtime.chunk = chunk;
        let plugin = machine.plugin(Mode::Enforce, "");
        let mut active = runtime.activate().await.unwrap();
        active.create(container("c-app", "app", 2000)).await.unwrap();
        assert_eq!(active.runtime.cpus("c-app"), "0,16");
        assert!((0..500).all(|number| active.runtime.cpus(&format!("{number:064}")) == "1-15,17-31"));
        // 500 updates make a reply of 45 kB, many times the buffer that a Go peer reads through.
        let stopped = active.stop("c-app").await.unwrap();
        assert_eq!(stopped.update.len(), 500);
        plugin.stop().await;
    }
}

#[tokio::test]
async fn a_runtime_that_restarts_is_found_again_and_nothing_is_moved() {
    let machine = Machine::new("cores=4");
    let mut runtime = machine.runtime(Era::StateChange);
    runtime.pods.insert("app".to_owned(), pod("app", ""));
    runtime.pods.insert("peer".to_owned(), pod("peer", "besteffort"));
    let mut plugin = machine.plugin(Mode::Enforce, "");
    let mut active = runtime.activate().await.unwrap();
    active.create(container("c-peer", "peer", 0)).await.unwrap();
    active.create(container("c-app", "app", 2000)).await.unwrap();
    plugin.ready().await;
    drop(active);
    runtime.stop_listening();
    plugin.not_ready("nri.sock").await;
    assert!(plugin.metrics().contains("keelson_pinning_synchronized 0\n"));
    // While nobody looked, a container ended and another started unpinned.
    runtime.pods.insert("late".to_owned(), pod("late", "besteffort"));
    runtime.containers.insert("c-late".to_owned(), container("c-late", "late", 0));
    runtime.listen();
    let mut active = runtime.activate().await.unwrap();
    plugin.ready().await;
    assert_eq!(active.runtime.cpus("c-app"), "0-1");
    assert_eq!(active.runtime.cpus("c-peer"), "2-3");
    let moved: Vec<&str> = active.synchronized.iter().map(|update| update.container_id.as_str()).collect();
    assert_eq!((moved, active.runtime.cpus("c-late")), (vec!["c-late"], "2-3"));
    active.stop("c-app").await.unwrap();
    assert_eq!((active.runtime.cpus("c-late"), active.runtime.cpus("c-peer")), ("0-3", "0-3"));
    plugin.stop().await;
}

#[tokio::test]
async fn a_plugin_that_restarts_adopts_what_runs() {
    let machine = Machine::new("cores=2");
    let mut runtime = machine.runtime(Era::Dedicated);
    for name in ["app", "late"] {
        runtime.pods.insert(name.to_owned(), pod(name, ""));
    }
    let plugin = machine.plugin(Mode::Enforce, "");
    let mut active = runtime.activate().await.unwrap();
    active.create(container("c-app", "app", 1000)).await.unwrap();
    // It wants a CPU of its own and has to share the last one: by its cpuset alone it looks exclusive.
    active.create(container("c-late", "late", 1000)).await.unwrap();
    assert_eq!((active.runtime.cpus("c-app"), active.runtime.cpus("c-late")), ("0", "1"));
    plugin.stop().await;
    drop(active);

    let plugin = machine.plugin(Mode::Enforce, "");
    let mut active = runtime.activate().await.unwrap();
    assert!(active.synchronized.is_empty());
    assert_eq!(machine.records(), ["c-app.json", "c-late.json"]);
    active.stop("c-app").await.unwrap();
    assert_eq!(active.runtime.cpus("c-late"), "0-1");
    plugin.stop().await;
    drop(active);

    // What ended while no plugin ran leaves no record behind.
    runtime.containers.clear();
    let mut plugin = machine.plugin(Mode::Enforce, "");
    let active = runtime.activate().await.unwrap();
    plugin.ready().await;
    drop(active);
    plugin.stop().await;
    assert_eq!(machine.records(), Vec::<String>::new());
}

#[tokio::test]
async fn observing_decides_and_records_but_changes_nothing() {
    let machine = Machine::new("cores=4");
    let mut runtime = machine.runtime(Era::StateChange);
    runtime.pods.insert("app".to_owned(), pod("app", ""));
    runtime.pods.insert("peer".to_owned(), pod("peer", "besteffort"));
    let plugin = machine.plugin(Mode::Observe, "");
    let mut active = runtime.activate().await.unwrap();
    let peer = active.create(container("c-peer", "peer", 0)).await.unwrap();
    let app = active.create(container("c-app", "app", 2000)).await.unwrap();
    assert_eq!((peer.adjust, peer.update, app.adjust, app.update), (None, vec![], None, vec![]));
    let record: serde_json::Value = serde_json::from_str(&machine.record("c-app")).unwrap();
    assert_eq!(record["placement"]["cpus"], "0-1");
    assert_eq!(record["mode"], "observe");
    assert!(active.stop("c-app").await.unwrap().update.is_empty());
    plugin.stop().await;
}

#[tokio::test]
async fn a_device_decides_the_node() {
    // Node 1 has CPUs 4-7 and 12-15.
    let machine = Machine::new("packages=2 cores=4 threads=2");
    let mut runtime = machine.runtime(Era::StateChange);
    runtime.pods.insert("app".to_owned(), pod("app", ""));
    let plugin = machine.plugin(Mode::Enforce, "0");
    let mut active = runtime.activate().await.unwrap();
    active.create(with_device(container("with-fpga", "app", 2000), 240)).await.unwrap();
    assert_eq!((active.runtime.cpus("with-fpga"), active.runtime.mems("with-fpga")), ("4,12", "1"));
    let mut plain = with_device(container("without", "app", 2000), 1);
    plain.name = "sidecar".to_owned();
    active.create(plain).await.unwrap();
    // CPU 0 is reserved, so the first whole core of node 0 is the second one; node 1 is the tighter fit.
    assert_eq!((active.runtime.cpus("without"), active.runtime.mems("without")), ("5,13", "1"));
    plugin.stop().await;
}

#[tokio::test]
async fn annotations_opt_out_and_a_wrong_one_fails_no_pod() {
    let machine = Machine::new("cores=4");
    let mut runtime = machine.runtime(Era::StateChange);
    let mut app = pod("app", "");
    app.annotations.insert("pinning.keelson.dev/exclusive".to_owned(), "main=false,second=true".to_owned());
    runtime.pods.insert("app".to_owned(), app);
    let mut odd = pod("odd", "");
    odd.annotations.insert("pinning.keelson.dev/exclusive".to_owned(), "perhaps".to_owned());
    runtime.pods.insert("odd".to_owned(), odd);
    let plugin = machine.plugin(Mode::Enforce, "");
    let mut active = runtime.activate().await.unwrap();
    active.create(container("c-main", "app", 1000)).await.unwrap();
    assert_eq!(active.runtime.cpus("c-main"), "0-3");
    let second = Container { name: "second".to_owned(), ..container("c-second", "app", 1000) };
    active.create(second).await.unwrap();
    assert_eq!((active.runtime.cpus("c-second"), active.runtime.cpus("c-main")), ("0", "1-3"));
    active.create(container("c-odd", "odd", 1000)).await.unwrap();
    assert_eq!(active.runtime.cpus("c-odd"), "1");
    assert!(machine.record("c-odd").contains("ignored annotation pinning.keelson.dev/exclusive"));
    plugin.stop().await;
}

#[tokio::test]
async fn a_resize_is_followed_and_the_kubelets_cpuset_is_not_fought() {
    let machine = Machine::new("cores=8");
    let mut runtime = machine.runtime(Era::Dedicated);
    runtime.pods.insert("app".to_owned(), pod("app", ""));
    runtime.pods.insert("peer".to_owned(), pod("peer", "besteffort"));
    let plugin = machine.plugin(Mode::Enforce, "");
    let mut active = runtime.activate().await.unwrap();
    active.create(container("c-peer", "peer", 0)).await.unwrap();
    active.create(container("c-app", "app", 2000)).await.unwrap();
    let resources = |cpu| LinuxResources { cpu: Some(cpu), ..LinuxResources::default() };
    let three = LinuxCpu {
        shares: Some(OptionalUInt64 { value: 3072 }),
        quota: Some(OptionalInt64 { value: 300_000 }),
        period: Some(OptionalUInt64 { value: 100_000 }),
        ..LinuxCpu::default()
    };
    active.update("c-app", resources(three)).await.unwrap();
    assert_eq!((active.runtime.cpus("c-app"), active.runtime.cpus("c-peer")), ("0-2", "3-7"));
    active.update("c-app", resources(LinuxCpu { cpus: "5".to_owned(), ..LinuxCpu::default() })).await.unwrap();
    assert_eq!((active.runtime.cpus("c-app"), active.runtime.cpus("c-peer")), ("5", "0-7"));
    plugin.stop().await;
}

#[tokio::test]
async fn what_is_unknown_or_senseless_is_refused_and_changes_nothing() {
    let machine = Machine::new("cores=4");
    let mut runtime = machine.runtime(Era::StateChange);
    runtime.pods.insert("app".to_owned(), pod("app", ""));
    let plugin = machine.plugin(Mode::Enforce, "");
    let mut active = runtime.activate().await.unwrap();
    let service = "nri.pkg.api.v1alpha1.Plugin";
    for (service, method, payload, code) in [
        (service, "NoSuchMethod", vec![], 12),
        (service, "ValidateContainerAdjustment", vec![], 12),
        ("nri.pkg.api.v1alpha1.Runtime", "RegisterPlugin", vec![], 12),
        (service, "CreateContainer", vec![0xff; 9], 3),
        (service, "Synchronize", vec![0x0a, 0x7f], 3),
    ] {
        let refusal = active.connection.call_raw(service, method, payload).await.unwrap().unwrap_err();
        assert_eq!(refusal.code, code, "{method}: {refusal:?}");
    }
    let refusal = active.try_create(container("../../etc/passwd", "app", 1000)).await.unwrap().unwrap_err();
    assert_eq!(refusal.code, 3);
    assert!(refusal.message.starts_with("container.id: \"../../etc/passwd\" is not a container's id"), "{refusal:?}");
    let mut odd = container("odd", "app", 1000);
    odd.linux.as_mut().unwrap().resources.as_mut().unwrap().cpu.as_mut().unwrap().cpus = "1-".to_owned();
    let refusal = active.try_create(odd).await.unwrap().unwrap_err();
    assert!(refusal.message.starts_with("container.linux.resources.cpu.cpus: \"1-\" is not a list"), "{refusal:?}");
    assert_eq!(machine.records(), Vec::<String>::new());
    // Frames for connections that nobody opened are dropped, and events that need nothing are answered.
    active.connection.send_frame(0, b"nobody").await.unwrap();
    active.connection.send_frame(77, b"listens").await.unwrap();
    for method in ["RunPodSandbox", "PostStartContainer", "Shutdown"] {
        active.connection.expect::<Empty>(method, &Empty {}).await.unwrap();
    }
    active.create(container("c-app", "app", 1000)).await.unwrap();
    assert_eq!(active.runtime.cpus("c-app"), "0");
    plugin.stop().await;
}

#[tokio::test]
async fn a_peer_that_is_no_runtime_or_refuses_is_tried_again() {
    let machine = Machine::new("cores=2");
    let mut runtime = machine.runtime(Era::StateChange);
    let mut plugin = machine.plugin(Mode::Enforce, "");
    let mut odd = runtime.accept().await;
    odd.send_bytes(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    odd.closed().await.unwrap();
    plugin.not_ready("broke NRI's protocol").await;
    let mut unfriendly = runtime.accept().await;
    unfriendly.refuse(2, "a plugin of this name is registered").await.unwrap();
    unfriendly.closed().await.unwrap();
    plugin.not_ready("refused it with code 2: a plugin of this name is registered").await;
    runtime.activate().await.unwrap();
    plugin.ready().await;
    plugin.stop().await;
}

#[tokio::test]
async fn a_shutdown_ends_the_plugin_whatever_it_waits_for() {
    let machine = Machine::new("cores=2");
    let mut alone = machine.plugin(Mode::Enforce, "");
    alone.not_ready("is a container runtime with NRI enabled running?").await;
    alone.stop().await;

    let runtime = machine.runtime(Era::StateChange);
    let unanswered = machine.plugin(Mode::Enforce, "");
    let _silent = runtime.accept().await;
    unanswered.stop().await;
    drop(runtime);

    let mut runtime = machine.runtime(Era::StateChange);
    let mut connected = machine.plugin(Mode::Enforce, "");
    let mut active = runtime.activate().await.unwrap();
    connected.ready().await;
    connected.stop().await;
    active.connection.closed().await.unwrap();
}

#[tokio::test]
async fn a_record_that_can_not_be_written_delays_no_container() {
    let machine = Machine::new("cores=2");
    let mut runtime = machine.runtime(Era::StateChange);
    runtime.pods.insert("app".to_owned(), pod("app", ""));
    let plugin = machine.plugin(Mode::Enforce, "");
    let mut active = runtime.activate().await.unwrap();
    fs::remove_dir_all(machine.path("state")).unwrap();
    active.create(container("c-app", "app", 1000)).await.unwrap();
    assert_eq!(active.runtime.cpus("c-app"), "0");
    assert!(plugin.metrics().contains("keelson_pinning_record_failures_total 1\n"), "{}", plugin.metrics());
    plugin.stop().await;
}

#[tokio::test]
async fn a_state_directory_that_can_not_be_is_an_error_at_once() {
    let machine = Machine::new("cores=2");
    fs::create_dir(machine.path("state")).unwrap();
    fs::write(machine.path("state/pinning"), b"in the way").unwrap();
    let node = Node { name: "node-a".to_owned(), state_dir: machine.path("state"), root: machine.root.clone() };
    let settings = PinningSection::default().validate(&node).unwrap();
    let error = Plugin::new(settings, Arc::new(FpgaOnNode1), &mut Registry::default()).unwrap_err();
    let expected = format!("failed to create {}", Path::new(&machine.path("state/pinning/containers")).display());
    assert_eq!(error.to_string(), expected);
}
