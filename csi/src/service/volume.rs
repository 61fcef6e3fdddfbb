//! One volume that an operation holds: found in its pool, and nobody else's until the operation ends.

use std::{io, path::PathBuf, sync::Arc};

use keelson_host::Problem;
use uuid::Uuid;

use super::{Guard, Pending, State};
use crate::{
    kernel::{
        BindSource, Discard, HelperError, Hold, KernelError, LoopOptions, Presence, Request, filesystem, loop_device,
        path,
        superblock::{self, Signature},
    },
    policy::{
        Access, Capability, Content, FilesystemType, MountOptions, Provisioning, Settings, TargetPath, is_smaller,
    },
    store::{Attachment, LookupError, Pool, RecordError, Turn, Unavailable, VolumeRecord, content_path, data, image},
};

/// How many mounts may lie on top of each other before unmounting them is given up.
const DEEPEST_STACK: usize = 64;

/// The field of a request that names where a volume is published.
const TARGET: &str = "target_path";

/// A volume during one operation of the node service.
#[derive(Debug)]
pub(super) struct Volume<'a> {
    pub(super) state: &'a State,
    pub(super) pool: &'a Pool,
    _turn: Turn<'a>,
    guard: Arc<Guard>,
    pub(super) record: Arc<VolumeRecord>,
    pub(super) folder: PathBuf,
}

/// What can go wrong with a volume in every operation of the node service.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    #[error(transparent)]
    Pending(#[from] Pending),
    #[error(transparent)]
    Lookup(#[from] LookupError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    #[error(transparent)]
    Record(#[from] RecordError),
    /// It never can be used.
    #[error("{0}")]
    Unusable(Problem),
    /// It can be used once what is there is gone, or what is missing is there.
    #[error("{0}")]
    Occupied(Problem),
    #[error(
        "volume {id} was formatted as {filesystem} with UUID {wanted}, but its image shows {found}; it is never \
         formatted again: restore the image"
    )]
    LostFilesystem { id: String, filesystem: FilesystemType, wanted: Uuid, found: String },
    #[error("volume {id} has {wanted} bytes, but its image has {found}; restore the image")]
    WrongSize { id: String, wanted: u64, found: u64 },
    #[error("mounting volume {id} succeeded, but something else is mounted at {path}")]
    NotThere { id: String, path: TargetPath },
    #[error("volume {id} is mounted more than {DEEPEST_STACK} times at {path}")]
    Stacked { id: String, path: TargetPath },
    #[error(
        "something that is not volume {id} is mounted at {path} and is left alone; unmount it, or use another path"
    )]
    Covered { id: String, path: TargetPath },
}

impl VolumeError {
    /// A failed use of the path that a request gives in its field `at`.
    pub(super) fn path(at: &'static str, path: &TargetPath) -> impl Fn(io::Error) -> Self {
        move |error| {
            let problem = |wrong: &str, remedy: &str| Problem::new(at, path, wrong, remedy);
            match error.raw_os_error() {
                Some(libc::ELOOP) => Self::Unusable(problem(
                    "is or leads through a symbolic link",
                    "name the place itself; links are never followed, and never removed",
                )),
                Some(libc::ENOTDIR) => Self::Unusable(problem(
                    "is, or leads through, something that is no directory",
                    "remove that, or use another path",
                )),
                Some(libc::EEXIST) => Self::Unusable(problem(
                    "is something that the driver did not make, and is left alone",
                    "remove it, or use another path",
                )),
                Some(libc::ENAMETOOLONG) => Self::Unusable(problem(
                    "has a name longer than the filesystem allows",
                    "use at most 255 bytes between slashes",
                )),
                Some(libc::ENOTEMPTY) => Self::Occupied(problem(
                    "holds data that is not the volume's, and is left alone",
                    "move the data away, or use another path",
                )),
                Some(libc::ENOENT) => Self::Occupied(problem(
                    "is below a directory that doesn't exist",
                    "the caller must make the directory above it",
                )),
                _ => KernelError::path(path.as_path())(error).into(),
            }
        }
    }
}

