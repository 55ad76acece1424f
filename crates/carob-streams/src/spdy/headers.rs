//! Header blocks: name and value pairs, compressed with one zlib stream a connection and direction (SPDY/3 section 2.6.10).

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::SpdyError;

/// Bytes of a decompressed block: real ones have some hundreds, and a small block can grow a thousandfold.
pub const BLOCK_LEN_MAX: usize = 16 * 1024;

/// Name and value pairs; names are lower case on the wire.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(pub Vec<(String, String)>);

impl Headers {
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// Decompresses the blocks of one direction, in order.
pub struct Inflater(Decompress);

impl Default for Inflater {
    fn default() -> Self {
        Self(Decompress::new(true))
    }
}

impl Inflater {
    pub fn read(&mut self, block: &[u8]) -> Result<Headers, SpdyError> {
        parse(&self.inflate(block)?)
    }

    fn inflate(&mut self, block: &[u8]) -> Result<Vec<u8>, SpdyError> {
        let mut text = Vec::with_capacity(1024);
        let mut rest = block;
        loop {
            if text.len() >= BLOCK_LEN_MAX {
                return Err(SpdyError::HeadersTooLong { max: BLOCK_LEN_MAX });
            }
            if text.len() == text.capacity() {
                text.reserve(text.len().min(BLOCK_LEN_MAX - text.len()).max(1));
            }
            let (in_before, out_before) = (self.0.total_in(), text.len());
            let status = self.0.decompress_vec(rest, &mut text, FlushDecompress::Sync);
            let status = match status {
                Err(error) if error.needs_dictionary().is_some() => {
                    rest = &rest[consumed(self.0.total_in(), in_before, rest.len())..];
                    self.0.set_dictionary(DICTIONARY).map_err(|_| SpdyError::Compression)?;
                    continue;
                }
                status => status.map_err(|_| SpdyError::Compression)?,
            };
            rest = &rest[consumed(self.0.total_in(), in_before, rest.len())..];
            match status {
                Status::StreamEnd => return Ok(text),
                Status::Ok | Status::BufError if rest.is_empty() && text.len() < text.capacity() => return Ok(text),
                Status::BufError if text.len() == out_before && text.len() < text.capacity() => {
                    return Err(SpdyError::Compression);
                }
                Status::Ok | Status::BufError => {}
            }
        }
    }
}

fn consumed(now: u64, before: u64, len: usize) -> usize {
    usize::try_from(now - before).unwrap_or(len).min(len)
}

/// Compresses the blocks of one direction, in order.
pub struct Deflater(Compress);

impl Default for Deflater {
    fn default() -> Self {
        let mut deflater = Compress::new(Compression::best(), true);
        let set = deflater.set_dictionary(DICTIONARY);
        debug_assert!(set.is_ok(), "a fresh compressor takes a dictionary");
        Self(deflater)
    }
}

impl Deflater {
    pub fn write(&mut self, headers: &Headers) -> Result<Vec<u8>, SpdyError> {
        let text = render(headers);
        let mut block = Vec::with_capacity(text.len() + 64);
        let mut rest = text.as_slice();
        loop {
            let before = self.0.total_in();
            let status = self.0.compress_vec(rest, &mut block, FlushCompress::Sync);
            status.map_err(|_| SpdyError::Compression)?;
            rest = &rest[consumed(self.0.total_in(), before, rest.len())..];
            if rest.is_empty() && block.len() < block.capacity() {
                return Ok(block);
            }
            block.reserve(256);
        }
    }
}

fn render(headers: &Headers) -> Vec<u8> {
    let mut out = Vec::new();
    let number = |value: usize, out: &mut Vec<u8>| {
        out.extend_from_slice(&u32::try_from(value).unwrap_or(u32::MAX).to_be_bytes());
    };
    number(headers.0.len(), &mut out);
    for (name, value) in &headers.0 {
        let name = name.to_ascii_lowercase();
        number(name.len(), &mut out);
        out.extend_from_slice(name.as_bytes());
        number(value.len(), &mut out);
        out.extend_from_slice(value.as_bytes());
    }
    out
}

fn parse(block: &[u8]) -> Result<Headers, SpdyError> {
    let mut rest = block;
    let count = take_number(&mut rest)?;
    let mut headers = Vec::new();
    for _ in 0..count {
        let name = take_text(&mut rest)?;
        let value = take_text(&mut rest)?;
        // Several values of one name stand apart by NUL; the first is the one that matters to us.
        let value = value.split('\0').next().unwrap_or_default().to_owned();
        headers.push((name, value));
    }
    Ok(Headers(headers))
}

fn take_number(rest: &mut &[u8]) -> Result<usize, SpdyError> {
    let (number, tail) = rest.split_first_chunk::<4>().ok_or(SpdyError::Truncated)?;
    *rest = tail;
    Ok(u32::from_be_bytes(*number) as usize)
}

fn take_text(rest: &mut &[u8]) -> Result<String, SpdyError> {
    let len = take_number(rest)?;
    let (text, tail) = rest.split_at_checked(len).ok_or(SpdyError::Truncated)?;
    *rest = tail;
    Ok(String::from_utf8_lossy(text).into_owned())
}

/// What both sides have read before the first block (SPDY/3 section 2.6.10.1).
const DICTIONARY: &[u8] = include_bytes!("dictionary.bin");

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> Headers {
        Headers(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn blocks_of_one_connection_round_trip_in_order() {
        let (mut deflater, mut inflater) = (Deflater::default(), Inflater::default());
        let many = (0..200).map(|n| (format!("name-{n}"), format!("value-{n}"))).collect();
        for block in [headers(&[("streamtype", "error")]), headers(&[]), Headers(many), headers(&[("port", "80")])] {
            let bytes = deflater.write(&block).expect("compressed");
            assert_eq!(inflater.read(&bytes).expect("decompressed"), block);
        }
    }

    #[test]
    fn a_block_that_explodes_is_refused() {
        let bomb = headers(&[("a", &"x".repeat(10 * BLOCK_LEN_MAX))]);
        let bytes = Deflater::default().write(&bomb).expect("compressed");
        assert!(bytes.len() < 1000);
        assert!(matches!(Inflater::default().read(&bytes), Err(SpdyError::HeadersTooLong { .. })));
    }

    #[test]
    fn garbage_is_refused() {
        for bytes in [&[][..], &[0xff; 40], &[0x78, 0xbb, 0xe3, 0xc6, 0xa7, 0xc2, 1, 2, 3]] {
            assert!(Inflater::default().read(bytes).is_err(), "{bytes:?}");
        }
        assert!(parse(&[0, 0, 0, 9]).is_err());
        assert!(parse(&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff]).is_err());
    }
}
