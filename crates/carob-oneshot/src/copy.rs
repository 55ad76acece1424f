//! What `kubectl cp` runs in a container, for images that have no such programs: `tar`, and `test -d`, in its very words
//! (kubectl `pkg/cmd/cp/cp.go`) and no others.
//!
//! This is done by the process that would have become the program: with the container's root, user, capabilities, profile and
//! limits. So a path or a link that means harm leads where it leads any program of the container, and no further.

use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use tar::{Archive, Builder, EntryType, Header};

/// Of `test`: what it was asked is not so.
const EXIT_NO: i32 = 1;
/// Of GNU tar: something could not be done, and the rest was.
const EXIT_FAILED: i32 = 2;
/// What files are made with where they do not keep the mode that they come with.
const UMASK: u32 = 0o022;
/// Bytes that are written at a time.
const BUFFER_LEN: usize = 64 << 10;

/// One of the commands.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Copy<'a> {
    IsDirectory(&'a Path),
    Pack(&'a Path),
    Unpack {
        into: &'a Path,
        /// Whether files keep owner and mode.
        keeps_owner: bool,
    },
}

impl<'a> Copy<'a> {
    /// `None` where it is another command, or one with other options.
    pub(crate) fn parse(arguments: &'a [String]) -> Option<Self> {
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let (rest, keeps_owner) = match words.as_slice() {
            ["test", "-d", path] => return Some(Self::IsDirectory(Path::new(*path))),
            ["tar", "cf", "-", path] => return Some(Self::Pack(Path::new(*path))),
            ["tar", "--no-same-permissions", "--no-same-owner", rest @ ..] => (rest, false),
            ["tar", rest @ ..] => (rest, true),
            _ => return None,
        };
        let into = match rest {
            ["-xmf", "-"] => ".",
            ["-xmf", "-", "-C", directory] => *directory,
            _ => return None,
        };
        Some(Self::Unpack { into: Path::new(into), keeps_owner })
    }

    /// Does it, with the standard streams. Answers with the exit code.
    pub(crate) fn run(&self) -> i32 {
        let done = match self {
            Self::IsDirectory(path) => return if path.is_dir() { 0 } else { EXIT_NO },
            Self::Pack(path) => raw(&io::stdout()).and_then(|out| pack(path, out, &mut complain)),
            Self::Unpack { into, keeps_owner } => {
                rustix::process::umask(Mode::from_raw_mode(UMASK));
                raw(&io::stdin()).and_then(|input| unpack(input, into, *keeps_owner, &mut complain))
            }
        };
        match done {
            Ok(true) => 0,
            Ok(false) => {
                complain("Exiting with failure status due to previous errors".to_owned());
                EXIT_FAILED
            }
            Err(error) => {
                complain(format!("{error}: Error is not recoverable: exiting now"));
                EXIT_FAILED
            }
        }
    }
}

/// Without the buffer that Rust has for it.
fn raw(stream: &impl std::os::fd::AsFd) -> io::Result<File> {
    Ok(stream.as_fd().try_clone_to_owned()?.into())
}

fn complain(what: String) {
    if writeln!(io::stderr(), "tar: {what}").is_err() {
        std::process::exit(EXIT_FAILED);
    }
}

/// Writes what is at `path` as an archive. Answers whether all of it could be read; fails where it cannot be written.
fn pack(path: &Path, out: impl Write, complain: &mut dyn FnMut(String)) -> io::Result<bool> {
    let mut out = BufWriter::with_capacity(BUFFER_LEN, out);
    let mut archive = Builder::new(&mut out);
    let mut whole = true;
    let mut failed = |path: &Path, what: &str, error: &io::Error| {
        whole = false;
        complain(format!("{}: {what}: {error}", path.display()));
    };
    // Directories wait here for their turn, so that depth costs no stack.
    let mut pending = vec![(path.to_owned(), member_name(path))];
    while let Some((path, name)) = pending.pop() {
        let found = match path.symlink_metadata() {
            Ok(found) => found,
            Err(error) => {
                failed(&path, "Cannot stat", &error);
                continue;
            }
        };
        if !found.is_dir() {
            if let Err(error) = append(&mut archive, &path, &name, &found)? {
                failed(&path, "Cannot open", &error);
            }
            continue;
        }
        if !name.as_os_str().is_empty() {
            archive.append_data(&mut header(&found), &name, io::empty())?;
        }
        match path.read_dir() {
            Ok(entries) => {
                for entry in entries {
                    match entry {
                        Ok(entry) => pending.push((entry.path(), name.join(entry.file_name()))),
                        Err(error) => failed(&path, "Cannot read", &error),
                    }
                }
            }
            Err(error) => failed(&path, "Cannot open", &error),
        }
    }
    if whole {
        archive.finish()?;
    }
    // Without its end mark, which dropping it would write: kubectl reads that far, and does not wait for an exit code after it.
    std::mem::forget(archive);
    out.flush()?;
    Ok(whole)
}

/// The name of a path in an archive, which leads down and nowhere else; kubectl looks for the same one.
fn member_name(path: &Path) -> PathBuf {
    let mut names: Vec<OsString> = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name.to_owned()),
            Component::ParentDir => drop(names.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    names.iter().collect()
}

fn header(found: &Metadata) -> Header {
    let mut header = Header::new_gnu();
    header.set_metadata(found);
    if !found.is_file() {
        header.set_size(0);
    }
    header
}

/// The inner error is about the file, the outer one about the archive.
fn append(
    archive: &mut Builder<impl Write>,
    path: &Path,
    name: &Path,
    found: &Metadata,
) -> io::Result<Result<(), io::Error>> {
    let kind = found.file_type();
    if kind.is_socket() {
        return Ok(Err(io::Error::other("socket ignored")));
    }
    if kind.is_symlink() {
        return match path.read_link() {
            Ok(target) => archive.append_link(&mut header(found), name, target).map(Ok),
            Err(error) => Ok(Err(error)),
        };
    }
    if !kind.is_file() {
        return archive.append_data(&mut header(found), name, io::empty()).map(Ok);
    }
    // Something else may be there by now: a link is not followed, a pipe without a writer is not waited for.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let flags = i32::try_from(flags.bits()).map_err(io::Error::other)?;
    let opened = File::options().read(true).custom_flags(flags).open(path);
    let (file, found) = match opened.and_then(|file| file.metadata().map(|found| (file, found))) {
        Ok((file, found)) if found.is_file() => (file, found),
        Ok(_) => return Ok(Err(io::Error::other("it is no file any more"))),
        Err(error) => return Ok(Err(error)),
    };
    let mut content = Content { file, left: found.size(), failure: None };
    archive.append_data(&mut header(&found), name, &mut content)?;
    Ok(content.failure.map_or(Ok(()), Err))
}

/// Exactly as many bytes as the header says: zeros in place of what cannot be read, or is not there any more.
struct Content {
    file: File,
    left: u64,
    failure: Option<io::Error>,
}

impl Read for Content {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let buffer = &mut buffer[..len];
        let read = if self.failure.is_none() { self.file.read(buffer) } else { Ok(0) };
        let read = match read {
            Ok(0) if len > 0 => {
                self.failure.get_or_insert_with(|| io::Error::other("File shrank; padding with zeros"));
                buffer.fill(0);
                len
            }
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            Err(error) => {
                self.failure = Some(error);
                buffer.fill(0);
                len
            }
        };
        self.left -= read as u64;
        Ok(read)
    }
}

