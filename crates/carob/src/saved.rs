//! A cluster in one file: what `carob save` takes of a server that runs, and `carob restore` makes a data directory of.
//!
//! It is a tar archive, so that what is in it can be looked at, and taken out by hand:
//!
//! | name | what |
//! |---|---|
//! | `carob-save.json` | [`About`]: the version, and when it was saved |
//! | `pki/…`, `machine-id`, `addresses.json` | files of the data directory |
//! | `store` | all API objects of one revision, in the store's own format |
//! | `checksums` | SHA-256 of each file before, as `sha256sum --check` reads it; without it the archive was cut |

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use carob_store::{Restored, SavedStore, restore_embedded};
use jiff::Timestamp;
use ring::digest::{self, SHA256};
use serde::{Deserialize, Serialize};
use tar::{Archive, Builder, EntryType, Header};

use crate::pki::write_private;

/// The version that this program writes, and the newest that it reads.
const VERSION: u32 = 1;
const ABOUT: &str = "carob-save.json";
const PKI: &str = "pki";
const STORE: &str = "store";
const CHECKSUMS: &str = "checksums";
/// Files of the data directory that are saved beside certificates, where they are there.
const FILES: [&str; 2] = ["machine-id", "addresses.json"];
/// Bytes of one file but the store, and how many there are at most.
const FILE_BYTES_MAX: u64 = 256 << 10;
const FILES_MAX: usize = 64;
/// Bytes that are written at once.
const BUFFER_BYTES: usize = 256 << 10;

/// The first file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct About {
    version: u32,
    /// Of the program that wrote it.
    carob: String,
    saved_at: Timestamp,
    revision: u64,
    entries: usize,
}

/// What was saved, for whoever asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Summary {
    pub(crate) revision: u64,
    pub(crate) entries: usize,
    pub(crate) bytes: u64,
}

/// Writes the archive; it has its name once it is whole and on the disk. Blocking.
pub(crate) fn write(path: &Path, data_dir: &Path, store: &SavedStore, now: Timestamp) -> Result<Summary> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    let written = write_at(&temporary, data_dir, store, now).and_then(|summary| {
        fs_err::rename(&temporary, path)?;
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs_err::File::open(dir)?.sync_all()?;
        Ok(summary)
    });
    if written.is_err() && temporary.exists() {
        fs_err::remove_file(&temporary)?;
    }
    written
}

fn write_at(path: &Path, data_dir: &Path, store: &SavedStore, now: Timestamp) -> Result<Summary> {
    use fs_err::os::unix::fs::OpenOptionsExt as _;
    let options = fs_err::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    let file = options.into_parts().0;
    let mut archive =
        Writer { builder: Builder::new(BufWriter::with_capacity(BUFFER_BYTES, file)), sums: String::new(), now };
    let (revision, entries) = (store.revision().0, store.entries());
    let about = About { version: VERSION, carob: crate::VERSION.to_owned(), saved_at: now, revision, entries };
    archive.add(ABOUT, &mut |out| out.write_all(&serde_json::to_vec_pretty(&about)?))?;
    for name in files_of(data_dir)? {
        let bytes = fs_err::read(data_dir.join(&name))?;
        archive.add(&name, &mut |out| out.write_all(&bytes))?;
    }
    archive.add(STORE, &mut |out| store.write(out))?;
    let sums = std::mem::take(&mut archive.sums);
    archive.add(CHECKSUMS, &mut |out| out.write_all(sums.as_bytes()))?;
    let file = archive.builder.into_inner()?.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    Ok(Summary { revision, entries, bytes: file.metadata()?.len() })
}

/// Names below the data directory of what is saved besides the store.
fn files_of(data_dir: &Path) -> Result<Vec<String>> {
    let mut names: Vec<String> =
        FILES.into_iter().filter(|name| data_dir.join(name).exists()).map(str::to_owned).collect();
    for entry in fs_err::read_dir(data_dir.join(PKI))? {
        let entry = entry?;
        let name = entry.file_name().into_string();
        if let Ok(name) = name
            && is_of_pki(&name)
            && entry.file_type()?.is_file()
        {
            names.push(format!("{PKI}/{name}"));
        }
    }
    names.sort_unstable();
    ensure!(names.len() <= FILES_MAX, "{} holds more than {FILES_MAX} files", data_dir.join(PKI).display());
    Ok(names)
}

fn is_of_pki(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let stem = name.strip_suffix(".crt").or_else(|| name.strip_suffix(".key"));
    stem.is_some_and(|stem| !stem.is_empty() && stem.bytes().all(plain))
}

struct Writer {
    builder: Builder<BufWriter<File>>,
    sums: String,
    now: Timestamp,
}

