//! Quantities: exact decimal numbers with a suffix (apimachinery pkg/api/resource/quantity.go).

use std::{cmp::Ordering, fmt, str::FromStr};

/// Nanos in one unit: the finest step that upstream keeps.
const NANOS: i128 = 1_000_000_000;
/// Upstream caps quantities at the largest int64, in units.
const UNITS_MAX: i128 = i64::MAX as i128;
/// Digits beyond which a number is only capped or rounded, never exact; bounds the arithmetic below.
const DIGITS_MAX: usize = 64;

#[derive(Debug, Clone, Copy, thiserror::Error, PartialEq, Eq)]
pub enum QuantityError {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// How a quantity is printed; arithmetic keeps the left side's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `100m`, `2k`.
    DecimalSi,
    /// `1Gi`.
    BinarySi,
    /// `2e3`.
    DecimalExponent,
}

/// An amount in billionths of a unit. Equality and order ignore the format.
#[derive(Debug, Clone, Copy)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

impl Quantity {
    /// Parses any form that upstream accepts. What is finer than a nano is rounded away from zero.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        let (negative, unsigned) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let number_len = unsigned.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
        let (number, suffix) = unsigned.split_at(number_len);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
            return Err(QuantityError::Format);
        }
        let scale = Scale::parse(suffix)?;
        let nanos = magnitude(whole, fraction, scale);
        Ok(Self { nanos: if negative { -nanos } else { nanos }, format: scale.format() })
    }

    pub const fn from_units(value: i64, format: Format) -> Self {
        Self { nanos: value as i128 * NANOS, format }
    }

    pub const fn from_milli(milli: i64, format: Format) -> Self {
        Self { nanos: milli as i128 * (NANOS / 1_000), format }
    }

    pub const fn zero() -> Self {
        Self::from_units(0, Format::DecimalSi)
    }

    /// Whole units, rounded away from zero as upstream's `Value`.
    pub fn value(&self) -> i64 {
        saturate(div_away(self.nanos, NANOS))
    }

    /// Thousandths, rounded away from zero as upstream's `MilliValue`.
    pub fn milli(&self) -> i64 {
        saturate(div_away(self.nanos, NANOS / 1_000))
    }

    /// Billionths of a unit, exactly.
    pub fn nanos(&self) -> i128 {
        self.nanos
    }

    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    pub fn format(&self) -> Format {
        self.format
    }

    /// The sum is written as this one is, or as the other where this one is zero.
    pub fn saturating_add(self, other: Self) -> Self {
        Self { nanos: cap(self.nanos + other.nanos), format: self.format_with(other) }
    }

    pub fn saturating_sub(self, other: Self) -> Self {
        Self { nanos: cap(self.nanos - other.nanos), format: self.format_with(other) }
    }

    fn format_with(self, other: Self) -> Format {
        if self.is_zero() { other.format } else { self.format }
    }
}

/// What a suffix multiplies by.
#[derive(Debug, Clone, Copy)]
enum Scale {
    Decimal { exponent: i32, scientific: bool },
    Binary { exponent: u32 },
}

impl Scale {
    fn parse(suffix: &str) -> Result<Self, QuantityError> {
        let decimal = |exponent| Ok(Self::Decimal { exponent, scientific: false });
        let binary = |exponent| Ok(Self::Binary { exponent });
        match suffix {
            "" => decimal(0),
            "n" => decimal(-9),
            "u" => decimal(-6),
            "m" => decimal(-3),
            "k" => decimal(3),
            "M" => decimal(6),
            "G" => decimal(9),
            "T" => decimal(12),
            "P" => decimal(15),
            "E" => decimal(18),
            "Ki" => binary(10),
            "Mi" => binary(20),
            "Gi" => binary(30),
            "Ti" => binary(40),
            "Pi" => binary(50),
            "Ei" => binary(60),
            _ => Self::parse_exponent(suffix),
        }
    }

    fn parse_exponent(suffix: &str) -> Result<Self, QuantityError> {
        let malformed = || {
            let letters = suffix.bytes().take_while(|b| b"eEinumkKMGTP".contains(b)).count();
            let rest = suffix[letters..].trim_start_matches(['+', '-']);
            let signs = suffix.len() - letters - rest.len();
            let in_shape = signs <= 1 && rest.bytes().all(|b| b.is_ascii_digit());
            if in_shape { QuantityError::Suffix } else { QuantityError::Format }
        };
        let digits = suffix.strip_prefix(['e', 'E']).ok_or_else(malformed)?;
        let exponent: i32 = digits.parse().map_err(|_| malformed())?;
        Ok(Self::Decimal { exponent, scientific: true })
    }

