//! From API objects to the scheduler's own model: once per change, at the edge.

mod cluster;
mod node;
mod pod;
mod resources;
mod selector;
mod volume;

use std::collections::BTreeMap;

use crate::model::{Labels, PodTemplate, Pool, Str};

pub use cluster::{budget, replica_set_selector, selector_of_map, stateful_set_selector};
pub use pod::label_group;
pub use selector::label_selector;
pub use volume::{claim, class, csi_limits, persistent_volume};

/// An object that says something that cannot be understood. The API server's validation lets none of these in.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    #[error("read the quantity {text:?} of {field}")]
    Quantity {
        field: String,
        text: String,
        #[source]
        cause: carob_api::quantity::QuantityError,
    },
    #[error("{operator:?} is not an operator of a selector")]
    Operator { operator: String },
    #[error("{effect:?} is not an effect of a taint")]
    Effect { effect: String },
    #[error("{field} is missing")]
    Missing { field: &'static str },
}

/// Converts objects and shares what is equal among them.
#[derive(Debug, Default)]
pub struct Converter {
    strings: Pool<str>,
    templates: Pool<PodTemplate>,
}

impl Converter {
    fn text(&mut self, text: &str) -> Str {
        self.strings.share(text)
    }

    fn labels(&mut self, labels: Option<&BTreeMap<String, String>>) -> Labels {
        let pairs: Vec<_> =
            labels.into_iter().flatten().map(|(key, value)| (self.text(key), self.text(value))).collect();
        Labels::new(pairs)
    }
}
