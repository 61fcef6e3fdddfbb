//! Another plugin, executed for its part of the work: the spec's section 4, "Plugin Delegation".

use std::{
    env, fs,
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Command, ExitStatus, Stdio},
};

use keelson_host::Problem;
use serde_json::Value;

use crate::{
    calls,
    config::{invocation::AttachmentKey, network::NetworkConfig, result::CniResult},
    error::Failure,
    store::Record,
};

/// Why a delegated plugin did not do its part.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DelegateError {
    #[error("failed to find plugin {plugin:?} in path [{path}]")]
    NotFound { plugin: String, path: String },
    #[error("failed to execute the plugin {}: {source}", path.display())]
    Execute { path: PathBuf, source: io::Error },
    /// In its own words: runbooks and alerts look for them.
    #[error("{message}")]
    Failed { plugin: String, code: u32, message: String, details: String },
    #[error("the plugin {plugin:?} ended with {status} and printed no error")]
    NoError { plugin: String, status: ExitStatus },
    #[error("the plugin {plugin:?} printed no result: {fault}")]
    NoResult { plugin: String, fault: String },
}

/// An IPAM plugin, called with our config and environment.
pub(super) struct Delegate<'a> {
    plugin: &'a str,
    path: PathBuf,
    config: &'a NetworkConfig,
}

/// Returns the addresses of the attachment that this call is about to the plugin that gave them.
///
/// Where the config names no plugin any more, nobody can be asked: what `record` says is told.
pub(super) fn delete_by(delegate: Option<&Delegate<'_>>, record: Option<&Record>) -> Result<(), Failure> {
    match (delegate, record.and_then(|record| record.ipam_plugin.as_ref())) {
        (Some(delegate), _) => Ok(delegate.delete()?),
        (None, Some(plugin)) => {
            calls::note(format!(
                "the config no longer names the plugin {plugin}: the addresses were not returned to it"
            ));
            Ok(())
        }
        (None, None) => Ok(()),
    }
}

impl<'a> Delegate<'a> {
    /// The IPAM plugin that the config names, if it names another than this one: the first executable file of that name
    /// in the directories of `CNI_PATH`.
    pub(super) fn of(config: &'a NetworkConfig) -> Result<Option<Self>, DelegateError> {
        let Some(plugin) = config.ipam_plugin.as_deref() else { return Ok(None) };
        let search = env::var_os("CNI_PATH").unwrap_or_default();
        let is_executable = |path: &PathBuf| {
            fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
        };
        // An empty entry would mean the working directory, which is nobody's choice.
        let directories = env::split_paths(&search).filter(|directory| directory.is_absolute());
        match directories.map(|directory| directory.join(plugin)).find(is_executable) {
            Some(path) => Ok(Some(Self { plugin, path, config })),
            None => {
                let path = search.to_string_lossy().into_owned();
                Err(DelegateError::NotFound { plugin: plugin.to_owned(), path })
            }
        }
    }

    /// ADD: the addresses that it gave.
    pub(super) fn add(&self) -> Result<CniResult, DelegateError> {
        let output = self.run("ADD", &[], &self.config.text)?;
        let no_result = |fault: String| DelegateError::NoResult { plugin: self.plugin.to_owned(), fault };
        let value: Value = serde_json::from_slice(&output).map_err(|error| no_result(error.to_string()))?;
        let problem = |problem: Problem| no_result(problem.to_string());
        CniResult::parse("result", &value, self.config.version).map_err(problem)
    }

    /// DEL of the attachment that this call is about.
    pub(super) fn delete(&self) -> Result<(), DelegateError> {
        self.call("DEL")
    }

    /// DEL of another attachment than the one that this call is about.
    pub(super) fn delete_other(&self, key: &AttachmentKey) -> Result<(), DelegateError> {
        let about = [("CNI_CONTAINERID", key.container_id.as_str()), ("CNI_IFNAME", &key.ifname), ("CNI_NETNS", "")];
        self.run("DEL", &about, &self.config.text).map(drop)
    }

    /// GC, with what we keep alive ourselves among the attachments that are valid.
    pub(super) fn collect_garbage(&self, kept: &[AttachmentKey]) -> Result<(), DelegateError> {
        self.run("GC", &[], &self.config.text_with_valid(kept)).map(drop)
    }

    /// A verb that answers nothing.
    pub(super) fn call(&self, verb: &str) -> Result<(), DelegateError> {
        self.run(verb, &[], &self.config.text).map(drop)
    }

    /// Its name.
    pub(super) fn plugin(&self) -> &str {
        self.plugin
    }

    /// Executes it with `config` and our environment, but for the verb and what `about` names.
    fn run(&self, verb: &str, about: &[(&str, &str)], config: &[u8]) -> Result<Vec<u8>, DelegateError> {
        let failed = |source| DelegateError::Execute { path: self.path.clone(), source };
        let mut child = Command::new(&self.path)
            .env("CNI_COMMAND", verb)
            .envs(about.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that fails before it reads closes the pipe; its error is what matters.
            match stdin.write_all(config) {
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(failed(error)),
                _ => {}
            }
        }
        let output = child.wait_with_output().map_err(failed)?;
        if output.status.success() { Ok(output.stdout) } else { Err(self.error(output.status, &output.stdout)) }
    }

    fn error(&self, status: ExitStatus, stdout: &[u8]) -> DelegateError {
        let plugin = self.plugin.to_owned();
        let Ok(error) = serde_json::from_slice::<Value>(stdout) else {
            return DelegateError::NoError { plugin, status };
        };
        let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
        match error["code"].as_u64().and_then(|code| u32::try_from(code).ok()) {
            Some(code) if code != 0 => {
                DelegateError::Failed { plugin, code, message: text("msg"), details: text("details") }
            }
            _ => DelegateError::NoError { plugin, status },
        }
    }
}
