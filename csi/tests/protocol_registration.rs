//! The driver registers itself with a kubelet, here a fake one: see `fake_kubelet`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;
mod fake_kubelet;

use std::{fs, os::unix::net::UnixListener, time::Duration};

use common::{Place, Running, names};
use fake_kubelet::FakeKubelet;
use keelson_testkit::wait_until_async;
use serde_json::{Value, json};

const DRIVER: &str = "csi.keelson.dev";
const LIMIT: Duration = Duration::from_secs(60);

/// A section of a driver that registers in the place's `registry`.
fn section(place: &Place) -> Value {
    let mut section = place.section("directory");
    section["registration"] = json!({"directory": place.path("registry")});
    section
}

/// Waits for the kubelet to know the driver at its endpoint.
async fn registered(kubelet: &FakeKubelet, name: &str) {
    wait_until_async("the driver to be registered", LIMIT, async || kubelet.driver(name)).await;
}

/// Waits for a line of the driver's metrics.
async fn shows(driver: &Running, line: &str) {
    wait_until_async(line, LIMIT, async || driver.metrics().lines().any(|found| found == line).then_some(())).await;
}

/// A socket's file that nobody serves, as a killed process leaves.
fn dead(place: &Place, name: &str) {
    drop(UnixListener::bind(place.path("registry").join(name)).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_registers_at_its_start_and_withdraws_at_its_end() {
    let place = Place::new();
    let mut kubelet = FakeKubelet::new(&place.path("registry"));
    kubelet.start();
    let driver = Running::start(&place, &section(&place)).await;
    registered(&kubelet, DRIVER).await;
    let info = kubelet.driver(DRIVER).unwrap();
    assert_eq!(info.endpoint, place.text("run/csi.sock"));
    assert_eq!(info.supported_versions, ["1.0.0"]);
    shows(&driver, "keelson_storage_registered 1").await;
    shows(&driver, "keelson_storage_registrations_total{result=\"ok\"} 1").await;
    assert_eq!(names(&place.path("run")), ["csi.sock"], "nothing else may lie beside the driver's socket");
    driver.stop().await;
    assert_eq!(names(&place.path("registry")), [""; 0]);
    wait_until_async("the driver to be forgotten", LIMIT, async || kubelet.driver(DRIVER).is_none().then_some(()))
        .await;
    assert_eq!(kubelet.violations(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubelet_that_starts_later_or_again_finds_the_driver() {
    let place = Place::new();
    let mut kubelet = FakeKubelet::new(&place.path("registry"));
    // No directory, no kubelet: the driver serves whoever calls it.
    let driver = Running::start(&place, &section(&place)).await;
    kubelet.start();
    registered(&kubelet, DRIVER).await;
    for _ in 0..2 {
        kubelet.kill().await;
        kubelet.start();
        registered(&kubelet, DRIVER).await;
    }
    driver.stop().await;
    assert_eq!(kubelet.violations(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_whose_socket_was_removed_registers_again() {
    let place = Place::new();
    let mut kubelet = FakeKubelet::new(&place.path("registry"));
    kubelet.start();
    let driver = Running::start(&place, &section(&place)).await;
    shows(&driver, "keelson_storage_registrations_total{result=\"ok\"} 1").await;
    for name in names(&place.path("registry")) {
        fs::remove_file(place.path("registry").join(name)).unwrap();
    }
    shows(&driver, "keelson_storage_registrations_total{result=\"ok\"} 2").await;
    registered(&kubelet, DRIVER).await;
    // The whole directory, as by somebody who resets the node; a kubelet that starts makes it again.
    kubelet.kill().await;
    fs::remove_dir_all(place.path("registry")).unwrap();
    shows(&driver, "keelson_storage_registered 0").await;
    kubelet.start();
    registered(&kubelet, DRIVER).await;
    driver.stop().await;
    assert_eq!(kubelet.violations(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_driver_is_not_ready_and_registers_once_the_kubelet_accepts_it() {
    let place = Place::new();
    let mut kubelet = FakeKubelet::new(&place.path("registry"));
    kubelet.start();
    kubelet.know(DRIVER);
    let driver = Running::start(&place, &section(&place)).await;
    let reason = wait_until_async("the refusal", LIMIT, async || driver.ready().err()).await;
    assert_eq!(reason, "the kubelet refuses the driver: another driver with the same name is already registered");
    shows(&driver, "keelson_storage_registered 0").await;
    assert!(driver.metrics().contains("keelson_storage_registrations_total{result=\"error\"}"));
    kubelet.forget(DRIVER);
    wait_until_async("the driver to be ready", LIMIT, async || driver.ready().ok()).await;
    registered(&kubelet, DRIVER).await;
    driver.stop().await;
}

/// The kubelet takes such a driver for registered, and looks at its socket no more until it is made anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_registration_that_failed_late_is_made_again() {
    let place = Place::new();
    let mut kubelet = FakeKubelet::new(&place.path("registry"));
    kubelet.fail_with(Some("the API server is away"));
    kubelet.start();
    let driver = Running::start(&place, &section(&place)).await;
    let reason = wait_until_async("the refusal", LIMIT, async || driver.ready().err()).await;
    assert_eq!(reason, "the kubelet refuses the driver: the API server is away");
    assert!(kubelet.driver(DRIVER).is_none());
    kubelet.fail_with(None);
    registered(&kubelet, DRIVER).await;
    wait_until_async("the driver to be ready", LIMIT, async || driver.ready().ok()).await;
    driver.stop().await;
    assert_eq!(kubelet.violations(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_drivers_register_side_by_side() {
    let (one, other) = (Place::new(), Place::new());
    let mut kubelet = FakeKubelet::new(&one.path("registry"));
    kubelet.start();
    let mut second = section(&one);
    second["driverName"] = json!("other.keelson.dev");
    second["endpoint"] = json!(format!("unix://{}", other.socket().display()));
    second["pools"][0]["path"] = json!(other.path("pool"));
    let driver = Running::start(&one, &section(&one)).await;
    let mut second = Running::settings(&other, &second);
    second.state_dir = other.path("state");
    let second = Running::start_with(&other, second).await;
    registered(&kubelet, DRIVER).await;
    registered(&kubelet, "other.keelson.dev").await;
    second.stop().await;
    wait_until_async("the second to be forgotten", LIMIT, async || {
        kubelet.driver("other.keelson.dev").is_none().then_some(())
    })
    .await;
    assert!(kubelet.driver(DRIVER).is_some());
    driver.stop().await;
    assert_eq!(kubelet.violations(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_that_killed_drivers_left_are_replaced_or_removed_and_others_are_not() {
    let place = Place::new();
    fs::create_dir(place.path("registry")).unwrap();
    dead(&place, "csi.keelson.dev@keelson");
    dead(&place, "former.keelson.dev@keelson");
    dead(&place, "foreign.example.com-reg.sock");
    fs::write(place.path("registry/notes@keelson"), "no socket").unwrap();
    let _living = UnixListener::bind(place.path("registry/living.example.com@keelson")).unwrap();
    let driver = Running::start(&place, &section(&place)).await;
    let mut kubelet = FakeKubelet::new(&place.path("registry"));
    wait_until_async("the dead socket to be replaced", LIMIT, async || {
        std::os::unix::net::UnixStream::connect(place.path("registry/csi.keelson.dev@keelson")).ok()
    })
    .await;
    assert_eq!(
        names(&place.path("registry")),
        ["csi.keelson.dev@keelson", "foreign.example.com-reg.sock", "living.example.com@keelson", "notes@keelson"]
    );
    kubelet.start();
    registered(&kubelet, DRIVER).await;
    driver.stop().await;
    assert_eq!(
        names(&place.path("registry")),
        ["foreign.example.com-reg.sock", "living.example.com@keelson", "notes@keelson"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_another_registers_makes_no_socket() {
    let place = Place::new();
    fs::create_dir(place.path("registry")).unwrap();
    let mut section = section(&place);
    section["registration"]["enabled"] = json!(false);
    let driver = Running::start(&place, &section).await;
    assert_eq!(names(&place.path("registry")), [""; 0]);
    driver.stop().await;
}
