//! Reading a JSON object as Go's encoding/json does: keys in any case, `null` as absent.

use std::net::IpAddr;

use keelson_host::Problem;
use serde_json::{Map, Value};

/// How an IP address is written.
pub(crate) const ADDRESS_REMEDY: &str = "write it as 10.88.0.1 or fd00:88::1";

/// A JSON object and the path at which it was found, for the messages.
#[derive(Clone, Debug)]
pub(crate) struct Fields<'a> {
    path: String,
    object: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// The document's top.
    pub(crate) fn top(object: &'a Map<String, Value>) -> Self {
        Self { path: String::new(), object }
    }

    /// The object at `path`.
    pub(crate) fn below(path: &str, object: &'a Map<String, Value>) -> Self {
        Self { path: path.to_owned(), object }
    }

    /// Where the object was found.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// The path of `key` in this object.
    pub(crate) fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.object.is_empty()
    }

    /// The value of `key`: of that spelling if there is one, else of any that differs in case only.
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        let folded = || self.object.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, value)| value);
        self.object.get(key).or_else(folded).filter(|value| !value.is_null())
    }

    pub(crate) fn string(&self, key: &str) -> Result<Option<&'a str>, Problem> {
        self.typed(key, "a string", Value::as_str)
    }

    pub(crate) fn boolean(&self, key: &str) -> Result<bool, Problem> {
        Ok(self.typed(key, "true or false", Value::as_bool)?.unwrap_or(false))
    }

    pub(crate) fn number(&self, key: &str) -> Result<Option<u32>, Problem> {
        let number = |value: &Value| value.as_u64().and_then(|number| u32::try_from(number).ok());
        self.typed(key, "a whole number from 0 to 4294967295", number).map_err(|mut problem| {
            problem.remedy = "write its digits without quotes".to_owned();
            problem
        })
    }

    /// A number of up to 64 bits.
    pub(crate) fn long(&self, key: &str) -> Result<Option<u64>, Problem> {
        self.typed(key, "a whole number from 0 on", Value::as_u64)
    }

    pub(crate) fn address(&self, key: &str) -> Result<Option<IpAddr>, Problem> {
        match self.string(key)? {
            None | Some("") => Ok(None),
            Some(text) => text
                .parse()
                .map(Some)
                .map_err(|_| Problem::new(self.path_of(key), text, "is not an IP address", ADDRESS_REMEDY)),
        }
    }

    pub(crate) fn array(&self, key: &str) -> Result<&'a [Value], Problem> {
        Ok(self.typed(key, "a list", Value::as_array)?.map_or(&[], Vec::as_slice))
    }

    pub(crate) fn strings(&self, key: &str) -> Result<Vec<String>, Problem> {
        let strings = self.array(key)?.iter().enumerate().map(|(index, value)| match value.as_str() {
            Some(text) => Ok(text.to_owned()),
            None => Err(not_a(&format!("{}[{index}]", self.path_of(key)), value, "a string")),
        });
        strings.collect()
    }

    /// The object at `key`, if there is one.
    pub(crate) fn object(&self, key: &str) -> Result<Option<Self>, Problem> {
        let object = self.typed(key, "an object", Value::as_object)?;
        Ok(object.map(|object| Self { path: self.path_of(key), object }))
    }

    /// The objects in the list at `key`.
    pub(crate) fn objects(&self, key: &str) -> Result<Vec<Self>, Problem> {
        objects(&self.path_of(key), self.array(key)?)
    }

    fn typed<T>(
        &self,
        key: &str,
        expected: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, Problem> {
        let Some(value) = self.get(key) else { return Ok(None) };
        convert(value).map(Some).ok_or_else(|| not_a(&self.path_of(key), value, expected))
    }
}

/// The objects in `list`, found at `path`.
pub(crate) fn objects<'a>(path: &str, list: &'a [Value]) -> Result<Vec<Fields<'a>>, Problem> {
    let objects = list.iter().enumerate().map(|(index, value)| {
        let path = format!("{path}[{index}]");
        match value.as_object() {
            Some(object) => Ok(Fields { path, object }),
            None => Err(not_a(&path, value, "an object")),
        }
    });
    objects.collect()
}

/// The problem with a value of the wrong type.
pub(crate) fn not_a(path: &str, value: &Value, expected: &str) -> Problem {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    Problem::new(path, text, format!("is not {expected}"), "")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_are_found_in_any_case_and_null_is_absent() {
        let value = json!({"RuntimeConfig": {"MAC": "x"}, "mtu": null, "Bridge": "b", "bridge": "a"});
        let top = Fields::top(value.as_object().unwrap());
        assert_eq!(top.object("runtimeConfig").unwrap().unwrap().string("mac").unwrap(), Some("x"));
        assert_eq!(top.number("mtu").unwrap(), None);
        assert_eq!(top.string("bridge").unwrap(), Some("a"));
    }

    #[test]
    fn a_wrong_type_is_named_with_path_and_value() {
        let value = json!({"ipam": {"ranges": 7, "routes": ["x"]}, "mtu": -1});
        let top = Fields::top(value.as_object().unwrap());
        let ipam = top.object("ipam").unwrap().unwrap();
        assert_eq!(ipam.array("ranges").unwrap_err().to_string(), "ipam.ranges: \"7\" is not a list");
        assert_eq!(ipam.objects("routes").unwrap_err().to_string(), "ipam.routes[0]: \"x\" is not an object");
        assert!(top.number("mtu").unwrap_err().to_string().starts_with("mtu: \"-1\" is not a whole number"));
    }
}
