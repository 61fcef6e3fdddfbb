//! CNI plugins in a row, called as libcni calls them.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{
    Bench,
    subject::{Attached, Network, Outcome, Pod, run},
};
use crate::network;

/// A plugin and its part of the network configuration.
#[derive(Clone, Debug)]
struct Plugin {
    program: PathBuf,
    config: Value,
}

/// The plugins of one network.
#[derive(Clone, Debug)]
pub(super) struct Chain {
    plugins: Vec<Plugin>,
    with_host_ports: bool,
    cni_path: PathBuf,
    path: PathBuf,
    /// Where strace writes what the plugins do, if they are traced.
    trace: Option<PathBuf>,
}

impl Chain {
    /// keelson-cni, which does all of it.
    pub(super) fn keelson(bench: &Bench, masquerade: bool) -> Result<Self> {
        let config = network::keelson(&bench.state("keelson")?, masquerade);
        Ok(Self::new(bench, vec![(&bench.keelson, config)]))
    }

    /// The reference bridge with host-local.
    pub(super) fn reference(bench: &Bench, masquerade: bool) -> Result<Self> {
        let config = network::reference(&bench.state("reference")?, masquerade);
        Ok(Self::new(bench, vec![(&bench.reference.join("bridge"), config)]))
    }

    fn new(bench: &Bench, plugins: Vec<(&Path, Value)>) -> Self {
        let plugin = |(program, mut config): (&Path, Value)| {
            config["cniVersion"] = network::SPEC_VERSION.into();
            config["name"] = network::NAME.into();
            Plugin { program: program.to_owned(), config }
        };
        Self {
            plugins: plugins.into_iter().map(plugin).collect(),
            with_host_ports: false,
            cni_path: bench.reference.clone(),
            path: bench.path.clone(),
            trace: None,
        }
    }

    /// Each Pod gets two host ports, by the plugins or by `portmap` after them.
    pub(super) fn with_host_ports(mut self, portmap: Option<&Bench>) -> Self {
        if let Some(bench) = portmap {
            let config = network::portmap();
            self.plugins.extend(Self::new(bench, vec![(&bench.reference.join("portmap"), config)]).plugins);
        }
        self.with_host_ports = true;
        self
    }

    /// The plugins' part of the spec that STATUS needs.
    pub(super) fn of_version(mut self, version: &str) -> Self {
        for plugin in &mut self.plugins {
            plugin.config["cniVersion"] = version.into();
        }
        self
    }

    /// The same network with each plugin under strace, which appends to `file`.
    pub(super) fn traced(&self, file: &Path) -> Self {
        Self { trace: Some(file.to_owned()), ..self.clone() }
    }

    /// Where the first plugin keeps its addresses.
    pub(super) fn data_dir(&self) -> Result<PathBuf> {
        let plugin = self.plugins.first().context("a chain has a plugin")?;
        Ok(plugin.config["ipam"]["dataDir"].as_str().context("the config has a dataDir")?.into())
    }

    /// A call of the network's first plugin that concerns no Pod: STATUS or VERSION.
    pub(super) fn ask(&self, verb: &str) -> Result<Outcome<Duration>> {
        let plugin = self.plugins.first().context("a chain has a plugin")?;
        Ok(run(self.command(plugin, verb)?, &serde_json::to_vec(&plugin.config)?)?.map(|(time, _)| time))
    }

    fn command(&self, plugin: &Plugin, verb: &str) -> Result<Command> {
        let mut command = match &self.trace {
            Some(file) => {
                let mut command = Command::new(super::program("strace")?);
                command.args(["-f", "-A", "-o"]).arg(file).arg(&plugin.program);
                command
            }
            None => Command::new(&plugin.program),
        };
        command.env_clear().env("PATH", &self.path).env("CNI_COMMAND", verb).env("CNI_PATH", &self.cni_path);
        Ok(command)
    }

    fn call(&self, plugin: &Plugin, verb: &str, pod: &Pod, previous: &Value) -> Result<Outcome<(Duration, String)>> {
        let mut command = self.command(plugin, verb)?;
        command.env("CNI_CONTAINERID", &pod.id).env("CNI_NETNS", pod.netns.path()).env("CNI_IFNAME", "eth0");
        let mut config = plugin.config.clone();
        if !previous.is_null() {
            config["prevResult"] = previous.clone();
        }
        if self.with_host_ports {
            let [tcp, udp] = pod.host_ports();
            config["runtimeConfig"] = json!({"portMappings": [
                {"hostPort": tcp, "containerPort": 53, "protocol": "tcp"},
                {"hostPort": udp, "containerPort": 53, "protocol": "udp"},
            ]});
        }
        run(command, &serde_json::to_vec(&config)?)
    }
}

impl Network for Chain {
    fn add(&self, pod: &Pod) -> Result<Outcome<Attached>> {
        let mut attached = Attached { time: Duration::ZERO, result: Value::Null };
        for plugin in &self.plugins {
            let (time, printed) = match self.call(plugin, "ADD", pod, &attached.result)? {
                Ok(done) => done,
                Err(failure) => return Ok(Err(failure)),
            };
            let result: Value = serde_json::from_str(&printed).unwrap_or_default();
            // An ADD that gave no address did not do the work.
            if !result["ips"][0]["address"].is_string() {
                return Ok(Err(format!("no address in the result: {printed}")));
            }
            attached = Attached { time: attached.time + time, result };
        }
        Ok(Ok(attached))
    }

    fn del(&self, pod: &Pod, result: Option<&Value>) -> Result<Outcome<Duration>> {
        let mut together = Duration::ZERO;
        for plugin in self.plugins.iter().rev() {
            match self.call(plugin, "DEL", pod, result.unwrap_or(&Value::Null))? {
                Ok((time, _)) => together += time,
                Err(failure) => return Ok(Err(failure)),
            }
        }
        Ok(Ok(together))
    }
}
