//! New inputs out of old ones.

use serde_json::{Map, Value};

/// Numbers at which parsers go wrong.
const NUMBERS: [&str; 12] = [
    "0",
    "1",
    "-1",
    "255",
    "256",
    "65535",
    "65536",
    "4294967295",
    "4294967296",
    "18446744073709551615",
    "18446744073709551616",
    "1e400",
];

/// SplitMix64: a seed tells the whole run.
#[derive(Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`; 0 if that is 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        let bound = bound.max(1) as u64;
        usize::try_from(self.next() % bound).unwrap_or_default()
    }

    fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    pub(crate) fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        items.get(self.below(items.len()))
    }
}

/// The words of the seeds: keys, values, and what stands between punctuation.
#[derive(Debug)]
pub(crate) struct Dictionary(Vec<Vec<u8>>);

impl Dictionary {
    pub(crate) fn of(seeds: &[Vec<u8>]) -> Self {
        let mut words: Vec<Vec<u8>> = NUMBERS.iter().map(|number| number.as_bytes().to_vec()).collect();
        for seed in seeds {
            let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-/:%@".contains(byte) || *byte >= 0x80;
            words.extend(seed.split(|byte| !is_part(byte)).filter(|word| !word.is_empty()).map(<[u8]>::to_vec));
        }
        words.sort();
        words.dedup();
        Self(words)
    }

    fn word(&self, random: &mut Random) -> &[u8] {
        random.pick(&self.0).map_or(&[], Vec::as_slice)
    }

    fn text(&self, random: &mut Random) -> String {
        String::from_utf8_lossy(self.word(random)).into_owned()
    }
}

/// `input` changed in a few places; `other` is one more input to take parts from.
pub(crate) fn mutate(input: &[u8], other: &[u8], dictionary: &Dictionary, random: &mut Random) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..=random.below(4) {
        // JSON is changed as JSON most of the time: a changed byte rarely gets past its parser.
        if !random.one_in(4)
            && let Ok(mut document) = serde_json::from_slice::<Value>(&bytes)
        {
            let donor = serde_json::from_slice(other).unwrap_or(Value::Null);
            change_node(&mut document, &donor, dictionary, random);
            bytes = document.to_string().into_bytes();
            // Two spellings of a key, and one key twice, are no `Map`s: they are made of the text.
            if random.one_in(16) {
                change_bytes(&mut bytes, other, dictionary, random);
            }
        } else {
            change_bytes(&mut bytes, other, dictionary, random);
        }
    }
    bytes
}

fn change_bytes(bytes: &mut Vec<u8>, other: &[u8], dictionary: &Dictionary, random: &mut Random) {
    let at = random.below(bytes.len() + 1);
    let longest = if random.one_in(4) { 256 } else { 8 };
    let length = random.below(1 + (bytes.len() - at).min(longest));
    let replaced = at..at + length;
    match random.below(7) {
        0 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << random.below(8);
            }
        }
        1 => bytes.insert(at, random.byte()),
        2 => {
            bytes.drain(replaced);
        }
        3 => {
            let copy = bytes[replaced].to_vec();
            bytes.splice(at..at, copy);
        }
        4 => {
            let word = dictionary.word(random).to_vec();
            bytes.splice(replaced, word);
        }
        5 => {
            let from = random.below(other.len() + 1);
            let until = from + random.below(other.len() - from + 1);
            bytes.splice(replaced, other[from..until].iter().copied());
        }
        _ => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = random.byte();
            }
        }
    }
}

/// Changes one node of `value`, found by walking down at random.
fn change_node(value: &mut Value, donor: &Value, dictionary: &Dictionary, random: &mut Random) {
    if !random.one_in(4) {
        match value {
            Value::Object(object) if !object.is_empty() => {
                let index = random.below(object.len());
                if let Some((_, child)) = object.iter_mut().nth(index) {
                    return change_node(child, donor, dictionary, random);
                }
            }
            Value::Array(items) if !items.is_empty() => {
                let index = random.below(items.len());
                return change_node(&mut items[index], donor, dictionary, random);
            }
            _ => {}
        }
    }
    match value {
        Value::Object(object) => change_object(object, donor, dictionary, random),
        Value::Array(items) => match random.below(3) {
            0 if !items.is_empty() => {
                items.remove(random.below(items.len()));
            }
            1 if !items.is_empty() => {
                let copy = items[random.below(items.len())].clone();
                items.push(copy);
            }
            _ => items.push(new_value(donor, dictionary, random)),
        },
        Value::String(text) if random.one_in(2) => {
            let mut bytes = std::mem::take(text).into_bytes();
            change_bytes(&mut bytes, &[], dictionary, random);
            *text = String::from_utf8_lossy(&bytes).into_owned();
        }
        other => *other = new_value(donor, dictionary, random),
    }
}

fn change_object(object: &mut Map<String, Value>, donor: &Value, dictionary: &Dictionary, random: &mut Random) {
    let key = object.keys().nth(random.below(object.len())).cloned().unwrap_or_default();
    match random.below(4) {
        0 => {
            object.remove(&key);
        }
        1 => {
            // The same key in other letters.
            let value = object.get(&key).cloned().unwrap_or_default();
            let flipped = |letter: char| {
                if letter.is_ascii_lowercase() { letter.to_ascii_uppercase() } else { letter.to_ascii_lowercase() }
            };
            object.insert(key.chars().map(flipped).collect(), value);
        }
        _ => {
            object.insert(dictionary.text(random), new_value(donor, dictionary, random));
        }
    }
}

fn new_value(donor: &Value, dictionary: &Dictionary, random: &mut Random) -> Value {
    match random.below(8) {
        0 => Value::Null,
        1 => Value::Bool(random.one_in(2)),
        2 => Value::Array(vec![new_value(donor, dictionary, random)]),
        3 => Value::Object([(dictionary.text(random), new_value(donor, dictionary, random))].into_iter().collect()),
        4 => random.pick(&NUMBERS).and_then(|number| serde_json::from_str(number).ok()).unwrap_or_default(),
        5 | 6 => part_of(donor, random).clone(),
        _ => Value::String(dictionary.text(random)),
    }
}

fn part_of<'a>(value: &'a Value, random: &mut Random) -> &'a Value {
    let child = match value {
        Value::Object(object) if !random.one_in(3) => object.values().nth(random.below(object.len())),
        Value::Array(items) if !random.one_in(3) => random.pick(items),
        _ => None,
    };
    child.map_or(value, |child| part_of(child, random))
}
