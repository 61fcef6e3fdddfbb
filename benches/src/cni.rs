//! CNI ADD and DEL of keelson-cni beside the reference bridge with host-local.
//!
//! Everything happens in a network namespace of its own that plays the host, so that the machine's links and rules
//! are neither touched nor measured. Samples of the two are interleaved: what disturbs one disturbs the other.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use keelson_testkit::{Netns, Tool, is_root, missing};
use serde_json::Value;

use crate::{
    network, programs,
    report::{Comparison, Report, Samples},
};

/// One plugin with its network configuration.
struct Subject {
    name: &'static str,
    program: PathBuf,
    config: Value,
    add: Samples,
    del: Samples,
}

pub(crate) fn measure(samples: usize) -> Result<Report> {
    ensure!(is_root(), "measuring CNI plugins makes network namespaces: run it as root");
    ensure!(missing(&["ip"]).is_empty(), "the floor of DEL is measured with ip: install iproute2");
    let reference = Tool::CniPlugins.ensure().context("failed to build the reference plugins")?;
    let keelson = programs::keelson_cni()?;
    let nothing = programs::nothing()?;

    let mut report = Report::default();
    for (variant, masquerade) in network::VARIANTS {
        let state = tempfile::tempdir()?;
        let host = Netns::new().context("failed to make the namespace that plays the host")?;
        let mut subjects = [
            Subject::new("keelson-cni", &keelson, network::keelson(state.path(), masquerade)),
            Subject::new(
                "reference bridge + host-local",
                &reference.join("bridge"),
                network::reference(state.path(), masquerade),
            ),
        ];
        let (mut start, mut removal) = (Samples::default(), Samples::default());
        // The Pods' namespaces live until the end: the kernel takes them down in the background, which would be
        // measured with the samples that follow.
        let mut pods = Vec::new();
        // The first round makes the bridge and the rules, and warms the caches: it isn't counted.
        for round in 0..=samples {
            let counted = round > 0;
            let floors = (spawn(host.command(&nothing))?, veth_removal(&host)?);
            if counted {
                start.add(Ok(floors.0));
                removal.add(Ok(floors.1));
            }
            for turn in 0..subjects.len() {
                // Each goes first in every other round.
                let subject = &mut subjects[(round + turn) % 2];
                let pod = Netns::new().context("failed to make a Pod's namespace")?;
                let id = format!("bench-{round}-{turn}");
                let (add, del) = subject.add_and_delete(&host, &pod, &reference, &id)?;
                if counted {
                    subject.add.add(add);
                    subject.del.add(del);
                }
                pods.push(pod);
            }
        }
        let (mut adds, mut dels) = (Vec::new(), Vec::new());
        for subject in subjects {
            adds.push(subject.add.timing(subject.name));
            dels.push(subject.del.timing(subject.name));
        }
        adds.push(start.timing("start of a static program (floor)"));
        dels.push(removal.timing("ip link del of a veth (floor)"));
        report.comparisons.push(Comparison { what: format!("ADD, {variant}"), timings: adds });
        report.comparisons.push(Comparison { what: format!("DEL, {variant}"), timings: dels });
    }
    report.notes = vec![
        "each call is one start of the plugin, timed from outside, into a fresh network namespace".to_owned(),
        network::NOTE.to_owned(),
    ];
    Ok(report)
}

impl Subject {
    fn new(name: &'static str, program: &Path, mut config: Value) -> Self {
        config["cniVersion"] = network::SPEC_VERSION.into();
        config["name"] = "bench".into();
        Self { name, program: program.to_owned(), config, add: Samples::default(), del: Samples::default() }
    }

    /// Times an ADD and the DEL that undoes it.
    ///
    /// A failure is an outcome, so that a peer's is counted and shown; an error means that nothing was measured.
    fn add_and_delete(
        &self,
        host: &Netns,
        pod: &Netns,
        plugins: &Path,
        id: &str,
    ) -> Result<(Result<Duration, String>, Result<Duration, String>)> {
        let call = |verb: &str, config: &Value| -> Result<Result<(Duration, Value), String>> {
            let mut command = host.command(&self.program);
            command
                .env_clear()
                .env("PATH", std::env::var_os("PATH").unwrap_or_default())
                .env("CNI_COMMAND", verb)
                .env("CNI_CONTAINERID", id)
                .env("CNI_NETNS", pod.path())
                .env("CNI_IFNAME", "eth0")
                .env("CNI_PATH", plugins);
            run(command, config).with_context(|| format!("failed to run {} {verb}", self.name))
        };
        let added = call("ADD", &self.config)?.and_then(|(time, result)| {
            // An ADD that gave no address did not do the work.
            if result["ips"][0]["address"].is_string() { Ok((time, result)) } else { Err(result.to_string()) }
        });
        let mut config = self.config.clone();
        if let Ok((_, result)) = &added {
            config["prevResult"] = result.clone();
        }
        let deleted = call("DEL", &config)?;
        Ok((added.map(|(time, _)| time), deleted.map(|(time, _)| time)))
    }
}

/// Runs a plugin with its configuration on stdin; how long it took and what it printed, or how it failed.
fn run(mut command: Command, config: &Value) -> Result<Result<(Duration, Value), String>> {
    let input = serde_json::to_vec(config)?;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let start = Instant::now();
    let mut child = command.spawn()?;
    // Dropped at the end of the statement, which closes the pipe.
    child.stdin.take().context("stdin is a pipe")?.write_all(&input)?;
    let output = child.wait_with_output()?;
    let time = start.elapsed();
    let printed = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        return Ok(Err(format!("{}: {printed}{}", output.status, String::from_utf8_lossy(&output.stderr))));
    }
    if printed.trim().is_empty() {
        return Ok(Ok((time, Value::Null)));
    }
    Ok(serde_json::from_str(&printed).map(|result| (time, result)).map_err(|error| format!("{error}: {printed}")))
}

/// How long a program that takes no input runs.
fn spawn(mut command: Command) -> Result<Duration> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let start = Instant::now();
    let output = command.output().with_context(|| format!("failed to run {command:?}"))?;
    let time = start.elapsed();
    ensure!(output.status.success(), "{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(time)
}

/// How long it takes to remove a veth with nothing around it: the kernel waits for a grace period.
fn veth_removal(host: &Netns) -> Result<Duration> {
    let ip = |arguments: &[&str]| {
        let mut command = host.command("ip");
        command.args(arguments);
        spawn(command)
    };
    ip(&["link", "add", "kl-floor", "type", "veth", "peer", "name", "kl-floor-peer"])?;
    ip(&["link", "del", "kl-floor"])
}
