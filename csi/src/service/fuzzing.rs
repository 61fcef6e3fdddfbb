//! Requests that hold anything, up to where an effect would begin.

use std::path::Component;

use keelson_host::Problem;
use keelson_proto::csi::v1::{
    ControllerModifyVolumeRequest, CreateVolumeRequest, GetCapacityRequest, ListVolumesRequest,
    NodeExpandVolumeRequest, NodePublishVolumeRequest, NodeStageVolumeRequest, ValidateVolumeCapabilitiesRequest,
    VolumeCapability,
};
use prost::Message;

use super::{
    create::{CreateError, Wish, capabilities, fit},
    request::required,
};
use crate::{
    PoolKind,
    policy::{
        Abilities, Access, Capability, Changes, ContentKind, FilesystemType, InvalidToken, MountOptions, OutOfRange,
        Page, Parameters, Rejected, Settings, SizeRange, TargetPath, VolumeId, content_for, page,
    },
};

const KINDS: [ContentKind; 6] = [
    ContentKind::Block,
    ContentKind::Filesystem(FilesystemType::Ext4),
    ContentKind::Filesystem(FilesystemType::Xfs),
    ContentKind::Filesystem(FilesystemType::Btrfs),
    ContentKind::Directory,
    ContentKind::Subvolume,
];

/// The first byte says of which message the rest is.
pub(crate) fn check(bytes: &[u8]) {
    let Some((which, message)) = bytes.split_first() else { return };
    match which {
        b'c' => decoded(message, create_volume),
        b'm' => decoded(message, |request: &ControllerModifyVolumeRequest| {
            string("volume_id", &request.volume_id);
            changes(Changes::parse(&request.mutable_parameters));
        }),
        b'g' => decoded(message, |request: &GetCapacityRequest| {
            named("parameters", Parameters::parse(&request.parameters));
            all_capabilities(&request.volume_capabilities, &Parameters::default());
        }),
        b'v' => decoded(message, |request: &ValidateVolumeCapabilitiesRequest| {
            string("volume_id", &request.volume_id);
            all_capabilities(&request.volume_capabilities, &Parameters::default());
        }),
        b'l' => decoded(message, list),
        b's' => decoded(message, |request: &NodeStageVolumeRequest| {
            target(&request.staging_target_path);
            capability("volume_capability", request.volume_capability.as_ref());
        }),
        b'p' => decoded(message, |request: &NodePublishVolumeRequest| {
            target(&request.target_path);
            target(&request.staging_target_path);
            capability("volume_capability", request.volume_capability.as_ref());
        }),
        b'e' => decoded(message, |request: &NodeExpandVolumeRequest| {
            target(&request.volume_path);
            range(SizeRange::parse(request.capacity_range.as_ref()));
        }),
        _ => {}
    }
}

fn decoded<M: Message + Default>(message: &[u8], check: impl Fn(&M)) {
    if let Ok(message) = M::decode(message) {
        check(&message);
    }
}

fn create_volume(request: &CreateVolumeRequest) {
    match Wish::parse(request, "node-a") {
        Ok(wish) => {
            assert!(!wish.name.is_empty() && wish.name.len() <= 128 && !wish.name.contains('\0'), "{:?}", wish.name);
            assert!(!wish.capabilities.is_empty());
            wish.capabilities.iter().for_each(fits_somewhere);
            changes(Ok(wish.changes));
            range(Ok(wish.range));
        }
        Err(CreateError::Invalid(problem)) => {
            let fields =
                ["name", "secrets", "parameters", "mutable_parameters", "volume_capabilities", "volume_content_source"];
            assert!(fields.iter().any(|field| problem.path.starts_with(field)), "{problem}");
            assert!(!problem.wrong.is_empty() && !problem.remedy.is_empty(), "{problem}");
        }
        Err(CreateError::Size(error)) => range(Err(error)),
        Err(other) => panic!("{other:?}"),
    }
}

/// A problem names the field that was looked at.
fn named<T>(at: &str, parsed: Result<T, Problem>) {
    if let Err(problem) = parsed {
        assert!(problem.path.starts_with(at) && !problem.wrong.is_empty() && !problem.remedy.is_empty(), "{problem}");
    }
}

fn string(at: &str, text: &str) {
    let found = required(at, text);
    assert_eq!(found.is_ok(), (1..=128).contains(&text.len()));
    named(at, found);
    // What isn't an id of ours never becomes a path.
    if let Ok(id) = text.parse::<VolumeId>() {
        assert!(std::path::Path::new(id.as_str()).components().all(|part| part == Component::Normal(text.as_ref())));
    }
}

