//! netavark, the nearest peer in Rust: not a CNI plugin, but one process that does the work of one.

use std::{net::Ipv4Addr, path::PathBuf, process::Command, time::Duration};

use anyhow::Result;
use serde_json::{Value, json};

use super::{
    Bench,
    subject::{Attached, Network, Outcome, Pod, run},
};

/// A bridge network of netavark.
#[derive(Debug)]
pub(super) struct Netavark {
    program: PathBuf,
    state: PathBuf,
    path: PathBuf,
    masquerade: bool,
}

impl Netavark {
    pub(super) const NAME: &str = "netavark";

    /// Its network without masquerade is an internal one, which it gives no rules at all; `None` if it isn't installed.
    pub(super) fn new(bench: &Bench, masquerade: bool) -> Result<Option<Self>> {
        let Ok(program) = &bench.netavark else { return Ok(None) };
        let (program, state, path) = (program.clone(), bench.state("netavark")?, bench.path.clone());
        Ok(Some(Self { program, state, path, masquerade }))
    }

    fn call(&self, verb: &str, pod: &Pod) -> Result<Outcome<(Duration, String)>> {
        let mut command = Command::new(&self.program);
        let firewall = if self.masquerade { "nftables" } else { "none" };
        command
            .env_clear()
            .env("PATH", &self.path)
            .arg("--config")
            .arg(&self.state)
            .args(["--firewall-driver", firewall, verb])
            .arg(pod.netns.path());
        run(command, &serde_json::to_vec(&self.config(pod))?)
    }

    fn config(&self, pod: &Pod) -> Value {
        // It has no IPAM: who calls it chooses the address. The first is the bridge's.
        let address = Ipv4Addr::from_bits(Ipv4Addr::new(10, 97, 0, 2).to_bits() + u32::from(pod.number));
        json!({
            "container_id": pod.id,
            "container_name": format!("bench-{}", pod.number),
            "networks": {"bench": {"interface_name": "eth0", "static_ips": [address]}},
            "network_info": {"bench": {
                "id": format!("{:064x}", 1),
                "name": "bench",
                "driver": "bridge",
                "network_interface": "netavark-bench",
                "dns_enabled": false,
                "internal": !self.masquerade,
                "ipv6_enabled": false,
                "subnets": [{"subnet": "10.97.0.0/16", "gateway": "10.97.0.1"}],
            }},
        })
    }
}

impl Network for Netavark {
    fn add(&self, pod: &Pod) -> Result<Outcome<Attached>> {
        Ok(self.call("setup", pod)?.and_then(|(time, printed)| {
            let result: Value = serde_json::from_str(&printed).unwrap_or_default();
            let address = &result["bench"]["interfaces"]["eth0"]["subnets"][0]["ipnet"];
            if address.is_string() { Ok(Attached { time, result }) } else { Err(format!("no address in {printed}")) }
        }))
    }

    fn del(&self, pod: &Pod, _: Option<&Value>) -> Result<Outcome<Duration>> {
        Ok(self.call("teardown", pod)?.map(|(time, _)| time))
    }
}
