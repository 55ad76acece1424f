//! Schedules of CronJobs: read by the API, which refuses what the controller could not read, and by the controller.
//!
//! What is accepted, and the texts of what is not, are those of robfig/cron v3's standard parser. Pure.

mod duration;
mod field;
#[cfg(test)]
mod tests;
mod zone;

use std::time::Duration;

use jiff::{Span, Timestamp, civil::Date, tz::TimeZone};

use field::Values;
pub use zone::{ZoneError, check_zone, zone};

/// How far ahead the next time is sought, years (robfig/cron spec.go, `Next`). A schedule may never be due.
const YEARS_AHEAD_MAX: i16 = 5;

/// A schedule that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    #[error("empty spec string")]
    Empty,
    #[error("expected exactly 5 fields, found {found}: [{text}]")]
    Fields { found: usize, text: String },
    #[error("{0}")]
    Field(String),
    #[error("unrecognized descriptor: {0}")]
    Descriptor(String),
    #[error("failed to parse duration {text}: {why}")]
    Duration { text: String, why: String },
    #[error("provided bad location {name}: {why}")]
    Zone { name: String, why: ZoneError },
}

/// When something is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    times: Times,
    /// The zone that the text itself names (`TZ=...`), which old objects may still have.
    zone: Option<TimeZone>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Times {
    Cron(Box<Cron>),
    /// From one time to the next, whole seconds.
    Every(Duration),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Cron {
    minutes: Values,
    hours: Values,
    days: Values,
    months: Values,
    weekdays: Values,
}

impl Schedule {
    pub fn parse(text: &str) -> Result<Self, ScheduleError> {
        if text.is_empty() {
            return Err(ScheduleError::Empty);
        }
        let named = text.strip_prefix("TZ=").or_else(|| text.strip_prefix("CRON_TZ="));
        let Some(named) = named else { return Ok(Self { times: Times::parse(text)?, zone: None }) };
        let (name, rest) = named.split_once(' ').unwrap_or((named, ""));
        let zone = zone(name).map_err(|why| ScheduleError::Zone { name: name.to_owned(), why })?;
        Ok(Self { times: Times::parse(rest.trim())?, zone: Some(zone) })
    }

    /// The first time after `after`, by the clocks of `zone`; `None` if there is none in sight.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        match &self.times {
            Times::Every(every) => Timestamp::from_second(after.as_second()).ok()?.checked_add(*every).ok(),
            Times::Cron(cron) => cron.next(after, self.zone.as_ref().unwrap_or(zone)),
        }
    }

    /// The last time up to `until` and after `after`, and how many there are, counted up to one more than `most`.
    pub fn last_due(
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

impl Times {
    fn parse(text: &str) -> Result<Self, ScheduleError> {
        if let Some(every) = text.strip_prefix("@every ") {
            let nanos = duration::parse(every)
                .map_err(|why| ScheduleError::Duration { text: text.to_owned(), why: why.to_string() })?;
            // Nothing is due more often than once a second, or between seconds.
            let seconds = u64::try_from(nanos / duration::SECOND).unwrap_or_default().max(1);
            return Ok(Self::Every(Duration::from_secs(seconds)));
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
        Ok(Self::Cron(Box::new(Cron {
            minutes: field::MINUTE.parse(minutes)?,
            hours: field::HOUR.parse(hours)?,
            days: field::DAY.parse(days)?,
            months: field::MONTH.parse(months)?,
            weekdays: field::WEEKDAY.parse(weekdays)?,
        })))
    }
}

impl Cron {
    fn is_day(&self, date: Date) -> bool {
        let (day, weekday) = (self.days.has(date.day()), self.weekdays.has(date.weekday().to_sunday_zero_offset()));
        let either = if self.days.star || self.weekdays.star { day && weekday } else { day || weekday };
        self.months.has(date.month()) && either
    }

    fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        if self.minutes.is_empty() || self.hours.is_empty() {
            return None;
        }
        let mut time = Timestamp::from_second(after.as_second().checked_add(1)?).ok()?;
        let mut date = zone.to_datetime(time).date();
        let last_year = date.year().saturating_add(YEARS_AHEAD_MAX);
        while date.year() <= last_year {
            if self.is_day(date)
                && let Some(next) = self.next_of_day(time, date, zone)
            {
                return Some(next);
            }
            date = date.checked_add(Span::new().days(1)).ok()?;
            time = zone.to_timestamp(date.at(0, 0, 0, 0)).ok()?;
        }
        None
    }

    /// By steps of real time, as upstream has it: what a clock change skips is not due, what comes twice is due twice.
    fn next_of_day(&self, from: Timestamp, date: Date, zone: &TimeZone) -> Option<Timestamp> {
        let mut time = from;
        loop {
            let clock = zone.to_datetime(time);
            if clock.date() != date {
                return None;
            }
            let second = i64::from(clock.second());
            let wait = if !self.hours.has(clock.hour()) {
                3600 - i64::from(clock.minute()) * 60 - second
            } else if !self.minutes.has(clock.minute()) || second != 0 {
                60 - second
            } else {
                return Some(time);
            };
            time = Timestamp::from_second(time.as_second().checked_add(wait)?).ok()?;
        }
    }
}