fn target(text: &str) {
    match TargetPath::try_from(text.to_owned()) {
        Ok(path) => {
            let plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
            assert!(path.as_path().is_absolute() && path.as_path().components().all(plain), "{path}");
            assert_eq!(TargetPath::try_from(path.to_string()), Ok(path.clone()));
            assert_eq!(path.parent().join(path.name()), path.as_path());
        }
        Err(reason) => assert!(!reason.is_empty()),
    }
}

/// A size that is chosen is one that the request admits and a volume of the kind can have.
fn range(parsed: Result<SizeRange, OutOfRange>) {
    let range = match parsed {
        Ok(range) => range,
        Err(error) => return assert!(error.to_string().starts_with("capacity_range"), "{error}"),
    };
    for kind in KINDS {
        for (enforced, source) in [(true, 0), (true, 3 << 30), (false, 0), (false, 5)] {
            match range.choose(kind, enforced, source) {
                Ok(bytes) => {
                    assert!(range.admits(bytes) && bytes >= source, "{range:?} {kind:?} {bytes}");
                    assert!(i64::try_from(bytes).is_ok(), "{bytes}");
                    let whole = bytes >= SizeRange::smallest(kind, true) && bytes % 4096 == 0;
                    assert!(whole || !enforced, "{kind:?} {bytes}");
                }
                Err(error) => assert!(error.to_string().starts_with("capacity_range"), "{error}"),
            }
        }
    }
}

fn changes(parsed: Result<Changes, Problem>) {
    let parsed = match parsed {
        Ok(parsed) => parsed,
        Err(problem) => return named("mutable_parameters", Err::<(), _>(problem)),
    };
    let settings = Settings::default().with(&parsed);
    assert_eq!(settings.with(&parsed), settings);
    for kind in KINDS {
        named("mutable_parameters", fit(&parsed, kind, Abilities::least(PoolKind::Image)));
    }
}

fn all_capabilities(asked: &[VolumeCapability], parameters: &Parameters) {
    match capabilities(asked, parameters) {
        Ok(parsed) => {
            assert_eq!(parsed.len(), asked.len());
            for pool in [PoolKind::Image, PoolKind::Directory, PoolKind::Subvolume] {
                match content_for(pool, &parsed) {
                    Ok(kind) => assert!(parsed.iter().all(|capability| capability.fits(kind).is_ok()), "{kind:?}"),
                    Err(reason) => assert!(!reason.is_empty()),
                }
            }
        }
        Err(Rejected::Invalid(problem) | Rejected::Unsupported(problem)) => {
            named("volume_capabilities", Err::<(), _>(problem));
        }
    }
}

fn capability(at: &str, asked: Option<&VolumeCapability>) {
    match Capability::parse(at, asked) {
        Ok(parsed) => fits_somewhere(&parsed),
        Err(Rejected::Invalid(problem) | Rejected::Unsupported(problem)) => named(at, Err::<(), _>(problem)),
    }
}

/// It is recorded and read again as the same; its mount flags don't show.
fn fits_somewhere(parsed: &Capability) {
    let again: Option<Capability> = serde_json::to_vec(parsed).ok().and_then(|text| serde_json::from_slice(&text).ok());
    assert_eq!(again.as_ref(), Some(parsed));
    for kind in KINDS {
        assert_ne!(parsed.fits(kind).err().as_deref(), Some(""));
    }
    if let Access::Mount { options, .. } = &parsed.access {
        check_options(options);
    }
}

fn check_options(options: &MountOptions) {
    assert!(options.filesystem.iter().all(|option| !option.is_empty() && !option.contains('\0')));
    assert_eq!(options.clone().with_read_only(true).with_read_only(false), options.clone().with_read_only(true));
    let shown = format!("{options:?}");
    assert!(options.filesystem.iter().all(|option| option.len() < 24 || !shown.contains(option.as_str())), "{shown}");
}

/// Pages, one after the other, hold each entry once.
fn list(request: &ListVolumesRequest) {
    let ids: Vec<VolumeId> = (0..5_u8).filter_map(|index| format!("v1-{index:032x}").parse().ok()).collect();
    let after = |start: Option<&VolumeId>, count: usize| {
        let rest = ids.iter().filter(|id| start.is_none_or(|start| *id > start));
        Ok::<_, InvalidToken>(rest.take(count).cloned().collect())
    };
    let most = usize::try_from(request.max_entries).unwrap_or(1);
    let (mut token, mut seen) = (request.starting_token.clone(), Vec::new());
    loop {
        let Ok(Page { entries, next_token }) = page(&token, most, after, ToString::to_string) else {
            return assert!(seen.is_empty(), "{token}");
        };
        assert!(most == 0 || entries.len() <= most);
        seen.extend(entries);
        if next_token.is_empty() {
            break;
        }
        token = next_token;
    }
    let start = request.starting_token.parse::<VolumeId>().ok();
    assert_eq!(seen, after(start.as_ref(), usize::MAX).unwrap_or_default());
}
