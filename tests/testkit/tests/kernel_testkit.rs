//! The toolkit's own promises, on the real kernel: a check for leftovers that finds nothing would prove nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{fs, os::unix::net::UnixListener, process::Command};

use keelson_testkit::{Netns, Snapshot, is_root, missing, skip_unless};

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {arguments:?} ended with {status}");
}

#[test]
fn a_namespace_has_its_own_links_and_goes_away() {
    skip_unless!(is_root(), "network namespaces need root");
    let namespace = Netns::new().unwrap();
    let path = namespace.path().to_owned();
    let inside = namespace.run(|| fs::read_to_string("/proc/thread-self/net/dev").unwrap());
    // Two lines of heading, then one line a link: only the loopback.
    assert_eq!(inside.lines().skip(2).count(), 1, "{inside}");
    let seen = namespace.command("cat").arg("/proc/self/net/dev").output().unwrap();
    assert_eq!(String::from_utf8(seen.stdout).unwrap(), inside);
    drop(namespace);
    assert!(!path.exists());
    assert!(!fs::read_to_string("/proc/self/mountinfo").unwrap().contains(path.to_str().unwrap()));
}

#[test]
fn leftovers_are_found() {
    skip_unless!(is_root(), "links and tables need root");
    let missing = missing(&["ip", "nft"]);
    skip_unless!(missing.is_empty(), format!("missing programs: {}", missing.join(", ")));
    let namespace = Netns::new().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("left.sock");
    namespace.run(|| {
        let before = Snapshot::take().unwrap();
        run("ip", &["link", "add", "left0", "type", "veth", "peer", "name", "left1"]);
        run("nft", &["add", "table", "inet", "left"]);
        let _listener = UnixListener::bind(&path).unwrap();
        let found = before.since().unwrap().0;
        let socket = format!("socket {}", path.display());
        for expected in ["link left0", "link left1", "nftables table inet left", socket.as_str()] {
            assert!(found.iter().any(|thing| thing == expected), "{expected} is not in {found:?}");
        }
    });
}
