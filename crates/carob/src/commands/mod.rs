//! The commands.

pub(crate) mod check;
pub(crate) mod image;
pub(crate) mod run;
pub(crate) mod scheduler;
pub(crate) mod server;
pub(crate) mod simulate;
pub(crate) mod tree;
pub(crate) mod why;
