//! Decoders of hostile bytes, tried with a committed corpus and with changes to it.
//!
//! The changes are the same in every run, so a test that passes once passes again, and one that fails names the input. Coverage
//! does not guide them, as a fuzzer would: that wants another compiler. Instead each input is cut, spliced and repeated along with
//! the others of its corpus, which has an example of everything that the decoder knows. `CAROB_FUZZ_ROUNDS` asks for more.
//!
//! An input that once did harm belongs into the corpus.

use std::any::Any;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

/// Changed inputs per run of a target, where nothing else is asked for.
const ROUNDS: usize = 3000;
/// Changes that one input goes through at most.
const CHANGES_MAX: usize = 6;
/// Length of a changed input in bytes. A decoder's own limits are tested apart.
const INPUT_LEN_MAX: usize = 64 * 1024;
/// What no input may take, a thousand times what a sound one does: only an input that costs more the longer it is comes here.
const TIME_MAX: Duration = Duration::from_secs(20);
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;
/// Bytes that mean something to most decoders: ends of integers, separators, ends of UTF-8 sequences.
const TELLING_BYTES: [u8; 16] =
    [0x00, 0x01, 0x7f, 0x80, 0xff, 0xfe, 0xc0, 0xed, b'"', b'\\', b'{', b'[', b'/', b'.', b'-', b'\n'];

/// Gives `decode` every file in the directory `corpus`, then changes of them.
///
/// # Panics
///
/// When `decode` does, or takes too long: the message has the input. When there is no corpus.
pub fn run(corpus: impl AsRef<Path>, decode: impl Fn(&[u8])) {
    let inputs = read(corpus.as_ref());
    for (name, input) in &inputs {
        attempt(name, input, &decode);
    }
    let rounds = std::env::var("CAROB_FUZZ_ROUNDS").map_or(ROUNDS, |text| text.parse().expect("a number of rounds"));
    let inputs: Vec<Vec<u8>> = inputs.into_iter().map(|(_, input)| input).collect();
    let mut random = Random(SEED);
    for round in 0..rounds {
        let input = changed(&inputs, &mut random);
        attempt(&format!("round {round}"), &input, &decode);
    }
}

/// The files in the order of their names, which is the order of every run.
fn read(corpus: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs_err::read_dir(corpus).expect("a directory with the corpus");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry of the corpus").path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} has no inputs", corpus.display());
    let read =
        |path: &std::path::PathBuf| (path.display().to_string(), fs_err::read(path).expect("a file of the corpus"));
    paths.iter().map(read).collect()
}

#[expect(clippy::disallowed_methods, reason = "an input that takes seconds is what is looked for")]
fn attempt(name: &str, input: &[u8], decode: &impl Fn(&[u8])) {
    let started = Instant::now();
    let outcome = catch_unwind(AssertUnwindSafe(|| decode(input)));
    let took = started.elapsed();
    if let Err(payload) = outcome {
        panic!("{name}: {}\ninput: {}", words(&*payload), escaped(input));
    }
    assert!(took < TIME_MAX, "{name} took {took:?}\ninput: {}", escaped(input));
}

fn words(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("a panic without words")
}

/// As a Rust byte string, so that it can be made a test.
fn escaped(input: &[u8]) -> String {
    let mut text = String::from("b\"");
    write!(text, "{}", input.escape_ascii()).expect("a string can be written to");
    text + "\""
}

fn changed(inputs: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut input = random.pick(inputs).clone();
    for _ in 0..=random.below(CHANGES_MAX) {
        change(&mut input, inputs, random);
        input.truncate(INPUT_LEN_MAX);
    }
    input
}

/// One change: of a bit, a byte, a digit, or of a stretch that is removed, repeated or taken from elsewhere.
fn change(input: &mut Vec<u8>, inputs: &[Vec<u8>], random: &mut Random) {
    if input.is_empty() {
        input.push(*random.pick(&TELLING_BYTES));
        return;
    }
    let at = random.below(input.len());
    match random.below(8) {
        0 => input[at] ^= 1 << random.below(8),
        1 => input[at] = *random.pick(&TELLING_BYTES),
        2 => input.insert(at, *random.pick(&TELLING_BYTES)),
        3 => {
            let stretch = stretch(input, random);
            input.drain(stretch);
        }
        4 => {
            let part = input[stretch(input, random)].to_vec();
            let times = 1 + random.below(16);
            input.splice(at..at, part.repeat(times));
        }
        5 => {
            let other = random.pick(inputs);
            let part = &other[stretch(other, random)];
            input.splice(at..at, part.iter().copied());
        }
        6 => {
            // Numbers in text: one digit becomes many.
            let digits: Vec<usize> = (0..input.len()).filter(|at| input[*at].is_ascii_digit()).collect();
            if !digits.is_empty() {
                let digit = *random.pick(&digits);
                input.splice(digit..=digit, b"9223372036854775808".iter().copied());
            }
        }
        _ => input.truncate(at),
    }
}

/// A part of at most an eighth of the input, or of a few bytes.
fn stretch(input: &[u8], random: &mut Random) -> std::ops::Range<usize> {
    let start = random.below(input.len().max(1)).min(input.len());
    let longest = (input.len() - start).min((input.len() / 8).max(8));
    start..start + if longest == 0 { 0 } else { 1 + random.below(longest) }
}

/// A small generator (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        usize::try_from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % bound as u64).expect("less than a usize")
    }

    fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeSet;

    use super::*;

    fn corpus() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        fs_err::write(dir.path().join("a"), b"{\"number\": 1}").expect("write");
        fs_err::write(dir.path().join("b"), b"[true, false]").expect("write");
        dir
    }

    #[test]
    fn inputs_differ_and_are_the_same_in_every_run() {
        let dir = corpus();
        let seen = || {
            let seen = RefCell::new(Vec::new());
            run(dir.path(), |input| seen.borrow_mut().push(input.to_vec()));
            seen.into_inner()
        };
        let first = seen();
        assert_eq!(first, seen());
        let different: BTreeSet<_> = first.iter().collect();
        assert!(different.len() > ROUNDS / 2, "only {} of {} differ", different.len(), first.len());
    }

    #[test]
    fn a_panic_names_its_input() {
        let dir = corpus();
        let outcome = catch_unwind(|| run(dir.path(), |input| assert!(!input.starts_with(b"[true"), "no lists")));
        let payload = outcome.expect_err("the second file starts so");
        let words = words(&*payload);
        assert!(words.contains("no lists") && words.ends_with("input: b\"[true, false]\""), "{words}");
    }
}
