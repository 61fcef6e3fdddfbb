//! The plugin against a strict fake kubelet, over real sockets and real device nodes.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod fake_kubelet;

use std::{
    collections::BTreeSet,
    fs,
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    time::Duration,
};

use fake_kubelet::{Era, FakeKubelet};
use keelson_device_plugin::{
    DevicesSection, DevicesSettings, PciSection, Plugin, ResourceSection, SelectorSection, SimulatedSection, uninstall,
};
use keelson_host::{HostRoot, Node, fixture::Spec};
use keelson_proto::deviceplugin::v1beta1::{
    AllocateRequest, ContainerAllocateRequest, ContainerAllocateResponse, Empty, PreStartContainerRequest,
    PreferredAllocationRequest, device_plugin_client::DevicePluginClient,
};
use keelson_testkit::{is_root, skip_unless, wait_until_async};
use prometheus_client::{encoding::text::encode, registry::Registry};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use tempfile::TempDir;
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::{Code, transport::Channel};

const FPGA: &str = "example.com/fpga";
const PATIENCE: Duration = Duration::from_secs(30);

/// The directories of one node.
struct Machine {
    directory: TempDir,
}

impl Machine {
    fn new() -> Self {
        Self::below(".keelson-")
    }

    /// In a directory whose name starts so.
    fn below(prefix: &str) -> Self {
        let directory = tempfile::Builder::new().prefix(prefix).tempdir().unwrap();
        for name in ["kubelet", "root/dev"] {
            fs::create_dir_all(directory.path().join(name)).unwrap();
        }
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn settings(&self, resources: Vec<ResourceSection>) -> DevicesSettings {
        let section = DevicesSection { kubelet_dir: self.path("kubelet"), cdi_dir: self.path("cdi"), resources };
        section.validate(&self.node()).unwrap()
    }

    fn node(&self) -> Node {
        Node { name: "node-a".to_owned(), state_dir: self.path("state"), root: HostRoot::at(self.path("root")) }
    }

    fn kubelet(&self, era: Era) -> FakeKubelet {
        FakeKubelet::new(&self.path("kubelet"), &self.path("cdi"), era)
    }

    fn simulated(&self, index: u32) -> PathBuf {
        self.path("state/devices/simulated/example.com/fpga").join(format!("simulated-{index}"))
    }

    /// Makes a device node below the machine's root. Nobody opens it.
    fn plug(&self, path: &str, minor: u32) {
        let path = self.path("root").join(path.trim_start_matches('/'));
        mknodat(CWD, &path, FileType::CharacterDevice, Mode::from_raw_mode(0o600), makedev(10, minor)).unwrap();
    }

    fn unplug(&self, path: &str) {
        fs::remove_file(self.path("root").join(path.trim_start_matches('/'))).unwrap();
    }

    fn sockets(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path("kubelet")).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| !path.ends_with("kubelet.sock")).collect()
    }
}

/// A plugin that runs.
struct Running {
    ready: watch::Receiver<Result<(), String>>,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), keelson_device_plugin::Error>>,
    registry: Registry,
}

impl Running {
    fn start(settings: DevicesSettings) -> Self {
        let mut registry = Registry::default();
        let plugin = Plugin::new(settings, &mut registry).unwrap();
        let (sender, ready) = watch::channel(Err("starting".to_owned()));
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(plugin.run(sender, shutdown.clone()));
        Self { ready, shutdown, task, registry }
    }

    async fn ready(&mut self) {
        let ready = tokio::time::timeout(PATIENCE, self.ready.wait_for(Result::is_ok)).await;
        assert!(ready.is_ok_and(|ready| ready.is_ok()), "not ready: {:?}", self.ready.borrow());
    }

    /// The reason for not being ready, once it contains `text`.
    async fn unready(&mut self, text: &str) -> String {
        let has = |ready: &Result<(), String>| ready.as_ref().is_err_and(|reason| reason.contains(text));
        let found = tokio::time::timeout(PATIENCE, self.ready.wait_for(has)).await.map(|found| found.unwrap().clone());
        match found {
            Ok(found) => found.unwrap_err(),
            Err(_) => panic!("waited for {text:?}, found {:?}", self.ready.borrow()),
        }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.task).await.expect("the plugin stops").unwrap().unwrap();
    }

    fn metrics(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).unwrap();
        text
    }
}