impl<'a> Volume<'a> {
    /// Finds the volume and takes it for `operation`.
    pub(super) fn take(state: &'a State, id: &str, operation: &'static str) -> Result<Self, VolumeError> {
        let guard = Arc::new(state.in_flight.begin(id, operation)?);
        let (pool, record) = state.pools.locate::<VolumeRecord>(id)?;
        let turn = pool.enter()?;
        let folder = pool.folder(&*record);
        Ok(Self { state, pool, _turn: turn, guard, record, folder })
    }

    pub(super) fn id(&self) -> String {
        self.record.id.as_str().to_owned()
    }

    /// Where it is in the kernel right now.
    pub(super) fn presence(&self) -> Result<Presence, VolumeError> {
        let kind = self.record.content.kind();
        Ok(Presence::read(&self.state.settings.root, &content_path(&self.folder, kind), kind)?)
    }

    /// What is recorded and true: publications that are no longer mounted don't count.
    pub(super) fn attachment(&self, presence: &Presence) -> Result<Attachment, VolumeError> {
        let mut attachment = self.state.attachments.read(&self.record.id)?;
        let mut mounted = Vec::new();
        for publication in attachment.published {
            if presence.is_at(&publication.target)? {
                mounted.push(publication);
            }
        }
        attachment.published = mounted;
        Ok(attachment)
    }

    pub(super) fn write_stage(&self, attachment: &Attachment) -> Result<(), VolumeError> {
        Ok(self.state.attachments.write_stage(&self.record.id, attachment)?)
    }

    pub(super) fn write(&self, attachment: &Attachment) -> Result<(), VolumeError> {
        Ok(self.state.attachments.write(&self.record.id, attachment)?)
    }

    /// Whether it is staged at `path`: a filesystem is mounted there, a raw block volume has a loop device.
    pub(super) fn is_staged_at(&self, presence: &Presence, path: &TargetPath) -> Result<bool, VolumeError> {
        match self.record.content {
            Content::Block => Ok(!presence.devices().is_empty()),
            Content::Filesystem { .. } | Content::Directory | Content::Subvolume => Ok(presence.is_at(path)?),
        }
    }

    /// Makes it ready to be published: everything that is done once per node.
    pub(super) fn stage(&self, path: &TargetPath, capability: &Capability) -> Result<(), VolumeError> {
        // From here on its space may change.
        self.adopt();
        let before = self.presence()?;
        let staged = self.try_stage(&before, path, capability);
        if staged.is_err() {
            // The error of the step that failed is the one to tell.
            match self.undo_stage(&before, path) {
                Ok(()) => self.settle_if_gone(),
                Err(error) => tracing::warn!(volume = %self.record.id, %error, "failed to undo a failed stage"),
            }
        }
        staged
    }

    /// Takes back what a failed stage did; `before` is where the volume was until then.
    fn undo_stage(&self, before: &Presence, path: &TargetPath) -> Result<(), VolumeError> {
        if !before.is_at(path)? {
            self.unmount(path, self.presence()?)?;
        }
        if before.devices().is_empty() { self.detach() } else { Ok(()) }
    }

    fn try_stage(&self, presence: &Presence, path: &TargetPath, capability: &Capability) -> Result<(), VolumeError> {
        self.pool.check_writable()?;
        let options = match &capability.access {
            Access::Block => return self.attach(capability.is_read_only()).map(drop),
            Access::Mount { options, .. } => options.clone().with_read_only(capability.is_read_only()),
        };
        // Mounted but not recorded: the state directory was lost.
        if presence.is_at(path)? {
            return Ok(());
        }
        let request = match self.record.content {
            Content::Filesystem { filesystem, uuid } => {
                self.check_filesystem(filesystem, uuid)?;
                // Also a filesystem that is only read may have a journal to replay.
                let device = self.attach(false)?;
                Request::Mount { filesystem, device, target: path.clone(), options }
            }
            Content::Block | Content::Directory | Content::Subvolume => {
                let source = BindSource::Own(data(&self.folder));
                Request::Bind { source, target: path.clone(), options }
            }
        };
        self.run(&request)?;
        self.expect_at(path)?;
        self.grow_if_smaller(path)
    }

