//! `carob image`: through the running server, or on the data directory itself when none runs.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail, ensure};
use carob_image::{ImageId, ImageRecord, ImageStore, ImportSource, Reference, RemoveOutcome, StoreConfig};
use carob_kit::SystemClock;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::admin;
use crate::cli::{Directories, Format, ImageArgs, ImageCommand};
use crate::config::USUAL_DATA_DIR;
use crate::registries;

/// The name of a file that stands for standard input.
const STANDARD_INPUT: &str = "-";

/// What can be asked of the images.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Request {
    Pull { images: Vec<String> },
    Import { archives: Vec<PathBuf> },
    List,
    Inspect { images: Vec<String> },
    Tag { image: String, name: String },
    Remove { images: Vec<String>, force: bool },
    Prune,
    Pin { image: String, pinned: bool },
}

/// Where one layer of a pull or an import stands.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Progress {
    pub(crate) layer: String,
    pub(crate) step: String,
    pub(crate) done_bytes: u64,
    pub(crate) total_bytes: u64,
}

/// Hands the store's progress to a bounded channel: what finds it full is dropped, since newer progress follows.
struct Sender(mpsc::Sender<Progress>);

impl carob_image::Progress for Sender {
    fn event(&self, event: carob_image::ProgressEvent) {
        use carob_image::ProgressEvent;
        let (layer, step, done_bytes, total_bytes) = match event {
            ProgressEvent::Resolved { layers } => {
                for (layer, bytes) in layers {
                    self.send(layer.to_string(), "waiting".to_owned(), 0, bytes);
                }
                return;
            }
            ProgressEvent::Present { layer } => (layer, "present".to_owned(), 1, 1),
            ProgressEvent::Downloading { layer, done_bytes, total_bytes } => {
                (layer, "downloading".to_owned(), done_bytes, total_bytes)
            }
            ProgressEvent::Retrying { layer, attempt, reason } => (layer, format!("retry {attempt}: {reason}"), 0, 1),
            ProgressEvent::Unpacking { layer } => (layer, "unpacking".to_owned(), 1, 1),
            ProgressEvent::Unpacked { layer } => (layer, "done".to_owned(), 1, 1),
        };
        self.send(layer.to_string(), step, done_bytes, total_bytes);
    }
}

impl Sender {
    fn send(&self, layer: String, step: String, done_bytes: u64, total_bytes: u64) {
        if self.0.try_send(Progress { layer, step, done_bytes, total_bytes }).is_err() {
            tracing::trace!("progress was dropped: its reader is slow");
        }
    }
}

/// Does what `request` says and returns what there is to show.
pub(crate) async fn execute(
    images: &ImageStore,
    run_dir: &Path,
    request: Request,
    progress: mpsc::Sender<Progress>,
) -> Result<Value> {
    let progress = Arc::new(Sender(progress));
    match request {
        Request::Pull { images: names } => {
            let mut pulled = Vec::new();
            for name in names {
                let reference: Reference = name.parse().with_context(|| format!("read the image's name `{name}`"))?;
                let record =
                    images.pull(&reference, None, progress.clone()).await.with_context(|| format!("pull {name}"))?;
                pulled.push(row(&record));
            }
            Ok(Value::from(pulled))
        }
        Request::Import { archives } => {
            let mut imported = Vec::new();
            for archive in archives {
                let (source, shown) = if archive == Path::new(STANDARD_INPUT) {
                    (ImportSource::Reader(Box::new(std::io::stdin())), "standard input".to_owned())
                } else {
                    (ImportSource::Path(archive.clone()), archive.display().to_string())
                };
                let records = images.import(source, progress.clone()).await;
                let records = records.with_context(|| format!("import {shown}"))?;
                imported.extend(records.iter().map(|record| row(record)));
            }
            Ok(Value::from(imported))
        }
        Request::List => Ok(images.list().iter().map(|record| row(record)).collect()),
        Request::Inspect { images: names } => {
            let found = names.iter().map(|name| {
                let record = images.get(name).ok_or_else(|| anyhow!("there is no image {name}"))?;
                inspected(images, &record)
            });
            Ok(Value::from(found.collect::<Result<Vec<_>>>()?))
        }
        Request::Tag { image, name } => {
            let record = images.get(&image).ok_or_else(|| anyhow!("there is no image {image}"))?;
            let reference: Reference = name.parse().with_context(|| format!("read the image's name `{name}`"))?;
            ensure!(reference.tagged().is_some(), "`{name}` has a digest, which is not given but computed");
            let tagged = images.tag(&record.id, &reference).await.with_context(|| format!("tag {image}"))?;
            let tagged = tagged.ok_or_else(|| anyhow!("the image {image} was removed meanwhile"))?;
            Ok(Value::from(vec![row(&tagged)]))
        }
        Request::Prune => prune(images, &in_use(run_dir).await?).await,
        Request::Remove { images: names, force } => {
            let used = in_use(run_dir).await?;
            let mut removed = Vec::new();
            for name in names {
                if let Some(record) = images.get(&name).filter(|_| !force) {
                    ensure!(!record.pinned, "the image {name} is pinned: `carob image pin --off` it, or give --force");
                    ensure!(
                        !used.contains(&record.id),
                        "containers were made from the image {name}: give --force to remove it"
                    );
                }
                removed.push(match images.remove(&name).await.with_context(|| format!("remove {name}"))? {
                    RemoveOutcome::Absent => bail!("there is no image {name}"),
                    RemoveOutcome::Untagged => format!("untagged {name}"),
                    RemoveOutcome::Removed { id, freed_bytes } => format!("removed {id}, {}", bytes(freed_bytes)),
                });
            }
            Ok(Value::from(removed))
        }
        Request::Pin { image, pinned } => {
            let record = images.pin(&image, pinned).await.with_context(|| format!("pin {image}"))?;
            let record = record.ok_or_else(|| anyhow!("there is no image {image}"))?;
            Ok(Value::from(vec![row(&record)]))
        }
    }
}

