//! Messages of a protocol out of JSON that may be anything: what fits no field is left out.

use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, ReflectMessage, Value as Field};
use serde_json::Value;

/// The message of that type with the fields that `json` has a value for.
pub(crate) fn message(descriptor: MessageDescriptor, json: &Value) -> DynamicMessage {
    let mut message = DynamicMessage::new(descriptor);
    for (name, value) in json.as_object().into_iter().flatten() {
        let field = message.descriptor().get_field_by_name(name);
        if let Some((field, value)) = field.and_then(|field| Some((field.clone(), content(&field, value)?))) {
            message.set_field(&field, value);
        }
    }
    message
}

fn content(field: &FieldDescriptor, json: &Value) -> Option<Field> {
    if field.is_map() {
        let Kind::Message(entry) = field.kind() else { return None };
        let kind = entry.map_entry_value_field().kind();
        let entry = |(key, value): (&String, &Value)| Some((MapKey::String(key.clone()), single(&kind, value)?));
        return Some(Field::Map(json.as_object()?.iter().filter_map(entry).collect()));
    }
    if field.is_list() {
        return Some(Field::List(json.as_array()?.iter().filter_map(|value| single(&field.kind(), value)).collect()));
    }
    single(&field.kind(), json)
}

fn single(kind: &Kind, json: &Value) -> Option<Field> {
    Some(match kind {
        Kind::Bool => Field::Bool(json.as_bool()?),
        Kind::String => Field::String(json.as_str()?.to_owned()),
        Kind::Int32 => Field::I32(i32::try_from(json.as_i64()?).ok()?),
        Kind::Int64 => Field::I64(json.as_i64()?),
        Kind::Enum(values) => Field::EnumNumber(match json.as_str() {
            Some(name) => values.get_value_by_name(name)?.number(),
            None => i32::try_from(json.as_i64()?).ok()?,
        }),
        Kind::Message(descriptor) => Field::Message(message(descriptor.clone(), json)),
        _ => return None,
    })
}
