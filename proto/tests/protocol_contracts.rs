//! Holds our .proto files against the published ones, which it takes out of the Go modules that
//! `tests/tools/contracts` pins: every message, field name, number, type, label, oneof and option, every enum value,
//! every method. A difference that `explained` doesn't name fails, and so does an entry that explains nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod contract;

use std::fs;

use contract::{Facts, complaints, differences, facts, restricted_to_declared};
use keelson_testkit::go_module_file;
use prost_reflect::DescriptorPool;
use protox::{
    Compiler,
    file::{ChainFileResolver, File, FileResolver, GoogleFileResolver},
};

const PINS: &str = "contracts";

/// One file of ours and the published file that it must agree with.
struct Contract {
    ours: &'static str,
    module: &'static str,
    published: &'static str,
    /// Why not everything published is declared; `None` where it has to be.
    partial: Option<&'static str>,
    /// Differences that are meant: what, and why.
    explained: &'static [(&'static str, &'static str)],
}

const CONTRACTS: &[Contract] = &[
    Contract {
        ours: "csi/v1/csi.proto",
        module: "github.com/container-storage-interface/spec",
        published: "csi.proto",
        partial: None,
        explained: &[],
    },
    Contract {
        ours: "deviceplugin/v1beta1/deviceplugin.proto",
        module: "k8s.io/kubelet",
        published: "pkg/apis/deviceplugin/v1beta1/api.proto",
        partial: None,
        explained: &[],
    },
    Contract {
        ours: "pluginregistration/v1/pluginregistration.proto",
        module: "k8s.io/kubelet",
        published: "pkg/apis/pluginregistration/v1/api.proto",
        partial: None,
        explained: &[],
    },
    Contract {
        ours: "podresources/v1/podresources.proto",
        module: "k8s.io/kubelet",
        published: "pkg/apis/podresources/v1/api.proto",
        partial: None,
        explained: &[],
    },
    Contract {
        ours: "nri/v1alpha1/nri.proto",
        module: "github.com/containerd/nri",
        published: "pkg/api/api.proto",
        partial: None,
        explained: &[],
    },
    Contract {
        ours: "ttrpc/ttrpc.proto",
        module: "github.com/containerd/ttrpc",
        published: "request.proto",
        partial: None,
        explained: &[(
            "field ttrpc.Response.status",
            "the published file imports a stub of Status with nothing but its code; what Go programs send is google.rpc.Status",
        )],
    },
    Contract {
        ours: "cri/v1/cri.proto",
        module: "k8s.io/cri-api",
        published: "pkg/apis/runtime/v1/api.proto",
        partial: Some("only what a stand-in for the kubelet calls is declared"),
        explained: &[],
    },
];

/// The facts of a file as this crate ships it.
fn shipped(name: &str) -> Facts {
    let pool = DescriptorPool::decode(keelson_proto::FILE_DESCRIPTOR_SET).unwrap();
    facts(&pool.get_file_by_name(name).unwrap_or_else(|| panic!("{name} is not in the descriptor set")))
}

/// The facts of a published file, compiled with its module's root as the import path.
fn published(module: &str, name: &str) -> Facts {
    let path = go_module_file(PINS, module, name).unwrap();
    let root = path.ancestors().nth(name.split('/').count()).unwrap();
    let mut compiler = Compiler::new([root]).unwrap();
    compiler.include_imports(true).open_file(&path).unwrap();
    // Only the encoded form keeps custom options.
    let pool = DescriptorPool::decode(compiler.encode_file_descriptor_set().as_slice()).unwrap();
    facts(&pool.get_file_by_name(name).unwrap())
}

fn hold(file: &str) {
    let contract = CONTRACTS.iter().find(|contract| contract.ours == file).unwrap();
    let ours = shipped(contract.ours);
    let mut theirs = published(contract.module, contract.published);
    assert!(!ours.is_empty() && !theirs.is_empty());
    if let Some(reason) = contract.partial {
        let declared = restricted_to_declared(&ours, &theirs);
        assert!(declared.len() < theirs.len(), "{file} is called partial ({reason}), but nothing is left out");
        theirs = declared;
    }
    let complaints = complaints(&differences(&ours, &theirs), contract.explained);
    assert!(complaints.is_empty(), "{file} differs from {}:\n{}", contract.published, complaints.join("\n"));
}

