//! Archives made by hand, good and hostile ones, unpacked into real directories. Needs root, as the store does.

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use tar::{EntryType, Header};
use tempfile::TempDir;

use super::*;

/// An archive in the making.
struct Archive(tar::Builder<Vec<u8>>);

impl Archive {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn header(kind: EntryType, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o644);
        header.set_mtime(1_000_000_000);
        header
    }

    /// Writes the path as it is: the builder would refuse the hostile ones.
    fn raw(mut self, path: &[u8], mut header: Header, content: &[u8]) -> Self {
        header.as_old_mut().name[..path.len()].copy_from_slice(path);
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    fn file(self, path: &str, content: &str) -> Self {
        self.raw(path.as_bytes(), Self::header(EntryType::Regular, content.len() as u64), content.as_bytes())
    }

    fn dir(self, path: &str, mode: u32) -> Self {
        let mut header = Self::header(EntryType::Directory, 0);
        header.set_mode(mode);
        self.raw(path.as_bytes(), header, b"")
    }

    fn link(self, kind: EntryType, path: &str, target: &str) -> Self {
        let mut header = Self::header(kind, 0);
        header.set_link_name_literal(target).unwrap();
        self.raw(path.as_bytes(), header, b"")
    }

    fn symlink(self, path: &str, target: &str) -> Self {
        self.link(EntryType::Symlink, path, target)
    }

    fn device(self, kind: EntryType, path: &str, major: u32, minor: u32) -> Self {
        let mut header = Self::header(kind, 0);
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        self.raw(path.as_bytes(), header, b"")
    }

    /// A pax header for the entry that follows.
    fn pax(self, key: &str, value: &[u8]) -> Self {
        let mut len = key.len() + value.len() + 3;
        while len != key.len() + value.len() + 3 + len.to_string().len() {
            len = key.len() + value.len() + 3 + len.to_string().len();
        }
        let record = [format!("{len} {key}=").as_bytes(), value, b"\n"].concat();
        self.raw(b"pax", Self::header(EntryType::XHeader, record.len() as u64), &record)
    }

    /// Several records in one pax header.
    fn records(self, records: &[(&str, &[u8])]) -> Self {
        let mut all = Vec::new();
        for (key, value) in records {
            let own = Self::new().pax(key, value).bytes();
            all.extend(own[512..].split(|byte| *byte == 0).next().unwrap_or_default());
        }
        self.raw(b"pax", Self::header(EntryType::XHeader, all.len() as u64), &all)
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// Layers in a directory of their own.
struct Layers {
    dir: TempDir,
    unpacked: Vec<PathBuf>,
}

impl Layers {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), unpacked: Vec::new() }
    }

    fn try_add(&mut self, archive: &[u8], limits: &UnpackLimits) -> Result<Unpacked, UnpackError> {
        let target = self.dir.path().join(format!("layer-{}", self.unpacked.len()));
        fs_err::create_dir(&target).unwrap();
        let lowers: Vec<PathBuf> = self.unpacked.iter().rev().cloned().collect();
        let unpacked = unpack(archive, &target, &lowers, limits)?;
        self.unpacked.push(target);
        Ok(unpacked)
    }

    fn add(&mut self, archive: Archive) -> PathBuf {
        self.try_add(&archive.bytes(), &UnpackLimits::default()).unwrap();
        self.unpacked.last().unwrap().clone()
    }
}

fn only(archive: Archive) -> (Layers, PathBuf) {
    let mut layers = Layers::new();
    let path = layers.add(archive);
    (layers, path)
}

fn read(path: PathBuf) -> String {
    fs_err::read_to_string(path).unwrap()
}

fn is_opaque(path: PathBuf) -> bool {
    let mut value = [0; 1];
    rustix::fs::getxattr(path, "trusted.overlay.opaque", &mut value).is_ok()
}

fn is_whiteout(path: PathBuf) -> bool {
    fs_err::symlink_metadata(path).is_ok_and(|found| found.file_type().is_char_device() && found.rdev() == 0)
}

