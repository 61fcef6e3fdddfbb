//! The driver as a program of its own, without the supervisor: for this crate's tests, and for pointing a CSI suite at
//! it by hand. Production runs `keelson run --only storage`, and no image holds this program. It isn't an example or a
//! part of the tests because Cargo tells tests the path of nothing but a crate's own programs.
//!
//! `keelson-csi-alone serve SECTION.json NODE STATE_DIR` serves the storage section in that file until SIGTERM.

use std::{env, fs, path::PathBuf, process::ExitCode};

use keelson_csi::{Driver, StorageSection, helper_main};
use keelson_host::{HostRoot, Node, parse_section};
use prometheus_client::registry::Registry;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args_os().skip(1).collect();
    match arguments.as_slice() {
        [verb, rest @ ..] if verb == "storage-helper" => helper_main(rest.to_vec()),
        [verb, section, node, state_dir] if verb == "serve" => {
            match serve(section.into(), node.to_string_lossy().into_owned(), state_dir.into()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("{error}");
                    ExitCode::FAILURE
                }
            }
        }
        _ => {
            eprintln!("usage: keelson-csi-alone serve SECTION.json NODE STATE_DIR");
            ExitCode::from(2)
        }
    }
}

fn serve(section: PathBuf, name: String, state_dir: PathBuf) -> Result<(), Box<dyn std::error::Error>> {
    let section: StorageSection = parse_section("storage", &serde_json::from_slice(&fs::read(section)?)?)
        .map_err(|problem| problem.to_string())?;
    let settings = section.validate(&Node { name, state_dir, root: HostRoot::system() })?;
    let runtime = tokio::runtime::Runtime::new()?;
    let served = runtime.block_on(async {
        let driver = Driver::new(settings, &mut Registry::default())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        tokio::spawn(async move {
            terminate.recv().await;
            stop.cancel();
        });
        let (ready, _) = watch::channel(Err("starting".to_owned()));
        Ok(driver.run(ready, shutdown).await?)
    });
    // What a disk that doesn't answer keeps in a thread must not keep the program.
    runtime.shutdown_background();
    served
}
