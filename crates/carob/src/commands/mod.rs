//! The commands.

pub(crate) mod image;
pub(crate) mod run;
pub(crate) mod server;
pub(crate) mod tree;