#[test]
fn csi_agrees_with_the_published_contract() {
    hold("csi/v1/csi.proto");
    // Both sides losing their custom options would agree as well.
    let secrets = shipped("csi/v1/csi.proto").into_values().filter(|how| how.contains("(csi.v1.csi_secret) = true"));
    assert!(secrets.count() > 20);
}

#[test]
fn device_plugin_agrees_with_the_published_contract() {
    hold("deviceplugin/v1beta1/deviceplugin.proto");
}

#[test]
fn plugin_registration_agrees_with_the_published_contract() {
    hold("pluginregistration/v1/pluginregistration.proto");
}

#[test]
fn podresources_agrees_with_the_published_contract() {
    hold("podresources/v1/podresources.proto");
}

#[test]
fn nri_agrees_with_the_published_contract() {
    hold("nri/v1alpha1/nri.proto");
}

#[test]
fn ttrpc_agrees_with_the_published_contract() {
    hold("ttrpc/ttrpc.proto");
}

#[test]
fn the_declared_part_of_cri_agrees_with_the_published_contract() {
    hold("cri/v1/cri.proto");
}

/// The Go module has no .proto file for this one, but the generated Go code holds the compiled descriptor:
/// `var file_google_rpc_status_proto_rawDesc = []byte{ 0x0a, 0x17, ... }`.
#[test]
fn status_agrees_with_the_published_descriptor() {
    let path = go_module_file(PINS, "google.golang.org/genproto/googleapis/rpc", "status/status.pb.go").unwrap();
    let code = fs::read_to_string(path).unwrap();
    let (_, rest) = code.split_once("file_google_rpc_status_proto_rawDesc = []byte{").unwrap();
    let (bytes, _) = rest.split_once('}').unwrap();
    let descriptor: Vec<u8> = bytes
        .split(',')
        .filter_map(|byte| byte.trim().strip_prefix("0x"))
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect();
    // The global pool knows google.protobuf.Any, which the descriptor imports.
    let mut pool = DescriptorPool::global();
    pool.decode_file_descriptor_proto(descriptor.as_slice()).unwrap();
    let theirs = facts(&pool.get_file_by_name("google/rpc/status.proto").unwrap());
    let complaints = complaints(&differences(&shipped("google/rpc/status.proto"), &theirs), &[]);
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn every_shipped_file_is_held_against_a_published_one() {
    let pool = DescriptorPool::decode(keelson_proto::FILE_DESCRIPTOR_SET).unwrap();
    for file in pool.files().filter(|file| file.package_name() != "google.protobuf") {
        let held = CONTRACTS.iter().any(|contract| contract.ours == file.name());
        assert!(held || file.name() == "google/rpc/status.proto", "{} is compared with nothing", file.name());
    }
}

/// A contract with one of everything that the comparison looks at.
const SAMPLE: &str = r#"
syntax = "proto3";
package sample;
import "google/protobuf/descriptor.proto";
extend google.protobuf.FieldOptions { bool secret = 1059; }
service Greeter {
  rpc Greet(Request) returns (Reply);
  rpc Watch(Request) returns (stream Reply);
}
message Request {
  string name = 1;
  map<string, string> words = 2 [(secret) = true];
  optional int32 count = 3;
  repeated Color colors = 4;
  oneof way { bool quietly = 5; bool loudly = 6; }
  Inner inner = 7;
  message Inner { int64 depth = 1; }
  reserved 8;
}
message Reply {}
message Spare { string part = 1; }
enum Color { RED = 0; GREEN = 1; }
"#;

struct Text(String);

impl FileResolver for Text {
    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        if name == "sample.proto" { File::from_source(name, &self.0) } else { Err(protox::Error::file_not_found(name)) }
    }
}

fn facts_of_text(text: &str) -> Facts {
    let mut resolver = ChainFileResolver::new();
    resolver.add(Text(text.to_owned()));
    resolver.add(GoogleFileResolver::new());
    let mut compiler = Compiler::with_file_resolver(resolver);
    compiler.include_imports(true).open_file("sample.proto").unwrap();
    let pool = DescriptorPool::decode(compiler.encode_file_descriptor_set().as_slice()).unwrap();
    facts(&pool.get_file_by_name("sample.proto").unwrap())
}

