//! The parameters of a StorageClass.

use std::collections::BTreeMap;

use keelson_host::Problem;
use serde::{Deserialize, Serialize};

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
    /// The way of that name, as classes spell it.
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name {
            "thin" => Some(Self::Thin),
            "thick" => Some(Self::Thick),
            _ => None,
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Thin => "thin",
            Self::Thick => "thick",
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
                "csi.storage.k8s.io/fstype" => parsed.filesystem = Some(value.clone()),
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
    fn anything_else_is_refused_by_name() {
        assert_eq!(parse(&[("pol", "x")]).unwrap_err().path, "parameters[pol]");
        assert_eq!(parse(&[("provisioning", "fat")]).unwrap_err().value, "fat");
        assert!(parse(&[("pool", &"x".repeat(4093))]).is_err());
        assert!(parse(&[("pool", &"x".repeat(4092))]).is_ok());
    }
}
