//! One field of a schedule (robfig/cron parser.go, `getField`).

use std::fmt;

use super::ScheduleError;

/// The values of one field, as bits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Values {
    bits: u64,
    /// Written with a star: it does not restrict the day where the other day field does.
    pub(super) star: bool,
}

impl fmt::Debug for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries((0..64).filter(|value| self.has(*value))).finish()
    }
}

impl Values {
    pub(super) fn has(self, value: i8) -> bool {
        u32::try_from(value).is_ok_and(|value| value < 64 && self.bits & (1 << value) != 0)
    }

    /// A field of nothing but commas is read, and never due.
    pub(super) fn is_empty(self) -> bool {
        self.bits == 0
    }
}

pub(super) struct Field {
    low: i64,
    high: i64,
    names: &'static [&'static str],
}

pub(super) const MINUTE: Field = Field { low: 0, high: 59, names: &[] };
pub(super) const HOUR: Field = Field { low: 0, high: 23, names: &[] };
pub(super) const DAY: Field = Field { low: 1, high: 31, names: &[] };
pub(super) const MONTH: Field = Field {
    low: 1,
    high: 12,
    names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
};
pub(super) const WEEKDAY: Field = Field { low: 0, high: 6, names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"] };

/// Go's `strconv.Atoi`, and what it says.
fn integer(text: &str) -> Result<i64, String> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let why = if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
        match text.parse() {
            Ok(number) => return Ok(number),
            Err(_) => "value out of range",
        }
    } else {
        "invalid syntax"
    };
    Err(format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: {why}"))
}

impl Field {
    pub(super) fn parse(&self, text: &str) -> Result<Values, ScheduleError> {
        let mut values = Values { bits: 0, star: false };
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (bits, star) = self.range(part).map_err(ScheduleError::Field)?;
            values.bits |= bits;
            values.star |= star;
        }
        Ok(values)
    }

    fn value(&self, text: &str) -> Result<i64, String> {
        let named = self.names.iter().position(|name| name.eq_ignore_ascii_case(text));
        match named.and_then(|index| i64::try_from(index).ok()) {
            Some(index) => Ok(index + self.low),
            None => integer(text),
        }
    }

    /// `*`, `3`, `1-5`, each with `/step`. A single value with a step begins a range to the end.
    fn range(&self, text: &str) -> Result<(u64, bool), String> {
        let parts: Vec<&str> = text.split('/').collect();
        let ends: Vec<&str> = parts[0].split('-').collect();
        let is_star = matches!(ends[0], "*" | "?");
        let (first, mut last) = if is_star {
            (self.low, self.high)
        } else {
            let first = self.value(ends[0])?;
            match ends[..] {
                [_] => (first, first),
                [_, last] => (first, self.value(last)?),
                _ => return Err(format!("too many hyphens: {text}")),
            }
        };
        let step = match parts[..] {
            [_] => 1,
            [_, step] => {
                let step = integer(step)?;
                if step < 0 {
                    return Err(format!("negative number ({step}) not allowed: {}", parts[1]));
                }
                if ends.len() == 1 {
                    last = self.high;
                }
                step
            }
            _ => return Err(format!("too many slashes: {text}")),
        };
        if first < self.low {
            return Err(format!("beginning of range ({first}) below minimum ({}): {text}", self.low));
        }
        if last > self.high {
            return Err(format!("end of range ({last}) above maximum ({}): {text}", self.high));
        }
        if first > last {
            return Err(format!("beginning of range ({first}) beyond end of range ({last}): {text}"));
        }
        let step = usize::try_from(step).ok().filter(|step| *step > 0);
        let step = step.ok_or_else(|| format!("step of range should be a positive number: {text}"))?;
        let bits = (first..=last).step_by(step).fold(0_u64, |bits, value| bits | 1 << value);
        Ok((bits, is_star && step == 1))
    }
}