#[test]
fn entries_keep_their_kind_mode_owner_time_and_attributes() {
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut suid = Archive::header(EntryType::Regular, 1);
    suid.set_mode(0o4755);
    suid.set_uid(1000);
    suid.set_gid(1001);
    let archive = Archive::new()
        .dir("./", 0o755)
        .dir("bin/", 0o1777)
        .raw(b"bin/su", suid, b"x")
        .pax("SCHILY.xattr.security.capability", &capability)
        .file("bin/ping", "p")
        .pax("SCHILY.xattr.user.note", b"hello")
        .pax("mtime", b"1234567890.5")
        .file("bin/noted", "n")
        .link(EntryType::Link, "bin/su2", "bin/su")
        .symlink("bin/abs", "/etc/passwd")
        .device(EntryType::Char, "null", 1, 3)
        .device(EntryType::Block, "sda", 8, 0)
        .device(EntryType::Fifo, "pipe", 0, 0);
    let (_layers, root) = only(archive);
    let meta = |path: &str| fs_err::symlink_metadata(root.join(path)).unwrap();
    assert_eq!(meta("bin").permissions().mode() & 0o7777, 0o1777);
    let su = meta("bin/su");
    assert_eq!((su.permissions().mode() & 0o7777, su.uid(), su.gid(), su.nlink()), (0o4755, 1000, 1001, 2));
    assert_eq!(su.ino(), meta("bin/su2").ino());
    assert_eq!((meta("bin").mtime(), su.mtime()), (1_000_000_000, 1_000_000_000));
    let mut value = [0; 20];
    rustix::fs::getxattr(root.join("bin/ping"), "security.capability", &mut value).unwrap();
    assert_eq!(value, capability);
    assert_eq!((meta("bin/noted").mtime(), meta("bin/noted").mtime_nsec()), (1_234_567_890, 500_000_000));
    assert_eq!(fs_err::read_link(root.join("bin/abs")).unwrap(), PathBuf::from("/etc/passwd"));
    assert_eq!(meta("null").rdev(), rustix::fs::makedev(1, 3));
    assert!(meta("sda").file_type().is_block_device() && meta("pipe").file_type().is_fifo());
}

#[test]
fn every_compression_gives_the_same_layer() {
    use std::io::Write;
    let plain = Archive::new().file("a", "content").bytes();
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let two_members = [gzip(&plain[..700]), gzip(&plain[700..])].concat();
    let zstd = zstd::encode_all(&plain[..], 1).unwrap();
    for archive in [plain.clone(), gzip(&plain), two_members, zstd] {
        let mut layers = Layers::new();
        let unpacked = layers.try_add(&archive, &UnpackLimits::default()).unwrap();
        assert_eq!(unpacked.diff_id, Digest::of(&plain));
        assert_eq!(read(layers.unpacked[0].join("a")), "content");
    }
}

#[test]
fn whiteouts_become_what_overlayfs_understands() {
    let mut layers = Layers::new();
    layers.add(Archive::new().file("dir/file", "").file("gone", "").file("over/a", "").file("file-to-dir", ""));
    let top = layers.add(
        Archive::new()
            .file(".wh.gone", "")
            .file("dir/.wh..wh..opq", "")
            .file("dir/new", "")
            .file(".wh.over", "")
            .dir("over/", 0o700)
            .dir("late/", 0o700)
            .file(".wh.late", "")
            .file(".wh..wh.plnk", "")
            .file(".wh.back", "")
            .file("back", "again"),
    );
    assert!(is_whiteout(top.join("gone")));
    assert!(is_opaque(top.join("dir")) && top.join("dir/new").exists());
    assert!(is_opaque(top.join("over")), "removed and made again");
    assert!(is_opaque(top.join("late")), "made and then said to hide what was below");
    assert_eq!(read(top.join("back")), "again");
    assert!(!top.join(".wh..wh.plnk").exists() && !is_whiteout(top.join(".wh.plnk")));
}

#[test]
fn directories_that_the_archive_implies_look_as_in_the_layer_below() {
    let mut layers = Layers::new();
    layers.add(Archive::new().dir("tmp/", 0o1777).dir("opt/", 0o711).dir("opt/app/", 0o700));
    let top = layers.add(Archive::new().file("tmp/x", "").file("opt/app/y", "").file("brand/new/z", ""));
    let mode = |path: &str| fs_err::metadata(top.join(path)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("tmp"), mode("opt"), mode("opt/app"), mode("brand/new")), (0o1777, 0o711, 0o700, 0o755));
}