/// Lays an archive out below `into`. Answers whether all of it could be; fails where it cannot be read.
fn unpack(input: impl Read, into: &Path, keeps_owner: bool, complain: &mut dyn FnMut(String)) -> io::Result<bool> {
    if !into.is_dir() {
        return Err(io::Error::other(format!("{}: Cannot open: No such file or directory", into.display())));
    }
    let mut archive = Archive::new(input);
    // As GNU tar does it for root.
    let keeps_owner = keeps_owner && rustix::process::geteuid().is_root();
    archive.set_preserve_ownerships(keeps_owner);
    archive.set_preserve_permissions(keeps_owner);
    archive.set_mask(if keeps_owner { 0 } else { UMASK });
    archive.set_preserve_mtime(false);
    let mut whole = true;
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let done = match entry.header().entry_type() {
            EntryType::Regular
            | EntryType::Continuous
            | EntryType::GNUSparse
            | EntryType::Directory
            | EntryType::Symlink
            | EntryType::Link => entry.unpack_in(into),
            EntryType::XGlobalHeader => continue,
            _ => Err(io::Error::other("it is neither a file nor a directory nor a link")),
        };
        let problem = match done {
            Ok(true) => continue,
            Ok(false) => "Member name contains '..'".to_owned(),
            Err(error) => chain(&error),
        };
        whole = false;
        complain(format!("{name}: {problem}"));
    }
    Ok(whole)
}

