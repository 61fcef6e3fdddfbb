//! Making the content of a new volume, in a folder that is no volume yet.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::Arc,
};

use uuid::Uuid;

use super::{
    CreateError, State,
    origin::{self, Origin},
};
use crate::{
    kernel::{
        Hold, content,
        format::format,
        reflink,
        superblock::{self, Signature},
    },
    policy::{Content, ContentKind, FilesystemType, Provisioning},
    store::{Pool, StoreError, data, image},
};

/// What is to be made.
pub(super) struct Plan<'a> {
    pub(super) pool: &'a Pool,
    pub(super) kind: ContentKind,
    pub(super) bytes: u64,
    pub(super) provisioning: Provisioning,
    pub(super) origin: Option<&'a Origin<'a>>,
}

/// The content of a volume that isn't one yet.
pub(super) struct Made {
    pub(super) content: Content,
    /// Not synced yet; none of a directory or subvolume.
    pub(super) image: Option<File>,
    /// At most so many of its bytes are a template's.
    pub(super) template_bytes: u64,
}

impl Plan<'_> {
    /// Makes the content in `folder`.
    pub(super) fn carry_out(&self, state: &State, folder: &Path, hold: &Hold) -> Result<Made, CreateError> {
        let path = if self.kind.is_image() { image(folder) } else { data(folder) };
        let failed = StoreError::io("make", &path);
        if let Some(origin) = self.origin {
            return self.copy(origin, &path);
        }
        let made = |content, image| Made { content, image, template_bytes: 0 };
        let made = match self.kind {
            ContentKind::Directory => {
                content::create_directory(&path).map_err(&failed)?;
                made(Content::Directory, None)
            }
            ContentKind::Subvolume => {
                content::create_subvolume(&path).map_err(&failed)?;
                made(Content::Subvolume, None)
            }
            ContentKind::Block => {
                made(Content::Block, Some(content::create_image(&path, self.bytes).map_err(&failed)?))
            }
            ContentKind::Filesystem(filesystem) => match self.clone_template(state, filesystem, &path, hold)? {
                Some(made) => made,
                None => {
                    let uuid = Uuid::new_v4();
                    let image = mkfs(state, filesystem, &path, self.bytes, uuid, hold)?;
                    made(Content::Filesystem { filesystem, uuid }, Some(image))
                }
            },
        };
        if let Some(image) = &made.image {
            // Only now: mkfs makes holes where it wants zeros.
            self.fill(image).map_err(failed)?;
        }
        Ok(made)
    }

    fn fill(&self, image: &File) -> std::io::Result<()> {
        match self.provisioning {
            Provisioning::Thin => Ok(()),
            Provisioning::Thick => content::fill_holes(image, self.bytes),
        }
    }

    fn copy(&self, origin: &Origin<'_>, path: &Path) -> Result<Made, CreateError> {
        let failed = StoreError::io("copy to", path);
        let progress = origin::progress("copying", origin.source.as_str().into(), origin.bytes);
        let shares_blocks = self.pool.abilities().shares_blocks;
        let image = content::copy(&origin.path, path, self.kind, shares_blocks, false, progress).map_err(&failed)?;
        if let Some(image) = &image {
            image.set_len(self.bytes).and_then(|()| self.fill(image)).map_err(&failed)?;
        }
        let content = with_own_identity(&origin.content, image.as_ref())?;
        Ok(Made { content, image, template_bytes: origin.template_bytes })
    }

    /// Makes a template at `path`: a copy of what was formatted, without what mkfs only allocated. For xfs that is its log
    /// of 64 MiB, which on btrfs can't be given back otherwise: the first block in use holds all of it.
    fn template(
        &self,
        state: &State,
        filesystem: FilesystemType,
        path: &Path,
        hold: &Hold,
    ) -> Result<File, CreateError> {
        let formatted = path.with_extension("formatted");
        match fs::remove_file(&formatted) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(StoreError::io("remove", &formatted)(error).into());
            }
            _ => {}
        }
        let source = mkfs(state, filesystem, &formatted, self.bytes, Uuid::new_v4(), hold)?;
        let failed = StoreError::io("make the template", path);
        let template = content::create_image(path, self.bytes).map_err(&failed)?;
        reflink::copy_apart(&source, &template).map_err(&failed)?;
        fs::remove_file(&formatted).map_err(failed)?;
        Ok(template)
    }

    /// A new filesystem as a clone of a template, where the pool's filesystem can make one at all.
    fn clone_template(
        &self,
        state: &State,
        filesystem: FilesystemType,
        path: &Path,
        hold: &Hold,
    ) -> Result<Option<Made>, CreateError> {
        // Each copy of a btrfs needs all its metadata written anew to get an identity of its own.
        if !self.pool.abilities().shares_blocks || filesystem == FilesystemType::Btrfs {
            return Ok(None);
        }
        let make = |half: &Path| self.template(state, filesystem, half, hold);
        let template = match self.pool.template(filesystem, self.bytes)? {
            Some(template) => template,
            None => match self.pool.make_template(filesystem, self.bytes, make)? {
                Some(template) => template,
                None => return Ok(None),
            },
        };
        let Some(head) = self.pool.template_head(filesystem, self.bytes, &template)? else {
            tracing::warn!(pool = self.pool.settings.name, %filesystem, bytes = self.bytes, "a template is damaged");
            self.pool.drop_template(filesystem, self.bytes)?;
            return Ok(None);
        };
        let measured = template.metadata().map_err(StoreError::io("look at the template of", path))?;
        let template_bytes = measured.blocks().saturating_mul(512);
        let image = reflink::clone_file(&template, path).map_err(CreateError::Clone)?;
        let uuid = match filesystem {
            FilesystemType::Ext4 => {
                let uuid = Uuid::new_v4();
                head.write_ext4(&image, uuid).map_err(CreateError::Identity)?;
                uuid
            }
            // They are mounted with nouuid.
            FilesystemType::Xfs | FilesystemType::Btrfs => head.uuid(),
        };
        let content = Content::Filesystem { filesystem, uuid };
        Ok(Some(Made { content, image: Some(image), template_bytes }))
    }
}

