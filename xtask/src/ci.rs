//! What CI runs, step by step, with the time each step took.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::sh::{cargo, output, run, say, workspace};

/// The only target: glibc, linked statically (ARCHITECTURE.md, "The binary").
const TARGET: &str = "x86_64-unknown-linux-gnu";

type Step = (&'static str, fn() -> Result<()>);

const STEPS: &[Step] = &[
    ("format", || run(cargo()?.args(["fmt", "--all", "--check"]))),
    ("lints", || run(cargo()?.args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))),
    ("licences and sources of dependencies", || {
        run(cargo()?.args(["deny", "--log-level", "error", "check", "bans", "licenses", "sources"]))
    }),
    ("tests of the crates, tidy among them", || {
        run(cargo()?.args(["nextest", "run", "--profile", "ci", "--workspace", "--exclude", "carob-tests"]))
    }),
    ("random histories of the scheduler", crate::sched::soak_in_ci),
    ("release program", || dist().map(drop)),
    ("images", || crate::images::build(&[]).map(drop)),
    ("black-box tests", || black_box(&dist()?, &[])),
    ("virtual machine with cgroup v2", || crate::vm::smoke(&dist()?)),
];

/// Runs every step, and stops at the first that fails.
pub(crate) fn all() -> Result<()> {
    let mut times = Vec::new();
    for (name, step) in STEPS {
        say(&format!("=== {name}"));
        let watch = StopWatch::start();
        step().with_context(|| format!("the step `{name}` failed"))?;
        times.push((*name, watch.seconds()));
    }
    say("=== all steps passed");
    for (name, seconds) in times {
        say(&format!("{seconds:7.1} s  {name}"));
    }
    Ok(())
}

/// Builds the release program and returns where it is.
pub(crate) fn dist() -> Result<PathBuf> {
    // With an explicit target the flags reach the program, not the build scripts and procedural macros.
    run(cargo()?
        .args(["build", "--release", "--package", "carob", "--target", TARGET])
        .env("RUSTFLAGS", "-C target-feature=+crt-static -C relocation-model=static"))?;
    Ok(workspace()?.join("target").join(TARGET).join("release/carob"))
}

/// Runs the black-box tests against `carob`.
pub(crate) fn black_box(carob: &Path, filters: &[String]) -> Result<()> {
    crate::images::build(&[])?;
    run(cargo()?
        .args(["nextest", "run", "--profile", "black-box", "--package", "carob-tests"])
        .args(filters)
        .env("CAROB_BIN", carob))
}

/// Goes on with hostile input for `seconds`, then waits for the memory that it took. Not by nextest, which ends what takes long.
pub(crate) fn torment(seconds: u64) -> Result<()> {
    run(cargo()?
        .args(["test", "--package", "carob-tests", "--test", "torment"])
        .env("CAROB_BIN", dist()?)
        .env("CAROB_TORMENT_SECONDS", seconds.to_string()))
}

/// How long `faults` goes on, in seconds.
pub(crate) const FAULT_SECONDS: u64 = 600;

/// Kills programs of several machines and cuts them off, for `seconds`. Not by nextest, which ends what takes long.
pub(crate) fn faults(seconds: u64, seed: u64) -> Result<()> {
    crate::images::build(&["busybox".to_owned()])?;
    run(cargo()?
        .args(["test", "--package", "carob-tests", "--test", "faults", "--", "--nocapture"])
        .env("CAROB_BIN", dist()?)
        .env("CAROB_FAULT_SECONDS", seconds.to_string())
        .env("CAROB_FAULT_SEED", seed.to_string()))
}

/// Lets the release program of `revision` run Pods under load, and puts this one in its place.
pub(crate) fn upgrade(revision: &str) -> Result<()> {
    crate::images::build(&["busybox".to_owned()])?;
    let previous = dist_of(revision)?;
    run(cargo()?
        .args(["test", "--package", "carob-tests", "--test", "upgrade", "--", "--nocapture"])
        .env("CAROB_BIN", dist()?)
        .env("CAROB_PREVIOUS_BIN", previous))
}

/// Builds the release program of `revision` out of a copy of its files, by its own `cargo xtask dist`, and returns where it is.
fn dist_of(revision: &str) -> Result<PathBuf> {
    let git = || -> Result<Command> {
        let mut git = Command::new("git");
        git.current_dir(workspace()?);
        Ok(git)
    };
    let commit = output(git()?.args(["rev-parse", "--verify", &format!("{revision}^{{commit}}")]))?;
    let dir = workspace()?.join("target/upgrade").join(commit.trim());
    let program = dir.join("target").join(TARGET).join("release/carob");
    if !dir.is_dir() {
        let copy = dir.with_extension("copy");
        fs_err::create_dir_all(&copy)?;
        let archive = copy.join("files.tar");
        run(git()?.args(["archive", "--output"]).arg(&archive).arg(commit.trim()))?;
        run(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&copy))?;
        fs_err::remove_file(&archive)?;
        fs_err::rename(&copy, &dir)?;
    }
    say(&format!("building the program of {}", commit.trim()));
    run(cargo()?.current_dir(&dir).args(["xtask", "dist"]).env("CARGO_TARGET_DIR", dir.join("target")))?;
    Ok(program)
}

/// Measures the release program (bench/).
pub(crate) fn bench() -> Result<()> {
    let carob = dist()?;
    crate::images::build(&["busybox".to_owned()])?;
    run(cargo()?.args(["run", "--release", "--package", "carob-bench"]).env("CAROB_BIN", carob))
}

struct StopWatch(std::time::Instant);

impl StopWatch {
    #[expect(clippy::disallowed_methods, reason = "a development tool that reports how long its steps took")]
    fn start() -> Self {
        Self(std::time::Instant::now())
    }

    fn seconds(&self) -> f64 {
        self.0.elapsed().as_secs_f64()
    }
}
