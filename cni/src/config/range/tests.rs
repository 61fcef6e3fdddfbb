//! Address ranges: their bounds, their overlaps.

use keelson_testkit::scenario;
use proptest::prelude::*;

use super::*;

fn range(subnet: &str, first: &str, last: &str, gateway: &str) -> Result<Range, Problem> {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let text = RangeText { subnet: subnet.to_owned(), first: some(first), last: some(last), gateway: some(gateway) };
    Range::new("ipam.ranges[0][0]", "ipam.ranges[0][0].subnet", &text)
}

#[track_caller]
fn refused(subnet: &str, first: &str, last: &str, gateway: &str, expected: &str) {
    assert_eq!(range(subnet, first, last, gateway).unwrap_err().to_string(), expected);
}

#[test]
fn what_is_left_out_is_filled_in() {
    let whole = range("10.1.2.0/24", "", "", "").unwrap();
    assert_eq!((whole.first, whole.last), ("10.1.2.1".parse().unwrap(), "10.1.2.254".parse().unwrap()));
    assert_eq!((whole.gateway, whole.start()), ("10.1.2.1".parse().unwrap(), "10.1.2.2".parse::<IpAddr>().unwrap()));
    assert_eq!(whole.size(), 253);
    for gateway in ["10.1.2.1", "10.1.2.254"] {
        assert_eq!(range("10.1.2.0/24", "10.1.2.40", "10.1.2.50", gateway).unwrap().size(), 11);
    }
    let half = range("10.1.2.0/25", "", "", "").unwrap();
    assert_eq!(
        [half.first, half.last, half.gateway].map(|own| own.to_string()),
        ["10.1.2.1", "10.1.2.126", "10.1.2.1"]
    );
    let six = range("fd00::/64", "", "", "").unwrap();
    let expected = ["fd00::1", "fd00::ffff:ffff:ffff:ffff", "fd00::1"];
    assert_eq!([six.first, six.last, six.gateway].map(|own| own.to_string()), expected);
    scenario(91, "-");
}

#[test]
fn an_address_belongs_to_the_range_between_its_ends() {
    let set = RangeSet(vec![
        range("192.0.2.0/24", "192.0.2.40", "192.0.2.50", "192.0.2.254").unwrap(),
        range("192.0.9.0/24", "", "", "").unwrap(),
    ]);
    let six = RangeSet(vec![range("2001:db8:1::/64", "2001:db8:1::40", "2001:db8:1::50", "").unwrap()]);
    for (set, address, expected) in [
        (&set, "192.0.3.0", None),
        (&set, "192.0.2.39", None),
        (&set, "192.0.2.40", Some("192.0.2.0/24")),
        (&set, "192.0.2.50", Some("192.0.2.0/24")),
        (&set, "192.0.2.51", None),
        (&set, "192.0.9.7", Some("192.0.9.0/24")),
        (&six, "2001:db8:2::", None),
        (&six, "2001:db8:1::39", None),
        (&six, "2001:db8:1::40", Some("2001:db8:1::/64")),
        (&six, "2001:db8:1::50", Some("2001:db8:1::/64")),
        (&six, "2001:db8:1::51", None),
    ] {
        let found = set.range_of(address.parse().unwrap()).map(|range| range.subnet.to_string());
        assert_eq!(found.as_deref(), expected, "{address}");
    }
    scenario(96, "-");
}

#[test]
fn a_set_is_walked_round_from_the_last_address() {
    let walk = |set: &RangeSet, mut last: Option<IpAddr>, steps: usize| -> Vec<String> {
        let mut step = || {
            last = set.after(last);
            last.map(|address| address.to_string())
        };
        (0..steps).filter_map(|_| step()).collect()
    };
    let small = RangeSet(vec![range("192.168.1.0/29", "", "", "").unwrap()]);
    for (number, last, expected) in [
        (66, None, ["2", "3", "4", "5", "6"]),
        (67, Some("3"), ["4", "5", "6", "2", "3"]),
        (68, Some("6"), ["2", "3", "4", "5", "6"]),
    ] {
        let last = last.map(|last| format!("192.168.1.{last}").parse().unwrap());
        assert_eq!(walk(&small, last, 5), expected.map(|last| format!("192.168.1.{last}")));
        scenario(number, "-");
    }
    let whole = RangeSet(vec![range("192.168.1.0/24", "", "", "").unwrap()]);
    let walked = walk(&whole, None, 2 * 253);
    assert_eq!((walked[252].as_str(), walked[253].as_str()), ("192.168.1.254", "192.168.1.2"));
    assert!(!walked.contains(&"192.168.1.255".to_owned()));
    scenario(70, "-");
}

