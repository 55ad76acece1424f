//! Frames to bytes and back (SPDY/3 section 2.2). Pure.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use super::SpdyError;
use super::headers::{Deflater, Headers, Inflater};

/// Bytes of one frame's payload. Clients write what they read, some tens of kilobytes; the protocol would allow 16 MiB.
pub const FRAME_LEN_MAX: usize = 1 << 20;
const HEADER_LEN: usize = 8;
const VERSION: u16 = 3;
const FLAG_FIN: u8 = 1;

mod kind {
    pub(super) const SYN_STREAM: u16 = 1;
    pub(super) const SYN_REPLY: u16 = 2;
    pub(super) const RST_STREAM: u16 = 3;
    pub(super) const SETTINGS: u16 = 4;
    pub(super) const PING: u16 = 6;
    pub(super) const GOAWAY: u16 = 7;
    pub(super) const HEADERS: u16 = 8;
    pub(super) const WINDOW_UPDATE: u16 = 9;
}

/// Reasons of RST_STREAM (SPDY/3 section 2.6.3).
pub mod reset {
    pub const PROTOCOL_ERROR: u32 = 1;
    pub const INVALID_STREAM: u32 = 2;
    pub const REFUSED_STREAM: u32 = 3;
    pub const CANCEL: u32 = 5;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    SynStream {
        id: u32,
        fin: bool,
        headers: Headers,
    },
    SynReply {
        id: u32,
        fin: bool,
        headers: Headers,
    },
    RstStream {
        id: u32,
        reason: u32,
    },
    Ping {
        id: u32,
    },
    GoAway {
        last_id: u32,
        reason: u32,
    },
    Headers {
        id: u32,
        fin: bool,
        headers: Headers,
    },
    Data {
        id: u32,
        fin: bool,
        data: Bytes,
    },
    /// SETTINGS and WINDOW_UPDATE: legal, and without meaning where there is no flow control.
    Ignored,
}

/// Reads the frames of one direction.
#[derive(Default)]
pub struct Decoder {
    inflater: Inflater,
}

impl Decoder {
    /// The next frame in `input`, once all of it is there.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, SpdyError> {
        let Some(header) = input.first_chunk::<HEADER_LEN>().copied() else { return Ok(None) };
        let word = u32::from_be_bytes([header[0], header[1], header[2], header[3]]);
        let flags = header[4];
        let len = u32::from_be_bytes([0, header[5], header[6], header[7]]) as usize;
        if len > FRAME_LEN_MAX {
            return Err(SpdyError::FrameTooLong { len, max: FRAME_LEN_MAX });
        }
        if input.len() < HEADER_LEN + len {
            return Ok(None);
        }
        input.advance(HEADER_LEN);
        let payload = input.split_to(len).freeze();
        let fin = flags & FLAG_FIN != 0;
        if word & 0x8000_0000 == 0 {
            return Ok(Some(Frame::Data { id: word, fin, data: payload }));
        }
        let version = ((word >> 16) & 0x7fff) as u16;
        if version != VERSION {
            return Err(SpdyError::Version(version));
        }
        self.control((word & 0xffff) as u16, fin, payload).map(Some)
    }

    fn control(&mut self, kind: u16, fin: bool, mut payload: Bytes) -> Result<Frame, SpdyError> {
        let number = |payload: &mut Bytes| payload.try_get_u32().map_err(|_| SpdyError::Truncated);
        match kind {
            kind::SYN_STREAM => {
                let id = number(&mut payload)? & 0x7fff_ffff;
                let _associated = number(&mut payload)?;
                let _priority_and_slot = payload.try_get_u16().map_err(|_| SpdyError::Truncated)?;
                Ok(Frame::SynStream { id, fin, headers: self.inflater.read(&payload)? })
            }
            kind::SYN_REPLY => {
                let id = number(&mut payload)? & 0x7fff_ffff;
                Ok(Frame::SynReply { id, fin, headers: self.inflater.read(&payload)? })
            }
            kind::RST_STREAM => {
                let id = number(&mut payload)? & 0x7fff_ffff;
                Ok(Frame::RstStream { id, reason: number(&mut payload)? })
            }
            kind::PING => Ok(Frame::Ping { id: number(&mut payload)? }),
            kind::GOAWAY => {
                let last_id = number(&mut payload)? & 0x7fff_ffff;
                Ok(Frame::GoAway { last_id, reason: number(&mut payload)? })
            }
            kind::HEADERS => {
                let id = number(&mut payload)? & 0x7fff_ffff;
                Ok(Frame::Headers { id, fin, headers: self.inflater.read(&payload)? })
            }
            kind::SETTINGS | kind::WINDOW_UPDATE => Ok(Frame::Ignored),
            other => Err(SpdyError::UnknownFrame(other)),
        }
    }
}

/// Writes the frames of one direction.
#[derive(Default)]
pub struct Encoder {
    deflater: Deflater,
}

