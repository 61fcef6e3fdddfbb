//! Data that is written to volumes and known again.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt,
    path::Path,
};

use keelson_testkit::Chance;

/// Bytes of a piece of data.
const PIECE: usize = 128 << 10;

/// The data of the `number`th piece of a volume.
pub(crate) fn piece(name: &str, number: u64) -> Vec<u8> {
    let start = name.bytes().fold(number, |sum, byte| sum.wrapping_mul(257).wrapping_add(byte.into()));
    let mut chance = Chance::of(start);
    (0..PIECE / 8).flat_map(|_| chance.number().to_le_bytes()).collect()
}

/// Writes a piece to a published volume, and syncs it.
pub(crate) fn write(target: &Path, is_block: bool, name: &str, number: u64) {
    let data = piece(name, number);
    if is_block {
        let device = OpenOptions::new().write(true).open(target).unwrap();
        device.write_all_at(&data, number * PIECE as u64).unwrap();
        device.sync_all().unwrap();
    } else {
        let file = File::create(target.join(number.to_string())).unwrap();
        file.write_all_at(&data, 0).unwrap();
        file.sync_all().unwrap();
        File::open(target).unwrap().sync_all().unwrap();
    }
}

pub(crate) fn read(target: &Path, is_block: bool, number: u64) -> Vec<u8> {
    if !is_block {
        return fs::read(target.join(number.to_string())).unwrap();
    }
    let mut data = vec![0; PIECE];
    File::open(target).unwrap().read_exact_at(&mut data, number * PIECE as u64).unwrap();
    data
}