    fn format(self) -> Format {
        match self {
            Self::Decimal { scientific: false, .. } => Format::DecimalSi,
            Self::Decimal { scientific: true, .. } => Format::DecimalExponent,
            Self::Binary { .. } => Format::BinarySi,
        }
    }
}

/// `whole.fraction` times the scale in nanos, capped and rounded up.
fn magnitude(whole: &str, fraction: &str, scale: Scale) -> i128 {
    match scale {
        Scale::Decimal { exponent, .. } => decimal(whole, fraction, i64::from(exponent) + 9),
        Scale::Binary { exponent } => {
            // Nanos of the bare number first, scaled in two halves so that no digit is lost to overflow.
            let units = decimal(whole, "", 0);
            let below = decimal("", fraction, 9 + 9);
            let factor = 1_i128 << exponent;
            let whole_nanos = units.checked_mul(factor).and_then(|n| n.checked_mul(NANOS)).unwrap_or(i128::MAX);
            // `fraction` may have any number of digits; beyond 18 they round up.
            let fraction_nanos = div_away(below.saturating_mul(factor), NANOS);
            cap(whole_nanos.saturating_add(fraction_nanos))
        }
    }
}

/// The digits times 10^`shift`, rounded up to an integer and capped.
fn decimal(whole: &str, fraction: &str, shift: i64) -> i128 {
    let mut value: i128 = 0;
    let mut rest = false;
    // Digits that stay left of the decimal point after the shift.
    let point = i64::try_from(whole.len()).unwrap_or(i64::MAX).saturating_add(shift);
    let digits = whole.bytes().chain(fraction.bytes());
    let mut taken = 0_i64;
    for digit in digits {
        if taken < point {
            value = value.saturating_mul(10).saturating_add(i128::from(digit - b'0'));
        } else {
            rest |= digit != b'0';
        }
        taken += 1;
    }
    for _ in 0..(point - taken).clamp(0, DIGITS_MAX as i64) {
        value = value.saturating_mul(10);
    }
    cap(value.saturating_add(i128::from(rest)))
}

fn cap(nanos: i128) -> i128 {
    nanos.clamp(-UNITS_MAX * NANOS, UNITS_MAX * NANOS)
}

fn div_away(value: i128, by: i128) -> i128 {
    let quotient = value / by;
    match value % by {
        0 => quotient,
        _ => quotient + value.signum(),
    }
}

fn saturate(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

/// The canonical form: no fraction, the largest suffix that leaves none.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let in_kibi = -1024 * NANOS < self.nanos && self.nanos < 1024 * NANOS;
        match self.format {
            // Upstream prints small binary quantities as decimals, to avoid rounding.
            Format::BinarySi if !in_kibi => self.fmt_binary(f),
            Format::BinarySi | Format::DecimalSi => self.fmt_decimal(f, |exponent| {
                const SUFFIXES: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
                SUFFIXES[exponent.min(9)].to_owned()
            }),
            Format::DecimalExponent => self.fmt_decimal(f, |step| match i64::try_from(step).unwrap_or(0) * 3 - 9 {
                0 => String::new(),
                exponent => format!("e{exponent}"),
            }),
        }
    }
}

impl Quantity {
    /// Prints the mantissa and what `suffix` makes of the number of thousands above a nano.
    fn fmt_decimal(&self, f: &mut fmt::Formatter<'_>, suffix: impl Fn(usize) -> String) -> fmt::Result {
        let mut mantissa = self.nanos;
        let mut step = 0;
        while mantissa % 1000 == 0 && step < 9 {
            mantissa /= 1000;
            step += 1;
        }
        write!(f, "{mantissa}{}", suffix(step))
    }

