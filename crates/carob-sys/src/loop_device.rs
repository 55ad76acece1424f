//! Files that are shown as block devices (loop(4)).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use fs_err as fs;

/// `linux/loop.h`.
const LOOP_CTL_GET_FREE: u64 = 0x4C82;
const LOOP_CONFIGURE: u64 = 0x4C0A;
const LOOP_CLR_FD: u64 = 0x4C01;
const LOOP_GET_STATUS64: u64 = 0x4C05;
const LOOP_SET_CAPACITY: u64 = 0x4C07;
/// Others may take the device that the kernel calls free: so often it is asked for another one.
const ATTEMPTS_MAX: usize = 64;
/// Sectors that file systems on the device are made for.
const BLOCK_BYTES: u32 = 512;

#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

const NO_INFO: LoopInfo = LoopInfo {
    device: 0,
    inode: 0,
    rdevice: 0,
    offset: 0,
    size_limit: 0,
    number: 0,
    encrypt_type: 0,
    encrypt_key_size: 0,
    flags: 0,
    file_name: [0; 64],
    crypt_name: [0; 64],
    encrypt_key: [0; 32],
    init: [0; 2],
};

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn named<T>(result: io::Result<T>, what: &str) -> io::Result<T> {
    result.map_err(|error| io::Error::new(error.kind(), format!("{what}: {error}")))
}

fn ioctl(device: &fs::File, request: u64) -> io::Result<i32> {
    // SAFETY: the descriptor is open, and these requests take a number, not a pointer.
    check(unsafe { libc::ioctl(device.as_raw_fd(), request as _, 0) })
}

/// Shows a file as a block device, unless one shows it already. Answers the device.
pub fn attach(file: &fs::File) -> io::Result<PathBuf> {
    if let Some(device) = find(file.file())? {
        return Ok(device);
    }
    let control = fs::OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
    for _ in 0..ATTEMPTS_MAX {
        let number = named(ioctl(&control, LOOP_CTL_GET_FREE), "ask for a free loop device")?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = fs::OpenOptions::new().read(true).write(true).open(&path)?;
        match configure(&device, file) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("every loop device was taken by others"))
}

fn configure(device: &fs::File, file: &fs::File) -> io::Result<()> {
    let fd = u32::try_from(file.as_raw_fd()).map_err(io::Error::other)?;
    let config = LoopConfig { fd, block_size: BLOCK_BYTES, info: NO_INFO, reserved: [0; 8] };
    // SAFETY: both descriptors are open for the whole call, and the kernel reads a `struct loop_config`.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE as _, &raw const config) };
    named(check(result), &format!("configure {}", device.path().display())).map(drop)
}

/// The device that shows a file.
pub fn find(file: &File) -> io::Result<Option<PathBuf>> {
    let wanted = file.metadata()?;
    for entry in fs::read_dir("/sys/block")? {
        let entry = entry?;
        let name = entry.file_name();
        if !name.to_string_lossy().starts_with("loop") || !entry.path().join("loop/backing_file").exists() {
            continue;
        }
        let path = Path::new("/dev").join(name);
        let Ok(device) = fs::File::open(&path) else { continue };
        let mut info = NO_INFO;
        // SAFETY: the descriptor is open, and the kernel fills a `struct loop_info64`.
        let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64 as _, &raw mut info) };
        // One that is being taken away shows nothing any more.
        if result == 0 && info.inode == wanted.ino() && info.device == wanted.dev() {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Whether the device shows the file that was at `path` when it was attached, be it there still or not.
pub fn is_of(device: &Path, path: &Path) -> io::Result<bool> {
    let Some(name) = device.file_name() else { return Ok(false) };
    let backing = match fs::read(Path::new("/sys/block").join(name).join("loop/backing_file")) {
        Ok(backing) => backing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let backing = backing.strip_suffix(b"\n").unwrap_or(&backing);
    // As d_path() marks what has no name any more.
    let backing = backing.strip_suffix(b" (deleted)").unwrap_or(backing);
    Ok(backing == path.as_os_str().as_encoded_bytes())
}

/// Takes the device away. One that is in use goes when nothing has it open any more.
pub fn detach(device: &Path) -> io::Result<()> {
    let device = fs::File::open(device)?;
    match ioctl(&device, LOOP_CLR_FD) {
        // It shows nothing already.
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(()),
        detached => named(detached, "detach the loop device").map(drop),
    }
}

/// Has the device have the size that its file has now.
pub fn refresh_size(device: &Path) -> io::Result<()> {
    let device = fs::OpenOptions::new().read(true).write(true).open(device)?;
    named(ioctl(&device, LOOP_SET_CAPACITY), "refresh the size of the loop device").map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_shown_and_taken_away() {
        assert_eq!((size_of::<LoopInfo>(), size_of::<LoopConfig>()), (232, 304));
        if !Path::new("/dev/loop-control").exists() {
            return;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("disk");
        let file = fs::OpenOptions::new().read(true).write(true).create_new(true).open(&path).expect("made");
        file.set_len(1 << 20).expect("sized");
        let device = attach(&file).expect("attached");
        assert_eq!(attach(&file).expect("found"), device, "once is enough");
        file.set_len(2 << 20).expect("sized");
        refresh_size(&device).expect("refreshed");
        let name = device.file_name().expect("it has a name").to_owned();
        let sectors = fs::read_to_string(Path::new("/sys/block").join(name).join("size")).expect("there");
        assert_eq!(sectors.trim(), "4096");
        assert!(is_of(&device, &path).expect("an answer") && !is_of(&device, dir.path()).expect("an answer"));
        fs::remove_file(&path).expect("removed");
        assert!(is_of(&device, &path).expect("an answer"), "it shows what has no name any more");
        detach(&device).expect("detached");
        detach(&device).expect("detached twice");
        assert_eq!(find(file.file()).expect("an answer"), None);
        assert!(!is_of(&device, &path).expect("an answer"));
    }
}
