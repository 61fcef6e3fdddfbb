//! What a .proto file says, as facts that can be compared, and the comparison.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use prost_reflect::{
    Cardinality, DynamicMessage, EnumDescriptor, FieldDescriptor, FileDescriptor, Kind, MessageDescriptor,
};

/// The facts of one file: for each top-level declaration what it contains, and how that is spelled on the wire.
///
/// `("csi.v1.ProbeResponse", "field csi.v1.ProbeResponse.ready") -> "1: google.protobuf.BoolValue"`
pub(crate) type Facts = BTreeMap<(String, String), String>;

/// The facts of a file. Comments, order, and options of other languages' generators are no facts.
pub(crate) fn facts(file: &FileDescriptor) -> Facts {
    let mut facts = Facts::new();
    for message in file.messages() {
        add_message(&mut facts, message.full_name(), &message);
    }
    for item in file.enums() {
        add_enum(&mut facts, item.full_name(), &item);
    }
    for service in file.services() {
        let name = service.full_name();
        add(&mut facts, name, format!("service {name}"), options(&service.options()));
        for method in service.methods() {
            let stream = |is_stream| if is_stream { "stream " } else { "" };
            let how = format!(
                "{}{} -> {}{}{}",
                stream(method.is_client_streaming()),
                method.input().full_name(),
                stream(method.is_server_streaming()),
                method.output().full_name(),
                options(&method.options())
            );
            add(&mut facts, name, format!("method {}", method.full_name()), how);
        }
    }
    for extension in file.extensions() {
        let how =
            format!("{}: {} of {}", extension.number(), kind(&extension.kind()), extension.containing_message().name());
        add(&mut facts, extension.full_name(), format!("extension {}", extension.full_name()), how);
    }
    facts
}

fn add(facts: &mut Facts, declaration: &str, what: String, how: String) {
    facts.insert((declaration.to_owned(), what), how);
}

fn add_message(facts: &mut Facts, declaration: &str, message: &MessageDescriptor) {
    let reserved: Vec<_> = message.reserved_ranges().collect();
    let how = format!("reserved {reserved:?}{}", options(&message.options()));
    add(facts, declaration, format!("message {}", message.full_name()), how);
    for field in message.fields() {
        add(facts, declaration, format!("field {}", field.full_name()), describe_field(&field));
    }
    for child in message.child_messages().filter(|child| !child.is_map_entry()) {
        add_message(facts, declaration, &child);
    }
    for child in message.child_enums() {
        add_enum(facts, declaration, &child);
    }
}

fn describe_field(field: &FieldDescriptor) -> String {
    let oneof = field.containing_oneof();
    let label = match (field.cardinality(), &oneof) {
        _ if field.is_map() => "",
        (Cardinality::Repeated, _) => "repeated ",
        (Cardinality::Required, _) => "required ",
        (Cardinality::Optional, Some(oneof)) if oneof.is_synthetic() => "optional ",
        (Cardinality::Optional, _) => "",
    };
    let mut how = format!("{}: {label}{}", field.number(), kind(&field.kind()));
    if let Some(oneof) = oneof.filter(|oneof| !oneof.is_synthetic()) {
        write!(how, " in oneof {}", oneof.name()).expect("a String takes every write");
    }
    how + &options(&field.options())
}

fn kind(kind: &Kind) -> String {
    match kind {
        Kind::Message(message) if message.is_map_entry() => {
            let (key, value) = (message.map_entry_key_field(), message.map_entry_value_field());
            format!("map<{:?}, {}>", key.kind(), self::kind(&value.kind()))
        }
        Kind::Message(message) => message.full_name().to_owned(),
        Kind::Enum(item) => item.full_name().to_owned(),
        scalar => format!("{scalar:?}"),
    }
}

fn add_enum(facts: &mut Facts, declaration: &str, item: &EnumDescriptor) {
    let reserved: Vec<_> = item.reserved_ranges().collect();
    let how = format!("reserved {reserved:?}{}", options(&item.options()));
    add(facts, declaration, format!("enum {}", item.full_name()), how);
    for value in item.values() {
        let how = format!("{}{}", value.number(), options(&value.options()));
        add(facts, declaration, format!("value {}.{}", item.full_name(), value.name()), how);
    }
}

/// Every option that is set, custom ones such as `csi.v1.csi_secret` included.
fn options(options: &DynamicMessage) -> String {
    let standard = options.fields().map(|(field, value)| format!(", {} = {value}", field.name()));
    let custom = options.extensions().map(|(field, value)| format!(", ({}) = {value}", field.full_name()));
    standard.chain(custom).collect()
}

/// The two sides' differences: what differs, and how either side has it.
pub(crate) fn differences(ours: &Facts, published: &Facts) -> BTreeMap<String, String> {
    let side = |how: Option<&String>| how.map_or("is absent".to_owned(), |how| format!("has `{how}`"));
    let keys: BTreeSet<_> = ours.keys().chain(published.keys()).collect();
    keys.into_iter()
        .filter(|key| ours.get(*key) != published.get(*key))
        .map(|key| {
            (key.1.clone(), format!("ours {}, the published one {}", side(ours.get(key)), side(published.get(key))))
        })
        .collect()
}

/// What is left of the published facts when what we don't declare at all is left out: whole messages, enums and
/// services, and single methods of a service. A message that we do declare stays whole.
pub(crate) fn restricted_to_declared(ours: &Facts, published: &Facts) -> Facts {
    let declared: BTreeSet<&str> = ours.keys().map(|(declaration, _)| declaration.as_str()).collect();
    published
        .iter()
        .filter(|(key, _)| declared.contains(key.0.as_str()))
        .filter(|(key, _)| !key.1.starts_with("method ") || ours.contains_key(*key))
        .map(|(key, how)| (key.clone(), how.clone()))
        .collect()
}

/// What a test must complain about: differences that no entry of `explained` names, and entries that name none.
pub(crate) fn complaints(differences: &BTreeMap<String, String>, explained: &[(&str, &str)]) -> Vec<String> {
    let unexplained = differences
        .iter()
        .filter(|(what, _)| !explained.iter().any(|(explained, _)| explained == what))
        .map(|(what, how)| format!("{what}: {how}"));
    let stale = explained
        .iter()
        .filter(|(what, _)| !differences.contains_key(*what))
        .map(|(what, reason)| format!("{what}: explained ({reason}), but there is no such difference"));
    unexplained.chain(stale).collect()
}
