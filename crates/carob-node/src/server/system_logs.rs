//! `/logs/`: the machine's own logs, directories as a list of links (kubelet `pkg/kubelet/server/server.go`, its file server).

use std::io::Read as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use fs_err as fs;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};
use tokio::sync::mpsc;

use super::logs::respond;
use super::query::unescape;
use super::routes::{RequestError, text};
use carob_streams::upgrade::Body;

const ROOT: &str = "/var/log";
/// Entries of a directory that are listed.
const ENTRIES_MAX: usize = 10_000;
const CHUNK_BYTES: usize = 64 * 1024;
/// Chunks that wait for a slow client; beyond, reading waits.
const CHUNKS_MAX: usize = 4;

/// What a path names.
enum Found {
    Directory(Vec<String>),
    File(fs::File, u64),
}

/// `path` is what follows `/logs/`, still escaped.
pub(super) async fn handle(path: &str) -> Result<Response<Body>, RequestError> {
    let path = unescape(path);
    let found = tokio::task::spawn_blocking(move || find(Path::new(ROOT), &path)).await;
    match found.map_err(|error| RequestError::Internal(error.to_string()))?? {
        Found::Directory(names) => {
            let mut response = text(StatusCode::OK, listing(&names));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
            Ok(response)
        }
        Found::File(file, len) => {
            let (out, chunks) = mpsc::channel(CHUNKS_MAX);
            tokio::task::spawn_blocking(move || send(file, len, &out));
            Ok(respond(chunks))
        }
    }
}

/// Nothing outside of the root is shown: a Pod that may write there could plant a link to any file.
fn find(root: &Path, path: &str) -> Result<Found, RequestError> {
    let missing = || RequestError::NotFound("404 page not found".to_owned());
    let named: PathBuf = path.split('/').filter(|part| !part.is_empty()).collect();
    if path.contains('\0') || path.split('/').any(|part| part == "..") {
        return Err(RequestError::BadRequest("invalid URL path".to_owned()));
    }
    let root = fs::canonicalize(root).map_err(|_| missing())?;
    let real = fs::canonicalize(root.join(named)).map_err(|_| missing())?;
    if !real.starts_with(&root) {
        return Err(missing());
    }
    let failed = |error: std::io::Error| RequestError::Internal(error.to_string());
    let metadata = fs::metadata(&real).map_err(failed)?;
    if metadata.is_file() {
        return Ok(Found::File(fs::File::open(&real).map_err(failed)?, metadata.len()));
    }
    if !metadata.is_dir() {
        return Err(missing());
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(&real).map_err(failed)?.take(ENTRIES_MAX) {
        let entry = entry.map_err(failed)?;
        let slash = if entry.file_type().is_ok_and(|ty| ty.is_dir()) { "/" } else { "" };
        names.push(format!("{}{slash}", entry.file_name().to_string_lossy()));
    }
    names.sort();
    Ok(Found::Directory(names))
}

fn listing(names: &[String]) -> String {
    let escape =
        |name: &str| name.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&#34;");
    let mut page = String::from("<!doctype html>\n<meta name=\"viewport\" content=\"width=device-width\">\n<pre>\n");
    for name in names {
        page += &format!("<a href=\"{}\">{}</a>\n", link(name), escape(name));
    }
    page + "</pre>\n"
}

/// A relative link (RFC 3986, section 2.3); the slash behind a directory stays.
fn link(name: &str) -> String {
    let mut link = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => link.push(char::from(byte)),
            _ => link += &format!("%{byte:02X}"),
        }
    }
    link
}

/// Sends a file as long as it was when it was opened: one that grows all the time has an end for its reader.
fn send(file: fs::File, len: u64, out: &mpsc::Sender<Bytes>) {
    let mut file = file.take(len);
    loop {
        let mut chunk = vec![0; CHUNK_BYTES];
        match file.read(&mut chunk) {
            Ok(0) => return,
            Ok(read) => {
                chunk.truncate(read);
                if out.blocking_send(Bytes::from(chunk)).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return tracing::warn!(%error, "cannot read a log of the machine"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_below_the_root_is_shown() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().join("log");
        fs::create_dir_all(root.join("pods")).expect("a directory");
        fs::write(root.join("a <b>.log"), "one\n").expect("a file");
        fs::write(dir.path().join("secret"), "no").expect("a file");
        fs::os::unix::fs::symlink(dir.path().join("secret"), root.join("planted")).expect("a link");
        fs::os::unix::fs::symlink(root.join("a <b>.log"), root.join("pods/link")).expect("a link");
        let shown = |path: &str| match find(&root, path) {
            Ok(Found::Directory(names)) => names.join(" "),
            Ok(Found::File(_, len)) => len.to_string(),
            Err(error) => error.to_string(),
        };
        assert_eq!(shown(""), "a <b>.log planted pods/");
        assert_eq!((shown("a <b>.log"), shown("/pods//link")), ("4".to_owned(), "4".to_owned()));
        for path in ["planted", "none", "pods/none"] {
            assert_eq!(shown(path), "404 page not found", "{path}");
        }
        assert_eq!(shown("pods/../../secret"), "invalid URL path");
        assert!(listing(&["a <b>.log".to_owned()]).contains("<a href=\"a%20%3Cb%3E.log\">a &lt;b&gt;.log</a>\n"));
    }
}
