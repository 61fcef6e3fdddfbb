//! The executable called as `loopback`: a container's interface `lo`, whatever `CNI_IFNAME` says.

use ipnet::IpNet;
use keelson_host::Problem;
use nix::errno::Errno;
use serde_json::Value;

use crate::{
    config::{
        invocation::{AttachmentCall, Command, Invocation},
        network::NetworkConfig,
        result::{Address, CniResult, Interface, unspeakable},
    },
    error::Failure,
    kernel::{
        KernelError, RouteSocket, address,
        link::{self, Link, State},
        netns::{Namespace, NamespaceError},
    },
};

const NAME: &str = "lo";

pub(super) fn serve(invocation: &Invocation, config: &NetworkConfig) -> Result<Option<Value>, Failure> {
    match invocation {
        Invocation::Attachment(Command::Add, call) => return add(config, call).map(Some),
        Invocation::Attachment(Command::Check, call) => check(call)?,
        Invocation::Attachment(_, call) => del(call)?,
        // There is nothing that could be left over, or be missing.
        Invocation::Network(_) => {}
    }
    Ok(None)
}

/// Brings `lo` up. The result of the plugins before this one is passed on; without one, it's `lo` with its addresses.
fn add(config: &NetworkConfig, call: &AttachmentCall) -> Result<Value, Failure> {
    let previous = config.prev_result()?;
    let namespace = open(call)?;
    let mut inside = namespace.route_socket()?;
    let lo = find(&mut inside)?;
    link::set(&mut inside, lo.index, State::Up)?;
    if let Some(previous) = previous {
        return Ok(previous.to_json(config.version));
    }
    let mut result = CniResult {
        interfaces: vec![Interface {
            name: NAME.to_owned(),
            mac: "00:00:00:00:00:00".to_owned(),
            sandbox: namespace.path().to_string_lossy().into_owned(),
            ..Interface::default()
        }],
        ..CniResult::default()
    };
    let found = address::of_link(&mut inside, lo.index)?;
    for is_ipv4 in [true, false] {
        let is_own = |address: &&IpNet| address.addr().is_loopback() && address.addr().is_ipv4() == is_ipv4;
        let address = found.iter().find(is_own).copied();
        result.addresses.extend(address.map(|address| Address { address, gateway: None, interface: Some(0) }));
    }
    let ipv4 = result.addresses.iter().filter(|address| address.address.addr().is_ipv4()).count();
    if let Some(wrong) = unspeakable(config.version, ipv4, result.addresses.len() - ipv4) {
        return Err(Problem::new("cniVersion", config.version, wrong, "take cniVersion 0.3.0 or later").into());
    }
    Ok(result.to_json(config.version))
}

/// Is `lo` up?
fn check(call: &AttachmentCall) -> Result<(), Failure> {
    if find(&mut open(call)?.route_socket()?)?.up {
        Ok(())
    } else {
        Err(Failure::CheckFailed(vec!["loopback interface is down".to_owned()]))
    }
}

/// Sets `lo` down, in a namespace that is still there and the container's.
fn del(call: &AttachmentCall) -> Result<(), Failure> {
    let namespace = match open(call) {
        Ok(namespace) => namespace,
        Err(error @ NamespaceError::Kernel(_)) => return Err(error.into()),
        Err(_) => return Ok(()),
    };
    let mut inside = namespace.route_socket()?;
    let lo = find(&mut inside)?;
    Ok(link::set(&mut inside, lo.index, State::Down)?)
}

fn open(call: &AttachmentCall) -> Result<Namespace, NamespaceError> {
    // An empty path can't be opened.
    Namespace::open(&call.netns.clone().unwrap_or_default())
}

fn find(inside: &mut RouteSocket) -> Result<Link, KernelError> {
    link::find(inside, NAME)?.ok_or_else(|| KernelError::new(format!("find {NAME} in the container"), Errno::ENODEV))
}
