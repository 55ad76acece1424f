//! `metav1.Duration` on the wire: nanoseconds.

use super::ProtoError;
use super::wire::{Reader, put_integer};

/// Units as Go writes them (time.ParseDuration), with their nanoseconds; those that begin alike the longer one first.
const UNITS: [(&str, f64); 6] = [("ms", 1e6), ("us", 1e3), ("ns", 1.0), ("h", 3.6e12), ("m", 6e10), ("s", 1e9)];

/// The text of a message, in seconds.
pub(super) fn decode(message: &[u8]) -> Result<String, ProtoError> {
    let mut nanos = 0i64;
    let mut reader = Reader::new(message);
    while let Some((number, value)) = reader.next_field()? {
        if number == 1 {
            nanos = value.integer()?;
        }
    }
    let (sign, nanos) = (if nanos < 0 { "-" } else { "" }, nanos.unsigned_abs());
    let fraction = format!("{:09}", nanos % 1_000_000_000);
    let fraction = fraction.trim_end_matches('0');
    let dot = if fraction.is_empty() { "" } else { "." };
    Ok(format!("{sign}{}{dot}{fraction}s", nanos / 1_000_000_000))
}

/// The message of a text such as `-1m15.145s`; `None` for another text, or one that an `i64` does not hold.
pub(super) fn encode(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    put_integer(&mut out, 1, nanos(text)?);
    Some(out)
}

/// The nanoseconds of a length of time as Go writes it, `1m15.145s`; `None` for another text.
pub fn nanos(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut sum = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let (unit, factor) = UNITS.iter().find(|(unit, _)| after.starts_with(unit))?;
        sum += number.parse::<f64>().ok()? * factor;
        rest = &after[unit.len()..];
    }
    #[expect(clippy::cast_possible_truncation, reason = "checked to be within an i64")]
    (sum < i64::MAX as f64 && text != "-" && !text.is_empty()).then_some(if negative {
        -(sum.round() as i64)
    } else {
        sum.round() as i64
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_go_there_and_back() {
        for (text, expect) in
            [("15.145s", "15.145s"), ("1m15.145s", "75.145s"), ("-2h", "-7200s"), ("5ms", "0.005s"), ("0s", "0s")]
        {
            let message = encode(text).expect("a length of time");
            assert_eq!(decode(&message).as_deref().ok(), Some(expect), "{text}");
        }
        for text in ["", "-", "5", "s", "5x", "9999999999h", "1.2.3s"] {
            assert_eq!(encode(text), None, "{text}");
        }
    }
}
