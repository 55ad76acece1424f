//! A container, by libcontainer or by another OCI runtime.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use carob_shim::params::{CreateParams, ResolvedUser};
use carob_sys::cgroup::Cgroup;
use carob_sys::{packet, process};
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::{Spec, UserBuilder};
use libcontainer::syscall::syscall::SyscallType;
use rustix::thread::UnshareFlags;

use crate::Started;
use crate::causes::Causes;
use crate::error::{Error, Result};
use crate::groups::OwnGroups;
use crate::inside::{self, Wanted};
use crate::rootfs::{attach, overlay, read_image_file};
use crate::user::resolve;
use crate::users::{self, Users};
use crate::{other, staged, tree};

/// The socket over which libcontainer hands out a container's terminal, in the bundle.
pub(crate) const CONSOLE_SOCKET: &str = "console.sock";

pub(crate) fn create(params: &CreateParams) -> Result<Started> {
    let single = process::SingleThreaded::check().map_err(Error::Fork)?;
    if params.runtime.is_none() {
        Cgroup::new(&params.layout, &params.cgroup).enter(&single)?;
    }
    process::unshare(UnshareFlags::NEWNS).map_err(Error::Unshare)?;
    let config = params.bundle.join("config.json");
    let mut spec = read_config(&config)?;
    let groups = OwnGroups::of(&params.shown_groups)?;
    // Of the shim: the library sets the container's own, where it has one.
    carob_sys::oom::unprotect().map_err(|source| Error::OomScore { score: 0, source })?;
    if params.runtime.is_none() {
        process::begin_session_keyring(&params.id).map_err(Error::Keyring)?;
    }
    let users = params.user_namespace.as_ref().map(Users::open).transpose()?;
    let users = users.as_ref();
    let image = overlay(&params.layers, &params.rootfs, users)?;
    let (staged, image) = staged::prepare(&params.staged, image, &params.rootfs, users)?;
    // Root of a user namespace cannot pass through the directories of the host's root.
    if (params.own_groups_only || users.is_some()) && params.runtime.is_none() {
        let volumes = spec.mounts().iter().flatten().filter(|mount| mount.typ().as_deref() == Some("bind"));
        let sources = volumes.filter_map(|mount| mount.source().as_deref());
        let sources = sources.filter(|source| !source.starts_with(&params.rootfs));
        let needed: Vec<&Path> = sources.chain([params.directory.as_path()]).collect();
        tree::enter(&params.rootfs, &needed)?;
    }
    let root = staged::stage(&staged, &params.rootfs)?;
    attach(&image, &root)?;
    let passwd = read_image_file(&root, Path::new("/etc/passwd"))?;
    let group = read_image_file(&root, Path::new("/etc/group"))?;
    match users {
        Some(users) => users.as_root(|| make_places(&spec, &root))?,
        None => make_places(&spec, &root)?,
    }
    let user = resolve(&params.user, &passwd, &group)?;
    complete(&mut spec, params, &user)?;
    // Open until the container is made.
    let _namespaces = match users {
        Some(_) => users::reach_namespaces(&mut spec)?,
        None => Vec::new(),
    };
    let text = serde_json::to_vec(&spec).map_err(|source| Error::Config { path: config.clone(), source })?;
    fs_err::write(&config, text).map_err(|source| Error::WriteConfig { path: config, source })?;
    if !params.terminal {
        give_streams_to(users.map_or(Ok(user.uid), |users| users.on_host(user.uid))?)?;
    }
    let detail = serde_json::to_string(&user).map_err(Error::Parameters)?;
    let (pid, console) = match &params.runtime {
        Some(program) => other::create(params, program)?,
        None => build(params)?,
    };
    let left = groups.show(pid)?;
    Ok(Started { pid, detail, console, left })
}

