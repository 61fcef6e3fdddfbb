//! The test programs that a shape runs, as cargo builds them for every tier.

use std::{
    collections::BTreeSet,
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use keelson_testkit::{cache_dir, workspace_root};
use serde_json::Value;

use crate::shape::Shape;

/// A test program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Program {
    pub(crate) package: String,
    /// The test file without `.rs`.
    pub(crate) target: String,
    pub(crate) executable: PathBuf,
    /// The package's directory, where cargo runs it.
    pub(crate) directory: PathBuf,
}

/// Builds what `shape` runs, and the programs that those start.
pub(crate) fn build(shape: &Shape) -> Result<Vec<Program>> {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace_root()).stderr(Stdio::inherit());
    command.args(["test", "--locked", "--no-run", "--message-format=json-render-diagnostics"]);
    for package in shape.tests().map(|tests| tests.package).collect::<BTreeSet<_>>() {
        command.args(["--package", package]);
    }
    for target in shape.tests().map(|tests| tests.target).collect::<BTreeSet<_>>() {
        command.args(["--test", target]);
    }
    let output = command.output().with_context(|| format!("failed to run {command:?}"))?;
    ensure!(output.status.success(), "{command:?} ended with {}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).lines().filter_map(parse).collect())
}

/// The packages and names of all test programs in the workspace.
pub(crate) fn targets() -> Result<Vec<(String, String)>> {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace_root()).stderr(Stdio::inherit());
    command.args(["metadata", "--locked", "--no-deps", "--format-version", "1"]);
    let output = command.output().with_context(|| format!("failed to run {command:?}"))?;
    ensure!(output.status.success(), "{command:?} ended with {}", output.status);
    let metadata: Value = serde_json::from_slice(&output.stdout).context("failed to read what cargo metadata says")?;
    Ok(parse_targets(&metadata))
}

fn parse_targets(metadata: &Value) -> Vec<(String, String)> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut found = Vec::new();
    for package in list(&metadata["packages"]) {
        let tests =
            list(&package["targets"]).into_iter().filter(|target| list(&target["kind"]).contains(&"test".into()));
        found
            .extend(tests.filter_map(|target| {
                Some((package["name"].as_str()?.to_owned(), target["name"].as_str()?.to_owned()))
            }));
    }
    found
}

/// A line of cargo's messages, if it tells of a test program.
fn parse(line: &str) -> Option<Program> {
    let message: Value = serde_json::from_str(line).ok()?;
    if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
        return None;
    }
    let directory = Path::new(message["manifest_path"].as_str()?).parent()?.to_owned();
    // Samples: "path+file:///src/cni#keelson-cni@0.1.0", "path+file:///src/cni#0.1.0" where the directory is the name.
    let (path, name) = message["package_id"].as_str()?.rsplit_once('#')?;
    let package = match name.split_once('@') {
        Some((name, _)) => name,
        None => path.rsplit('/').next()?,
    };
    Some(Program {
        package: package.to_owned(),
        target: message["target"]["name"].as_str()?.to_owned(),
        executable: message["executable"].as_str()?.into(),
        directory,
    })
}

/// Where cargo puts everything.
pub(crate) fn target_directory(programs: &[Program]) -> PathBuf {
    // Sample: <target>/debug/deps/kernel_attach-0a1b
    let found = programs.iter().find_map(|program| program.executable.ancestors().nth(3));
    found.map_or_else(|| workspace_root().join("target"), Path::to_owned)
}

/// The host's directories that the guest sees at the same path: the workspace, cargo's target directory if it is
/// somewhere else, and the cache of tools.
pub(crate) fn shares(programs: &[Program]) -> Result<Vec<PathBuf>> {
    let resolve = |path: &Path| path.canonicalize().with_context(|| format!("failed to resolve {}", path.display()));
    let mut shares = vec![resolve(&workspace_root())?];
    for directory in [target_directory(programs), cache_dir()?] {
        if directory.exists() {
            let resolved = resolve(&directory)?;
            if !shares.iter().any(|share| resolved.starts_with(share)) {
                shares.push(resolved);
            }
        }
    }
    Ok(shares)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use serde_json::json;

    use super::*;

    fn artifact(package_id: &str) -> Value {
        json!({
            "reason": "compiler-artifact",
            "package_id": package_id,
            "manifest_path": "/src/cni/Cargo.toml",
            "target": {"kind": ["test"], "name": "kernel_attach"},
            "profile": {"test": true},
            "executable": "/src/target/debug/deps/kernel_attach-0a1b",
        })
    }

    #[test]
    fn test_programs_are_found_among_cargos_messages() {
        let program = parse(&artifact("path+file:///src/cni#keelson-cni@0.1.0").to_string()).unwrap();
        assert_eq!(
            program,
            Program {
                package: "keelson-cni".to_owned(),
                target: "kernel_attach".to_owned(),
                executable: "/src/target/debug/deps/kernel_attach-0a1b".into(),
                directory: "/src/cni".into(),
            }
        );
        assert_eq!(parse(&artifact("path+file:///src/xtask#0.1.0").to_string()).unwrap().package, "xtask");
    }

    #[test]
    fn test_programs_are_found_in_cargos_metadata() {
        let metadata = json!({"packages": [
            {"name": "p", "targets": [{"kind": ["lib"], "name": "p"}, {"kind": ["test"], "name": "kernel_a"}]},
            {"name": "q", "targets": [{"kind": ["bin"], "name": "q"}]},
        ]});
        assert_eq!(parse_targets(&metadata), [("p".to_owned(), "kernel_a".to_owned())]);
    }

    #[test]
    fn other_messages_are_passed_over() {
        let mut library = artifact("path+file:///src/cni#keelson-cni@0.1.0");
        library["profile"]["test"] = json!(false);
        for line in [library.to_string(), r#"{"reason":"build-finished","success":true}"#.to_owned(), "x".to_owned()] {
            assert_eq!(parse(&line), None);
        }
    }
}