impl Encoder {
    pub fn encode(&mut self, frame: &Frame, out: &mut BytesMut) -> Result<(), SpdyError> {
        match frame {
            Frame::SynStream { id, fin, headers } => {
                let block = self.deflater.write(headers)?;
                control(kind::SYN_STREAM, *fin, 10 + block.len(), out)?;
                out.put_u32(*id);
                out.put_u32(0);
                out.put_u16(0);
                out.put_slice(&block);
            }
            Frame::SynReply { id, fin, headers } => self.with_headers(kind::SYN_REPLY, *id, *fin, headers, out)?,
            Frame::Headers { id, fin, headers } => self.with_headers(kind::HEADERS, *id, *fin, headers, out)?,
            Frame::RstStream { id, reason } => {
                control(kind::RST_STREAM, false, 8, out)?;
                out.put_u32(*id);
                out.put_u32(*reason);
            }
            Frame::Ping { id } => {
                control(kind::PING, false, 4, out)?;
                out.put_u32(*id);
            }
            Frame::GoAway { last_id, reason } => {
                control(kind::GOAWAY, false, 8, out)?;
                out.put_u32(*last_id);
                out.put_u32(*reason);
            }
            Frame::Data { id, fin, data } => {
                out.put_u32(*id & 0x7fff_ffff);
                length(*fin, data.len(), out)?;
                out.put_slice(data);
            }
            Frame::Ignored => {}
        }
        Ok(())
    }

    fn with_headers(
        &mut self,
        kind: u16,
        id: u32,
        fin: bool,
        headers: &Headers,
        out: &mut BytesMut,
    ) -> Result<(), SpdyError> {
        let block = self.deflater.write(headers)?;
        control(kind, fin, 4 + block.len(), out)?;
        out.put_u32(id);
        out.put_slice(&block);
        Ok(())
    }
}

fn control(kind: u16, fin: bool, len: usize, out: &mut BytesMut) -> Result<(), SpdyError> {
    out.put_u16(0x8000 | VERSION);
    out.put_u16(kind);
    length(fin, len, out)
}

fn length(fin: bool, len: usize, out: &mut BytesMut) -> Result<(), SpdyError> {
    let small = u32::try_from(len).ok().filter(|_| len <= FRAME_LEN_MAX);
    let small = small.ok_or(SpdyError::FrameTooLong { len, max: FRAME_LEN_MAX })?;
    out.put_u32(small | (u32::from(u8::from(fin) * FLAG_FIN) << 24));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames() -> Vec<Frame> {
        let headers =
            || Headers(vec![("streamtype".to_owned(), "data".to_owned()), ("port".to_owned(), "80".to_owned())]);
        vec![
            Frame::SynStream { id: 1, fin: false, headers: headers() },
            Frame::SynReply { id: 1, fin: false, headers: Headers::default() },
            Frame::Data { id: 1, fin: false, data: Bytes::from_static(b"hello") },
            Frame::Ping { id: 7 },
            Frame::Headers { id: 1, fin: false, headers: headers() },
            Frame::Data { id: 1, fin: true, data: Bytes::new() },
            Frame::RstStream { id: 1, reason: reset::CANCEL },
            Frame::GoAway { last_id: 1, reason: 0 },
        ]
    }

    #[test]
    fn frames_round_trip_however_they_are_cut() {
        let mut encoder = Encoder::default();
        let mut wire = BytesMut::new();
        for frame in frames() {
            encoder.encode(&frame, &mut wire).expect("encoded");
        }
        for piece in [1, 2, 7, 8, 9, wire.len()] {
            let (mut decoder, mut input, mut seen) = (Decoder::default(), BytesMut::new(), Vec::new());
            for bytes in wire.chunks(piece) {
                input.extend_from_slice(bytes);
                while let Some(frame) = decoder.decode(&mut input).expect("decoded") {
                    seen.push(frame);
                }
            }
            assert_eq!(seen, frames(), "in pieces of {piece}");
            assert!(input.is_empty());
        }
    }

    #[test]
    fn bytes_of_the_specification() {
        let mut wire = BytesMut::new();
        Encoder::default().encode(&Frame::Ping { id: 1 }, &mut wire).expect("encoded");
        assert_eq!(wire.as_ref(), [0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1]);
        wire.clear();
        let data = Frame::Data { id: 5, fin: true, data: Bytes::from_static(b"ab") };
        Encoder::default().encode(&data, &mut wire).expect("encoded");
        assert_eq!(wire.as_ref(), [0, 0, 0, 5, 1, 0, 0, 2, b'a', b'b']);
    }

    #[test]
    fn hostile_frames_are_refused() {
        for (bytes, expect) in [
            (&[0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1][..], "the version 2 is not SPDY/3"),
            (&[0x80, 3, 0, 99, 0, 0, 0, 0], "the frame type 99 is unknown"),
            (&[0x80, 3, 0, 6, 0, 0, 0, 2, 0, 0], "a frame is shorter than its type needs"),
            (&[0x80, 3, 0, 1, 0, 0, 0, 3, 0, 0, 0], "a frame is shorter than its type needs"),
            (&[0, 0, 0, 1, 0, 0xff, 0xff, 0xff], "a frame of 16777215 bytes is over the limit of 1048576"),
            (&[0x80, 3, 0, 2, 0, 0, 0, 8, 0, 0, 0, 1, 1, 2, 3, 4], "the header block cannot be decompressed"),
        ] {
            let error = Decoder::default().decode(&mut BytesMut::from(bytes)).expect_err("refused");
            assert_eq!(error.to_string(), expect);
        }
    }

    #[test]
    fn hostile_frames_end() {
        carob_fuzz::run(concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/spdy"), |bytes| {
            let (mut decoder, mut input) = (Decoder::default(), BytesMut::from(bytes));
            while let Ok(Some(_)) = decoder.decode(&mut input) {}
        });
    }
}