impl Writer {
    fn add(&mut self, name: &str, content: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>) -> Result<()> {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0o600);
        header.set_mtime(u64::try_from(self.now.as_second()).unwrap_or(0));
        let entry = self.builder.append_writer(&mut header, name)?;
        let mut out = Summed { inner: entry, digest: digest::Context::new(&SHA256) };
        content(&mut out).with_context(|| format!("write {name}"))?;
        let Summed { inner, digest } = out;
        inner.finish()?;
        self.sums += &format!("{}  {name}\n", hex(digest.finish().as_ref()));
        Ok(())
    }
}

/// Bytes on their way, and their checksum.
struct Summed<T> {
    inner: T,
    digest: digest::Context,
}

impl<T: Write> Write for Summed<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.digest.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<T: Read> Read for Summed<T> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(bytes)?;
        self.digest.update(&bytes[..count]);
        Ok(count)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat()
}

/// Makes an archive the state of a data directory that holds no cluster: of an empty one, or of one with images and Pods' volumes
/// alone. Nothing is there, or all of it. Blocking.
pub(crate) fn restore(path: &Path, data_dir: &Path, now: Timestamp) -> Result<Restored> {
    let file = fs_err::File::open(path)?;
    carob_kit::fs::make_private(data_dir, 0o711)?;
    for name in [STORE, PKI, "agent", "server-token"] {
        let path = data_dir.join(name);
        ensure!(
            !path.exists(),
            "{} is there: restore into an empty directory, or move away what is left of the cluster in this one",
            path.display()
        );
    }
    let staged = data_dir.join("restore.tmp");
    // Left by a try that was cut short.
    if staged.exists() {
        fs_err::remove_dir_all(&staged)?;
    }
    fs_err::create_dir(&staged)?;
    let restored = unpack(BufReader::with_capacity(BUFFER_BYTES, file), &staged, now)
        .with_context(|| format!("restore {}", path.display()));
    if restored.is_ok() {
        // The store is the last: certificates without it are refused by a server.
        for name in [PKI].into_iter().chain(FILES).chain([STORE]) {
            if staged.join(name).exists() {
                fs_err::rename(staged.join(name), data_dir.join(name))?;
            }
        }
        fs_err::File::open(data_dir)?.sync_all()?;
    }
    fs_err::remove_dir_all(&staged)?;
    restored
}

fn unpack(file: impl Read, dir: &Path, now: Timestamp) -> Result<Restored> {
    let mut archive = Archive::new(file);
    let mut entries = archive.entries()?;
    let mut sums: BTreeMap<String, String> = BTreeMap::new();
    let mut about: Option<About> = None;
    let mut restored = None;
    loop {
        let entry = entries.next().context("it was cut: its end is missing")?.context("it is no whole archive")?;
        let name = entry.path()?.to_str().context("it holds a name that is no text")?.to_owned();
        ensure!(sums.len() <= FILES_MAX && !sums.contains_key(&name), "it holds too many files, or {name} twice");
        ensure!(entry.header().entry_type() == EntryType::Regular, "{name} is no file");
        let size = entry.size();
        ensure!(name == STORE || size <= FILE_BYTES_MAX, "{name} has {size} bytes");
        let mut content = Summed { inner: entry, digest: digest::Context::new(&SHA256) };
        let Some(about) = &about else {
            ensure!(name == ABOUT, "it is nothing that `carob save` has written");
            about = Some(read_about(&mut content)?);
            sums.insert(name, hex(content.digest.finish().as_ref()));
            continue;
        };
        match name.as_str() {
            CHECKSUMS => {
                check(&read_text(&mut content)?, &sums)?;
                return restored.context("it holds no store");
            }
            STORE => {
                let age = now.duration_since(about.saved_at);
                let age = Duration::try_from(age).context("it was saved in the future: set this machine's clock")?;
                restored = Some(restore_embedded(&dir.join(STORE), &mut content, age)?);
            }
            file if FILES.contains(&file) || file.strip_prefix("pki/").is_some_and(is_of_pki) => {
                let (text, path) = (read_text(&mut content)?, dir.join(file));
                carob_kit::fs::make_private(path.parent().context("it is in a directory")?, 0o700)?;
                write_private(&path, &text)?;
            }
            other => bail!("it holds {other:?}, which this program does not know"),
        }
        sums.insert(name, hex(content.digest.finish().as_ref()));
    }
}

fn read_about(content: &mut impl Read) -> Result<About> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let text = read_text(content)?;
    let Versioned { version } = serde_json::from_str(&text).with_context(|| format!("read {ABOUT}"))?;
    ensure!(version <= VERSION, "it has version {version}, and this program knows versions up to {VERSION}");
    serde_json::from_str(&text).with_context(|| format!("read {ABOUT}"))
}

fn read_text(content: &mut impl Read) -> Result<String> {
    let mut text = String::new();
    content.read_to_string(&mut text)?;
    Ok(text)
}

