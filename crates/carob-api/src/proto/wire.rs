//! The wire format (protobuf.dev, "Encoding").

use super::ProtoError;

/// A varint has at most ten bytes.
const VARINT_LEN_MAX: u32 = 10;

#[derive(Debug, Clone, Copy)]
pub(super) enum Field<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
}

impl<'a> Field<'a> {
    pub(super) fn bytes(self) -> Result<&'a [u8], ProtoError> {
        match self {
            Field::Bytes(bytes) => Ok(bytes),
            _ => Err(ProtoError::Malformed("wrong wireType, expected length-delimited")),
        }
    }

    pub(super) fn text(self) -> Result<&'a str, ProtoError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| ProtoError::Malformed("string field contains invalid UTF-8"))
    }

    /// A varint as the signed number that it stands for: negative 32-bit numbers are sign-extended on the wire.
    #[expect(clippy::cast_possible_wrap, reason = "the wire format defines the two's complement")]
    pub(super) fn integer(self) -> Result<i64, ProtoError> {
        match self {
            Field::Varint(value) => Ok(value as i64),
            _ => Err(ProtoError::Malformed("wrong wireType, expected varint")),
        }
    }

    pub(super) fn double(self) -> Result<f64, ProtoError> {
        match self {
            Field::Fixed64(bits) => Ok(f64::from_bits(bits)),
            Field::Fixed32(bits) => Ok(f64::from(f32::from_bits(bits))),
            _ => Err(ProtoError::Malformed("wrong wireType, expected fixed64")),
        }
    }
}

/// Reads the fields of one message in order.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next field's number and value; `None` at the end.
    pub(super) fn next_field(&mut self) -> Result<Option<(u32, Field<'a>)>, ProtoError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| ProtoError::Malformed("illegal tag"))?;
        if number == 0 {
            return Err(ProtoError::Malformed("illegal tag 0"));
        }
        let value = match tag & 7 {
            0 => Field::Varint(self.varint()?),
            1 => Field::Fixed64(u64::from_le_bytes(self.array()?)),
            2 => {
                let len = usize::try_from(self.varint()?).map_err(|_| ProtoError::Truncated)?;
                Field::Bytes(self.take(len)?)
            }
            5 => Field::Fixed32(u32::from_le_bytes(self.array()?)),
            _ => return Err(ProtoError::Malformed("illegal wireType")),
        };
        Ok(Some((number, value)))
    }

    pub(super) fn varint(&mut self) -> Result<u64, ProtoError> {
        let mut value = 0_u64;
        for index in 0..VARINT_LEN_MAX {
            let [byte] = self.array()?;
            value |= u64::from(byte & 0x7f).checked_shl(index * 7).unwrap_or_default();
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(ProtoError::Malformed("integer overflow"))
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], ProtoError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(ProtoError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ProtoError> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(ProtoError::Truncated)?;
        self.rest = rest;
        Ok(*taken)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "each step keeps the low seven bits")]
pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub fn put_integer(out: &mut Vec<u8>, number: u32, value: i64) {
    put_varint(out, u64::from(number) << 3);
    put_varint(out, value.cast_unsigned());
}

pub fn put_double(out: &mut Vec<u8>, number: u32, value: f64) {
    put_varint(out, u64::from(number) << 3 | 1);
    out.extend_from_slice(&value.to_bits().to_le_bytes());
}

/// A field of bytes, text or a message.
pub fn put_bytes(out: &mut Vec<u8>, number: u32, value: &[u8]) {
    put_varint(out, u64::from(number) << 3 | 2);
    put_varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

/// A field that is true or false.
pub fn put_flag(out: &mut Vec<u8>, number: u32, value: bool) {
    put_integer(out, number, i64::from(value));
}
