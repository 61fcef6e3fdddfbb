//! `cargo xtask try`: the samples through the whole suite.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    aftermath::{after_failure, complaints, how_to_look, left_behind},
    keelson::RESOURCE,
    lab::{Lab, RunningPod, check_machine},
    layout::Layout,
    manifest::Manifests,
    report::{Report, Stage},
    scene::{Check, Scene},
    sweep,
    volumes::Volume,
};

/// What a trial is given.
#[derive(Clone, Debug)]
pub struct Options {
    /// The directory with `keelson` and `keelson-cni`.
    pub programs: PathBuf,
    /// The directory with the manifests: Pods `app` and `peer` and what they need.
    pub samples: PathBuf,
    /// Whether to leave the Pods running.
    pub keep: bool,
}

/// The names of the stages beside those of [`Check`], in their order.
const BEFORE: [&str; 4] = ["runtime", "suite", "claim", "pods"];
const RESTART: &str = "restart";
const AFTER: [&str; 2] = ["deletion", "end"];

const RUN_AGAIN: &str = "Everything was removed; run again with --keep to look at it.";

/// The volume of each claim.
type Volumes = BTreeMap<String, Volume>;

/// How long what the kernel lets go of by and by may take; far more than it does.
const GONE_WITHIN: Duration = Duration::from_secs(30);

/// What came of a trial.
#[derive(Debug)]
pub struct Outcome {
    /// The stages.
    pub report: Report,
    /// What the machine or the samples lack, for which nothing was begun: one line with the remedy.
    pub lack: Option<String>,
    /// What else there is to say: how to look at what was kept, or why it failed.
    pub advice: Option<String>,
}

/// Runs a trial, calling `progress` with a line before each step.
///
/// It never fails: what goes wrong is a stage that isn't ok, and the stages that it keeps from running say so. Dropping
/// the future sweeps everything away.
pub async fn run(options: &Options, progress: &dyn Fn(&str)) -> Outcome {
    let mut trial = Trial { stages: Vec::new(), progress };
    let (lack, advice) = match check_machine().and_then(|()| samples(&options.samples)) {
        Ok(manifests) => (None, trial.run(options, &manifests).await),
        Err(error) => {
            let lack = format!("{error:#}");
            trial.record::<()>(BEFORE[0], Err(error));
            (Some(lack), None)
        }
    };
    let mut names: Vec<&str> = BEFORE.to_vec();
    names.extend(Check::ALL.map(Check::name));
    names.push(RESTART);
    if !options.keep {
        names.extend(AFTER);
    }
    for name in names {
        if !trial.stages.iter().any(|stage| stage.stage == name) {
            trial.stages.push(Stage { stage: name.to_owned(), ok: false, saw: "not reached".to_owned() });
        }
    }
    Outcome { report: Report(trial.stages), lack, advice }
}

/// The manifests of a directory, with the Pods that are verified.
fn samples(directory: &Path) -> Result<Manifests> {
    let manifests = Manifests::read(directory)?;
    for name in ["app", "peer"] {
        let is_there = manifests.pods.iter().any(|pod| pod.name == name);
        ensure!(is_there, "{} has no Pod {name:?}; the verification needs Pods app and peer", directory.display());
    }
    Ok(manifests)
}

struct Trial<'a> {
    stages: Vec<Stage>,
    progress: &'a dyn Fn(&str),
}

/// What the Pods have in the kernel and in the stores, to look for when they are gone.
#[derive(Debug)]
struct Traces {
    links: Vec<String>,
    /// Ids that no store may still hold.
    ids: BTreeSet<String>,
}