#[test]
fn each_kind_of_difference_is_found() {
    // What is changed in the sample, and the differences that must be found: those and no others.
    let cases: &[(&str, &str, &[&str])] = &[
        ("// a comment", "", &[]),
        ("string name = 1;", "string name = 11;", &["field sample.Request.name"]),
        ("string name = 1;", "bytes name = 1;", &["field sample.Request.name"]),
        ("string name = 1;", "repeated string name = 1;", &["field sample.Request.name"]),
        ("string name = 1;", "optional string name = 1;", &["field sample.Request.name"]),
        ("optional int32 count", "int32 count", &["field sample.Request.count"]),
        ("string name = 1;", "string nom = 1;", &["field sample.Request.name", "field sample.Request.nom"]),
        ("string name = 1;", "", &["field sample.Request.name"]),
        ("string name = 1;", "string name = 1; bool more = 9;", &["field sample.Request.more"]),
        ("string name = 1;", "string name = 1 [deprecated = true];", &["field sample.Request.name"]),
        ("map<string, string>", "map<string, bytes>", &["field sample.Request.words"]),
        ("map<string, string>", "map<int32, string>", &["field sample.Request.words"]),
        ("map<string, string>", "repeated Spare", &["field sample.Request.words"]),
        (" [(secret) = true]", "", &["field sample.Request.words"]),
        ("= 1059", "= 1060", &["extension sample.secret"]),
        ("repeated Color colors", "repeated int32 colors", &["field sample.Request.colors"]),
        ("bool loudly = 6; }", "} bool loudly = 6;", &["field sample.Request.loudly"]),
        ("oneof way", "oneof manner", &["field sample.Request.quietly", "field sample.Request.loudly"]),
        ("int64 depth", "uint64 depth", &["field sample.Request.Inner.depth"]),
        ("reserved 8;", "", &["message sample.Request"]),
        ("message Spare { string part = 1; }", "", &["message sample.Spare", "field sample.Spare.part"]),
        ("GREEN = 1;", "GREEN = 2;", &["value sample.Color.GREEN"]),
        ("GREEN = 1;", "", &["value sample.Color.GREEN"]),
        ("GREEN = 1;", "GREEN = 1; BLUE = 2;", &["value sample.Color.BLUE"]),
        ("rpc Greet(Request)", "rpc Greet(Reply)", &["method sample.Greeter.Greet"]),
        ("(stream Reply)", "(Reply)", &["method sample.Greeter.Watch"]),
        ("Watch(Request)", "Watch(stream Request)", &["method sample.Greeter.Watch"]),
        ("rpc Watch(Request) returns (stream Reply);", "", &["method sample.Greeter.Watch"]),
    ];
    let original = facts_of_text(&format!("// a comment\n{SAMPLE}"));
    for (from, to, expected) in cases {
        let text = format!("// a comment\n{SAMPLE}");
        let changed = text.replacen(from, to, 1);
        assert_ne!(text, changed, "{from} is not in the sample");
        let mut found: Vec<_> = differences(&facts_of_text(&changed), &original).into_keys().collect();
        let mut expected = expected.to_vec();
        found.sort_unstable();
        expected.sort_unstable();
        assert_eq!(found, expected, "after changing `{from}` to `{to}`");
    }
}

#[test]
fn a_partial_contract_may_leave_out_declarations_and_methods_but_no_part_of_a_message() {
    let whole = facts_of_text(SAMPLE);
    let left_out = |from: &str| {
        let ours = facts_of_text(&SAMPLE.replacen(from, "", 1));
        differences(&ours, &restricted_to_declared(&ours, &whole)).into_keys().collect::<Vec<_>>()
    };
    assert!(left_out("message Spare { string part = 1; }").is_empty());
    assert!(left_out("rpc Watch(Request) returns (stream Reply);").is_empty());
    assert_eq!(left_out("string name = 1;"), ["field sample.Request.name"]);
    assert_eq!(left_out("GREEN = 1;"), ["value sample.Color.GREEN"]);
}

#[test]
fn an_explanation_covers_its_difference_only_and_must_not_outlive_it() {
    let ours = facts_of_text(&SAMPLE.replacen("string name = 1;", "bytes name = 1;", 1));
    let found = differences(&ours, &facts_of_text(SAMPLE));
    assert_eq!(complaints(&found, &[]).len(), 1);
    assert!(complaints(&found, &[("field sample.Request.name", "meant")]).is_empty());
    assert_eq!(complaints(&found, &[("field sample.Request.count", "meant")]).len(), 2);
    assert_eq!(complaints(&Default::default(), &[("field sample.Request.name", "meant")]).len(), 1);
}
