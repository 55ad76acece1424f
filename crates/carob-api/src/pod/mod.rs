//! What a Pod means, once for all parts: what it asks for in all, its quality of service, which nodes it fits, which
//! taints it bears, which ports of its host it takes.
//!
//! Pure, and of no form: the API server sees Pods as JSON, the others as structs, the scheduler as its own model. Each
//! says what its form holds ([`Amounts`], [`Asked`], [`Toleration`], ...); the rules are here, and [`value`] applies them to
//! the API server's form.

mod features;
mod huge_pages;
mod nodes;
mod ports;
mod qos;
mod resources;
#[cfg(test)]
mod tests;
mod tolerations;
pub mod value;

pub use features::{DECLARED_FEATURES, features_to_resize, features_to_run};
pub use huge_pages::{huge_pages_of, is_huge_pages, page_bytes, size_bytes};
pub use nodes::{NODE_NAME_FIELD, Operator, Requirement, term_fits};
pub use ports::HostPort;
pub use qos::{Asked, Qos, qos};
pub use resources::{Amounts, ListedAmounts, Total, is_extended, is_pod_level};
pub use tolerations::{Taint, Toleration};
