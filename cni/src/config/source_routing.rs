//! Source-based routing: what is sent from this network's addresses leaves by its interface.

use keelson_host::Problem;
use serde_json::Value;

use super::fields::{Fields, not_a};

/// How packets from the addresses are routed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SourceRouting {
    /// The table that the config's own routes are in; `None` moves all routes to tables that are free.
    pub(crate) table: Option<u32>,
    /// Whether the moved routes name the address as the source of packets that have none yet.
    pub(crate) source_hints: bool,
}

/// Reads `sbr`: true, or an object with the reference plugin's keys.
pub(super) fn parse(top: &Fields<'_>) -> Result<Option<SourceRouting>, Problem> {
    match top.get("sbr") {
        None | Some(Value::Bool(false)) => Ok(None),
        Some(Value::Bool(true)) => Ok(Some(SourceRouting::default())),
        Some(Value::Object(object)) => {
            let fields = Fields::below("sbr", object);
            let table = fields.number("table")?;
            if let Some(table) = table.filter(|table| matches!(table, 0 | 253..=255)) {
                let remedy = "take another number, or leave it out: a free one from 100 on is taken then";
                return Err(Problem::new("sbr.table", table, "is one of the kernel's own tables", remedy));
            }
            let source_hints = fields.boolean("addSourceHints")?;
            if table.is_some() && source_hints {
                let remedy = "remove one of the two: with a table the routes are the config's own";
                return Err(Problem::new("sbr.addSourceHints", true, "does nothing with sbr.table", remedy));
            }
            Ok(Some(SourceRouting { table, source_hints }))
        }
        Some(other) => Err(not_a("sbr", other, "true, false or an object with table or addSourceHints")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(sbr: &Value) -> Result<Option<SourceRouting>, String> {
        let top = json!({"sbr": sbr});
        parse(&Fields::top(top.as_object().unwrap())).map_err(|problem| problem.to_string())
    }

    #[test]
    fn it_is_a_word_or_an_object() {
        let routing = |table, source_hints| Ok(Some(SourceRouting { table, source_hints }));
        assert_eq!(read(&json!(false)), Ok(None));
        assert_eq!(read(&json!(true)), routing(None, false));
        assert_eq!(read(&json!({})), routing(None, false));
        assert_eq!(read(&json!({"table": 5000})), routing(Some(5000), false));
        assert_eq!(read(&json!({"addSourceHints": true})), routing(None, true));
        for (wrong, expected) in [
            (json!("yes"), "sbr: \"yes\" is not true, false or an object"),
            (json!({"table": 254}), "sbr.table: \"254\" is one of the kernel's own tables"),
            (json!({"table": 300, "addSourceHints": true}), "sbr.addSourceHints: \"true\" does nothing"),
        ] {
            let error = read(&wrong).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
