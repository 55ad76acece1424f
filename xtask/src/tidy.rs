//! What ARCHITECTURE.md says of the house, held by a test.
//!
//! The rules: the allowed edges between crates, the length of functions and files, `unsafe` and the network in their places, no
//! unbounded channel, no wildcard arm on lifecycle enums, no note to do later, no name that says nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use fs_err as fs;

use crate::sh;

/// The edges that are allowed, and no others: what may depend on what (ARCHITECTURE.md, "The map").
const EDGES: &[(&str, &[&str])] = &[
    ("carob-kit", &[]),
    ("carob-api", &["carob-kit"]),
    ("carob-cel", &["carob-api"]),
    ("carob-sys", &["carob-kit"]),
    ("carob-cri", &["carob-kit"]),
    ("carob-grpc", &["carob-kit"]),
    ("carob-store", &["carob-kit", "carob-grpc"]),
    ("carob-streams", &["carob-kit", "carob-cri"]),
    ("carob-cri-socket", &["carob-kit", "carob-cri", "carob-grpc", "carob-streams"]),
    ("carob-csi", &["carob-grpc"]),
    ("carob-devices", &["carob-grpc"]),
    ("carob-client", &["carob-kit", "carob-api"]),
    ("carob-image", &["carob-kit", "carob-sys"]),
    ("carob-import", &["carob-api"]),
    ("carob-net", &["carob-kit", "carob-sys"]),
    ("carob-cni", &["carob-kit", "carob-sys", "carob-net"]),
    ("carob-shim", &["carob-kit", "carob-sys"]),
    ("carob-oneshot", &["carob-kit", "carob-sys", "carob-shim"]),
    ("carob-runtime", &["carob-kit", "carob-sys", "carob-cri", "carob-image", "carob-net", "carob-cni", "carob-shim"]),
    ("carob-apiserver", &["carob-kit", "carob-api", "carob-cel", "carob-store", "carob-streams"]),
    ("carob-explain", &["carob-api", "carob-runtime"]),
    ("carob-scheduler", &["carob-kit", "carob-api", "carob-client"]),
    ("carob-controllers", &["carob-kit", "carob-api", "carob-client"]),
    ("carob-dns", &["carob-kit", "carob-api", "carob-sys", "carob-client"]),
    ("carob-proxy", &["carob-kit", "carob-api", "carob-sys", "carob-client"]),
    ("carob-ingress", &["carob-kit", "carob-client"]),
    ("carob-local-storage", &["carob-kit", "carob-api", "carob-sys", "carob-client"]),
    (
        "carob-node",
        &[
            "carob-kit",
            "carob-api",
            "carob-sys",
            "carob-cri",
            "carob-csi",
            "carob-devices",
            "carob-client",
            "carob-streams",
        ],
    ),
    (
        "carob",
        &[
            "carob-kit",
            "carob-api",
            "carob-sys",
            "carob-cri",
            "carob-cri-socket",
            "carob-store",
            "carob-client",
            "carob-explain",
            "carob-image",
            "carob-import",
            "carob-local-storage",
            "carob-net",
            "carob-cni",
            "carob-dns",
            "carob-ingress",
            "carob-proxy",
            "carob-runtime",
            "carob-apiserver",
            "carob-scheduler",
            "carob-controllers",
            "carob-node",
            "carob-streams",
        ],
    ),
    ("carob-bench", &["carob-testkit"]),
    ("carob-fuzz", &[]),
    ("carob-testkit", &["carob-csi", "carob-devices", "carob-grpc"]),
    ("carob-tests", &["carob-testkit"]),
    ("xtask", &[]),
];

const FILE_LINES_MAX: usize = 800;
const FUNCTION_LINES_MAX: usize = 100;
/// Enums whose every variant has to be thought of where they are matched.
const LIFECYCLES: &[&str] = &["PodPhase", "Sandbox", "ContainerState", "WorkerState", "SandboxState"];
/// Names of modules that say nothing about what is in them.
const EMPTY_NAMES: &[&str] = &["utils", "util", "helpers", "helper", "common", "misc", "manager2", "advanced"];
/// Files whose length has a reason, which stands at their beginning.
const LONG_FILE_REASON: &str = "Long by design:";

