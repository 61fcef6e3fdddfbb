//! The VLANs of a bridge port.

use keelson_host::Problem;

use super::fields::Fields;

/// The largest VLAN (IEEE 802.1Q: 4095 is reserved).
const LARGEST: u16 = 4094;

/// The VLAN that a bridge puts its ports in unless told otherwise.
pub(crate) const DEFAULT_VLAN: u16 = 1;

/// The VLANs that a container's port of the bridge is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Vlans {
    /// That of the container's frames without a tag.
    pub(crate) untagged: u16,
    /// Those that the container sees with their tags: first and last of each range.
    pub(crate) tagged: Vec<(u16, u16)>,
    /// Whether the port leaves the bridge's default VLAN.
    pub(crate) leaves_default: bool,
}

/// Reads `vlan`, `vlanTrunk` and `preserveDefaultVlan`; `None` if the port has no VLANs of its own.
pub(super) fn parse(top: &Fields<'_>) -> Result<Option<Vlans>, Problem> {
    let vlan = match top.get("vlan") {
        None => 0,
        Some(value) => match value.as_u64().and_then(|number| u16::try_from(number).ok()) {
            Some(number) if number <= LARGEST => number,
            _ => return Err(out_of_range(top.path_of("vlan"), value, 0)),
        },
    };
    let mut tagged = Vec::new();
    for item in top.objects("vlanTrunk")? {
        if let Some(id) = id(&item, "id")? {
            tagged.push((id, id));
        }
        let missing = |key: &str, other: &str| {
            let remedy = format!("give {key} as well, or id for a single VLAN");
            Err(Problem::new(item.path_of(key), "", format!("is missing, and {other} is there"), remedy))
        };
        match (id(&item, "minID")?, id(&item, "maxID")?) {
            (None, None) => {}
            (Some(_), None) => return missing("maxID", "minID"),
            (None, Some(_)) => return missing("minID", "maxID"),
            (Some(first), Some(last)) if last < first => {
                let wrong = format!("is smaller than minID, {first}");
                return Err(Problem::new(item.path_of("maxID"), last, wrong, "swap the two"));
            }
            (Some(first), Some(last)) => tagged.push((first, last)),
        }
    }
    let preserves_default = top.boolean("preserveDefaultVlan")?;
    if vlan == 0 && tagged.is_empty() {
        return Ok(None);
    }
    let untagged = if vlan == 0 { DEFAULT_VLAN } else { vlan };
    Ok(Some(Vlans { untagged, tagged, leaves_default: !preserves_default && untagged != DEFAULT_VLAN }))
}

fn id(item: &Fields<'_>, key: &str) -> Result<Option<u16>, Problem> {
    let Some(value) = item.get(key) else { return Ok(None) };
    match value.as_u64().and_then(|number| u16::try_from(number).ok()) {
        Some(number) if (1..=LARGEST).contains(&number) => Ok(Some(number)),
        _ => Err(out_of_range(item.path_of(key), value, 1)),
    }
}

fn out_of_range(path: String, value: &serde_json::Value, smallest: u16) -> Problem {
    Problem::new(path, value, "is not a VLAN", format!("take a whole number from {smallest} to {LARGEST}"))
}

#[cfg(test)]
mod tests {
    use keelson_testkit::scenario;
    use serde_json::{Value, json};

    use super::*;

    fn read(top: &Value) -> Result<Option<Vlans>, String> {
        parse(&Fields::top(top.as_object().unwrap())).map_err(|problem| problem.to_string())
    }

    fn vlans(untagged: u16, tagged: &[(u16, u16)], leaves_default: bool) -> Result<Option<Vlans>, String> {
        Ok(Some(Vlans { untagged, tagged: tagged.to_vec(), leaves_default }))
    }

    #[test]
    fn a_port_without_vlans_is_left_alone() {
        for top in [json!({}), json!({"vlan": 0}), json!({"vlanTrunk": []}), json!({"vlanTrunk": [{}]})] {
            assert_eq!(read(&top), Ok(None));
        }
        scenario(1, "-");
    }

    #[test]
    fn vlan_and_trunk_mean_what_they_mean_in_the_reference() {
        assert_eq!(read(&json!({"vlan": 100})), vlans(100, &[], true));
        assert_eq!(read(&json!({"vlan": 4094, "preserveDefaultVlan": true})), vlans(4094, &[], false));
        // A trunk alone has the default VLAN's frames without a tag.
        assert_eq!(read(&json!({"vlanTrunk": [{"minID": 10, "maxID": 12}]})), vlans(1, &[(10, 12)], false));
        assert_eq!(read(&json!({"vlanTrunk": [{"minID": 9, "maxID": 9}]})), vlans(1, &[(9, 9)], false));
        assert_eq!(read(&json!({"vlanTrunk": [{"id": 15}]})), vlans(1, &[(15, 15)], false));
        let both = json!({"vlan": 7, "vlanTrunk": [{"id": 101}, {"id": 5, "minID": 200, "maxID": 210}]});
        assert_eq!(read(&both), vlans(7, &[(101, 101), (5, 5), (200, 210)], true));
        for number in [2, 3, 4] {
            scenario(number, "-");
        }
    }

    #[test]
    fn what_no_vlan_is_is_refused() {
        let trunk = |item: Value| json!({"vlanTrunk": [item]});
        for (top, expected) in [
            (json!({"vlan": 4095}), "vlan: \"4095\" is not a VLAN; take a whole number from 0 to 4094"),
            (json!({"vlan": -1}), "vlan: \"-1\" is not a VLAN"),
            (json!({"vlan": "7"}), "vlan: "),
            (trunk(json!({"minID": 1})), "vlanTrunk[0].maxID: is missing, and minID is there"),
            (trunk(json!({"maxID": 1})), "vlanTrunk[0].minID: is missing, and maxID is there"),
            (trunk(json!({"minID": -1, "maxID": 5})), "vlanTrunk[0].minID: \"-1\" is not a VLAN"),
            (trunk(json!({"minID": 4095, "maxID": 4096})), "vlanTrunk[0].minID: \"4095\""),
            (trunk(json!({"minID": 1, "maxID": 4095})), "vlanTrunk[0].maxID: \"4095\""),
            (trunk(json!({"minID": 1, "maxID": -5})), "vlanTrunk[0].maxID: \"-5\""),
            (trunk(json!({"id": 4095})), "vlanTrunk[0].id: \"4095\" is not a VLAN; take a whole number from 1 to 4094"),
            (trunk(json!({"id": -7})), "vlanTrunk[0].id: \"-7\""),
            (trunk(json!({"id": 0})), "vlanTrunk[0].id: \"0\""),
            (trunk(json!({"minID": 9, "maxID": 8})), "vlanTrunk[0].maxID: \"8\" is smaller than minID, 9"),
        ] {
            let error = read(&top).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
        (5..=14).for_each(|number| scenario(number, "-"));
    }
}
