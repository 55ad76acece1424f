//! Time zones by name, from the machine's database (tzfile(5)).

use std::path::Path;

use jiff::tz::TimeZone;

/// Where the database is (tzset(3)).
const ZONEINFO: &str = "/usr/share/zoneinfo";

/// No such time zone is known here.
#[derive(Debug, thiserror::Error)]
pub(super) enum ZoneError {
    #[error("the name is none of a time zone")]
    Name,
    #[error("read its rules")]
    Read(#[source] std::io::Error),
    #[error("its rules are not in the format of tzfile(5)")]
    Format(#[source] jiff::Error),
}

pub(super) fn zone(name: &str) -> Result<TimeZone, ZoneError> {
    if name == "UTC" || name == "Etc/UTC" {
        return Ok(TimeZone::UTC);
    }
    let plain = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_+-".contains(&b));
    if !name.split('/').all(plain) {
        return Err(ZoneError::Name);
    }
    let rules = fs_err::read(Path::new(ZONEINFO).join(name)).map_err(ZoneError::Read)?;
    TimeZone::tzif(name, &rules).map_err(ZoneError::Format)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_never_leads_out_of_the_database() {
        for name in ["../../../etc/passwd", "/etc/passwd", "Europe//Berlin", "Europe/..", ""] {
            assert!(matches!(zone(name), Err(ZoneError::Name)), "{name}");
        }
        assert!(matches!(zone("Nowhere/Land"), Err(ZoneError::Read(_))));
        assert!(zone("Etc/UTC").is_ok());
    }
}
