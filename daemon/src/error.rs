//! What ends a command, and the one place that chooses the exit code.

use std::{
    io,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use keelson_cni::{migration::MigrationError, operator::OperatorError};
use keelson_host::{Problems, Unread};

use crate::{config::ConfigError, observability::ObservabilityError, plugins::PluginKind};

/// Exit code of a config that can't be used, `EX_CONFIG` of sysexits(3).
///
/// The supervisor doesn't restart a plugin process that ended with it: starting it again would say the same.
pub const EXIT_CONFIG: u8 = 78;

/// Exit code of a check that could not look at everything.
pub const EXIT_UNSEEN: u8 = 2;

/// What ends a command with a failure.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The config file can't be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A plugin's section can't be used.
    #[error("{}", by_line(path, problems))]
    Section {
        /// The config file.
        path: PathBuf,
        /// Everything wrong with it.
        problems: Problems,
    },
    /// Health and metrics can't be served.
    #[error(transparent)]
    Observability(#[from] ObservabilityError),
    /// A plugin could not start or stopped working.
    #[error("{plugin}: {source}")]
    Plugin {
        /// Which plugin.
        plugin: PluginKind,
        /// What it says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A plugin was told to stop and did not.
    #[error("{plugin}: still busy {grace:?} after it was told to stop")]
    Grace {
        /// Which plugin.
        plugin: PluginKind,
        /// How long it was waited for.
        grace: Duration,
    },
    /// Plugin processes failed or had to be killed at the end.
    #[error("did not stop cleanly: {}", names(plugins))]
    UncleanStop {
        /// Which plugins.
        plugins: Vec<PluginKind>,
    },
    /// Some of what Keelson left on the node could not be removed.
    #[error("failed to clean up: {}", failures.join("; "))]
    Uninstall {
        /// What failed; the rest was done.
        failures: Vec<String>,
    },
    /// The node's networks could not be looked at.
    #[error(transparent)]
    Network(#[from] OperatorError),
    /// The doctor found errors, and has told them.
    #[error("{errors} of the findings are errors")]
    Findings {
        /// How many.
        errors: usize,
    },
    /// Some of what nobody uses could not be freed, which has been told.
    #[error("{failed} attachments could not be freed")]
    Collection {
        /// How many.
        failed: usize,
    },
    /// The node's storage could not be looked at.
    #[error(transparent)]
    Storage(#[from] keelson_csi::operator::OperatorError),
    /// The same for a check, which has a code of its own for that.
    #[error(transparent)]
    StorageUnseen(keelson_csi::operator::OperatorError),
    /// The check of the storage found something, and has told it.
    #[error("{findings} errors or warnings")]
    StorageFindings {
        /// How many.
        findings: usize,
    },
    /// The check of the storage could not look at everything.
    #[error("could not read pool {}, so not everything was looked at", pools.join(", "))]
    StorageUnread {
        /// Which pools.
        pools: Vec<String>,
    },
    /// Some of what is nobody's could not be removed, which has been told.
    #[error("{failed} could not be removed")]
    StorageCollection {
        /// How many.
        failed: usize,
    },
    /// A network could not be moved to or from the reference's plugins.
    #[error(transparent)]
    Migration(#[from] MigrationError),
    /// Not everything could be moved, which has been told.
    #[error("what was skipped stays to be done by hand")]
    Incomplete,
    /// Nothing says which network's Pods are to be moved.
    #[error("the node's config has no section network; name the network's config with --conflist")]
    NoConflist,
    /// The network's config could not be read.
    #[error("failed to read the network config {}", path.display())]
    Conflist {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A number that is no error code of the CNI plugin's.
    #[error("{code} is no error code of keelson-cni's; `keelson network explain` lists them")]
    UnknownCode {
        /// The number.
        code: u32,
    },
    /// Parts of the host could not be read.
    #[error("failed to read parts of the host: {}", unread.iter().map(|part| part.error.as_str()).collect::<Vec<_>>().join("; "))]
    Inspect {
        /// Which parts, and why; the rest was shown.
        unread: Vec<Unread>,
    },
    /// The operating system refused something.
    #[error("failed to {action}")]
    System {
        /// What was being done.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

impl Failure {
    /// The process's exit code: 78 for a config that can't be used, 2 for a check that could not look, else 1. (2 is clap's
    /// as well, for wrong arguments.)
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Config(_) | Self::Section { .. } => ExitCode::from(EXIT_CONFIG),
            Self::StorageUnseen(_) | Self::StorageUnread { .. } => ExitCode::from(EXIT_UNSEEN),
            Self::Observability(_)
            | Self::Plugin { .. }
            | Self::Grace { .. }
            | Self::UncleanStop { .. }
            | Self::Uninstall { .. }
            | Self::Network(_)
            | Self::Storage(_)
            | Self::StorageFindings { .. }
            | Self::StorageCollection { .. }
            | Self::Findings { .. }
            | Self::Migration(_)
            | Self::Incomplete
            | Self::NoConflist
            | Self::Conflist { .. }
            | Self::Collection { .. }
            | Self::UnknownCode { .. }
            | Self::Inspect { .. }
            | Self::System { .. } => ExitCode::FAILURE,
        }
    }
}

/// Each problem on a line of its own, after the file's name.
pub(crate) fn by_line(path: &Path, problems: &Problems) -> String {
    problems.0.iter().map(|problem| format!("{}: {problem}", path.display())).collect::<Vec<_>>().join("\n")
}

fn names(plugins: &[PluginKind]) -> String {
    plugins.iter().map(|plugin| plugin.name()).collect::<Vec<_>>().join(", ")
}
