//! Manifests from files: read once they are whole, and again when something happens to them (inotify; nothing is polled).

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use carob_kit::{Backoff, Clock, chain};
use fs_err as fs;
use k8s_openapi::api::core::v1::Pod;
use tokio_util::sync::CancellationToken;

use super::parse::Reader;
use super::{Collector, Origin, TEXT_LEN_MAX};
use crate::dir_watch::{DirWatch, Happened};
use crate::files::Files;

/// Files of a directory that are read; a node runs a few hundred Pods.
const FILES_MAX: usize = 1000;
/// Waits before a place that cannot be read is looked at again (kubelet `file_linux.go`, retryPeriod and maxRetryPeriod).
const RETRY_BASE: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(20);
/// Whose threads reading takes.
const FILES_OF: &str = "manifests";

#[derive(Debug, thiserror::Error)]
enum DirectoryError {
    #[error("read the manifests in {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("watch for changes of the manifests")]
    Watch(#[source] io::Error),
}

/// Reads what one place says, and tells a collector.
pub struct Directory {
    pub path: PathBuf,
    pub node_name: String,
    pub collector: Arc<Collector>,
    pub files: Files,
    pub clock: Arc<dyn Clock>,
}

/// What the place is made of.
struct Place {
    dir: PathBuf,
    /// The one file that counts; `None` for all.
    only: Option<OsString>,
}

/// What a file held when it was looked at.
enum Seen {
    Gone,
    /// It cannot be used: what was read of it before stays.
    Bad(String),
    Text(Vec<u8>),
}

impl Directory {
    /// Follows the files until the shutdown.
    pub async fn run(self, shutdown: CancellationToken) {
        let follow = async {
            let mut retry = Backoff::new(RETRY_BASE, RETRY_MAX);
            let mut known = BTreeSet::new();
            let mut first = true;
            loop {
                if let Err(error) = self.follow(&mut known, &mut first, &mut retry).await {
                    let delay = retry.fail();
                    self.collector.complain(chain(&error).to_string());
                    tokio::time::sleep(delay).await;
                }
            }
        };
        // Cancel safe: nothing that was read is lost but the reading.
        tokio::select! {
            () = follow => {}
            () = shutdown.cancelled() => {}
        }
    }

    /// Follows one directory for as long as it is the one.
    async fn follow(
        &self,
        known: &mut BTreeSet<OsString>,
        first: &mut bool,
        retry: &mut Backoff,
    ) -> Result<(), DirectoryError> {
        let Some(place) = self.place()? else { return self.until_there(known, first).await };
        // The watch begins before the first look, so that nothing is missed in between.
        let watch = DirWatch::of_whole_files(&place.dir).map_err(DirectoryError::Watch)?;
        self.look_at_all(&place, known, std::mem::take(first)).await?;
        retry.reset();
        loop {
            let happened = watch.next().await.map_err(DirectoryError::Watch)?;
            if happened.contains(&Happened::ToAny) {
                return Ok(());
            }
            let names: BTreeSet<OsString> = happened.into_iter().filter_map(|one| changed(&place, one)).collect();
            if !names.is_empty() {
                self.look_at(&place, names, known, false).await?;
            }
        }
    }

    /// A place that is not there holds nothing. Waits for a change on the way to it.
    async fn until_there(&self, known: &mut BTreeSet<OsString>, first: &mut bool) -> Result<(), DirectoryError> {
        let parent = self.path.ancestors().skip(1).find(|path| path.is_dir()).unwrap_or(Path::new("/"));
        let watch = DirWatch::of_whole_files(parent).map_err(DirectoryError::Watch)?;
        let gone = std::mem::take(known).into_iter().map(|name| (self.origin_of_gone(&name), None)).collect();
        tracing::warn!(path = %self.path.display(), "there are no manifests yet: the path does not exist");
        self.collector.update(gone, std::mem::take(first));
        while self.place()?.is_none() && parent.is_dir() {
            watch.changed().await.map_err(DirectoryError::Watch)?;
            let next = self.path.ancestors().skip(1).find(|path| path.is_dir());
            if next != Some(parent) {
                break;
            }
        }
        Ok(())
    }

