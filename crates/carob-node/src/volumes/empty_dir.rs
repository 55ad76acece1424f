//! emptyDir volumes: a directory, a tmpfs for `medium: Memory`, or huge pages.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use carob_api::pod::{is_huge_pages, page_bytes, size_bytes};
use carob_api::quantity::Quantity;
use carob_sys::disks::is_mount_point;
use fs_err as fs;
use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Pod, ResourceRequirements};
use rustix::mount::{MountFlags, mount};

/// Anyone in the Pod may write (kubelet `pkg/volume/emptydir`).
const MODE: u32 = 0o777;
/// With a group, new files belong to it.
const MODE_GROUP: u32 = 0o2777;
/// A tmpfs is as the kernel makes one: what somebody puts into it only its owner removes.
const STICKY: u32 = 0o1000;

/// Why a volume cannot be of huge pages.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MediumError {
    #[error("unknown storage medium {0:?}")]
    Unknown(String),
    #[error("medium {0}: hugePages storage requested, but there is no resource request for huge pages")]
    NotAsked(String),
    #[error("medium: HugePages can't be used if container requests multiple huge page sizes")]
    ManySizes,
}

/// What a volume is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Medium {
    Disk,
    Memory,
    HugePages { size_bytes: i64 },
}

impl Medium {
    /// The Pod has to ask for huge pages of the size; without one, for pages of one size only (`getPageSizeMountOption`).
    pub(super) fn of(source: &EmptyDirVolumeSource, pod: &Pod) -> Result<Self, MediumError> {
        let medium = source.medium.as_deref().unwrap_or_default();
        let wanted = match medium {
            "" => return Ok(Self::Disk),
            "Memory" => return Ok(Self::Memory),
            "HugePages" => None,
            sized => match sized.strip_prefix("HugePages-").and_then(size_bytes) {
                None => return Err(MediumError::Unknown(sized.to_owned())),
                size => size,
            },
        };
        let mut asked = page_sizes(pod);
        asked.sort_unstable();
        asked.dedup();
        match (wanted, asked.as_slice()) {
            (Some(size_bytes), asked) if asked.contains(&size_bytes) => Ok(Self::HugePages { size_bytes }),
            (None, [size_bytes]) => Ok(Self::HugePages { size_bytes: *size_bytes }),
            (None, [_, ..]) => Err(MediumError::ManySizes),
            (Some(_), _) | (None, []) => Err(MediumError::NotAsked(medium.to_owned())),
        }
    }
}

/// The sizes of huge pages that the Pod or a container of it asks for.
fn page_sizes(pod: &Pod) -> Vec<i64> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let resources = containers.filter_map(|container| container.resources.as_ref()).chain(&spec.resources);
    let requests = |resources: &ResourceRequirements| resources.requests.clone().unwrap_or_default().into_keys();
    resources.flat_map(requests).filter(|name| is_huge_pages(name)).filter_map(|name| page_bytes(&name)).collect()
}

/// Makes the volume at `path` unless it is there: what containers have put into it stays. One in memory holds no more than
/// `memory_max`.
pub(super) fn prepare(
    path: &Path,
    medium: Medium,
    source: &EmptyDirVolumeSource,
    group: Option<u32>,
    memory_max: Option<i64>,
) -> io::Result<()> {
    let size_limit = match source.size_limit.as_ref().filter(|_| medium != Medium::Disk) {
        None => None,
        Some(text) => Some(Quantity::parse(&text.0).map_err(io::Error::other)?.value()).filter(|bytes| *bytes > 0),
    };
    let made = !path.exists();
    let fresh = match medium {
        Medium::Disk => {
            fs::create_dir_all(path)?;
            made
        }
        Medium::Memory => in_memory(path, [size_limit, memory_max].into_iter().flatten().min())?,
        // Whole pages only: less than one would be nothing.
        Medium::HugePages { size_bytes } => {
            let size = size_limit.map_or_else(String::new, |limit| format!(",size={}", limit.max(size_bytes)));
            mounted(path, "hugetlbfs", &format!("pagesize={size_bytes}{size}"))?
        }
    };
    if fresh {
        if group.is_some() {
            super::atomic::chown(path, None, group)?;
        }
        let mode = if group.is_some() { MODE_GROUP } else { MODE };
        let mode = if medium == Medium::Memory { mode | STICKY } else { mode };
        fs::set_permissions(path, PermissionsExt::from_mode(mode))?;
    }
    Ok(())
}

