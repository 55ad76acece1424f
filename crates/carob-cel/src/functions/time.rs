//! Points in time and durations: Go's texts of them, and their parts (cel-go common/types/{timestamp,duration}.go).

use std::fmt;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, civil};

use super::{Context, Cost, Overload, T, method};
use crate::error::EvalError;
use crate::value::Value;

type Out<'a> = Result<Value<'a>, EvalError>;

/// The first second of the year 1 (cel-go timestamp.go, minUnixTime).
const SECONDS_MIN: i64 = -62_135_596_800;
/// The last second of the year 9999.
const SECONDS_MAX: i64 = 253_402_300_799;
const NANOS_PER_SECOND: i64 = 1_000_000_000;

pub(super) static OVERLOADS: &[Overload] = &[
    method("getFullYear", &[T::Timestamp], T::Int, Cost::Unit, full_year),
    method("getFullYear", &[T::Timestamp, T::String], T::Int, Cost::Unit, full_year),
    method("getMonth", &[T::Timestamp], T::Int, Cost::Unit, month),
    method("getMonth", &[T::Timestamp, T::String], T::Int, Cost::Unit, month),
    method("getDayOfYear", &[T::Timestamp], T::Int, Cost::Unit, day_of_year),
    method("getDayOfYear", &[T::Timestamp, T::String], T::Int, Cost::Unit, day_of_year),
    method("getDayOfMonth", &[T::Timestamp], T::Int, Cost::Unit, day_of_month),
    method("getDayOfMonth", &[T::Timestamp, T::String], T::Int, Cost::Unit, day_of_month),
    method("getDate", &[T::Timestamp], T::Int, Cost::Unit, date_of_month),
    method("getDate", &[T::Timestamp, T::String], T::Int, Cost::Unit, date_of_month),
    method("getDayOfWeek", &[T::Timestamp], T::Int, Cost::Unit, day_of_week),
    method("getDayOfWeek", &[T::Timestamp, T::String], T::Int, Cost::Unit, day_of_week),
    method("getHours", &[T::Timestamp], T::Int, Cost::Unit, hours),
    method("getHours", &[T::Timestamp, T::String], T::Int, Cost::Unit, hours),
    method("getHours", &[T::Duration], T::Int, Cost::Unit, hours),
    method("getMinutes", &[T::Timestamp], T::Int, Cost::Unit, minutes),
    method("getMinutes", &[T::Timestamp, T::String], T::Int, Cost::Unit, minutes),
    method("getMinutes", &[T::Duration], T::Int, Cost::Unit, minutes),
    method("getSeconds", &[T::Timestamp], T::Int, Cost::Unit, seconds),
    method("getSeconds", &[T::Timestamp, T::String], T::Int, Cost::Unit, seconds),
    method("getSeconds", &[T::Duration], T::Int, Cost::Unit, seconds),
    method("getMilliseconds", &[T::Timestamp], T::Int, Cost::Unit, milliseconds),
    method("getMilliseconds", &[T::Timestamp, T::String], T::Int, Cost::Unit, milliseconds),
    method("getMilliseconds", &[T::Duration], T::Int, Cost::Unit, milliseconds),
];

/// A point in time of the years 1 to 9999: until their very last second, which jiff's own type does not reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Nanoseconds since 1970.
    nanos: i128,
}

impl Time {
    pub(crate) fn from_nanos(nanos: i128) -> Option<Self> {
        let seconds = nanos.div_euclid(i128::from(NANOS_PER_SECOND));
        (i128::from(SECONDS_MIN)..=i128::from(SECONDS_MAX)).contains(&seconds).then_some(Self { nanos })
    }

    pub(crate) fn from_seconds(seconds: i64) -> Option<Self> {
        Self::from_nanos(i128::from(seconds) * i128::from(NANOS_PER_SECOND))
    }

    pub(crate) const fn nanos(self) -> i128 {
        self.nanos
    }

    /// The first second of all: the zero of its type.
    pub(crate) fn is_zero(self) -> bool {
        self.nanos == i128::from(SECONDS_MIN) * i128::from(NANOS_PER_SECOND)
    }

    fn of_civil(time: civil::DateTime, offset_seconds: i64) -> Option<Self> {
        let since = time.duration_since(EPOCH);
        Self::from_nanos(since.as_nanos() - i128::from(offset_seconds) * i128::from(NANOS_PER_SECOND))
    }

    /// What a clock shows that is so many seconds ahead of UTC.
    fn civil(self, offset_seconds: i64) -> Option<civil::DateTime> {
        let nanos = self.nanos + i128::from(offset_seconds) * i128::from(NANOS_PER_SECOND);
        let seconds = i64::try_from(nanos.div_euclid(i128::from(NANOS_PER_SECOND))).ok()?;
        let rest = i32::try_from(nanos.rem_euclid(i128::from(NANOS_PER_SECOND))).ok()?;
        EPOCH.checked_add(SignedDuration::new(seconds, rest)).ok()
    }
}

