//! Netlink replies: every length that the other side sent is checked against what is there.

use super::encode::HEADER_LEN;

/// One message from the kernel.
#[derive(Debug, Clone, Copy)]
pub struct Reply<'a> {
    pub kind: u16,
    pub sequence: u32,
    pub flags: u16,
    pub body: &'a [u8],
}

/// One attribute: its type without the flag bits, and its value.
#[derive(Debug, Clone, Copy)]
pub struct Attribute<'a> {
    pub kind: u16,
    pub value: &'a [u8],
}

/// `NLA_TYPE_MASK` (linux/netlink.h): the type without `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER`.
const TYPE_MASK: u16 = 0x3fff;

/// The messages of one datagram. Ends at the first one whose length does not fit.
pub(super) fn replies(mut datagram: &[u8]) -> impl Iterator<Item = Reply<'_>> {
    std::iter::from_fn(move || {
        let header = datagram.get(..HEADER_LEN)?;
        let len = usize::try_from(u32::from_ne_bytes(header[..4].try_into().ok()?)).ok()?;
        let reply = Reply {
            kind: u16::from_ne_bytes(header[4..6].try_into().ok()?),
            flags: u16::from_ne_bytes(header[6..8].try_into().ok()?),
            sequence: u32::from_ne_bytes(header[8..12].try_into().ok()?),
            body: datagram.get(HEADER_LEN..len)?,
        };
        datagram = datagram.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(reply)
    })
}

/// The attributes behind a fixed header. Ends at the first one whose length does not fit.
#[derive(Debug, Clone)]
pub struct Attributes<'a> {
    rest: &'a [u8],
}

impl<'a> Attributes<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The first attribute of that type.
    pub fn first(mut self, kind: u16) -> Option<Attribute<'a>> {
        self.find(|attribute| attribute.kind == kind)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Attribute<'a>;

    fn next(&mut self) -> Option<Attribute<'a>> {
        let header = self.rest.get(..4)?;
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & TYPE_MASK;
        let value = self.rest.get(4..len)?;
        self.rest = self.rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Attribute { kind, value })
    }
}

impl<'a> Attribute<'a> {
    /// A number in host order.
    pub fn u32(&self) -> Option<u32> {
        self.value.try_into().ok().map(u32::from_ne_bytes)
    }

    /// A string up to its NUL.
    pub fn text(&self) -> Option<&'a str> {
        let end = self.value.iter().position(|byte| *byte == 0).unwrap_or(self.value.len());
        std::str::from_utf8(&self.value[..end]).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_that_lie_end_the_walk() {
        for bytes in [&[][..], &[3, 0, 1, 0], &[0, 0, 1, 0], &[200, 0, 1, 0, 1, 2, 3, 4], &[8, 0, 1]] {
            assert!(Attributes::new(bytes).next().is_none(), "{bytes:?}");
        }
        let short = [0xff, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
        assert!(replies(&short).next().is_none());
        let zero = [0; 64];
        assert!(replies(&zero).next().is_none());
    }

    #[test]
    fn attributes_are_read_in_order_without_their_flag_bits() {
        let bytes = [8, 0, 1, 0x80, 7, 0, 0, 0, 6, 0, 2, 0, b'x', 0, 0, 0];
        let read: Vec<(u16, usize)> = Attributes::new(&bytes).map(|a| (a.kind, a.value.len())).collect();
        assert_eq!(read, [(1, 4), (2, 2)]);
        assert_eq!(Attributes::new(&bytes).next().unwrap().u32(), Some(u32::from_ne_bytes([7, 0, 0, 0])));
    }

    #[test]
    fn hostile_datagrams_end() {
        fn walk(attributes: Attributes<'_>, levels: usize) -> usize {
            let below = |attribute: Attribute<'_>| match levels {
                0 => 0,
                levels => walk(Attributes::new(attribute.value), levels - 1),
            };
            attributes.map(|attribute| 1 + attribute.text().map_or(0, str::len) + below(attribute)).sum()
        }
        carob_fuzz::run(concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/netlink"), |bytes| {
            let count: usize = replies(bytes).map(|reply| walk(Attributes::new(reply.body), 3)).sum();
            assert!(count <= 4 * bytes.len() + 4, "{count} of {} bytes", bytes.len());
        });
    }
}