/// Makes what mounts and the working directory need and the container library does not make: the targets of links that dangle,
/// as those of `/etc/resolv.conf` often do, and the working directory (runc `libcontainer/rootfs_linux.go`).
fn make_places(spec: &Spec, root: &Path) -> Result<()> {
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    for mount in mounts {
        let Some(source) = mount.source().as_deref().filter(|_| mount.typ().as_deref() == Some("bind")) else {
            continue;
        };
        let path = mount.destination();
        let failed = |source| Error::Make { path: path.clone(), source };
        if inside::is_link(root, path).map_err(failed)? {
            let wanted = if source.is_dir() { Wanted::Directory } else { Wanted::File };
            inside::make(root, path, wanted).map_err(failed)?;
        }
    }
    let Some(cwd) = spec.process().as_ref().map(|process| process.cwd().clone()) else { return Ok(()) };
    // The innermost mount that the path goes through; later ones hide earlier ones at the same place.
    let over = mounts.iter().filter(|mount| cwd.starts_with(mount.destination()));
    let over = over.max_by_key(|mount| mount.destination().components().count());
    let failed = |source| Error::Make { path: cwd.clone(), source };
    match over {
        None => inside::make(root, &cwd, Wanted::Directory).map(drop).map_err(failed),
        Some(mount) => {
            let is_read_only = mount.options().iter().flatten().any(|option| option == "ro" || option == "rro");
            let source = mount.source().as_deref().filter(|source| source.is_dir());
            let rest = cwd.strip_prefix(mount.destination()).unwrap_or(Path::new(""));
            match source.filter(|_| mount.typ().as_deref() == Some("bind") && !is_read_only) {
                Some(source) => inside::make(source, rest, Wanted::Directory).map(drop).map_err(failed),
                // Nothing can be made there; the library says so if it is missing.
                None => Ok(()),
            }
        }
    }
}

/// The user, for the container and for every exec.
fn complete(spec: &mut Spec, params: &CreateParams, user: &ResolvedUser) -> Result<()> {
    let process = spec.process_mut().as_mut().ok_or(Error::ConfigLacks("process"))?;
    let mut builder = UserBuilder::default().uid(user.uid).gid(user.gid);
    builder = builder.additional_gids(user.additional_gids.clone());
    process.set_user(builder.build().map_err(|_| Error::ConfigLacks("user"))?);
    if !params.user.home_is_set {
        let mut env = process.env().clone().unwrap_or_default();
        env.push(format!("HOME={}", user.home));
        process.set_env(Some(env));
    }
    Ok(())
}

pub(crate) fn read_config(path: &Path) -> Result<Spec> {
    let text = fs_err::read(path).map_err(|source| Error::ReadConfig { path: path.to_owned(), source })?;
    serde_json::from_slice(&text).map_err(|source| Error::Config { path: path.to_owned(), source })
}

/// A process that is not root must be able to open its own `/dev/stdout`, which is one of these pipes.
pub(crate) fn give_streams_to(uid: u32) -> Result<()> {
    let failed = |source: io::Error| Error::Streams { uid, source };
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    for stream in [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()] {
        let metadata = rustix::fs::fstat(stream).map_err(|error| failed(error.into()))?;
        // Anything else, `/dev/null` above all, is not only this container's.
        if rustix::fs::FileType::from_raw_mode(metadata.st_mode) == rustix::fs::FileType::Fifo {
            rustix::fs::fchown(stream, Some(rustix::fs::Uid::from_raw(uid)), None)
                .map_err(|error| failed(error.into()))?;
        }
    }
    Ok(())
}

fn build(params: &CreateParams) -> Result<(i32, Option<OwnedFd>)> {
    let causes = Causes::collect().map_err(Error::Causes)?;
    let failed = |source| match causes.first() {
        Some(cause) => Error::Caused { cause, source },
        None => Error::Create(source),
    };
    let mut builder = ContainerBuilder::new(params.id.clone(), SyscallType::default())
        .with_root_path(&params.state_root)
        .and_then(ContainerBuilder::validate_id)
        .map_err(Error::Create)?
        .with_executor(crate::start::Start);
    let console = if params.terminal {
        let path = params.bundle.join(CONSOLE_SOCKET);
        let listener = listen(&path).map_err(Error::Console)?;
        builder = builder.with_console_socket(Some(path));
        Some(listener)
    } else {
        None
    };
    let container = builder
        .as_init(&params.bundle)
        .with_systemd(false)
        .with_detach(true)
        .as_sibling(true)
        .build()
        .map_err(failed)?;
    let pid = container.pid().ok_or(Error::NoProcess)?.as_raw();
    let console = console.map(|listener| receive_console(&listener)).transpose().map_err(Error::Console)?;
    Ok((pid, console))
}

/// Listens at a path that may be too long for a socket's address.
pub(crate) fn listen(path: &Path) -> io::Result<UnixListener> {
    use std::os::fd::AsRawFd;

    let directory = fs_err::File::open(path.parent().unwrap_or(Path::new("/")))?;
    UnixListener::bind(format!("/proc/self/fd/{}/{CONSOLE_SOCKET}", directory.as_raw_fd()))
}

/// The container has sent its terminal before it was ready, so nothing is waited for here.
pub(crate) fn receive_console(listener: &UnixListener) -> io::Result<OwnedFd> {
    let (stream, _) = listener.accept()?;
    let mut buffer = [0; 4096];
    let received = packet::receive(&stream, &mut buffer)?;
    received.and_then(|(_, mut fds)| fds.pop()).ok_or_else(|| io::Error::other("no terminal came"))
}