impl fmt::Display for Time {
    /// RFC 3339 with as many digits of the second as are needed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.civil(0) {
            Some(civil) => write!(f, "{civil}Z"),
            None => Err(fmt::Error),
        }
    }
}

const EPOCH: civil::DateTime = civil::DateTime::constant(1970, 1, 1, 0, 0, 0, 0);

/// What the clock shows in the zone that is asked for: UTC if none is, `+01:30`, or a name of the time zone database.
fn clock(args: &[Value<'_>]) -> Result<civil::DateTime, EvalError> {
    let Value::Timestamp(time) = &args[0] else { return Err(EvalError::no_such_overload()) };
    let offset = match args.get(1) {
        None => 0,
        Some(name) => zone_offset(name.as_str()?, *time)?,
    };
    time.civil(offset).ok_or_else(|| super::convert::overflow("timestamp"))
}

fn zone_offset(name: &str, time: Time) -> Result<i64, EvalError> {
    if matches!(name, "" | "UTC") {
        return Ok(0);
    }
    let unknown = || EvalError::new(format!("unknown time zone {name}"));
    let Some((hours, minutes)) = name.split_once(':') else {
        let zone = TimeZone::get(name).map_err(|_| unknown())?;
        // Beyond what jiff reaches, a day before the end of time, no zone changes any more.
        let instant = Timestamp::from_nanosecond(time.nanos).unwrap_or(Timestamp::MAX);
        return Ok(i64::from(zone.to_offset(instant).seconds()));
    };
    let negative = hours.starts_with('-');
    let number = |text: &str| text.parse::<u8>().map(i64::from).map_err(|_| unknown());
    let seconds = number(hours.trim_start_matches(['-', '+']))? * 3_600 + number(minutes)? * 60;
    Ok(if negative { -seconds } else { seconds })
}

fn full_year<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::Int(i64::from(clock(args)?.year())))
}

fn month<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::Int(i64::from(clock(args)?.month()) - 1))
}

fn day_of_year<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::Int(i64::from(clock(args)?.day_of_year()) - 1))
}

fn day_of_month<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::Int(i64::from(clock(args)?.day()) - 1))
}

fn date_of_month<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::Int(i64::from(clock(args)?.day())))
}

fn day_of_week<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    Ok(Value::Int(i64::from(clock(args)?.weekday().to_sunday_zero_offset())))
}

fn hours<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    match &args[0] {
        Value::Duration(nanos) => Ok(Value::Int(nanos / (3_600 * NANOS_PER_SECOND))),
        _ => Ok(Value::Int(i64::from(clock(args)?.hour()))),
    }
}

fn minutes<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    match &args[0] {
        Value::Duration(nanos) => Ok(Value::Int(nanos / (60 * NANOS_PER_SECOND))),
        _ => Ok(Value::Int(i64::from(clock(args)?.minute()))),
    }
}

fn seconds<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    match &args[0] {
        Value::Duration(nanos) => Ok(Value::Int(nanos / NANOS_PER_SECOND)),
        _ => Ok(Value::Int(i64::from(clock(args)?.second()))),
    }
}

fn milliseconds<'a>(args: &[Value<'a>], _: &Context<'_>) -> Out<'a> {
    match &args[0] {
        Value::Duration(nanos) => Ok(Value::Int(nanos / 1_000_000)),
        _ => Ok(Value::Int(i64::from(clock(args)?.millisecond()))),
    }
}

/// The sum of a time and a duration, if it is within the years that CEL knows.
pub(crate) fn add(time: Time, nanos: i128) -> Option<Time> {
    time.nanos.checked_add(nanos).and_then(Time::from_nanos)
}

/// RFC 3339, strictly: `2006-01-02T15:04:05.999Z07:00`.
pub(crate) fn rfc3339(text: &str) -> Option<Time> {
    let (clock, offset) = match text.strip_suffix('Z') {
        Some(clock) => (clock, 0),
        None => {
            let (clock, zone) = text.split_at_checked(text.len().checked_sub(6)?)?;
            (clock, numeric_offset(zone)?)
        }
    };
    Time::of_civil(civil(clock)?, offset)
}

/// `+01:30` in seconds.
fn numeric_offset(text: &str) -> Option<i64> {
    let (sign, digits) = match text.split_at_checked(1)? {
        ("+", digits) => (1, digits),
        ("-", digits) => (-1, digits),
        _ => return None,
    };
    let (hours, minutes) = digits.split_once(':')?;
    let two = |text: &str, max: u8| -> Option<i64> {
        let number = if text.len() == 2 { text.parse::<u8>().ok()? } else { return None };
        (number <= max).then_some(i64::from(number))
    };
    Some(sign * (two(hours, 23)? * 3_600 + two(minutes, 59)? * 60))
}

