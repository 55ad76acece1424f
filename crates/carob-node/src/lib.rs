//! carob-node
pub mod plan;
pub mod pod;
pub mod status;
