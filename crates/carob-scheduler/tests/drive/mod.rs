//! Random histories: made from a seed, run, and shortened when they fail.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use carob_kit::{Clock, SystemClock};
use proptest::test_runner::TestCaseError;

/// One step of a history: what, and two numbers that say which.
pub(crate) type Step = (u8, u64, u64);

/// The seed of the first history; each further one has the next number.
const SEED: &str = "CAROB_SOAK_SEED";
/// How many histories are run.
const HISTORIES: &str = "CAROB_SOAK_HISTORIES";
/// Histories are run for so many seconds, however many that are.
const SECONDS: &str = "CAROB_SOAK_SECONDS";

/// What `cargo test` runs: the same ones each time.
const USUAL_SEED: u64 = 1;

/// A stream of random numbers (xorshift64*).
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    }
}

/// What histories are made of.
pub(crate) struct Shape {
    /// Steps are of kinds from 0 to this.
    pub(crate) kinds: u64,
    /// The steps of the longest.
    pub(crate) longest: u64,
    /// How many are run where the environment says nothing.
    pub(crate) usual: u64,
    /// How many are run at a time.
    pub(crate) threads: usize,
}

/// Runs histories as the environment says, the usual ones where it says nothing. Returns how many it ran.
#[expect(clippy::print_stdout, reason = "the seed has to be known to run the same again")]
pub(crate) fn histories(shape: &Shape, run: impl Fn(&[Step]) -> Result<(), TestCaseError> + Sync) -> u64 {
    let clock = SystemClock::new();
    let first = number(SEED).unwrap_or(USUAL_SEED);
    let seconds = number(SECONDS).map(Duration::from_secs);
    let count = number(HISTORIES).unwrap_or(if seconds.is_some() { u64::MAX } else { shape.usual });
    let (next, done, failed) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let failure = Mutex::new(None);
    let work = || {
        while !failed.load(Ordering::Relaxed) && seconds.is_none_or(|seconds| clock.monotonic() < seconds) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return;
            }
            let seed = first.wrapping_add(number);
            let steps = steps(shape, seed);
            if let Some(problem) = problem(&run, &steps) {
                if !failed.swap(true, Ordering::Relaxed) {
                    *failure.lock().expect("no holder panics") = Some((seed, steps, problem));
                }
                return;
            }
            done.fetch_add(1, Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..shape.threads {
            scope.spawn(work);
        }
    });
    if let Some((seed, steps, problem)) = failure.into_inner().expect("no holder panics") {
        let (shortest, problem) = shorten(&run, steps, problem);
        panic!("{problem}\nafter these {} steps: {shortest:?}\nagain: {SEED}={seed} {HISTORIES}=1", shortest.len());
    }
    let done = done.into_inner();
    println!("{done} histories from seed {first} on in {:.1?}", clock.monotonic());
    done
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text:?} is not a number")))
}

fn steps(shape: &Shape, seed: u64) -> Vec<Step> {
    let mut dice = Dice::new(seed);
    let count = 1 + dice.below(shape.longest);
    let step = |dice: &mut Dice| {
        let what = u8::try_from(dice.below(shape.kinds)).expect("there are few kinds");
        (what, dice.below(1000), dice.below(1000))
    };
    (0..count).map(|_| step(&mut dice)).collect()
}

fn problem(run: &impl Fn(&[Step]) -> Result<(), TestCaseError>, steps: &[Step]) -> Option<String> {
    match catch_unwind(AssertUnwindSafe(|| run(steps))) {
        Ok(result) => result.err().map(|error| error.to_string()),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Some(format!("it panicked: {}", text.unwrap_or_default()))
        }
    }
}

/// Leaves out steps, ever smaller runs of them, as long as the history still fails.
fn shorten(
    run: &impl Fn(&[Step]) -> Result<(), TestCaseError>,
    mut steps: Vec<Step>,
    mut why: String,
) -> (Vec<Step>, String) {
    let mut length = steps.len() / 2;
    while length > 0 {
        let mut from = 0;
        while from < steps.len() {
            let mut fewer = steps.clone();
            fewer.drain(from..(from + length).min(steps.len()));
            match problem(run, &fewer) {
                Some(problem) => (steps, why) = (fewer, problem),
                None => from += length,
            }
        }
        length /= 2;
    }
    (steps, why)
}

#[test]
fn a_failing_history_is_shortened_to_what_makes_it_fail() {
    let run = |steps: &[Step]| match steps.iter().filter(|(what, ..)| *what == 7).count() {
        0 | 1 => Ok(()),
        _ => Err(TestCaseError::fail("two sevens")),
    };
    let steps: Vec<Step> = (0..50).map(|n| (n % 20, 0, 0)).collect();
    let why = problem(&run, &steps).expect("there are three sevens");
    let (shortest, _) = shorten(&run, steps, why);
    assert_eq!(shortest, [(7, 0, 0), (7, 0, 0)]);
}
