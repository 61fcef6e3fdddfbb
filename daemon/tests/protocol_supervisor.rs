//! `keelson run` from outside, with the real executable in directories of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::Duration,
};

use keelson_testkit::wait_until;
use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        wait::{WaitStatus, waitpid},
    },
    unistd::Pid,
};
use serde_json::Value;

/// A net for a hung test, generous on a machine that does much else.
const LIMIT: Duration = Duration::from_secs(60);
const PLUGINS: [&str; 4] = ["network", "storage", "devices", "pinning"];

/// A node's directories, in the system's temporary directory.
struct Fixture {
    directory: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for folder in ["kubelet", "csi", "pool", "cni"] {
            fs::create_dir(directory.path().join(folder)).unwrap();
        }
        // The executable that the network plugin installs: in a build's directory it need not be there.
        let executable = directory.path().join("bin/keelson");
        fs::create_dir(directory.path().join("bin")).unwrap();
        fs::hard_link(env!("CARGO_BIN_EXE_keelson"), &executable)
            .or_else(|_| fs::copy(env!("CARGO_BIN_EXE_keelson"), &executable).map(drop))
            .unwrap();
        fs::write(directory.path().join("bin/keelson-cni"), "#!/bin/sh\n").unwrap();
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A config with all four plugins, in which each pair replaces one line's text.
    fn config(&self, changes: &[(&str, &str)]) -> PathBuf {
        let root = self.directory.path().display();
        let mut text = format!(
            "apiVersion: keelson.dev/v1alpha1\n\
             kind: NodeConfig\n\
             nodeName: node-a\n\
             stateDir: {root}/state\n\
             observability: {{address: \"127.0.0.1:0\"}}\n\
             network: {{name: test, confDir: {root}/cni/conf, binDir: {root}/cni/bin}}\n\
             storage:\n\
             \x20 endpoint: unix://{root}/csi/csi.sock\n\
             \x20 registration: {{enabled: false}}\n\
             \x20 pools: [{{name: a, path: {root}/pool, kind: directory, allowSharedFilesystem: true}}]\n\
             devices: {{kubeletDir: {root}/kubelet, cdiDir: {root}/cdi}}\n\
             pinning: {{socket: {root}/nri.sock}}\n"
        );
        for (from, to) in changes {
            assert!(text.contains(from), "the config has no {from:?}");
            text = text.replace(from, to);
        }
        let path = self.path("config.yaml");
        fs::write(&path, text).unwrap();
        path
    }

    fn command(&self, arguments: &[&str], config: &Path) -> Command {
        let mut command = Command::new(self.path("bin/keelson"));
        command.args(arguments).arg("--config").arg(config);
        for variable in ["NODE_NAME", "CSI_ENDPOINT", "RUST_LOG"] {
            command.env_remove(variable);
        }
        command.stdin(Stdio::null());
        command
    }

    fn output(&self, arguments: &[&str], config: &Path) -> Output {
        self.command(arguments, config).output().unwrap()
    }

    fn start(&self, arguments: &[&str], config: &Path) -> Running {
        let log = self.path("log");
        let child =
            self.command(arguments, config).stdout(Stdio::null()).stderr(File::create(&log).unwrap()).spawn().unwrap();
        Running { child, log, adopted: Vec::new() }
    }
}

/// A running `keelson`, killed with its plugins when the test ends.
struct Running {
    child: Child,
    log: PathBuf,
    /// Processes that this one inherits when it dies.
    adopted: Vec<Pid>,
}

