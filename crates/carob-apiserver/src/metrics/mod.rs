//! `/metrics`: what the API server counts, under upstream's names, labels and bounds.

mod admission;
mod requests;

pub(crate) use admission::{AdmissionFigures, Step};
pub(crate) use requests::{Asked, Pending, Requests};

use carob_kit::metrics::{Exposition, Kind, write_process_metrics};

use crate::audit::Auditor;
use crate::state::State;
use crate::version;

/// The whole text.
pub(crate) fn render(api: &State) -> String {
    let mut out = Exposition::default();
    api.requests.write(&mut out);
    api.admission.figures().write(&mut out);
    let stats = api.store.stats();
    let stored = "Objects of all kinds that the store holds.";
    out.single("apiserver_storage_objects", Kind::Gauge, stored, stats.live_keys);
    let size = "Size of the objects that the store holds, in bytes.";
    out.single("apiserver_storage_size_bytes", Kind::Gauge, size, stats.live_bytes);
    api.flow_control.write_metrics(&mut out);
    if let Some(auditor) = api.auditor.as_ref() {
        Auditor::write_metrics(auditor, &mut out);
    }
    write_build_info(&mut out);
    write_process_metrics(&mut out);
    api.health.write_metrics(&mut out);
    out.into_text()
}

/// By component-base `metrics/prometheus/version`.
fn write_build_info(out: &mut Exposition) {
    let info = version::info();
    let of = |name: &str| info[name].as_str().unwrap_or_default().to_owned();
    let (major, minor, version, platform) = (of("major"), of("minor"), of("gitVersion"), of("platform"));
    let labels = [("git_version", &*version), ("major", &*major), ("minor", &*minor), ("platform", &*platform)];
    let help = "A metric with a constant '1' value labeled by major, minor, git version and platform.";
    out.family("kubernetes_build_info", Kind::Gauge, help).sample(&labels, 1);
}
