//! The strategies that the table of kinds names.

use super::{Generic, NameRule, Rules};

const fn plain() -> Generic {
    Generic(Rules::PLAIN)
}
pub(crate) static CONFIG_MAP: Generic = plain();
pub(crate) static ENDPOINTS: Generic = plain();
pub(crate) static EVENT: Generic = plain();
pub(crate) static LIMIT_RANGE: Generic = plain();
pub(crate) static NAMESPACE: Generic = Generic(Rules { name: NameRule::Label, ..Rules::STATUS });
pub(crate) static NODE: Generic = Generic(Rules::STATUS);
pub(crate) static PERSISTENT_VOLUME_CLAIM: Generic = Generic(Rules::STATUS);
pub(crate) static PERSISTENT_VOLUME: Generic = Generic(Rules::STATUS);
pub(crate) static POD: Generic = Generic(Rules::WORKLOAD);
pub(crate) static POD_TEMPLATE: Generic = Generic(Rules::COUNTED);
pub(crate) static REPLICATION_CONTROLLER: Generic = Generic(Rules { orphans_by_default: true, ..Rules::WORKLOAD });
pub(crate) static SECRET: Generic = plain();
pub(crate) static SERVICE_ACCOUNT: Generic = plain();
pub(crate) static SERVICE: Generic = Generic(Rules { name: NameRule::Dns1035, ..Rules::STATUS });
pub(crate) static DAEMON_SET: Generic = Generic(Rules::WORKLOAD);
pub(crate) static DEPLOYMENT: Generic = Generic(Rules::WORKLOAD);
pub(crate) static REPLICA_SET: Generic = Generic(Rules::WORKLOAD);
pub(crate) static STATEFUL_SET: Generic = Generic(Rules::WORKLOAD);
pub(crate) static HORIZONTAL_POD_AUTOSCALER: Generic = Generic(Rules::STATUS);
pub(crate) static CRON_JOB: Generic = Generic(Rules::WORKLOAD);
pub(crate) static JOB: Generic = Generic(Rules { orphans_by_default: true, ..Rules::WORKLOAD });
pub(crate) static LEASE: Generic = Generic(Rules { creates_on_update: true, ..Rules::PLAIN });
pub(crate) static ENDPOINT_SLICE: Generic = Generic(Rules::COUNTED);
pub(crate) static NETWORK_POLICY: Generic = Generic(Rules::COUNTED);
pub(crate) static POD_DISRUPTION_BUDGET: Generic = Generic(Rules { updates_unconditionally: false, ..Rules::WORKLOAD });
pub(crate) static RUNTIME_CLASS: Generic = plain();
pub(crate) static PRIORITY_CLASS: Generic = Generic(Rules::COUNTED);
pub(crate) static STORAGE_CLASS: Generic = plain();
pub(crate) static CERTIFICATE_SIGNING_REQUEST: Generic = Generic(Rules::STATUS);
pub(crate) static ROLE: Generic =
    Generic(Rules { name: NameRule::PathSegment, creates_on_update: true, ..Rules::PLAIN });
pub(crate) static CLUSTER_ROLE: Generic =
    Generic(Rules { name: NameRule::PathSegment, creates_on_update: true, ..Rules::PLAIN });
pub(crate) static ROLE_BINDING: Generic =
    Generic(Rules { name: NameRule::PathSegment, creates_on_update: true, ..Rules::PLAIN });
pub(crate) static CUSTOM_RESOURCE_DEFINITION: Generic = Generic(Rules::WORKLOAD);
