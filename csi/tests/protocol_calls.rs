//! What holds for every call: in whose name, for how long, and what is told of it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use common::{MIB, Place, Running, connect, expect_code, mounted, request};
use keelson_csi::{Helper, Operation};
use keelson_proto::csi::v1::{NodeStageVolumeRequest, ProbeRequest, identity_client::IdentityClient};
use keelson_testkit::{skip_unless, wait_until_async};
use prost::Message;
use tokio::net::UnixStream;
use tonic::{
    Code, Status,
    codegen::{
        Bytes,
        http::{Method, Request, Version, header},
    },
};

const LIMIT: Duration = Duration::from_secs(60);

/// Helper processes that wait until the gate is opened before they do anything.
struct Gate(PathBuf);

impl Gate {
    /// A driver whose helpers wait at the gate.
    async fn start(place: &Place) -> (Self, Running) {
        let (gate, script) = (place.path("gate"), place.path("helper"));
        let program = env!("CARGO_BIN_EXE_keelson-csi-alone");
        let text = format!(
            "#!/bin/sh\nwhile [ ! -e {} ]; do sleep 0.02; done\nexec {program} storage-helper \"$@\"\n",
            gate.display()
        );
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let mut settings = Running::settings(place, &place.section("image"));
        settings.helper = Helper::new(script, [""; 0]);
        let gate = Self(gate);
        gate.open();
        (gate, Running::start_as(place, settings).await)
    }

    fn open(&self) {
        fs::write(&self.0, "").unwrap();
    }

    fn close(&self) {
        fs::remove_file(&self.0).unwrap();
    }
}

/// Waits for an operation of this name to be listed as `awaited`.
async fn listed(driver: &Running, operation: &str, awaited: bool) -> Operation {
    wait_until_async("the operation to be listed", LIMIT, async || {
        driver.operations.list().into_iter().find(|found| found.operation == operation && found.awaited == awaited)
    })
    .await
}

async fn nothing_listed(driver: &Running) {
    wait_until_async("the operations to end", LIMIT, async || driver.operations.list().is_empty().then_some(())).await;
}

fn shows(driver: &Running, line: &str) -> bool {
    driver.metrics().lines().any(|found| found.starts_with(line))
}