/// Checks the whole tree and fails with every finding.
pub(crate) fn check() -> Result<()> {
    let root = sh::workspace()?;
    let mut findings = Vec::new();
    check_edges(&root, &mut findings)?;
    for path in sources(&root)? {
        let text = fs::read_to_string(&path)?;
        let name = path.strip_prefix(&root).unwrap_or(&path).display().to_string();
        check_source(&name, &text, &mut findings);
    }
    if findings.is_empty() {
        return Ok(());
    }
    bail!("{} findings:\n{}", findings.len(), findings.join("\n"));
}

fn check_edges(root: &Path, findings: &mut Vec<String>) -> Result<()> {
    let allowed: BTreeMap<&str, &[&str]> = EDGES.iter().copied().collect();
    let metadata = sh::output(
        std::process::Command::new("cargo")
            .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
            .current_dir(root),
    )?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata)?;
    for package in metadata["packages"].as_array().context("cargo metadata lists packages")? {
        let name = package["name"].as_str().context("a package has a name")?;
        let Some(edges) = allowed.get(name) else {
            findings.push(format!("{name}: a crate that the map does not know (xtask/src/tidy.rs, EDGES)"));
            continue;
        };
        for dependency in package["dependencies"].as_array().context("a package lists its dependencies")? {
            let to = dependency["name"].as_str().context("a dependency has a name")?;
            let in_house = to == "carob" || to.starts_with("carob-");
            if in_house && dependency["kind"].is_null() && !edges.contains(&to) {
                findings.push(format!("{name} -> {to}: an edge that the map does not allow"));
            }
        }
    }
    Ok(())
}

fn sources(root: &Path) -> Result<Vec<PathBuf>> {
    let listing = sh::output(
        std::process::Command::new("git")
            .args(["ls-files", "--cached", "--others", "--exclude-standard", "*.rs"])
            .current_dir(root),
    )?;
    Ok(listing.lines().map(|line| root.join(line)).filter(|path| path.exists()).collect())
}

fn check_source(name: &str, text: &str, findings: &mut Vec<String>) {
    let generated = text.lines().take(3).any(|line| line.contains("@generated"));
    let lines: Vec<&str> = text.lines().collect();
    if lines.len() > FILE_LINES_MAX && !generated && !text.contains(LONG_FILE_REASON) {
        findings.push(format!(
            "{name}: {} lines, at most {FILE_LINES_MAX} without a reason (`//! {LONG_FILE_REASON} …`)",
            lines.len()
        ));
    }
    if let Some(stem) = Path::new(name).file_stem().and_then(|stem| stem.to_str())
        && EMPTY_NAMES.contains(&stem)
    {
        findings.push(format!("{name}: a module name that says nothing"));
    }
    if name.starts_with("xtask/src/tidy") {
        return;
    }
    for (number, line) in lines.iter().enumerate() {
        for problem in line_problems(name, line) {
            findings.push(format!("{name}:{}: {problem}", number + 1));
        }
    }
    if !generated {
        for (line, length) in long_functions(&lines) {
            findings.push(format!(
                "{name}:{line}: a function of {length} lines, at most {FUNCTION_LINES_MAX} without a reason"
            ));
        }
        for line in wildcard_arms(&lines) {
            findings.push(format!("{name}:{line}: a wildcard arm on a lifecycle enum"));
        }
    }
}

/// What is wrong with one line by itself.
fn line_problems(file: &str, line: &str) -> Vec<&'static str> {
    let (code, comment) = match line.find("//") {
        Some(at) if !line[..at].ends_with(':') => line.split_at(at),
        _ => (line, ""),
    };
    let mut problems = Vec::new();
    let words: BTreeSet<&str> = code.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    if words.contains("unsafe")
        && !file.starts_with("crates/carob-sys/")
        && !line.contains("unsafe_")
        && !code.contains('"')
    {
        problems.push("unsafe outside carob-sys");
    }
    if words.contains("unbounded_channel") || words.contains("unbounded") {
        problems.push("an unbounded channel");
    }
    if ["TODO", "FIXME", "XXX", "HACK"].iter().any(|word| comment.contains(word))
        || words.contains("todo") && code.contains("todo!(")
    {
        problems.push("a note to do later: do it or write an issue");
    }
    if words.contains("ignore") && code.contains("#[ignore") {
        problems.push("a test that is skipped");
    }
    problems
}