#[test]
fn names_behind_symbolic_links_go_where_a_container_would_see_them() {
    let mut layers = Layers::new();
    layers.add(Archive::new().dir("usr/lib/", 0o755).symlink("lib", "usr/lib").symlink("abs", "/usr/lib"));
    let top = layers.add(
        Archive::new()
            .file("lib/one", "1")
            .file("abs/two", "2")
            .symlink("climb", "../../../../usr")
            .file("climb/lib/three", "3"),
    );
    for (name, content) in [("one", "1"), ("two", "2"), ("three", "3")] {
        assert_eq!(read(top.join("usr/lib").join(name)), content);
    }
    assert!(!top.join("lib").exists(), "the link below still shows");
}

#[test]
fn nothing_is_written_outside_whatever_links_say() {
    let outside = tempfile::tempdir().unwrap();
    let victim = outside.path().join("victim");
    fs_err::write(&victim, "untouched").unwrap();
    let target = outside.path().to_str().unwrap();
    let archive = Archive::new().symlink("escape", target).file("escape/victim", "hostile").symlink("self", "victim");
    let (_layers, root) = only(archive.file("escape/other", "hostile"));
    assert_eq!(read(victim), "untouched");
    assert_eq!(fs_err::read_dir(outside.path()).unwrap().count(), 1);
    assert_eq!(read(root.join(target.trim_start_matches('/')).join("victim")), "hostile");
}

#[test]
fn a_hard_link_to_a_lower_layer_gets_a_copy() {
    let mut layers = Layers::new();
    layers.add(Archive::new().file("a/data", "below"));
    let top = layers.add(Archive::new().link(EntryType::Link, "b/link", "a/data"));
    assert_eq!(read(top.join("b/link")), "below");
    assert_eq!(fs_err::metadata(top.join("a/data")).unwrap().nlink(), 2);
}

#[test]
fn later_entries_replace_earlier_ones() {
    let archive = Archive::new()
        .file("x", "first")
        .file("x", "second")
        .file("d/deep/file", "")
        .file("d", "now a file")
        .file("f", "")
        .file("f2", "")
        .dir("f/", 0o700)
        .symlink("s", "x")
        .file("s", "not through the link");
    let (_layers, root) = only(archive);
    assert_eq!((read(root.join("x")), read(root.join("d"))), ("second".to_owned(), "now a file".to_owned()));
    assert!(root.join("f").is_dir() && is_opaque(root.join("f")));
    assert_eq!(read(root.join("s")), "not through the link");
}

/// A file of ten bytes with holes, in GNU tar's pax format 0.1.
fn sparse(map: &[u8], content: &[u8]) -> Vec<u8> {
    let records = [("GNU.sparse.size", &b"10"[..]), ("GNU.sparse.map", map)];
    Archive::new()
        .records(&records)
        .raw(b"s", Archive::header(EntryType::Regular, content.len() as u64), content)
        .bytes()
}

/// The same in format 1.0, with the map before the content.
fn sparse_1_0(map: &[u8], content: &[u8]) -> Vec<u8> {
    let records = [
        ("GNU.sparse.major", &b"1"[..]),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.realsize", b"10"),
        ("GNU.sparse.name", b"s"),
    ];
    let mut padded = map.to_vec();
    padded.resize(map.len().next_multiple_of(512), 0);
    let content = [&padded, content].concat();
    let header = Archive::header(EntryType::Regular, content.len() as u64);
    Archive::new().records(&records).raw(b"GNUSparseFile.0/s", header, &content).bytes()
}

#[test]
fn files_with_holes_get_their_size_and_their_parts() {
    let mut old = Header::new_gnu();
    old.set_entry_type(EntryType::GNUSparse);
    old.set_size(4);
    let gnu = old.as_gnu_mut().unwrap();
    gnu.realsize = *b"00000000012\0";
    gnu.sparse[0].offset = *b"00000000001\0";
    gnu.sparse[0].numbytes = *b"00000000002\0";
    gnu.sparse[1].offset = *b"00000000006\0";
    gnu.sparse[1].numbytes = *b"00000000002\0";
    let records = [
        ("GNU.sparse.size", &b"10"[..]),
        ("GNU.sparse.offset", b"1"),
        ("GNU.sparse.numbytes", b"2"),
        ("GNU.sparse.offset", b"6"),
        ("GNU.sparse.numbytes", b"2"),
    ];
    let zero_zero = Archive::new().records(&records).file("s", "abcd");
    for archive in [
        sparse(b"1,2,6,2", b"abcd"),
        sparse_1_0(b"2\n1\n2\n6\n2\n", b"abcd"),
        zero_zero.bytes(),
        Archive::new().raw(b"s", old, b"abcd").bytes(),
    ] {
        let mut layers = Layers::new();
        layers
            .try_add(&[archive, Archive::new().file("after", "x").bytes()].concat(), &UnpackLimits::default())
            .unwrap();
        let content = fs_err::read(layers.unpacked[0].join("s")).unwrap();
        assert_eq!(content, b"\0ab\0\0\0cd\0\0");
    }
}

