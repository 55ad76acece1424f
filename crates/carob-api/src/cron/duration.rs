//! Durations as Go writes them: `1h30m`, `1.5s` (time.ParseDuration).

/// Nanoseconds of a second.
pub(super) const SECOND: i64 = 1_000_000_000;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum DurationError {
    #[error("time: invalid duration {0:?}")]
    Invalid(String),
    #[error("time: missing unit in duration {0:?}")]
    NoUnit(String),
    #[error("time: unknown unit {unit:?} in duration {text:?}")]
    Unit { unit: String, text: String },
}

/// In nanoseconds.
pub(super) fn parse(text: &str) -> Result<i64, DurationError> {
    let invalid = || DurationError::Invalid(text.to_owned());
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let number_len = rest.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
        let (number, tail) = rest.split_at(number_len);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
            return Err(invalid());
        }
        let unit_len = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_len);
        let scale = match unit {
            "" => return Err(DurationError::NoUnit(text.to_owned())),
            "ns" => 1,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
            "ms" => 1_000_000,
            "s" => i128::from(SECOND),
            "m" => 60 * i128::from(SECOND),
            "h" => 3600 * i128::from(SECOND),
            _ => return Err(DurationError::Unit { unit: unit.to_owned(), text: text.to_owned() }),
        };
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| invalid())? };
        // Digits beyond a billionth of the largest unit change nothing.
        let digits: String = fraction.chars().take(15).collect();
        let part: i128 = if digits.is_empty() { 0 } else { digits.parse().map_err(|_| invalid())? };
        let tenths = 10_i128.pow(u32::try_from(digits.len()).map_err(|_| invalid())?);
        let nanos = whole.checked_mul(scale).and_then(|nanos| nanos.checked_add(part * scale / tenths));
        total = nanos.and_then(|nanos| total.checked_add(nanos)).ok_or_else(invalid)?;
        rest = tail;
    }
    i64::try_from(if negative { -total } else { total }).map_err(|_| invalid())
}
