//! What a VolumeAttributesClass may set, and change while a volume lives.

use std::collections::BTreeMap;

use keelson_host::Problem;
use serde::{Deserialize, Serialize};

use super::{Provisioning, check_map};

/// The most that the kernel is asked to read ahead, in KiB.
const MOST_READ_AHEAD: u32 = 1 << 20;

/// How a volume is set, beside its size. What is none has the driver's default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Settings {
    /// How far the kernel reads ahead on its block device, in KiB.
    #[serde(default, rename = "readAheadKiB", skip_serializing_if = "Option::is_none")]
    pub(crate) read_ahead_kib: Option<u32>,
    /// Whether its block device goes around the page cache of the pool's filesystem.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) direct_io: Option<bool>,
    /// How many files it may hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) inodes: Option<u64>,
}

impl Settings {
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The same, changed as asked; what isn't named stays.
    pub(crate) fn with(self, changes: &Changes) -> Self {
        Self {
            read_ahead_kib: changes.settings.read_ahead_kib.or(self.read_ahead_kib),
            direct_io: changes.settings.direct_io.or(self.direct_io),
            inodes: changes.settings.inodes.or(self.inodes),
        }
    }
}

/// What `mutable_parameters` ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    pub(crate) provisioning: Option<Provisioning>,
    pub(crate) settings: Settings,
}

impl Changes {
    /// # Errors
    ///
    /// The first key that isn't known or whose value can't be: then nothing is to be changed.
    pub(crate) fn parse(parameters: &BTreeMap<String, String>) -> Result<Self, Problem> {
        check_map("mutable_parameters", parameters)?;
        let mut changes = Self::default();
        for (key, value) in parameters {
            let wrong =
                |remedy: &str| Problem::new(format!("mutable_parameters[{key}]"), value, "is no value for it", remedy);
            match key.as_str() {
                "provisioning" => {
                    let named = Provisioning::named(value).ok_or_else(|| wrong("use thin or thick"))?;
                    changes.provisioning = Some(named);
                }
                "readAheadKiB" => {
                    let number = value.parse().ok().filter(|number| *number <= MOST_READ_AHEAD);
                    let number = number.ok_or_else(|| wrong("use a whole number from 0 to 1048576"))?;
                    changes.settings.read_ahead_kib = Some(number);
                }
                "directIo" => {
                    changes.settings.direct_io = Some(value.parse().map_err(|_| wrong("use true or false"))?);
                }
                "inodes" => {
                    let number = value.parse().ok().filter(|number| *number > 0);
                    changes.settings.inodes = Some(number.ok_or_else(|| wrong("use a whole number of at least 1"))?);
                }
                _ => {
                    let at = format!("mutable_parameters[{key}]");
                    let remedy = "known are provisioning, readAheadKiB, directIo and inodes";
                    return Err(Problem::new(at, "", "is not a parameter of this driver", remedy));
                }
            }
        }
        Ok(changes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<Changes, Problem> {
        Changes::parse(&pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn what_is_not_named_stays() {
        let before = Settings { read_ahead_kib: Some(128), direct_io: Some(false), inodes: None };
        let changes = parse(&[("readAheadKiB", "0"), ("inodes", "5"), ("provisioning", "thick")]).unwrap();
        assert_eq!(changes.provisioning, Some(Provisioning::Thick));
        let after = Settings { read_ahead_kib: Some(0), direct_io: Some(false), inodes: Some(5) };
        assert_eq!(before.with(&changes), after);
        assert_eq!(before.with(&parse(&[]).unwrap()), before);
        assert!(Settings::default().is_default() && !before.is_default());
        assert_eq!(parse(&[("directIo", "true")]).unwrap().settings.direct_io, Some(true));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (key, value) in [
            ("provisioning", "fat"),
            ("readAheadKiB", "-1"),
            ("readAheadKiB", "1048577"),
            ("directIo", "yes"),
            ("inodes", "0"),
            ("iops", "100"),
        ] {
            let problem = parse(&[("readAheadKiB", "128"), (key, value)]).unwrap_err();
            assert_eq!(problem.path, format!("mutable_parameters[{key}]"));
        }
    }
}
