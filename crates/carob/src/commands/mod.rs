//! The commands.

pub(crate) mod image;
pub(crate) mod server;
