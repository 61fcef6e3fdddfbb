//! What one is told about a lab that is left: how to look at it, why it failed, how to remove it.

use std::fs;

use anyhow::{Context, Result};
use keelson_testkit::Tool;
use serde_json::Value;

use crate::{
    lab::Lab,
    layout::{CONTAINERD_LOG, KEELSON_LOG, Layout},
    scene::Scene,
};

/// How many of the suite's complaints are worth showing after a failure; the rest is in its log.
const LOG_LINES: usize = 5;

/// One line about the labs that earlier runs left, or `None`.
///
/// # Errors
///
/// When they can't be listed.
pub(crate) fn left_behind() -> Result<Option<String>> {
    let labs: Vec<String> = Layout::abandoned()?.iter().map(Layout::mark).collect();
    Ok(match labs.as_slice() {
        [] => None,
        [lab] => Some(format!("{lab} is left from an earlier run; remove it with: cargo xtask try --clean")),
        labs => {
            Some(format!("{} are left from earlier runs; remove them with: cargo xtask try --clean", labs.join(", ")))
        }
    })
}

/// How to look at a lab that is kept although it failed, and how to remove it.
pub(crate) fn after_failure(layout: &Layout) -> String {
    format!(
        "The lab is left as it was when it failed, in {root}. To look:
  keelson's log        {keelson}
  containerd's log     {containerd}
  the Pods' logs       {pods}/
  their configs        {root}/config.yaml, {root}/containerd.toml
{clean}",
        root = layout.root().display(),
        keelson = layout.log(KEELSON_LOG).display(),
        containerd = layout.log(CONTAINERD_LOG).display(),
        pods = layout.log("pods").display(),
        clean = how_to_clean(layout),
    )
}

/// The commands with which one looks at what was kept.
///
/// # Errors
///
/// When something doesn't run after all.
pub(crate) fn how_to_look(lab: &mut Lab, scene: &Scene) -> Result<String> {
    let layout = lab.layout.clone();
    let root = layout.root();
    let (app, peer) = (scene.app.container()?, scene.peer.container()?);
    let address = scene.app.addresses.first().context("app has no address")?;
    let health = lab.keelson()?.address();
    Ok(format!(
        "The Pods are left running in {root}. To look, first:
  export CONTAINERD_ADDRESS={socket} CONTAINERD_NAMESPACE=k8s.io
  export PATH=\"$PATH:{tools}\" FIFO={root}/fifo
  export APP={app}
  export PEER={peer}
and then:
  what runs            ctr tasks list
  a shell in app       ctr tasks exec --fifo-dir $FIFO --tty --exec-id look $APP sh
  the same for peer    ctr tasks exec --fifo-dir $FIFO --tty --exec-id look $PEER sh
  app's network        nsenter --target {app_pid} --net ip address
  app's file           curl --silent http://{address}:8080/payload | sha256sum
  app's volume         grep /data /proc/{app_pid}/mountinfo
  app's CPU            grep Cpus_allowed_list /proc/{app_pid}/status
  with cri-tools       crictl --runtime-endpoint unix://$CONTAINERD_ADDRESS pods
  the suite's health   curl http://{health}/readyz
  its config and logs  {root}/config.yaml, {root}/log/
The kubelet's stand-in has ended, so devices is not ready any more; no Pod minds.
{clean}",
        // containerd is in a mount namespace of its own: its shims see no pipes in /run/containerd.
        root = root.display(),
        socket = layout.containerd_socket().display(),
        tools = Tool::Containerd.ensure()?.display(),
        app = app.id,
        peer = peer.id,
        app_pid = app.pid,
        clean = how_to_clean(&layout),
    ))
}

fn how_to_clean(layout: &Layout) -> String {
    // Only for people to type: the plain name will do where the path can't be told.
    let nodelab = std::env::current_exe().map_or_else(|_| "nodelab".to_owned(), |path| path.display().to_string());
    format!(
        "To remove this lab: {nodelab} clean {lab}\nTo remove it and every other lab that was kept: cargo xtask try --clean",
        lab = layout.mark()
    )
}

/// What the suite complains about at the end of its log, if it does. What containerd does is in the error already.
pub(crate) fn complaints(layout: &Layout) -> String {
    // A log that isn't there has nothing to say.
    let log = fs::read(layout.log(KEELSON_LOG)).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<&str> = log.lines().filter(|line| is_complaint(line)).collect();
    if lines.is_empty() {
        return String::new();
    }
    format!("keelson's last complaints:\n{}\n\n", lines[lines.len().saturating_sub(LOG_LINES)..].join("\n"))
}

/// Sample: `{"timestamp":"...","level":"WARN","message":"..."}`.
fn is_complaint(line: &str) -> bool {
    serde_json::from_str::<Value>(line).is_ok_and(|event| event["level"] == "WARN" || event["level"] == "ERROR")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_told_from_chatter() {
        assert!(is_complaint(r#"{"level":"WARN","message":"x"}"#));
        assert!(is_complaint(r#"{"level":"ERROR","message":"x"}"#));
        assert!(!is_complaint(r#"{"level":"INFO","message":"level WARN"}"#));
        assert!(!is_complaint("WARN"));
    }
}
