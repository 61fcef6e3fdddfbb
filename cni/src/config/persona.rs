//! As which plugin the executable was called: argv[0] tells, as with other programs of several names.

use std::{ffi::OsStr, path::Path};

/// The plugin whose part the executable plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Persona {
    /// `keelson-cni`, `bridge`, and any name that is none of the following: the whole network.
    Network,
    /// `ptp`: the whole network, in routed mode unless the config says otherwise.
    PointToPoint,
    /// `portmap`: host ports of a container that earlier plugins of the chain attached.
    PortMap,
    /// `host-local`: addresses only, by the reference's files.
    HostLocal,
    /// `loopback`: a container's interface `lo`.
    Loopback,
}

impl Persona {
    /// Where records live unless `ipam.dataDir` says otherwise.
    pub(crate) fn default_data_dir(self) -> &'static str {
        match self {
            Self::HostLocal => "/var/lib/cni/networks",
            // Two plugins of one chain keep records of the same network and attachment.
            Self::PortMap => "/run/keelson/portmap",
            Self::Network | Self::PointToPoint | Self::Loopback => "/run/keelson/network",
        }
    }
}

/// The name and the part that goes with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Executable {
    pub(crate) name: String,
    pub(crate) persona: Persona,
}

impl Executable {
    /// Reads argv[0]; without one it is `keelson-cni`.
    pub(crate) fn called(argument: Option<&OsStr>) -> Self {
        let name = argument.and_then(|path| Path::new(path).file_name()).unwrap_or(OsStr::new("keelson-cni"));
        let name = name.to_string_lossy().into_owned();
        let persona = match name.as_str() {
            "ptp" => Persona::PointToPoint,
            "portmap" => Persona::PortMap,
            "host-local" => Persona::HostLocal,
            "loopback" => Persona::Loopback,
            _ => Persona::Network,
        };
        Self { name, persona }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_part_of_the_path_decides() {
        for (argument, name, persona) in [
            (Some("/opt/cni/bin/keelson-cni"), "keelson-cni", Persona::Network),
            (Some("/opt/cni/bin/bridge"), "bridge", Persona::Network),
            (Some("ptp"), "ptp", Persona::PointToPoint),
            (Some("/x/portmap"), "portmap", Persona::PortMap),
            (Some("/opt/cni/bin/host-local"), "host-local", Persona::HostLocal),
            (Some("./loopback"), "loopback", Persona::Loopback),
            (Some("/ptp/x"), "x", Persona::Network),
            (None, "keelson-cni", Persona::Network),
        ] {
            let found = Executable::called(argument.map(OsStr::new));
            assert_eq!((found.name.as_str(), found.persona), (name, persona), "{argument:?}");
        }
    }
}