/// Whether each file is what it was.
fn check(text: &str, found: &BTreeMap<String, String>) -> Result<()> {
    let noted: BTreeMap<String, String> = text
        .lines()
        .filter_map(|line| line.split_once("  "))
        .map(|(sum, name)| (name.to_owned(), sum.to_owned()))
        .collect();
    for (name, sum) in found {
        ensure!(noted.get(name) == Some(sum), "{name} is damaged: its checksum is another");
    }
    if let Some(name) = noted.keys().find(|name| !found.contains_key(*name)) {
        bail!("{name} is missing");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use carob_store::{Expect, Options, Store, Txn};

    use super::*;

    fn now() -> Timestamp {
        Timestamp::from_second(1_800_000_000).expect("a time")
    }

    async fn archive(dir: &Path) -> PathBuf {
        let data = dir.join("data");
        fs_err::create_dir_all(data.join("pki")).expect("made");
        for (name, text) in [("pki/ca.crt", "a certificate"), ("pki/ca.key", "a key"), ("machine-id", "machine")] {
            fs_err::write(data.join(name), text).expect("written");
        }
        let store = Store::in_memory(Options::default());
        store.txn(Txn::put("/registry/a", Expect::Absent, "an object")).await.expect("written");
        let path = dir.join("saved");
        let summary = write(&path, &data, &store.save(), now()).expect("saved");
        assert_eq!((summary.entries, summary.bytes), (1, fs_err::metadata(&path).expect("there").len()));
        path
    }

    #[tokio::test]
    async fn what_was_saved_is_restored_into_an_empty_directory_only() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = archive(dir.path()).await;
        let target = dir.path().join("target");
        let later = now().checked_add(Duration::from_secs(5)).expect("a time");
        let restored = restore(&path, &target, later).expect("restored");
        assert_eq!(
            (restored.entries, fs_err::read_to_string(target.join("pki/ca.key")).expect("read").as_str()),
            (1, "a key")
        );
        let store = Store::embedded(&target.join("store"), Options::default()).await.expect("opened");
        assert_eq!(&store.get("/registry/a").expect("there").value[..], b"an object");
        let error = restore(&path, &target, later).expect_err("refused").to_string();
        assert!(error.contains("store is there"), "{error}");
        let error = format!(
            "{:#}",
            restore(&path, &dir.path().join("past"), now().checked_sub(Duration::from_secs(9)).expect("a time"))
                .expect_err("refused")
        );
        assert!(error.contains("clock"), "{error}");
    }

    #[tokio::test]
    async fn what_was_cut_or_changed_leaves_the_directory_empty() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = archive(dir.path()).await;
        let whole = fs_err::read(&path).expect("read");
        let (broken, target) = (dir.path().join("broken"), dir.path().join("target"));
        let refused = |bytes: &[u8]| {
            fs_err::write(&broken, bytes).expect("written");
            let error = format!("{:#}", restore(&broken, &target, now()).expect_err("refused"));
            assert_eq!(fs_err::read_dir(&target).expect("listed").count(), 0, "{error}");
            error
        };
        // The zeros that fill the last block and end an archive say nothing, nor does the end of the last line.
        let end = whole.iter().rposition(|byte| *byte != 0).expect("it holds something");
        for len in (0..end).step_by(509) {
            refused(&whole[..len]);
        }
        let mut at = 0;
        while at < end {
            let mut changed = whole.clone();
            // Zeros that fill a block are not looked at.
            if changed[at] != 0 {
                changed[at] ^= 1;
                refused(&changed);
            }
            at += 13;
        }
        let text = String::from_utf8_lossy(&whole).into_owned();
        let position = text.find("\"version\": 1").expect("it is the first file") + "\"version\": ".len();
        let mut newer = whole.clone();
        newer[position] = b'2';
        assert!(refused(&newer).contains("version 2"));
        assert!(refused(b"no archive at all").contains("archive"));
        let other = {
            let mut builder = Builder::new(Vec::new());
            let mut header = Header::new_gnu();
            header.set_size(1);
            header.set_mode(0o600);
            builder.append_data(&mut header, "../escape", &b"x"[..]).err();
            let mut header = Header::new_gnu();
            header.set_size(1);
            builder.append_data(&mut header, "something", &b"x"[..]).expect("appended");
            builder.into_inner().expect("ended")
        };
        assert!(refused(&other).contains("nothing that `carob save` has written"));
    }

    #[test]
    fn only_certificates_and_keys_are_taken_from_their_directory() {
        for name in ["ca.crt", "front-proxy-ca.key"] {
            assert!(is_of_pki(name), "{name}");
        }
        for name in ["", ".crt", "../ca.crt", "a/b.key", "ca.crt.tmp", "ca.pem"] {
            assert!(!is_of_pki(name), "{name}");
        }
    }
}