fn simulated(count: u32) -> ResourceSection {
    ResourceSection { name: FPGA.to_owned(), simulated: Some(SimulatedSection { count }), select: Vec::new() }
}

fn matching(name: &str, pattern: &str) -> ResourceSection {
    let selector = SelectorSection { device_nodes: vec![pattern.to_owned()], pci: None };
    ResourceSection { name: name.to_owned(), simulated: None, select: vec![selector] }
}

fn ids(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Waits until the kubelet has exactly these devices.
async fn devices(kubelet: &FakeKubelet, name: &str, healthy: &[&str], unhealthy: &[&str]) {
    let what = format!("{name} with {healthy:?} healthy and {unhealthy:?} unhealthy");
    wait_until_async(&what, PATIENCE, async || {
        let resource = kubelet.resource(name);
        (resource.healthy == ids(healthy) && resource.unhealthy == ids(unhealthy)).then_some(())
    })
    .await;
}

#[track_caller]
fn no_violations(kubelet: &FakeKubelet) {
    assert_eq!(kubelet.violations(), Vec::<String>::new());
}

/// A path is no URI: nothing in it has to be quoted, and nothing in it means anything else.
#[tokio::test]
async fn a_kubelet_below_any_path_is_registered_with() {
    skip_unless!(is_root(), "making device nodes needs root");
    let machine = Machine::below("a #kubelet?%20");
    let mut kubelet = machine.kubelet(Era::BySocket);
    kubelet.start();
    let mut plugin = Running::start(machine.settings(vec![simulated(1)]));
    plugin.ready().await;
    devices(&kubelet, FPGA, &["simulated-0"], &[]).await;
    no_violations(&kubelet);
    plugin.stop().await;
}

#[tokio::test]
async fn a_kubelet_that_runs_gets_the_devices() {
    skip_unless!(is_root(), "making device nodes needs root");
    let machine = Machine::new();
    let mut kubelet = machine.kubelet(Era::BySocket);
    kubelet.start();
    let mut plugin = Running::start(machine.settings(vec![simulated(3)]));
    plugin.ready().await;
    devices(&kubelet, FPGA, &["simulated-0", "simulated-1", "simulated-2"], &[]).await;
    let (ids, response) = kubelet.admit(FPGA, 2).await.unwrap();
    assert_eq!(ids, ["simulated-0", "simulated-1"]);
    let devices = &response.devices;
    assert_eq!(devices[0].host_path, machine.simulated(0).to_str().unwrap());
    assert_eq!(devices[0].container_path, "/dev/simulated/example.com/fpga/simulated-0");
    assert_eq!(devices[0].permissions, "rw");
    assert_eq!(devices.len(), 2);
    let cdi: Vec<&str> = response.cdi_devices.iter().map(|device| device.name.as_str()).collect();
    assert_eq!(cdi, ["example.com/fpga=simulated-0", "example.com/fpga=simulated-1"]);
    assert!(response.envs.is_empty() && response.mounts.is_empty() && response.annotations.is_empty());
    let metrics = plugin.metrics();
    for line in [
        "keelson_devices_known{resource=\"example.com/fpga\",health=\"Healthy\"} 3",
        "keelson_devices_registrations_total{resource=\"example.com/fpga\",result=\"ok\"} 1",
        "keelson_devices_allocations_total{resource=\"example.com/fpga\",result=\"ok\"} 1",
        "keelson_devices_lists_sent_total{resource=\"example.com/fpga\"} 1",
        "keelson_devices_conflicts 0",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in\n{metrics}");
    }
    no_violations(&kubelet);
    plugin.stop().await;
}

#[tokio::test]
async fn a_kubelet_that_comes_later_is_waited_for() {
    skip_unless!(is_root(), "making device nodes needs root");
    let machine = Machine::new();
    // Not even its directory is there.
    fs::remove_dir(machine.path("kubelet")).unwrap();
    let mut plugin = Running::start(machine.settings(vec![simulated(1)]));
    let reason = plugin.unready("kubelet.sock").await;
    assert!(reason.contains(FPGA) && reason.contains("waiting for the kubelet"), "{reason}");
    let mut kubelet = machine.kubelet(Era::ByName);
    kubelet.start();
    plugin.ready().await;
    devices(&kubelet, FPGA, &["simulated-0"], &[]).await;
    no_violations(&kubelet);
    plugin.stop().await;
}

async fn survives_a_kubelet_restart(era: Era) {
    let machine = Machine::new();
    let mut kubelet = machine.kubelet(era);
    kubelet.start();
    let mut plugin = Running::start(machine.settings(vec![simulated(2)]));
    plugin.ready().await;
    devices(&kubelet, FPGA, &["simulated-0", "simulated-1"], &[]).await;
    kubelet.admit(FPGA, 1).await.unwrap();
    for round in 1..=2 {
        kubelet.kill().await;
        // The kubelet wipes the sockets and makes its own anew.
        kubelet.start();
        wait_until_async("another registration", PATIENCE, async || {
            (kubelet.resource(FPGA).sockets.len() > round).then_some(())
        })
        .await;
        devices(&kubelet, FPGA, &["simulated-0", "simulated-1"], &[]).await;
        plugin.ready().await;
    }
    let resource = kubelet.resource(FPGA);
    assert_eq!(resource.sockets.iter().collect::<BTreeSet<_>>().len(), resource.sockets.len(), "each name is fresh");
    assert_eq!(resource.lists.len(), 1, "a registration gets the list once");
    // The other device: the first is still the first container's.
    let (ids, _) = kubelet.admit(FPGA, 1).await.unwrap();
    assert_eq!(ids, ["simulated-1"]);
    assert_eq!(machine.sockets().len(), 1);
    no_violations(&kubelet);
    plugin.stop().await;
}

#[tokio::test]
async fn a_kubelet_restart_is_survived_by_name() {
    skip_unless!(is_root(), "making device nodes needs root");
    survives_a_kubelet_restart(Era::ByName).await;
}

#[tokio::test]
async fn a_kubelet_restart_is_survived_by_socket() {
    skip_unless!(is_root(), "making device nodes needs root");
    survives_a_kubelet_restart(Era::BySocket).await;
}

/// Each of the three signs alone is enough.
#[tokio::test]
async fn a_lost_socket_or_stream_or_a_new_kubelet_socket_means_registering_again() {
    skip_unless!(is_root(), "making device nodes needs root");
    let machine = Machine::new();
    let mut kubelet = machine.kubelet(Era::ByName);
    kubelet.start();
    let mut plugin = Running::start(machine.settings(vec![simulated(1)]));
    plugin.ready().await;
    let first = machine.sockets();
    fs::remove_file(&first[0]).unwrap();
    wait_until_async("a second registration", PATIENCE, async || {
        (kubelet.resource(FPGA).sockets.len() == 2).then_some(())
    })
    .await;
    devices(&kubelet, FPGA, &["simulated-0"], &[]).await;

    kubelet.drop_streams().await;
    wait_until_async("a third registration", PATIENCE, async || {
        (kubelet.resource(FPGA).sockets.len() == 3).then_some(())
    })
    .await;
    devices(&kubelet, FPGA, &["simulated-0"], &[]).await;

    kubelet.renew_socket();
    wait_until_async("a fourth registration", PATIENCE, async || {
        (kubelet.resource(FPGA).sockets.len() == 4).then_some(())
    })
    .await;
    devices(&kubelet, FPGA, &["simulated-0"], &[]).await;
    kubelet.admit(FPGA, 1).await.unwrap();
    only_socket(&machine, &kubelet.resource(FPGA).sockets[3]).await;
    no_violations(&kubelet);
    plugin.stop().await;
}

/// Pods that ask for the devices are rejected while there is no registration, so that neither the time without a
/// kubelet nor the registrations before may put off the next one: each is made at the first attempt.
#[tokio::test]
async fn a_kubelet_that_comes_late_and_closes_its_streams_gets_the_devices_again() {
    skip_unless!(is_root(), "making device nodes needs root");
    let machine = Machine::new();
    let mut plugin = Running::start(machine.settings(vec![simulated(1)]));
    plugin.unready("waiting for the kubelet").await;
    let mut kubelet = machine.kubelet(Era::ByName);
    kubelet.start();
    for round in 1..=4 {
        wait_until_async("a registration", PATIENCE, async || {
            (kubelet.resource(FPGA).sockets.len() == round).then_some(())
        })
        .await;
        devices(&kubelet, FPGA, &["simulated-0"], &[]).await;
        plugin.ready().await;
        kubelet.drop_streams().await;
        plugin.unready("the kubelet closed its stream").await;
    }
    let metrics = plugin.metrics();
    assert!(!metrics.contains("result=\"error\""), "{metrics}");
    no_violations(&kubelet);
    plugin.stop().await;
}

/// The kubelet may call the endpoint that it was told at any time, whatever became of its stream.
#[tokio::test]
async fn an_endpoint_answers_until_another_is_registered() {
    skip_unless!(is_root(), "making device nodes needs root");
    for era in [Era::ByName, Era::BySocket] {
        let machine = Machine::new();
        let mut kubelet = machine.kubelet(era);
        kubelet.start();
        let mut plugin = Running::start(machine.settings(vec![simulated(1)]));
        plugin.ready().await;
        devices(&kubelet, FPGA, &["simulated-0"], &[]).await;
        let old = kubelet.resource(FPGA).sockets[0].clone();

        kubelet.refuse(Some("not now"));
        kubelet.drop_streams().await;
        // The new endpoint was refused by then, so that the old one is still the one to call.
        plugin.unready("not now").await;
        let mut client = kubelet.dial(&old).await;
        assert_allocates(&mut client).await;
        let mut stream = client.list_and_watch(Empty {}).await.unwrap().into_inner();
        assert_eq!(stream.message().await.unwrap(), None, "what ends later would take the new registration's devices");

        kubelet.refuse(None);
        devices(&kubelet, FPGA, &["simulated-0"], &[]).await;
        plugin.ready().await;
        let new = kubelet.resource(FPGA).sockets.last().cloned().unwrap();
        assert_ne!(new, old);
        only_socket(&machine, &new).await;

        // Nor does the kubelet's absence matter; its end removes nothing.
        kubelet.kill().await;
        fs::remove_file(machine.path("kubelet/kubelet.sock")).unwrap();
        plugin.unready("waiting for the kubelet").await;
        assert_allocates(&mut kubelet.dial(&new).await).await;
        no_violations(&kubelet);
        plugin.stop().await;
        assert_eq!(machine.sockets(), Vec::<PathBuf>::new());
    }
}

/// That no stream came is told, but an endpoint that the kubelet knows is not taken from it for that.
#[tokio::test]
async fn an_endpoint_without_a_stream_answers_and_is_replaced_when_its_socket_is_lost() {
    skip_unless!(is_root(), "making device nodes needs root");
    let machine = Machine::new();
    let mut kubelet = machine.kubelet(Era::BySocket);
    kubelet.open_no_streams();
    kubelet.start();
    let mut plugin = Running::start(machine.settings(vec![simulated(1)]));
    plugin.unready("the kubelet opened no stream").await;
    let sockets = kubelet.resource(FPGA).sockets;
    assert_eq!(sockets.len(), 1);
    assert_allocates(&mut kubelet.dial(&sockets[0]).await).await;

    fs::remove_file(machine.path("kubelet").join(&sockets[0])).unwrap();
    let new =
        wait_until_async("a second registration", PATIENCE, async || kubelet.resource(FPGA).sockets.get(1).cloned())
            .await;
    assert_allocates(&mut kubelet.dial(&new).await).await;
    plugin.stop().await;
    assert_eq!(machine.sockets(), Vec::<PathBuf>::new());
}

async fn assert_allocates(client: &mut DevicePluginClient<Channel>) {
    let container = ContainerAllocateRequest { devices_ids: vec!["simulated-0".to_owned()] };
    let request = AllocateRequest { container_requests: vec![container] };
    let given = client.allocate(request).await.unwrap().into_inner();
    assert_eq!(given.container_responses[0].cdi_devices[0].name, "example.com/fpga=simulated-0");
}

async fn only_socket(machine: &Machine, name: &str) {
    let expected = [machine.path("kubelet").join(name)];
    wait_until_async("no socket of another name", PATIENCE, async || (machine.sockets() == expected).then_some(()))
        .await;
}

#[tokio::test]
async fn a_refused_registration_is_told_and_tried_again() {
    skip_unless!(is_root(), "making device nodes needs root");
    let machine = Machine::new();
    let mut kubelet = machine.kubelet(Era::BySocket);
    kubelet.refuse(Some("the device manager is not started"));
    kubelet.start();
    let mut plugin = Running::start(machine.settings(vec![simulated(1)]));
    let reason = plugin.unready("the device manager is not started").await;
    assert!(reason.contains("the kubelet refused the registration"), "{reason}");
    kubelet.refuse(None);
    plugin.ready().await;
    devices(&kubelet, FPGA, &["simulated-0"], &[]).await;
    assert_eq!(machine.sockets().len(), 1, "refused registrations leave no socket");
    plugin.stop().await;
}

#[tokio::test]
async fn a_device_that_goes_is_unhealthy_and_one_that_returns_is_healthy() {
    skip_unless!(is_root(), "making device nodes needs root");
    let machine = Machine::new();
    let mut kubelet = machine.kubelet(Era::BySocket);
    kubelet.start();
    machine.plug("/dev/serial0", 240);
    machine.plug("/dev/serial1", 241);
    let mut plugin = Running::start(machine.settings(vec![matching("example.com/serial", "/dev/serial?")]));
    plugin.ready().await;
    devices(&kubelet, "example.com/serial", &["serial0", "serial1"], &[]).await;

    machine.unplug("/dev/serial0");
    devices(&kubelet, "example.com/serial", &["serial1"], &["serial0"]).await;
    let one = |id: &str| vec![ContainerAllocateRequest { devices_ids: vec![id.to_owned()] }];
    let refused = kubelet.allocate("example.com/serial", one("serial0")).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("/dev/serial0 is gone"), "{refused}");
    assert_eq!(plugin.ready.borrow().clone(), Ok(()), "a device that is away is no fault of the plugin");

    // Something that is no device node doesn't count, whatever its name.
    fs::write(machine.path("root/dev/serial0"), "").unwrap();
    std::os::unix::fs::symlink("serial1", machine.path("root/dev/serial2")).unwrap();
    machine.plug("/dev/serial3", 243);
    devices(&kubelet, "example.com/serial", &["serial1", "serial3"], &["serial0"]).await;

    machine.unplug("/dev/serial0");
    machine.plug("/dev/serial0", 240);
    devices(&kubelet, "example.com/serial", &["serial0", "serial1", "serial3"], &[]).await;
    // Changes that change nothing: each is seen, none is told.
    let lists = kubelet.resource("example.com/serial").lists.len();
    machine.plug("/dev/other", 250);
    machine.unplug("/dev/other");
    machine.plug("/dev/serial4", 244);
    devices(&kubelet, "example.com/serial", &["serial0", "serial1", "serial3", "serial4"], &[]).await;
    assert_eq!(kubelet.resource("example.com/serial").lists.len(), lists + 1);
    assert_eq!(kubelet.resource("example.com/serial").sockets.len(), 1, "all on one stream");
    no_violations(&kubelet);
    plugin.stop().await;
}

