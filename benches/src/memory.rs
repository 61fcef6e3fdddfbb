//! How much memory each process of `keelson run` takes.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use keelson_testkit::{Netns, is_root, missing, wait_until};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;

use crate::{
    programs,
    report::{Amount, Report},
};

/// Where the supervisor serves its health, in a network namespace of this run's own.
const ADDRESS: &str = "127.0.0.1:9807";

/// The plugins' processes, by what `--only` calls them.
const PLUGINS: [&str; 4] = ["network", "storage", "devices", "pinning"];

pub(crate) fn measure() -> Result<Report> {
    ensure!(is_root(), "keelson's plugins need root, so does measuring them");
    ensure!(missing(&["ip"]).is_empty(), "ip sets up the namespace that keelson runs in: install iproute2");
    let keelson = programs::keelson()?;
    let cni = programs::keelson_cni()?;
    let directory = tempfile::tempdir()?;
    // keelson looks for the CNI executable beside itself.
    for program in [&keelson, &cni] {
        let name = program.file_name().context("a program has a name")?;
        let copy = directory.path().join(name);
        fs::copy(program, &copy).with_context(|| format!("failed to copy to {}", copy.display()))?;
    }
    let config = directory.path().join("config.yaml");
    // JSON is YAML.
    fs::write(&config, configuration(directory.path())?.to_string())
        .with_context(|| format!("failed to write {}", config.display()))?;

    let host = Netns::new().context("failed to make a network namespace")?;
    let up = host.command("ip").args(["link", "set", "lo", "up"]).status().context("failed to run ip")?;
    ensure!(up.success(), "ip failed to bring up the loopback");
    let mut command = host.command(directory.path().join("keelson"));
    command.args(["run", "--log-level", "warn", "--config"]).arg(&config).stdin(Stdio::null());
    let supervisor = Supervisor::start(command)?;

    let readiness = wait_until("every plugin to say whether it is ready", Duration::from_secs(60), || {
        let text = host.run(|| get("/readyz")).ok()?;
        let told = |plugin| text.lines().any(|line| line.starts_with(plugin) && !line.contains("starting"));
        PLUGINS.into_iter().all(told).then_some(text)
    });
    let mut processes = vec![("supervisor", supervisor.0.id())];
    for plugin in PLUGINS {
        processes.push((plugin, child(supervisor.0.id(), plugin)?));
    }
    let (mut amounts, mut shared_once) = (Vec::new(), 0);
    for (name, pid) in processes {
        amounts.push(Amount { what: name.to_owned(), bytes: smaps_rollup(pid, "Rss")? });
        shared_once += smaps_rollup(pid, "Pss")?;
    }
    amounts.push(Amount { what: "all five, shared pages counted once".to_owned(), bytes: shared_once });
    let mut notes = vec!["idle; resident memory, pages that processes share counted in each".to_owned()];
    notes.extend(readiness.lines().filter(|line| line.contains("not ready")).map(str::to_owned));
    Ok(Report { amounts, notes, ..Report::default() })
}

/// All four plugins, with every path below `directory`.
fn configuration(directory: &Path) -> Result<serde_json::Value> {
    let path = |name: &str| -> Result<String> {
        let path = directory.join(name);
        let text = path.to_str().context("the temporary directory's path is not UTF-8")?;
        Ok(text.to_owned())
    };
    for name in ["state", "pool", "cni-conf", "cni-bin", "device-plugins", "cdi", "csi"] {
        fs::create_dir(directory.join(name))?;
    }
    Ok(json!({
        "apiVersion": "keelson.dev/v1alpha1",
        "kind": "NodeConfig",
        "nodeName": "bench",
        "stateDir": path("state")?,
        "observability": {"address": ADDRESS},
        "network": {"confDir": path("cni-conf")?, "binDir": path("cni-bin")?},
        "storage": {
            "endpoint": format!("unix://{}", path("csi/csi.sock")?),
            "pools": [{"name": "default", "path": path("pool")?, "kind": "image", "allowSharedFilesystem": true}],
        },
        "devices": {
            "kubeletDir": path("device-plugins")?,
            "cdiDir": path("cdi")?,
            "resources": [{"name": "example.com/fpga", "simulated": {"count": 4}}],
        },
        "pinning": {"socket": path("nri.sock")?},
    }))
}

/// `keelson run`; told to end, and waited for, when dropped. Its children end with it.
struct Supervisor(Child);

impl Supervisor {
    fn start(mut command: Command) -> Result<Self> {
        Ok(Self(command.spawn().context("failed to start keelson")?))
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        // A supervisor that ended by itself is gone already; there is nothing more to do about it.
        if let Ok(pid) = self.0.id().try_into() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let _ = self.0.wait();
    }
}

/// The body of an HTTP answer.
fn get(path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(ADDRESS)?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").context("the answer has no body")?;
    Ok(body.to_owned())
}

/// The child of `parent` that runs `--only plugin`.
fn child(parent: u32, plugin: &str) -> Result<u32> {
    let mut children = String::new();
    // Each thread lists the children that it started, as "4711 4712 ".
    for thread in fs::read_dir(format!("/proc/{parent}/task")).context("failed to list the supervisor's threads")? {
        children +=
            &fs::read_to_string(thread?.path().join("children")).context("failed to read a thread's children")?;
    }
    for pid in children.split_whitespace() {
        let arguments = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if arguments.contains(&format!("--only\0{plugin}\0")) {
            return Ok(pid.parse()?);
        }
    }
    bail!("keelson has no process for {plugin}; its log tells why")
}

/// A line of /proc/<pid>/smaps_rollup, such as "Rss:    10324 kB", in bytes.
fn smaps_rollup(pid: u32, key: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("failed to read {path}"))?;
    let kibibytes: u64 = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':')?.trim().strip_suffix("kB"))
        .with_context(|| format!("{path} has no {key}"))?
        .trim()
        .parse()?;
    Ok(kibibytes * 1024)
}