/// Removes what nothing uses.
async fn prune(images: &ImageStore, used: &BTreeSet<ImageId>) -> Result<Value> {
    let mut removed = Vec::new();
    for record in images.list().iter().filter(|record| !record.pinned && !used.contains(&record.id)) {
        let outcome = images.remove(&record.id.to_string()).await.with_context(|| format!("remove {}", record.id))?;
        if let RemoveOutcome::Removed { id, freed_bytes } = outcome {
            removed.push(format!("removed {id}, {}", bytes(freed_bytes)));
        }
    }
    Ok(Value::from(removed))
}

async fn in_use(run_dir: &Path) -> Result<BTreeSet<ImageId>> {
    let run_dir = run_dir.to_owned();
    let look = move || carob_runtime::images_in_use(&run_dir).context("look at the images of containers");
    tokio::task::spawn_blocking(look).await?
}

/// All that is known of an image.
fn inspected(images: &ImageStore, record: &ImageRecord) -> Result<Value> {
    let layers = images.layers(&record.id).unwrap_or_default();
    let layers: Vec<Value> = record
        .layers
        .iter()
        .zip(layers.iter().rev())
        .map(|(layer, path)| {
            json!({ "diffId": layer.diff_id.to_string(), "bytes": layer.unpacked_bytes, "inodes": layer.inodes,
                    "path": path })
        })
        .collect();
    Ok(json!({
        "id": record.id.to_string(), "tags": record.tags, "digests": record.digests, "bytes": record.size_bytes,
        "pinned": record.pinned, "fetched": record.fetched.to_string(), "layers": layers,
        "config": serde_json::to_value(&*record.config)?,
    }))
}

fn row(record: &ImageRecord) -> Value {
    json!({ "tags": record.tags, "id": record.id.to_string(), "bytes": record.size_bytes, "pinned": record.pinned })
}

/// `carob image …`.
pub(crate) async fn main(arguments: ImageArgs) -> Result<()> {
    let shape = Shape::of(&arguments.command);
    let request = request(arguments.command)?;
    let mut bars = Bars::new();
    let (run_dir, root) = (&arguments.directories.run_dir, images_dir(&arguments.directories).await?);
    let from_here = matches!(&request, Request::Import { archives } if archives.iter().any(|path| path == Path::new(STANDARD_INPUT)));
    let through_server = admin::Request::Image(request.clone());
    let answer = match root {
        // The server has the images and the progress; standard input is this process's.
        ImagesDir::OfServer(_) if !from_here => admin::ask(run_dir, &through_server, |event| bars.show(event)).await?,
        ImagesDir::OfServer(_) | ImagesDir::Own(_) => None,
    };
    let answer = match answer {
        Some(answer) => answer,
        None => {
            let (ImagesDir::OfServer(root) | ImagesDir::Own(root)) = root;
            let mut config = StoreConfig::new(root, Arc::new(SystemClock::new()));
            config.registries = registries::read(arguments.private_registry.as_deref())?;
            let store = ImageStore::open(config).await?;
            let (sender, mut receiver) = mpsc::channel(64);
            let show = async {
                while let Some(event) = receiver.recv().await {
                    bars.show(event);
                }
            };
            let (outcome, ()) = tokio::join!(execute(&store, run_dir, request, sender), show);
            outcome?
        }
    };
    shape.print(&answer)
}

/// Which images are meant.
enum ImagesDir {
    /// Those of the server that runs with the run directory.
    OfServer(PathBuf),
    /// Those of a data directory that no such server has.
    Own(PathBuf),
}

/// The server's images, unless another data directory was asked for.
async fn images_dir(directories: &Directories) -> Result<ImagesDir> {
    let own = std::path::absolute(directories.data_dir.join("images"))?;
    let answer = admin::ask(&directories.run_dir, &admin::Request::ImagesDir, |_| {}).await?;
    let servers = answer.as_ref().and_then(Value::as_str).map(PathBuf::from);
    Ok(match servers {
        Some(servers) if servers == own || directories.data_dir == Path::new(USUAL_DATA_DIR) => {
            ImagesDir::OfServer(servers)
        }
        Some(_) | None => ImagesDir::Own(own),
    })
}