#[tokio::test]
async fn a_restart_remembers_a_device_that_is_away() {
    skip_unless!(is_root(), "making device nodes needs root");
    let machine = Machine::new();
    let mut kubelet = machine.kubelet(Era::BySocket);
    kubelet.start();
    machine.plug("/dev/serial0", 240);
    machine.plug("/dev/serial1", 241);
    let serial = || machine.settings(vec![matching("example.com/serial", "/dev/serial?")]);
    let mut plugin = Running::start(serial());
    plugin.ready().await;
    devices(&kubelet, "example.com/serial", &["serial0", "serial1"], &[]).await;
    plugin.stop().await;
    machine.unplug("/dev/serial0");
    let mut plugin = Running::start(serial());
    plugin.ready().await;
    devices(&kubelet, "example.com/serial", &["serial1"], &["serial0"]).await;
    plugin.stop().await;
    // A config that doesn't select it any more forgets it.
    let mut plugin = Running::start(machine.settings(vec![matching("example.com/serial", "/dev/serial1")]));
    plugin.ready().await;
    devices(&kubelet, "example.com/serial", &["serial1"], &[]).await;
    no_violations(&kubelet);
    plugin.stop().await;
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_with_its_reason() {
    skip_unless!(is_root(), "making device nodes needs root");
    let machine = Machine::new();
    let mut kubelet = machine.kubelet(Era::BySocket);
    kubelet.start();
    let mut plugin = Running::start(machine.settings(vec![simulated(2)]));
    plugin.ready().await;
    devices(&kubelet, FPGA, &["simulated-0", "simulated-1"], &[]).await;
    let containers = |lists: &[&[&str]]| -> Vec<ContainerAllocateRequest> {
        let ids = |list: &&[&str]| list.iter().map(|id| (*id).to_owned()).collect();
        lists.iter().map(|list| ContainerAllocateRequest { devices_ids: ids(list) }).collect()
    };
    let long = "x".repeat(10_000);
    for (request, code, text) in [
        (containers(&[]), Code::InvalidArgument, "names no device"),
        (containers(&[&["simulated-0"], &[]]), Code::InvalidArgument, "names no device"),
        (containers(&[&["simulated-0", "simulated-0"]]), Code::InvalidArgument, "twice"),
        (containers(&[&["simulated-0"], &["simulated-0"]]), Code::InvalidArgument, "twice"),
        (containers(&[&["simulated-2"]]), Code::NotFound, "has no device \"simulated-2\""),
        (containers(&[&["../../null"]]), Code::NotFound, "has no device"),
        (containers(&[&[long.as_str()]]), Code::NotFound, "has no device"),
    ] {
        let status = kubelet.allocate(FPGA, request.clone()).await.unwrap_err();
        assert_eq!(status.code(), code, "{request:?}: {status}");
        assert!(status.message().contains(text) && status.message().contains(FPGA), "{status}");
        assert!(status.message().len() < 300, "{status}");
    }
    let mut client = kubelet.client(FPGA);
    let status = client.get_preferred_allocation(PreferredAllocationRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    let status = client.pre_start_container(PreStartContainerRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    // Two containers in one request are answered in their order, each with its own.
    let both = kubelet.allocate(FPGA, containers(&[&["simulated-1"], &["simulated-0"]])).await.unwrap();
    assert_eq!(both.len(), 2);
    assert_eq!(both[0].cdi_devices[0].name, "example.com/fpga=simulated-1");
    assert_eq!(both[1].cdi_devices[0].name, "example.com/fpga=simulated-0");
    no_violations(&kubelet);
    plugin.stop().await;
}

#[tokio::test]
async fn a_node_that_two_resources_match_is_offered_by_neither() {
    skip_unless!(is_root(), "making device nodes needs root");
    let machine = Machine::new();
    let mut kubelet = machine.kubelet(Era::BySocket);
    kubelet.start();
    machine.plug("/dev/serial0", 240);
    let resources =
        vec![matching("example.com/one", "/dev/serial[0-4]"), matching("example.com/two", "/dev/serial[4-9]")];
    let mut plugin = Running::start(machine.settings(resources.clone()));
    plugin.ready().await;
    devices(&kubelet, "example.com/one", &["serial0"], &[]).await;
    machine.plug("/dev/serial4", 244);
    machine.plug("/dev/serial5", 245);
    devices(&kubelet, "example.com/one", &["serial0"], &[]).await;
    devices(&kubelet, "example.com/two", &["serial5"], &[]).await;
    let reason = plugin.unready("/dev/serial4").await;
    assert!(reason.contains("example.com/one") && reason.contains("example.com/two"), "{reason}");
    assert!(plugin.metrics().contains("keelson_devices_conflicts 1"), "{}", plugin.metrics());

    // Another name for a device that is offered already takes it away from both.
    machine.plug("/dev/serial6", 240);
    devices(&kubelet, "example.com/one", &[], &["serial0"]).await;
    let request = vec![ContainerAllocateRequest { devices_ids: vec!["serial0".to_owned()] }];
    let refused = kubelet.allocate("example.com/one", request).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("example.com/two"), "{refused}");

    machine.unplug("/dev/serial4");
    machine.unplug("/dev/serial6");
    plugin.ready().await;
    devices(&kubelet, "example.com/one", &["serial0"], &[]).await;
    no_violations(&kubelet);
    plugin.stop().await;

    // At the start it is an error of the config.
    machine.plug("/dev/serial4", 244);
    let section = DevicesSection { kubelet_dir: machine.path("kubelet"), cdi_dir: machine.path("cdi"), resources };
    let problems = section.validate(&machine.node()).unwrap_err();
    assert_eq!(problems.0.len(), 1);
    let problem = &problems.0[0];
    assert_eq!((problem.path.as_str(), problem.value.as_str()), ("devices.resources[1].select", "/dev/serial4"));
    assert!(problem.wrong.contains("example.com/one") && problem.wrong.contains("example.com/two"), "{problem}");
}

#[tokio::test]
async fn a_stop_removes_the_sockets_and_nothing_else() {
    skip_unless!(is_root(), "making device nodes needs root");
    let machine = Machine::new();
    let mut kubelet = machine.kubelet(Era::BySocket);
    kubelet.start();
    let settings = machine.settings(vec![simulated(2)]);
    let mut plugin = Running::start(settings.clone());
    plugin.ready().await;
    devices(&kubelet, FPGA, &["simulated-0", "simulated-1"], &[]).await;
    // With the kubelet's stream open.
    plugin.stop().await;
    assert_eq!(machine.sockets(), Vec::<PathBuf>::new());
    let cdi = machine.path("cdi/keelson-example.com_fpga.json");
    assert!(cdi.exists() && machine.simulated(0).exists() && machine.simulated(1).exists());
    devices(&kubelet, FPGA, &[], &["simulated-0", "simulated-1"]).await;
    assert_eq!(kubelet.resource(FPGA).lists.len(), 1, "no empty list, which would take the capacity away");

    uninstall(&settings).unwrap();
    assert!(!cdi.exists() && !machine.path("state/devices").exists());
    uninstall(&settings).unwrap();
}

#[tokio::test]
async fn what_a_killed_process_left_is_cleared_away() {
    skip_unless!(is_root(), "making device nodes needs root");
    let machine = Machine::new();
    let mut kubelet = machine.kubelet(Era::BySocket);
    kubelet.start();
    let settings = machine.settings(vec![simulated(1)]);
    let kubelet_dir = machine.path("kubelet");
    let dead = kubelet_dir.join("keelson-0123456789abcdef.sock");
    drop(UnixListener::bind(&dead).unwrap());
    let alive = kubelet_dir.join("keelson-fedcba9876543210.sock");
    let _listener = UnixListener::bind(&alive).unwrap();
    let foreign = kubelet_dir.join("gpu.sock");
    drop(UnixListener::bind(&foreign).unwrap());
    fs::create_dir_all(machine.path("cdi")).unwrap();
    let stale = ["keelson-example.com_gone.json", ".keelson-example.com_fpga.json.1.0.tmp"];
    for name in stale {
        fs::write(machine.path("cdi").join(name), "{}").unwrap();
    }
    let vendor = machine.path("cdi/vendor.json");
    fs::write(&vendor, r#"{"cdiVersion": "0.3.0", "kind": "vendor.com/gpu", "devices": []}"#).unwrap();
    let surplus = machine.simulated(7);
    let other = machine.path("state/devices/simulated/example.com/gone");
    for directory in [surplus.parent().unwrap(), &other] {
        fs::create_dir_all(directory).unwrap();
    }
    make_node(&surplus, 229);
    make_node(&other.join("simulated-0"), 229);
    make_node(&surplus.with_file_name(".simulated-0.tmp"), 229);
    // Of another boot, with another number.
    make_node(&machine.simulated(0), 131);

    let mut plugin = Running::start(settings);
    plugin.ready().await;
    devices(&kubelet, FPGA, &["simulated-0"], &[]).await;
    assert!(!dead.exists() && alive.exists() && foreign.exists());
    assert!(stale.iter().all(|name| !machine.path("cdi").join(name).exists()) && vendor.exists());
    let left: Vec<_> =
        fs::read_dir(surplus.parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["simulated-0"]);
    assert!(!other.exists());
    kubelet.admit(FPGA, 1).await.unwrap();
    no_violations(&kubelet);
    plugin.stop().await;
}

/// One device a function: all its nodes, its own NUMA node, and for VFIO what every group needs.
#[tokio::test]
async fn pci_functions_are_offered_with_their_nodes_and_places() {
    skip_unless!(is_root(), "making device nodes needs root");
    let machine = Machine::new();
    let spec: Spec = "packages=2 pci=0000:3b:00.0,10ee:5000,driver=xdma,node=0,char=/dev/xdma0_user:10:240,char=/dev/xdma0_c2h:10:241 \
                      pci=0000:af:00.0,10ee:5000,driver=vfio-pci,node=1,group=7 \
                      pci=0000:b0:00.0,10ee:5000,driver=vfio-pci,group=8 \
                      pci=0000:b1:00.0,10ee:5000 \
                      pci=0000:b2:00.0,10ee:5001,driver=xdma,node=1,char=/dev/xdma9_user:10:249"
        .parse()
        .unwrap();
    spec.build(&machine.path("root")).unwrap();
    fs::create_dir_all(machine.path("root/dev/vfio")).unwrap();
    for (path, minor) in [
        ("/dev/xdma0_user", 240),
        ("/dev/xdma0_c2h", 241),
        ("/dev/vfio/7", 7),
        ("/dev/vfio/8", 8),
        ("/dev/vfio/vfio", 196),
        ("/dev/xdma9_user", 249),
    ] {
        // The fixture has plain files there.
        let _ = fs::remove_file(machine.path("root").join(path.trim_start_matches('/')));
        machine.plug(path, minor);
    }
    let mut kubelet = machine.kubelet(Era::BySocket);
    kubelet.start();
    let accel = ResourceSection {
        name: "example.com/accel".to_owned(),
        simulated: None,
        select: vec![SelectorSection {
            device_nodes: Vec::new(),
            pci: Some(PciSection { vendor: "10ee".to_owned(), device: "5000".to_owned() }),
        }],
    };
    let mut plugin = Running::start(machine.settings(vec![accel]));
    plugin.ready().await;
    let (user, seven, eight) = ("0000:3b:00.0", "0000:af:00.0", "0000:b0:00.0");
    devices(&kubelet, "example.com/accel", &[user, seven, eight], &[]).await;
    let places: Vec<Option<i64>> = kubelet.resource("example.com/accel").lists[0]
        .devices
        .iter()
        .map(|device| device.topology.as_ref().map(|topology| topology.nodes[0].id))
        .collect();
    assert_eq!(places, [Some(0), Some(1), None]);
    let container =
        |ids: &[&str]| ContainerAllocateRequest { devices_ids: ids.iter().map(|id| (*id).to_owned()).collect() };
    let given =
        kubelet.allocate("example.com/accel", vec![container(&[user]), container(&[seven, eight])]).await.unwrap();
    let paths = |index: usize| -> Vec<&str> {
        let response: &ContainerAllocateResponse = &given[index];
        response
            .devices
            .iter()
            .inspect(|device| assert_eq!(device.host_path, device.container_path))
            .map(|device| device.host_path.as_str())
            .collect()
    };
    assert_eq!(paths(0), ["/dev/xdma0_c2h", "/dev/xdma0_user"]);
    assert_eq!(paths(1), ["/dev/vfio/7", "/dev/vfio/8", "/dev/vfio/vfio"], "each once");
    assert_eq!(given[1].cdi_devices.len(), 2);

    // A function that loses one node of two is of no use.
    machine.unplug("/dev/xdma0_c2h");
    devices(&kubelet, "example.com/accel", &[seven, eight], &[user]).await;
    machine.plug("/dev/xdma0_c2h", 241);
    devices(&kubelet, "example.com/accel", &[user, seven, eight], &[]).await;
    no_violations(&kubelet);
    plugin.stop().await;
}

/// A reboot empties the CDI directory, and administrators do.
#[tokio::test]
async fn a_lost_cdi_file_is_written_again() {
    skip_unless!(is_root(), "making device nodes needs root");
    let machine = Machine::new();
    let mut kubelet = machine.kubelet(Era::BySocket);
    kubelet.start();
    let mut plugin = Running::start(machine.settings(vec![simulated(1)]));
    plugin.ready().await;
    let path = machine.path("cdi/keelson-example.com_fpga.json");
    let before = fs::read(&path).unwrap();
    // At once: while a directory is emptied file by file, the plugin fills it again.
    fs::rename(machine.path("cdi"), machine.path("lost")).unwrap();
    wait_until_async("the CDI file", PATIENCE, async || fs::read(&path).ok().filter(|now| *now == before)).await;
    kubelet.admit(FPGA, 1).await.unwrap();
    assert_eq!(kubelet.resource(FPGA).lists.len(), 1);
    plugin.stop().await;
}

fn make_node(path: &Path, minor: u32) {
    mknodat(CWD, path, FileType::CharacterDevice, Mode::from_raw_mode(0o600), makedev(10, minor)).unwrap();
}
