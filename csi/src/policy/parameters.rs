//! The parameters of a StorageClass.

use std::{collections::BTreeMap, ops::RangeInclusive, time::Duration};

use keelson_host::Problem;
use serde::{Deserialize, Serialize};

use super::FilesystemType;

/// The keys that Kubernetes' own sidecars add or consume: `csi.storage.k8s.io/pvc/name` and the like.
const RESERVED_PREFIX: &str = "csi.storage.k8s.io/";

/// "map fields: 4 KiB" (CSI spec, Size Limits).
const LONGEST_MAP: usize = 4096;

/// Whether a volume's space is taken when it is made or when it is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Provisioning {
    /// When it is written; the pool keeps room for all of it.
    #[default]
    Thin,
    /// At once, and discards don't give it back.
    Thick,
}

impl Provisioning {
    /// As classes spell it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Thin => "thin",
            Self::Thick => "thick",
        }
    }

    /// The way of that name, as classes spell it.
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name {
            "thin" => Some(Self::Thin),
            "thick" => Some(Self::Thick),
            _ => None,
        }
    }
}

/// What a StorageClass says about its volumes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Parameters {
    /// The pool's name; none is the first one that can serve the request.
    pub(crate) pool: Option<String>,
    pub(crate) provisioning: Provisioning,
    /// The filesystem's type, for capabilities that don't name one.
    pub(crate) filesystem: Option<String>,
}

impl Parameters {
    pub(crate) fn parse(parameters: &BTreeMap<String, String>) -> Result<Self, Problem> {
        check_map("parameters", parameters)?;
        let mut parsed = Self::default();
        for (key, value) in parameters {
            match key.as_str() {
                "pool" => parsed.pool = Some(value.clone()),
                "provisioning" => {
                    parsed.provisioning = Provisioning::named(value).ok_or_else(|| {
                        Problem::new("parameters[provisioning]", value, "is unknown", "use thin or thick")
                    })?;
                }
                "csi.storage.k8s.io/fstype" => {
                    if !value.is_empty() && FilesystemType::named(value).is_none() {
                        let offered = FilesystemType::ALL.map(FilesystemType::as_str).join(", ");
                        let (at, remedy) =
                            (format!("parameters[{key}]"), format!("use one of {offered}, or leave it out"));
                        return Err(Problem::new(at, value, "is not offered", remedy));
                    }
                    parsed.filesystem = Some(value.clone());
                }
                _ if key.starts_with(RESERVED_PREFIX) => {}
                _ => {
                    let at = format!("parameters[{key}]");
                    let remedy = "known are pool, provisioning and csi.storage.k8s.io/fstype";
                    return Err(Problem::new(at, "", "is not a parameter of this driver", remedy));
                }
            }
        }
        Ok(parsed)
    }
}

/// What a VolumeGroupSnapshotClass says about its snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GroupParameters {
    /// Whether the members' filesystems are frozen while the members are cut.
    pub(crate) freeze: bool,
    /// For how long at most.
    pub(crate) freeze_timeout: Duration,
}

impl GroupParameters {
    /// How long filesystems are frozen at most, unless the class says otherwise: an application that writes notices it,
    /// and few have timeouts that are shorter.
    const FREEZE_TIMEOUT: u64 = 5000;
    /// What a class may say, in milliseconds.
    const FREEZE_TIMEOUTS: RangeInclusive<u64> = 10..=60_000;

    pub(crate) fn parse(parameters: &BTreeMap<String, String>) -> Result<Self, Problem> {
        check_map("parameters", parameters)?;
        let mut parsed = Self { freeze: false, freeze_timeout: Duration::from_millis(Self::FREEZE_TIMEOUT) };
        for (key, value) in parameters {
            let at = || format!("parameters[{key}]");
            match key.as_str() {
                "freeze" => {
                    parsed.freeze = value
                        .parse()
                        .map_err(|_| Problem::new(at(), value, "is neither true nor false", "use true or false"))?;
                }
                "freezeTimeoutMilliseconds" => {
                    let known = value.parse().ok().filter(|timeout| Self::FREEZE_TIMEOUTS.contains(timeout));
                    let (first, last) = Self::FREEZE_TIMEOUTS.into_inner();
                    let remedy = || format!("use {first} to {last}");
                    parsed.freeze_timeout = known.map(Duration::from_millis).ok_or_else(|| {
                        Problem::new(at(), value, "is no number of milliseconds in the range", remedy())
                    })?;
                }
                _ if key.starts_with(RESERVED_PREFIX) => {}
                _ => {
                    let remedy = "known are freeze and freezeTimeoutMilliseconds";
                    return Err(Problem::new(at(), "", "is not a parameter of this driver", remedy));
                }
            }
        }
        Ok(parsed)
    }
}

