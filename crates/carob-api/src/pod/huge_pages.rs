//! Huge pages: a resource of its own per size of pages, which its name has (`hugepages-2Mi`).

use crate::quantity::{Format, Quantity};

const PREFIX: &str = "hugepages-";

/// Whether a resource is of huge pages (`IsHugePageResourceName`).
pub fn is_huge_pages(resource: &str) -> bool {
    resource.starts_with(PREFIX)
}

/// The size of the pages that a resource counts, in bytes; `None` where its name says none (`HugePageSizeFromResourceName`).
pub fn page_bytes(resource: &str) -> Option<i64> {
    size_bytes(resource.strip_prefix(PREFIX)?)
}

/// A size of pages, as the names of resources and the media of volumes have it.
pub fn size_bytes(text: &str) -> Option<i64> {
    let size = Quantity::parse(text).ok()?;
    Some(size.value()).filter(|bytes| *bytes > 0 && Quantity::from_units(*bytes, Format::BinarySi) == size)
}

/// The resource of pages of this size (`HugePageResourceName`).
pub fn huge_pages_of(page_bytes: i64) -> String {
    format!("{PREFIX}{}", Quantity::from_units(page_bytes, Format::BinarySi))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_says_the_size() {
        for (resource, bytes) in [
            ("hugepages-2Mi", Some(2 << 20)),
            ("hugepages-1Gi", Some(1 << 30)),
            ("hugepages-2048Ki", Some(2 << 20)),
            ("hugepages-0", None),
            ("hugepages--2Mi", None),
            ("hugepages-1500m", None),
            ("hugepages-", None),
            ("memory", None),
        ] {
            assert_eq!(page_bytes(resource), bytes, "{resource}");
        }
        assert_eq!(
            [2 << 20, 1 << 30, 64 << 10].map(huge_pages_of),
            ["hugepages-2Mi", "hugepages-1Gi", "hugepages-64Ki"]
        );
    }
}