impl Trial<'_> {
    /// Returns what else there is to say.
    async fn run(&mut self, options: &Options, manifests: &Manifests) -> Option<String> {
        match left_behind() {
            Ok(left) => left.iter().for_each(|line| (self.progress)(line)),
            // No reason not to run.
            Err(error) => (self.progress)(&format!("failed to look for labs of earlier runs: {error:#}")),
        }
        let layout = Layout::new();
        let started = async {
            let lab = Lab::start_in(layout.clone(), &options.programs, options.keep, self.progress).await?;
            let version = lab.cri.version().await?;
            let saw = format!("{version} with CNI, NRI and CDI, all in {}", lab.layout.root().display());
            Ok((lab, saw))
        };
        let started = started.await;
        let Some(mut lab) = self.record("runtime", started) else {
            // What went wrong says the end of the log itself.
            return match options.keep {
                false => Some(RUN_AGAIN.to_owned()),
                true => layout.root().exists().then(|| after_failure(&layout)),
            };
        };
        let made = self.make(&mut lab, manifests).await;
        if let Some((scene, _)) = &made {
            self.verify(&mut lab, scene).await;
        }
        let complaints = if self.is_ok() { String::new() } else { complaints(&layout) };
        if options.keep {
            let how = match &made {
                // Something that was to be shown is gone.
                Some((scene, _)) => how_to_look(&mut lab, scene).unwrap_or_else(|_| after_failure(&layout)),
                None => after_failure(&layout),
            };
            lab.leave();
            return Some(format!("{complaints}{how}"));
        }
        if let Some((scene, volumes)) = made {
            (self.progress)("Deleting the Pods and the volume");
            let result = delete(&lab, &scene, volumes.into_values().collect()).await;
            self.record("deletion", result.map(|saw| ((), saw)));
            (self.progress)("Stopping the suite and containerd");
            let result = end(lab).await;
            self.record("end", result.map(|saw| ((), saw)));
        }
        (!self.is_ok()).then(|| format!("{complaints}{RUN_AGAIN}"))
    }

    /// The stages up to the running Pods.
    async fn make(&mut self, lab: &mut Lab, manifests: &Manifests) -> Option<(Scene, Volumes)> {
        let result = suite(lab);
        self.record("suite", result.map(|saw| ((), saw)))?;
        (self.progress)("Making the volume");
        let result = claim(lab, manifests).await;
        let volumes = self.record("claim", result)?;
        (self.progress)("Starting the Pods");
        let result = async {
            let mut pods = Vec::new();
            for manifest in &manifests.pods {
                pods.push(lab.create_pod(manifest, &volumes).await?);
            }
            let saw = pods.iter().map(describe).collect::<Vec<_>>().join("; ");
            let scene = Scene::set(lab, pods).await?;
            Ok((scene, saw))
        };
        let result = result.await;
        let scene = self.record("pods", result)?;
        Some((scene, volumes))
    }

    /// The stages of the running Pods.
    async fn verify(&mut self, lab: &mut Lab, scene: &Scene) {
        for check in Check::ALL {
            (self.progress)(&format!("Verifying: {}", check.name()));
            let result = scene.check(lab, check).await;
            self.record(check.name(), result.map(|saw| ((), saw)));
        }
        (self.progress)("Killing the storage process, and verifying all of it again");
        let result = restart(lab, scene).await;
        self.record(RESTART, result.map(|saw| ((), saw)));
    }

    /// Whether every stage so far is.
    fn is_ok(&self) -> bool {
        self.stages.iter().all(|stage| stage.ok)
    }

    fn record<T>(&mut self, name: &str, result: Result<(T, String)>) -> Option<T> {
        let (value, ok, saw) = match result {
            Ok((value, saw)) => (Some(value), true, saw),
            Err(error) => (None, false, format!("{error:#}")),
        };
        self.stages.push(Stage { stage: name.to_owned(), ok, saw });
        value
    }
}

/// The suite's processes, and what the kubelet's side knows of them.
fn suite(lab: &mut Lab) -> Result<String> {
    let mut processes = Vec::new();
    for plugin in ["network", "storage", "devices", "pinning"] {
        let pid = lab.keelson()?.plugin_pid(plugin)?.with_context(|| format!("{plugin} has no process"))?;
        processes.push(format!("{plugin} ({pid})"));
    }
    let devices = lab.devices.allocatable().get(RESOURCE).copied().unwrap_or(0);
    Ok(format!(
        "keelson run has {}, each a process of its own and ready; driver {}, {devices} {RESOURCE} allocatable",
        processes.join(", "),
        lab.driver.name()
    ))
}

async fn claim(lab: &Lab, manifests: &Manifests) -> Result<(Volumes, String)> {
    let volumes = lab.provision(manifests).await?;
    let mut seen = Vec::new();
    for (claim, volume) in &volumes {
        seen.push(format!("claim {claim} is bound to volume {} of {} bytes", volume.id, volume.capacity_bytes));
    }
    if let Some(listed) = lab.driver.list().await? {
        ensure!(
            volumes.values().all(|volume| listed.contains(&volume.id)),
            "ListVolumes has {listed:?}, not all of what was created"
        );
        seen.push("ListVolumes has it".to_owned());
    }
    Ok((volumes, seen.join("; ")))
}

fn describe(pod: &RunningPod) -> String {
    let addresses: Vec<String> = pod.addresses.iter().map(ToString::to_string).collect();
    format!("{} ({}) runs at {}", pod.manifest.name, pod.class.name(), addresses.join(", "))
}

/// Kills the supervisor's storage process and verifies everything again.
async fn restart(lab: &mut Lab, scene: &Scene) -> Result<String> {
    let pids = [scene.app.container()?.pid, scene.peer.container()?.pid];
    let (old, new) = lab.kill_plugin("storage").await?;
    for check in Check::ALL {
        scene.check(lab, check).await.with_context(|| format!("after the restart: {}", check.name()))?;
    }
    for pod in [&scene.app, &scene.peer] {
        let container = pod.container()?;
        ensure!(pids.contains(&lab.cri.pid(&container.id).await?), "{} was restarted", pod.manifest.name);
    }
    if let Some(listed) = lab.driver.list().await? {
        for volume in &scene.app.volumes {
            ensure!(listed.contains(&volume.id), "the new process does not know volume {}", volume.id);
        }
    }
    Ok(format!(
        "the storage process {old} was killed with SIGKILL and came back as {new}; everything above was seen again"
    ))
}

