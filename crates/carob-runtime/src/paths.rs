//! Where everything of a sandbox is. Each name follows from the sandbox's id, so what is left over is a set difference.

use std::path::{Path, PathBuf};

/// The directories of one runtime.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    data: PathBuf,
    run: PathBuf,
}

impl Paths {
    pub(crate) fn new(data: &Path, run: &Path) -> Self {
        Self { data: data.to_owned(), run: run.to_owned() }
    }

    /// One directory a sandbox: state that a reboot clears.
    pub(crate) fn sandboxes(&self) -> PathBuf {
        self.run.join("sandboxes")
    }

    pub(crate) fn sandbox(&self, sandbox: &str) -> PathBuf {
        self.sandboxes().join(sandbox)
    }

    /// One directory a sandbox: the writable layers of its containers.
    pub(crate) fn layers(&self) -> PathBuf {
        self.data.join("layers")
    }

    pub(crate) fn sandbox_layers(&self, sandbox: &str) -> PathBuf {
        self.layers().join(sandbox)
    }

    pub(crate) fn container_layers(&self, sandbox: &str, container: &str) -> PathBuf {
        self.sandbox_layers(sandbox).join(container)
    }

    /// One directory a choice of mounts: a layer with their places. Beside the writable layers, on the same file system,
    /// since overlayfs keeps inode numbers only then.
    pub(crate) fn mount_points(&self) -> PathBuf {
        self.data.join("mount-points")
    }

    /// Where every container mounts its root, each in a mount namespace of its own.
    pub(crate) fn rootfs(&self) -> PathBuf {
        self.run.join("rootfs")
    }

    pub(crate) fn boot_id(&self) -> PathBuf {
        self.run.join("boot_id")
    }

    pub(crate) fn shm(&self, sandbox: &str) -> PathBuf {
        self.sandbox(sandbox).join("shm")
    }

    pub(crate) fn sandbox_record(&self, sandbox: &str) -> PathBuf {
        self.sandbox(sandbox).join("sandbox.json")
    }

    pub(crate) fn containers(&self, sandbox: &str) -> PathBuf {
        self.sandbox(sandbox).join("containers")
    }

    /// The bundle of a container: its configuration and record.
    pub(crate) fn container(&self, sandbox: &str, container: &str) -> PathBuf {
        self.containers(sandbox).join(container)
    }

    pub(crate) fn container_record(&self, sandbox: &str, container: &str) -> PathBuf {
        self.container(sandbox, container).join("container.json")
    }

    pub(crate) fn container_config(&self, sandbox: &str, container: &str) -> PathBuf {
        self.container(sandbox, container).join("config.json")
    }

    /// What the container library keeps: one directory a container, with the socket that starts it.
    pub(crate) fn library_state(&self, sandbox: &str) -> PathBuf {
        self.sandbox(sandbox).join("library")
    }

    pub(crate) fn start_socket(&self, sandbox: &str, container: &str) -> PathBuf {
        self.library_state(sandbox).join(container).join("notify.sock")
    }
}
