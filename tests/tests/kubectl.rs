//! What kubectl prints for a list of commands, against `golden/kubectl.txt`.
//!
//! The file holds commands (`$ …`) and their normalised output: times, addresses, identifiers and host facts are replaced
//! by placeholders. `CAROB_UPDATE_GOLDEN=1` writes the file again; what changed is then reviewed like code.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result};
use carob_testkit::Cluster;

/// Days of the week, as kubectl begins a date.
const DAYS: [&str; 7] = ["Mon,", "Tue,", "Wed,", "Thu,", "Fri,", "Sat,", "Sun,"];

fn manifests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn golden() -> PathBuf {
    manifests().join("kubectl.txt")
}

/// Replaces what differs from run to run.
fn normalise(text: &str, host: &str) -> String {
    let mut lines = Vec::new();
    let text = text.replace(host, "NODE").replace(&manifests().display().to_string(), "$MANIFESTS");
    for line in text.lines() {
        let mut words: Vec<String> = line.split(' ').map(normalise_word).collect();
        // `Sat, 21 Nov`: the day on which the test runs.
        if let Some(at) = words.iter().position(|word| DAYS.contains(&word.as_str())) {
            words.splice(at..(at + 3).min(words.len()), ["DATE".to_owned()]);
        }
        // Columns are as wide as their widest word, which may be one that was replaced.
        lines.push(words.join(" ").split_whitespace().collect::<Vec<_>>().join(" "));
    }
    lines.join("\n")
}

fn normalise_word(word: &str) -> String {
    let core = word.trim_matches(|c: char| "(),\":".contains(c));
    let is_age = core.len() >= 2
        && core.ends_with(['s', 'm', 'h'])
        && core.starts_with(|c: char| c.is_ascii_digit())
        && core.chars().all(|c| c.is_ascii_digit() || "smh".contains(c));
    let is_address = core.split('.').count() == 4 && core.split('.').all(|part| part.parse::<u8>().is_ok());
    let is_uid = core.len() == 36 && core.split('-').map(str::len).eq([8, 4, 4, 4, 12]);
    let is_id = core.starts_with("carob://");
    let is_hash = core.len() == 64 && core.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_generated = core.strip_prefix("kube-api-access-").is_some_and(|rest| rest.len() == 5);
    let is_digest = core.contains("sha256:");
    let is_time = core.len() == 8 && core.split(':').map(str::len).eq([2, 2, 2]);
    let is_version = core.parse::<u64>().is_ok() && core.len() > 2;
    let replacement = match () {
        () if is_age => "AGE",
        () if is_address => "ADDRESS",
        () if is_uid => "UID",
        () if is_digest => "DIGEST",
        () if is_id || is_hash => "ID",
        () if is_generated => "kube-api-access-SUFFIX",
        () if is_time => "TIME",
        () if is_version => "NUMBER",
        () => return word.to_owned(),
    };
    word.replace(core, replacement)
}

/// Runs one line of the golden file in the host's shell.
fn run(cluster: &Cluster, line: &str) -> Result<String> {
    let mut command = cluster.host.command("bash");
    command
        .args(["-c", &format!("{line} 2>&1")])
        .current_dir("/")
        .env("KUBECONFIG", cluster.data_dir().join("admin.kubeconfig"))
        .env("MANIFESTS", manifests())
        .env("DIR", cluster.host.dir())
        .stdin(Stdio::null());
    let output = command.output().with_context(|| format!("run `{line}`"))?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        text.push_str(&format!("[exit code {}]\n", output.status.code().unwrap_or(-1)));
    }
    Ok(text)
}

#[test]
fn kubectl_prints_what_the_golden_file_holds() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.import(&["busybox", "debian"])?;
    let expected = fs_err::read_to_string(golden())?;
    let mut found = String::new();
    for line in expected.lines() {
        if line.starts_with('#') {
            found.push_str(line);
            found.push('\n');
        } else if let Some(command) = line.strip_prefix("$ ") {
            let output = normalise(&run(&cluster, command)?, cluster.host.name());
            found.push_str(&format!("$ {command}\n{output}\n"));
        }
    }
    if std::env::var_os("CAROB_UPDATE_GOLDEN").is_some() {
        fs_err::write(golden(), &found)?;
        return Ok(());
    }
    for (number, (found, expected)) in found.lines().zip(expected.lines()).enumerate() {
        assert_eq!(found, expected, "line {} of {}", number + 1, golden().display());
    }
    assert_eq!(found.lines().count(), expected.lines().count());
    Ok(())
}
