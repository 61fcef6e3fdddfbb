//! A driver on scratch pools, called in any order with anything. It can mount nothing and has no loop devices: the
//! helper that it would run doesn't exist, and its /dev is empty.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a broken promise is a panic")]

use std::{collections::BTreeSet, fs, path::Path, sync::LazyLock};

use keelson_csi::{Driver, Helper, PoolKind, PoolSection, RegistrationSection, Reserve, StorageSection, fuzzing};
use keelson_host::{HostRoot, Node};
use keelson_proto::csi::v1::{
    CreateVolumeResponse, GetCapacityRequest, ListVolumesRequest, controller_client::ControllerClient,
};
use prometheus_client::registry::Registry;
use prost_reflect::{DescriptorPool, DynamicMessage, MethodDescriptor};
use rustix::fs::statvfs;
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use tonic::{Code, Request, Status, client::Grpc, service::Routes};
use tonic_prost::ProstCodec;

use crate::messages::message;

/// What a raw file of the pool may take together: thick ones are written.
const MOST_BYTES: u64 = 8 << 20;

/// As many calls as an input makes at most.
const MOST_CALLS: usize = 16;

static CONTRACTS: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(keelson_proto::FILE_DESCRIPTOR_SET).expect("our own descriptors"));

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Builder::new_current_thread().build().expect("a runtime"));

/// A JSON array of calls, each an array of the method's name and its request. In the request, `@0` is the id of the first
/// volume that was made, and `%` the directory of the test.
pub(crate) fn run(text: &[u8]) {
    let Ok(Value::Array(calls)) = serde_json::from_slice(text) else { return };
    let place = Place::new();
    let mut routes = place.start();
    let mut made = Vec::new();
    RUNTIME.block_on(async {
        for call in calls.iter().take(MOST_CALLS) {
            let (Some(name), Some(request)) = (call.get(0).and_then(Value::as_str), call.get(1)) else { continue };
            if name == "restart" {
                drop(routes);
                routes = place.start();
            }
            let Some(method) = method(name) else { continue };
            let request = message(method.input(), &filled_in(request, &made, place.root()));
            match send(&routes, &method, request).await {
                Ok(answer) => made.extend(answer.volume.map(|volume| volume.volume_id)),
                Err(status) => check_refusal(&method, &status),
            }
        }
        place.check(&routes).await;
        drop(routes);
        // Another driver finds the same.
        place.check(&place.start()).await;
    });
}

/// The method of that name, of whichever service.
fn method(name: &str) -> Option<MethodDescriptor> {
    let services = CONTRACTS.services().filter(|service| service.full_name().starts_with("csi.v1."));
    services.flat_map(|service| service.methods().collect::<Vec<_>>()).find(|method| method.name() == name)
}

fn filled_in(json: &Value, made: &[String], root: &str) -> Value {
    match json {
        Value::String(text) => {
            let id = text.strip_prefix('@').and_then(|index| made.get(index.parse::<usize>().ok()?));
            // Nothing may be made elsewhere.
            let text = if text.starts_with('/') { format!("%{text}") } else { text.clone() };
            Value::String(id.cloned().unwrap_or_else(|| text.replace('%', root)))
        }
        Value::Array(items) => items.iter().map(|item| filled_in(item, made, root)).collect(),
        Value::Object(object) => {
            object.iter().map(|(key, value)| (key.clone(), filled_in(value, made, root))).collect()
        }
        other => other.clone(),
    }
}

/// Only CreateVolume's answer is looked at: those of the others have no field of its number that would pass for it.
async fn send(
    routes: &Routes,
    method: &MethodDescriptor,
    request: DynamicMessage,
) -> Result<CreateVolumeResponse, Status> {
    let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
    let mut client = Grpc::new(routes.clone());
    client.ready().await.expect("always ready");
    let path = path.parse().expect("a path");
    if method.name() == "CreateVolume" {
        let codec = ProstCodec::<DynamicMessage, CreateVolumeResponse>::default();
        return client.unary(Request::new(request), path, codec).await.map(tonic::Response::into_inner);
    }
    let codec = ProstCodec::<DynamicMessage, ()>::default();
    if method.is_server_streaming() {
        let mut answers = client.server_streaming(Request::new(request), path, codec).await?.into_inner();
        while answers.message().await?.is_some() {}
        return Ok(CreateVolumeResponse::default());
    }
    client.unary(Request::new(request), path, codec).await.map(|_| CreateVolumeResponse::default())
}

