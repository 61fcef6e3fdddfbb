//! Reads and writes that go round the page cache, at places that look random and are the same in every run.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};

/// What direct I/O wants its buffers, places and lengths to be multiples of.
const ALIGNMENT: usize = 4096;

/// A small block.
pub(super) const BLOCK: usize = 4096;

/// A large one.
pub(super) const LARGE: usize = 1 << 20;

/// Memory at a multiple of [`ALIGNMENT`].
pub(super) struct Buffer {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl Buffer {
    pub(super) fn new(length: usize, value: u8) -> Self {
        let memory = vec![value; length + ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        Self { memory, start, length }
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.length]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.length]
    }
}

/// Marsaglia's xorshift64: what it gives only has to be spread.
pub(super) struct Places(u64);

impl Places {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The start of one of the blocks in `bytes`.
    pub(super) fn next(&mut self, bytes: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % (bytes / BLOCK as u64) * BLOCK as u64
    }
}

pub(super) fn open(path: &Path) -> Result<File> {
    let flags = i32::try_from(rustix::fs::OFlags::DIRECT.bits())?;
    Ok(OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?)
}

/// Writes all of it, from the start to the end, and syncs it.
pub(super) fn fill(file: &File, bytes: u64) -> Result<Duration> {
    let buffer = Buffer::new(LARGE, 0x5a);
    let start = Instant::now();
    for place in (0..bytes).step_by(LARGE) {
        file.write_all_at(buffer.bytes(), place)?;
    }
    let time = start.elapsed();
    file.sync_all()?;
    Ok(time)
}

/// Reads all of it, from the start to the end.
pub(super) fn read_all(file: &File, bytes: u64) -> Result<Duration> {
    let mut buffer = Buffer::new(LARGE, 0);
    let start = Instant::now();
    for place in (0..bytes).step_by(LARGE) {
        file.read_exact_at(buffer.bytes_mut(), place)?;
    }
    Ok(start.elapsed())
}

/// What is done to small blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Read,
    Write,
}

/// Does `count` of them at random places, as many at once as `depth`: one thread for each, for that is the same for
/// all that are compared.
pub(super) fn blocks(file: &File, bytes: u64, verb: Verb, count: u64, depth: u64, seed: u64) -> Result<Duration> {
    let work = |number: u64| -> io::Result<()> {
        let mut places = Places::new(seed * 1000 + number);
        let mut buffer = Buffer::new(BLOCK, number.to_le_bytes()[0]);
        for _ in 0..count / depth {
            let place = places.next(bytes);
            match verb {
                Verb::Read => file.read_exact_at(buffer.bytes_mut(), place)?,
                Verb::Write => file.write_all_at(buffer.bytes(), place)?,
            }
        }
        Ok(())
    };
    let start = Instant::now();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..depth).map(|number| scope.spawn(move || work(number))).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?.map_err(Into::into))
    })
    .map(|()| start.elapsed())
}

/// How long each fsync takes after one small write.
pub(super) fn syncs(file: &File, bytes: u64, count: u64, seed: u64) -> Result<Vec<Duration>> {
    let mut places = Places::new(seed);
    let buffer = Buffer::new(BLOCK, 0xa5);
    let sync = |_| {
        file.write_all_at(buffer.bytes(), places.next(bytes))?;
        let start = Instant::now();
        file.sync_all()?;
        Ok(start.elapsed())
    };
    (0..count).map(sync).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_blocks_inside() {
        let mut places = Places::new(7);
        let found: Vec<u64> = (0..1000).map(|_| places.next(1 << 20)).collect();
        assert!(found.iter().all(|place| *place < 1 << 20 && place % 4096 == 0));
        assert!(found.iter().collect::<std::collections::BTreeSet<_>>().len() > 200);
    }

    #[test]
    fn buffers_are_aligned() {
        let mut buffer = Buffer::new(BLOCK, 1);
        assert_eq!(buffer.bytes().as_ptr().align_offset(ALIGNMENT), 0);
        assert_eq!((buffer.bytes().len(), buffer.bytes_mut().len()), (BLOCK, BLOCK));
    }
}
