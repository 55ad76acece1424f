//! From when on the node is short of something (kubelet `pkg/kubelet/eviction/helpers.go`, ParseThresholdConfig). Pure.

use std::fmt;
use std::time::Duration;

use carob_api::quantity::Quantity;

/// What the node can be short of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Signal {
    MemoryAvailable,
    NodefsAvailable,
    NodefsInodesFree,
    ImagefsAvailable,
    ImagefsInodesFree,
    PidAvailable,
}

/// The node's condition that follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pressure {
    Memory,
    Disk,
    Pid,
}

impl Pressure {
    /// The type of the node's condition.
    pub fn condition(self) -> &'static str {
        match self {
            Self::Memory => "MemoryPressure",
            Self::Disk => "DiskPressure",
            Self::Pid => "PIDPressure",
        }
    }
}

impl Signal {
    const ALL: [Self; 6] = [
        Self::MemoryAvailable,
        Self::NodefsAvailable,
        Self::NodefsInodesFree,
        Self::ImagefsAvailable,
        Self::ImagefsInodesFree,
        Self::PidAvailable,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::MemoryAvailable => "memory.available",
            Self::NodefsAvailable => "nodefs.available",
            Self::NodefsInodesFree => "nodefs.inodesFree",
            Self::ImagefsAvailable => "imagefs.available",
            Self::ImagefsInodesFree => "imagefs.inodesFree",
            Self::PidAvailable => "pid.available",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|signal| signal.name() == name)
    }

    pub fn pressure(self) -> Pressure {
        match self {
            Self::MemoryAvailable => Pressure::Memory,
            Self::PidAvailable => Pressure::Pid,
            Self::NodefsAvailable | Self::NodefsInodesFree | Self::ImagefsAvailable | Self::ImagefsInodesFree => {
                Pressure::Disk
            }
        }
    }

    /// What is said to be short.
    pub fn resource(self) -> &'static str {
        match self {
            Self::MemoryAvailable => "memory",
            Self::NodefsAvailable | Self::ImagefsAvailable => "ephemeral-storage",
            Self::NodefsInodesFree | Self::ImagefsInodesFree => "inodes",
            Self::PidAvailable => "pids",
        }
    }
}

/// How much of it is to be there.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Amount {
    Fixed(u64),
    /// Of the whole, in percent.
    Percent(f64),
}

impl Amount {
    #[expect(clippy::cast_possible_truncation, reason = "it saturates, and is a share of a whole number")]
    pub fn of(self, capacity: u64) -> u64 {
        match self {
            Self::Fixed(amount) => amount,
            Self::Percent(percent) => (capacity as f64 * percent / 100.0) as u64,
        }
    }

