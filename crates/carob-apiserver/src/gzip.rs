//! Compression of a response while it is sent.

use std::io::Write;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::{Stream, StreamExt, stream};
use http_body_util::BodyStream;

use crate::body::{Body, BoxError};

/// The fastest level, as upstream's (`responsewriters/writers.go`, `defaultGzipContentEncodingLevel`).
const LEVEL: u32 = 1;

/// `body`, compressed piece by piece.
pub(crate) fn compress(body: Body) -> Body {
    let pieces = Box::pin(BodyStream::new(body));
    let encoder = GzEncoder::new(Vec::new(), Compression::new(LEVEL));
    Body::stream(stream::unfold(Some((pieces, encoder)), |state| async move {
        let (mut pieces, mut encoder) = state?;
        match next(&mut pieces, &mut encoder).await {
            Ok(Some(bytes)) => Some((Ok(bytes), Some((pieces, encoder)))),
            Ok(None) => Some((encoder.finish().map(Bytes::from).map_err(BoxError::from), None)),
            Err(error) => Some((Err(error), None)),
        }
    }))
}

/// The next compressed bytes; `None` once the body has ended.
async fn next(
    pieces: &mut (impl Stream<Item = Result<http_body::Frame<Bytes>, BoxError>> + Unpin),
    encoder: &mut GzEncoder<Vec<u8>>,
) -> Result<Option<Bytes>, BoxError> {
    while let Some(frame) = pieces.next().await {
        if let Ok(data) = frame?.into_data() {
            encoder.write_all(&data)?;
        }
        if !encoder.get_ref().is_empty() {
            return Ok(Some(Bytes::from(std::mem::take(encoder.get_mut()))));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn what_was_compressed_comes_back() {
        let text = "carob ".repeat(100_000);
        let compressed = compress(Body::from(text.clone())).collect().await.expect("no errors").to_bytes();
        assert!(compressed.len() < text.len() / 10);
        let mut back = String::new();
        flate2::read::GzDecoder::new(compressed.as_ref()).read_to_string(&mut back).expect("valid gzip");
        assert_eq!(back, text);
    }
}
