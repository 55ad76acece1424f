//! Splits the body of a watch into its lines.

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt;
use kube::client::Body;

/// The longest line that is taken: an object may have 1.5 MiB in the store (etcd's limit), and JSON may spell it longer.
const LINE_BYTES_MAX: usize = 8 << 20;

/// The body of a watch broke off.
#[derive(Debug, thiserror::Error)]
pub(super) enum LineError {
    #[error("read the watch")]
    Read(#[source] Box<kube::Error>),
    #[error("a line of the watch is longer than {LINE_BYTES_MAX} bytes")]
    TooLong,
}

pub(super) struct Lines {
    body: Body,
    pending: BytesMut,
    /// How much of `pending` is known to hold no line end.
    searched: usize,
}

impl Lines {
    pub(super) fn new(body: Body) -> Self {
        Self { body, pending: BytesMut::new(), searched: 0 }
    }

    /// The next line without its end; `None` at the end of the body, where an unfinished line is dropped.
    ///
    /// Cancel safe: what was read stays in `self`.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, LineError> {
        loop {
            if let Some(end) = self.pending[self.searched..].iter().position(|byte| *byte == b'\n') {
                let line = self.pending.split_to(self.searched + end).freeze();
                self.pending.advance(1);
                self.searched = 0;
                return Ok(Some(line));
            }
            self.searched = self.pending.len();
            if self.searched > LINE_BYTES_MAX {
                return Err(LineError::TooLong);
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(LineError::Read(Box::new(error))),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.pending.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_cut_at_line_ends_and_a_torn_one_is_dropped() {
        let mut lines = Lines::new(Body::from(b"one\n\ntwo\ntorn".to_vec()));
        let mut seen = Vec::new();
        while let Some(line) = lines.next().await.expect("the body is whole") {
            seen.push(line);
        }
        assert_eq!(seen, ["one", "", "two"]);
    }
}
