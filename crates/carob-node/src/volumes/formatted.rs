//! Block devices of `local` volumes that Pods use as directories: formatted if there is nothing on them, checked, and mounted, with
//! the machine's own programs (k8s.io/mount-utils, SafeFormatAndMount; `pkg/volume/local`).

use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::ExitStatus;

use carob_sys::disks::Disks;
use fs_err as fs;
use rustix::fs::FlockOperation;

/// Bytes of what a program says that are told.
const WORDS_MAX: usize = 1024;
const DEFAULT_TYPE: &str = "ext4";
/// `blkid` found nothing (blkid(8)).
const NOTHING_FOUND: i32 = 2;
/// Errors are left that only a person can mend (fsck(8)).
const UNCORRECTED: i32 = 4;

#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("{0:?} is not the name of a file system")]
    Type(String),
    #[error("{program} is not installed on this machine: {purpose}")]
    Missing { program: String, purpose: &'static str },
    #[error("run {program}")]
    Start {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("{program} on {device} failed: {status}\nOutput: {output}")]
    Failed { program: String, device: String, status: ExitStatus, output: String },
    #[error("cannot mount unformatted disk {0} as we are manipulating it in read-only mode")]
    UnformattedReadOnly(String),
    #[error("'fsck' found errors on device {device} but could not correct them: {output}")]
    Uncorrected { device: String, output: String },
}

/// A device that is wanted as a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wish<'a> {
    pub(super) device: &'a Path,
    /// What to format it as, and how to mount it.
    pub(super) kind: Option<&'a str>,
    pub(super) options: &'a [String],
}

/// What is on a device, as `blkid` says it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Content {
    Nothing,
    /// A file system.
    Known(String),
    /// Partitions, or something else that is not to be written over.
    Other,
}

/// Reads the lines `NAME=value` of `blkid -o export`. Pure.
fn parse(output: &str) -> Content {
    let value = |name: &str| output.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    match (value("TYPE"), value("PTTYPE")) {
        (Some(kind), None) if !kind.is_empty() => Content::Known(kind.to_owned()),
        // Nothing is known for sure of what has a partition table.
        _ => Content::Other,
    }
}

fn shown(device: &Path) -> String {
    device.display().to_string()
}

fn run(
    disks: &dyn Disks,
    program: &str,
    arguments: &[&str],
    purpose: &'static str,
) -> Result<(ExitStatus, String), FormatError> {
    let output = disks.run(program, arguments).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => FormatError::Missing { program: program.to_owned(), purpose },
        _ => FormatError::Start { program: program.to_owned(), source },
    })?;
    let words = [output.stdout, output.stderr].concat();
    let words = String::from_utf8_lossy(&words[..words.len().min(WORDS_MAX)]).trim().to_owned();
    Ok((output.status, words))
}

fn expect(program: &str, device: &Path, (status, output): (ExitStatus, String)) -> Result<(), FormatError> {
    if status.success() {
        return Ok(());
    }
    Err(FormatError::Failed { program: program.to_owned(), device: shown(device), status, output })
}

fn look(disks: &dyn Disks, device: &Path) -> Result<Content, FormatError> {
    let purpose = "it tells whether there is anything on a device";
    let path = shown(device);
    let arguments = ["-p", "-s", "TYPE", "-s", "PTTYPE", "-o", "export", &path];
    let (status, output) = run(disks, "blkid", &arguments, purpose)?;
    match status.code() {
        Some(0) => Ok(parse(&output)),
        Some(NOTHING_FOUND) => Ok(Content::Nothing),
        _ => Err(FormatError::Failed { program: "blkid".to_owned(), device: path, status, output }),
    }
}

/// What `mkfs` is told beside the device. Pure.
fn format_flags(kind: &str) -> &'static [&'static str] {
    match kind {
        "ext3" | "ext4" => &["-F", "-m0"],
        "xfs" => &["-f"],
        _ => &[],
    }
}

/// Mounts the device at `target`, which is made. Doing it again changes nothing. May block.
pub(super) fn mount(disks: &dyn Disks, wish: &Wish<'_>, target: &Path) -> Result<(), FormatError> {
    let kind = wish.kind.filter(|kind| !kind.is_empty()).unwrap_or(DEFAULT_TYPE);
    // It becomes part of a program's name.
    if !kind.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)) || kind.starts_with('-') {
        return Err(FormatError::Type(kind.to_owned()));
    }
    fs::create_dir_all(target)?;
    if disks.is_mount_point(target)? {
        return Ok(());
    }
    let device = fs::File::open(wish.device)?;
    // Pods that share the volume come at the same time; the lock is the one that keeps others from probing meanwhile
    // (systemd, Locking Block Device Access).
    rustix::fs::flock(device.as_fd(), FlockOperation::LockExclusive).map_err(io::Error::from)?;
    if !disks.is_mounted(wish.device)? {
        prepare(disks, wish, kind)?;
        disks.between()?;
    }
    let mut options = wish.options.to_vec();
    options.push("defaults".to_owned());
    let (options, path, place) = (options.join(","), shown(wish.device), target.display().to_string());
    let mounted = run(disks, "mount", &["-t", kind, "-o", &options, &path, &place], "it mounts volumes")?;
    expect("mount", wish.device, mounted)?;
    Ok(disks.between()?)
}