#[test]
fn odd_but_harmless_entries_are_taken() {
    let (_layers, top) = only(
        Archive::new()
            .file("deep/a/b", "target")
            .link(EntryType::Link, "abs", "/deep/a/b")
            .link(EntryType::Link, "round", "deep/x/../a/b")
            .file("d/../e", "cleaned")
            .device(EntryType::Char, "nothing", 0, 0)
            .pax("SCHILY.xattr.trusted.overlay.opaque", b"y")
            .dir("plain", 0o755)
            .pax("SCHILY.xattr.user.overlay.origin", b"y")
            .file("origin", "kept")
            .pax("SCHILY.xattr.user.mime", b"x")
            .symlink("link", "/etc"),
    );
    assert_eq!((read(top.join("abs")), read(top.join("round"))), ("target".to_owned(), "target".to_owned()));
    assert_eq!((read(top.join("e")), read(top.join("origin"))), ("cleaned".to_owned(), "kept".to_owned()));
    assert!(is_whiteout(top.join("nothing")), "as containerd leaves it");
    assert!(!is_opaque(top.join("plain")), "what the builder's overlayfs noted is left out");
    assert!(top.join("link").is_symlink());
}

/// Everything that must be refused, with a part of the words that it is refused with.
fn hostile() -> Vec<(&'static str, Vec<u8>)> {
    let truncated = Archive::new().file("cut", "0123456789").bytes()[..515].to_vec();
    let mut bad_checksum = Archive::new().file("one", "").file("two", "").bytes();
    bad_checksum[512] ^= 1;
    let mut half_header = Archive::new().file("half", "").bytes();
    half_header.truncate(300);
    let huge_pax = Archive::header(EntryType::XHeader, 1 << 40);
    let huge_name = Archive::header(EntryType::GNULongName, 1 << 40);
    let mut bad_size = Archive::header(EntryType::Regular, 0);
    bad_size.as_old_mut().size = *b"zzzzzzzzzzz\0";
    let raw_pax = |record: &[u8]| {
        Archive::new().raw(b"p", Archive::header(EntryType::XHeader, record.len() as u64), record).file("x", "").bytes()
    };
    let mut big = Archive::header(EntryType::Regular, 1 << 50);
    big.set_mode(0o644);
    let header_only = |header: Header, name: &[u8]| {
        let mut header = header;
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_cksum();
        header.as_bytes().to_vec()
    };
    let long_path = "p".repeat(5000);
    let deep = format!("{}x", "d/".repeat(300));
    let many = (0..200).fold(Archive::new(), |archive, n| archive.file(&format!("f{n}"), ""));
    let links = (0..60).fold(Archive::new(), |archive, n| archive.symlink(&format!("l{n}"), &format!("l{}", n + 1)));
    let mut uid = Archive::header(EntryType::Regular, 0);
    uid.set_uid(u64::from(u32::MAX));
    vec![
        (r#"entry "../up" has a path with "..""#, Archive::new().file("../up", "").bytes()),
        (r#"entry "a/../../b" has a path with "..""#, Archive::new().file("a/../../b", "").bytes()),
        (r#"entry "/../../etc/x" has a path with "..""#, Archive::new().file("/../../etc/x", "").bytes()),
        (r#""pax/../../x" has a path with "..""#, Archive::new().pax("path", b"pax/../../x").file("x", "").bytes()),
        (
            r#""abs" is a hard link to "/etc/shadow", which does not exist"#,
            Archive::new().link(EntryType::Link, "abs", "/etc/shadow").bytes(),
        ),
        (
            r#""abs-esc" is a hard link to "/a/../../etc/shadow", which leads out"#,
            Archive::new().link(EntryType::Link, "abs-esc", "/a/../../etc/shadow").bytes(),
        ),
        (
            r#""esc" is a hard link to "../../etc/shadow", which leads out"#,
            Archive::new().link(EntryType::Link, "esc", "../../etc/shadow").bytes(),
        ),
        (
            r#""dang" is a hard link to "nothing", which does not exist"#,
            Archive::new().link(EntryType::Link, "dang", "nothing").bytes(),
        ),
        (
            r#""none" is a hard link to "", which does not exist"#,
            Archive::new().link(EntryType::Link, "none", "").bytes(),
        ),
        (r#"entry "null" is a symbolic link to nowhere"#, Archive::new().symlink("null", "").bytes()),
        (r#"entry "f/x" lies behind "f", which is no directory"#, Archive::new().file("f", "").file("f/x", "").bytes()),
        (
            r#"entry "loop/x" lies behind more than 40 symbolic links"#,
            Archive::new().symlink("loop", "loop").file("loop/x", "").bytes(),
        ),
        (r#"entry "l0/x" lies behind more than 40 symbolic links"#, links.file("l0/x", "").bytes()),
        (r#"entry "w/.wh." is a whiteout without a name"#, Archive::new().file("w/.wh.", "").bytes()),
        (r#"entry ".wh..." is a whiteout without a name"#, Archive::new().file(".wh...", "").bytes()),
        (r#"entry "./" would replace the layer's root"#, Archive::new().link(EntryType::Symlink, "./", "/etc").bytes()),
        (r#"entry "" has an empty path"#, Archive::new().dir("", 0o755).bytes()),
        (r#"entry "ids" has user id 4294967295"#, Archive::new().raw(b"ids", uid, b"").bytes()),
        (r#"the archive ends inside entry "cut""#, truncated),
        (r#"what follows entry "one" is not a tar header"#, bad_checksum),
        (r#"the archive ends inside entry """#, half_header),
        (
            r#"what follows entry "" is not a tar header"#,
            b"this is no archive at all, but it is long enough to look like one".repeat(10),
        ),
        (r#"entry "bigpax" has an extended header of 1099511627776 bytes"#, header_only(huge_pax, b"bigpax")),
        (r#"entry "bigname" has an extended header of 1099511627776 bytes"#, header_only(huge_name, b"bigname")),
        (r#"entry "badsize" has an invalid size"#, header_only(bad_size, b"badsize")),
        ("malformed pax header: no length", raw_pax(b"xxxxx")),
        ("malformed pax header: a length that does not fit", raw_pax(b"9999 path=x\n")),
        ("malformed pax header: a length that does not fit", raw_pax(b"1 path=x\n")),
        ("malformed pax header: no key", raw_pax(b"7 path\n")),
        ("malformed pax header: a value that is not a number", raw_pax(b"12 size=abc\n")),
        (r#"layer has more than 1073741824 bytes: entry "bomb""#, header_only(big, b"bomb")),
        (r#"layer has more than 100 entries: entry "f100""#, many.bytes()),
        (
            "has a path of 5000 bytes, at most 4095",
            Archive::new().pax("path", long_path.as_bytes()).file("x", "").bytes(),
        ),
        ("lies deeper than 200 directories", Archive::new().pax("path", deep.as_bytes()).file("x", "").bytes()),
        ("malformed map: an offset without a length", sparse(b"1", b"abc")),
        ("malformed map: a part out of place", sparse(b"8,3", b"abc")),
        ("malformed map: a part out of place", sparse(b"2,2,0,1", b"abc")),
        ("malformed map: its parts are not as long as its content", sparse(b"0,2", b"abc")),
        ("malformed map: a line that is not a number", sparse_1_0(b"1\n0\nx\n", b"abc")),
        ("malformed map: too many parts", sparse_1_0(b"99999999\n", b"abc")),
        ("malformed map: a line that is not a number", sparse_1_0(b"60\n0\n", b"")),
        ("has a path with a NUL", Archive::new().pax("path", b"a\0b").file("x", "").bytes()),
    ]
}

#[test]
fn hostile_archives_are_refused_with_the_entry_named() {
    let limits = UnpackLimits { entries_max: 100, bytes_max: 1 << 30, ..UnpackLimits::default() };
    for (part, archive) in hostile() {
        let error = Layers::new().try_add(&archive, &limits).expect_err(part);
        let words = carob_kit::chain(&error).to_string();
        assert!(words.contains(part), "{words}\nhas no {part}");
    }
}

#[test]
fn a_compressed_bomb_is_stopped_by_its_size() {
    let zeros = vec![0; 64 << 20];
    let bomb = Archive::new().raw(b"zeros", Archive::header(EntryType::Regular, zeros.len() as u64), &zeros).bytes();
    let tail = [Archive::new().file("a", "").bytes(), zeros].concat();
    let limits = UnpackLimits { bytes_max: 1 << 20, ..UnpackLimits::default() };
    for (archive, part) in [(bomb, "entry \"zeros\""), (tail, "(end of archive)")] {
        let compressed = zstd::encode_all(&archive[..], 1).unwrap();
        assert!(compressed.len() < 1 << 16);
        let error = Layers::new().try_add(&compressed, &limits).unwrap_err().to_string();
        assert!(error.starts_with("layer has more than 1048576 bytes") && error.contains(part), "{error}");
    }
}

#[test]
fn garbage_after_a_magic_number_is_an_error_and_no_panic() {
    for magic in [&[0x1f, 0x8b, 8, 0][..], &[0x28, 0xb5, 0x2f, 0xfd], &[0x50, 0x2a, 0x4d, 0x18], &[0x1f]] {
        let archive = [magic, &[0xff; 2000]].concat();
        assert!(Layers::new().try_add(&archive, &UnpackLimits::default()).is_err(), "{magic:?}");
    }
    Layers::new().try_add(b"", &UnpackLimits::default()).unwrap();
}

/// The layers as a container sees them.
struct Overlay {
    merged: PathBuf,
}

impl Overlay {
    fn of(layers: &Layers) -> Self {
        let merged = layers.dir.path().join("merged");
        fs_err::create_dir(&merged).unwrap();
        let lowers: Vec<&str> = layers.unpacked.iter().rev().map(|path| path.to_str().unwrap()).collect();
        let options = std::ffi::CString::new(format!("lowerdir={}", lowers.join(":"))).unwrap();
        let flags = rustix::mount::MountFlags::RDONLY;
        rustix::mount::mount("overlay", &merged, "overlay", flags, options.as_c_str()).unwrap();
        Self { merged }
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.merged, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

#[test]
fn overlayfs_shows_what_the_image_means() {
    let mut layers = Layers::new();
    layers.add(
        Archive::new()
            .file("etc/passwd", "root")
            .file("etc/removed", "")
            .file("var/cache/old", "")
            .file("replaced/deep/file", "")
            .file("kept/below", "below"),
    );
    layers.add(
        Archive::new()
            .file("etc/.wh.removed", "")
            .file("var/cache/.wh..wh..opq", "")
            .file("var/cache/new", "")
            .file(".wh.replaced", "")
            .file("replaced/only", "")
            .file("kept/above", "above"),
    );
    layers.add(Archive::new().file("etc/passwd", "root and more"));
    let overlay = Overlay::of(&layers);
    let names = |dir: &str| {
        let entries = fs_err::read_dir(overlay.merged.join(dir)).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names.join(" ")
    };
    assert_eq!(names("etc"), "passwd");
    assert_eq!(read(overlay.merged.join("etc/passwd")), "root and more");
    assert_eq!(names("var/cache"), "new");
    assert_eq!(names("replaced"), "only");
    assert_eq!(names("kept"), "above below");
}

#[test]
fn hostile_layers_stay_within_their_directory() {
    let dir = tempfile::tempdir().expect("a directory");
    let (inside, outside) = (dir.path().join("layer"), dir.path().join("outside"));
    let limits = UnpackLimits { entries_max: 1000, bytes_max: 1 << 20, ..UnpackLimits::default() };
    carob_fuzz::run(concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/layers"), |bytes| {
        fs_err::create_dir(&inside).expect("a directory for the layer");
        fs_err::write(&outside, "untouched").expect("a file beside it");
        drop(unpack(bytes, &inside, &[], &limits));
        assert_eq!(fs_err::read_to_string(&outside).expect("the file beside it"), "untouched");
        assert_eq!(
            fs_err::read_dir(dir.path()).expect("the directory above").count(),
            2,
            "something is beside the layer"
        );
        fs_err::remove_dir_all(&inside).expect("the layer can be removed");
    });
}