/// Gives a copied filesystem an identity of its own, where the kernel mounts no two of one: btrfs takes disks of one fsid
/// for one filesystem. xfs is mounted with `nouuid`. ext4 asks for nothing, and keeps the UUID: its journal can hold the
/// superblock, and so the old UUID, which the first mount would write back.
fn with_own_identity(content: &Content, image: Option<&File>) -> Result<Content, CreateError> {
    match (content, image) {
        (Content::Filesystem { filesystem: filesystem @ FilesystemType::Btrfs, .. }, Some(image)) => {
            let uuid = Uuid::new_v4();
            superblock::set_btrfs_fsid(image, uuid).map_err(CreateError::Identity)?;
            Ok(Content::Filesystem { filesystem: *filesystem, uuid })
        }
        _ => Ok(content.clone()),
    }
}

/// Makes an image with a filesystem, and looks whether it is there.
fn mkfs(
    state: &State,
    filesystem: FilesystemType,
    path: &Path,
    bytes: u64,
    uuid: Uuid,
    hold: &Hold,
) -> Result<File, CreateError> {
    let image = content::create_image(path, bytes).map_err(StoreError::io("create", path))?;
    format(&state.settings.helper, filesystem, path, uuid, Arc::clone(hold))?;
    match superblock::read(&image).map_err(StoreError::io("read", path))? {
        Signature::Filesystem(found) if (found.filesystem, found.uuid) == (filesystem, uuid) => Ok(image),
        _ => Err(CreateError::NotFormatted { filesystem, uuid, image: path.display().to_string() }),
    }
}
