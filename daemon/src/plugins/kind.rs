//! The four plugins by name.

use std::fmt;

use clap::ValueEnum;

/// One of the plugins. The name is the section's key, the value of `--only` and the metrics' `plugin` label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum)]
pub enum PluginKind {
    /// CNI: keeps the executable and its network config in place.
    Network,
    /// CSI: serves volumes.
    Storage,
    /// Device plugin: offers devices to the kubelet.
    Devices,
    /// NRI: gives containers CPUs and memory.
    Pinning,
}

impl PluginKind {
    /// All of them, in the order of their ports.
    pub const ALL: [Self; 4] = [Self::Network, Self::Storage, Self::Devices, Self::Pinning];

    /// The section's key in the config.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Network => "network",
            Self::Storage => "storage",
            Self::Devices => "devices",
            Self::Pinning => "pinning",
        }
    }

    /// How far its observability port lies above the supervisor's.
    #[must_use]
    pub fn port_offset(self) -> u16 {
        match self {
            Self::Network => 1,
            Self::Storage => 2,
            Self::Devices => 3,
            Self::Pinning => 4,
        }
    }

    /// The process's name in `ps`: at most 15 bytes, or the kernel cuts it (prctl(2), `PR_SET_NAME`).
    #[must_use]
    pub(crate) fn process_name(self) -> &'static std::ffi::CStr {
        match self {
            Self::Network => c"keelson-network",
            Self::Storage => c"keelson-storage",
            Self::Devices => c"keelson-devices",
            Self::Pinning => c"keelson-pinning",
        }
    }
}

impl fmt::Display for PluginKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_name_everywhere() {
        for kind in PluginKind::ALL {
            assert_eq!(kind.to_possible_value().unwrap().get_name(), kind.name());
            assert_eq!(kind.process_name().to_str().unwrap(), format!("keelson-{kind}"));
            assert!(kind.process_name().to_bytes().len() <= 15);
        }
    }
}
