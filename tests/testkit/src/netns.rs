//! Network namespaces for tests, gone when dropped.

use std::{
    fs::{self, File},
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{self, Command},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};

/// A network namespace with a path, as container runtimes make them: an nsfs file bind-mounted somewhere.
///
/// The path lies in the system's temporary directory. Dropping it unmounts and removes the path; the namespace
/// itself lives on while a process is in it.
#[derive(Debug)]
pub struct Netns {
    path: PathBuf,
}

impl Netns {
    /// Makes an empty namespace with its loopback down.
    ///
    /// # Errors
    ///
    /// Without root, `EPERM` from `unshare` or `mount`.
    pub fn new() -> io::Result<Self> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("keelson-netns-{}-{number}", process::id()));
        File::create(&path)?;
        let target = path.clone();
        let made = thread::spawn(move || -> io::Result<()> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            mount(Some("/proc/thread-self/ns/net"), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
            Ok(())
        })
        .join()
        .map_err(|_| io::Error::other("the thread that makes the namespace panicked"))?;
        if let Err(error) = made {
            // The error of the step that failed is the one to tell.
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        Ok(Self { path })
    }

    /// What a runtime would pass as `CNI_NETNS`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `work` on a thread inside the namespace, and returns what it returns.
    ///
    /// # Panics
    ///
    /// If the namespace can't be entered, or `work` panics.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let namespace = File::open(&self.path).expect("the namespace's path was made by new()");
                setns(namespace, CloneFlags::CLONE_NEWNET).expect("root may enter a network namespace");
                work()
            });
            match thread.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// A command that will start inside the namespace.
    ///
    /// # Panics
    ///
    /// If the namespace's path can't be opened.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let namespace = File::open(&self.path).expect("the namespace's path was made by new()");
        let mut command = Command::new(program);
        #[expect(unsafe_code, reason = "entering a namespace between fork and exec has no safe form")]
        // SAFETY: setns is async-signal-safe; the closure allocates nothing and owns the descriptor it uses.
        unsafe {
            command.pre_exec(move || setns(&namespace, CloneFlags::CLONE_NEWNET).map_err(io::Error::from));
        }
        command
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // A test may have unmounted it on purpose; what is left is for the leftovers check to report.
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
        let _ = fs::remove_file(&self.path);
    }
}