/// Deletes the Pods and volumes, and looks for anything that is left of them.
async fn delete(lab: &Lab, scene: &Scene, volumes: Vec<Volume>) -> Result<String> {
    let bridge = lab.layout.bridge();
    let mut traces = Traces {
        links: sweep::links_of(&lab.layout)?.into_iter().filter(|name| *name != bridge).collect(),
        ids: BTreeSet::new(),
    };
    ensure!(traces.links.len() >= 2, "the bridge has {} links for 2 Pods", traces.links.len());
    for pod in [&scene.app, &scene.peer] {
        traces.ids.extend([pod.uid.clone(), pod.sandbox.clone(), pod.container()?.id.clone()]);
        lab.delete_pod(pod).await?;
    }
    for volume in &volumes {
        traces.ids.extend([volume.id.clone(), volume.name.clone()]);
        lab.delete_volume(volume).await?;
    }
    // Some of it goes shortly after the call that says so: a link with the last process of its namespace, for one.
    let start = Instant::now();
    let mut left = remains(lab, &traces).await?;
    while !left.is_empty() {
        ensure!(start.elapsed() < GONE_WITHIN, "still there: {}", left.join(", "));
        tokio::time::sleep(Duration::from_millis(20)).await;
        left = remains(lab, &traces).await?;
    }
    let listed = lab.driver.list().await?;
    ensure!(listed.as_ref().is_none_or(Vec::is_empty), "ListVolumes still has {listed:?}");
    Ok(format!(
        "no link ({} before), namespace, mount, loop device, cgroup or process of theirs; none of {} ids in any store; \
         ListVolumes is empty",
        traces.links.len(),
        traces.ids.len()
    ))
}

/// What is left of Pods and volumes that were deleted.
async fn remains(lab: &Lab, traces: &Traces) -> Result<Vec<String>> {
    let root = lab.layout.root();
    let mut found = Vec::new();
    for link in &traces.links {
        if Path::new("/sys/class/net").join(link).exists() {
            found.push(format!("link {link}"));
        }
    }
    // The lab's own mount is all that may be left.
    found.extend(
        sweep::mounts_below(root)?
            .into_iter()
            .filter(|mount| mount.point != root)
            .map(|mount| format!("mount {} ({})", mount.point.display(), mount.kind)),
    );
    found.extend(sweep::loops_below(root)?.into_iter().map(|(name, _)| format!("loop device {name}")));
    for id in &traces.ids {
        for cgroup in lab.cgroup_directories(&lab.layout.cgroup()) {
            if holds_name(&cgroup, id)? {
                found.push(format!("cgroup of {id} in {}", cgroup.display()));
            }
        }
    }
    found.extend(lab.cri.sandboxes().await?.into_iter().map(|id| format!("sandbox {id}")));
    for store in ["keelson", "pool", "cdi", "cni/cache", "kubelet"] {
        let store = root.join(store);
        for id in &traces.ids {
            if let Some(file) = mentions(&store, id)? {
                found.push(format!("{id} in {}", file.display()));
            }
        }
    }
    Ok(found)
}

/// Whether a directory below `directory` has `id` in its name.
fn holds_name(directory: &Path, id: &str) -> Result<bool> {
    for entry in fs::read_dir(directory).with_context(|| format!("failed to list {}", directory.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir()
            && (entry.file_name().to_string_lossy().contains(id) || holds_name(&entry.path(), id)?)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The log of the CNI plugin's calls is there to tell of Pods that are gone.
const CALL_LOGS: [&str; 2] = ["calls.log", "calls.log.1"];

/// The first file below `directory` whose name or content has `id` in it, but for a [log](CALL_LOGS).
fn mentions(directory: &Path, id: &str) -> Result<Option<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        // Removed since its parent was listed, or never made.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        entries => entries.with_context(|| format!("failed to list {}", directory.display()))?,
    };
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        if entry.file_name().to_string_lossy().contains(id) {
            return Ok(Some(path));
        }
        let kind = entry.file_type()?;
        if CALL_LOGS.iter().any(|log| entry.file_name() == *log) {
            continue;
        }
        if kind.is_dir() {
            if let Some(found) = mentions(&path, id)? {
                return Ok(Some(found));
            }
        } else if kind.is_file() {
            match fs::read(&path) {
                Ok(content) if content.windows(id.len()).any(|window| window == id.as_bytes()) => {
                    return Ok(Some(path));
                }
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("failed to read {}", path.display()));
                }
                _ => {}
            }
        }
    }
    Ok(None)
}

/// Ends the lab in order and looks for anything that is left of the suite.
async fn end(lab: Lab) -> Result<String> {
    let mark = lab.layout.mark();
    let bridge = lab.layout.bridge();
    let left = lab.stop().await?;
    if !left.is_empty() {
        bail!("still there: {}", left.join(", "));
    }
    Ok(format!(
        "keelson and containerd ended on SIGTERM; no link (bridge {bridge}), nftables rule, mount, namespace, loop device, \
         cgroup, socket or process of {mark} is left in the kernel"
    ))
}
