//! How long calls may take, and which may be many at once.

use std::time::Duration;

/// For what is answered from memory.
const AT_ONCE: Duration = Duration::from_secs(10);

/// For what only looks. Looking takes milliseconds, unless a disk hangs.
const LOOKING: Duration = Duration::from_secs(60);

/// For what changes something, longer than any client of Kubernetes' waits: the kubelet for two minutes, the sidecars for
/// less. It is the one who asks again that gets the answer then.
const CHANGING: Duration = Duration::from_secs(300);

/// What holds for the calls of a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// How long a client is kept waiting. The work goes on.
    pub(crate) longest: Duration,
    /// Whether it works on a disk, which may hang. What doesn't is answered however many of the others run: a driver that
    /// is busy is alive, and its livenessprobe hears that.
    pub(crate) works: bool,
}

/// The bounds of an RPC, by its name without its service's.
pub(crate) fn bounds(method: &str) -> Bounds {
    match method {
        "GetPluginInfo"
        | "GetPluginCapabilities"
        | "Probe"
        | "ControllerGetCapabilities"
        | "GroupControllerGetCapabilities"
        | "NodeGetCapabilities"
        | "NodeGetInfo" => Bounds { longest: AT_ONCE, works: false },
        "ValidateVolumeCapabilities"
        | "ListVolumes"
        | "GetCapacity"
        | "ListSnapshots"
        | "GetSnapshot"
        | "GetVolumeGroupSnapshot"
        | "ControllerGetVolume"
        | "ControllerListVolumeHealth"
        | "ControllerGetVolumeHealth"
        | "NodeGetVolumeStats"
        | "NodeGetVolumeHealth"
        | "NodeGetStorageHealth" => Bounds { longest: LOOKING, works: true },
        _ => Bounds { longest: CHANGING, works: true },
    }
}

/// How long a client waits, by its header `grpc-timeout`; sample: `15S`.
///
/// "TimeoutValue: positive integer as ASCII string of at most 8 digits; TimeoutUnit: H M S m u n" (gRPC over HTTP/2).
/// `None` for what isn't that, which tonic takes for no timeout as well.
pub(crate) fn client_timeout(header: &str) -> Option<Duration> {
    let (value, unit) = header.split_at_checked(header.len().checked_sub(1)?)?;
    if value.is_empty() || value.len() > 8 || !value.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value: u64 = value.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(value * 3600),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        for (header, expected) in [
            ("15S", Some(Duration::from_secs(15))),
            ("2M", Some(Duration::from_secs(120))),
            ("1H", Some(Duration::from_secs(3600))),
            ("250m", Some(Duration::from_millis(250))),
            ("99999999u", Some(Duration::from_micros(99_999_999))),
            ("7n", Some(Duration::from_nanos(7))),
            ("0m", Some(Duration::ZERO)),
            ("", None),
            ("S", None),
            ("5", None),
            ("+5S", None),
            ("-5S", None),
            ("5 S", None),
            ("5s", None),
            ("123456789S", None),
            ("5\u{00df}", None),
        ] {
            assert_eq!(client_timeout(header), expected, "{header:?}");
        }
    }

    #[test]
    fn who_waits_on_no_disk_waits_least() {
        assert_eq!(bounds("Probe"), Bounds { longest: AT_ONCE, works: false });
        assert_eq!(bounds("ListVolumes"), Bounds { longest: LOOKING, works: true });
        assert_eq!(bounds("CreateVolume"), Bounds { longest: CHANGING, works: true });
    }

    proptest! {
        #[test]
        fn no_header_makes_it_panic(header in ".*") {
            let _ = client_timeout(&header);
        }
    }
}
