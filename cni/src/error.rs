//! What can go wrong in a call, and the one place that gives it a code.

use keelson_host::Problem;
use serde_json::{Value, json};

use crate::{
    config::{invocation::EnvironmentError, network::ConfigError, version::SpecVersion},
    kernel::{KernelError, bridge::BridgeError, netns::NamespaceError},
    store::StoreError,
};

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("invalid environment")]
    Environment(#[from] EnvironmentError),
    #[error("failed to read the network config from stdin")]
    Stdin(std::io::Error),
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A verb that the config's version of the spec doesn't have.
    #[error("incompatible CNI versions")]
    VerbTooNew { verb: &'static str, since: SpecVersion, config: SpecVersion },
    #[error("invalid network namespace")]
    Namespace(#[from] NamespaceError),
    #[error("the store of the network's records failed")]
    Store(#[from] StoreError),
    #[error("the kernel refused an operation")]
    Kernel(#[from] KernelError),
    #[error("the bridge can't be used")]
    Bridge(#[from] BridgeError),
    #[error("the interface exists already")]
    InterfaceExists(String),
    #[error("the attachment exists already and is not as it was made")]
    AttachmentDiffers(Vec<String>),
    #[error("the attachment is not as it was made")]
    CheckFailed(Vec<String>),
    #[error("the network can't serve ADD")]
    Unavailable(String),
    #[error("the network can't serve ADD, and existing Pods may have no network")]
    Degraded(String),
    #[error("{} operations failed", .0.len())]
    Several(Vec<Failure>),
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
            Self::Config(ConfigError::Invalid(_)) => 7,
            Self::Namespace(NamespaceError::Own { .. }) => 8,
            Self::Store(StoreError::Exhausted { .. } | StoreError::Taken { .. }) => 11,
            Self::Unavailable(_) => 50,
            Self::Degraded(_) => 51,
            Self::Kernel(_) | Self::Bridge(BridgeError::Kernel(_)) | Self::Namespace(NamespaceError::Kernel(_)) => 100,
            // 101 is kept for a taken host port.
            Self::Bridge(BridgeError::NotABridge { .. } | BridgeError::OtherAddress { .. }) => 102,
            Self::InterfaceExists(_) => 103,
            Self::AttachmentDiffers(_) => 104,
            Self::CheckFailed(_) => 105,
            Self::Store(StoreError::Corrupt { .. } | StoreError::OtherVersion { .. }) => 106,
            // Each failure is in the details; the first decides.
            Self::Several(failures) => failures.first().map_or(INTERNAL, Self::code),
        }
    }

    fn details(&self) -> String {
        match self {
            Self::Environment(error) => error.to_string(),
            Self::Stdin(error) => error.to_string(),
            Self::Config(ConfigError::Decode(_)) => String::new(),
            Self::Config(ConfigError::Version(stated)) => incompatible(stated),
            Self::Config(ConfigError::Invalid(problems)) => problems.to_string(),
            Self::Config(ConfigError::Unsupported(problem)) => problem.to_string(),
            Self::VerbTooNew { verb, since, config } => {
                format!("config version {config:?} does not allow {verb}, which needs {since} or later")
            }
            Self::Namespace(error) => format!("CNI_NETNS: {error}"),
            Self::Store(error) => error.to_string(),
            Self::Kernel(error) => error.to_string(),
            Self::Bridge(error) => error.to_string(),
            Self::InterfaceExists(text) | Self::Unavailable(text) | Self::Degraded(text) => text.clone(),
            Self::AttachmentDiffers(differences) | Self::CheckFailed(differences) => differences.join("; "),
            Self::Several(failures) => {
                let texts: Vec<String> = failures.iter().map(Self::one_line).collect();
                texts.join("; ")
            }
        }
    }

    /// Message and details as one line, for stderr and for lists.
    pub(crate) fn one_line(&self) -> String {
        let details = self.details();
        if details.is_empty() { self.to_string() } else { format!("{self}: {details}") }
    }

    /// The error as the spec has it on stdout.
    ///
    /// The message is the whole story: runtimes show it, and many drop the details.
    pub(crate) fn to_json(&self, version: SpecVersion) -> Value {
        let message = match self {
            // What tools know these by.
            Self::Config(ConfigError::Version(_)) | Self::VerbTooNew { .. } => self.to_string(),
            _ => self.one_line(),
        };
        json!({"cniVersion": version.as_str(), "code": self.code(), "msg": message, "details": self.details()})
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
