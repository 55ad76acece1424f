//! carob-node
pub mod api;
pub mod config;
pub mod env;
pub mod events;
pub mod hooks;
pub mod image;
pub mod logs;
pub mod objects;
pub mod observe;
pub mod paths;
pub mod plan;
pub mod pod;
pub mod probe;
pub mod status;
pub mod termination;
pub mod volumes;
pub mod worker;
