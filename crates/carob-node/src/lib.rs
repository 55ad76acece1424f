//! carob-node
pub mod config;
pub mod env;
pub mod objects;
pub mod paths;
pub mod plan;
pub mod pod;
pub mod status;
pub mod volumes;
