//! Secrets of requests reach neither the log nor an answer.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    collections::{BTreeMap, HashMap},
    io,
    sync::{Arc, Mutex},
};

use common::{MIB, Place, Running, expect_code, mounted, mounted_with, publication, request};
use keelson_proto::csi::v1::{DeleteVolumeRequest, NodeStageVolumeRequest, volume_capability::access_mode::Mode};
use prost::{
    Message,
    bytes::{Buf, BufMut},
};
use prost_reflect::{DescriptorPool, DynamicMessage, FieldDescriptor, MapKey, MessageDescriptor, Value};
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    transport::Channel,
};
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

const SECRET: &str = "geheim-4711";

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Messages as the bytes that they are.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining()).to_vec()))
    }
}

fn is_secret(field: &FieldDescriptor) -> bool {
    let mark = field.parent_pool().get_extension_by_name("csi.v1.csi_secret").unwrap();
    field.options().get_extension(&mark).as_bool() == Some(true)
}

/// The request with `secret` in every field that is marked as one and in every mount flag, at any depth; else with what
/// `known` gives for fields of that name.
fn filled(message: &MessageDescriptor, secret: &str, known: &BTreeMap<&str, String>) -> DynamicMessage {
    let mut filled = DynamicMessage::new(message.clone());
    for field in message.fields() {
        if is_secret(&field) {
            let secrets = HashMap::from([(MapKey::String("password".to_owned()), Value::String(secret.to_owned()))]);
            // Fails for a mark on anything but a map: then this test has to learn about that.
            filled.try_set_field(&field, Value::Map(secrets)).unwrap();
        } else if field.name() == "mount_flags" {
            filled.set_field(&field, Value::List(vec![Value::String(format!("mistyped={secret}"))]));
        } else if let Some(text) = known.get(field.name()) {
            let text = Value::String(text.clone());
            filled.set_field(&field, if field.is_list() { Value::List(vec![text]) } else { text });
        } else if field.name() == "mode" {
            filled.set_field(&field, Value::EnumNumber(Mode::SingleNodeWriter.into()));
        } else if let Some(kind) = field.kind().as_message()
            && !field.is_map()
            // The last of a choice wins: a mount, which has flags; and a volume as the source.
            && !matches!(field.name(), "block" | "snapshot")
        {
            let inner = Value::Message(self::filled(kind, secret, known));
            filled.set_field(&field, if field.is_list() { Value::List(vec![inner]) } else { inner });
        }
    }
    filled
}

fn has_secret(message: &MessageDescriptor) -> bool {
    message.fields().any(|field| is_secret(&field))
}

/// Calls every RPC whose request has a field marked as secret; gives how many there are, and what they answered.
async fn call_all(channel: Channel, secret: &str, known: &BTreeMap<&str, String>) -> (usize, Vec<Status>) {
    let pool = DescriptorPool::decode(keelson_proto::FILE_DESCRIPTOR_SET).unwrap();
    let (mut calls, mut answers) = (0, Vec::new());
    for service in pool.services().filter(|service| service.package_name() == "csi.v1") {
        for method in service.methods().filter(|method| has_secret(&method.input())) {
            let path: PathAndQuery = format!("/{}/{}", service.full_name(), method.name()).parse().unwrap();
            let request = filled(&method.input(), secret, known);
            assert!(format!("{request:?}").contains(secret), "{path}");
            let mut client = Grpc::new(channel.clone());
            client.ready().await.unwrap();
            calls += 1;
            match client.unary(Request::new(request.encode_to_vec()), path, Raw).await {
                Ok(answer) => {
                    let bytes = answer.into_inner();
                    // "confirmed" repeats the capabilities, and so their mount flags.
                    let echoes = method.name() == "ValidateVolumeCapabilities";
                    let has = bytes.windows(SECRET.len()).any(|part| part == SECRET.as_bytes());
                    assert!(!has || echoes, "{}", method.full_name());
                }
                Err(status) => answers.push(status),
            }
        }
    }
    (calls, answers)
}

/// The only test of this file: the log of a process is one.
#[tokio::test(flavor = "multi_thread")]
async fn d11_secrets_reach_no_log_and_no_answer() {
    needs_a_kernel!();
    let log = Log::default();
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new("trace,h2=off,hyper=off,tower=off"))
        .with_writer(log.clone())
        .init();
    let place = Place::new();
    let mut driver = Running::start(&place, &place.section("image")).await;
    let secrets = BTreeMap::from([("password".to_owned(), SECRET.to_owned())]);
    let staging = place.text("staging");

    let mut wish = request("pvc-1", 16 * MIB, mounted());
    wish.secrets.clone_from(&secrets);
    let id = driver.create(wish.clone()).await.unwrap().volume_id;
    let mut messages = Vec::new();
    wish.secrets.insert("more".to_owned(), format!("{SECRET}{}", "x".repeat(4096)));
    messages.push(expect_code(driver.create(wish).await, Code::InvalidArgument));
    let stage = |capability| NodeStageVolumeRequest {
        volume_id: id.clone(),
        staging_target_path: staging.clone(),
        volume_capability: Some(capability),
        secrets: secrets.clone(),
        volume_context: BTreeMap::from([("csi.storage.k8s.io/serviceAccount.tokens".to_owned(), SECRET.to_owned())]),
        ..NodeStageVolumeRequest::default()
    };
    // "mount_flags MAY contain sensitive information": the value may; the option's name is what the answer must tell.
    let flag = format!("mistyped={SECRET}");
    let flags = mounted_with(&[&flag], Mode::SingleNodeWriter);
    messages.push(expect_code(driver.node.node_stage_volume(stage(flags)).await, Code::InvalidArgument));
    driver.node.node_stage_volume(stage(mounted())).await.unwrap();
    let mut publish = publication(&id, &staging, &place.text("pods/mount"), mounted());
    publish.secrets.clone_from(&secrets);
    publish.volume_context = BTreeMap::from([("token".to_owned(), SECRET.to_owned())]);
    driver.publish(publish).await.unwrap();

    // Whatever else the specification marks, now or later: about a volume that there is, with secrets that are fine and
    // with ones that are too long.
    let known = BTreeMap::from([
        ("name", "pvc-2".to_owned()),
        ("volume_id", id.clone()),
        ("source_volume_id", id.clone()),
        ("source_volume_ids", id.clone()),
        ("staging_target_path", staging.clone()),
        ("target_path", place.text("pods/second")),
        ("volume_path", place.text("pods/mount")),
    ]);
    for secret in [SECRET.to_owned(), format!("{SECRET}{}", "x".repeat(4096))] {
        let channel = common::connect(&place.socket()).await.unwrap();
        let (calls, answers) = call_all(channel, &secret, &known).await;
        assert!(calls >= 20, "{calls} RPCs have secrets");
        messages.extend(answers);
    }
    for made in place.volumes().into_iter().filter(|made| *made != id) {
        driver.delete(&made).await.unwrap();
    }
    driver.unpublish(&id, &place.text("pods/mount")).await.unwrap();
    driver.unstage(&id, &staging).await.unwrap();
    driver.controller.delete_volume(DeleteVolumeRequest { volume_id: id.clone(), secrets }).await.unwrap();
    place.expect_clean();
    driver.stop().await;

    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    for word in ["volume created", "volume published", "call failed", "volume deleted"] {
        assert!(log.contains(word), "the log is being read: {log}");
    }
    assert!(!log.contains(SECRET), "{log}");
    assert!(messages[1].message().contains("mistyped"), "{}", messages[1]);
    for status in messages {
        assert!(!status.message().contains(SECRET), "{status}");
    }
}
