//! What is measured: a program that attaches Pods to a network, on a host of its own.

use std::{
    fs,
    io::{self, Write as _},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use keelson_testkit::Netns;
use serde_json::Value;

use super::program;

/// What a call came to. A peer's failure is an outcome, to be counted and shown; an error means that nothing was measured.
pub(super) type Outcome<T> = Result<T, String>;

/// A Pod to attach: its namespace, and how a runtime would call it.
#[derive(Debug)]
pub(super) struct Pod {
    pub(super) netns: Netns,
    pub(super) id: String,
    /// Tells it from the others on its host: addresses and ports that the caller chooses follow from it.
    pub(super) number: u16,
}

impl Pod {
    pub(super) fn new(number: u16) -> Result<Self> {
        let netns = Netns::new().context("failed to make a Pod's namespace")?;
        Ok(Self { netns, id: format!("{number:064x}"), number })
    }

    /// The two host ports that belong to it alone.
    pub(super) fn host_ports(&self) -> [u16; 2] {
        [20_000 + 2 * self.number, 20_001 + 2 * self.number]
    }
}

/// A Pod that has been attached.
#[derive(Debug)]
pub(super) struct Attached {
    pub(super) time: Duration,
    pub(super) result: Value,
}

/// A program with the configuration of one network; its methods are called in the namespace of the host.
pub(super) trait Network: Send + Sync {
    fn add(&self, pod: &Pod) -> Result<Outcome<Attached>>;
    fn del(&self, pod: &Pod, result: Option<&Value>) -> Result<Outcome<Duration>>;
}

impl Network for Box<dyn Network> {
    fn add(&self, pod: &Pod) -> Result<Outcome<Attached>> {
        (**self).add(pod)
    }

    fn del(&self, pod: &Pod, result: Option<&Value>) -> Result<Outcome<Duration>> {
        (**self).del(pod, result)
    }
}

/// A network on a host of its own, with one Pod attached all the time: bridge, tables and chains are there.
pub(super) struct Subject<N> {
    pub(super) name: &'static str,
    pub(super) host: Netns,
    pub(super) network: N,
    resident: Pod,
    /// The host's rules with nobody but the resident attached.
    rules: String,
    /// Why no ADD counts: the resident's did not do what is measured.
    defect: Option<String>,
    /// The number of the next Pod.
    next: u16,
}

impl<N: Network> Subject<N> {
    /// Makes the host and attaches the resident, whose ADD has to leave each of `traces` in the rules.
    pub(super) fn new(name: &'static str, network: N, traces: &[String]) -> Result<Self> {
        let host = Netns::new().context("failed to make a namespace that plays the host")?;
        let up = host.command("ip").args(["link", "set", "lo", "up"]).status().context("failed to run ip")?;
        ensure!(up.success(), "ip failed to bring up the loopback");
        let resident = Pod::new(0)?;
        let added = host.run(|| network.add(&resident))?;
        let rules = list_rules(&host)?;
        let defect = added.err().or_else(|| {
            let trace = traces.iter().find(|trace| !rules.contains(trace.as_str()))?;
            Some(format!("ADD succeeded, but the host's rules hold no {trace:?}"))
        });
        Ok(Self { name, host, network, resident, rules, defect, next: 1 })
    }

    pub(super) fn resident(&self) -> &Pod {
        &self.resident
    }

    pub(super) fn pod(&mut self) -> Result<Pod> {
        // Past the last port the first ones are free again.
        self.next = if self.next < 20_000 { self.next + 1 } else { 1 };
        Pod::new(self.next)
    }

    pub(super) fn add(&self, pod: &Pod) -> Result<Outcome<Attached>> {
        let added = self.host.run(|| self.network.add(pod))?;
        Ok(self.judge(added))
    }

    /// What an ADD counts as.
    pub(super) fn judge<T>(&self, added: Outcome<T>) -> Outcome<T> {
        match &self.defect {
            Some(defect) => added.and(Err(defect.clone())),
            None => added,
        }
    }

    /// Detaches a Pod, and removes the rules that it leaves: they must not slow down the samples that follow.
    pub(super) fn del(&self, pod: &Pod, result: Option<&Value>) -> Result<Outcome<Duration>> {
        let deleted = self.host.run(|| self.network.del(pod, result))?;
        self.clean()?;
        Ok(deleted)
    }

    /// Puts the host's rules back to those of the resident, if they are others.
    pub(super) fn clean(&self) -> Result<()> {
        if list_rules(&self.host)? == self.rules {
            return Ok(());
        }
        let mut nft = self.host.command("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn()?;
        // Dropped at the end of the statement, which closes the pipe.
        nft.stdin.take().context("stdin is a pipe")?.write_all(format!("flush ruleset\n{}", self.rules).as_bytes())?;
        ensure!(nft.wait()?.success(), "nft failed to restore the rules of {}", self.name);
        Ok(())
    }
}

fn list_rules(host: &Netns) -> Result<String> {
    let output = host.command("nft").args(["list", "ruleset"]).output().context("failed to run nft")?;
    ensure!(output.status.success(), "nft failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// Runs a program with `input` on its stdin; how long it took and what it printed, or how it failed.
pub(super) fn run(mut command: Command, input: &[u8]) -> Result<Outcome<(Duration, String)>> {
    // The input lies ready, as a runtime's does; the pipe holds 64 KiB.
    let (reader, mut writer) = io::pipe()?;
    writer.write_all(input)?;
    drop(writer);
    command.stdin(reader).stdout(Stdio::piped()).stderr(Stdio::piped());
    let start = Instant::now();
    let output = command.output().with_context(|| format!("failed to run {command:?}"))?;
    let time = start.elapsed();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(Ok((time, printed)));
    }
    Ok(Err(format!("{}: {}{}", output.status, printed.trim(), String::from_utf8_lossy(&output.stderr).trim())))
}

/// How long it takes to remove a link with `ip`, in the namespace of the calling thread.
pub(super) fn remove_link(name: &str) -> Result<Outcome<Duration>> {
    let mut command = Command::new(program("ip")?);
    command.args(["link", "del", name]);
    Ok(run(command, &[])?.map(|(time, _)| time))
}

/// Drops namespaces, and waits until the kernel has taken them down, which it does in the background, in order.
pub(super) fn settle(namespaces: impl IntoIterator<Item = Netns>) -> Result<()> {
    drop(namespaces.into_iter().collect::<Vec<_>>());
    let (witness, last) = (Netns::new()?, Netns::new()?);
    let link = ["link", "add", "witness", "type", "veth", "peer", "name", "last", "netns"];
    let made = witness.command(program("ip")?).args(link).arg(last.path()).status().context("failed to run ip")?;
    ensure!(made.success(), "ip failed to make a veth pair");
    drop(last);
    // The pair goes with the namespace of its other end.
    let deadline = Instant::now() + Duration::from_secs(60);
    while witness.run(|| is_there("witness"))? {
        ensure!(Instant::now() < deadline, "the kernel takes more than a minute to remove namespaces");
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn is_there(link: &str) -> Result<bool> {
    // Links of the calling thread's namespace; /sys shows those of the one that mounted it.
    let links = fs::read_to_string("/proc/thread-self/net/dev").context("failed to list links")?;
    Ok(links.lines().any(|line| line.trim_start().starts_with(&format!("{link}:"))))
}
