//! The drivers that are registered with this node.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use carob_csi::Driver;
use carob_csi::v1::NodeGetInfoResponse;
use tokio::sync::watch;

/// How long a volume waits for a driver to register: after a start of the node they take a moment.
const WAIT: Duration = Duration::from_secs(2);

/// The highest version of CSI that a driver speaks; only 1.x is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(u32, u32, u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl Version {
    /// The highest of those that are spoken here too; `None` where there is none.
    pub(super) fn highest(offered: &[String]) -> Option<Self> {
        offered.iter().filter_map(|text| Self::parse(text)).filter(|version| version.0 == 1).max()
    }

    fn parse(text: &str) -> Option<Self> {
        let numbers = text.trim().trim_start_matches('v').split(['-', '+']).next()?;
        let mut parts = numbers.split('.').map(|part| part.parse().ok());
        let version = Self(parts.next()??, parts.next().unwrap_or(Some(0))?, parts.next().unwrap_or(Some(0))?);
        parts.next().is_none().then_some(version)
    }
}

pub(super) struct Registered {
    pub(super) driver: Driver,
    pub(super) version: Version,
    pub(super) info: NodeGetInfoResponse,
}

/// By name.
pub(super) type Table = BTreeMap<String, Arc<Registered>>;

#[derive(Default)]
pub(super) struct Drivers {
    table: watch::Sender<Table>,
}

impl Drivers {
    pub(super) fn get(&self, name: &str) -> Option<Arc<Registered>> {
        self.table.borrow().get(name).cloned()
    }

    /// The driver, which may be about to register.
    pub(super) async fn wait(&self, name: &str) -> Option<Arc<Registered>> {
        let mut table = self.table.subscribe();
        let there = table.wait_for(|table| table.contains_key(name));
        match tokio::time::timeout(WAIT, there).await {
            Ok(Ok(table)) => table.get(name).cloned(),
            Ok(Err(_)) | Err(_) => None,
        }
    }

    pub(super) fn set(&self, name: &str, driver: Option<Arc<Registered>>) {
        self.table.send_modify(|table| match driver {
            Some(driver) => drop(table.insert(name.to_owned(), driver)),
            None => drop(table.remove(name)),
        });
    }

    pub(super) fn all(&self) -> Table {
        self.table.borrow().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_version_that_is_known_counts() {
        let highest = |offered: &[&str]| {
            let offered: Vec<String> = offered.iter().map(|text| (*text).to_owned()).collect();
            Version::highest(&offered).map(|version| version.to_string())
        };
        assert_eq!(highest(&["1.0.0", "v1.2.0", "2.0.0", "0.3.0"]).as_deref(), Some("1.2.0"));
        assert_eq!(highest(&["1"]).as_deref(), Some("1.0.0"));
        for offered in [&["0.3.0"][..], &["2.0.0"], &[], &["one"], &["1.0.0.0"], &["1.-1"]] {
            assert_eq!(highest(offered), None, "{offered:?}");
        }
    }
}