    /// Lets the filesystem that is mounted at `path` have all of the volume: a copy may be larger than its source, and a
    /// growth may have been interrupted. One that can't grow stays as it is.
    pub(super) fn grow_if_smaller(&self, path: &TargetPath) -> Result<(), VolumeError> {
        let Content::Filesystem { filesystem, uuid } = self.record.content else { return Ok(()) };
        if !is_smaller(self.check_filesystem(filesystem, uuid)?, self.record.bytes) {
            return Ok(());
        }
        // Who only reads has what there is.
        if filesystem::is_read_only(path.as_path()).map_err(KernelError::path(path.as_path()))? {
            return Ok(());
        }
        match self.run(&Request::Grow { filesystem, target: path.clone(), bytes: self.record.bytes }) {
            // The data is there, whatever the size: it can be used as it is.
            Err(VolumeError::Kernel(KernelError::Helper(error @ HelperError::Step { .. }))) => {
                tracing::warn!(volume = %self.record.id, %error, "the filesystem stays smaller than its volume");
                Ok(())
            }
            done => done,
        }
    }

    /// A second opinion before mounting: what was formatted must still show it. Gives the size of the filesystem.
    pub(super) fn check_filesystem(&self, filesystem: FilesystemType, wanted: Uuid) -> Result<u64, VolumeError> {
        let path = image(&self.folder);
        let found =
            std::fs::File::open(&path).and_then(|file| superblock::read(&file)).map_err(KernelError::path(&path))?;
        let found = match found {
            Signature::Filesystem(found) if (found.filesystem, found.uuid) == (filesystem, wanted) => {
                return Ok(found.bytes);
            }
            Signature::Filesystem(found) => format!("{} {}", found.filesystem, found.uuid),
            Signature::Other(name) => name.to_owned(),
            Signature::None => "no filesystem".to_owned(),
        };
        Err(VolumeError::LostFilesystem { id: self.id(), filesystem, wanted, found })
    }

    /// Binds a loop device of the right size to the image, and gives its node.
    fn attach(&self, read_only: bool) -> Result<PathBuf, VolumeError> {
        let (root, path) = (&self.state.settings.root, image(&self.folder));
        let label = self.record.id.as_str();
        let options = LoopOptions { read_only, ..self.loop_options() };
        let device = loop_device::attach(root, &path, label, &options).map_err(KernelError::from)?;
        let found = device.bytes().map_err(KernelError::from)?;
        // More is what an interrupted growth left; its retry finishes it.
        if found < self.record.bytes {
            return Err(VolumeError::WrongSize { id: self.id(), wanted: self.record.bytes, found });
        }
        let (node, direct_io) = (device.node.display(), device.direct_io);
        tracing::debug!(volume = %self.record.id, device = %node, direct_io, read_only, "loop device is bound");
        Ok(device.node)
    }

    /// What its loop devices are to be like.
    pub(super) fn loop_options(&self) -> LoopOptions {
        let discard = match self.record.provisioning {
            Provisioning::Thin => Discard::Allowed,
            Provisioning::Thick => Discard::Refused,
        };
        let Settings { read_ahead_kib, direct_io, .. } = self.record.settings;
        // xfs aligns direct I/O of a file that shares blocks to its own blocks: the first snapshot must not change what a
        // raw block volume's sectors are.
        let block_bytes = self.pool.abilities().shares_blocks.then_some(loop_device::LARGEST_BLOCK);
        LoopOptions { read_only: false, direct_io: direct_io.unwrap_or(true), block_bytes, read_ahead_kib, discard }
    }

    /// Lets go of its loop devices.
    pub(super) fn detach(&self) -> Result<(), VolumeError> {
        match self.record.content {
            Content::Block | Content::Filesystem { .. } => {}
            Content::Directory | Content::Subvolume => return Ok(()),
        }
        let left = loop_device::detach(&self.state.settings.root, &image(&self.folder)).map_err(KernelError::from)?;
        if left > 0 {
            tracing::warn!(volume = %self.record.id, left, "others still have a loop device open; it goes when they do");
        }
        Ok(())
    }

