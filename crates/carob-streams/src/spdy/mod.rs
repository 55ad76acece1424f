//! SPDY/3.1 as Kubernetes speaks it: the framing layer, without flow control, as its only other implementation has it
//! (`moby/spdystream`).
//!
//! [`frame`] and [`headers`] are pure; [`session`] runs them over a connection.

pub mod frame;
pub mod headers;
pub mod session;

/// The other side broke the protocol, or a limit.
#[derive(Debug, thiserror::Error)]
pub enum SpdyError {
    #[error("a frame of {len} bytes is over the limit of {max}")]
    FrameTooLong { len: usize, max: usize },
    #[error("the version {0} is not SPDY/3")]
    Version(u16),
    #[error("the frame type {0} is unknown")]
    UnknownFrame(u16),
    #[error("a frame is shorter than its type needs")]
    Truncated,
    #[error("the header block cannot be decompressed")]
    Compression,
    #[error("the headers are over the limit of {max} bytes")]
    HeadersTooLong { max: usize },
    #[error("the stream id {0} is not allowed here")]
    StreamId(u32),
    #[error("read or write the connection")]
    Io(#[from] std::io::Error),
}
