//! The corpus and what becomes of it when octets are changed, moved and mixed: always the same.

use std::{fs, path::Path};

use super::{exchange, frames, hpack};

/// Mutations of each target.
const MUTATIONS: usize = 10_000;
/// Changes of one mutation at most.
const MAX_CHANGES: usize = 6;
/// Octets that mean something in one place or another.
const TELLING: [u8; 12] = [0, 1, 4, 8, 9, 0x20, 0x3f, 0x40, 0x7f, 0x80, 0xbe, 0xff];

/// Numbers that are the same in each run: xorshift64.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound.max(1) as u64).unwrap()
    }
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target);
    let mut files: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

fn mutated(corpus: &[Vec<u8>], chance: &mut Chance) -> Vec<u8> {
    let mut bytes = corpus[chance.below(corpus.len())].clone();
    for _ in 0..=chance.below(MAX_CHANGES) {
        let at = chance.below(bytes.len());
        match chance.below(6) {
            _ if bytes.is_empty() => bytes.push(0),
            0 => bytes[at] ^= 1 << chance.below(8),
            1 => bytes[at] = TELLING[chance.below(TELLING.len())],
            2 => bytes.insert(at, TELLING[chance.below(TELLING.len())]),
            3 => drop(bytes.drain(at..(at + 1 + chance.below(8)).min(bytes.len()))),
            4 => bytes.extend_from_within(at..(at + chance.below(40)).min(bytes.len())),
            _ => {
                let other = &corpus[chance.below(corpus.len())];
                bytes.truncate(at);
                bytes.extend_from_slice(&other[chance.below(other.len())..]);
            }
        }
    }
    bytes
}

fn run(name: &str, target: fn(&[u8])) {
    let corpus = corpus(name);
    assert!(
        corpus.len() > 9,
        "the corpus of {name} is where it should be"
    );
    for bytes in &corpus {
        target(bytes);
    }
    let mut chance = Chance(0x5eed_0f0b_1e55_ed00);
    for _ in 0..MUTATIONS {
        target(&mutated(&corpus, &mut chance));
    }
}

#[test]
fn frames_hold_over_the_corpus_and_its_mutations() {
    run("frames", frames);
}

#[test]
fn hpack_holds_over_the_corpus_and_its_mutations() {
    run("hpack", hpack);
}

#[test]
fn the_exchange_holds_over_the_corpus_and_its_mutations() {
    run("exchange", exchange);
}
