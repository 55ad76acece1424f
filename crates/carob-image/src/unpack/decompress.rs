//! Which compression a layer has is read from its first bytes: media types lie often enough.

use std::io::{self, BufReader, Read};

use super::UnpackError;

const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];
const ZSTD_MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// A zstd frame that only skips, which may come first (RFC 8878, 3.1.2).
const ZSTD_SKIPPABLE: [u8; 3] = [0x2a, 0x4d, 0x18];
/// log2 of the largest window that a frame may ask for: 128 MiB, zstd's own default limit (`ZSTD_WINDOWLOG_LIMIT_DEFAULT`).
const ZSTD_WINDOW_LOG_MAX: u32 = 27;
/// Bytes read from below at a time.
const BUFFER_LEN: usize = 128 << 10;

/// The archive as a tar stream.
pub(crate) fn decompress<'a>(mut archive: impl Read + 'a) -> Result<Box<dyn Read + 'a>, UnpackError> {
    let mut magic = Vec::new();
    Read::take(&mut archive, 4).read_to_end(&mut magic).map_err(UnpackError::Magic)?;
    let is_gzip = magic.starts_with(GZIP_MAGIC);
    let is_zstd = magic == ZSTD_MAGIC || (magic.len() == 4 && magic[0] & 0xf0 == 0x50 && magic[1..] == ZSTD_SKIPPABLE);
    let whole = BufReader::with_capacity(BUFFER_LEN, io::Cursor::new(magic).chain(archive));
    if is_gzip {
        return Ok(Box::new(flate2::bufread::MultiGzDecoder::new(whole)));
    }
    if is_zstd {
        let mut decoder = zstd::Decoder::with_buffer(whole).map_err(UnpackError::Magic)?;
        decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(UnpackError::Magic)?;
        return Ok(Box::new(decoder));
    }
    Ok(Box::new(whole))
}
