//! The log of calls: what each call was asked, how it ended, and where its time went.
//!
//! A line of JSON per call in the network's directory, so that an operator can see what happened after the processes
//! are gone. Nothing depends on it: a line that can't be written is lost, and the call none the worse for it.

use std::{
    cell::RefCell,
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

/// The log's name in the network's directory, and the name of the one before it.
pub(crate) const LOG: &str = "calls.log";
pub(crate) const EARLIER_LOG: &str = "calls.log.1";

/// A log that has become this long becomes the earlier one.
const LONGEST_LOG: u64 = 512 * 1024;

/// What doesn't fit any more is summed up, or cut.
const MOST_PHASES: usize = 64;
const MOST_NOTES: usize = 64;
const LONGEST_TEXT: usize = 4096;

/// One call, as a line of the log holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Call {
    /// When it ended: milliseconds since 1970, UTC.
    pub time_ms: u64,
    /// `CNI_COMMAND`.
    pub verb: String,
    /// The container's id; empty for GC and STATUS, as is what follows.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub container_id: String,
    /// The interface in the container.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ifname: String,
    /// `namespace/name` of the Pod, where the runtime tells.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub pod: String,
    /// The error's code, 0 for success.
    pub code: u32,
    /// The error's message and details.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The error number, if the kernel refused something.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errno: Option<i32>,
    /// From the process's start of work to its answer.
    pub duration_us: u64,
    /// Where the time went, in the order in which the phases ended. Time in a phase within another counts once.
    pub phases: Vec<Phase>,
    /// What was said beside the result.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// The trace that the runtime's call belongs to, from `TRACEPARENT`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
}

/// A part of a call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Phase {
    /// `parse`, `lock`, `store`, or what the kernel was asked to do.
    pub name: String,
    /// How long it took, without the phases within it.
    pub duration_us: u64,
}

struct Recorder {
    started: Instant,
    phases: Vec<(String, Duration)>,
    /// What the phases within the current one took.
    within: Duration,
    notes: Vec<String>,
}

thread_local! {
    /// Only a call is recorded; the daemon, which uses the same functions, is not.
    static RECORDER: RefCell<Option<Recorder>> = const { RefCell::new(None) };
}

/// Begins to record this thread's call.
pub(crate) fn start() {
    let recorder = Recorder { started: Instant::now(), phases: Vec::new(), within: Duration::ZERO, notes: Vec::new() };
    RECORDER.set(Some(recorder));
}

/// Says something to the operator beside the result: on stderr, and in the log.
pub(crate) fn note(text: String) {
    eprintln!("keelson-cni: {text}");
    RECORDER.with_borrow_mut(|recorder| {
        if let Some(recorder) = recorder.as_mut().filter(|recorder| recorder.notes.len() < MOST_NOTES) {
            recorder.notes.push(cut(text));
        }
    });
}

/// Measures until it is dropped.
pub(crate) struct Measure {
    running: Option<(String, Instant, Duration)>,
}

/// Begins a phase.
pub(crate) fn phase(name: &str) -> Measure {
    RECORDER.with_borrow_mut(|recorder| Measure {
        running: recorder
            .as_mut()
            .map(|recorder| (name.to_owned(), Instant::now(), std::mem::take(&mut recorder.within))),
    })
}

impl Drop for Measure {
    fn drop(&mut self) {
        let Some((name, started, outer)) = self.running.take() else { return };
        let elapsed = started.elapsed();
        RECORDER.with_borrow_mut(|recorder| {
            let Some(recorder) = recorder else { return };
            let own = elapsed.saturating_sub(recorder.within);
            recorder.within = outer + elapsed;
            if let Some((_, sum)) = recorder.phases.iter_mut().find(|(known, _)| *known == name) {
                *sum += own;
            } else if recorder.phases.len() < MOST_PHASES {
                recorder.phases.push((name, own));
            } else if let Some((last, sum)) = recorder.phases.last_mut() {
                "more".clone_into(last);
                *sum += own;
            }
        });
    }
}

/// Completes `call` with what was recorded and writes it into the log in `directory`, if that is there.
pub(crate) fn finish(directory: &Path, mut call: Call, trace_parent: Option<&str>) {
    let Some(recorder) = RECORDER.take() else { return };
    let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    call.time_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    call.duration_us = micros(recorder.started.elapsed());
    call.phases =
        recorder.phases.into_iter().map(|(name, sum)| Phase { name: cut(name), duration_us: micros(sum) }).collect();
    call.notes = recorder.notes;
    call.message = cut(call.message);
    call.trace_id = trace_parent.and_then(trace_id).map(str::to_owned);
    // Where it can't be written, there is nobody to tell.
    let _ = append(directory, &call);
}

