//! What can go wrong in a call, and the one place that gives it a code.

use std::{error::Error, io};

use keelson_host::Problem;
use serde_json::{Value, json};

use crate::{
    config::{invocation::EnvironmentError, network::ConfigError, version::SpecVersion},
    kernel::{KernelError, bridge::BridgeError, netns::NamespaceError, ports::PublishError},
    service::DelegateError,
    store::StoreError,
};

/// Why a call failed. Displayed it is the `msg` of the spec's error, which has to name what is wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Environment(#[from] EnvironmentError),
    #[error("failed to read the network config from stdin: {0}")]
    Stdin(io::Error),
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A verb that the config's version of the spec doesn't have.
    #[error("incompatible CNI versions")]
    VerbTooNew { verb: &'static str, since: SpecVersion, config: SpecVersion },
    #[error("invalid CNI_NETNS: {0}")]
    Namespace(#[from] NamespaceError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Bridge(#[from] BridgeError),
    #[error("the host port {port} is taken by {holder}")]
    PortTaken { port: String, holder: String },
    /// In the reference's words: runbooks and alerts look for them.
    #[error("container veth name ({ifname:?}) peer provided ({peer:?}) already exists")]
    InterfaceExists { ifname: String, peer: String },
    #[error("the attachment exists already and is not as it was made")]
    AttachmentDiffers(Vec<String>),
    #[error("the attachment is not as it was made")]
    CheckFailed(Vec<String>),
    #[error("the network can't serve ADD: {0}")]
    Unavailable(String),
    #[error("the network can't serve ADD, and existing Pods may have no network: {0}")]
    Degraded(String),
    #[error("{0}")]
    Unspeakable(String),
    #[error(transparent)]
    Delegate(#[from] DelegateError),
    #[error("{} operations failed", .0.len())]
    Several(Vec<Failure>),
}

impl From<PublishError> for Failure {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::Kernel(error) => Self::Kernel(error),
            PublishError::Taken { port, holder } => Self::PortTaken { port, holder },
        }
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self::Config(problem.into())
    }
}

impl Failure {
    /// The code of the spec's section "Error", libcni's 8, or one of our own from 100 on: docs/network.md lists them.
    pub(crate) fn code(&self) -> u32 {
        match self {
            Self::Config(ConfigError::Version(_)) | Self::VerbTooNew { .. } => 1,
            Self::Config(ConfigError::Unsupported(_)) => 2,
            Self::Environment(_) => 4,
            // The path comes from CNI_NETNS: a variable that doesn't hold what it must.
            Self::Namespace(NamespaceError::Open { .. } | NamespaceError::NotANamespace { .. }) => 4,
            Self::Stdin(_) | Self::Store(StoreError::Io { .. }) => 5,
            Self::Config(ConfigError::Decode(_)) => 6,
            Self::Config(ConfigError::Invalid(_)) | Self::Unspeakable(_) => 7,
            Self::Namespace(NamespaceError::Own { .. }) => 8,
            Self::Store(
                StoreError::Exhausted { .. }
                | StoreError::Taken { .. }
                | StoreError::Reserved { .. }
                | StoreError::Busy { .. },
            ) => 11,
            Self::Unavailable(_) => 50,
            Self::Degraded(_) => 51,
            Self::Kernel(_) | Self::Bridge(BridgeError::Kernel(_)) | Self::Namespace(NamespaceError::Kernel(_)) => 100,
            Self::PortTaken { .. } => 101,
            Self::Bridge(
                BridgeError::NotABridge { .. } | BridgeError::OtherAddress { .. } | BridgeError::NoVlans { .. },
            ) => 102,
            Self::InterfaceExists { .. } => 103,
            Self::AttachmentDiffers(_) | Self::Store(StoreError::Duplicate { .. }) => 104,
            Self::CheckFailed(_) => 105,
            // As the delegated plugin said it.
            Self::Delegate(DelegateError::Failed { code, .. }) => *code,
            Self::Delegate(
                DelegateError::NotFound { .. }
                | DelegateError::Execute { .. }
                | DelegateError::NoError { .. }
                | DelegateError::NoResult { .. },
            ) => 107,
            Self::Store(StoreError::Corrupt { .. } | StoreError::OtherVersion { .. }) => 106,
            // Each failure is in the details; the first decides.
            Self::Several(failures) => failures.first().map_or(INTERNAL, Self::code),
        }
    }

