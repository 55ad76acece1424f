//! What the scheduler is put through beside its tests: histories by the hundred thousand, and its figures.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::sh::{cargo, run, say};

/// How many histories `cargo xtask soak` runs of each kind.
const HISTORIES: u64 = 100_000;
/// How long the histories of CI take altogether, in seconds, unless [`SECONDS`] says otherwise.
const CI_SECONDS: u64 = 180;
/// The first seed of CI's histories: the same each time, so that what CI says is decided by the code. `cargo xtask soak` takes
/// another each time.
const CI_SEED: u64 = 20_261_122;
/// The environment variable that gives CI's histories another time.
const SECONDS: &str = "CAROB_SOAK_SECONDS";

/// The tests that run random histories, each with a scheduler and what must hold of it.
const SUITES: [&str; 2] = ["histories", "reference"];

/// Only the scheduler is optimised: what it stands on is built for the other tests already, and the checks of overflows and
/// of what is never to happen stay on.
const OPTIMISED: [&str; 2] = ["--config", "profile.dev.package.carob-scheduler.opt-level=1"];

/// How many histories of volumes `cargo xtask soak` runs.
const VOLUME_HISTORIES: u64 = 10_000;
/// They run API server, controllers, provisioners and nodes: all of it is optimised.
const ALL_OPTIMISED: [&str; 2] = ["--config", "profile.dev.opt-level=1"];

const USAGE: &str = "usage: cargo xtask soak [--seed N] [--histories N | --seconds N]";

/// How much is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Amount {
    Histories(u64),
    /// Of each suite.
    Seconds(u64),
}

/// `cargo xtask soak`.
pub(crate) fn soak(arguments: &[String]) -> Result<()> {
    let (seed, amount) = parse(arguments)?;
    let seed = seed.map_or_else(seed_of_now, Ok)?;
    histories(seed, amount)?;
    volumes(seed)?;
    say("the figures and pictures of docs/scheduling.md, the large scenarios among them");
    run(optimised(&["docs"])?.env("CAROB_DOCS", "all"))?;
    crate::ci::faults(crate::ci::FAULT_SECONDS, seed)
}

/// The histories of CI: a fixed time from a fixed seed on.
pub(crate) fn soak_in_ci() -> Result<()> {
    let seconds = match std::env::var(SECONDS) {
        Ok(text) => text.parse().with_context(|| format!("read {SECONDS}={text:?}"))?,
        Err(_) => CI_SECONDS,
    };
    histories(CI_SEED, Amount::Seconds(seconds / SUITES.len() as u64))
}

fn histories(seed: u64, amount: Amount) -> Result<()> {
    say(&format!("histories from seed {seed} on; the same again: cargo xtask soak --seed {seed}"));
    let mut command = optimised(&SUITES)?;
    command.env("CAROB_SOAK_SEED", seed.to_string());
    match amount {
        Amount::Histories(count) => command.env("CAROB_SOAK_HISTORIES", count.to_string()).env_remove(SECONDS),
        Amount::Seconds(seconds) => command.env(SECONDS, seconds.to_string()),
    };
    run(&mut command)
}

/// Random histories of volumes.
fn volumes(seed: u64) -> Result<()> {
    say(&format!("{VOLUME_HISTORIES} histories of volumes from seed {seed} on"));
    let mut command = cargo()?;
    command.args(["test", "--package", "carob-local-storage"]).args(ALL_OPTIMISED);
    command.args(["--test", "histories", "--", "--nocapture"]).env_remove(SECONDS);
    command.env("CAROB_SOAK_SEED", seed.to_string()).env("CAROB_SOAK_HISTORIES", VOLUME_HISTORIES.to_string());
    run(&mut command)
}

/// A run of some of the scheduler's test programs, one after the other.
fn optimised(suites: &[&str]) -> Result<Command> {
    let mut command = cargo()?;
    command.args(["test", "--package", "carob-scheduler"]).args(OPTIMISED);
    for suite in suites {
        command.args(["--test", suite]);
    }
    command.args(["--", "--nocapture"]);
    Ok(command)
}

fn parse(arguments: &[String]) -> Result<(Option<u64>, Amount)> {
    let (mut seed, mut amount) = (None, Amount::Histories(HISTORIES));
    let mut words = arguments.iter();
    while let Some(flag) = words.next() {
        let text = words.next().with_context(|| format!("{flag} needs a number\n{USAGE}"))?;
        let number = text.parse().with_context(|| format!("read {text:?} as a number"))?;
        match flag.as_str() {
            "--seed" => seed = Some(number),
            "--histories" => amount = Amount::Histories(number),
            "--seconds" => amount = Amount::Seconds(number),
            other => bail!("there is no flag {other}\n{USAGE}"),
        }
    }
    Ok((seed, amount))
}

#[expect(clippy::disallowed_methods, reason = "a development tool that wants another seed each time")]
pub(crate) fn seed_of_now() -> Result<u64> {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).context("read the clock")?;
    Ok(since.as_secs())
}

/// `cargo xtask bench sched`.
pub(crate) fn bench(arguments: &[String]) -> Result<()> {
    run(cargo()?.args(["bench", "--package", "carob-scheduler", "--bench", "throughput", "--"]).args(arguments))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_of_soak_are_read() {
        let read = |line: &str| {
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            parse(&words).map_err(|error| error.to_string())
        };
        assert_eq!(read(""), Ok((None, Amount::Histories(HISTORIES))));
        assert_eq!(read("--seed 7 --histories 9"), Ok((Some(7), Amount::Histories(9))));
        assert_eq!(read("--seconds 30"), Ok((None, Amount::Seconds(30))));
        assert!(read("--seed").is_err_and(|error| error.contains("needs a number")));
        assert!(read("--seed soon").is_err());
        assert!(read("--often 3").is_err_and(|error| error.contains("no flag --often")));
    }
}