    /// Tells its pool that somebody may write to it.
    pub(super) fn adopt(&self) {
        self.pool.attached(&self.record.id);
    }

    /// Tells its pool that nobody writes to it, if that can be seen.
    fn settle_if_gone(&self) {
        if self.presence().is_ok_and(|presence| presence.use_of().is_none()) {
            self.settle();
        }
    }

    /// Tells its pool that nobody writes to it any more.
    pub(super) fn settle(&self) {
        self.pool.detached(&self.record.id);
    }

    /// Mounts it at `target`, which is made for that where nothing is.
    pub(super) fn publish(
        &self,
        staging: &TargetPath,
        target: &TargetPath,
        capability: &Capability,
        read_only: bool,
    ) -> Result<(), VolumeError> {
        let made = match &capability.access {
            Access::Block => path::make_file(target),
            Access::Mount { .. } => path::make_directory(target),
        }
        .map_err(VolumeError::path(TARGET, target))?;
        let published = self.try_publish(staging, target, capability, read_only);
        if published.is_err() {
            let undone = self.presence().and_then(|presence| self.unmount(target, presence));
            let undone = undone.and_then(|_| if made { remove(target) } else { Ok(()) });
            // The error of the step that failed is the one to tell.
            if let Err(error) = undone {
                tracing::warn!(volume = %self.record.id, %target, %error, "failed to undo a failed publish");
            }
        }
        published
    }

    fn try_publish(
        &self,
        staging: &TargetPath,
        target: &TargetPath,
        capability: &Capability,
        read_only: bool,
    ) -> Result<(), VolumeError> {
        let (source, options) = match &capability.access {
            // A bind mount can't keep a device from being written to: what is read-only has a device that is.
            Access::Block => (BindSource::Own(self.attach(read_only)?), MountOptions::NONE),
            Access::Mount { options, .. } => {
                (BindSource::Requested(staging.clone()), options.clone().with_read_only(read_only))
            }
        };
        self.run(&Request::Bind { source, target: target.clone(), options })?;
        self.expect_at(target)
    }

    /// Unmounts it at `target`, as often as it takes, and removes what was made to mount it on.
    pub(super) fn unpublish(&self, target: &TargetPath, presence: Presence) -> Result<(), VolumeError> {
        let presence = self.unmount(target, presence)?;
        self.expect_uncovered(target, &presence)?;
        remove(target)
    }

    /// Unmounts it at `path`, as often as it takes, and gives where it is then; `presence` is where it is now. What
    /// others mounted there stays.
    pub(super) fn unmount(&self, path: &TargetPath, mut presence: Presence) -> Result<Presence, VolumeError> {
        for _ in 0..DEEPEST_STACK {
            if !presence.is_at(path)? {
                return Ok(presence);
            }
            self.run(&Request::Unmount { target: path.clone() })?;
            presence = self.presence()?;
        }
        Err(VolumeError::Stacked { id: self.id(), path: path.clone() })
    }

    /// Checks that nobody else's mount is at `path`.
    pub(super) fn expect_uncovered(&self, path: &TargetPath, presence: &Presence) -> Result<(), VolumeError> {
        if presence.is_covered(path) && !presence.is_at(path)? {
            return Err(VolumeError::Covered { id: self.id(), path: path.clone() });
        }
        Ok(())
    }

    pub(super) fn run(&self, request: &Request) -> Result<(), VolumeError> {
        Ok(self.state.settings.helper.run(request, Arc::clone(&self.guard) as Hold).map_err(KernelError::from)?)
    }

    /// Believes the mount table, not a system call that said it succeeded.
    fn expect_at(&self, path: &TargetPath) -> Result<(), VolumeError> {
        if self.presence()?.is_at(path)? {
            return Ok(());
        }
        Err(VolumeError::NotThere { id: self.id(), path: path.clone() })
    }
}

fn remove(target: &TargetPath) -> Result<(), VolumeError> {
    path::remove(target).map_err(VolumeError::path(TARGET, target))
}
