//! The section, checked.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use keelson_host::{HostRoot, LONGEST_SOCKET_PATH, Node, Problem, Problems};

use super::{DevicesSection, NodePattern, PciSection, ResourceName, ResourceSection, SelectorSection};
use crate::{
    kernel::discover,
    policy::{Conflict, Device, Inventory, Listing, conflicts},
};

/// The longest file name of a socket that the plugin makes: see `kubelet::socket`.
const LONGEST_SOCKET_NAME: usize = "keelson-0123456789abcdef.sock".len();

/// More simulated devices than that try out nothing new.
const MOST_SIMULATED: u32 = 1024;

/// A [`DevicesSection`] that was checked against its node.
#[derive(Clone, Debug)]
pub struct DevicesSettings {
    pub(crate) kubelet_dir: PathBuf,
    pub(crate) cdi_dir: PathBuf,
    pub(crate) resources: Vec<Resource>,
    /// Where `/dev` and `/sys` are found.
    pub(crate) root: HostRoot,
    /// The plugin's own state: `devices` below the node's state directory.
    pub(crate) state_dir: PathBuf,
}

/// One resource to offer.
#[derive(Clone, Debug)]
pub(crate) struct Resource {
    pub(crate) name: ResourceName,
    pub(crate) source: Source,
}

/// Where a resource's devices come from.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// Made by the plugin.
    Simulated {
        /// How many.
        count: u32,
    },
    /// Found on the machine by any of these.
    Select(Vec<Selector>),
}

/// One way of finding devices.
#[derive(Clone, Debug)]
pub(crate) enum Selector {
    /// Each node whose path one of these matches.
    DeviceNodes(Vec<NodePattern>),
    /// Each PCI function of this kind, with its nodes.
    Pci {
        /// The vendor's id.
        vendor: u16,
        /// The device's id.
        device: u16,
    },
}

impl DevicesSection {
    /// Checks the section against the node and gives what [`crate::Plugin`] needs. Reads the host, changes nothing.
    ///
    /// A kubelet that isn't there yet, or a selector that finds nothing yet, is no problem: both may come later.
    ///
    /// # Errors
    ///
    /// Every key with a wrong value, each path starting with `devices.`; and each device node that two resources match
    /// now.
    pub fn validate(&self, node: &Node) -> Result<DevicesSettings, Problems> {
        let mut problems = Problems::default();
        for (key, path) in [("kubeletDir", &self.kubelet_dir), ("cdiDir", &self.cdi_dir)] {
            if let Some(problem) = check_directory(key, path) {
                problems.push(problem);
            }
        }
        if self.kubelet_dir.as_os_str().len() + 1 + LONGEST_SOCKET_NAME > LONGEST_SOCKET_PATH {
            problems.push(Problem::new(
                "devices.kubeletDir",
                self.kubelet_dir.display(),
                format!("is too long: a socket's path in it would exceed {LONGEST_SOCKET_PATH} bytes"),
                format!("choose a path of at most {} bytes", LONGEST_SOCKET_PATH - LONGEST_SOCKET_NAME - 1),
            ));
        }
        let mut resources = Vec::new();
        for (index, resource) in self.resources.iter().enumerate() {
            let path = format!("devices.resources[{index}]");
            match (check_name(&path, resource), check_source(&path, resource)) {
                (Ok(name), Ok(source)) => resources.push(Resource { name, source }),
                (name, source) => {
                    problems.0.extend(name.err());
                    problems.0.extend(source.err().into_iter().flat_map(|found| found.0));
                }
            }
        }
        problems.0.extend(check_distinct(&self.resources));
        let settings = problems.into_result(DevicesSettings {
            kubelet_dir: self.kubelet_dir.clone(),
            cdi_dir: self.cdi_dir.clone(),
            resources,
            root: node.root.clone(),
            state_dir: node.state_dir.join("devices"),
        })?;
        Problems(check_machine(&settings)).into_result(settings)
    }
}

/// What is wrong with this config on this machine: nodes matched twice, lists that are too long.
///
/// What can't be looked at now is no problem of the config; it keeps the running plugin from being ready.
fn check_machine(settings: &DevicesSettings) -> Vec<Problem> {
    let found: Vec<Vec<Device>> = discover(settings).found.into_iter().map(Result::unwrap_or_default).collect();
    let names = settings.resources.iter().map(|resource| &resource.name);
    let mut problems: Vec<Problem> = conflicts(names.zip(found.iter().map(Vec::as_slice)))
        .into_iter()
        .map(|Conflict { node, indices: (first, second), names, .. }| {
            Problem::new(
                format!("devices.resources[{second}].select"),
                node.display(),
                format!("is matched by both {} (devices.resources[{first}]) and {}", names.0, names.1),
                "narrow one of the two, so that each device node belongs to one resource",
            )
        })
        .collect();
    for (index, (resource, devices)) in settings.resources.iter().zip(found).enumerate() {
        let mut inventory = Inventory::remembering(resource.name.clone(), Vec::new());
        inventory.update(devices, &[]);
        if let Err(error) = Listing::of(&inventory) {
            problems.push(Problem::new(
                format!("devices.resources[{index}].select"),
                "",
                error.to_string(),
                "narrow the patterns",
            ));
        }
    }
    problems
}