/// `2006-01-02T15:04:05.999`, and nothing else that jiff would read.
fn civil(text: &str) -> Option<civil::DateTime> {
    let shape = b"0000-00-00T00:00:00";
    let fits = |(byte, shape): (u8, &u8)| if *shape == b'0' { byte.is_ascii_digit() } else { byte == *shape };
    let (whole, fraction) = text.split_at_checked(shape.len())?;
    let digits = fraction.strip_prefix('.').unwrap_or("0");
    let valid = whole.bytes().zip(shape).all(fits)
        && (fraction.is_empty() || fraction.starts_with('.'))
        && !digits.is_empty()
        && digits.bytes().all(|byte| byte.is_ascii_digit())
        && !whole.ends_with(":60");
    // Digits beyond the nanosecond are cut, as Go does.
    let kept = &fraction[..fraction.len().min(10)];
    if valid { format!("{whole}{kept}").parse().ok() } else { None }
}

/// A `date-time` as strfmt reads it: also with a blank or a small `t`, and without a zone, which is UTC then.
pub(crate) fn date_time(text: &str) -> Option<Time> {
    let upper = text.to_ascii_uppercase().replacen(' ', "T", 1);
    rfc3339(&upper).or_else(|| Time::of_civil(civil(&upper)?, 0))
}

/// A full date, as midnight of UTC.
pub(crate) fn date(text: &str) -> Option<Time> {
    if text.len() == 10 { Time::of_civil(civil(&format!("{text}T00:00:00"))?, 0) } else { None }
}

/// A duration as CEL writes it: seconds.
pub(crate) fn duration_text(nanos: i64) -> String {
    let seconds = nanos.unsigned_abs() / NANOS_PER_SECOND as u64;
    let rest = nanos.unsigned_abs() % NANOS_PER_SECOND as u64;
    let sign = if nanos < 0 { "-" } else { "" };
    if rest == 0 {
        return format!("{sign}{seconds}s");
    }
    let fraction = format!("{rest:09}");
    format!("{sign}{seconds}.{}s", fraction.trim_end_matches('0'))
}

/// Go's `time.ParseDuration`, in nanoseconds.
pub(crate) fn duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Some(0);
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let number_len = rest.bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
        let (number, tail) = rest.split_at(number_len);
        let unit_len = tail.bytes().take_while(|byte| !byte.is_ascii_digit() && *byte != b'.').count();
        let (unit, tail) = tail.split_at(unit_len);
        rest = tail;
        total = total.checked_add(scaled(number, unit_nanos(unit)?)?)?;
    }
    if text.len() == usize::from(negative || text.starts_with('+')) {
        return None;
    }
    i64::try_from(if negative { -total } else { total }).ok()
}

fn unit_nanos(unit: &str) -> Option<i128> {
    Some(match unit {
        "ns" => 1,
        "us" | "µs" | "μs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    })
}

/// A decimal number times a unit, cut to nanoseconds.
fn scaled(number: &str, unit: i128) -> Option<i128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || whole.len() > 19 {
        return None;
    }
    let mut nanos = if whole.is_empty() { 0 } else { whole.parse::<i128>().ok()?.checked_mul(unit)? };
    let mut step = unit;
    for digit in fraction.bytes() {
        step /= 10;
        nanos = nanos.checked_add(i128::from(digit - b'0').checked_mul(step)?)?;
    }
    Some(nanos)
}

/// A duration of the format `duration` as strfmt reads it: Go's, or `3 days`.
pub(crate) fn worded_duration(text: &str) -> Option<i64> {
    if let Some(nanos) = duration(text) {
        return Some(nanos);
    }
    let text = text.trim();
    let number_len = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(number_len);
    let nanos: i128 = match unit.trim().to_ascii_lowercase().trim_end_matches('s') {
        "nano" | "nanosecond" => 1,
        "micro" | "microsecond" => 1_000,
        "milli" | "millisecond" | "m" if unit.trim().len() > 1 => 1_000_000,
        "" | "sec" | "second" if !unit.trim().is_empty() => 1_000_000_000,
        "min" | "minute" => 60_000_000_000,
        "hr" | "hour" => 3_600_000_000_000,
        "d" | "day" => 86_400_000_000_000,
        "w" | "wk" | "week" => 604_800_000_000_000,
        _ => return None,
    };
    i64::try_from(number.parse::<i128>().ok()?.checked_mul(nanos)?).ok()
}
