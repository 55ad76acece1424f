//! `cargo xtask`: what the project needs besides the program itself.

mod ci;
mod images;
mod sched;
mod sh;
mod tidy;
mod vm;
mod war;

use anyhow::{Result, bail};

const USAGE: &str = "usage: cargo xtask COMMAND

  ci                 all that has to pass before a change lands: format, lints, tidy, tests, release, virtual machine
  dist               build the static release program (prints its path)
  test [FILTER...]   run the black-box tests against the release program
  vm [CAROB]         boot a virtual machine with cgroup v2 and run the smoke test there
  bench              measure the release program and print one JSON document
  bench sched [CASE] measure the scheduler's core alone: Pods a second, time of a decision, memory
  soak [--seed N] [--histories N | --seconds N]
                     run random histories of the scheduler, 100 000 of each kind, and 10 000 of volumes; check
                     docs/scheduling.md; then `faults`
  torment [SECONDS]  send hostile input to the release program for so long (60), and see that its memory comes back
  faults [SECONDS] [SEED]
                     kill servers, etcd members and agents of the release program, and cut their machines off, for so long (600)
  upgrade REVISION   let the release program of an earlier revision run Pods under load, and put this one in its place
  images [NAME...]   make the images of tests and demo from Debian's packages (target/images)
  tidy               check the house rules that ARCHITECTURE.md states
";

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let command = arguments.next();
    let rest: Vec<String> = arguments.collect();
    match command.as_deref() {
        Some("ci") => ci::all(),
        Some("dist") => {
            sh::say(&format!("the program is {}", ci::dist()?.display()));
            Ok(())
        }
        Some("test") => ci::black_box(&ci::dist()?, &rest),
        Some("bench") => match rest.split_first() {
            None => ci::bench(),
            Some((what, rest)) if what == "sched" => sched::bench(rest),
            Some((what, _)) => bail!("there is no bench of {what}\n\n{USAGE}"),
        },
        Some("soak") => sched::soak(&rest),
        Some("torment") => ci::torment(rest.first().map_or(Ok(60), |seconds| seconds.parse())?),
        Some("faults") => {
            let number = |place: usize, usual: u64| rest.get(place).map_or(Ok(usual), |text| text.parse());
            ci::faults(number(0, ci::FAULT_SECONDS)?, number(1, sched::seed_of_now()?)?)
        }
        Some("upgrade") => match &rest[..] {
            [revision] => ci::upgrade(revision),
            _ => bail!("name the earlier revision\n\n{USAGE}"),
        },
        Some("vm") => match rest.first() {
            Some(carob) => vm::smoke(carob.as_ref()),
            None => vm::smoke(&ci::dist()?),
        },
        Some("images") => {
            for archive in images::build(&rest)?.values() {
                sh::say(&format!("{}", archive.display()));
            }
            Ok(())
        }
        Some("tidy") => tidy::check(),
        Some(other) => bail!("there is no command {other}\n\n{USAGE}"),
        None => bail!("{USAGE}"),
    }
}
