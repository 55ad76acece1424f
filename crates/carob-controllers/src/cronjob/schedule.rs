//! Schedules as cron has them, and when they are due (crontab(5); upstream reads them with robfig/cron). Pure.

use std::fmt;
use std::time::Duration;

use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};

/// How far ahead the next time is sought: leap days can be eight years apart, and a schedule may never be due.
const DAYS_AHEAD_MAX: usize = 366 * 9;

/// A schedule that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ScheduleError {
    #[error("expected exactly 5 fields, found {found}: [{text}]")]
    Fields { found: usize, text: String },
    #[error("failed to parse {field} from {text}")]
    Field { field: &'static str, text: String },
    #[error("unrecognized descriptor: {0}")]
    Descriptor(String),
}

/// The values of one field, as bits.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Values {
    bits: u64,
    /// Written with a star: it does not restrict the day where the other day field does.
    star: bool,
}

impl fmt::Debug for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries((0..64).filter(|value| self.has(*value))).finish()
    }
}

impl Values {
    fn has(self, value: i8) -> bool {
        u32::try_from(value).is_ok_and(|value| value < 64 && self.bits & (1 << value) != 0)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Schedule {
    Cron(Box<Cron>),
    /// `@every 90s`: from one time to the next.
    Every(Duration),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cron {
    minutes: Values,
    hours: Values,
    days: Values,
    months: Values,
    weekdays: Values,
}

struct Field {
    name: &'static str,
    low: u32,
    high: u32,
    names: &'static [&'static str],
}

const MINUTE: Field = Field { name: "minute", low: 0, high: 59, names: &[] };
const HOUR: Field = Field { name: "hour", low: 0, high: 23, names: &[] };
const DAY: Field = Field { name: "day of month", low: 1, high: 31, names: &[] };
const MONTH: Field = Field {
    name: "month",
    low: 1,
    high: 12,
    names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
};
/// Seven is Sunday too.
const WEEKDAY: Field =
    Field { name: "day of week", low: 0, high: 7, names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"] };

impl Field {
    fn value(&self, text: &str) -> Option<u32> {
        let named = self.names.iter().position(|name| name.eq_ignore_ascii_case(text));
        let named = named.and_then(|index| u32::try_from(index).ok()).map(|index| index + self.low);
        named.or_else(|| text.parse().ok()).filter(|value| (self.low..=self.high).contains(value))
    }

    /// `*`, `3`, `1-5`, each with `/step`.
    fn part(&self, text: &str) -> Option<(u64, bool)> {
        let (range, step) = match text.split_once('/') {
            Some((range, step)) => (range, step.parse().ok().filter(|step: &u32| *step > 0)?),
            None => (text, 1),
        };
        let star = range == "*" || range == "?";
        let (first, last) = match range.split_once('-') {
            _ if star => (self.low, self.high),
            Some((first, last)) => (self.value(first)?, self.value(last)?),
            // A single value with a step begins a range to the end.
            None if text.contains('/') => (self.value(range)?, self.high),
            None => (self.value(range)?, self.value(range)?),
        };
        if first > last {
            return None;
        }
        let bits = (first..=last).step_by(usize::try_from(step).ok()?).fold(0u64, |bits, value| bits | 1 << value);
        Some((bits, star && step == 1))
    }

    fn parse(&self, text: &str) -> Result<Values, ScheduleError> {
        let mut values = Values { bits: 0, star: false };
        for part in text.split(',') {
            let parsed = self.part(part);
            let (bits, star) =
                parsed.ok_or_else(|| ScheduleError::Field { field: self.name, text: text.to_owned() })?;
            values.bits |= bits;
            values.star |= star;
        }
        Ok(values)
    }
}

impl Schedule {
    pub(super) fn parse(text: &str) -> Result<Self, ScheduleError> {
        let text = text.trim();
        if let Some(rest) = text.strip_prefix("@every ") {
            let every = parse_duration(rest.trim()).ok_or_else(|| ScheduleError::Descriptor(text.to_owned()))?;
            return Ok(Self::Every(every));
        }
        let fields = match text {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            text if text.starts_with('@') => return Err(ScheduleError::Descriptor(text.to_owned())),
            text => text,
        };
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = fields[..] else {
            return Err(ScheduleError::Fields { found: fields.len(), text: fields.join(" ") });
        };
        let mut weekdays = WEEKDAY.parse(weekdays)?;
        if weekdays.has(7) {
            weekdays.bits |= 1;
        }
        Ok(Self::Cron(Box::new(Cron {
            minutes: MINUTE.parse(minutes)?,
            hours: HOUR.parse(hours)?,
            days: DAY.parse(days)?,
            months: MONTH.parse(months)?,
            weekdays,
        })))
    }

    /// The first time after `after`, by the clocks of `zone`; `None` if there is none in sight.
    pub(super) fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        match self {
            Self::Every(every) => after.checked_add(*every).ok(),
            Self::Cron(cron) => cron.next(after, zone),
        }
    }

    /// The last time up to `until` and after `after`, and how many there are, counted up to `most`.
    pub(super) fn last_due(
        &self,
        after: Timestamp,
        until: Timestamp,
        zone: &TimeZone,
        most: usize,
    ) -> Option<(Timestamp, usize)> {
        let mut due = None;
        let mut time = after;
        let mut count = 0;
        while let Some(next) = self.next(time, zone).filter(|next| *next <= until) {
            count += 1;
            due = Some((next, count));
            if count > most {
                // Far behind: only the most recent counts, so go on from a little before the end.
                return self.recent(next, until, zone).map(|recent| (recent, count));
            }
            time = next;
        }
        due
    }

    /// The last time in the stretch before `until` that is sure to hold one, found by halving.
    fn recent(&self, known: Timestamp, until: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let (mut low, mut high) = (known.as_second(), until.as_second());
        while low < high {
            let middle = low + (high - low + 1) / 2;
            let from = Timestamp::from_second(middle - 1).ok()?;
            if self.next(from, zone).is_some_and(|next| next <= until) { low = middle } else { high = middle - 1 }
        }
        self.next(Timestamp::from_second(low - 1).ok()?, zone)
    }
}

impl Cron {
    fn is_day(&self, date: Date) -> bool {
        let (day, weekday) = (self.days.has(date.day()), self.weekdays.has(date.weekday().to_sunday_zero_offset()));
        let either = if self.days.star || self.weekdays.star { day && weekday } else { day || weekday };
        self.months.has(date.month()) && either
    }

    fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let start = zone.to_datetime(after);
        let mut date = start.date();
        for _ in 0..DAYS_AHEAD_MAX {
            if self.is_day(date) {
                let times = (0..24).filter(|hour| self.hours.has(*hour)).flat_map(|hour| {
                    (0..60).filter(|minute| self.minutes.has(*minute)).map(move |minute| date.at(hour, minute, 0, 0))
                });
                // A time that a clock change skips falls to just after the gap; one that comes twice counts the first time.
                let instants = times.filter_map(|time: DateTime| zone.to_timestamp(time).ok());
                if let Some(next) = instants.filter(|instant| *instant > after).min() {
                    return Some(next);
                }
            }
            date = date.checked_add(Span::new().days(1)).ok()?;
        }
        None
    }
}

/// Durations as Go writes them: `1h30m`, `90s`.
fn parse_duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).filter(|digits| *digits > 0)?;
        let number: u32 = rest[..digits].parse().ok()?;
        let unit_end = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |end| digits + end);
        let unit = match &rest[digits..unit_end] {
            "h" => Duration::from_secs(3600),
            "m" => Duration::from_secs(60),
            "s" => Duration::from_secs(1),
            _ => return None,
        };
        total = total.checked_add(unit.checked_mul(number)?)?;
        rest = &rest[unit_end..];
    }
    // Nothing is run more often than once a second.
    (total >= Duration::from_secs(1)).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    fn next(schedule: &str, after: &str) -> String {
        let schedule = Schedule::parse(schedule).expect("a schedule");
        schedule.next(at(after), &TimeZone::UTC).map_or("never".to_owned(), |time| time.to_string())
    }

    #[test]
    fn the_next_time_follows_every_field() {
        let cases = [
            ("* * * * *", "2024-02-28T23:59:30Z", "2024-02-29T00:00:00Z"),
            ("*/15 * * * *", "2024-01-01T00:15:00Z", "2024-01-01T00:30:00Z"),
            ("5/20 * * * *", "2024-01-01T00:06:00Z", "2024-01-01T00:25:00Z"),
            ("0 9-17/4 * * *", "2024-01-01T09:00:00Z", "2024-01-01T13:00:00Z"),
            ("0 0 1 jan,jul *", "2024-01-01T00:00:00Z", "2024-07-01T00:00:00Z"),
            ("0 0 * * mon", "2024-01-01T00:00:00Z", "2024-01-08T00:00:00Z"),
            ("0 0 * * 7", "2024-01-01T00:00:00Z", "2024-01-07T00:00:00Z"),
            // Both day fields restricted: either will do.
            ("0 0 13 * fri", "2024-01-01T00:00:00Z", "2024-01-05T00:00:00Z"),
            ("0 0 29 2 *", "2024-03-01T00:00:00Z", "2028-02-29T00:00:00Z"),
            ("0 0 30 2 *", "2024-01-01T00:00:00Z", "never"),
            ("@hourly", "2024-01-01T00:00:00Z", "2024-01-01T01:00:00Z"),
            ("@every 1h30m", "2024-01-01T00:00:00Z", "2024-01-01T01:30:00Z"),
        ];
        for (schedule, after, expected) in cases {
            assert_eq!(next(schedule, after), expected, "{schedule} after {after}");
        }
    }

    #[test]
    fn what_is_no_schedule_is_refused_by_field() {
        let error = |text: &str| Schedule::parse(text).expect_err("it is none").to_string();
        assert_eq!(error("* * * *"), "expected exactly 5 fields, found 4: [* * * *]");
        assert_eq!(error("60 * * * *"), "failed to parse minute from 60");
        assert_eq!(error("* * * * funday"), "failed to parse day of week from funday");
        assert_eq!(error("*/0 * * * *"), "failed to parse minute from */0");
        assert_eq!(error("@fortnightly"), "unrecognized descriptor: @fortnightly");
        assert_eq!(error("@every 5x"), "unrecognized descriptor: @every 5x");
    }

    #[test]
    fn the_last_due_time_is_found_even_after_many_missed_ones() {
        let every_minute = Schedule::parse("* * * * *").expect("a schedule");
        let due = |from: &str, until: &str| {
            let found = every_minute.last_due(at(from), at(until), &TimeZone::UTC, 100);
            found.map(|(time, count)| (time.to_string(), count))
        };
        assert_eq!(due("2024-01-01T00:00:00Z", "2024-01-01T00:00:59Z"), None);
        let three = due("2024-01-01T00:00:00Z", "2024-01-01T00:03:10Z");
        assert_eq!(three, Some(("2024-01-01T00:03:00Z".to_owned(), 3)));
        let years = due("2020-01-01T00:00:00Z", "2024-01-01T00:03:10Z");
        assert_eq!(years, Some(("2024-01-01T00:03:00Z".to_owned(), 101)));
    }
}
