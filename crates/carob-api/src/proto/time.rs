//! `metav1.Time` and `MicroTime` on the wire: seconds and nanoseconds since 1970.

use jiff::Timestamp;

use super::ProtoError;
use super::wire::{Reader, Value, put_number};

/// The RFC 3339 text of a message; none for an empty one, which is Go's zero time and null in JSON.
pub(super) fn decode(message: &[u8], micro: bool) -> Result<Option<String>, ProtoError> {
    if message.is_empty() {
        return Ok(None);
    }
    let (mut seconds, mut nanos) = (0i64, 0i32);
    let mut reader = Reader::new(message);
    while let Some((number, value)) = reader.next_field()? {
        match (number, value) {
            (1, Value::Varint(value)) => seconds = value.cast_signed(),
            // A negative int32 has ten bytes, of which the lower four say all.
            (2, Value::Varint(value)) => nanos = i32::try_from(value.cast_signed()).map_err(|_| out_of_range())?,
            (_, _) => {}
        }
    }
    let time = Timestamp::new(seconds, nanos).map_err(|_| out_of_range())?;
    Ok(Some(if micro {
        time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
    } else {
        time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    }))
}

fn out_of_range() -> ProtoError {
    ProtoError::malformed("a time is out of range")
}

pub(super) fn encode(text: &str) -> Result<Vec<u8>, ProtoError> {
    let time: Timestamp = text.parse().map_err(|_| ProtoError::malformed(format!("`{text}` is not a time")))?;
    let mut out = Vec::new();
    put_number(&mut out, 1, time.as_second().cast_unsigned());
    put_number(&mut out, 2, i64::from(time.subsec_nanosecond()).cast_unsigned());
    Ok(out)
}