    fn fmt_binary(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SUFFIXES: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
        let mut mantissa = div_away(self.nanos, NANOS);
        let mut step = 0;
        while mantissa % 1024 == 0 && step < 6 {
            mantissa /= 1024;
            step += 1;
        }
        write!(f, "{mantissa}{}", SUFFIXES[step])
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn canonical_forms() {
        let cases = [
            ("0", "0"),
            ("1", "1"),
            ("1000m", "1"),
            ("0.5", "500m"),
            ("0.001", "1m"),
            ("100m", "100m"),
            ("1.5", "1500m"),
            ("1k", "1k"),
            ("1000", "1k"),
            ("1500", "1500"),
            ("12e6", "12e6"),
            ("1e3", "1e3"),
            ("1E3", "1e3"),
            ("1Ki", "1Ki"),
            ("1024Ki", "1Mi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Ki", "512"),
            ("100Mi", "100Mi"),
            ("+1", "1"),
            ("-1", "-1"),
            ("-0.5", "-500m"),
            ("1n", "1n"),
            ("0.1n", "1n"),
            ("-0.1n", "-1n"),
            ("1.1Ki", "1127"),
            ("0.9Ki", "921600m"),
            ("0.0000000001", "1n"),
            ("9223372036854775807", "9223372036854775807"),
            ("1e100", "9223372036854775807"),
            ("010", "10"),
            (".5", "500m"),
            ("5.", "5"),
            ("1E", "1E"),
            ("1000000", "1M"),
            ("1e-3", "1e-3"),
            ("1e-1", "100e-3"),
            ("2Gi", "2Gi"),
            ("1023", "1023"),
            ("64Mi", "64Mi"),
            ("1e-400", "1e-9"),
        ];
        for (input, expect) in cases {
            assert_eq!(Quantity::parse(input).expect(input).to_string(), expect, "{input}");
        }
    }

    #[test]
    fn malformed() {
        for (input, expect) in [
            ("", QuantityError::Format),
            ("x", QuantityError::Format),
            ("1.2.3", QuantityError::Format),
            (".", QuantityError::Format),
            ("1 Gi", QuantityError::Format),
            ("1GB", QuantityError::Format),
            ("1ki", QuantityError::Suffix),
            ("1KiKi", QuantityError::Suffix),
            ("1mi", QuantityError::Suffix),
            ("--1", QuantityError::Format),
            ("1e", QuantityError::Suffix),
        ] {
            assert_eq!(Quantity::parse(input).map(|q| q.to_string()), Err(expect), "{input}");
        }
    }

    #[test]
    fn rounding_is_away_from_zero() {
        for (input, value, milli) in [
            ("1m", 1, 1),
            ("1500m", 2, 1500),
            ("-1500m", -2, -1500),
            ("1u", 1, 1),
            ("2", 2, 2000),
            ("8E", 8_000_000_000_000_000_000, i64::MAX),
        ] {
            let quantity = Quantity::parse(input).expect(input);
            assert_eq!((quantity.value(), quantity.milli()), (value, milli), "{input}");
        }
    }

    #[test]
    fn a_sum_is_written_as_its_first_part_that_is_not_zero() {
        let sum = |a: &str, b: &str| {
            let parse = |text| Quantity::parse(text).expect("a quantity");
            parse(a).saturating_add(parse(b)).to_string()
        };
        assert_eq!(sum("0", "252Mi"), "252Mi");
        assert_eq!(sum("1", "1Ki"), "1025");
        assert_eq!(sum("1Ki", "1024"), "2Ki");
    }

    proptest! {
        #[test]
        fn printing_is_canonical(nanos in -1_000_000_000_000_000_000_i128..1_000_000_000_000_000_000, format in 0..3_u8) {
            let format = [Format::DecimalSi, Format::BinarySi, Format::DecimalExponent][usize::from(format)];
            let quantity = Quantity { nanos, format };
            let text = quantity.to_string();
            let parsed = Quantity::parse(&text).expect("own output parses");
            // A binary quantity that no suffix fits is printed as a plain number, which reads as a decimal one.
            if format == Format::BinarySi {
                prop_assert_eq!(parsed.value(), quantity.value());
            } else {
                prop_assert_eq!(parsed.to_string(), text);
                prop_assert_eq!(parsed.nanos, nanos);
            }
        }

        #[test]
        fn arbitrary_text_never_panics(text in "[-+]?[0-9.]{0,40}[eEinumkKMGTP]{0,3}[-+]?[0-9]{0,12}") {
            if let Ok(quantity) = Quantity::parse(&text) {
                prop_assert_eq!(Quantity::parse(&quantity.to_string()).expect("own output parses"), quantity);
            }
        }

        #[test]
        fn sums_are_exact(a in -1_000_000_000_i64..1_000_000_000, b in -1_000_000_000_i64..1_000_000_000) {
            let sum = Quantity::from_milli(a, Format::DecimalSi).saturating_add(Quantity::from_milli(b, Format::BinarySi));
            prop_assert_eq!(sum.milli(), a + b);
        }
    }
}