    fn origin_of_gone(&self, name: &OsStr) -> Origin {
        let is_it = self.path.file_name() == Some(name);
        Origin::File(if is_it { self.path.clone() } else { self.path.join(name) })
    }

    /// `None` where there is nothing at the path.
    fn place(&self) -> Result<Option<Place>, DirectoryError> {
        let failed = |source| DirectoryError::Read { path: self.path.clone(), source };
        let found = match fs::metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            found => found.map_err(failed)?,
        };
        if found.is_dir() {
            return Ok(Some(Place { dir: self.path.clone(), only: None }));
        }
        match (self.path.parent(), self.path.file_name()) {
            (Some(dir), Some(name)) if found.is_file() => {
                Ok(Some(Place { dir: dir.to_owned(), only: Some(name.to_owned()) }))
            }
            _ => Err(failed(io::Error::other("it is neither a directory nor a file"))),
        }
    }

    async fn look_at_all(
        &self,
        place: &Place,
        known: &mut BTreeSet<OsString>,
        first: bool,
    ) -> Result<(), DirectoryError> {
        let mut names = match &place.only {
            Some(name) => BTreeSet::from([name.clone()]),
            None => {
                let dir = place.dir.clone();
                let listed = self.files.run(FILES_OF, "list the manifests", move || list(&dir)).await;
                let failed = |source| DirectoryError::Read { path: place.dir.clone(), source };
                listed.map_err(io::Error::from).and_then(|listed| listed).map_err(failed)?
            }
        };
        if names.len() > FILES_MAX {
            let passed_over = names.len() - FILES_MAX;
            self.collector.complain(format!(
                "{}: of more than {FILES_MAX} files the last {passed_over} are passed over",
                place.dir.display()
            ));
            names = names.into_iter().take(FILES_MAX).collect();
        }
        names.extend(known.iter().cloned());
        self.look_at(place, names, known, first).await
    }

    /// Reads the files of these names, and tells what they hold now.
    async fn look_at(
        &self,
        place: &Place,
        names: BTreeSet<OsString>,
        known: &mut BTreeSet<OsString>,
        first: bool,
    ) -> Result<(), DirectoryError> {
        let mut changes = Vec::new();
        for name in names {
            let path = place.dir.join(&name);
            let (origin, of_thread) = (Origin::File(path.clone()), path.clone());
            let seen = self.files.run(FILES_OF, "read a manifest", move || read(&of_thread)).await;
            let seen = seen.map_err(|error| DirectoryError::Read { path: path.clone(), source: error.into() })?;
            match seen {
                Seen::Gone => {
                    if known.remove(&name) {
                        changes.push((origin, None));
                    }
                }
                Seen::Bad(why) => self.collector.complain(format!("{origin}: {why}")),
                Seen::Text(_) if known.len() >= FILES_MAX && !known.contains(&name) => {
                    self.collector.complain(format!("{origin}: there are {FILES_MAX} manifests already"));
                }
                Seen::Text(text) => {
                    if let Some(pods) = self.parse(&origin, &text, known.contains(&name)) {
                        known.insert(name);
                        changes.push((origin, Some(pods)));
                    }
                }
            }
        }
        if first || !changes.is_empty() {
            self.collector.update(changes, first);
        }
        Ok(())
    }

    /// `None` where nothing is to change: what a file held before stays while something is wrong with it, since nobody has
    /// asked for its end. A file that is read for the first time gives what it can.
    fn parse(&self, origin: &Origin, text: &[u8], is_known: bool) -> Option<Vec<Arc<Pod>>> {
        let reader = Reader { node_name: &self.node_name, origin, now: self.clock.now() };
        let parsed = reader.read(text);
        let usable = parsed.is_usable(is_known);
        for said in parsed.problems.into_iter().chain(parsed.remarks) {
            self.collector.complain(said);
        }
        usable.then(|| parsed.pods.into_iter().map(Arc::new).collect())
    }
}