/// Nothing is anybody's fault but the caller's, or that of a host that lacks what a mount takes.
fn check_refusal(method: &MethodDescriptor, status: &Status) {
    let (code, text) = (status.code(), status.message());
    // tonic says nothing about a service that there isn't.
    assert!(!text.is_empty() || code == Code::Unimplemented, "{} says nothing with {code:?}", method.name());
    match code {
        Code::Internal => {
            let cannot = text.contains("failed to run ") || text.contains("loop-control");
            assert!(cannot, "{}: {text}", method.name());
        }
        Code::InvalidArgument => {
            let input = method.input();
            assert!(input.fields().any(|field| text.contains(field.name())), "{}: {text}", method.name());
        }
        Code::NotFound
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::ResourceExhausted
        | Code::Unimplemented => {}
        // A token that wasn't given by the driver. Nothing else is under way.
        Code::Aborted => assert!(text.contains("starting_token"), "{}: {text}", method.name()),
        other => panic!("{}: {other:?}: {text}", method.name()),
    }
}

/// The directory of one input.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::Builder::new().prefix("keelson-fuzz-").tempdir().unwrap());
        for name in ["directories", "images", "proc/1", "sys/block", "dev", "staging", "pods"] {
            fs::create_dir_all(place.0.path().join(name)).unwrap();
        }
        // Nothing is mounted.
        fs::write(place.0.path().join("proc/1/mountinfo"), "").unwrap();
        place
    }

    fn root(&self) -> &str {
        self.0.path().to_str().unwrap()
    }

    fn start(&self) -> Routes {
        let root = self.0.path();
        let found = statvfs(root).unwrap();
        let free = found.f_bavail * found.f_frsize;
        let pool = |name: &str, kind, unenforced_sizes| PoolSection {
            name: name.to_owned(),
            path: root.join(name),
            kind,
            allow_shared_filesystem: true,
            unenforced_sizes,
            reserve: Reserve::Bytes(free.saturating_sub(MOST_BYTES)),
            overcommit_percent: 100,
        };
        let section = StorageSection {
            endpoint: format!("unix://{}/csi.sock", root.display()),
            registration: RegistrationSection { enabled: false, ..RegistrationSection::default() },
            pools: vec![pool("directories", PoolKind::Directory, true), pool("images", PoolKind::Image, false)],
            ..StorageSection::default()
        };
        let node = Node { name: "node-a".to_owned(), state_dir: root.join("state"), root: HostRoot::system() };
        let mut settings = section.validate(&node).unwrap();
        settings.root = HostRoot::at(root);
        settings.helper = Helper::new("/nonexistent", ["storage-helper"]);
        fuzzing::routes(Driver::new(settings, &mut Registry::default()).unwrap())
    }

    /// What is listed is what lies in the pools, and nothing is half there.
    async fn check(&self, routes: &Routes) {
        let mut client = ControllerClient::new(routes.clone());
        let listed = client.list_volumes(ListVolumesRequest::default()).await.unwrap().into_inner();
        assert_eq!(listed.next_token, "");
        let volumes = listed.entries.into_iter().map(|entry| entry.volume.unwrap());
        let listed: BTreeSet<String> = volumes.map(|volume| volume.volume_id).collect();
        let pools = ["directories", "images"].map(|name| self.0.path().join(name));
        assert_eq!(pools.iter().flat_map(|pool| names(&pool.join("volumes"))).collect::<BTreeSet<_>>(), listed);
        assert!(pools.iter().all(|pool| names(&pool.join("building")).is_empty()));
        client.get_capacity(GetCapacityRequest::default()).await.unwrap();
    }
}

fn names(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}
