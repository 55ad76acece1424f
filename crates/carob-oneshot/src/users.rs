//! User namespaces: made for a Pod's infra process, and entered by its containers and their commands.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use carob_shim::params::{IdRange, UserNamespace};
use carob_sys::{process, user_ids};
use libcontainer::oci_spec::runtime::Spec;
use rustix::fs::{AtFlags, CWD, Gid, Uid};
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, move_mount, open_tree, unmount};
use rustix::process::{Pid, WaitOptions, waitpid};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use crate::error::{Error, Result};
use crate::rootfs::failed;

/// Makes a user namespace of these ids. It lasts as long as the descriptor or a process in it.
///
/// A process cannot write the map of its own namespace, as soon as that has more than one id (user_namespaces(7)): a child
/// makes the namespace and ends when the map is written.
pub(crate) fn make(single: &process::SingleThreaded, ids: IdRange) -> Result<OwnedFd> {
    let (made, child_made) = io::pipe().map_err(Error::UserNamespace)?;
    let (child_go, go) = io::pipe().map_err(Error::UserNamespace)?;
    let mut ends = Some((made, go));
    let child = process::clone_child(single, None, || {
        drop(ends.take());
        let work = || -> io::Result<()> {
            process::unshare(UnshareFlags::NEWUSER)?;
            (&child_made).write_all(b"1")?;
            // Ends with the other end of the pipe.
            (&child_go).read_to_end(&mut Vec::new()).map(drop)
        };
        i32::from(work().is_err())
    })
    .map_err(Error::Fork)?;
    drop((child_made, child_go));
    let Some((mut made, go)) = ends.take() else { return Err(Error::UserNamespace(io::ErrorKind::BrokenPipe.into())) };
    let namespace = made.read_exact(&mut [0]).and_then(|()| write_maps(child, ids));
    drop(go);
    waitpid(Some(child), WaitOptions::empty()).map_err(|error| Error::UserNamespace(error.into()))?;
    namespace.map_err(Error::UserNamespace)
}

fn write_maps(child: Pid, ids: IdRange) -> io::Result<OwnedFd> {
    let of_child = PathBuf::from(format!("/proc/{}", child.as_raw_nonzero()));
    let line = format!("0 {} {}\n", ids.first, ids.count);
    fs_err::write(of_child.join("uid_map"), &line)?;
    fs_err::write(of_child.join("gid_map"), &line)?;
    Ok(fs_err::File::open(of_child.join("ns/user"))?.into_parts().0.into())
}

/// Joins a user namespace and becomes root of it.
pub(crate) fn enter(namespace: &OwnedFd) -> Result<()> {
    let enter = || -> rustix::io::Result<()> {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::User))?;
        become_root()
    };
    enter().map_err(|error| Error::UserNamespace(error.into()))
}

/// In a user namespace that was just joined, whose ids the caller has none of yet.
pub(crate) fn become_root() -> rustix::io::Result<()> {
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)
}

/// The user namespace of a container that is being made.
pub(crate) struct Users {
    ids: IdRange,
    namespace: OwnedFd,
}

impl Users {
    pub(crate) fn open(wanted: &UserNamespace) -> Result<Self> {
        let namespace = fs_err::File::open(&wanted.path).map_err(Error::UserNamespace)?;
        Ok(Self { ids: wanted.ids, namespace: namespace.into_parts().0.into() })
    }

    /// Who a user of the container is on the host.
    pub(crate) fn on_host(&self, id: u32) -> Result<u32> {
        self.ids.on_host(id).ok_or(Error::NotMapped { id, count: self.ids.count })
    }

    /// A copy of what is at a path, with its files as the container's users own them.
    pub(crate) fn mapped(&self, path: &Path) -> Result<OwnedFd> {
        let copy = copy_of(path)?;
        user_ids::map_mount(&copy, &self.namespace)
            .map_err(|source| Error::MapMount { path: path.to_owned(), source })?;
        Ok(copy)
    }

    /// Copies of directories for overlayfs to lay together, which takes paths: they are below `spare` meanwhile.
    pub(crate) fn with_layers<T>(
        &self,
        layers: &[PathBuf],
        spare: &Path,
        work: impl FnOnce(&[PathBuf]) -> Result<T>,
    ) -> Result<T> {
        let copies = layers.iter().map(|layer| self.mapped(layer)).collect::<Result<Vec<_>>>()?;
        let attach = || -> io::Result<Vec<PathBuf>> {
            mount("tmpfs", spare, "tmpfs", MountFlags::empty(), c"mode=0700")?;
            let place = |(number, copy): (usize, &OwnedFd)| {
                let path = spare.join(number.to_string());
                fs_err::create_dir(&path)?;
                move_mount(copy.as_fd(), "", CWD, &path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
                Ok(path)
            };
            copies.iter().enumerate().map(place).collect()
        };
        let paths = attach().map_err(failed(spare))?;
        let done = work(&paths)?;
        unmount(spare, UnmountFlags::DETACH).map_err(io::Error::from).map_err(failed(spare))?;
        Ok(done)
    }

    /// Makes a directory the container's root's.
    pub(crate) fn give_to_root(&self, path: &Path) -> Result<()> {
        let root = self.on_host(0)?;
        rustix::fs::chownat(CWD, path, Some(Uid::from_raw(root)), Some(Gid::from_raw(root)), AtFlags::empty())
            .map_err(|error| Error::Make { path: path.to_owned(), source: error.into() })
    }

    /// Does what makes files as the container's root.
    pub(crate) fn as_root<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        user_ids::set_file_user(self.on_host(0)?).map_err(Error::UserNamespace)?;
        let done = work();
        user_ids::set_file_user(0).map_err(Error::UserNamespace)?;
        done
    }
}

/// Opens the namespaces that a container joins and names them by their descriptors, which the library's processes inherit. Root of
/// a user namespace cannot open those of the infra process, which nobody may trace.
pub(crate) fn reach_namespaces(spec: &mut Spec) -> Result<Vec<OwnedFd>> {
    let linux = spec.linux_mut().as_mut().ok_or(Error::ConfigLacks("linux"))?;
    let mut open = Vec::new();
    for namespace in linux.namespaces_mut().iter_mut().flatten() {
        if let Some(path) = namespace.path() {
            let file = fs_err::File::open(path).map_err(Error::UserNamespace)?;
            let fd = OwnedFd::from(file.into_parts().0);
            namespace.set_path(Some(format!("/proc/self/fd/{}", fd.as_raw_fd()).into()));
            open.push(fd);
        }
    }
    Ok(open)
}

/// A mount with all below it, attached nowhere.
pub(crate) fn copy_of(path: &Path) -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    open_tree(CWD, path, flags).map_err(|error| Error::Mount {
        what: "a copy of the host's",
        target: path.to_owned(),
        source: error.into(),
    })
}
