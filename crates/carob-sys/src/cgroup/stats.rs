//! What a group uses, read from its files.

use std::path::Path;

use super::CgroupError;
use super::layout::Layout;

/// The use of one group. A figure that this machine does not give is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub cpu_ns: Option<u64>,
    pub memory_bytes: Option<u64>,
    /// Memory less the file pages that the kernel would drop first: what eviction decides on (cadvisor's working set).
    pub memory_working_set_bytes: Option<u64>,
    pub memory_rss_bytes: Option<u64>,
    pub page_faults: Option<u64>,
    pub major_page_faults: Option<u64>,
    pub swap_bytes: Option<u64>,
    pub pids: Option<u64>,
}

pub(super) fn read(layout: &Layout, group: &Path) -> Result<Usage, CgroupError> {
    match layout {
        Layout::V2 { .. } => read_v2(layout, group),
        Layout::V1 { .. } => read_v1(layout, group),
    }
}

fn read_v1(layout: &Layout, group: &Path) -> Result<Usage, CgroupError> {
    let number = |controller, file| number(layout, group, controller, file);
    let memory_bytes = number("memory", "memory.usage_in_bytes")?;
    let stat = text(layout, group, "memory", "memory.stat")?.unwrap_or_default();
    let inactive = keyed(&stat, "total_inactive_file").unwrap_or(0);
    let with_swap = number("memory", "memory.memsw.usage_in_bytes")?;
    Ok(Usage {
        cpu_ns: number("cpuacct", "cpuacct.usage")?,
        memory_bytes,
        memory_working_set_bytes: memory_bytes.map(|bytes| bytes.saturating_sub(inactive)),
        memory_rss_bytes: keyed(&stat, "total_rss"),
        page_faults: keyed(&stat, "total_pgfault"),
        major_page_faults: keyed(&stat, "total_pgmajfault"),
        swap_bytes: with_swap.zip(memory_bytes).map(|(sum, memory)| sum.saturating_sub(memory)),
        pids: number("pids", "pids.current")?,
    })
}

fn read_v2(layout: &Layout, group: &Path) -> Result<Usage, CgroupError> {
    let number = |controller, file| number(layout, group, controller, file);
    let memory_bytes = number("memory", "memory.current")?;
    let stat = text(layout, group, "memory", "memory.stat")?.unwrap_or_default();
    let cpu = text(layout, group, "cpu", "cpu.stat")?.unwrap_or_default();
    let inactive = keyed(&stat, "inactive_file").unwrap_or(0);
    Ok(Usage {
        cpu_ns: keyed(&cpu, "usage_usec").map(|microseconds| microseconds.saturating_mul(1000)),
        memory_bytes,
        memory_working_set_bytes: memory_bytes.map(|bytes| bytes.saturating_sub(inactive)),
        memory_rss_bytes: keyed(&stat, "anon"),
        page_faults: keyed(&stat, "pgfault"),
        major_page_faults: keyed(&stat, "pgmajfault"),
        swap_bytes: number("memory", "memory.swap.current")?,
        pids: number("pids", "pids.current")?,
    })
}

/// How often the kernel has killed a process of this group for want of memory.
pub(super) fn oom_kills(layout: &Layout, group: &Path) -> Result<u64, CgroupError> {
    let file = match layout {
        Layout::V2 { .. } => "memory.events",
        Layout::V1 { .. } => "memory.oom_control",
    };
    let text = text(layout, group, "memory", file)?.unwrap_or_default();
    Ok(keyed(&text, "oom_kill").unwrap_or(0))
}

/// A file's text; `None` where this machine lacks the controller or the file.
fn text(layout: &Layout, group: &Path, controller: &str, file: &str) -> Result<Option<String>, CgroupError> {
    let Some(directory) = layout.directory(controller, group) else { return Ok(None) };
    let path = directory.join(file);
    match fs_err::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(CgroupError::Read { path, source }),
    }
}

fn number(layout: &Layout, group: &Path, controller: &str, file: &str) -> Result<Option<u64>, CgroupError> {
    Ok(text(layout, group, controller, file)?.and_then(|text| text.trim().parse().ok()))
}

fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("a directory");
        for (name, text) in files {
            let path = directory.path().join("pod1").join(name);
            fs_err::create_dir_all(path.parent().expect("a parent")).expect("directories");
            fs_err::write(path, text).expect("a file");
        }
        directory
    }

    #[test]
    fn v2_files_are_read() {
        let tree = tree(&[
            ("memory.current", "1000\n"),
            ("memory.stat", "anon 300\nfile 700\ninactive_file 400\npgfault 7\npgmajfault 1\n"),
            ("memory.events", "low 0\noom 1\noom_kill 2\noom_group_kill 0\n"),
            ("cpu.stat", "usage_usec 12\nuser_usec 10\n"),
            ("pids.current", "4\n"),
        ]);
        let layout = Layout::V2 { root: tree.path().to_owned() };
        let usage = read(&layout, Path::new("/pod1")).expect("readable");
        let expected = Usage {
            cpu_ns: Some(12_000),
            memory_bytes: Some(1000),
            memory_working_set_bytes: Some(600),
            memory_rss_bytes: Some(300),
            page_faults: Some(7),
            major_page_faults: Some(1),
            swap_bytes: None,
            pids: Some(4),
        };
        assert_eq!(usage, expected);
        assert_eq!(oom_kills(&layout, Path::new("/pod1")).expect("readable"), 2);
    }

    #[test]
    fn v1_files_are_read() {
        let tree = tree(&[
            ("memory.usage_in_bytes", "1000\n"),
            ("memory.memsw.usage_in_bytes", "1100\n"),
            ("memory.stat", "inactive_file 1\ntotal_inactive_file 400\ntotal_rss 300\n"),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"),
        ]);
        let controllers = [("memory".to_owned(), tree.path().to_owned())].into();
        let layout = Layout::V1 { controllers, unified: None };
        let usage = read(&layout, Path::new("/pod1")).expect("readable");
        assert_eq!((usage.memory_working_set_bytes, usage.swap_bytes, usage.cpu_ns), (Some(600), Some(100), None));
        assert_eq!(oom_kills(&layout, Path::new("/pod1")).expect("readable"), 3);
    }
}
