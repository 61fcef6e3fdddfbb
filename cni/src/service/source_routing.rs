//! Source-based routing of an attachment: its tables, its rules, and their removal.

use std::{collections::HashSet, net::IpAddr, path::Path};

use super::wire::Wire;
use crate::{
    config::source_routing::SourceRouting,
    error::Failure,
    kernel::{
        KernelError, RouteSocket,
        netns::Namespace,
        route,
        source_rule::{self, SourceRule},
    },
    policy::source_routing,
    store::{NamespaceLock, Record, SourceTables, lock_namespace},
};

/// Chooses the tables of the record's addresses and puts its routes there.
///
/// The lock keeps others from choosing the same before the rules are there: other attachments of the container, and the
/// reference plugin.
pub(super) fn choose(
    wire: &mut Wire,
    routing: SourceRouting,
    record: &mut Record,
) -> Result<Option<NamespaceLock>, Failure> {
    if let Some(table) = routing.table {
        let tables = vec![table; record.addresses.len()];
        record.source_tables = Some(SourceTables { tables, moved: false, hints: false });
        return Ok(None);
    }
    let lock = lock_namespace(wire.namespace.file(), wire.namespace.path())?;
    let mut used: HashSet<u32> = source_rule::all(&mut wire.inside)?.iter().map(|rule| rule.table).collect();
    used.extend(route::all(&mut wire.inside)?.iter().map(|route| route.table));
    used.extend(record.routes.iter().filter_map(|route| route.table));
    let tables = source_routing::free_tables(&used, record.addresses.len());
    record.routes = source_routing::moved(&record.routes, &record.addresses, &tables);
    record.source_tables = Some(SourceTables { tables, moved: true, hints: routing.source_hints });
    Ok(Some(lock))
}

/// Removes the record's rules if their namespace is still there: the link takes everything else with it.
pub(super) fn undo(record: &Record) -> Result<(), Failure> {
    if record.source_tables.is_none() {
        return Ok(());
    }
    // The path may be gone, or lead elsewhere by now; then so are the rules.
    let Ok(namespace) = Namespace::open(Path::new(&record.netns)) else { return Ok(()) };
    if Some(namespace.identity()) != record.netns_identity {
        return Ok(());
    }
    let mut inside = namespace.route_socket()?;
    for (source, table) in record.source_rules() {
        source_rule::remove(&mut inside, source, table)?;
    }
    Ok(())
}

/// The rules that aren't there: each source, and its table.
pub(crate) fn missing(record: &Record, inside: &mut RouteSocket) -> Result<Vec<(IpAddr, u32)>, KernelError> {
    if record.source_tables.is_none() {
        return Ok(Vec::new());
    }
    let found = source_rule::all(inside)?;
    let is_there =
        |(source, table): &(IpAddr, u32)| found.contains(&SourceRule { source: Some(*source), table: *table });
    Ok(record.source_rules().filter(|rule| !is_there(rule)).collect())
}

/// The same, each as a part of a sentence.
pub(super) fn differences(record: &Record, inside: &mut RouteSocket) -> Result<Vec<String>, KernelError> {
    let lacking = missing(record, inside)?.into_iter();
    Ok(lacking.map(|(source, table)| format!("the container lacks the rule from {source} to table {table}")).collect())
}
