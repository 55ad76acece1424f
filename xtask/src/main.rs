//! `cargo xtask`: what the project needs besides the program itself.

mod images;
mod sh;
mod tidy;
mod war;

use anyhow::{Result, bail};

const USAGE: &str = "usage: cargo xtask COMMAND

  tidy               check the house rules that ARCHITECTURE.md states
  images [NAME...]   make the images of tests and demo from Debian's packages (target/images)
";

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let command = arguments.next();
    let rest: Vec<String> = arguments.collect();
    match command.as_deref() {
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
