//! What the kernel says of the machine.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use fs_err as fs;

/// What does not change while the machine is up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MachineFacts {
    pub cpus: u64,
    pub memory_bytes: u64,
    pub swap_bytes: u64,
    pub machine_id: String,
    pub system_uuid: String,
    pub boot_id: String,
    pub kernel_version: String,
    pub os_image: String,
    pub architecture: &'static str,
    /// All control groups are of v2.
    pub unified_cgroups: bool,
    pub apparmor: bool,
}

/// What changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Strain {
    pub memory_available_bytes: u64,
    pub disk_total_bytes: u64,
    pub disk_free_bytes: u64,
    pub inodes_total: u64,
    pub inodes_free: u64,
    pub pids_max: u64,
    pub pids_used: u64,
}

pub fn read() -> io::Result<MachineFacts> {
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    let cpus = std::thread::available_parallelism()?.get();
    let uname = rustix::system::uname();
    Ok(MachineFacts {
        cpus: cpus as u64,
        memory_bytes: meminfo_bytes(&meminfo, "MemTotal"),
        swap_bytes: meminfo_bytes(&meminfo, "SwapTotal"),
        machine_id: first_line(&["/etc/machine-id", "/var/lib/dbus/machine-id"])?,
        system_uuid: first_line(&["/sys/class/dmi/id/product_uuid", "/etc/machine-id"])?,
        boot_id: first_line(&["/proc/sys/kernel/random/boot_id"])?,
        kernel_version: uname.release().to_string_lossy().into_owned(),
        os_image: os_image()?,
        architecture: go_architecture(std::env::consts::ARCH),
        unified_cgroups: Path::new("/sys/fs/cgroup/cgroup.controllers").exists(),
        apparmor: Path::new("/sys/kernel/security/apparmor").exists(),
    })
}

/// The machine's huge pages: bytes of all pages of a size, by that size in bytes.
pub type HugePages = BTreeMap<i64, i64>;

/// Reads how many huge pages there are now, since whoever runs the machine may change that.
pub fn huge_pages() -> io::Result<HugePages> {
    huge_pages_in(Path::new("/sys/kernel/mm/hugepages"))
}

/// A directory per size (kernel `Documentation/admin-guide/mm/hugetlbpage.rst`); none where the kernel has no huge pages.
fn huge_pages_in(dir: &Path) -> io::Result<HugePages> {
    let sizes = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(HugePages::new()),
        sizes => sizes?,
    };
    let mut pages = HugePages::new();
    for size in sizes {
        let path = size?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let kib = name.and_then(|name| name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse::<i64>().ok());
        let Some(bytes) = kib.and_then(|kib| kib.checked_mul(1024)) else { continue };
        let count = fs::read_to_string(path.join("nr_hugepages"))?;
        let count: i64 = count.trim().parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        pages.insert(bytes, bytes.saturating_mul(count));
    }
    Ok(pages)
}

/// All of the machine's memory, in bytes.
pub fn memory_total() -> io::Result<u64> {
    Ok(meminfo_bytes(&fs::read_to_string("/proc/meminfo")?, "MemTotal"))
}

/// `data_dir` is on the file system whose fullness counts.
pub fn strain(data_dir: &Path) -> io::Result<Strain> {
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    let disk = rustix::fs::statvfs(data_dir)?;
    let number = |path: &str| -> io::Result<u64> { Ok(fs::read_to_string(path)?.trim().parse().unwrap_or(0)) };
    // `running/total` is the fourth field of loadavg (proc_loadavg(5)).
    let loadavg = fs::read_to_string("/proc/loadavg")?;
    let tasks = loadavg.split_whitespace().nth(3).and_then(|field| field.split('/').nth(1));
    Ok(Strain {
        memory_available_bytes: meminfo_bytes(&meminfo, "MemAvailable"),
        disk_total_bytes: disk.f_blocks * disk.f_frsize,
        disk_free_bytes: disk.f_bavail * disk.f_frsize,
        inodes_total: disk.f_files,
        inodes_free: disk.f_favail,
        pids_max: number("/proc/sys/kernel/pid_max")?,
        pids_used: tasks.and_then(|tasks| tasks.parse().ok()).unwrap_or(0),
    })
}

/// A line of /proc/meminfo in bytes; zero where it is missing.
fn meminfo_bytes(meminfo: &str, key: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.split_whitespace().next()).and_then(|number| number.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// The first line of the first of `paths` that exists; empty where none does.
fn first_line(paths: &[&str]) -> io::Result<String> {
    for path in paths {
        match fs::read_to_string(path) {
            Ok(text) => return Ok(text.lines().next().unwrap_or_default().trim().to_owned()),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(String::new())
}

fn os_image() -> io::Result<String> {
    let text = match fs::read_to_string("/etc/os-release") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        text => text?,
    };
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    Ok(name.map_or_else(|| "Linux".to_owned(), |name| name.trim_matches('"').to_owned()))
}

/// The name that Kubernetes, being written in Go, gives an architecture.
fn go_architecture(rust: &'static str) -> &'static str {
    match rust {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_in_kibibytes() {
        let text = "MemTotal:       2048 kB\nMemAvailable:   10 kB\n";
        assert_eq!(meminfo_bytes(text, "MemTotal"), 2 << 20);
        assert_eq!(meminfo_bytes(text, "Mem"), 0);
        assert_eq!(meminfo_bytes(text, "SwapTotal"), 0);
    }

    #[test]
    fn huge_pages_are_counted_by_their_size() {
        let dir = tempfile::tempdir().expect("a directory");
        for (size, count) in [("hugepages-2048kB", "8\n"), ("hugepages-1048576kB", "0\n"), ("other", "1\n")] {
            fs::create_dir(dir.path().join(size)).expect("made");
            fs::write(dir.path().join(size).join("nr_hugepages"), count).expect("written");
        }
        assert_eq!(huge_pages_in(dir.path()).expect("read"), HugePages::from([(2 << 20, 16 << 20), (1 << 30, 0)]));
        assert!(huge_pages_in(&dir.path().join("none")).expect("there are none").is_empty());
    }

    #[test]
    fn this_machine_can_be_described() {
        let facts = read().expect("the machine tells of itself");
        assert!(facts.cpus > 0 && facts.memory_bytes > 0 && !facts.kernel_version.is_empty());
        let strain = strain(Path::new("/")).expect("the machine tells of itself");
        assert!(strain.memory_available_bytes > 0 && strain.disk_total_bytes >= strain.disk_free_bytes);
    }
}
