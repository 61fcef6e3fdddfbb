//! A guest under qemu.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Write},
    ops::ControlFlow,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::PathBuf,
    process::{Child, Command},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    guest,
    root::{Root, check},
    shape::Shape,
};

/// How long a guest may be silent. A net for one that hangs: emulated on a busy machine, a test takes minutes.
const SILENCE: Duration = Duration::from_secs(600);

/// A guest of a shape, with the disks that it keeps over its boots. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Machine<'a> {
    shape: &'a Shape,
    root: &'a Root,
    shares: &'a [PathBuf],
    directory: PathBuf,
    /// Held: another run of the shape waits.
    _lock: File,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    qemu: Child,
    /// The other end of the guest's port.
    agent: BufReader<UnixStream>,
}

impl<'a> Machine<'a> {
    /// Makes its disks in `directory`, which is its own; [`Machine::boot`] starts it.
    pub(crate) fn new(shape: &'a Shape, root: &'a Root, shares: &'a [PathBuf], directory: PathBuf) -> Result<Self> {
        fs::create_dir_all(&directory).with_context(|| format!("failed to create {}", directory.display()))?;
        let lock = File::create(directory.join("lock")).context("failed to make the lock of the shape")?;
        lock.lock().context("failed to lock the shape")?;
        let machine = Self { shape, root, shares, directory, _lock: lock, running: None };
        let mut initramfs = fs::read(root.initramfs()).context("failed to read the root's initramfs")?;
        initramfs.extend(guest::scripts());
        fs::write(machine.file("initramfs"), initramfs).context("failed to write the initramfs")?;
        for (number, disk) in shape.disks.iter().enumerate() {
            let image = machine.file(&format!("disk{number}"));
            let made = File::create(&image).and_then(|file| file.set_len(u64::from(disk.size_mib) << 20));
            made.with_context(|| format!("failed to make {}", image.display()))?;
            let options = if disk.filesystem == "ext4" { "-qF" } else { "-qf" };
            check(Command::new(format!("mkfs.{}", disk.filesystem)).arg(options).arg(image))?;
        }
        Ok(machine)
    }