    fn parse(text: &str) -> Option<Self> {
        if let Some(percent) = text.strip_suffix('%') {
            let percent: f64 = percent.parse().ok()?;
            return (0.0..=100.0).contains(&percent).then_some(Self::Percent(percent));
        }
        let quantity = Quantity::parse(text).ok()?;
        u64::try_from(quantity.value()).ok().map(Self::Fixed)
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Threshold {
    pub signal: Signal,
    pub amount: Amount,
    /// How long it may last; none for a hard threshold.
    pub grace: Duration,
    pub is_hard: bool,
    /// How much more than the threshold is reclaimed once it was met.
    pub reclaim: Amount,
}

/// When and how Pods are evicted.
#[derive(Debug, Clone, PartialEq)]
pub struct EvictionConfig {
    pub thresholds: Vec<Threshold>,
    /// How long a condition stays once its cause is gone (kubelet `evictionPressureTransitionPeriod`).
    pub transition: Duration,
}

impl EvictionConfig {
    /// How much of `capacity` is to stay free of `signal`, in its unit; 0 where nothing says so.
    pub fn hard(&self, signal: Signal, capacity: u64) -> u64 {
        let hard = self.thresholds.iter().filter(|threshold| threshold.is_hard && threshold.signal == signal);
        hard.map(|threshold| threshold.amount.of(capacity)).max().unwrap_or(0)
    }
}

/// How long a condition stays where nothing else is said.
pub const TRANSITION: Duration = Duration::from_secs(300);
/// Hard thresholds where none are said. Memory and inodes as the kubelet has them (`DefaultEvictionHard`); its 10 and 15 % of
/// the disk are many GB on a machine that is not there for Pods alone, so what is kept free there is a size.
pub const HARD: &str =
    "memory.available<100Mi,nodefs.available<1Gi,nodefs.inodesFree<5%,imagefs.available<1Gi,imagefs.inodesFree<5%";

impl Default for EvictionConfig {
    fn default() -> Self {
        let parse = |text: &str| pairs(text, '<').ok().unwrap_or_default();
        let hard = parse(HARD).into_iter().filter_map(|(signal, text)| {
            let amount = Amount::parse(&text)?;
            Some(Threshold { signal, amount, grace: Duration::ZERO, is_hard: true, reclaim: Amount::Fixed(0) })
        });
        Self { thresholds: hard.collect(), transition: TRANSITION }
    }
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ThresholdError {
    #[error("`{0}` is not SIGNAL{1}VALUE")]
    Form(String, char),
    #[error("`{name}` is no signal; there are {}", Signal::ALL.map(Signal::name).join(", "))]
    Signal { name: String },
    #[error("`{0}` is neither a quantity nor a percentage of at most 100 %")]
    Amount(String),
    #[error("the threshold of {0} has to be above zero")]
    Zero(&'static str),
    #[error("`{0}` is not a duration")]
    Duration(String),
    #[error("the soft threshold of {0} has no grace period (--eviction-soft-grace-period)")]
    NoGrace(&'static str),
    #[error("{0} is named twice")]
    Twice(&'static str),
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// `memory.available<100Mi,…` with `<` or `=` between name and value.
fn pairs(text: &str, between: char) -> Result<Vec<(Signal, String)>, ThresholdError> {
    let mut found: Vec<(Signal, String)> = Vec::new();
    for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        let form = || ThresholdError::Form(word.to_owned(), between);
        let (name, value) = word.split_once(between).ok_or_else(form)?;
        let signal =
            Signal::parse(name.trim()).ok_or_else(|| ThresholdError::Signal { name: name.trim().to_owned() })?;
        if found.iter().any(|(known, _)| *known == signal) {
            return Err(ThresholdError::Twice(signal.name()));
        }
        found.push((signal, value.trim().to_owned()));
    }
    Ok(found)
}

/// The thresholds that four flags of the kubelet say: `hard` and `soft` as `SIGNAL<VALUE`, the others as `SIGNAL=VALUE`.
pub fn parse(hard: &str, soft: &str, soft_grace: &str, reclaim: &str) -> Result<Vec<Threshold>, ThresholdError> {
    let amount = |text: &str| Amount::parse(text).ok_or_else(|| ThresholdError::Amount(text.to_owned()));
    let duration = |text: &str| {
        let parsed = text.parse::<jiff::SignedDuration>().ok().and_then(|duration| Duration::try_from(duration).ok());
        parsed.ok_or_else(|| ThresholdError::Duration(text.to_owned()))
    };
    let graces = pairs(soft_grace, '=')?;
    let reclaims = pairs(reclaim, '=')?;
    let of = |all: &[(Signal, String)], signal: Signal| {
        all.iter().find(|(known, _)| *known == signal).map(|(_, text)| text.clone())
    };
    let mut thresholds = Vec::new();
    for (is_hard, text) in [(true, hard), (false, soft)] {
        for (signal, text) in pairs(text, '<')? {
            let grace = match of(&graces, signal) {
                _ if is_hard => Duration::ZERO,
                Some(grace) => duration(&grace)?,
                None => return Err(ThresholdError::NoGrace(signal.name())),
            };
            let reclaim = of(&reclaims, signal).map_or(Ok(Amount::Fixed(0)), |text| amount(&text))?;
            match amount(&text)? {
                // Both switch a threshold off.
                Amount::Percent(percent) if percent == 0.0 || percent == 100.0 => {}
                Amount::Fixed(0) => return Err(ThresholdError::Zero(signal.name())),
                amount => thresholds.push(Threshold { signal, amount, grace, is_hard, reclaim }),
            }
        }
    }
    Ok(thresholds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_the_kubelets() {
        let all =
            parse("memory.available<100Mi, nodefs.available<10%", "memory.available<1Gi", "memory.available=90s", "")
                .expect("parsed");
        assert_eq!(all.len(), 3);
        assert_eq!((all[0].amount, all[0].is_hard), (Amount::Fixed(100 << 20), true));
        assert_eq!(all[1].amount.of(1000), 100);
        assert_eq!((all[2].grace, all[2].is_hard), (Duration::from_secs(90), false));
        assert_eq!(EvictionConfig::default().thresholds.len(), 5);
        assert_eq!(parse("", "", "", ""), Ok(Vec::new()), "nothing is ever evicted");
        assert_eq!(parse("nodefs.available<0%,imagefs.available<100%", "", "", ""), Ok(Vec::new()), "switched off");
        let reclaim = parse("pid.available<10", "", "", "pid.available=5%").expect("parsed");
        assert_eq!(reclaim[0].reclaim, Amount::Percent(5.0));
    }

    #[test]
    fn mistakes_are_named() {
        for (hard, soft, grace, error) in [
            ("memory", "", "", ThresholdError::Form("memory".to_owned(), '<')),
            ("memory.free<1", "", "", ThresholdError::Signal { name: "memory.free".to_owned() }),
            ("memory.available<101%", "", "", ThresholdError::Amount("101%".to_owned())),
            ("memory.available<-1", "", "", ThresholdError::Amount("-1".to_owned())),
            ("memory.available<0", "", "", ThresholdError::Zero("memory.available")),
            ("", "pid.available<5", "", ThresholdError::NoGrace("pid.available")),
            ("", "pid.available<5", "pid.available=soon", ThresholdError::Duration("soon".to_owned())),
            ("pid.available<5,pid.available<6", "", "", ThresholdError::Twice("pid.available")),
        ] {
            assert_eq!(parse(hard, soft, grace, ""), Err(error));
        }
    }
}