/// How an answer is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Table,
    Lines,
    Json,
    Ids,
}

impl Shape {
    fn of(command: &ImageCommand) -> Self {
        match command {
            ImageCommand::Ls { quiet: true, .. } => Self::Ids,
            ImageCommand::Ls { output: Format::Json, .. } | ImageCommand::Inspect { .. } => Self::Json,
            ImageCommand::Ls { .. }
            | ImageCommand::Pull { .. }
            | ImageCommand::Import { .. }
            | ImageCommand::Tag { .. }
            | ImageCommand::Pin { .. } => Self::Table,
            ImageCommand::Rm { .. } | ImageCommand::Prune => Self::Lines,
        }
    }

    fn print(self, answer: &Value) -> Result<()> {
        let mut out = std::io::stdout().lock();
        match self {
            Self::Table => {
                drop(out);
                return print(answer);
            }
            Self::Lines => {
                for line in answer.as_array().context("the answer is a list")?.iter().filter_map(Value::as_str) {
                    writeln!(out, "{line}")?;
                }
            }
            Self::Json => writeln!(out, "{answer:#}")?,
            Self::Ids => {
                for row in answer.as_array().context("the answer is a list")? {
                    writeln!(out, "{}", row["id"].as_str().unwrap_or_default())?;
                }
            }
        }
        Ok(())
    }
}

fn request(command: ImageCommand) -> Result<Request> {
    Ok(match command {
        ImageCommand::Pull { images } => Request::Pull { images },
        // The server has another working directory.
        ImageCommand::Import { archives } => {
            Request::Import {
                archives: archives
                    .iter()
                    .map(|path| {
                        if path == Path::new(STANDARD_INPUT) {
                            Ok(path.clone())
                        } else {
                            Ok(fs_err::canonicalize(path)?)
                        }
                    })
                    .collect::<Result<_>>()?,
            }
        }
        ImageCommand::Ls { .. } => Request::List,
        ImageCommand::Inspect { images } => Request::Inspect { images },
        ImageCommand::Tag { image, name } => Request::Tag { image, name },
        ImageCommand::Rm { images, force } => Request::Remove { images, force },
        ImageCommand::Prune => Request::Prune,
        ImageCommand::Pin { image, off } => Request::Pin { image, pinned: !off },
    })
}

/// Prints images as a table.
fn print(answer: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let rows = answer.as_array().context("the answer is a list")?;
    writeln!(out, "{:<48} {:<14} {:>10} PINNED", "IMAGE", "ID", "SIZE")?;
    for row in rows {
        let id = row["id"].as_str().unwrap_or_default();
        let short = id.strip_prefix("sha256:").unwrap_or(id).get(..12).unwrap_or(id);
        let size = bytes(row["bytes"].as_u64().unwrap_or_default());
        let pinned = if row["pinned"] == true { "yes" } else { "" };
        let tags: Vec<&str> = row["tags"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        for tag in if tags.is_empty() { vec!["<none>"] } else { tags } {
            writeln!(out, "{tag:<48} {short:<14} {size:>10} {pinned}")?;
        }
    }
    Ok(())
}

/// A size for people: `12.3 MiB`.
fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{count} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// Progress on a terminal: a bar a layer. Elsewhere nothing is drawn.
struct Bars {
    terminal: bool,
    lines: BTreeMap<String, Progress>,
    drawn: usize,
}

impl Bars {
    const WIDTH: u64 = 30;

    fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal(), lines: BTreeMap::new(), drawn: 0 }
    }

    fn show(&mut self, event: Progress) {
        self.lines.insert(event.layer.clone(), event);
        if !self.terminal {
            return;
        }
        let mut text = String::new();
        if self.drawn > 0 {
            text.push_str(&format!("\x1b[{}A", self.drawn));
        }
        for (layer, line) in &self.lines {
            let total = line.total_bytes.max(1);
            let filled = usize::try_from(Self::WIDTH * line.done_bytes.min(total) / total).unwrap_or(0);
            let short = layer.strip_prefix("sha256:").unwrap_or(layer).get(..12).unwrap_or(layer);
            let empty = usize::try_from(Self::WIDTH).unwrap_or(0) - filled;
            text.push_str(&format!("\x1b[2K{short} [{}{}] {}\n", "#".repeat(filled), " ".repeat(empty), line.step));
        }
        self.drawn = self.lines.len();
        // A terminal that cannot be written to shows no bars; the work goes on.
        if std::io::stderr().write_all(text.as_bytes()).is_err() {
            self.terminal = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn sizes_are_for_people() {
        let shown: Vec<String> = [0, 1023, 1024, 5 << 20, 3 << 40].into_iter().map(bytes).collect();
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "5.0 MiB", "3.0 TiB"]);
    }
}
