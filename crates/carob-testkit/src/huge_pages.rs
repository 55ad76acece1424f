//! Huge pages of this machine for as long as a test runs.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

/// Pages of 2 MiB that the machine has besides those that it had. They go with this value, and also with a killed test.
#[derive(Debug)]
pub struct HugePages {
    keeper: Child,
}

impl HugePages {
    /// Where the kernel is asked for pages of 2 MiB.
    pub const COUNT: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";

    /// Has the kernel set so many more aside.
    pub fn add(count: u32) -> Result<Self> {
        // In a session of its own, and deaf to what ends the test's: it takes the pages back when nobody holds its input any more.
        let script = "trap '' TERM INT HUP; had=$(cat \"$1\"); echo $((had + $2)) > \"$1\"; cat \"$1\"; read -r end; \
                      echo $(($(cat \"$1\") - $2)) > \"$1\"";
        let mut keeper = Command::new("setsid")
            .args(["sh", "-c", script, "sh", Self::COUNT, &count.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start the keeper of huge pages")?;
        let mut has = String::new();
        BufReader::new(keeper.stdout.take().context("the output is piped")?).read_line(&mut has)?;
        let pages = Self { keeper };
        let has: u32 = has.trim().parse().context("the keeper says how many there are")?;
        ensure!(has >= count, "this machine has memory for {has} huge pages, and the test needs {count}");
        Ok(pages)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let ended = self.keeper.wait();
        if !std::thread::panicking() {
            assert!(ended.expect("the keeper can be waited for").success(), "huge pages were not given back");
        }
    }
}
