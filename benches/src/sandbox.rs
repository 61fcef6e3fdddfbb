//! RunPodSandbox of a real containerd with keelson-cni beside one with the reference bridge and host-local.
//!
//! Two containerds run in one network namespace of the bench's own, which plays the host.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use keelson_nodelab::Runtime;
use keelson_testkit::{Netns, Tool, is_root, missing};
use serde_json::{Value, json};

use crate::{
    network, programs,
    report::{Comparison, Report, Samples},
};

pub(crate) fn measure(samples: usize) -> Result<Report> {
    ensure!(is_root(), "measuring sandboxes needs root: containerd makes namespaces, mounts and cgroups");
    ensure!(missing(&["ip"]).is_empty(), "ip sets up the namespace that plays the host: install iproute2");
    let reference = Tool::CniPlugins.ensure().context("failed to build the reference plugins")?;
    // A directory with the executable alone: all of it goes into containerd's plugin directory.
    let keelson = tempfile::tempdir()?;
    fs::copy(programs::keelson_cni()?, keelson.path().join("keelson-cni")).context("failed to copy keelson-cni")?;

    let mut report = Report::default();
    for (variant, masquerade) in network::VARIANTS {
        let state = tempfile::tempdir()?;
        let host = Netns::new().context("failed to make the namespace that plays the host")?;
        let up = host.command("ip").args(["link", "set", "lo", "up"]).status().context("failed to run ip")?;
        ensure!(up.success(), "ip failed to bring up the loopback");
        let timings = host.run(|| {
            // On this thread alone, so that what it starts is in the namespace too.
            let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            tokio.block_on(compare(
                [
                    ("keelson-cni", keelson.path(), network::keelson(state.path(), masquerade)),
                    ("reference bridge + host-local", &reference, network::reference(state.path(), masquerade)),
                ],
                samples,
            ))
        })?;
        report.comparisons.push(Comparison::new(format!("RunPodSandbox, {variant}"), timings));
    }
    report.notes = vec![network::NOTE.to_owned()];
    Ok(report)
}

/// Interleaves the subjects' samples, each going first in every other round.
async fn compare(subjects: [(&str, &Path, Value); 2], samples: usize) -> Result<Vec<crate::report::Timing>> {
    let mut runtimes = Vec::new();
    for (name, plugins, config) in subjects {
        eprintln!("starting containerd for {name}");
        let conflist = json!({"cniVersion": network::SPEC_VERSION, "name": "bench", "plugins": [config]});
        let runtime = Runtime::start(plugins, &conflist.to_string()).await?;
        runtimes.push((name, runtime, Samples::default()));
    }
    let mut floor = Samples::default();
    // The first round warms the caches and isn't counted.
    for round in 0..=samples {
        for turn in 0..runtimes.len() {
            let (_, runtime, samples) = &mut runtimes[(round + turn) % 2];
            let time = run_and_remove(runtime, &format!("bench-{round}-{turn}"), false).await?;
            if round > 0 {
                samples.add(Ok(time));
            }
        }
        let time = run_and_remove(&runtimes[round % 2].1, &format!("floor-{round}"), true).await?;
        if round > 0 {
            floor.add(Ok(time));
        }
    }
    let mut timings = Vec::new();
    for (name, runtime, samples) in runtimes {
        runtime.stop()?;
        timings.push(samples.timing(name));
    }
    timings.push(floor.timing("sandbox on the host's network (floor)"));
    Ok(timings)
}

async fn run_and_remove(runtime: &Runtime, name: &str, host_network: bool) -> Result<Duration> {
    let start = Instant::now();
    let sandbox = runtime.run_sandbox(name, host_network).await?;
    let time = start.elapsed();
    runtime.remove_sandbox(&sandbox).await?;
    Ok(time)
}
