//! The config as it is used, with where each value came from.

use std::{collections::BTreeMap, fmt};

use keelson_host::Problems;
use serde::Serialize;
use serde_json::Value;

use super::NodeConfig;
use crate::plugins;

/// Where a value of the effective config came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The config file says so.
    File,
    /// The file doesn't mention it.
    Default,
    /// An environment variable says so.
    Environment,
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::File => "file",
            Self::Default => "default",
            Self::Environment => "environment",
        })
    }
}

/// One value of the effective config.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EffectiveValue {
    /// The value, never a map or list that has something in it: those are told by their parts.
    pub value: Value,
    /// Where it came from.
    pub origin: Origin,
}

/// The config as it is used: each value by its path, such as `storage.pools[0].path`.
pub type Effective = BTreeMap<String, EffectiveValue>;

impl NodeConfig {
    /// Fills in the defaults and says where each value came from.
    ///
    /// # Errors
    ///
    /// The problems of the sections that can't be parsed.
    pub fn effective(&self) -> Result<Effective, Problems> {
        let mut problems = Problems::default();
        let mut document = self.document.clone();
        document.node_name = Some(self.node.name.clone());
        for kind in self.enabled() {
            match plugins::effective_section(kind, self) {
                Ok(section) => document.set_section(kind, section),
                Err(found) => problems.0.extend(found.0),
            }
        }
        problems.into_result(())?;
        let mut effective = Effective::new();
        collect(&to_value(&document), Some(&self.written), "", &mut effective);
        let mut from_environment = |path: &str| {
            if let Some(value) = effective.get_mut(path) {
                value.origin = Origin::Environment;
            }
        };
        if self.document.node_name.is_none() && self.environment.node_name.is_some() {
            from_environment("nodeName");
        }
        if self.environment.csi_endpoint.is_some() {
            from_environment("storage.endpoint");
        }
        Ok(effective)
    }
}

/// A config type as plain values.
pub(crate) fn to_value<T: Serialize>(config: &T) -> Value {
    #[expect(
        clippy::expect_used,
        reason = "fails for keys that are no strings and paths that are no UTF-8: \
        the config's types have only named keys, and their paths came out of UTF-8 text"
    )]
    serde_json::to_value(config).expect("a config was text and can be text again")
}

fn collect(value: &Value, written: Option<&Value>, path: &str, effective: &mut Effective) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                collect(value, written.and_then(|written| written.get(key)), &path, effective);
            }
        }
        Value::Array(list) if !list.is_empty() => {
            for (index, value) in list.iter().enumerate() {
                let path = format!("{path}[{index}]");
                collect(value, written.and_then(|written| written.get(index)), &path, effective);
            }
        }
        value => {
            let origin = if written.is_some() { Origin::File } else { Origin::Default };
            effective.insert(path.to_owned(), EffectiveValue { value: value.clone(), origin });
        }
    }
}
