//! Netlink messages as bytes (netlink(7); attributes are padded to four bytes, numbers are in host order unless said).

use std::borrow::Cow;

/// `NLA_F_NESTED` (linux/netlink.h).
const NESTED: u16 = 1 << 15;
/// `struct nlmsghdr`.
pub(super) const HEADER_LEN: usize = 16;

/// Appends attributes to a message.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self.pad();
        self
    }

    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.attribute(kind, |writer| {
            writer.bytes.extend_from_slice(value);
        })
    }

    /// A string with its final NUL.
    pub(crate) fn string(&mut self, kind: u16, value: &str) -> &mut Self {
        self.attribute(kind, |writer| {
            writer.bytes.extend_from_slice(value.as_bytes());
            writer.bytes.push(0);
        })
    }

    /// A number in host order, as rtnetlink has them.
    pub(crate) fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// A number in network order, as nfnetlink has them.
    pub(crate) fn u32_be(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        self.attribute(kind | NESTED, fill)
    }

    fn attribute(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        fill(self);
        let len = u16::try_from(self.bytes.len() - start)
            .expect("an attribute is shorter than 64 KiB: callers split long lists");
        self.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        self.pad();
        self
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// One request, with the words that an error about it begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub(super) what: Cow<'static, str>,
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) body: Vec<u8>,
    /// Error numbers that count as success: the thing was there, or was gone, already.
    pub(super) tolerated: &'static [i32],
}

impl Request {
    pub(crate) fn new(what: impl Into<Cow<'static, str>>, kind: u16, flags: u16, body: Writer) -> Self {
        Self { what: what.into(), kind, flags, body: body.bytes, tolerated: &[] }
    }

    /// Counts the error number as success.
    pub(crate) fn tolerate(mut self, errnos: &'static [i32]) -> Self {
        self.tolerated = errnos;
        self
    }

    /// What the request does, in words: `create veth cb01`.
    pub fn what(&self) -> &str {
        &self.what
    }

    pub(super) fn write(&self, sequence: u32, extra_flags: u16, out: &mut Vec<u8>) {
        let len = u32::try_from(HEADER_LEN + self.body.len()).expect("a request is far shorter than 4 GiB");
        out.extend_from_slice(&len.to_ne_bytes());
        out.extend_from_slice(&self.kind.to_ne_bytes());
        out.extend_from_slice(&(self.flags | extra_flags | flag(libc::NLM_F_REQUEST)).to_ne_bytes());
        out.extend_from_slice(&sequence.to_ne_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.body);
        out.resize(out.len().next_multiple_of(4), 0);
    }
}

/// libc has the `NLM_F_*` and `NLMSG_*` constants as `c_int`; on the wire they are 16 bits.
pub(crate) const fn flag(value: libc::c_int) -> u16 {
    assert!(value >= 0 && value <= 0xffff);
    #[expect(clippy::cast_possible_truncation, reason = "asserted on the line above")]
    let flag = value as u16;
    flag
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_nested_lengths_are_patched() {
        let mut writer = Writer::default();
        writer.nest(18, |writer| {
            writer.string(1, "veth");
        });
        let expect = [16, 0, 18, 0x80, 9, 0, 1, 0, b'v', b'e', b't', b'h', 0, 0, 0, 0];
        assert_eq!(writer.bytes, expect);
    }
}
