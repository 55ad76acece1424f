//! What of this machine the runtime needs, and what to do where it is missing. For `carob check`.

use carob_sys::cgroup::Layout;
use serde::Serialize;

use crate::error::RuntimeError;
use crate::runtime::host_facts;
use crate::spec::HostFacts;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Good,
    /// Pods run, with less than they may ask for.
    Warning,
    /// No Pod can run.
    Bad,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub what: &'static str,
    pub severity: Severity,
    /// What was found.
    pub found: String,
    /// What to do about it; empty where nothing is to be done.
    pub advice: &'static str,
}

impl Finding {
    /// Nothing is to be done about `what`.
    pub fn good(what: &'static str, found: impl Into<String>) -> Self {
        Self { what, severity: Severity::Good, found: found.into(), advice: "" }
    }
}

/// Looks at this machine, and changes nothing.
pub fn check() -> Result<Vec<Finding>, RuntimeError> {
    let layout = Layout::detect()?;
    let host = host_facts(&layout)?;
    Ok(vec![
        check_cgroups(&layout),
        check_oom_score(&host),
        check_capabilities(&host),
        check_overlay(),
        check_apparmor(&host),
    ])
}

fn check_cgroups(layout: &Layout) -> Finding {
    let what = "control groups";
    match layout {
        Layout::V2 { root } => Finding::good(what, format!("version 2 at {}", root.display())),
        Layout::V1 { controllers, unified } => {
            let missing: Vec<&str> = ["cpu", "memory", "pids", "devices", "cpuset", "cpuacct"]
                .into_iter()
                .filter(|name| !controllers.contains_key(*name))
                .collect();
            let version = if unified.is_some() { "version 1, hybrid" } else { "version 1" };
            if missing.is_empty() {
                Finding::good(what, version)
            } else {
                Finding {
                    what,
                    severity: Severity::Bad,
                    found: format!("{version}, without {}", missing.join(", ")),
                    advice: "mount these controllers, or boot with systemd.unified_cgroup_hierarchy=1",
                }
            }
        }
    }
}

fn check_oom_score(host: &HostFacts) -> Finding {
    let lowest = host.oom_score_adj_min;
    let what = "out-of-memory score";
    if lowest <= -1000 {
        return Finding::good(what, "any can be set");
    }
    Finding {
        what,
        severity: Severity::Warning,
        found: format!("nothing below {lowest} can be set: critical and guaranteed Pods are no safer than others"),
        advice: "run carob with CAP_SYS_RESOURCE",
    }
}

fn check_capabilities(host: &HostFacts) -> Finding {
    let missing: Vec<&str> = carob_sys::capability::NAMES
        .iter()
        .enumerate()
        .filter(|(number, _)| host.bounding >> number & 1 == 0)
        .map(|(_, name)| *name)
        .collect();
    let what = "capabilities";
    if missing.is_empty() {
        return Finding::good(what, "all");
    }
    Finding {
        what,
        severity: Severity::Warning,
        found: format!("no container can have {}", missing.join(", ")),
        advice: "start carob with a full bounding set",
    }
}

fn check_apparmor(host: &HostFacts) -> Finding {
    let found = if host.apparmor { "on" } else { "off: Pods that name a profile are refused" };
    Finding::good("AppArmor", found)
}

fn check_overlay() -> Finding {
    let what = "overlay filesystem";
    let known = fs_err::read_to_string("/proc/filesystems").is_ok_and(|text| text.contains("\toverlay\n"));
    if known {
        return Finding::good(what, "known to the kernel");
    }
    Finding {
        what,
        severity: Severity::Bad,
        found: "unknown to the kernel".to_owned(),
        advice: "load the module: modprobe overlay",
    }
}