fn chain(error: &io::Error) -> String {
    crate::error::chain(error)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn only_the_words_of_kubectl_are_understood() {
        let parse = |text: &str| Copy::parse(&words(text)).map(|copy| format!("{copy:?}"));
        let is = |copy: Copy<'_>| Some(format!("{copy:?}"));
        let unpack = |into, keeps_owner| Copy::Unpack { into: Path::new(into), keeps_owner };
        assert_eq!(parse("test -d /a"), is(Copy::IsDirectory(Path::new("/a"))));
        assert_eq!(parse("tar cf - /a"), is(Copy::Pack(Path::new("/a"))));
        assert_eq!(parse("tar -xmf -"), is(unpack(".", true)));
        assert_eq!(parse("tar -xmf - -C /a"), is(unpack("/a", true)));
        assert_eq!(parse("tar --no-same-permissions --no-same-owner -xmf - -C /a"), is(unpack("/a", false)));
        for other in ["tar", "tar cf - /a /b", "tar czf - /a", "tar -xf -", "test -f /a", "/bin/tar cf - /a", "sh -c x"]
        {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn members_lead_down() {
        for (path, name) in
            [("/etc/hosts", "etc/hosts"), ("/", ""), (".", ""), ("../../x", "x"), ("a/../b/./c", "b/c"), ("/a/", "a")]
        {
            assert_eq!(member_name(Path::new(path)), Path::new(name), "{path}");
        }
    }

    /// Packs one directory and lays it out in another.
    fn carry(from: &Path, into: &Path) -> (bool, Vec<String>) {
        let mut said = Vec::new();
        let mut text = Vec::new();
        let packed = pack(from, &mut text, &mut |what| said.push(what)).expect("written");
        let unpacked = unpack(text.as_slice(), into, false, &mut |what| said.push(what)).expect("read");
        (packed && unpacked, said)
    }

    #[test]
    fn a_tree_goes_through() {
        let from = tempfile::tempdir().expect("a directory");
        let into = tempfile::tempdir().expect("a directory");
        let long = "n".repeat(200);
        let deep = from.path().join(&long);
        fs_err::create_dir_all(deep.join("empty")).expect("made");
        fs_err::write(deep.join("file"), vec![7; 100_000]).expect("written");
        fs_err::set_permissions(deep.join("file"), std::fs::Permissions::from_mode(0o777)).expect("set");
        symlink("/nowhere", from.path().join("link")).expect("linked");
        let (whole, said) = carry(from.path(), into.path());
        assert!(whole, "{said:?}");
        let copy = into.path().join(member_name(from.path()));
        assert_eq!(fs_err::read(copy.join(&long).join("file")).expect("there"), vec![7; 100_000]);
        let mode = fs_err::metadata(copy.join(&long).join("file")).expect("there").mode();
        assert_eq!(mode & 0o7777, 0o755, "not more than the mask leaves");
        assert!(copy.join(&long).join("empty").is_dir());
        assert_eq!(fs_err::read_link(copy.join("link")).expect("a link"), Path::new("/nowhere"));

        let (whole, said) = carry(&from.path().join("none"), into.path());
        assert!(!whole && said[0].contains("Cannot stat"), "{said:?}");
        let _socket = std::os::unix::net::UnixListener::bind(from.path().join("socket")).expect("bound");
        let (whole, said) = carry(from.path(), into.path());
        assert!(!whole && said[0].ends_with("socket ignored"), "{said:?}");
    }

    fn archive(members: &[(&str, EntryType, &str)]) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for (name, kind, text) in members {
            let mut header = Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o644);
            let is_link = matches!(kind, EntryType::Symlink | EntryType::Link);
            header.set_size(if is_link { 0 } else { text.len() as u64 });
            // Not by the library, which refuses what a hostile archive has.
            header.as_gnu_mut().expect("of GNU").name[..name.len()].copy_from_slice(name.as_bytes());
            if is_link {
                header.set_link_name(text).expect("a name");
            }
            header.set_cksum();
            builder.append(&header, if is_link { "" } else { text }.as_bytes()).expect("appended");
        }
        builder.into_inner().expect("whole")
    }

    #[test]
    fn nothing_leads_out() {
        let outer = tempfile::tempdir().expect("a directory");
        let into = outer.path().join("into");
        fs_err::create_dir(&into).expect("made");
        let up = format!("{}/evil", outer.path().display());
        let outside = outer.path().to_str().expect("UTF-8").to_owned();
        let text = archive(&[
            ("../evil", EntryType::Regular, "x"),
            (&up, EntryType::Regular, "x"),
            ("link", EntryType::Symlink, &outside),
            ("link/evil", EntryType::Regular, "x"),
            ("hard", EntryType::Link, &up),
            ("pipe", EntryType::Fifo, ""),
            ("good", EntryType::Regular, "x"),
        ]);
        let mut said = Vec::new();
        assert!(!unpack(text.as_slice(), &into, false, &mut |what| said.push(what)).expect("read"));
        assert!(!outer.path().join("evil").exists(), "{said:?}");
        assert!(into.join("good").is_file(), "the rest goes on");
        assert!(said.iter().any(|said| said == "../evil: Member name contains '..'"), "{said:?}");
        assert!(said.iter().any(|said| said.starts_with("pipe: it is neither")), "{said:?}");
        assert!(unpack(&b"garbage"[..], &into, false, &mut |_| ()).is_err());
        assert!(unpack(&text[..700], &into, false, &mut |_| ()).is_err(), "broken off");
        let missing = unpack(text.as_slice(), &into.join("none"), false, &mut |_| ());
        assert!(missing.is_err_and(|error| error.to_string().ends_with("Cannot open: No such file or directory")));
    }
}
