//! What test programs have in common that the node calls: they note each call, and fail as a test wants.
//!
//! A test tells them by files: `faults/NodeStageVolume` with `hang`, `die` (before the work), `die-after`, `garbage`, `lie` (well,
//! and nothing done) or `error CODE` in it, once per look. Calls are noted in `calls`, one JSON object per line.

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use carob_grpc::{Routes, ServerLimits, Status};
use fs_err as fs;
use prost::Message;
use serde_json::Value;
use tokio::net::UnixListener;

pub(crate) const LIMITS: ServerLimits = ServerLimits { connections_max: 64, streams_max: 64 };

/// A program that the node calls.
pub(crate) trait Peer: Send + Sync + 'static {
    /// Where faults and the list of calls are.
    fn dir(&self) -> &Path;
}

/// An answer as bytes, which may be no message.
#[derive(Debug, Default)]
pub(crate) struct Raw(Vec<u8>);

impl Message for Raw {
    fn encode_raw(&self, buf: &mut impl prost::bytes::BufMut) {
        buf.put_slice(&self.0);
    }

    fn merge_field(
        &mut self,
        _tag: u32,
        _wire_type: prost::encoding::WireType,
        _buf: &mut impl prost::bytes::Buf,
        _ctx: prost::encoding::DecodeContext,
    ) -> Result<(), prost::DecodeError> {
        Ok(())
    }

    fn encoded_len(&self) -> usize {
        self.0.len()
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}

/// Adds a call to the routes that is noted, and fails as the test wants.
pub(crate) fn call<P, Q, A>(
    routes: Routes,
    peer: &Arc<P>,
    path: &'static str,
    work: fn(&P, &Q) -> Result<A>,
    shown: fn(&Q) -> Value,
) -> Routes
where
    P: Peer,
    Q: Message + Default + 'static,
    A: Message + Default + 'static,
{
    let peer = Arc::clone(peer);
    routes.unary(path, move |request: Q| {
        let peer = Arc::clone(&peer);
        async move {
            let failed = |error: anyhow::Error| Status::internal(format!("{error:#}"));
            let method = path.rsplit('/').next().unwrap_or_default();
            note(peer.dir(), method, shown(&request)).map_err(failed)?;
            let fault = fault(peer.dir(), method).map_err(failed)?;
            match fault.as_deref() {
                Some("hang") => std::future::pending::<()>().await,
                Some("die") => std::process::abort(),
                Some("garbage") => return Ok(Raw(vec![0xff; 32])),
                Some("lie") => return Ok(Raw(A::default().encode_to_vec())),
                Some(error) if error.starts_with("error ") => {
                    let code: i32 = error.trim_start_matches("error ").trim().parse().unwrap_or(13);
                    return Err(Status::new(code.into(), "as the test wants"));
                }
                Some("die-after") | None => {}
                Some(other) => return Err(Status::internal(format!("the fault {other:?} is unknown"))),
            }
            let answer = work(&peer, &request).map_err(failed)?;
            if fault.as_deref() == Some("die-after") {
                std::process::abort();
            }
            Ok(Raw(answer.encode_to_vec()))
        }
    })
}

fn note(dir: &Path, method: &str, mut request: Value) -> Result<()> {
    request["call"] = method.into();
    let mut calls = fs::OpenOptions::new().create(true).append(true).open(dir.join("calls"))?;
    // One write per line: calls come at once.
    Ok(calls.write_all(format!("{request}\n").as_bytes())?)
}

fn fault(dir: &Path, method: &str) -> Result<Option<String>> {
    match fs::read_to_string(dir.join("faults").join(method)) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Listens on a socket, in place of what is there.
pub(crate) fn listen(path: &Path) -> Result<UnixListener> {
    fs::create_dir_all(path.parent().context("a socket is in a directory")?)?;
    if path.exists() {
        fs::remove_file(path)?;
    }
    Ok(UnixListener::bind(path)?)
}

/// Has each call of the method fail like this from now on; `None` for no more.
pub(crate) fn fail(dir: &Path, method: &str, how: Option<&str>) -> Result<()> {
    let path = dir.join("faults").join(method);
    match how {
        // By a rename: the program may look at this moment.
        Some(how) => {
            let whole = dir.join("faults").join(".next");
            fs::write(&whole, how)?;
            Ok(fs::rename(whole, path)?)
        }
        None => Ok(fs::remove_file(path)?),
    }
}

/// The calls of a method since the beginning, in order.
pub(crate) fn calls(dir: &Path, method: &str) -> Result<Vec<Value>> {
    let text = match fs::read_to_string(dir.join("calls")) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        text => text?,
    };
    let calls: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    Ok(calls.into_iter().filter(|call| call["call"] == method).collect())
}