/// Appends a line by one write, so that those of calls at the same time don't mix; no link is followed.
fn append(directory: &Path, call: &Call) -> io::Result<()> {
    let mut line = serde_json::to_vec(call)?;
    line.push(b'\n');
    let path = directory.join(LOG);
    let mut options = File::options();
    let mut file = options.append(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(&path)?;
    file.write_all(&line)?;
    let written = file.metadata()?;
    // Of those that find it long, the one with the lock renames it, and only what it has written to itself.
    if written.len() >= LONGEST_LOG && file.try_lock().is_ok() {
        let current = fs::symlink_metadata(&path)?;
        if (current.dev(), current.ino()) == (written.dev(), written.ino()) {
            fs::rename(&path, directory.join(EARLIER_LOG))?;
        }
    }
    Ok(())
}

/// The last calls about one attachment of `network`, whose records are below `data_dir`; the newest last.
///
/// The log is capped, so older calls are forgotten. A line that can't be read is passed over, and no log is an empty one.
#[must_use]
pub fn last_calls(data_dir: &Path, network: &str, container_id: &str, ifname: &str, most: usize) -> Vec<Call> {
    let directory = data_dir.join(network);
    let mut calls = Vec::new();
    for name in [EARLIER_LOG, LOG] {
        let bytes = fs::read(directory.join(name)).unwrap_or_default();
        let lines = bytes.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<Call>(line).ok());
        calls.extend(lines.filter(|call| call.container_id == container_id && call.ifname == ifname));
    }
    calls.split_off(calls.len().saturating_sub(most))
}

/// The trace's id of a `traceparent` (W3C Trace Context, section 3.2):
/// `00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01`. A malformed one means nothing.
fn trace_id(text: &str) -> Option<&str> {
    let is_hex = |part: &str, length: usize| {
        part.len() == length && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let is_id = |part: &str, length: usize| is_hex(part, length) && part.bytes().any(|byte| byte != b'0');
    let mut parts = text.split('-');
    let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    // Later versions may have more parts.
    let is_known = is_hex(version, 2) && version != "ff" && (version != "00" || parts.next().is_none());
    (is_known && is_id(trace, 32) && is_id(parent, 16) && is_hex(flags, 2)).then_some(trace)
}

fn cut(mut text: String) -> String {
    // Not in the middle of a character, of which none is longer than four bytes.
    let end = (0..4).map(|back| LONGEST_TEXT - back).find(|end| text.is_char_boundary(*end));
    if text.len() > LONGEST_TEXT {
        text.truncate(end.unwrap_or(0));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::thread;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn time_within_a_phase_counts_once() {
        start();
        {
            let _outer = phase("outer");
            let _inner = phase("inner");
            thread::sleep(Duration::from_millis(20));
        }
        drop(phase("outer"));
        let recorder = RECORDER.take().unwrap();
        let names: Vec<&str> = recorder.phases.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["inner", "outer"]);
        assert!(recorder.phases[0].1 >= Duration::from_millis(20), "{:?}", recorder.phases);
        let sum: Duration = recorder.phases.iter().map(|(_, duration)| *duration).sum();
        assert!(sum <= recorder.started.elapsed());
        assert!(recorder.phases[1].1 < recorder.phases[0].1, "{:?}", recorder.phases);
    }

    #[test]
    fn phases_without_end_are_summed_up() {
        start();
        for number in 0..1000 {
            drop(phase(&format!("delete the link {number}")));
        }
        let recorder = RECORDER.take().unwrap();
        assert_eq!((recorder.phases.len(), recorder.phases[63].0.as_str()), (64, "more"));
    }

    #[test]
    fn calls_at_once_are_whole_lines_and_the_log_is_capped() {
        let directory = tempfile::tempdir().unwrap();
        let network = directory.path().join("net");
        // Without the directory there is nothing to log.
        start();
        finish(&network, Call::default(), None);
        assert!(!network.exists());
        fs::create_dir(&network).unwrap();
        thread::scope(|scope| {
            for thread in 0..8 {
                let network = &network;
                scope.spawn(move || {
                    for number in 0..100 {
                        start();
                        let message = format!("a \"message\"\u{1b}[31m\n{}", "x".repeat(2000));
                        let container_id = format!("{thread}-{number}");
                        let call = Call { container_id, ifname: "eth0".to_owned(), message, ..Call::default() };
                        finish(network, call, None);
                    }
                });
            }
        });
        let size = |name: &str| fs::metadata(network.join(name)).unwrap().len();
        assert!(size(LOG) < LONGEST_LOG + 3000 && size(EARLIER_LOG) < LONGEST_LOG + 8 * 3000);
        let text = fs::read_to_string(network.join(EARLIER_LOG)).unwrap();
        assert!(text.lines().all(|line| serde_json::from_str::<Call>(line).is_ok()));
        assert!(!text.contains('\u{1b}'));
        let newest = text.lines().last().map(|line| serde_json::from_str::<Call>(line).unwrap()).unwrap();
        let found = last_calls(directory.path(), "net", &newest.container_id, "eth0", 3);
        assert_eq!(found, [newest]);
    }

    #[test]
    fn of_a_trace_parent_only_a_whole_one_counts() {
        let whole = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(trace_id(whole), Some("0af7651916cd43dd8448eb211c80319c"));
        assert!(trace_id("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more").is_some());
        for malformed in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319\u{e9}-b7ad6b7169203331-01",
        ] {
            assert_eq!(trace_id(malformed), None, "{malformed}");
        }
    }

    proptest! {
        #[test]
        fn no_trace_parent_panics(text in "\\PC*") {
            let _ = trace_id(&text);
        }
    }
}