    /// What the message doesn't say yet: lists, and what to do.
    fn details(&self) -> String {
        match self {
            Self::Config(ConfigError::Version(stated)) => incompatible(stated),
            Self::Config(ConfigError::Invalid(problems)) => {
                let remedies: Vec<&str> = problems
                    .0
                    .iter()
                    .map(|problem| problem.remedy.as_str())
                    .filter(|remedy| !remedy.is_empty())
                    .collect();
                remedies.join("; ")
            }
            Self::Config(ConfigError::Unsupported(problem)) => problem.remedy.clone(),
            Self::VerbTooNew { verb, since, config } => {
                format!("config is {:?}, {verb} needs {since} or later", config.as_str())
            }
            Self::PortTaken { .. } => "choose another hostPort, or end who has it".to_owned(),
            Self::InterfaceExists { .. } => "choose another CNI_IFNAME or remove it first".to_owned(),
            Self::AttachmentDiffers(differences) | Self::CheckFailed(differences) => differences.join("; "),
            Self::Unspeakable(_) => "take cniVersion 0.3.0 or later".to_owned(),
            Self::Delegate(DelegateError::Failed { plugin, details, .. }) => {
                let separator = if details.is_empty() { "" } else { "; " };
                format!("said by the plugin {plugin:?}{separator}{details}")
            }
            Self::Delegate(DelegateError::NotFound { .. }) => {
                "install the plugin in a directory of CNI_PATH, or name another in ipam.type".to_owned()
            }
            Self::Several(failures) => {
                let texts: Vec<String> = failures.iter().map(Self::one_line).collect();
                texts.join("; ")
            }
            Self::Config(ConfigError::Decode(_))
            | Self::Environment(_)
            | Self::Stdin(_)
            | Self::Namespace(_)
            | Self::Store(_)
            | Self::Kernel(_)
            | Self::Bridge(_)
            | Self::Delegate(_)
            | Self::Unavailable(_)
            | Self::Degraded(_) => String::new(),
        }
    }

    /// The error number, if the kernel refused something.
    pub(crate) fn errno(&self) -> Option<i32> {
        if let Self::Several(failures) = self {
            return failures.first().and_then(Self::errno);
        }
        let mut error: Option<&dyn Error> = Some(self);
        while let Some(current) = error {
            if let Some(error) = current.downcast_ref::<io::Error>() {
                return error.raw_os_error();
            }
            error = current.source();
        }
        None
    }

    /// Message and details as libcni joins them, for stderr and for lists.
    pub(crate) fn one_line(&self) -> String {
        let details = self.details();
        if details.is_empty() { self.to_string() } else { format!("{self}; {details}") }
    }

    /// The error as the spec has it on stdout.
    pub(crate) fn to_json(&self, version: SpecVersion) -> Value {
        json!({
            "cniVersion": version.as_str(),
            "code": self.code(),
            "msg": self.to_string(),
            "details": self.details(),
        })
    }
}

/// The code of a bug in this program.
const INTERNAL: u32 = 199;

/// The error of a panic.
pub(crate) fn panic_json(message: &str) -> Value {
    json!({
        "cniVersion": SpecVersion::NEWEST.as_str(),
        "code": INTERNAL,
        "msg": format!("keelson-cni has a bug: {message}"),
        "details": "",
    })
}

fn incompatible(stated: &str) -> String {
    let supported: Vec<String> = SpecVersion::ALL.iter().map(|version| format!("{:?}", version.as_str())).collect();
    format!("config is {stated:?}, plugin supports [{}]", supported.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_is_held_for_ever_is_named_and_worth_another_try() {
        let failure = Failure::from(StoreError::Busy { path: "/run/keelson/network/net/lock".into() });
        assert_eq!(failure.code(), 11);
        assert_eq!(
            failure.to_string(),
            "gave up waiting for the lock /run/keelson/network/net/lock: another call holds it for more than 30 seconds"
        );
    }
}
