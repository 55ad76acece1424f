//! Quantities: exact decimal numbers with a suffix (apimachinery pkg/api/resource).

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum QuantityError {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    #[error("unable to parse quantity's suffix")]
    Suffix,
    #[error("unable to parse numeric part of quantity")]
    Numeric,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format { DecimalSi, BinarySi, DecimalExponent }

/// value = `nanos` / 10^9.
#[derive(Debug, Clone, Copy)]
pub struct Quantity { nanos: i128, format: Format }

impl Quantity {
    pub fn parse(text: &str) -> Result<Self, QuantityError> { todo!() }
    pub fn from_units(value: i64, format: Format) -> Self { Self { nanos: i128::from(value) * 1_000_000_000, format } }
    pub fn from_milli(milli: i64, format: Format) -> Self { Self { nanos: i128::from(milli) * 1_000_000, format } }
    pub fn zero() -> Self { Self::from_units(0, Format::DecimalSi) }
    /// Whole units, rounded away from zero as upstream's `Value`.
    pub fn value(&self) -> i64 { todo!() }
    /// Thousandths, rounded away from zero as upstream's `MilliValue`.
    pub fn milli(&self) -> i64 { todo!() }
    pub fn is_zero(&self) -> bool { self.nanos == 0 }
    pub fn is_negative(&self) -> bool { self.nanos < 0 }
    pub fn format(&self) -> Format { self.format }
    pub fn saturating_add(self, other: Self) -> Self { todo!() }
    pub fn saturating_sub(self, other: Self) -> Self { todo!() }
}

/// The canonical form.
impl std::fmt::Display for Quantity { fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { todo!() } }
impl PartialEq for Quantity { fn eq(&self, other: &Self) -> bool { self.nanos == other.nanos } }
impl Eq for Quantity {}
impl PartialOrd for Quantity { fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> { Some(self.cmp(other)) } }
impl Ord for Quantity { fn cmp(&self, other: &Self) -> std::cmp::Ordering { self.nanos.cmp(&other.nanos) } }
impl std::str::FromStr for Quantity { type Err = QuantityError; fn from_str(s: &str) -> Result<Self, QuantityError> { Self::parse(s) } }
