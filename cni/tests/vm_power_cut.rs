//! A node loses its power in the middle of calls, with its records on a disk.
//!
//! The VM tier runs the first test, kills the guest at a random moment, boots it, and runs the second; several times.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    io::{Write, stdout},
    path::Path,
    thread,
};

use common::guest::{Network, disk};
use keelson_testkit::{Netns, skip_unless};

fn network(disk: &Path) -> Network {
    Network::new("cut", disk, 80)
}

#[test]
fn calls_until_the_power_is_cut() {
    skip_unless!(disk().is_some(), "needs a machine to cut off; cargo xtask test vm runs it in a guest");
    let network = network(&disk().unwrap());
    let pods: Vec<Netns> = (0..3).map(|_| Netns::new().unwrap()).collect();
    network.fill("stays", &pods);
    // Without this the disk might know nothing yet, and the second test have nothing to look at.
    nix::unistd::sync();
    thread::scope(|scope| {
        // What reaches the disk is whatever there is at any moment, not what the kernel likes to write.
        scope.spawn(|| {
            loop {
                nix::unistd::sync();
            }
        });
        for worker in 0..3 {
            let network = &network;
            scope.spawn(move || {
                let pod = Netns::new().unwrap();
                for number in 0.. {
                    let id = format!("comes-and-goes-{worker}-{number}");
                    for verb in ["ADD", "DEL"] {
                        let answer = network.call(verb, &id, Some(pod.path()));
                        assert_eq!(answer.status, 0, "{verb} {id}: {answer:?}");
                        // Not println!, which libtest would keep to itself.
                        writeln!(stdout(), "call: {verb} {id}").unwrap();
                    }
                }
            });
        }
    });
}

#[test]
fn after_the_power_cut_all_works() {
    skip_unless!(disk().is_some(), "needs a machine that was cut off; cargo xtask test vm runs it in a guest");
    let network = network(&disk().unwrap());
    let old = network.old_boots();
    assert_eq!(old.len(), 1, "{old:?}");
    assert!(network.records(&old[0]).len() >= 3, "the disk has nothing of the boot before");
    network.works_after_a_boot();
}