/// Formats a device that has nothing on it, and checks one that has.
fn prepare(disks: &dyn Disks, wish: &Wish<'_>, kind: &str) -> Result<(), FormatError> {
    let (path, is_read_only) = (shown(wish.device), wish.options.iter().any(|option| option == "ro"));
    match look(disks, wish.device)? {
        Content::Nothing if is_read_only => Err(FormatError::UnformattedReadOnly(path)),
        Content::Nothing => {
            let program = format!("mkfs.{kind}");
            let arguments = [format_flags(kind), &[path.as_str()]].concat();
            expect(&program, wish.device, run(disks, &program, &arguments, "the device has no file system yet")?)
        }
        Content::Known(_) if !is_read_only => check(disks, wish.device),
        // Whether it can be mounted, the kernel knows.
        Content::Known(_) | Content::Other => Ok(()),
    }
}

fn check(disks: &dyn Disks, device: &Path) -> Result<(), FormatError> {
    let path = shown(device);
    match run(disks, "fsck", &["-a", &path], "it checks file systems") {
        Ok((status, output)) if status.code() == Some(UNCORRECTED) => {
            Err(FormatError::Uncorrected { device: path, output })
        }
        Ok((status, output)) => {
            if !status.success() {
                tracing::info!(device = path, %status, output, "fsck had something to say");
            }
            Ok(())
        }
        // Whether it is sound, the kernel finds out too.
        Err(error @ FormatError::Missing { .. }) => {
            tracing::warn!(device = path, %error, "a device is mounted unchecked");
            Ok(())
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use carob_sys::disks::{Machine, unmount};

    use super::*;

    #[test]
    fn what_is_on_a_device_is_read_and_doubt_is_no_room() {
        assert_eq!(parse("DEVNAME=/dev/x\nTYPE=ext4\n"), Content::Known("ext4".to_owned()));
        for doubtful in ["TYPE=ext4\nPTTYPE=dos", "PTTYPE=gpt", "", "TYPE="] {
            assert_eq!(parse(doubtful), Content::Other, "{doubtful:?}");
        }
        assert_eq!(
            [format_flags("ext4"), format_flags("xfs"), format_flags("btrfs")],
            [&["-F", "-m0"][..], &["-f"], &[]]
        );
        let wish = |kind| Wish { device: Path::new("/dev/null"), kind: Some(kind), options: &[] };
        for bad in ["../x", "a b", "-t", "ext4;"] {
            assert!(matches!(mount(&Machine, &wish(bad), Path::new("/nowhere")), Err(FormatError::Type(_))), "{bad}");
        }
    }

    #[test]
    fn a_device_is_formatted_once_and_what_is_on_it_stays() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("disk");
        let file = fs::OpenOptions::new().read(true).write(true).create_new(true).open(&path).expect("made");
        file.set_len(16 << 20).expect("sized");
        let device = carob_sys::loop_device::attach(&file).expect("attached");
        let (first, second) = (dir.path().join("first"), dir.path().join("second"));
        let read_only = Wish { device: &device, kind: None, options: &["ro".to_owned()] };
        assert!(matches!(mount(&Machine, &read_only, &first), Err(FormatError::UnformattedReadOnly(_))));
        let wish = Wish { device: &device, kind: Some("ext4"), options: &["noatime".to_owned()] };
        mount(&Machine, &wish, &first).expect("formatted and mounted");
        fs::write(first.join("file"), "kept").expect("written");
        mount(&Machine, &wish, &first).expect("it is mounted");
        mount(&Machine, &wish, &second).expect("a second Pod has it too");
        assert_eq!(fs::read_to_string(second.join("file")).expect("there"), "kept");
        unmount(&second).expect("unmounted");
        unmount(&first).expect("unmounted");
        mount(&Machine, &wish, &first).expect("checked and mounted");
        assert_eq!(fs::read_to_string(first.join("file")).expect("there"), "kept");
        unmount(&first).expect("unmounted");
        carob_sys::loop_device::detach(&device).expect("detached");
    }
}
