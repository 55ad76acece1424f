//! Where volumes of drivers are on disk: as a kubelet has them, since drivers and their DaemonSets name these places
//! (`pkg/volume/csi/csi_attacher.go`, makeDeviceMountPath, and `csi_block.go`).

use std::path::{Path, PathBuf};

use carob_api::storage::{csi_attachment_name, csi_volume_name, sha256};

/// A kubelet's root directory: `/var/lib/kubelet` as a rule.
#[derive(Debug, Clone)]
pub struct KubeletDirs {
    root: PathBuf,
}

impl KubeletDirs {
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Where plug-ins put the sockets by which they ask to be registered.
    pub fn registry(&self) -> PathBuf {
        self.root.join("plugins_registry")
    }

    /// Where plug-ins have their own sockets as a rule.
    pub fn plugins(&self) -> PathBuf {
        self.root.join("plugins")
    }

    /// The directories by driver, with those of volumes that are staged in them.
    pub(super) fn staged(&self) -> PathBuf {
        self.plugins().join("kubernetes.io/csi")
    }

    pub(super) fn staging(&self, volume: &VolumeId) -> PathBuf {
        self.staged().join(&volume.driver).join(sha256(&volume.handle)).join("globalmount")
    }

    pub fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }

    pub(super) fn pod(&self, uid: &str) -> PathBuf {
        self.pods().join(uid)
    }

    /// What drivers have of block volumes: `staging` and `publish`, and a directory by the name of each volume.
    pub(super) fn devices(&self) -> PathBuf {
        self.staged().join("volumeDevices")
    }

    pub(super) fn device_record(&self, name: &str) -> PathBuf {
        self.devices().join(name).join("data")
    }

    pub(super) fn device_staging(&self, name: &str) -> PathBuf {
        self.devices().join("staging").join(name)
    }

    /// What a driver publishes a block volume at.
    pub(super) fn device(&self, name: &str, uid: &str) -> PathBuf {
        self.devices().join("publish").join(name).join(uid)
    }

    /// The links to the block volumes that a Pod has.
    pub(super) fn device_links(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("volumeDevices").join("kubernetes.io~csi")
    }

    /// The volumes of drivers that a Pod has.
    pub(super) fn volumes(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("volumes").join("kubernetes.io~csi")
    }

    /// `name`: of the PersistentVolume, or of the volume in the Pod where it is ephemeral.
    pub(super) fn volume(&self, uid: &str, name: &str) -> PathBuf {
        self.volumes(uid).join(name)
    }
}

/// What a driver publishes a volume at, below the volume's directory of a Pod.
pub(super) fn target(volume_dir: &Path) -> PathBuf {
    volume_dir.join("mount")
}

/// A volume as its driver knows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct VolumeId {
    pub(crate) driver: String,
    pub(crate) handle: String,
}

impl VolumeId {
    /// As `status.volumesInUse` and `volumesAttached` of a Node name it.
    pub(super) fn unique_name(&self) -> String {
        csi_volume_name(&self.driver, &self.handle)
    }

    /// The name of the VolumeAttachment to a node.
    pub(super) fn attachment(&self, node: &str) -> String {
        csi_attachment_name(&self.driver, &self.handle, node)
    }
}

/// The handle of a volume that lives and ends with its Pod (`pkg/volume/csi/csi_mounter.go`, makeVolumeHandle).
pub(super) fn ephemeral_handle(uid: &str, name: &str) -> String {
    format!("csi-{}", sha256(&format!("{uid}{name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_those_of_a_kubelet() {
        let dirs = KubeletDirs::new("/var/lib/kubelet");
        let volume = VolumeId { driver: "d.example".to_owned(), handle: "h".to_owned() };
        let staging = dirs.staging(&volume);
        let expected = "/var/lib/kubelet/plugins/kubernetes.io/csi/d.example/\
            aaa9402664f1a41f40ebbc52c9993eb66aeb366602958fdfaa283b71e64db123/globalmount";
        assert_eq!(staging, Path::new(expected));
        let published = target(&dirs.volume("u", "pv"));
        assert_eq!(published, Path::new("/var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/pv/mount"));
        assert_eq!(volume.unique_name(), "kubernetes.io/csi/d.example^h");
    }
}