/// Makes the directory `path` with a tmpfs on it. Answers whether the tmpfs is new.
pub(super) fn in_memory(path: &Path, size_limit_bytes: Option<i64>) -> io::Result<bool> {
    let options = size_limit_bytes.map_or_else(|| "mode=0755".to_owned(), |bytes| format!("mode=0755,size={bytes}"));
    mounted(path, "tmpfs", &options)
}

/// Makes the directory `path` with a file system of the kernel's on it. Answers whether that is new.
fn mounted(path: &Path, file_system: &str, options: &str) -> io::Result<bool> {
    fs::create_dir_all(path)?;
    if is_mount_point(path)? {
        return Ok(false);
    }
    let options = std::ffi::CString::new(options)?;
    mount(file_system, path, file_system, MountFlags::empty(), Some(options.as_c_str()))
        .map_err(|error| io::Error::other(format!("mount a {file_system} at {}: {error}", path.display())))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use carob_sys::disks::unmount;
    use serde_json::{Map, json};

    use super::*;

    #[test]
    fn memory_is_a_tmpfs_and_its_content_survives_a_second_look() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("v");
        let source = EmptyDirVolumeSource { medium: Some("Memory".to_owned()), size_limit: None };
        prepare(&path, Medium::Memory, &source, None, Some(1 << 20)).expect("mounted");
        let size = rustix::fs::statvfs(&path).expect("there");
        assert_eq!(size.f_blocks * size.f_frsize, 1 << 20, "as much as the Pod may use");
        assert!(is_mount_point(&path).expect("there"));
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o7777, 0o1777);
        fs::write(path.join("kept"), "x").expect("written");
        prepare(&path, Medium::Memory, &source, None, None).expect("still mounted");
        assert!(path.join("kept").exists());
        unmount(&path).expect("unmounted");
        assert!(!is_mount_point(&path).expect("there"));
        assert!(!path.join("kept").exists());
    }

    #[test]
    fn huge_pages_are_of_the_size_that_the_pod_asks_for() {
        let pod = |own: &[&str], of_pod: &[&str]| -> Pod {
            let requests = |names: &[&str]| json!({"requests": names.iter().map(|name| ((*name).to_owned(), json!("0"))).collect::<Map<_, _>>()});
            let containers = json!([{"name": "c", "resources": requests(own)}]);
            let spec = json!({"containers": containers, "resources": requests(of_pod)});
            serde_json::from_value(json!({"spec": spec})).expect("a Pod")
        };
        let (two, giga) = (Medium::HugePages { size_bytes: 2 << 20 }, Medium::HugePages { size_bytes: 1 << 30 });
        let not_asked = |medium: &str| Err(MediumError::NotAsked(medium.to_owned()));
        for (medium, own, of_pod, expect) in [
            ("", &[][..], &[][..], Ok(Medium::Disk)),
            ("Memory", &[], &[], Ok(Medium::Memory)),
            ("HugePages", &["hugepages-2Mi", "cpu"], &[], Ok(two)),
            ("HugePages", &["hugepages-2Mi"], &["hugepages-2048Ki"], Ok(two)),
            ("HugePages", &["hugepages-2Mi"], &["hugepages-1Gi"], Err(MediumError::ManySizes)),
            ("HugePages-1Gi", &["hugepages-2Mi"], &["hugepages-1Gi"], Ok(giga)),
            ("HugePages-2048Ki", &["hugepages-2Mi"], &[], Ok(two)),
            ("HugePages", &["memory"], &[], not_asked("HugePages")),
            ("HugePages-1Gi", &["hugepages-2Mi"], &[], not_asked("HugePages-1Gi")),
            ("HugePages-many", &["hugepages-2Mi"], &[], Err(MediumError::Unknown("HugePages-many".to_owned()))),
            ("Tape", &[], &[], Err(MediumError::Unknown("Tape".to_owned()))),
        ] {
            let source = EmptyDirVolumeSource { medium: Some(medium.to_owned()), size_limit: None };
            assert_eq!(Medium::of(&source, &pod(own, of_pod)), expect, "{medium} {own:?} {of_pod:?}");
        }
    }

    #[test]
    fn a_group_owns_what_is_put_into_the_directory() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("v");
        prepare(&path, Medium::Disk, &EmptyDirVolumeSource::default(), Some(4242), None).expect("made");
        let meta = fs::metadata(&path).expect("there");
        assert_eq!((meta.permissions().mode() & 0o7777, meta.gid()), (0o2777, 4242));
    }
}
