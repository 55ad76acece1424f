//! Variables from a file that another container of the Pod has left in a volume (kubelet `pkg/kubelet/util/env`, KEP-3721).

use std::io::{self, Read as _};
use std::path::Path;

/// Bytes of a file of variables; all of an environment has to fit into a few times that (execve(2)).
const FILE_LEN_MAX: u64 = 1 << 20;

/// Why a file gives no variables.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    #[error("invalid environment variable format at line {line}: {problem}")]
    Form { line: usize, problem: &'static str },
    #[error("the file has more than {FILE_LEN_MAX} bytes")]
    TooLong,
    #[error("the file is not UTF-8")]
    NotText,
}

/// Reads the file `path` of the volume at `volume`; no link in it leads out of the volume.
pub(super) fn read(volume: &Path, path: &str) -> io::Result<String> {
    let file = crate::volumes::sub_path::open_file(volume, path)?;
    let mut bytes = Vec::new();
    file.take(FILE_LEN_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_LEN_MAX {
        return Err(io::Error::other(FileError::TooLong));
    }
    String::from_utf8(bytes).map_err(|_| io::Error::other(FileError::NotText))
}

/// The value of `key` in lines of `NAME='value'`, in which a value may go on over several lines and nothing is expanded. `None`
/// where it is not there, or empty. Pure.
pub(super) fn value(text: &str, key: &str) -> Result<Option<String>, FileError> {
    let blank = |letter: char| letter == ' ' || letter == '\t';
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        let wrong = |problem| FileError::Form { line: number + 1, problem };
        let line = line.trim_start_matches(blank);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, rest) = line.split_once('=').ok_or_else(|| wrong("missing '='"))?;
        if name.trim_end_matches(blank).is_empty() {
            return Err(wrong("empty variable name"));
        }
        if name.ends_with(blank) {
            return Err(wrong("whitespace before '=' is not allowed"));
        }
        if rest.starts_with(blank) {
            // As in a shell, the variable is empty then.
            if name == key {
                return Ok(None);
            }
            continue;
        }
        let mut rest = rest.strip_prefix('\'').ok_or_else(|| wrong("value must be enclosed in single quotes"))?;
        let mut value = String::new();
        let behind = loop {
            if let Some((inside, behind)) = rest.split_once('\'') {
                value.push_str(inside);
                break behind;
            }
            value.push_str(rest);
            value.push('\n');
            rest = lines.next().ok_or_else(|| wrong("unclosed single quote"))?.1;
        };
        let behind = behind.trim_start_matches(blank);
        if !behind.is_empty() && !behind.starts_with('#') {
            return Err(wrong("unexpected content after closing quote"));
        }
        if name == key {
            return Ok(Some(value).filter(|value| !value.is_empty()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_quoted_and_nothing_is_expanded() {
        let text = "# comment\n\n  A='1'\nB='two\nlines' # more\nC= 'x'\nD=''\nE='$A'\n";
        for (key, expected) in
            [("A", Some("1")), ("B", Some("two\nlines")), ("C", None), ("D", None), ("E", Some("$A")), ("F", None)]
        {
            assert_eq!(value(text, key).expect("read").as_deref(), expected, "{key}");
        }
    }

    #[test]
    fn what_is_wrong_before_the_key_is_named() {
        for (text, line, problem) in [
            ("A", 1, "missing '='"),
            ("\n='x'", 2, "empty variable name"),
            ("A ='x'", 1, "whitespace before '=' is not allowed"),
            ("A=x", 1, "value must be enclosed in single quotes"),
            ("A='x", 1, "unclosed single quote"),
            ("A='x' y", 1, "unexpected content after closing quote"),
        ] {
            assert_eq!(value(text, "Z"), Err(FileError::Form { line, problem }), "{text}");
        }
    }

    #[test]
    fn a_file_is_read_inside_its_volume() {
        let dir = tempfile::tempdir().expect("a directory");
        let volume = dir.path().join("volume");
        fs_err::create_dir(&volume).expect("made");
        fs_err::write(volume.join("vars"), "A='1'").expect("written");
        fs_err::write(dir.path().join("secret"), "A='2'").expect("written");
        std::os::unix::fs::symlink("../secret", volume.join("out")).expect("linked");
        assert_eq!(read(&volume, "vars").expect("read"), "A='1'");
        assert!(read(&volume, "out").is_err() && read(&volume, "../secret").is_err());
        assert_eq!(read(&volume, "none").map_err(|error| error.kind()), Err(io::ErrorKind::NotFound));
        fs_err::write(volume.join("huge"), vec![b'#'; 2 << 20]).expect("written");
        assert!(read(&volume, "huge").is_err());
    }
}
