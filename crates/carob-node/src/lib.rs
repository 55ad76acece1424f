//! The node agent: what upstream's kubelet is. It runs the Pods that are bound to its node, tells the API how they are, and
//! answers for their logs and streams.
//!
//! Start at [`Node`]. Decisions are pure: [`plan::plan_pod`] says what to do for a Pod, [`status::status_for`] what to show
//! of it; [`worker`] carries out and reports, one worker a Pod; [`fleet`] has the workers. [`volumes`], [`env`], [`image`],
//! [`probe`] and [`hooks`] are what a container needs around it, [`files`] is where they touch disks, [`config`] turns it into CRI's words, [`observe`] turns
//! CRI's words back. [`server`] is the kubelet API, with streams and [`logs`]; [`machine`] is the Node object.
//! [`devices`] are those of device plug-ins. [`virtual_nodes`] are Nodes whose Pods live without processes; [`manifests`] are where static Pods come from.
//!
//! Tasks it spawns: one a Pod, with one for each step under way and each probe of a running container; one for the
//! runtime's events; one that registers the Node; one that rotates logs; one for each connection to the kubelet API. All end
//! with the shutdown that [`NodeParts`] carries, and Pods run on.
//!
//! It never names a runtime or the store: it speaks CRI with whatever [`carob_cri::Cri`] it was given, and writes through
//! the API. No Pod ever waits for another.
//!
//! # What acts
//!
//! Of a Pod's spec: `containers`, `initContainers` (also with `restartPolicy: Always`), `ephemeralContainers`, and of each
//! `args`, `command`, `env`, `envFrom`, `image`, `imagePullPolicy`, `lifecycle` (`postStart`, `preStop`, `stopSignal`), the
//! three probes, `name`, `ports`, `resizePolicy`, `resources` (also when they change while it runs), `restartPolicy`,
//! `restartPolicyRules`, `securityContext`, `stdin`, `stdinOnce`, `terminationMessagePath`,
//! `terminationMessagePolicy`, `tty`, `volumeMounts` (all fields), `workingDir`; further `activeDeadlineSeconds`,
//! `dnsConfig`, `dnsPolicy`, `enableServiceLinks`, `hostAliases`, `hostIPC`, `hostNetwork`, `hostPID`, `hostUsers`, `hostname`,
//! `hostnameOverride`, `imagePullSecrets`, `nodeName`, `nodeSelector`, `overhead`, `priority`, `readinessGates`, `resources`,
//! `restartPolicy`, `runtimeClassName`, `securityContext`, `serviceAccountName`, `setHostnameAsFQDN`,
//! `shareProcessNamespace`, `subdomain`, `terminationGracePeriodSeconds`, and `volumes` of the kinds `configMap`,
//! `csi`, `downwardAPI`, `emptyDir`, `hostPath`, `image`, `projected` and `secret`.
//!
//! What does not act is refused by the API server: `docs/pod-fields.md` has the table, field by field.

pub mod admission;
pub mod allocation;
pub mod api;
pub mod config;
pub mod csi;
pub mod devices;
pub mod dir_watch;
pub mod env;
pub mod events;
pub mod eviction;
pub mod figures;
pub mod files;
pub mod fleet;
pub mod hooks;
pub mod image;
pub mod logs;
pub mod machine;
pub mod manifests;
mod node;
pub mod objects;
pub mod observe;
pub mod paths;
pub mod plan;
pub mod pod;
pub mod probe;
pub mod server;
pub mod shutdown;
pub mod status;
pub mod termination;
pub mod user_ranges;
pub mod virtual_nodes;
pub mod volumes;
pub mod worker;

pub use config::network::ClusterDns;
pub use eviction::thresholds as eviction_thresholds;
pub use machine::object::NodeIdentity;
pub use manifests::ManifestConfig;
pub use manifests::url::ManifestUrl;
pub use node::{KubeletApi, Node, NodeConfig, NodeError, NodeParts};
pub use server::Access;
pub use worker::NetworkRules;