#[test]
fn bad_ranges_are_refused_with_path_value_and_remedy() {
    refused(
        "10.1",
        "",
        "",
        "",
        "ipam.ranges[0][0].subnet: \"10.1\" is not a subnet; write it as 10.88.0.0/16 or fd00:88::/64",
    );
    refused(
        "10.1.2.3/24",
        "",
        "",
        "",
        "ipam.ranges[0][0].subnet: \"10.1.2.3/24\" has host bits set; write 10.1.2.0/24",
    );
    for (number, subnet, network) in [
        (92, "192.168.127.0/23", "192.168.126.0/23"),
        (92, "2001:db8:24:19ff::/63", "2001:db8:24:19fe::/63"),
        (93, "192.0.2.12/24", "192.0.2.0/24"),
        (93, "2001:db8:1::24:19ff:fee1:c44a/64", "2001:db8:1::/64"),
    ] {
        let expected = format!("ipam.ranges[0][0].subnet: \"{subnet}\" has host bits set; write {network}");
        refused(subnet, "", "", "", &expected);
        scenario(number, "-");
    }
    refused(
        "10.1.2.0/31",
        "",
        "",
        "",
        "ipam.ranges[0][0].subnet: \"10.1.2.0/31\" is too small for a gateway and a Pod; take a prefix of at most /30 (IPv4) or /126 (IPv6)",
    );
    refused(
        "10.1.2.0/24",
        "10.1.3.1",
        "",
        "",
        "ipam.ranges[0][0].rangeStart: \"10.1.3.1\" is not in the subnet 10.1.2.0/24; take an address of the subnet",
    );
    refused(
        "10.1.2.0/24",
        "",
        "fd00::1",
        "",
        "ipam.ranges[0][0].rangeEnd: \"fd00::1\" is not in the subnet 10.1.2.0/24; take an address of the subnet",
    );
    refused(
        "10.1.2.0/24",
        "",
        "10.1.2.255",
        "",
        "ipam.ranges[0][0].rangeEnd: \"10.1.2.255\" is the network or broadcast address of 10.1.2.0/24; take an address between the two",
    );
    refused(
        "10.1.2.0/24",
        "",
        "",
        "10.1.9.1",
        "ipam.ranges[0][0].gateway: \"10.1.9.1\" is not in the subnet 10.1.2.0/24; take an address of the subnet",
    );
    refused(
        "10.1.2.0/24",
        "10.1.2.9",
        "10.1.2.5",
        "",
        "ipam.ranges[0][0].rangeStart: \"10.1.2.9\" is after rangeEnd 10.1.2.5; swap the two",
    );
    refused(
        "10.1.2.0/24",
        "10.1.2.1",
        "10.1.2.1",
        "",
        "ipam.ranges[0][0].rangeStart: \"10.1.2.1\" leaves no address beside the gateway; widen the range",
    );
    refused(
        "224.0.0.0/24",
        "",
        "",
        "",
        "ipam.ranges[0][0].subnet: \"224.0.0.0/24\" is not a range of unicast addresses; take a private range such as 10.88.0.0/16",
    );
    for subnet in ["::ffff:10.0.0.0/120", "::ffff:0:0/96", "::fffe:0:0/95"] {
        let refusal = range(subnet, "", "", "").unwrap_err();
        assert!(refusal.wrong.contains("IPv4-mapped"), "{subnet}: {refusal}");
    }
    for number in [94, 95] {
        scenario(number, "-");
    }
}

#[test]
fn overlaps_mixtures_and_empty_sets_are_found() {
    let set = |subnets: &[&str]| RangeSet(subnets.iter().map(|subnet| range(subnet, "", "", "").unwrap()).collect());
    let check =
        |sets: &[RangeSet]| check_sets(sets, "ipam.ranges", |i, j| format!("ipam.ranges[{i}][{j}]")).to_string();
    assert_eq!(check(&[set(&["10.0.0.0/24", "10.0.1.0/24"]), set(&["fd00::/64"])]), "");
    assert_eq!(check(&[]), "ipam.ranges: names no range; give at least one, such as 10.88.0.0/16");
    assert!(check(&[set(&[])]).contains("is an empty set"));
    assert!(check(&[set(&["10.0.0.0/24", "fd00::/64"])]).contains("another family"));
    let expected =
        "ipam.ranges[1][0]: \"10.0.0.0/24\" overlaps 10.0.0.0/16 (ipam.ranges[0][0]); make the ranges disjoint";
    assert_eq!(check(&[set(&["10.0.0.0/16"]), set(&["10.0.0.0/24"])]), expected);
}

proptest! {
    #[test]
    fn a_range_is_walked_once_from_start_to_end(third in 0u8..=255, length in 24u8..=30, gateway in 1u8..=2) {
        let subnet = format!("10.1.{third}.0/{length}");
        let found = range(&subnet, "", "", &format!("10.1.{third}.{gateway}")).unwrap();
        let mut walked = vec![found.start()];
        while let Some(next) = found.after(walked[walked.len() - 1]) {
            prop_assert!(next > walked[walked.len() - 1]);
            walked.push(next);
        }
        prop_assert!(walked.iter().all(|address| found.offers(*address)));
        prop_assert_eq!(walked.len() as u128, found.size());
    }

    #[test]
    fn no_text_panics(subnet in "\\PC{0,24}", first in "\\PC{0,24}", last in "\\PC{0,24}", gateway in "\\PC{0,24}") {
        let _ = range(&subnet, &first, &last, &gateway);
    }
}
