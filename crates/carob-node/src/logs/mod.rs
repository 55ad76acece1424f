//! Container logs: the files and their rotation, and reading them.

pub mod files;
pub mod read;
pub mod rotate;
