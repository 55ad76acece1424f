//! What a container's first process does when it is told to start.

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};

/// What shells answer for a command that is not there, and for one that cannot be run.
const EXIT_NOT_FOUND: i32 = 127;
const EXIT_NOT_RUNNABLE: i32 = 126;

/// Runs the program of a container. Where that fails once the container has started, the reason goes to its standard
/// error, which is its log: nobody listens elsewhere any more.
#[derive(Clone)]
pub(crate) struct Start;

impl Executor for Start {
    /// At creation: a program that is not there is known early, and in runc's words.
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let process = spec.process().as_ref();
        let program = process.and_then(|process| process.args().as_ref()?.first());
        let program = program.ok_or_else(|| ExecutorValidationError::ArgValidationError("no command".to_owned()))?;
        let env = process.and_then(|process| process.env().clone()).unwrap_or_default();
        let search = env.iter().rev().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or_default();
        let problem = match find_program(program, search) {
            Some(file) if !file.exists() => format!("exec: {program:?}: stat {program}: no such file or directory"),
            Some(file) if file.is_dir() => format!("exec: {program:?}: is a directory"),
            Some(_) => return Ok(()),
            None => format!("exec: {program:?}: executable file not found in $PATH"),
        };
        Err(ExecutorValidationError::ArgValidationError(problem))
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let arguments = spec.process().as_ref().and_then(|process| process.args().as_ref());
        let (program, arguments) = arguments.and_then(|all| all.split_first()).ok_or(ExecutorError::InvalidArg)?;
        let search = std::env::var("PATH").unwrap_or_default();
        let Some(file) = find_program(program, &search) else {
            say(&format!("exec {program}: not found"));
            std::process::exit(EXIT_NOT_FOUND);
        };
        let error = Command::new(file).arg0(program).args(arguments).exec();
        say(&format!("exec {program}: {error}"));
        std::process::exit(EXIT_NOT_RUNNABLE);
    }
}

fn say(text: &str) {
    // The container's log may be closed; its exit code still tells.
    if writeln!(std::io::stderr(), "{text}").is_err() {
        std::process::exit(EXIT_NOT_RUNNABLE);
    }
}

/// The file that a name means: itself where it has a slash, else the first executable one in the search path.
pub(crate) fn find_program(name: impl AsRef<OsStr>, search: &str) -> Option<PathBuf> {
    let name = Path::new(name.as_ref());
    if name.as_os_str().as_encoded_bytes().contains(&b'/') {
        return Some(name.to_owned());
    }
    let runs = |path: &PathBuf| path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok();
    search.split(':').map(|directory| Path::new(directory).join(name)).find(runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_looked_for_as_shells_do() {
        let directory = tempfile::tempdir().expect("a directory");
        let here = directory.path().display().to_string();
        fs_err::copy("/bin/true", directory.path().join("tool")).expect("a program");
        fs_err::write(directory.path().join("text"), "no program").expect("a file");
        let search = format!("/no/such/directory:{here}");
        assert_eq!(find_program("tool", &search), Some(directory.path().join("tool")));
        assert_eq!(find_program("text", &search), None, "not executable");
        assert_eq!(find_program("tool", ""), None);
        assert_eq!(find_program("./tool", ""), Some("./tool".into()));
        assert_eq!(find_program("/bin/none", &search), Some("/bin/none".into()), "for execve to refuse");
    }
}
