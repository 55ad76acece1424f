//! A machine's loop devices, quotas, disks and mounts, as tables: they outlive the processes of the machine, and what is left in
//! them is a leak.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output};
use std::sync::{Arc, Mutex, MutexGuard};

use carob_sys::disks::Disks;
use carob_sys::project::Usage;

/// Where a disk says that it has a file system, behind what Pods write.
const MAGIC_AT: u64 = 4096;
const BEFORE_MAGIC: [u8; 4096] = [0; 4096];
const MAGIC: &[u8] = b"a file system";

#[derive(Debug)]
struct Loop {
    /// As in the kernel, the file stays for as long as it is shown.
    file: File,
    path: PathBuf,
}

#[derive(Debug, Default)]
struct State {
    loops: BTreeMap<PathBuf, Loop>,
    /// Directories that count for a project. Each is open, so that no other one gets its inode.
    counted: Vec<(OwnedFd, u32)>,
    limits: BTreeMap<u32, u64>,
    /// Disks of the machine, which are files here.
    disks: Vec<PathBuf>,
    /// What is mounted, by where.
    mounts: BTreeMap<PathBuf, PathBuf>,
}

/// What all processes of a machine share.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    devices: PathBuf,
    state: Arc<Mutex<State>>,
}

/// What becomes of a process after some steps on its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    /// It ends.
    End { after: u64 },
    /// What it does then fails, and it goes on.
    Failure { after: u64 },
}

/// A process's way to the machine. It may end, or fail once, between any two steps.
#[derive(Debug)]
pub(crate) struct Process {
    machine: Machine,
    trouble: Mutex<Option<Trouble>>,
}

fn same(left: &File, right: &File) -> io::Result<bool> {
    let (left, right) = (left.metadata()?, right.metadata()?);
    Ok((left.dev(), left.ino()) == (right.dev(), right.ino()))
}

fn has_file_system(disk: &Path) -> io::Result<bool> {
    let mut found = [0; MAGIC.len()];
    let file = fs_err::File::open(disk)?;
    Ok(file.file().read_exact_at(&mut found, MAGIC_AT).is_ok() && found == *MAGIC)
}

impl Machine {
    /// `devices` is where its device nodes are.
    pub(crate) fn new(devices: PathBuf) -> Self {
        Self { devices, state: Arc::default() }
    }

    pub(crate) fn process(&self) -> Arc<Process> {
        Arc::new(Process { machine: self.clone(), trouble: Mutex::new(None) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the machine panics")
    }

    /// The files that devices show.
    pub(crate) fn shown(&self) -> Vec<PathBuf> {
        self.state().loops.values().map(|held| held.path.clone()).collect()
    }

    /// The projects that have a limit, with the limit.
    pub(crate) fn limits(&self) -> BTreeMap<u32, u64> {
        self.state().limits.clone()
    }

    /// The project that a directory counts for; 0 for none.
    pub(crate) fn project_of(&self, dir: &Path) -> io::Result<u32> {
        Process::project(&self.state(), fs_err::File::open(dir)?.file().as_fd())
    }

    /// Adds a disk that is a file.
    pub(crate) fn add_disk(&self, path: PathBuf) {
        self.state().disks.push(path);
    }

    /// What is mounted, by where.
    pub(crate) fn mounts(&self) -> BTreeMap<PathBuf, PathBuf> {
        self.state().mounts.clone()
    }
}

impl Process {
    fn trouble(&self) -> MutexGuard<'_, Option<Trouble>> {
        self.trouble.lock().expect("no holder of the trouble panics")
    }

    /// Ends the process after so many further steps.
    pub(crate) fn end_after(&self, after: u64) {
        *self.trouble() = Some(Trouble::End { after });
    }

    /// What the process does after so many further steps fails.
    pub(crate) fn fail_after(&self, after: u64) {
        *self.trouble() = Some(Trouble::Failure { after });
    }

    /// Nothing befalls it any more.
    pub(crate) fn go_on(&self) {
        *self.trouble() = None;
    }

    pub(crate) fn has_ended(&self) -> bool {
        *self.trouble() == Some(Trouble::End { after: 0 })
    }

    fn project(state: &State, dir: BorrowedFd<'_>) -> io::Result<u32> {
        let wanted = rustix::fs::fstat(dir)?;
        for (held, project) in &state.counted {
            let stat = rustix::fs::fstat(held)?;
            if (stat.st_dev, stat.st_ino) == (wanted.st_dev, wanted.st_ino) {
                return Ok(*project);
            }
        }
        Ok(0)
    }
}

impl Disks for Process {
    fn attach(&self, file: &fs_err::File) -> io::Result<PathBuf> {
        if let Some(device) = self.find(file.file())? {
            return Ok(device);
        }
        let mut state = self.machine.state();
        let free = (0..).map(|number| self.machine.devices.join(format!("loop{number}")));
        let device = free.into_iter().find(|device| !state.loops.contains_key(device)).expect("numbers do not end");
        let held = Loop { file: file.file().try_clone()?, path: file.path().to_owned() };
        state.loops.insert(device.clone(), held);
        Ok(device)
    }