/// Calls a method as a client of one's own would, and gives the status of its answer's headers.
///
/// Not by tonic: its client obeys the timeout itself, so that the server's answer would never be seen.
async fn raw_call(
    socket: &Path,
    authority: &str,
    path: &str,
    timeout: Option<&str>,
    message: &impl Message,
) -> Result<Status, h2::Error> {
    let stream = UnixStream::connect(socket).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await?;
    let connection = tokio::spawn(connection);
    let mut client = client.ready().await?;
    let mut request = Request::builder().method(Method::POST).version(Version::HTTP_2);
    request = request.uri(format!("http://{authority}{path}")).header(header::CONTENT_TYPE, "application/grpc");
    request = request.header(header::TE, "trailers");
    if let Some(timeout) = timeout {
        request = request.header("grpc-timeout", timeout);
    }
    let (response, mut body) = client.send_request(request.body(()).unwrap(), false)?;
    // Not compressed; the length; the message.
    let mut frame = vec![0];
    frame.extend(u32::try_from(message.encoded_len()).unwrap().to_be_bytes());
    message.encode(&mut frame).unwrap();
    body.send_data(Bytes::from(frame), true)?;
    let response = response.await?;
    connection.abort();
    Ok(Status::from_header_map(response.headers()).unwrap_or_else(|| Status::ok("")))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_answered_when_its_time_is_over_and_its_work_goes_on() {
    needs_a_kernel!();
    let place = Place::new();
    let (gate, mut driver) = Gate::start(&place).await;
    let id = driver.create(request("pvc-1", 64 * MIB, mounted())).await.unwrap().volume_id;
    gate.close();
    let stage = NodeStageVolumeRequest {
        volume_id: id.clone(),
        staging_target_path: place.text("staging"),
        volume_capability: Some(mounted()),
        ..NodeStageVolumeRequest::default()
    };
    let path = "/csi.v1.Node/NodeStageVolume";
    let status = raw_call(&place.socket(), "localhost", path, Some("300m"), &stage).await.unwrap();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert_eq!(
        status.message(),
        "NodeStageVolume has not ended within 0.3 s and goes on; the same call again tells how it ended"
    );
    // Nobody waits, and what has the volume for itself can be seen.
    let operation = listed(&driver, "NodeStageVolume", false).await;
    assert!(operation.request.is_some(), "{operation:?}");
    assert_eq!(operation.client, Some(i32::try_from(std::process::id()).unwrap()));
    expect_code(driver.stage(&id, &place.text("staging"), mounted()).await, Code::Aborted);
    assert!(shows(&driver, "keelson_storage_rpc_total{method=\"NodeStageVolume\",code=\"DeadlineExceeded\"} 1"));
    assert!(!shows(&driver, "keelson_storage_operations 0"));
    let metrics = driver.metrics();
    let oldest =
        metrics.lines().find_map(|line| line.strip_prefix("keelson_storage_oldest_operation_seconds ")).unwrap();
    assert!(oldest.parse::<f64>().unwrap() > 0.0, "{oldest}");
    gate.open();
    nothing_listed(&driver).await;
    assert!(place.mount_at("staging").is_some(), "the work was not done to its end");
    driver.stage(&id, &place.text("staging"), mounted()).await.unwrap();
    driver.unstage(&id, &place.text("staging")).await.unwrap();
    driver.delete(&id).await.unwrap();
    assert!(shows(&driver, "keelson_storage_operations 0"));
    place.expect_clean();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_made_although_its_client_went_away() {
    needs_a_kernel!();
    let place = Place::new();
    let (gate, mut driver) = Gate::start(&place).await;
    gate.close();
    let mut controller = driver.controller.clone();
    let create = tokio::spawn(async move { controller.create_volume(request("pvc-1", 64 * MIB, mounted())).await });
    listed(&driver, "CreateVolume", true).await;
    assert_eq!(place.volumes(), [""; 0]);
    create.abort();
    listed(&driver, "CreateVolume", false).await;
    assert!(shows(&driver, "keelson_storage_rpc_total{method=\"CreateVolume\",code=\"Cancelled\"} 1"));
    gate.open();
    nothing_listed(&driver).await;
    let made = place.volumes();
    let again = driver.create(request("pvc-1", 64 * MIB, mounted())).await.unwrap();
    assert_eq!(made, std::slice::from_ref(&again.volume_id));
    driver.delete(&again.volume_id).await.unwrap();
    place.expect_clean();
    driver.stop().await;
}

/// The kubelet's own calls say `localhost`; its plugin watcher, and clients that nobody told better, say the path.
#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_is_a_path_is_heard_only_with_an_at_sign_after_it() {
    let place = Place::new();
    let driver = Running::start(&place, &place.section("directory")).await;
    let probe = async |authority: &str| {
        raw_call(&place.socket(), authority, "/csi.v1.Identity/Probe", None, &ProbeRequest {}).await
    };
    for authority in ["localhost", "csi.sock", "%2Fvar%2Flib%2Fkubelet%2Fplugins_registry%2Fcsi.keelson.dev@keelson"] {
        assert_eq!(probe(authority).await.unwrap().code(), Code::Ok, "{authority}");
    }
    driver.stop().await;
}

/// Connects and calls as another user, who could once the socket's mode is opened up.
#[tokio::test(flavor = "multi_thread")]
async fn another_user_is_denied_whatever_the_sockets_mode() {
    skip_unless!(keelson_testkit::is_root(), "needs root to become another user");
    let place = Place::new();
    let driver = Running::start(&place, &place.section("directory")).await;
    let socket = place.socket();
    for path in socket.ancestors().skip(1).take_while(|path| *path != Path::new("/tmp") && *path != Path::new("/")) {
        let mode = fs::metadata(path).unwrap().permissions().mode();
        fs::set_permissions(path, fs::Permissions::from_mode(mode | 0o555)).unwrap();
    }
    let call_as_nobody = |socket: PathBuf| {
        let call = move || {
            become_nobody();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let channel = connect(&socket).await.map_err(|_| "no connection")?;
                Ok::<_, &str>(IdentityClient::new(channel).probe(ProbeRequest {}).await.unwrap_err())
            })
        };
        thread::spawn(call).join().unwrap()
    };
    assert_eq!(call_as_nobody(socket.clone()).unwrap_err(), "no connection");
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
    let denied = call_as_nobody(socket.clone()).unwrap();
    assert_eq!(denied.code(), Code::PermissionDenied, "{denied:?}");
    assert_eq!(denied.message(), "user 65534 is not root");
    driver.stop().await;
}

/// Gives this thread, and no other, another user: what a socket tells of its peer is the connecting thread's.
#[expect(unsafe_code, reason = "libc's own function changes every thread of the process")]
fn become_nobody() {
    // SAFETY: setresuid(2) takes three numbers and touches no memory.
    let result = unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) };
    assert_eq!(result, 0);
}
