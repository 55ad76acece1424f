//! `carob image`: through the running server, or on the data directory itself when none runs.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use carob_image::{ImageRecord, ImageStore, ImportSource, Reference, RemoveOutcome, StoreConfig};
use carob_kit::SystemClock;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::admin;
use crate::cli::{ImageArgs, ImageCommand};

/// What can be asked of the images.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Request {
    Pull { images: Vec<String> },
    Import { archives: Vec<PathBuf> },
    List,
    Remove { images: Vec<String> },
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
pub(crate) async fn execute(images: &ImageStore, request: Request, progress: mpsc::Sender<Progress>) -> Result<Value> {
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
                let source = ImportSource::Path(archive.clone());
                let records = images.import(source, progress.clone()).await;
                let records = records.with_context(|| format!("import {}", archive.display()))?;
                imported.extend(records.iter().map(|record| row(record)));
            }
            Ok(Value::from(imported))
        }
        Request::List => Ok(images.list().iter().map(|record| row(record)).collect()),
        Request::Remove { images: names } => {
            let mut removed = Vec::new();
            for name in names {
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

fn row(record: &ImageRecord) -> Value {
    json!({ "tags": record.tags, "id": record.id.to_string(), "bytes": record.size_bytes, "pinned": record.pinned })
}

/// `carob image …`.
pub(crate) async fn main(arguments: ImageArgs) -> Result<()> {
    let request = request(arguments.command)?;
    let mut bars = Bars::new();
    let through_server = admin::Request::Image(request.clone());
    let answer = match admin::ask(&arguments.directories.run_dir, &through_server, |event| bars.show(event)).await? {
        Some(answer) => answer,
        None => {
            let root = arguments.directories.data_dir.join("images");
            let store = ImageStore::open(StoreConfig::new(root, Arc::new(SystemClock::new()))).await?;
            let (sender, mut receiver) = mpsc::channel(64);
            let show = async {
                while let Some(event) = receiver.recv().await {
                    bars.show(event);
                }
            };
            let (outcome, ()) = tokio::join!(execute(&store, request, sender), show);
            outcome?
        }
    };
    print(&answer)
}

fn request(command: ImageCommand) -> Result<Request> {
    Ok(match command {
        ImageCommand::Pull { images } => Request::Pull { images },
        // The server has another working directory.
        ImageCommand::Import { archives } => Request::Import {
            archives: archives
                .iter()
                .map(|path| fs_err::canonicalize(path).map_err(Into::into))
                .collect::<Result<_>>()?,
        },
        ImageCommand::Ls => Request::List,
        ImageCommand::Rm { images } => Request::Remove { images },
        ImageCommand::Pin { image, off } => Request::Pin { image, pinned: !off },
    })
}

/// Prints images as a table and messages as lines.
fn print(answer: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let rows = answer.as_array().context("the answer is a list")?;
    if rows.iter().all(Value::is_string) && !rows.is_empty() {
        for line in rows.iter().filter_map(Value::as_str) {
            writeln!(out, "{line}")?;
        }
        return Ok(());
    }
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