fn check_directory(key: &str, path: &Path) -> Option<Problem> {
    let problem =
        |wrong: String, remedy: &str| Some(Problem::new(format!("devices.{key}"), path.display(), wrong, remedy));
    if !path.is_absolute() || path.as_os_str().as_bytes().contains(&0) {
        return problem("is not an absolute path".to_owned(), "write the whole path, starting with /");
    }
    match fs::metadata(path) {
        Ok(found) if !found.is_dir() => problem("is not a directory".to_owned(), "name a directory"),
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            problem(format!("can't be looked at: {error}"), "name a directory that root can enter")
        }
        Ok(_) | Err(_) => None,
    }
}

fn check_name(path: &str, resource: &ResourceSection) -> Result<ResourceName, Problem> {
    ResourceName::parse(&resource.name)
        .map_err(|invalid| Problem::new(format!("{path}.name"), &resource.name, invalid.wrong, invalid.remedy))
}

fn check_source(path: &str, resource: &ResourceSection) -> Result<Source, Problems> {
    match (&resource.simulated, resource.select.as_slice()) {
        (Some(simulated), []) => match simulated.count {
            count @ 1..=MOST_SIMULATED => Ok(Source::Simulated { count }),
            count => Err(Problem::new(
                format!("{path}.simulated.count"),
                count,
                "is no number of simulated devices",
                format!("write a number from 1 to {MOST_SIMULATED}"),
            )
            .into()),
        },
        (None, selectors @ [_, ..]) => {
            let mut problems = Problems::default();
            let mut checked = Vec::new();
            for (index, selector) in selectors.iter().enumerate() {
                match check_selector(&format!("{path}.select[{index}]"), selector) {
                    Ok(selector) => checked.push(selector),
                    Err(found) => problems.0.extend(found.0),
                }
            }
            problems.into_result(Source::Select(checked))
        }
        (Some(_), [_, ..]) => Err(Problem::new(
            path,
            "",
            "has both simulated and select",
            "keep one: simulated devices to try things out, or select to offer the machine's own",
        )
        .into()),
        (None, []) => Err(Problem::new(
            path,
            "",
            "has no devices",
            "add select: [{deviceNodes: [\"/dev/...\"]}], select: [{pci: {vendor: ..., device: ...}}] or \
             simulated: {count: 1}",
        )
        .into()),
    }
}

fn check_selector(path: &str, selector: &SelectorSection) -> Result<Selector, Problems> {
    match (selector.device_nodes.as_slice(), &selector.pci) {
        (patterns @ [_, ..], None) => {
            let mut problems = Problems::default();
            let mut parsed = Vec::new();
            for (index, pattern) in patterns.iter().enumerate() {
                match NodePattern::parse(pattern) {
                    Ok(pattern) => parsed.push(pattern),
                    Err((wrong, remedy)) => {
                        problems.push(Problem::new(format!("{path}.deviceNodes[{index}]"), pattern, wrong, remedy));
                    }
                }
            }
            problems.into_result(Selector::DeviceNodes(parsed))
        }
        ([], Some(PciSection { vendor, device })) => {
            let vendor = pci_id(format!("{path}.pci.vendor"), vendor);
            let device = pci_id(format!("{path}.pci.device"), device);
            match (vendor, device) {
                (Ok(vendor), Ok(device)) => Ok(Selector::Pci { vendor, device }),
                (vendor, device) => Err(Problems([vendor.err(), device.err()].into_iter().flatten().collect())),
            }
        }
        ([], None) => {
            Err(Problem::new(path, "", "selects nothing", "write deviceNodes: [\"/dev/...\"] or pci: {...}").into())
        }
        ([_, ..], Some(_)) => Err(Problem::new(
            path,
            "",
            "has both deviceNodes and pci",
            "write two entries: a device belongs to the resource if any entry finds it",
        )
        .into()),
    }
}

fn pci_id(path: String, text: &str) -> Result<u16, Problem> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    match u16::from_str_radix(digits, 16) {
        Ok(id) if digits.len() == 4 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()) => Ok(id),
        _ => Err(Problem::new(
            path,
            text,
            if text.is_empty() { "is missing" } else { "is not a PCI id" },
            "write four hexadecimal digits in quotes, as lspci -n prints them: \"10ee\"",
        )),
    }
}

/// Resources need names of their own, and their devices CDI kinds of their own.
fn check_distinct(resources: &[ResourceSection]) -> Vec<Problem> {
    let mut kinds = BTreeMap::new();
    let mut problems = Vec::new();
    for (index, resource) in resources.iter().enumerate() {
        let Ok(name) = ResourceName::parse(&resource.name) else { continue };
        if let Some(first) = kinds.get(&name.cdi_kind()) {
            problems.push(Problem::new(
                format!("devices.resources[{index}].name"),
                &resource.name,
                format!("is taken by devices.resources[{first}], or has the same CDI kind"),
                "give each resource a name of its own; put what belongs together into one entry's select",
            ));
        } else {
            kinds.insert(name.cdi_kind(), index);
        }
    }
    problems
}