    pub(crate) fn shape(&self) -> &'a Shape {
        self.shape
    }

    /// Starts it, until its disks are mounted and it takes commands.
    pub(crate) fn boot(&mut self) -> Result<()> {
        let (ours, theirs) = UnixStream::pair().context("failed to make a pair of sockets")?;
        ours.set_read_timeout(Some(SILENCE))?;
        let theirs = OwnedFd::from(theirs);
        let mut qemu = self.qemu();
        qemu.stdin(theirs.try_clone()?).stdout(theirs).stderr(File::create(self.file("complaints"))?);
        let child = qemu.spawn().context("failed to run setpriv and qemu-system-x86_64")?;
        // The command holds the guest's end, too: with it the end of qemu would go unnoticed.
        drop(qemu);
        self.running = Some(Running { qemu: child, agent: BufReader::new(ours) });
        ensure!(self.read_line()?.as_deref() == Some("ready"), "the guest didn't boot\n{}", self.last_words());
        let mut printed = String::new();
        let status = self.command(&guest::setup(self.shape, self.shares), &mut |line| {
            printed = format!("{printed}\n{line}");
            ControlFlow::Continue(())
        })?;
        ensure!(status == Some(0), "the guest can't be what its shape says:{printed}\n{}", self.last_words());
        Ok(())
    }

    /// Runs a command of the guest's shell, and gives `line` what it prints, until it ends, or `line` breaks off: then
    /// there is no status and the command runs on.
    pub(crate) fn command(
        &mut self,
        command: &str,
        line: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Option<i32>> {
        self.send(command)?;
        loop {
            let Some(text) = self.read_line()? else {
                bail!("the guest died during: {command}\n{}", self.last_words())
            };
            // The status comes after the last line, or after what was printed without an end of line.
            let (text, status) = match text.split_once('\u{1}') {
                Some((text, status)) => (text, Some(status.parse().context("the guest's agent talks nonsense")?)),
                None => (text.as_str(), None),
            };
            if (status.is_none() || !text.is_empty()) && line(text).is_break() {
                return Ok(None);
            }
            if status.is_some() {
                return Ok(status);
            }
        }
    }

    /// Shuts the guest down in order, and boots it anew.
    pub(crate) fn reboot(&mut self) -> Result<()> {
        self.send("reboot")?;
        ensure!(self.read_line()?.is_none(), "the guest talks after its end\n{}", self.last_words());
        // qemu runs with -no-reboot and ends where a machine would be reset.
        self.end(false)?;
        self.boot()
    }

    /// Takes the power away: what the guest hasn't written to its disks is gone. Then boots it anew.
    pub(crate) fn cut_power(&mut self) -> Result<()> {
        self.end(true)?;
        self.boot()
    }

    fn end(&mut self, kill: bool) -> Result<()> {
        if let Some(mut running) = self.running.take() {
            if kill {
                running.qemu.kill().context("failed to kill qemu")?;
            }
            running.qemu.wait().context("failed to wait for qemu")?;
        }
        Ok(())
    }

    fn send(&mut self, line: &str) -> Result<()> {
        let Some(running) = &mut self.running else { bail!("the guest isn't running") };
        let sent = running.agent.get_mut().write_all(format!("{line}\n").as_bytes());
        sent.with_context(|| format!("the guest takes no command\n{}", self.last_words()))
    }

    /// The next line of the guest's agent; none if the guest is gone.
    fn read_line(&mut self) -> Result<Option<String>> {
        let Some(running) = &mut self.running else { bail!("the guest isn't running") };
        let mut bytes = Vec::new();
        match running.agent.read_until(b'\n', &mut bytes) {
            Ok(0) => Ok(None),
            Ok(_) => Ok(Some(String::from_utf8_lossy(&bytes).trim_end_matches(['\n', '\r']).to_owned())),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                bail!("the guest was silent for {} s\n{}", SILENCE.as_secs(), self.last_words())
            }
            Err(error) => Err(error).context("failed to read from the guest"),
        }
    }

    /// qemu's complaints and the end of the console, for errors.
    fn last_words(&self) -> String {
        const LINES: usize = 40;
        let read = |name| String::from_utf8_lossy(&fs::read(self.file(name)).unwrap_or_default()).into_owned();
        let console = read("console");
        let lines: Vec<&str> = console.lines().filter(|line| !line.trim().is_empty()).collect();
        let end = lines[lines.len().saturating_sub(LINES)..].join("\n");
        format!("{}the end of {}:\n{end}", read("complaints"), self.file("console").display())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn qemu(&self) -> Command {
        let shape = self.shape;
        // No guest outlives this process, however that ends.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "q35"]);
        // Emulated even where there is /dev/kvm: guests hang under nested virtualization that only half works.
        command.args(["-accel", "tcg,thread=multi", "-cpu", "max"]);
        command.args(["-smp", &shape.cpus().to_string(), "-m", &shape.memory_mib().to_string()]);
        let mut cpu = 0;
        for (number, node) in shape.nodes.iter().enumerate() {
            let last = cpu + node.cpus - 1;
            command.args(["-object", &format!("memory-backend-ram,id=memory{number},size={}M", node.memory_mib)]);
            command.args(["-numa", &format!("node,nodeid={number},cpus={cpu}-{last},memdev=memory{number}")]);
            cpu = last + 1;
        }
        // An emulated processor needs no mitigations, and its time stamp counter is sound.
        let mut arguments = vec!["console=ttyS0", "panic=-1", "mitigations=off", "tsc=reliable"];
        arguments.extend(shape.kernel_arguments);
        command.arg("-kernel").arg(self.root.kernel()).args(["-append", &arguments.join(" ")]);
        command.arg("-initrd").arg(self.file("initramfs"));
        command.args(["-serial", &format!("file:{}", self.file("console").display())]);
        // What a guest writes to the root is thrown away.
        let root = self.root.image().display().to_string();
        command.args(["-drive", &format!("file={root},format=raw,if=virtio,snapshot=on")]);
        for number in 0..shape.disks.len() {
            let image = self.file(&format!("disk{number}"));
            command.args(["-drive", &format!("file={},format=raw,if=virtio", image.display())]);
        }
        for (number, directory) in self.shares.iter().enumerate() {
            let path = directory.display().to_string().replace(',', ",,");
            let options = "security_model=none,readonly=on,multidevs=remap";
            command.args(["-fsdev", &format!("local,id=share{number},path={path},{options}")]);
            command.args(["-device", &format!("virtio-9p-pci,fsdev=share{number},mount_tag=share{number}")]);
        }
        command.args(["-chardev", "stdio,id=agent,signal=off", "-device", "virtio-serial-pci"]);
        command.args(["-device", "virtserialport,chardev=agent,name=keelson.agent"]);
        command
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        // It may have ended by itself; and if it can't be killed, the kernel does it when this process ends.
        let _ = self.end(true);
    }
}
