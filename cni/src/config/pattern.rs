//! The part of regular expressions that lists of sysctls are written with.

/// A regular expression of literal characters, `.`, classes like `[a-z_]`, escaped punctuation, each with an optional
/// `*`, `+` or `?`, and the anchors `^` and `$`. Unanchored, it matches anywhere.
#[derive(Clone, Debug)]
pub(super) struct Pattern {
    at_start: bool,
    at_end: bool,
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug)]
struct Piece {
    set: Set,
    least: usize,
    repeats: bool,
}

#[derive(Clone, Debug)]
enum Set {
    One(char),
    Any,
    /// Of these ranges, or of none of them.
    Class {
        ranges: Vec<(char, char)>,
        negated: bool,
    },
}

impl Set {
    fn has(&self, letter: char) -> bool {
        match self {
            Self::One(own) => *own == letter,
            Self::Any => true,
            Self::Class { ranges, negated } => {
                ranges.iter().any(|(first, last)| (*first..=*last).contains(&letter)) != *negated
            }
        }
    }
}

impl Pattern {
    /// `None` for what isn't such an expression.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (at_start, text) = text.strip_prefix('^').map_or((false, text), |rest| (true, rest));
        let mut letters = text.chars().peekable();
        let mut pieces = Vec::new();
        let mut at_end = false;
        while let Some(letter) = letters.next() {
            let set = match letter {
                '$' if letters.peek().is_none() => {
                    at_end = true;
                    break;
                }
                '.' => Set::Any,
                '[' => class(&mut letters)?,
                '\\' => Set::One(letters.next().filter(char::is_ascii_punctuation)?),
                '^' | '$' | '(' | ')' | '|' | '{' | '}' | ']' | '*' | '+' | '?' => return None,
                other => Set::One(other),
            };
            let (least, repeats) = match letters.peek() {
                Some('*') => (0, true),
                Some('+') => (1, true),
                Some('?') => (0, false),
                _ => (1, false),
            };
            if least == 0 || repeats {
                letters.next();
            }
            pieces.push(Piece { set, least, repeats });
        }
        Some(Self { at_start, at_end, pieces })
    }

    pub(super) fn matches(&self, text: &str) -> bool {
        let letters: Vec<char> = text.chars().collect();
        // The places that the pieces so far may end at; kept for all of them at once, no text takes long.
        let mut places = vec![false; letters.len() + 1];
        places[0] = true;
        if !self.at_start {
            places.fill(true);
        }
        for piece in &self.pieces {
            let mut after = if piece.least == 0 { places.clone() } else { vec![false; places.len()] };
            for (index, letter) in letters.iter().enumerate() {
                let begins = places[index] || (piece.repeats && after[index]);
                if begins && piece.set.has(*letter) {
                    after[index + 1] = true;
                }
            }
            places = after;
        }
        if self.at_end { places[letters.len()] } else { places.contains(&true) }
    }
}

/// The rest of a class, whose bracket has been read.
fn class(letters: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<Set> {
    let negated = letters.next_if_eq(&'^').is_some();
    let mut ranges = Vec::new();
    loop {
        let first = match letters.next()? {
            ']' if !ranges.is_empty() => return Some(Set::Class { ranges, negated }),
            // What these mean in a class differs from one kind of expression to another.
            ']' | '[' => return None,
            '\\' => letters.next().filter(char::is_ascii_punctuation)?,
            letter => letter,
        };
        let mut last = first;
        if letters.next_if_eq(&'-').is_some() {
            match letters.next_if(|letter| !matches!(letter, ']' | '[' | '\\')) {
                Some(end) => last = end,
                // At the end it stands for itself.
                None => ranges.push(('-', '-')),
            }
        }
        if first > last {
            return None;
        }
        ranges.push((first, last));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(pattern: &str, matching: &[&str], others: &[&str]) {
        let parsed = Pattern::parse(pattern).unwrap();
        for text in matching {
            assert!(parsed.matches(text), "{pattern} {text}");
        }
        for text in others {
            assert!(!parsed.matches(text), "{pattern} {text}");
        }
    }

    #[test]
    fn expressions_mean_what_they_mean_elsewhere() {
        check(
            "^net.core.somaxconn$",
            &["net.core.somaxconn", "net/core.somaxconn"],
            &["xnet.core.somaxconn", "net.core.somaxconn2"],
        );
        check("core", &["net.core.x"], &["net.cor"]);
        check(r"^net\.ipv4\.", &["net.ipv4.x"], &["net/ipv4/x"]);
        check("^net.ipv4.conf.IFNAME.[a-z_]*$", &["net.ipv4.conf.IFNAME.arp_filter"], &["net.ipv4.conf.IFNAME.X"]);
        check("^a.*b$", &["ab", "axxb", "abb"], &["a", "ba"]);
        check("^a+b?$", &["a", "aab"], &["b", "abb", ""]);
        check("^[^0-9]$", &["x"], &["7", "xx"]);
        check("^[a-]+$", &["a-a"], &["b"]);
        check("", &["anything", ""], &[]);
        check("^$", &[""], &["x"]);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for pattern in
            ["(a)", "a|b", "a{2}", "*", "a**", r"\d", "[", "[]", "[a", "[z-a]", "a^", "a$b", "[[:alpha:]]", "\\"]
        {
            assert!(Pattern::parse(pattern).is_none(), "{pattern}");
        }
    }

    proptest! {
        #[test]
        fn a_text_matches_itself(text in "[a-z0-9_/-]{0,20}") {
            let pattern = Pattern::parse(&format!("^{text}$")).unwrap();
            prop_assert!(pattern.matches(&text));
        }

        #[test]
        fn nothing_panics(pattern in "\\PC{0,20}", text in "\\PC{0,20}") {
            if let Some(pattern) = Pattern::parse(&pattern) {
                let _ = pattern.matches(&text);
            }
        }
    }
}