/// First line and length of every function that is too long. Functions are found by indentation, which rustfmt guarantees.
fn long_functions(lines: &[&str]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let trimmed = line.trim_start();
        let indent = line.len() - trimmed.len();
        let before = trimmed.split("fn ").next().unwrap_or("");
        let is_function = trimmed.contains("fn ")
            && before.split_whitespace().all(|word| {
                word.starts_with("pub")
                    || ["const", "async", "unsafe", "extern", "\"C\"", "in", "crate)", "super)"].contains(&word)
            });
        if !is_function || reason_above(lines, start) {
            continue;
        }
        let end = lines[start..].iter().position(|line| {
            line.get(..indent).is_some_and(|head| head.trim().is_empty())
                && line.get(indent..).is_some_and(|rest| rest.starts_with('}'))
        });
        let one_line =
            lines[start..].iter().position(|line| line.trim_end().ends_with(';') || line.trim_end().ends_with('}'));
        if let (Some(end), Some(first_end)) = (end, one_line) {
            let is_declaration = lines[start..=start + first_end].iter().all(|line| !line.trim_end().ends_with('{'));
            if !is_declaration && end + 1 > FUNCTION_LINES_MAX {
                found.push((start + 1, end + 1));
            }
        }
    }
    found
}

/// Whether an `expect(clippy::too_many_lines, reason = …)` stands right above.
fn reason_above(lines: &[&str], at: usize) -> bool {
    lines[..at]
        .iter()
        .rev()
        .take_while(|line| line.trim_start().starts_with(['#', '/']))
        .any(|line| line.contains("too_many_lines"))
}

/// Lines with `_ =>` in a match whose other arms name a lifecycle enum.
fn wildcard_arms(lines: &[&str]) -> Vec<usize> {
    let mut found = Vec::new();
    for (number, line) in lines.iter().enumerate() {
        let trimmed = line.trim_start();
        if !trimmed.starts_with("_ =>") {
            continue;
        }
        let indent = line.len() - trimmed.len();
        let siblings = lines[..number]
            .iter()
            .rev()
            .take_while(|other| other.trim().is_empty() || other.len() - other.trim_start().len() >= indent);
        let names_lifecycle = siblings
            .filter(|other| other.len() - other.trim_start().len() == indent)
            .any(|other| LIFECYCLES.iter().any(|name| other.trim_start().starts_with(&format!("{name}::"))));
        if names_lifecycle {
            found.push(number + 1);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_tidy() {
        if let Err(findings) = check() {
            panic!("{findings:#}");
        }
    }

    #[track_caller]
    fn finds(file: &str, text: &str, expected: &str) {
        let mut findings = Vec::new();
        check_source(file, text, &mut findings);
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert!(findings[0].contains(expected), "{findings:?}");
    }

    #[test]
    fn each_rule_finds_what_it_is_for() {
        finds("crates/carob-node/src/a.rs", "fn f() { unsafe { g() } }\n", "unsafe");
        finds("crates/carob-node/src/a.rs", "    let (a, b) = mpsc::unbounded_channel();\n", "unbounded");
        finds("crates/carob-node/src/a.rs", "// TODO: later\n", "later");
        finds("crates/carob-node/src/utils.rs", "\n", "says nothing");
        finds("crates/carob-node/src/a.rs", &"\n".repeat(801), "801 lines");
        finds("crates/carob-node/src/a.rs", &format!("fn f() {{\n{}}}\n", "    g();\n".repeat(100)), "102 lines");
        finds("crates/carob-node/src/a.rs", "match s {\n    Sandbox::Gone => 1,\n    _ => 2,\n}\n", "wildcard");
    }

    #[test]
    fn what_is_allowed_is_not_found() {
        let mut findings = Vec::new();
        check_source(
            "crates/carob-sys/src/a.rs",
            "fn f() { unsafe { g() } }\nmatch x {\n    1 => 1,\n    _ => 2,\n}\n",
            &mut findings,
        );
        assert_eq!(findings, Vec::<String>::new());
    }
}