    fn find(&self, file: &File) -> io::Result<Option<PathBuf>> {
        for (device, held) in &self.machine.state().loops {
            if same(&held.file, file)? {
                return Ok(Some(device.clone()));
            }
        }
        Ok(None)
    }

    fn detach(&self, device: &Path) -> io::Result<()> {
        self.machine.state().loops.remove(device);
        Ok(())
    }

    fn refresh_size(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn is_of(&self, device: &Path, path: &Path) -> io::Result<bool> {
        Ok(self.machine.state().loops.get(device).is_some_and(|held| held.path == path))
    }

    fn is_enforced(&self, _: BorrowedFd<'_>) -> io::Result<bool> {
        Ok(true)
    }

    fn assign(&self, dir: BorrowedFd<'_>, project: u32) -> io::Result<()> {
        let held = dir.try_clone_to_owned()?;
        self.machine.state().counted.push((held, project));
        Ok(())
    }

    fn limit(&self, _: BorrowedFd<'_>, project: u32, bytes: u64) -> io::Result<()> {
        let mut state = self.machine.state();
        match bytes {
            0 => drop(state.limits.remove(&project)),
            bytes => drop(state.limits.insert(project, bytes)),
        }
        Ok(())
    }

    fn project_of(&self, dir: BorrowedFd<'_>) -> io::Result<u32> {
        Self::project(&self.machine.state(), dir)
    }

    fn usage(&self, _: BorrowedFd<'_>, project: u32) -> io::Result<Usage> {
        let state = self.machine.state();
        let mut inodes = 0;
        for (held, _) in state.counted.iter().filter(|(_, of)| *of == project) {
            inodes += u64::from(rustix::fs::fstat(held.as_fd())?.st_nlink > 0);
        }
        let limit_bytes = state.limits.get(&project).copied().unwrap_or(0);
        Ok(Usage { bytes: 0, inodes, limit_bytes })
    }

    fn is_device(&self, path: &Path) -> io::Result<bool> {
        Ok(self.machine.state().disks.iter().any(|disk| disk == path))
    }

    fn is_mounted(&self, device: &Path) -> io::Result<bool> {
        Ok(self.machine.state().mounts.values().any(|mounted| mounted == device))
    }

    fn is_mount_point(&self, path: &Path) -> io::Result<bool> {
        fs_err::symlink_metadata(path)?;
        Ok(self.machine.state().mounts.contains_key(path))
    }

    fn unmount(&self, path: &Path) -> io::Result<()> {
        self.machine.state().mounts.remove(path);
        Ok(())
    }

    /// The programs as this machine has them: their last argument but for `mount` is the device.
    fn run(&self, program: &str, arguments: &[&str]) -> io::Result<Output> {
        let answer = |code: i32, words: &str| {
            Ok(Output { status: ExitStatus::from_raw(code << 8), stdout: words.into(), stderr: Vec::new() })
        };
        let [.., before, last] = arguments else { return answer(1, "too few arguments") };
        match program {
            "blkid" if has_file_system(Path::new(last))? => answer(0, "TYPE=ext4"),
            "blkid" => answer(2, ""),
            "mkfs.ext4" => {
                let file = fs_err::OpenOptions::new().write(true).open(last)?;
                file.file().write_all_at(&BEFORE_MAGIC, 0)?;
                file.file().write_all_at(MAGIC, MAGIC_AT)?;
                answer(0, "")
            }
            "fsck" => answer(0, ""),
            "mount" if !has_file_system(Path::new(before))? => answer(32, "wrong fs type"),
            "mount" => {
                self.machine.state().mounts.insert(PathBuf::from(last), PathBuf::from(before));
                answer(0, "")
            }
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn between(&self) -> io::Result<()> {
        let mut trouble = self.trouble();
        match trouble.as_mut() {
            None => return Ok(()),
            // Once it has ended, it does nothing more.
            Some(Trouble::End { after: 0 }) => {}
            Some(Trouble::Failure { after: 0 | 1 }) => {
                *trouble = None;
                return Err(io::Error::other("the disk failed here"));
            }
            Some(Trouble::End { after } | Trouble::Failure { after }) => {
                *after -= 1;
                if *after > 0 {
                    return Ok(());
                }
            }
        }
        Err(io::Error::other("the process has ended here"))
    }
}