/// Whether something happened to a manifest. A new file is told of once more when it is whole; a link is whole at once.
fn changed(place: &Place, happened: Happened) -> Option<OsString> {
    let (name, made) = match happened {
        Happened::Made(name) => (name, true),
        Happened::To(name) => (name, false),
        Happened::ToAny => return None,
    };
    let counts = place.only.as_ref().map_or_else(|| is_manifest(&name), |only| *only == name);
    let being_written = || {
        let found = fs::symlink_metadata(place.dir.join(&name));
        found.is_ok_and(|found| found.is_file() && found.nlink() == 1)
    };
    (counts && !(made && being_written())).then_some(name)
}

/// Names that begin with a dot are for whoever writes the files.
fn is_manifest(name: &OsStr) -> bool {
    !name.as_encoded_bytes().starts_with(b".")
}

fn list(dir: &Path) -> io::Result<BTreeSet<OsString>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if is_manifest(&entry.file_name()) && !entry.file_type()?.is_dir() {
            names.insert(entry.file_name());
        }
    }
    Ok(names)
}

fn read(path: &Path) -> Seen {
    let bad = |error: &dyn std::fmt::Display| Seen::Bad(format!("it cannot be read: {error}"));
    // A pipe that nobody writes to would hold the thread for ever.
    let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = match std::fs::OpenOptions::new().read(true).custom_flags(nonblocking).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Seen::Gone,
        Err(error) => return bad(&error),
        Ok(file) => file,
    };
    match file.metadata() {
        Ok(found) if found.is_dir() => {
            return Seen::Bad("it is a directory: only the files beside it are read".to_owned());
        }
        Ok(found) if !found.is_file() => return Seen::Bad("it is not a file".to_owned()),
        Ok(_) => {}
        Err(error) => return bad(&error),
    }
    let mut text = Vec::new();
    match file.take(TEXT_LEN_MAX as u64 + 1).read_to_end(&mut text) {
        Ok(len) if len > TEXT_LEN_MAX => Seen::Bad(format!("it has more than {TEXT_LEN_MAX} bytes")),
        Ok(_) => Seen::Text(text),
        Err(error) => bad(&error),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use carob_kit::SystemClock;
    use tokio::sync::watch;

    use super::*;
    use crate::events::{Events, Subject};
    use crate::manifests::Manifests;

    #[derive(Default)]
    struct Said(Mutex<Vec<String>>);

    impl Events for Said {
        fn normal(&self, _subject: &Subject, _reason: &str, _message: String) {}

        fn warning(&self, subject: &Subject, reason: &str, message: String) {
            assert_eq!((subject.0.kind.as_deref(), reason), (Some("Node"), "FailedValidation"));
            self.0.lock().expect("no holder panics").push(message);
        }
    }

    struct Bench {
        dir: tempfile::TempDir,
        said: Arc<Said>,
        manifests: watch::Receiver<Arc<Manifests>>,
        shutdown: CancellationToken,
    }

    impl Drop for Bench {
        fn drop(&mut self) {
            self.shutdown.cancel();
        }
    }

    fn manifest(name: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{containers: [{{name: c, image: x}}]}}\n"
        )
    }

    impl Bench {
        fn new(prepare: impl FnOnce(&Path), place: &str) -> Self {
            let dir = tempfile::tempdir().expect("a directory");
            prepare(dir.path());
            let said = Arc::new(Said::default());
            let events: Arc<dyn Events> = said.clone();
            let collector = Arc::new(Collector::new("n".to_owned(), events, 1));
            let manifests = collector.manifests();
            let shutdown = CancellationToken::new();
            let directory = Directory {
                path: dir.path().join(place),
                node_name: "n".to_owned(),
                collector,
                files: Files::default(),
                clock: Arc::new(SystemClock::default()),
            };
            tokio::spawn(directory.run(shutdown.clone()));
            Self { dir, said, manifests, shutdown }
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.dir.path().join(name), text).expect("written");
        }

        /// Waits until just these Pods are to run.
        async fn until(&mut self, names: &[&str]) -> Arc<Manifests> {
            let shown = |all: &Arc<Manifests>| all.pods.keys().map(|(_, name)| name.clone()).collect::<Vec<_>>();
            let wait = self.manifests.wait_for(|all| all.complete && shown(all) == names);
            let found = tokio::time::timeout(Duration::from_secs(20), wait).await;
            found.unwrap_or_else(|_| panic!("never {names:?}")).expect("the directory is followed").clone()
        }

        async fn until_said(&self, what: &str) {
            let said = || self.said.0.lock().expect("no holder panics").iter().any(|said| said.contains(what));
            for _ in 0..2000 {
                if said() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            panic!("{what:?} was not said");
        }
    }

    #[tokio::test]
    async fn files_come_change_and_go() {
        let mut bench = Bench::new(
            |dir| {
                fs::write(dir.join("a.yaml"), manifest("a")).expect("written");
                fs::write(dir.join(".hidden"), manifest("hidden")).expect("written");
                fs::create_dir(dir.join("deep")).expect("made");
            },
            "",
        );
        let before = bench.until(&["a-n"]).await;
        bench.write("b.json", &format!("{}---\n{}", manifest("b"), manifest("c")));
        bench.until(&["a-n", "b-n", "c-n"]).await;
        bench.write("a.yaml", &manifest("a").replace("image: x", "image: z"));
        let uid = |all: &Manifests| all.pods[&("default".to_owned(), "a-n".to_owned())].metadata.uid.clone();
        let changed = bench.manifests.wait_for(|all| uid(all) != uid(&before)).await.expect("followed").clone();
        assert_eq!(changed.pods.len(), 3);
        bench.write("a.yaml", "kind: [");
        bench.until_said("a.yaml: it cannot be read").await;
        bench.write("a.yaml", &manifest("a").replace("image: x", "image: {}"));
        bench.until_said("a.yaml: pod \"a\": json: cannot unmarshal").await;
        bench.until(&["a-n", "b-n", "c-n"]).await;
        fs::remove_file(bench.dir.path().join("b.json")).expect("removed");
        bench.until(&["a-n"]).await;
        bench.write("huge", &"#".repeat(TEXT_LEN_MAX + 1));
        bench.until_said("it has more than 10485760 bytes").await;
        std::os::unix::fs::symlink(bench.dir.path().join(".hidden"), bench.dir.path().join("link")).expect("linked");
        bench.until(&["a-n", "hidden-n"]).await;
    }

    #[tokio::test]
    async fn a_place_that_is_made_later_is_found() {
        let mut bench = Bench::new(|_| {}, "etc/manifests");
        bench.until(&[]).await;
        fs::create_dir_all(bench.dir.path().join("etc/manifests")).expect("made");
        bench.write("etc/manifests/a", &manifest("a"));
        bench.until(&["a-n"]).await;
        fs::remove_dir_all(bench.dir.path().join("etc")).expect("removed");
        bench.until(&[]).await;
    }

    #[tokio::test]
    async fn one_file_is_a_place_too() {
        let prepare = |dir: &Path| {
            fs::write(dir.join("one"), manifest("one")).expect("written");
            fs::write(dir.join("two"), manifest("two")).expect("written");
        };
        let mut bench = Bench::new(prepare, "one");
        bench.until(&["one-n"]).await;
        fs::rename(bench.dir.path().join("two"), bench.dir.path().join("one")).expect("renamed");
        bench.until(&["two-n"]).await;
        fs::remove_file(bench.dir.path().join("one")).expect("removed");
        bench.until(&[]).await;
    }
}