impl Running {
    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// The log's events; the last line may be half written.
    fn events(&self) -> Vec<Value> {
        self.log().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits until a log event gives a value.
    fn event<T>(&mut self, what: &str, find: impl Fn(&Value) -> Option<T>) -> T {
        let log = self.log.clone();
        let child = &mut self.child;
        wait_until(&format!("{what}; see the log {}", log.display()), LIMIT, || {
            let text = fs::read_to_string(&log).unwrap();
            let found = text.lines().filter_map(|line| serde_json::from_str(line).ok()).find_map(|event| find(&event));
            if found.is_none() {
                let ended = child.try_wait().unwrap();
                assert!(ended.is_none(), "{ended:?} before {what}:\n{text}");
            }
            found
        })
    }

    /// Where the process called `name` serves health and metrics.
    fn address(&mut self, name: &str) -> String {
        self.event(&format!("the address of {name}"), |event| {
            (event["process"] == name).then(|| event["address"].as_str().unwrap().to_owned())
        })
    }

    /// The process id of the last start of `plugin`.
    fn plugin(&self, plugin: &str) -> Option<Pid> {
        let started = |event: &&Value| event["plugin"] == plugin && event["message"] == "plugin's process started";
        let events = self.events();
        let pid = events.iter().rev().find(started)?["pid"].as_i64()?;
        Some(Pid::from_raw(i32::try_from(pid).unwrap()))
    }

    fn wait_for_plugins(&mut self, plugins: &[&str]) -> Vec<Pid> {
        let address = self.address("supervisor");
        plugins
            .iter()
            .map(|plugin| {
                wait_until(&format!("{plugin} to report"), LIMIT, || {
                    let reported = !get(&address, "/readyz").1.contains(&format!("{plugin}: not ready: starting"));
                    reported.then(|| self.plugin(plugin)).flatten()
                })
            })
            .collect()
    }

    fn terminate(&mut self) -> ExitStatus {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), Signal::SIGTERM).unwrap();
        wait_until("the end after SIGTERM", LIMIT, || self.child.try_wait().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            // Its plugins end with it.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        for pid in &self.adopted {
            let _ = kill(*pid, Signal::SIGKILL);
            let _ = waitpid(*pid, None);
        }
        if std::thread::panicking() {
            eprintln!("{}", fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

/// Status and body of a GET.
fn get(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: keelson\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

fn exists(pid: Pid) -> bool {
    kill(pid, None) != Err(Errno::ESRCH)
}

#[test]
fn health_readiness_and_metrics_are_told_by_every_process() {
    let fixture = Fixture::new();
    let mut keelson = fixture.start(&["run"], &fixture.config(&[]));
    keelson.wait_for_plugins(&PLUGINS);
    let supervisor = keelson.address("supervisor");
    wait_until("network to be ready", LIMIT, || get(&supervisor, "/readyz").1.contains("network: ready").then_some(()));
    let (status, body) = get(&supervisor, "/readyz");
    // There is neither a kubelet nor a runtime here.
    assert_eq!(status, 503, "{body}");
    assert!(body.contains("pinning: not ready: "), "{body}");
    assert_eq!(get(&supervisor, "/healthz"), (200, "ok\n".to_owned()));
    let (status, metrics) = get(&supervisor, "/metrics");
    assert_eq!(status, 200);
    for plugin in PLUGINS {
        assert!(metrics.contains(&format!("keelson_supervisor_plugin_up{{plugin=\"{plugin}\"}} 1")), "{metrics}");
        assert!(metrics.contains(&format!("keelson_supervisor_plugin_restarts_total{{plugin=\"{plugin}\"}} 0")));
        let address = keelson.address(plugin);
        assert_eq!(get(&address, "/healthz"), (200, "ok\n".to_owned()));
        assert!(get(&address, "/readyz").1.starts_with(&format!("{plugin}: ")));
        let (status, metrics) = get(&address, "/metrics");
        assert_eq!(status, 200);
        assert!(metrics.contains(concat!("keelson_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1")));
        assert!(metrics.ends_with("# EOF\n"));
    }
    assert_eq!(get(&supervisor, "/other").0, 404);
    let storage = keelson.address("storage");
    let operations = (200, r#"{"operations":[]}"#.to_owned());
    wait_until("storage to show what it is at", LIMIT, || (get(&storage, "/operations") == operations).then_some(()));
    assert_eq!(get(&supervisor, "/operations").0, 404);
    assert!(keelson.terminate().success());
}

#[test]
fn a_bad_section_stops_only_its_plugin() {
    let fixture = Fixture::new();
    let config = fixture.config(&[("name: test,", "name: test, ranges: [10.1.0.0/16, 10.1.2.0/24],")]);
    let mut keelson = fixture.start(&["run"], &config);
    let message = "network.ranges[1]: \"10.1.2.0/24\" overlaps";
    keelson.event("the report", |event| {
        (event["message"] == "not started again: its config can't be used"
            && event["plugin"] == "network"
            && event["problems"].as_str()?.contains(message))
        .then_some(())
    });
    let pids = keelson.wait_for_plugins(&["storage", "devices", "pinning"]);
    let supervisor = keelson.address("supervisor");
    let (status, body) = get(&supervisor, "/readyz");
    assert_eq!(status, 503);
    assert!(body.contains(&format!("network: not ready: not started again: {message}")), "{body}");
    let metrics = get(&supervisor, "/metrics").1;
    assert!(metrics.contains("keelson_supervisor_plugin_misconfigured{plugin=\"network\"} 1"));
    assert!(metrics.contains("keelson_supervisor_plugin_restarts_total{plugin=\"network\"} 0"));
    assert!(metrics.contains("keelson_supervisor_plugin_up{plugin=\"network\"} 0"));
    assert!(pids.into_iter().all(exists));
    assert!(!fixture.path("cni/conf").exists(), "something was installed for a config that was refused");
    assert!(keelson.terminate().success());

    let started = keelson.events().into_iter().filter(|event| event["message"] == "plugin's process started");
    assert_eq!(started.filter(|event| event["plugin"] == "network").count(), 1);
}

#[test]
fn a_plugin_alone_refuses_its_bad_section_at_once_and_check_says_the_same() {
    let fixture = Fixture::new();
    std::os::unix::fs::symlink(fixture.path("pool"), fixture.path("link")).unwrap();
    let root = fixture.directory.path().display().to_string();
    for (plugin, from, to, message) in [
        (
            "network",
            "name: test,",
            "nmae: test,",
            "network.nmae: \"test\" is the value of an unknown key; did you mean \"name\"?".to_owned(),
        ),
        (
            "network",
            "name: test,",
            "ranges: [10.1.0.0/31],",
            "network.ranges[0]: \"10.1.0.0/31\" is too small".to_owned(),
        ),
        ("storage", "/pool,", "/link,", format!("storage.pools[0].path: \"{root}/link\" is a symbolic link")),
        (
            "storage",
            "/pool,",
            "/config.yaml,",
            format!("storage.pools[0].path: \"{root}/config.yaml\" is not a directory"),
        ),
        (
            "devices",
            "/cdi}",
            "/cdi, resources: [{name: fpga, simulated: {count: 1}}]}",
            "devices.resources[0].name: \"fpga\"".to_owned(),
        ),
        ("pinning", "nri.sock", "nri.sock, pluginIndex: \"1\"", "pinning.pluginIndex: \"1\"".to_owned()),
    ] {
        let config = fixture.config(&[(from, to)]);
        let run = fixture.output(&["run", "--only", plugin], &config);
        assert_eq!(run.status.code(), Some(78), "{run:?}");
        let log = String::from_utf8(run.stderr).unwrap();
        let told = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        assert!(told.into_iter().any(|event| event["message"].as_str().unwrap().contains(&message)), "{log}");

        let check = fixture.output(&["config", "check"], &config);
        assert_eq!(check.status.code(), Some(78));
        let told = String::from_utf8(check.stderr).unwrap();
        assert!(told.contains(&message), "{told:?} has no {message:?}");
        let check = fixture.output(&["config", "check", "-o", "json"], &config);
        let told: Value = serde_json::from_slice(&check.stdout).unwrap();
        assert_eq!(told["valid"], false);
        assert!(message.starts_with(told["problems"][0]["path"].as_str().unwrap()), "{told}");
    }
    for untouched in ["state", "cdi", "cni/conf", "cni/bin", "csi/csi.sock"] {
        assert!(!fixture.path(untouched).exists(), "{untouched} was made for a config that was refused");
    }
    assert_eq!(fs::read_dir(fixture.path("pool")).unwrap().count(), 0);
}

#[test]
fn a_config_that_is_none_stops_everything() {
    let fixture = Fixture::new();
    let missing = fixture.path("missing.yaml");
    for (config, message) in [
        (missing, "failed to read"),
        (fixture.config(&[("v1alpha1", "v2")]), "apiVersion: \\\"keelson.dev/v2\\\" is not known to this release"),
    ] {
        for arguments in [&["run"][..], &["run", "--only", "network"]] {
            let run = fixture.output(arguments, &config);
            assert_eq!(run.status.code(), Some(78), "{run:?}");
            let log = String::from_utf8(run.stderr).unwrap();
            assert!(log.contains(message), "{log}");
            assert_eq!(log.lines().count(), 1, "{log}");
        }
    }
    let config = fixture.config(&[("pinning:", "# pinning:")]);
    let run = fixture.output(&["run", "--only", "pinning"], &config);
    assert_eq!(run.status.code(), Some(78));
    assert!(String::from_utf8(run.stderr).unwrap().contains("pinning: is missing"));
}

#[test]
fn the_default_config_is_valid_and_shown() {
    let fixture = Fixture::new();
    let config = fixture.path("default.yaml");
    let default = Command::new(env!("CARGO_BIN_EXE_keelson")).args(["config", "default"]).output().unwrap();
    assert!(default.status.success());
    fs::write(&config, &default.stdout).unwrap();
    let check = fixture.command(&["config", "check"], &config).env("NODE_NAME", "node-a").output().unwrap();
    assert!(check.status.success(), "{check:?}");
    assert!(String::from_utf8(check.stdout).unwrap().contains("valid; plugins: network, storage, devices, pinning"));
    let show = fixture
        .command(&["config", "show", "-o", "json"], &config)
        .envs([("NODE_NAME", "node-a"), ("CSI_ENDPOINT", "unix:///run/other.sock")])
        .output()
        .unwrap();
    let shown: Value = serde_json::from_slice(&show.stdout).unwrap();
    assert_eq!(shown["nodeName"], serde_json::json!({"value": "node-a", "origin": "environment"}));
    assert_eq!(shown["storage.endpoint"]["origin"], "environment");
    assert_eq!(shown["storage.endpoint"]["value"], "unix:///run/other.sock");
    assert_eq!(shown["stateDir"]["origin"], "file");
    let table = fixture.output(&["config", "show"], &fixture.config(&[]));
    let table = String::from_utf8(table.stdout).unwrap();
    let line =
        |key: &str| table.lines().find(|line| line.starts_with(key)).unwrap().split_whitespace().collect::<Vec<_>>();
    assert_eq!(line("nodeName"), ["nodeName", "\"node-a\"", "file"]);
    assert_eq!(line("network.masquerade"), ["network.masquerade", "true", "default"]);
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let (reader, writer) = UnixStream::pair().unwrap();
    drop(reader);
    let status = Command::new(env!("CARGO_BIN_EXE_keelson"))
        .args(["config", "schema"])
        .stdout(Stdio::from(std::os::fd::OwnedFd::from(writer)))
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn a_killed_plugin_is_started_again_and_the_others_are_undisturbed() {
    let fixture = Fixture::new();
    let mut keelson = fixture.start(&["run"], &fixture.config(&[]));
    let before = keelson.wait_for_plugins(&PLUGINS);
    let storage = before[1];
    kill(storage, Signal::SIGKILL).unwrap();
    wait_until("storage to be started again", LIMIT, || keelson.plugin("storage").filter(|pid| *pid != storage));
    keelson.event("the reason", |event| {
        (event["plugin"] == "storage" && event["how"] == "was killed by SIGKILL").then_some(())
    });
    let after = keelson.wait_for_plugins(&PLUGINS);
    assert_eq!([before[0], before[2], before[3]], [after[0], after[2], after[3]]);
    assert!(after.iter().copied().all(exists));
    let metrics = get(&keelson.address("supervisor"), "/metrics").1;
    assert!(metrics.contains("keelson_supervisor_plugin_restarts_total{plugin=\"storage\"} 1"), "{metrics}");
    assert!(metrics.contains("keelson_supervisor_plugin_restarts_total{plugin=\"network\"} 0"), "{metrics}");
    wait_until("the new process's socket", LIMIT, || UnixStream::connect(fixture.path("csi/csi.sock")).ok());
    assert!(keelson.terminate().success());
    assert!(!after.into_iter().any(exists));
}

#[test]
fn a_stop_is_clean_with_open_connections_and_leaves_no_socket() {
    let fixture = Fixture::new();
    let mut keelson = fixture.start(&["run"], &fixture.config(&[]));
    let pids = keelson.wait_for_plugins(&PLUGINS);
    let supervisor = keelson.address("supervisor");
    wait_until("storage to be ready", LIMIT, || get(&supervisor, "/readyz").1.contains("storage: ready").then_some(()));
    let _csi = UnixStream::connect(fixture.path("csi/csi.sock")).unwrap();
    let _idle = TcpStream::connect(&supervisor).unwrap();
    let _plugin_idle = TcpStream::connect(keelson.address("storage")).unwrap();
    assert!(keelson.terminate().success(), "{}", keelson.log());
    assert!(!keelson.log().contains("SIGTERM, killing it"), "{}", keelson.log());
    assert!(!pids.into_iter().any(exists));
    assert_eq!(fs::read_dir(fixture.path("csi")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(fixture.path("kubelet")).unwrap().count(), 0);
    // Pods must still be taken down.
    assert!(fixture.path("cni/conf/10-test.conflist").exists());
    assert!(fixture.path("cni/bin/keelson-cni").exists());
}

#[test]
fn a_killed_supervisor_leaves_no_process_and_no_socket() {
    let fixture = Fixture::new();
    // The orphans come to this process, which waits for them: on some machines nobody else would.
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    let mut keelson = fixture.start(&["run"], &fixture.config(&[]));
    let pids = keelson.wait_for_plugins(&PLUGINS);
    wait_until("the storage socket", LIMIT, || fixture.path("csi/csi.sock").exists().then_some(()));
    keelson.adopted.clone_from(&pids);
    keelson.child.kill().unwrap();
    keelson.child.wait().unwrap();
    for pid in pids {
        let end =
            wait_until("a plugin to end", LIMIT, || match waitpid(pid, Some(nix::sys::wait::WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => None,
                other => Some(other),
            });
        assert_eq!(end, Ok(WaitStatus::Exited(pid, 0)));
    }
    keelson.adopted.clear();
    assert!(!fixture.path("csi/csi.sock").exists());
}

#[test]
fn a_plugin_that_does_not_stop_is_killed_and_told() {
    let fixture = Fixture::new();
    let mut keelson = fixture.start(&["run"], &fixture.config(&[]));
    let pids = keelson.wait_for_plugins(&PLUGINS);
    kill(pids[1], Signal::SIGSTOP).unwrap();
    assert_eq!(keelson.terminate().code(), Some(1));
    assert_eq!(keelson.events().last().unwrap()["message"], "did not stop cleanly: storage");
    assert!(!pids.into_iter().any(exists));
}

#[test]
fn a_plugin_that_cannot_start_is_tried_again_and_told() {
    let fixture = Fixture::new();
    fs::remove_file(fixture.path("bin/keelson-cni")).unwrap();
    let mut keelson = fixture.start(&["run"], &fixture.config(&[]));
    let others = keelson.wait_for_plugins(&["storage", "devices", "pinning"]);
    let supervisor = keelson.address("supervisor");
    wait_until("a second restart", LIMIT, || {
        let metrics = get(&supervisor, "/metrics").1;
        let line = metrics.lines().find(|line| line.contains("restarts_total{plugin=\"network\"}")).unwrap();
        (line.split(' ').next_back().unwrap().parse::<u32>().unwrap() >= 2).then_some(())
    });
    wait_until("the reason", LIMIT, || {
        get(&supervisor, "/readyz").1.contains("network: not ready: ended with exit code 1").then_some(())
    });
    keelson.event("the plugin's own word", |event| {
        event["message"].as_str()?.contains("keelson-cni is neither at").then_some(())
    });
    // What was missing comes: no restart by hand is needed.
    fs::write(fixture.path("bin/keelson-cni"), "#!/bin/sh\n").unwrap();
    wait_until("network to be ready", LIMIT, || get(&supervisor, "/readyz").1.contains("network: ready").then_some(()));
    assert_eq!(others, ["storage", "devices", "pinning"].map(|plugin| keelson.plugin(plugin).unwrap()));
    assert!(keelson.terminate().success());
}

#[test]
fn clients_that_hold_connections_keep_nobody_out() {
    let fixture = Fixture::new();
    let mut keelson = fixture.start(&["run", "--only", "network"], &fixture.config(&[]));
    let address = keelson.address("network");
    let idle: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(&address).unwrap()).collect();
    // The answer comes once earlier ones have been closed.
    assert_eq!(get(&address, "/healthz").0, 200);
    drop(idle);
    assert!(keelson.terminate().success());
}

#[test]
fn a_port_in_use_is_told_before_anything_starts() {
    let fixture = Fixture::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let run = fixture.output(&["run"], &fixture.config(&[("127.0.0.1:0", &address)]));
    assert_eq!(run.status.code(), Some(1));
    let log = String::from_utf8(run.stderr).unwrap();
    assert!(log.contains(&format!("failed to serve health and metrics on {address}")), "{log}");
    assert!(log.contains("observability.address"), "{log}");
    assert!(!log.contains("plugin's process started"), "{log}");
}

#[test]
fn what_is_deleted_or_changed_of_the_cni_plugin_is_put_back() {
    let fixture = Fixture::new();
    let mut keelson = fixture.start(&["run", "--only", "network"], &fixture.config(&[]));
    let address = keelson.address("network");
    wait_until("network to be ready", LIMIT, || (get(&address, "/readyz").0 == 200).then_some(()));
    let conflist = fixture.path("cni/conf/10-test.conflist");
    let executable = fixture.path("cni/bin/keelson-cni");
    let right = fs::read(&conflist).unwrap();
    fs::remove_file(&executable).unwrap();
    wait_until("the executable to be back", LIMIT, || executable.exists().then_some(()));
    fs::write(&conflist, "{}").unwrap();
    wait_until("the network config to be back", LIMIT, || (fs::read(&conflist).unwrap() == right).then_some(()));
    assert!(keelson.terminate().success());
    assert!(conflist.exists() && executable.exists());
}

#[test]
fn the_machine_is_inspected() {
    let inspect = Command::new(env!("CARGO_BIN_EXE_keelson")).args(["inspect", "-o", "json"]).output().unwrap();
    let found: Value = serde_json::from_slice(&inspect.stdout).unwrap();
    assert!(!found["topology"]["cpus"].as_array().unwrap().is_empty());
    assert!(found["mounts"].as_array().unwrap().iter().any(|mount| mount["point"] == "/"));
    let tree = Command::new(env!("CARGO_BIN_EXE_keelson")).arg("inspect").output().unwrap();
    assert!(String::from_utf8(tree.stdout).unwrap().contains("CPU"));
    let empty = tempfile::tempdir().unwrap();
    let nothing = Command::new(env!("CARGO_BIN_EXE_keelson"))
        .args(["inspect", "--host-root"])
        .arg(empty.path())
        .output()
        .unwrap();
    assert_eq!(nothing.status.code(), Some(1));
    assert!(String::from_utf8(nothing.stderr).unwrap().contains("failed to read parts of the host"));
    let absent = empty.path().join("absent");
    let nothing =
        Command::new(env!("CARGO_BIN_EXE_keelson")).args(["inspect", "--host-root"]).arg(&absent).output().unwrap();
    let told = String::from_utf8(nothing.stderr).unwrap();
    assert_eq!(told.lines().count(), 1, "{told}");
    assert!(told.contains(&format!("failed to look at the host: {}", absent.display())), "{told}");
}

#[test]
fn a_process_that_is_told_of_a_supervisor_wants_one() {
    let fixture = Fixture::new();
    let run = fixture.output(&["run", "--supervised", "--only", "network"], &fixture.config(&[]));
    assert_eq!(run.status.code(), Some(1));
    assert!(String::from_utf8(run.stderr).unwrap().contains("for the supervisor's own use"));
}
