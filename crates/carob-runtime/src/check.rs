//! What of this machine the runtime needs, and what to do where it is missing. For `carob check`.

use serde::Serialize;

use crate::runtime::Runtime;

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

impl Runtime {
    /// Looks at this machine.
    pub fn check(&self) -> Vec<Finding> {
        vec![
            self.check_cgroups(),
            self.check_oom_score(),
            self.check_capabilities(),
            check_overlay(),
            self.check_apparmor(),
        ]
    }

    fn check_cgroups(&self) -> Finding {
        use carob_sys::cgroup::Layout;

        let what = "control groups";
        match &self.layout {
            Layout::V2 { root } => Finding {
                what,
                severity: Severity::Good,
                found: format!("version 2 at {}", root.display()),
                advice: "",
            },
            Layout::V1 { controllers, unified } => {
                let missing: Vec<&str> = ["cpu", "memory", "pids", "devices", "cpuset", "cpuacct"]
                    .into_iter()
                    .filter(|name| !controllers.contains_key(*name))
                    .collect();
                let version = if unified.is_some() { "version 1, hybrid" } else { "version 1" };
                if missing.is_empty() {
                    Finding { what, severity: Severity::Good, found: version.to_owned(), advice: "" }
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

    fn check_oom_score(&self) -> Finding {
        let lowest = self.host.oom_score_adj_min;
        let what = "out-of-memory score";
        if lowest <= -1000 {
            return Finding { what, severity: Severity::Good, found: "any can be set".to_owned(), advice: "" };
        }
        Finding {
            what,
            severity: Severity::Warning,
            found: format!("nothing below {lowest} can be set: critical and guaranteed Pods are no safer than others"),
            advice: "run carob with CAP_SYS_RESOURCE",
        }
    }

    fn check_capabilities(&self) -> Finding {
        let missing: Vec<&str> = carob_sys::capability::NAMES
            .iter()
            .enumerate()
            .filter(|(number, _)| self.host.bounding >> number & 1 == 0)
            .map(|(_, name)| *name)
            .collect();
        let what = "capabilities";
        if missing.is_empty() {
            return Finding { what, severity: Severity::Good, found: "all".to_owned(), advice: "" };
        }
        Finding {
            what,
            severity: Severity::Warning,
            found: format!("no container can have {}", missing.join(", ")),
            advice: "start carob with a full bounding set",
        }
    }

    fn check_apparmor(&self) -> Finding {
        let found = if self.host.apparmor { "on" } else { "off: Pods that name a profile are refused" };
        Finding { what: "AppArmor", severity: Severity::Good, found: found.to_owned(), advice: "" }
    }
}

fn check_overlay() -> Finding {
    let what = "overlay filesystem";
    let known = fs_err::read_to_string("/proc/filesystems").is_ok_and(|text| text.contains("\toverlay\n"));
    if known {
        return Finding { what, severity: Severity::Good, found: "known to the kernel".to_owned(), advice: "" };
    }
    Finding {
        what,
        severity: Severity::Bad,
        found: "unknown to the kernel".to_owned(),
        advice: "load the module: modprobe overlay",
    }
}
