//! A machine's loop devices and quotas, as tables: they outlive the processes of the machine, and what is left in them is a leak.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use carob_sys::disks::Disks;
use carob_sys::project::Usage;

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
}

/// What all processes of a machine share.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    devices: PathBuf,
    state: Arc<Mutex<State>>,
}

/// A process's way to the machine. It may end between any two steps.
#[derive(Debug)]
pub(crate) struct Process {
    machine: Machine,
    /// Steps until it ends, if it does by itself.
    left: Mutex<Option<u64>>,
}

fn same(left: &File, right: &File) -> io::Result<bool> {
    let (left, right) = (left.metadata()?, right.metadata()?);
    Ok((left.dev(), left.ino()) == (right.dev(), right.ino()))
}

impl Machine {
    /// `devices` is where its device nodes are.
    pub(crate) fn new(devices: PathBuf) -> Self {
        Self { devices, state: Arc::default() }
    }

    pub(crate) fn process(&self) -> Arc<Process> {
        Arc::new(Process { machine: self.clone(), left: Mutex::new(None) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the machine panics")
    }

    /// The files that devices show.
    pub(crate) fn shown(&self) -> Vec<PathBuf> {
        self.state().loops.values().map(|held| held.path.clone()).collect()
    }

    /// The projects that have a limit.
    pub(crate) fn limited(&self) -> Vec<u32> {
        self.state().limits.keys().copied().collect()
    }
}

impl Process {
    /// Ends the process after so many further steps.
    pub(crate) fn end_after(&self, steps: u64) {
        *self.left.lock().expect("no holder of the count panics") = Some(steps);
    }

    /// It ends no more by itself.
    pub(crate) fn go_on(&self) {
        *self.left.lock().expect("no holder of the count panics") = None;
    }

    pub(crate) fn has_ended(&self) -> bool {
        *self.left.lock().expect("no holder of the count panics") == Some(0)
    }

    fn project(state: &mut State, dir: BorrowedFd<'_>) -> io::Result<u32> {
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
        Self::project(&mut self.machine.state(), dir)
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

    fn between(&self) -> io::Result<()> {
        let mut left = self.left.lock().expect("no holder of the count panics");
        match left.as_mut() {
            None => return Ok(()),
            // Once it has ended, it does nothing more.
            Some(0) => {}
            Some(steps) => {
                *steps -= 1;
                if *steps > 0 {
                    return Ok(());
                }
            }
        }
        Err(io::Error::other("the process has ended here"))
    }
}
