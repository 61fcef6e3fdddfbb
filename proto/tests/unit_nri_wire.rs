//! The bytes that NRI messages have on the wire, worked out by hand from the contract, and what older and newer
//! peers may send.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use keelson_proto::{
    google::rpc::Status,
    nri::v1alpha1::{
        ConfigureRequest, ConfigureResponse, CreateContainerResponse, Event, LinuxCpu, LinuxResources,
        RegisterPluginRequest, StateChangeEvent,
    },
    ttrpc::{Request, Response},
};
use prost::Message;

fn bytes(hex: &str) -> Vec<u8> {
    let digits: String = hex.split_whitespace().collect();
    digits.as_bytes().chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// A plugin's first message: RegisterPlugin with five seconds to answer.
#[test]
fn register_plugin_has_the_golden_bytes() {
    let payload = RegisterPluginRequest {
        plugin_name: "numa".to_owned(),
        plugin_idx: "10".to_owned(),
        nri_version: "v0.12.2".to_owned(),
    };
    let request = Request {
        service: "nri.pkg.api.v1alpha1.Runtime".to_owned(),
        method: "RegisterPlugin".to_owned(),
        payload: payload.encode_to_vec(),
        timeout_nano: 5_000_000_000,
        metadata: Vec::new(),
    };
    let golden = bytes(
        "0a1c6e72692e706b672e6170692e7631616c706861312e52756e74696d65
         120e5265676973746572506c7567696e
         1a130a046e756d61120231301a0776302e31322e32
         2080e497d012",
    );
    assert_eq!(request.encode_to_vec(), golden);
    assert_eq!(Request::decode(golden.as_slice()).unwrap(), request);
}

/// The reply to Configure: RUN, STOP and REMOVE pod, CREATE, POST_START, UPDATE, STOP and REMOVE container.
#[test]
fn configure_response_has_the_golden_bytes() {
    let events = [
        Event::RunPodSandbox,
        Event::StopPodSandbox,
        Event::RemovePodSandbox,
        Event::CreateContainer,
        Event::PostStartContainer,
        Event::UpdateContainer,
        Event::StopContainer,
        Event::RemoveContainer,
    ];
    let mask = events.into_iter().fold(0, |mask, event| mask | 1 << (event as i32 - 1));
    assert_eq!(mask, 0x6cf);
    let payload = ConfigureResponse { events: mask, ..Default::default() }.encode_to_vec();
    assert_eq!(payload, bytes("10cf0d"));
    assert_eq!(Response { status: None, payload }.encode_to_vec(), bytes("120310cf0d"));
}

#[test]
fn an_unimplemented_method_is_a_status_with_code_12() {
    let status = Status { code: 12, message: "no".to_owned(), details: Vec::new() };
    assert_eq!(Response { status: Some(status), payload: Vec::new() }.encode_to_vec(), bytes("0a06 080c 12026e6f"));
}

/// A reply that pins: adjust(1).linux(6).resources(2).cpu(2) { cpus(6) "2", mems(7) "0" }.
#[test]
fn a_pinning_reply_nests_where_the_runtime_looks() {
    let cpu = LinuxCpu { cpus: "2".to_owned(), mems: "0".to_owned(), ..Default::default() };
    let mut reply = CreateContainerResponse::default();
    let linux = reply.adjust.get_or_insert_default().linux.get_or_insert_default();
    linux.resources = Some(LinuxResources { cpu: Some(cpu), ..Default::default() });
    assert_eq!(reply.encode_to_vec(), bytes("0a0c 320a 1208 1206 320132 3a0130"));
}

/// A runtime newer than this contract may send fields that are not in it: 100 (a string) and 101 (a number) here.
#[test]
fn unknown_fields_are_passed_over() {
    let known = ConfigureRequest {
        runtime_name: "containerd".to_owned(),
        request_timeout: 2000,
        nri_version: "v0.13.0".to_owned(),
        ..Default::default()
    };
    let mut wire = bytes("a206056c61746572 a8062a");
    wire.extend(known.encode_to_vec());
    wire.extend(bytes("a206056c61746572"));
    assert_eq!(ConfigureRequest::decode(wire.as_slice()).unwrap(), known);
}

/// An event that this contract doesn't name arrives as its number, not as an error.
#[test]
fn an_unknown_event_keeps_its_number() {
    let change = StateChangeEvent::decode(bytes("0863").as_slice()).unwrap();
    assert_eq!(change.event, 99);
    assert!(Event::try_from(change.event).is_err());
}

#[test]
fn truncated_input_is_an_error() {
    let whole = RegisterPluginRequest { plugin_name: "numa".to_owned(), ..Default::default() }.encode_to_vec();
    for length in 1..whole.len() {
        assert!(RegisterPluginRequest::decode(&whole[..length]).is_err(), "{length} bytes");
    }
}