/// The rule for the parameters of a VolumeSnapshotClass: there are none but those of Kubernetes' own sidecars.
pub(crate) fn check_snapshot_parameters(parameters: &BTreeMap<String, String>) -> Result<(), Problem> {
    check_map("parameters", parameters)?;
    match parameters.keys().find(|key| !key.starts_with(RESERVED_PREFIX)) {
        None => Ok(()),
        Some(key) => {
            let (at, wrong) = (format!("parameters[{key}]"), "is not a parameter of this driver");
            Err(Problem::new(at, "", wrong, "a VolumeSnapshotClass has no parameters here; leave it out"))
        }
    }
}

/// The rule for every map of a request: at most 4 KiB together.
pub(crate) fn check_map(at: &str, map: &BTreeMap<String, String>) -> Result<(), Problem> {
    let bytes: usize = map.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > LONGEST_MAP {
        // The values may be secrets.
        return Err(Problem::new(at, "", format!("has {bytes} bytes"), format!("use at most {LONGEST_MAP}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(entries: &[(&str, &str)]) -> Result<Parameters, Problem> {
        let map = entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Parameters::parse(&map)
    }

    #[test]
    fn known_keys_are_read_and_the_sidecars_own_are_passed_over() {
        assert_eq!(parse(&[]), Ok(Parameters::default()));
        let found = parse(&[
            ("pool", "fast"),
            ("provisioning", "thick"),
            ("csi.storage.k8s.io/fstype", "ext4"),
            ("csi.storage.k8s.io/pvc/name", "data"),
        ]);
        let expected = Parameters {
            pool: Some("fast".to_owned()),
            provisioning: Provisioning::Thick,
            filesystem: Some("ext4".to_owned()),
        };
        assert_eq!(found, Ok(expected));
    }

    #[test]
    fn ways_of_provisioning_have_names() {
        for (way, name) in [(Provisioning::Thin, "thin"), (Provisioning::Thick, "thick")] {
            assert_eq!((Provisioning::named(name), way.as_str()), (Some(way), name));
        }
        assert_eq!(Provisioning::named("Thin"), None);
    }

    #[test]
    fn anything_else_is_refused_by_name() {
        assert_eq!(parse(&[("pol", "x")]).unwrap_err().path, "parameters[pol]");
        let key = "csi.storage.k8s.io/fstype";
        assert_eq!(parse(&[(key, "ntfs")]).unwrap_err().path, format!("parameters[{key}]"));
        assert!(parse(&[(key, "")]).is_ok());
        assert_eq!(parse(&[("provisioning", "fat")]).unwrap_err().value, "fat");
        assert!(parse(&[("pool", &"x".repeat(4093))]).is_err());
        assert!(parse(&[("pool", &"x".repeat(4092))]).is_ok());
    }

    fn map(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
        entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_snapshot_class_has_no_parameters() {
        assert_eq!(check_snapshot_parameters(&map(&[("csi.storage.k8s.io/volumesnapshot/name", "x")])), Ok(()));
        assert_eq!(check_snapshot_parameters(&map(&[("freeze", "true")])).unwrap_err().path, "parameters[freeze]");
    }

    #[test]
    fn a_group_class_may_freeze_for_some_time() {
        let default = GroupParameters { freeze: false, freeze_timeout: Duration::from_secs(5) };
        assert_eq!(GroupParameters::parse(&map(&[("csi.storage.k8s.io/x", "y")])), Ok(default));
        let found = GroupParameters::parse(&map(&[("freeze", "true"), ("freezeTimeoutMilliseconds", "60000")]));
        assert_eq!(found, Ok(GroupParameters { freeze: true, freeze_timeout: Duration::from_mins(1) }));
        for (key, value) in [
            ("freeze", "yes"),
            ("freezeTimeoutMilliseconds", "9"),
            ("freezeTimeoutMilliseconds", "60001"),
            ("freezeTimeoutMilliseconds", "-1"),
            ("frost", "true"),
        ] {
            let problem = GroupParameters::parse(&map(&[(key, value)])).unwrap_err();
            assert_eq!(problem.path, format!("parameters[{key}]"));
        }
    }
}
